"""Trained values into models of Keras, as Python calls."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.errors import ConversionError, UsageError
from syncbn_convert.files import model_file, staging
from syncbn_convert.files.model_file import ModelLike
from syncbn_convert.form import moving_statistics, provenance
from syncbn_convert.form.batchnorm import is_batchnorm
from syncbn_convert.form.moving_statistics import Statistics
from syncbn_convert.form.stateful_layers import layers_digest, layers_of
from syncbn_convert.graph import graphs
from syncbn_convert.keras import reading, sources
from syncbn_convert.keras.graph_match import Named
from syncbn_convert.keras.keras_layers import variable_path
from syncbn_convert.keras.models import KerasModel, copy_keras, read_keras, save_keras
from syncbn_convert.keras.taken_weights import weights_like
from syncbn_convert.options.verifying import VerifyOptions
from syncbn_convert.passes import recipes
from syncbn_convert.reports import KerasReport, VariableChange

if TYPE_CHECKING:
    from syncbn_convert.keras.predictions import Comparison

Array = npt.NDArray[Any]

_STATISTICS = ".safetensors"


def to_keras(
    keras_model: Any,
    source: ModelLike | Statistics,
    *,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
) -> Any:
    """Return a Keras model with trained values in it; see `to_keras_with_report`."""
    return to_keras_with_report(keras_model, source, verify=verify, verify_options=verify_options)[
        0
    ]


def to_keras_with_report(
    keras_model: Any,
    source: ModelLike | Statistics,
    *,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
) -> tuple[Any, KerasReport]:
    """Write trained values into a copy of a Keras model: all that the source holds, or none.

    Values find their variables by name: that of an initializer is the variable's path, such as
    `block/bn/moving_mean`.

    Args:
        keras_model: A `keras.Model` or the path of one; not changed.
        source: Moving statistics, as an object or the path of a `.safetensors` file. Or a model
            that was once imported from `keras_model`, a training form or in inference form, whose
            statistics and weights are taken.
        verify: Whether to compare Keras' predictions with what ONNX Runtime computes.
        verify_options: Feeds and tolerances of that.

    Returns:
        The copy, a `keras.Model`, and what was written.

    Raises:
        ConversionError: naming the first value that has no variable, or another shape or type, or
            that the source lacks.
        VerificationError: if Keras predicts something else.
        ModelFileError: if a file cannot be read.
        UsageError: if TensorFlow is not installed.
    """
    start = time.perf_counter()
    update = _Update(copy_keras(keras_model), source)
    verdict = update.verify(update.keras, verify_options) if verify else None
    return update.keras.model, update.report(verdict, start)


def to_keras_file(
    keras_model: str | os.PathLike[str],
    source: ModelLike | Statistics,
    output: str | os.PathLike[str],
    *,
    verify: bool = True,
    verify_options: VerifyOptions = VerifyOptions(),
    force: bool = False,
) -> KerasReport:
    """Write trained values of `source` into a copy of a Keras file, which appears whole or not.

    Args:
        keras_model: A `.keras` or `.h5` file.
        source: As for `to_keras_with_report`.
        output: The file to write, of the same format; optimizer and loss go with it where Keras
            can read them.
        verify: Whether to read the result back and compare its predictions with what ONNX Runtime
            computes.
        verify_options: Feeds and tolerances of that.
        force: Whether `output` may exist, or be an input.

    Raises:
        SyncBNError: as `to_keras_with_report`; nothing is written then.
    """
    start = time.perf_counter()
    path, target = Path(keras_model), Path(output)
    if path.is_dir():
        raise UsageError(f"{path}: is a folder, into which nothing is written; give a Keras file")
    if target.suffix.lower() != path.suffix.lower():
        raise UsageError(
            f"{target}: is not of the format of {path}; give it the suffix {path.suffix}"
        )
    inputs = [path, *([Path(source)] if isinstance(source, str | os.PathLike) else [])]
    with staging.stage_output(target, inputs=inputs, force=force) as staged:
        update = _Update(copy_keras(path), source)
        notes = save_keras(update.keras, path, staged.path)
        verdict = None
        if verify:
            written = dataclasses.replace(read_keras(staged.path), name=update.keras.name)
            verdict = update.verify(written, verify_options)
        staged.commit()
    return update.report(verdict, start, notes)


class _Update:
    """A Keras model that takes values, and what it has to equal afterwards."""

    def __init__(self, keras: KerasModel, source: ModelLike | Statistics) -> None:
        self.keras = keras
        old = [np.array(variable) for variable in keras.weights]
        if isinstance(source, str | os.PathLike) and Path(source).suffix == _STATISTICS:
            source = moving_statistics.load(Path(source))
        if isinstance(source, Statistics):
            self._wanted = _with_statistics(sources.import_model(keras.model), source)
            new = _statistics_of(keras, self._wanted, source)
        else:
            read = reading.read(source)
            self._wanted = read.model
            recipes.to_inference(self._wanted)
            new = weights_like(keras, Named(self._wanted, read.name))
        self._changes = []
        for variable, before, after in zip(keras.weights, old, new, strict=True):
            variable.assign(before if after is None else after)
            if after is not None:
                self._changes.append(_change(variable_path(variable), before, after))

    def verify(self, keras: KerasModel, options: VerifyOptions) -> Comparison:
        """Compare the predictions of the result with the ONNX model that holds the same values.

        Raises:
            VerificationError: if they differ.
        """
        return keras.compare(self._wanted, options)

    def report(
        self, verdict: Comparison | None, start: float, notes: Sequence[str] = ()
    ) -> KerasReport:
        """Say what was written."""
        return KerasReport(
            variables=self._changes,
            kept=len(self.keras.weights) - len(self._changes),
            verified=verdict is not None,
            max_relative_error=verdict.relative_error if verdict else None,
            tolerance=verdict.tolerance if verdict else None,
            seconds=time.perf_counter() - start,
            notes=list(notes),
        )


def _with_statistics(imported: ir.Model, statistics: Statistics) -> ir.Model:
    """Return an imported model, which is changed, in inference form with other statistics.

    They may be those of some of its layers, as of a form of which a part was converted.
    """
    given = []
    for node in filter(is_batchnorm, imported.graph):
        moving = {value.name for value in node.inputs[3:5] if value is not None}
        if not moving.isdisjoint(statistics.tensors):
            provenance.forget_kept(node)
            given.append(f"^{re.escape(graphs.label(node))}$")
    form = recipes.to_form(model_file.as_model(imported), include=tuple(given))
    if layers_digest(layers_of(form)) != statistics.layers_digest:
        form = recipes.to_form(imported)
    moving_statistics.apply_to_form(statistics, form)
    recipes.to_inference(form)
    return form


def _statistics_of(
    keras: KerasModel, wanted: ir.Model, statistics: Statistics
) -> Sequence[Array | None]:
    """Return the new values of the moving statistics, in the order of `weights`."""
    paths = [variable_path(variable) for variable in keras.weights]
    for name in statistics.tensors:
        if paths.count(name) != 1:
            raise ConversionError(
                f"statistic '{name}' is the path of {paths.count(name)} variables of {keras.name}; "
                "give layers names of their own"
            )
    initializers = wanted.graph.initializers
    values = {name: initializers[name].const_value for name in statistics.tensors}
    return [None if (t := values.get(path)) is None else t.numpy() for path in paths]


def _change(path: str, before: Array, after: Array) -> VariableChange:
    difference = np.abs(after.astype(np.float64) - before.astype(np.float64))
    return VariableChange(
        name=path,
        shape=list(after.shape),
        dtype=str(after.dtype),
        largest_change=float(difference.max(initial=0.0)),
    )
