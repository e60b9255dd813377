"""Evaluation of the inference form as an XLA program."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import numpy.typing as npt

from syncbn_convert.passes import FoldMovingStatistics, SwitchRandomnessOff, add_loss
from syncbn_convert.rewriting import pipeline
from syncbn_convert.runtime.communicator import Communicator
from syncbn_convert.training.evaluation import Evaluation, raised, with_weights
from syncbn_convert.training.samples import Micro, Samples, check_any
from syncbn_convert.xla import trouble
from syncbn_convert.xla.dealing import Dealer
from syncbn_convert.xla.program import Program

if TYPE_CHECKING:
    from syncbn_convert.training.xla_step import XlaStep

Array = npt.NDArray[Any]
_WEIGHTS = "\0weights"


class XlaEvaluator:
    """Runs the inference form on data.

    Args:
        loaded: The programs.
        samples: The data.
        batch_size: Samples of a batch, over all devices.
    """

    def __init__(self, loaded: XlaStep, samples: Samples, batch_size: int) -> None:
        self._loaded = loaded
        self.samples = samples
        self._batch_size = batch_size
        self._dealer = Dealer(loaded.step.mesh)
        self._program: Program | None = None
        self._loss = ""
        self._jitted: dict[bool, Any] = {}

    def evaluate(self, communicator: Communicator, arrays: Mapping[str, Array]) -> Evaluation:
        """Evaluate the form with these parameters and statistics; all hosts call it together."""
        step, program = self._loaded.step, self._of(arrays)
        state = step.put({name: arrays.get(name, own) for name, own in program.arrays().items()})
        loss = samples = 0.0
        hits = np.zeros(2)
        replica = (communicator.rank, communicator.size)
        for (micro,) in self.samples.epoch(0, 0, self._batch_size, 1, replica):
            found, right = self._run(program, state, micro)
            loss += float(found) * micro.count
            samples += micro.count
            for shard in right.addressable_shards:
                hits += np.asarray(shard.data).reshape(2)
        check_any(int(samples), self.samples.name)
        hits = communicator.all_reduce_sum(hits)
        accuracy = float(hits[0] / hits[1]) if self._loaded.models.metric is not None else None
        return Evaluation(loss / samples, accuracy, int(samples))

    def _run(self, program: Program, state: dict[str, Any], micro: Micro) -> Any:
        step = self._loaded.step
        share = {name: micro.feeds[name] for name in program.inputs}
        dealt = self._dealer.deal(share, micro.count, self._batch_size)
        placed = step.deal({**dealt.arrays, _WEIGHTS: dealt.weights})
        weights = placed.pop(_WEIGHTS)
        with (
            jax.enable_x64(True),
            trouble.told(step.mesh, dealt.size, self._loaded.communicator.patience("evaluation")),
        ):
            if dealt.padded not in self._jitted:
                self._jitted[dealt.padded] = step.evaluating(
                    program, weighted=dealt.padded, loss=self._loss
                )
            found = self._jitted[dealt.padded](state, placed, weights)
            jax.block_until_ready(found)
            return found

    def _of(self, arrays: Mapping[str, Array]) -> Program:
        """Return the program of the inference form; anew if folding has renamed what changes."""
        if self._program is not None:
            return self._program
        model = raised(with_weights(self._loaded.models.form, arrays))
        adding = dataclasses.replace(self._loaded.models.adding_loss, weights=None)
        pipeline.run(model, [SwitchRandomnessOff(), FoldMovingStatistics(), adding])
        loss = add_loss.output_of(model)
        assert loss is not None
        self._loss = str(loss.name)
        metric = self._loaded.models.metric
        outputs = dict.fromkeys([self._loss, *([metric.output] if metric else [])])
        program = Program(model, list(outputs))
        if {*program.arrays()} <= {*self._loaded.step.program.arrays()}:
            self._program = program
        self._jitted = {}
        return program
