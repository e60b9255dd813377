"""Judges translations: forward and gradient beside torch in float64, where it has the like.

Both compute in float64: what differs is the order of sums, so errors are a few roundings, of which
up to n are summed: 2^-52 * K * sqrt(n) of the size of what is summed, K = 64, as float32 is held to
float64 in `tests/gradients/judge.py`. A sample without a torch oracle is held to the bench of the
gradient rules, that is to ONNX Runtime in float32.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import onnx_ir as ir
import torch

from syncbn_convert.xla.program import Program
from syncbn_convert.xla.traced_run import Run
from tests.gradients.judge import Bench, Layout, forward_model, wanted
from tests.gradients.sample import Array, Sample

FLOAT64 = 2.0**-52
FLOAT32 = 2.0**-24
ROUNDINGS = 64


def judge(sample: Sample) -> None:
    """Compare one sample's outputs and gradients."""
    if sample.seeded:  # another generator
        return
    names = [f"x{index}" for index in wanted(sample)]
    feeds = {f"x{i}": array for i, array in enumerate(sample.inputs) if array is not None}
    with jax.enable_x64(True):
        program = program_of(sample)
        fixed = {name: feeds[name] for name in program.inputs if name not in names}

        def outputs(given: dict[str, Any]) -> dict[str, Any]:
            return program({}, {**fixed, **given}, Run()).outputs

        found, back = jax.vjp(jax.jit(outputs), {name: feeds[name] for name in names})
        upstream = _upstream(found)
        (slopes,) = back(upstream)
    values = {name: np.asarray(array) for name, array in found.items()}
    gradients = {name: np.asarray(array) for name, array in slopes.items()}
    if sample.oracle is not None:
        expected, wanted_slopes, rounding = *_of_torch(sample, feeds, names, upstream), FLOAT64
    else:
        expected, wanted_slopes = _of_rules(sample, upstream)
        rounding = FLOAT32
    terms = max(dy.size for dy in upstream.values())
    scale = [1.0, *(_largest(feeds[name]) for name in names), *map(_largest, values.values())]
    for name, array in expected.items():
        compare(values[name], array, rounding, terms, max(scale), f"{sample.op_type} {name}")
    for name, array in wanted_slopes.items():
        what = f"{sample.op_type} {name}: gradient"
        compare(gradients[name], array, rounding, terms, max(scale) * 2, what)


def program_of(sample: Sample) -> Program:
    """Return the sample's node as a program, in float64; what is not differentiated is constant."""
    layout = Layout(opset=21, fed=not sample.constants)
    proto = forward_model(sample, layout, np.dtype(np.float64))
    model = ir.from_proto(proto)
    return Program(model, [f"y{index}" for index in sample.flowing])


def _upstream(found: dict[str, Any]) -> dict[str, Array]:
    rng = np.random.default_rng(7)
    result = {}
    for name, value in found.items():
        signs = rng.choice([-1.0, 1.0], size=value.shape)
        result[name] = rng.uniform(0.5, 1.5, size=value.shape) * signs
    return result


def _of_torch(
    sample: Sample, feeds: dict[str, Array], names: list[str], upstream: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    assert sample.oracle is not None
    tensors = {name: torch.tensor(feeds[name], requires_grad=True) for name in names}
    result = sample.oracle(*tensors.values())
    outputs = result if isinstance(result, tuple) else (result,)
    total = torch.zeros((), dtype=torch.float64)
    expected = {}
    for name, output in zip(upstream, outputs, strict=True):
        expected[name] = output.detach().numpy()
        total = total + (output * torch.tensor(upstream[name])).sum()
    if total.requires_grad:
        torch.autograd.backward([total])
    slopes = {
        name: np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()
        for name, tensor in tensors.items()
    }
    return expected, slopes


def _of_rules(
    sample: Sample, upstream: dict[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    bench = Bench(sample, Layout(opset=21))
    bench.upstream = {name: dy.astype(np.float32) for name, dy in upstream.items()}
    slopes = bench._in(np.dtype(np.float32))
    return {name: bench.values[name] for name in upstream}, slopes


def compare(
    got: Array, expected: Array, rounding: float, terms: int, scale: float, what: str
) -> None:
    """Compare with a tolerance of some roundings of terms that are summed."""
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, not {expected.shape}"
    error = float(np.max(np.abs(got.astype(np.float64) - expected), initial=0.0))
    size = _largest(expected) + scale
    allowed = ROUNDINGS * rounding * max(terms, 1) ** 0.5 * size
    assert error <= allowed, f"{what}: {error:.3g} > {allowed:.3g}"


def _largest(array: Array) -> float:
    return float(np.max(np.abs(array), initial=0.0))
