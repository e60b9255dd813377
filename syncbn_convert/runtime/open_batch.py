"""A model that was exported for one size of the batch, made to take any."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from syncbn_convert.files import model_file
from syncbn_convert.graph import constants, graphs
from syncbn_convert.graph.value_types import inferred
from syncbn_convert.passes import SwitchRandomnessOff, recipes
from syncbn_convert.rewriting import pipeline
from syncbn_convert.runtime.onnx_session import open_session

BATCH = "batch"
_CLOSE = 1e-4
"""Difference of an output from that of the fixed size, relative to its largest magnitude: far above
rounding, far below what another sample's result is off by."""


def fixed_batch(model: ir.Model) -> int | None:
    """Return the size of the first axis that all inputs of a model have; None if it is open."""
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    sizes = {value.shape[0] if value.shape else None for value in inputs}
    size = next(iter(sizes)) if len(sizes) == 1 else None
    return size if isinstance(size, int) and size > 0 else None


def open_batch(model: ir.Model) -> bool:
    """Let a model of a fixed batch take any, in place; return whether it can.

    Sizes in Reshapes that follow from the batch are left to it. That samples do not depend on the
    size, or on each other, is tried: the inference form has to make of twice the batch and one
    sample what the model makes of them by the fixed size. Else the model stays as it is.
    """
    size = fixed_batch(model)
    if size is None:
        return False
    opened = model_file.as_model(model)
    _open(opened, size)
    if not _same_by_sample(model, opened, size):
        return False
    _open(model, size)
    return True


def _open(model: ir.Model, size: int) -> None:
    plain = _inference_form(model)
    known = {str(value.name): given.shape for value, given in inferred(plain).items()}
    shapes = {value: known.get(str(value.name)) or value.shape for value in _values(model)}
    names = graphs.Names(model)
    for node in list(model.graph):
        if node.op_type == "Reshape" and node.domain in graphs.STANDARD_DOMAINS:
            _open_reshape(node, model, shapes, size, names)
    for value in _values(model):
        if value.is_initializer() or value.shape is None:
            continue
        if value.is_graph_input() or value.is_graph_output():
            if len(value.shape) and value.shape[0] == size:
                value.shape = ir.Shape([BATCH, *value.shape.dims[1:]])
        else:
            value.shape = None


def _values(model: ir.Model) -> list[ir.Value]:
    return [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]


def _open_reshape(
    node: ir.Node,
    model: ir.Model,
    shapes: dict[ir.Value, ir.Shape | None],
    size: int,
    names: graphs.Names,
) -> None:
    source, wanted = node.inputs
    tensor = None if wanted is None else constants.constant_tensor(wanted, model)
    if source is None or tensor is None or not tensor.size or int(tensor.numpy()[0]) != size:
        return
    before, after = shapes.get(source), shapes.get(node.outputs[0])
    if before is None or after is None or not after.is_static() or before[0] != size:
        return
    sizes = np.array([-1, *after.numpy()[1:]], np.int64)
    constant = ir.node("Constant", [], {"value": ir.tensor(sizes)})
    names.after_operator(constant, graphs.label(node))
    assert node.graph is not None
    node.graph.insert_before(node, constant)
    node.replace_input_with(1, constant.outputs[0])


def _same_by_sample(model: ir.Model, opened: ir.Model, size: int) -> bool:
    fixed, free = (_inference_form(candidate) for candidate in (model, opened))
    random = np.random.default_rng(0)
    feeds = {
        str(value.name): _random(value, 2 * size + 1, random)
        for value in fixed.graph.inputs
        if not value.is_initializer()
    }
    names = [str(value.name) for value in fixed.graph.outputs]
    try:
        one, any_size = (
            open_session(
                model_file.to_proto(candidate).SerializeToString(), threads=1, log_errors=False
            )
            for candidate in (fixed, free)
        )
        found = any_size.run(names, feeds)
        starts = (0, size, size + 1)
        parts = [
            one.run(names, {key: array[at : at + size] for key, array in feeds.items()})
            for at in starts
        ]
    except Exception:  # whatever ONNX Runtime raises of a size that is not the model's
        return False
    for index, output in enumerate(found):
        pieces = [part[index] for part in parts]
        if any(piece.shape[:1] != (size,) for piece in pieces):
            return False
        wanted = np.concatenate([pieces[0], pieces[1], pieces[2][-1:]])
        if output.shape != wanted.shape or not _close(output, wanted):
            return False
    return True


def _inference_form(model: ir.Model) -> ir.Model:
    form = model_file.as_model(model)
    pipeline.run(form, [SwitchRandomnessOff()])
    recipes.to_inference(form)
    return form


def _random(value: ir.Value, count: int, random: np.random.Generator) -> npt.NDArray[np.generic]:
    assert value.shape is not None
    shape = [count, *(size if isinstance(size, int) else 2 for size in value.shape.dims[1:])]
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    if np.dtype(dtype).kind in "biu":
        return random.integers(0, 2, shape).astype(dtype)
    return random.normal(size=shape).astype(dtype)


def _close(found: npt.NDArray[np.generic], wanted: npt.NDArray[np.generic]) -> bool:
    if found.dtype.kind not in "fV":
        return bool((found == wanted).all())
    wide, exact = found.astype(np.float64), wanted.astype(np.float64)
    scale = float(np.max(np.abs(exact), initial=0.0))
    return bool(np.max(np.abs(wide - exact), initial=0.0) <= _CLOSE * scale)
