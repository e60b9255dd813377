"""What `fuse`, `fold` and `convert` make of a random graph, held to the graph in float64."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

import syncbn_convert
from syncbn_convert import ConversionError, FoldOptions
from syncbn_convert.reports import RewriteReport
from tests.random_graphs.float64 import Interpreter, Known, Layer
from tests.random_graphs.generator import Sample
from tests.random_graphs.scopes import BODY

Array = npt.NDArray[Any]

_LARGEST_HALF = 6e4
_WORTH = 0.01
"""Tolerance over range above which a comparison proves little."""

_REFUSED = {
    "fuse": ("all are in training mode; fold the model first",),
    "fold": ("nodes can be folded;",),
    "convert": ("nodes can be converted;",),
}
"""What a command may say about a whole graph."""


@dataclasses.dataclass
class Judge:
    """Judges one graph.

    Attributes:
        sample: It.
        verify: Whether the commands verify their results, too.
        outcomes: What became of the graph and of its nodes, and why.
    """

    sample: Sample
    verify: bool = False
    outcomes: Counter[str] = dataclasses.field(default_factory=Counter)

    def fuse(self) -> None:
        """Fuse, and compare with the graph itself."""
        found = self._run("fuse", lambda m: syncbn_convert.fuse_with_report(m, verify=self.verify))
        if found is not None:
            fused, _ = found
            self._require_interface(fused, set())
            self._compare(fused, Interpreter(self.sample.model))

    def fold(self, *, fuse: bool = False) -> None:
        """Fold, and compare with the graph in inference mode."""
        self._fold(self.sample.model, fuse=fuse)

    def _fold(self, model: onnx.ModelProto, *, fuse: bool) -> None:
        options = FoldOptions(fuse=fuse)
        found = self._run(
            "fold", lambda m: syncbn_convert.fold_with_report(m, options, verify=self.verify), model
        )
        if found is not None:
            folded, report = found
            self._require_interface(folded, _statistics(self.sample.model))
            left = _labels(report, "skipped")
            self._compare(folded, Interpreter(self.sample.model, _in_training(left)))

    def convert(self) -> None:
        """Convert, compare a step with the graph in training mode, fold back and compare."""
        found = self._run(
            "convert", lambda m: syncbn_convert.convert_with_report(m, verify=self.verify)
        )
        if found is None:
            return
        form, report = found
        left = _labels(report, "skipped")
        if left <= {_label(node) for node in _batchnorms(self.sample.model.graph.node)}:
            self._require_interface(form, set(), added=True)
            oracle = Interpreter(
                self.sample.model,
                lambda label, said: said or not (label in left or label.startswith(BODY)),
            )
            self._compare(form, oracle, following=True)
        else:
            self._count("left in a function")
        self._fold(form, fuse=False)

    def _count(self, *words: str) -> None:
        self.outcomes[" ".join(words).strip()] += 1

    def _run(
        self,
        command: str,
        rewrite: Callable[[Any], tuple[Any, RewriteReport]],
        model: onnx.ModelProto | None = None,
    ) -> tuple[onnx.ModelProto, RewriteReport] | None:
        model = self.sample.model if model is None else model
        before = model.SerializeToString(deterministic=True)
        try:
            result, report = rewrite(model)
        except ConversionError as error:
            message = str(error)
            assert "\n" not in message, message
            assert any(known in message for known in _REFUSED[command]), message
            self._count(command, "refused")
            return None
        assert model.SerializeToString(deterministic=True) == before
        onnx.checker.check_model(result, full_check=True)
        names = Counter(node.name for node in result.graph.node if node.name)
        assert not names or max(names.values()) == 1, names
        self._count(command, "done")
        for record in report.records:
            reason = _general(record.reason) if record.action in ("kept", "skipped") else ""
            self._count(command, record.action, reason)
        return result, report

    def _require_interface(
        self, result: onnx.ModelProto, removable: set[str], *, added: bool = False
    ) -> None:
        before, after = self.sample.model.graph, result.graph
        defaults = {tensor.name for tensor in before.initializer}
        names = [info.name for info in after.input]
        for info in before.input:
            if self.sample.model.ir_version < 4 and info.name in defaults:
                continue
            assert info.name in names, info.name
            assert info == after.input[names.index(info.name)]
        wanted = list(before.output)
        got = {info.name: info for info in after.output}
        assert {info.name for info in wanted} - set(got) <= removable
        for info in wanted:
            if info.name in got:
                assert info == got[info.name], (info, got[info.name])
        if not added:
            assert [i.name for i in after.output] == [i.name for i in wanted if i.name in got]

    def _compare(
        self, result: onnx.ModelProto, oracle: Interpreter, *, following: bool = False
    ) -> None:
        feeds, shared = self.sample.feeds, _shared_statistics(self.sample.model)
        for fed in ({}, self.sample.fed) if self.sample.fed else ({},):
            oracle.layers.clear()
            wanted = oracle.run({**feeds, **fed})
            got = self._outputs(result, {**feeds, **fed})
            if not got:
                continue
            for name, known in wanted.items():
                if name in got and name not in shared:
                    self._same(name, got[name], known)
            if following:
                self._compare_statistics(result, oracle.layers, got)

    def _outputs(self, result: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run on ONNX Runtime, or in float64.

        The latter where it has no kernel even for the graph, and where a layer in training mode
        shares its state with another, for ONNX Runtime writes it in place.
        """
        if _shared_statistics(result):
            return {name: known.value for name, known in Interpreter(result).run(feeds).items()}
        try:
            return _on_runtime(result, feeds)
        except Exception as error:
            if not (_has_no_kernel(error) and self._lacks_kernel()):
                raise
            self._count("no kernel")
            if result.functions and result.functions[0].domain == "syncbn":
                return {}
            return {name: known.value for name, known in Interpreter(result).run(feeds).items()}

    def _lacks_kernel(self) -> bool:
        try:
            _on_runtime(self.sample.model, self.sample.feeds)
        except Exception as error:
            return _has_no_kernel(error)
        return False

    def _same(self, name: str, got: Array, known: Known) -> None:
        assert got.shape == known.value.shape, (name, got.shape, known.value.shape)
        if not known.is_float:
            np.testing.assert_array_equal(got, known.value)
            return
        if not np.isfinite(known.size).all():
            self._count("not finite")
            return
        largest = float(known.size.max(initial=0.0))
        if known.dtype == np.float16 and largest > _LARGEST_HALF:
            self._count("too large for float16")
            return
        error = float(np.abs(got.astype(np.float64) - known.value).max(initial=0.0))
        assert error <= known.tolerance, (name, error, known.tolerance)
        worth = known.tolerance <= _WORTH * float(np.abs(known.value).max(initial=0.0))
        self._count("compared" if worth else "compared loosely")

    def _compare_statistics(
        self, form: onnx.ModelProto, layers: list[Layer], got: Mapping[str, Array]
    ) -> None:
        bindings = _bindings(form)
        calls: dict[tuple[str, ...], list[Layer]] = {}
        for layer in layers:
            calls.setdefault(layer.parameters, []).append(layer)
        for parameters, same in calls.items():
            for index, origin in enumerate(parameters[2:]):
                following = bindings.get(f"{origin}/{same[0].label}", bindings.get(origin))
                if following is None:
                    continue  # of a function, whose names are made when it is inlined
                value = same[0].old[index]
                for layer in same:
                    value = layer.next(value, index)
                self._same(following, got[following], value)


