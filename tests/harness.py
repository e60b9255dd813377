"""One harness for every pass: interface, honesty of `modified`, validity, fixed point, meaning."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime

from syncbn_convert.files import model_file
from syncbn_convert.rewriting import RewritePass, RewriteResult

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
Expected = Callable[[Feeds], Mapping[str, Array]]
Signature = tuple[str, int | None, tuple[str, ...] | None]

SPELLINGS = Path(__file__).parents[1] / "models" / "spellings"


def spelling(name: str) -> onnx.ModelProto:
    """Parse one of the textual models."""
    return onnx.parser.parse_model((SPELLINGS / f"{name}.onnxtxt").read_text())


def run(model: onnx.ModelProto, feeds: Feeds) -> dict[str, Array]:
    """Run a model on unmodified ONNX Runtime, one thread, warnings off."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(feeds)), strict=True))


def signature(values: Collection[ir.Value]) -> list[Signature]:
    """Describe an interface: names, element types and shapes, in order."""
    return [
        (
            str(value.name),
            int(value.dtype) if value.dtype is not None else None,
            tuple(str(size) for size in value.shape) if value.shape is not None else None,
        )
        for value in values
    ]


def apply_and_check(
    rewrite: RewritePass,
    model: onnx.ModelProto,
    *,
    feeds: Feeds | None = None,
    expected: Expected | None = None,
    added_inputs: Collection[str] = (),
    removed_inputs: Collection[str] = (),
    added_outputs: Collection[str] = (),
    removed_outputs: Collection[str] = (),
    rtol: float = 0.0,
    atol: float = 0.0,
) -> tuple[onnx.ModelProto, RewriteResult]:
    """Run a pass and check what every pass promises.

    Args:
        rewrite: The pass.
        model: What it is run on; not changed.
        feeds: Inputs for one run. None leaves the meaning unchecked.
        expected: What the rewritten model has to return for `feeds`; None means what `model`
            returns. Only the outputs that it names are compared.
        added_inputs: Graph inputs (initializers among them) that the pass may add.
        removed_inputs: Graph inputs that the pass may take away.
        added_outputs: Graph outputs that the pass may add.
        removed_outputs: Graph outputs that the pass may take away.
        rtol: Allowed error relative to the largest magnitude of an output.
        atol: Allowed error besides.

    Returns:
        The rewritten model and the result of the pass.
    """
    subject = model_file.as_model(model)
    before = _bytes(subject)
    result = rewrite(subject)
    assert isinstance(result, RewriteResult)
    after = _bytes(subject)
    assert result.modified == (before != after), "modified must say whether the bytes differ"

    original = ir.from_proto(model)
    _check_interface(original.graph.inputs, subject.graph.inputs, added_inputs, removed_inputs)
    _check_interface(original.graph.outputs, subject.graph.outputs, added_outputs, removed_outputs)
    onnx.checker.check_model(onnx.ModelProto.FromString(after), full_check=True)

    again = rewrite(subject)
    assert not again.modified, "a second run must change nothing"
    assert _bytes(subject) == after

    rewritten = model_file.to_proto(subject)
    if feeds is not None:
        wanted = expected(feeds) if expected else run(model, feeds)
        _check_values(run(rewritten, feeds), wanted, removed_outputs, rtol, atol)
    return rewritten, result


def _bytes(model: ir.Model) -> bytes:
    content: bytes = model_file.to_proto(model).SerializeToString(deterministic=True)
    return content


def _check_interface(
    before: Collection[ir.Value],
    after: Collection[ir.Value],
    added: Collection[str],
    removed: Collection[str],
) -> None:
    kept = [entry for entry in signature(before) if entry[0] not in removed]
    assert [entry for entry in signature(after) if entry[0] not in added] == kept
    assert set(added) <= {value.name for value in after}
    assert not set(removed) & {value.name for value in after}


def _check_values(
    got: Mapping[str, Array],
    wanted: Mapping[str, Array],
    removed: Collection[str],
    rtol: float,
    atol: float,
) -> None:
    for name, reference in wanted.items():
        if name in removed:
            continue
        assert got[name].shape == reference.shape
        exact = reference.astype(np.float64)
        allowed = atol + rtol * float(np.max(np.abs(exact), initial=0.0))
        error = float(np.max(np.abs(got[name].astype(np.float64) - exact), initial=0.0))
        assert error <= allowed, f"{name}: {error:.3g} > {allowed:.3g}"