def _in_training(left: set[str]) -> Callable[[str, bool], bool]:
    return lambda label, said: said and label in left


def _labels(report: RewriteReport, action: str) -> set[str]:
    """Return the names of nodes of the main graph."""
    return {r.node for r in report.records if r.action == action and not r.location}


def _batchnorms(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        if node.op_type == "BatchNormalization":
            yield node
        for attribute in node.attribute:
            yield from _batchnorms(attribute.g.node)


def _label(node: onnx.NodeProto) -> str:
    return node.name or f"{node.op_type}({node.output[0]})"


def _statistics(model: onnx.ModelProto) -> set[str]:
    return {name for node in _batchnorms(model.graph.node) for name in node.output[1:]}


def _shared_statistics(model: onnx.ModelProto) -> set[str]:
    """Return what layers return that share a state with another."""
    layers = list(_batchnorms(model.graph.node))
    states = Counter(name for node in layers for name in node.input[3:5])
    return {
        name
        for node in layers
        if max(states[state] for state in node.input[3:5]) > 1
        for name in node.output[1:]
    }


def _bindings(form: onnx.ModelProto) -> dict[str, str]:
    return {pair.key: pair.value for info in form.training_info for pair in info.update_binding}


def _general(reason: str) -> str:
    """Return a reason without names and numbers."""
    return re.sub(r"'[^']*'|\d+", "*", reason)


def _on_runtime(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(feeds)), strict=True))


def _has_no_kernel(error: Exception) -> bool:
    return "NOT_IMPLEMENTED" in str(error)
