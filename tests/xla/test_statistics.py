"""Statistics of the global batch: far from zero, in groups, and re-estimated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from syncbn_convert import (
    CalibrateOptions,
    ReplicaError,
    ReplicaOptions,
    calibrate,
    convert,
    unfuse,
)
from syncbn_convert.options.rewrites import UnfuseOptions
from tests.models import DIGITS, batchnorm_model, make_layer
from tests.training.digits import TRAIN, weights_of
from tests.training.test_steps import form
from tests.xla.conftest import InChild

FAR = 1e-3


def far_mean(double: bool, weighted: bool) -> None:
    """Mean 1e4, deviation 1: a quarter of the samples on each device, a third of them padding."""
    import jax
    from jax.sharding import Mesh, PartitionSpec

    from syncbn_convert.xla.sample_axes import Layout
    from syncbn_convert.xla.synchronized import Norm, Operands, normalize
    from syncbn_convert.xla.traced_run import Axis, Run

    random = np.random.default_rng(0)
    centers = np.array([1e4, -1e4, 0.5]).reshape(1, 3, 1)
    x = (random.normal(size=(24, 3, 40)) + centers).astype(np.float32)
    weights = (np.arange(24) % 3 > 0).astype(np.float32) if weighted else np.ones(24, np.float32)
    slopes = random.normal(size=x.shape).astype(np.float32) * weights[:, None, None]
    scale, bias = (random.normal(size=3).astype(np.float32) for _ in range(2))
    old = np.zeros(3, np.float32), np.ones(3, np.float32)
    norm = Norm(axis=1, epsilon=1e-3, momentum=0.0, unbiased=False, layout=Layout(0))

    def step(x, weights, slopes):  # type: ignore[no-untyped-def]
        run = Run(axis=Axis("r", 4), weights=weights if weighted else None, has_double=double)

        def outputs(x, scale, bias):  # type: ignore[no-untyped-def]
            (found,) = normalize(run, [norm], [Operands(x, scale, bias, *old)], 0)
            return found.y, (found.mean, found.var)

        y, back, moved = jax.vjp(outputs, x, scale, bias, has_aux=True)
        dx, dscale, dbias = back(slopes)
        return y, moved, dx, jax.lax.psum((dscale, dbias), "r")

    mesh = Mesh(np.array(jax.devices()[:4]), ("r",))
    dealt, alike = PartitionSpec("r"), PartitionSpec()
    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(dealt, dealt, dealt),
        out_specs=(dealt, alike, dealt, alike),
        check_vma=False,
    )
    y, (mean, var), dx, (dscale, dbias) = jax.jit(mapped)(x, weights, slopes)
    real = x[weights > 0].astype(np.float64)
    wanted_mean, wanted_var = real.mean((0, 2)), real.var((0, 2))
    np.testing.assert_allclose(mean, wanted_mean, rtol=1e-6)
    np.testing.assert_allclose(var, wanted_var, rtol=FAR)
    normal = (x - wanted_mean[:, None]) / np.sqrt(wanted_var + 1e-3)[:, None]
    normal *= weights[:, None, None]
    dy = slopes.astype(np.float64)
    count = real.size / 3
    sums = dy.sum((0, 2)), (dy * normal).sum((0, 2))
    np.testing.assert_allclose(dbias, sums[0], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(dscale, sums[1], rtol=1e-3, atol=2e-2)
    slope = scale / np.sqrt(wanted_var + 1e-3)
    averages = (total[:, None] / count for total in sums)
    wanted = slope[:, None] * (dy - next(averages) - normal * next(averages))
    wanted *= weights[:, None, None]
    np.testing.assert_allclose(dx, wanted, rtol=5e-3, atol=5e-3)
    kept = weights > 0
    found = normal * scale[:, None] + bias[:, None]
    np.testing.assert_allclose(np.asarray(y)[kept], found[kept], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("double", [True, False])
def test_far_mean(double: bool, weighted: bool, in_child: InChild) -> None:
    """With float64 between replicas, and on devices that have none."""
    in_child(far_mean, double, weighted)


def calibrated(method: str, group_size: int) -> None:
    options = CalibrateOptions(method=method, batch_size=150, batches=3, warmup=1)  # type: ignore[arg-type]
    model = form(group_size=group_size) if group_size else onnx.load(DIGITS)
    found, wanted = (
        weights_of(
            calibrate(model, TRAIN, options, replicas=ReplicaOptions(engine=engine, replicas=4))
        )
        for engine in ("xla", "threads")
    )
    for name, value in wanted.items():
        error = np.max(np.abs(found[name] - value.astype(np.float64)))
        assert error <= 1e-5 * np.max(np.abs(value)), f"{name}: {error}"


@pytest.mark.parametrize(("method", "group_size"), [("precise", 0), ("moving", 0), ("precise", 2)])
def test_calibrated(method: str, group_size: int, in_child: InChild) -> None:
    """150 samples on four devices are uneven."""
    in_child(calibrated, method, group_size)


def unfused() -> None:
    from syncbn_convert import fold, fuse

    fused = fuse(fold(convert(onnx.load(DIGITS), verify=False), verify=False), verify=False)
    options = UnfuseOptions(batch_size=100, batches=2)
    found, wanted = (
        weights_of(unfuse(fused, TRAIN, options, replicas=ReplicaOptions(engine=engine)))
        for engine in ("xla", "threads")
    )
    assert any("batchnorm" in name for name in wanted)
    for name, value in wanted.items():
        error = np.max(np.abs(found[name] - value.astype(np.float64)))
        assert error <= 1e-5 * np.max(np.abs(value)), f"{name}: {error}"


def test_unfused(in_child: InChild) -> None:
    in_child(unfused)


def bad_data(folder: Path) -> str:
    with np.load(TRAIN) as data:
        images = data["image"][:8].copy()
    images[5, 0, 0, 0] = np.nan
    path = folder / "bad.npz"
    np.savez(path, image=images)
    with pytest.raises(ReplicaError, match="not finite") as caught:
        calibrate(onnx.load(DIGITS), path, replicas=ReplicaOptions(engine="xla", replicas=4))
    return str(caught.value)


def test_statistics_that_are_not_finite(tmp_path: Path, in_child: InChild) -> None:
    message = in_child(bad_data, tmp_path)
    assert "'stem_bn'" in message
    assert "from replica 2" in message


def own_loop() -> None:
    """`to_jax` under `vmap`: gradients and statistics are those of one replica with all samples."""
    import jax
    import jax.numpy as jnp

    from syncbn_convert import to_jax

    model = batchnorm_model(make_layer(3, momentum=0.5), [8, 3, 4])
    function, state = to_jax(model)
    x = np.random.default_rng(0).normal(size=(8, 3, 4)).astype(np.float32)
    trained = {name: value for name, value in state.items() if name in ("scale", "bias", "s", "b")}

    def loss(given: Any, x: Any, axis: str | None) -> tuple[Any, Any]:
        outputs, following = function({**state, **given}, {"x": x}, axis)
        (y,) = outputs.values()
        return jnp.sum(y**3), following

    slopes = jax.grad(lambda given, x: loss(given, x, None)[0])(trained, x)
    alone = loss(trained, x, None)[1]
    pieces = x.reshape(4, 2, 3, 4)
    of_piece = jax.grad(lambda given, x: loss(given, x, "replicas")[0])
    shares = jax.vmap(of_piece, (None, 0), axis_name="replicas")(trained, pieces)
    together = jax.vmap(lambda x: loss(trained, x, "replicas")[1], axis_name="replicas")(pieces)
    assert state.keys() == alone.keys()
    for name, value in slopes.items():
        np.testing.assert_allclose(shares[name].sum(0), value, rtol=1e-4, atol=1e-5)
    for name, value in alone.items():
        np.testing.assert_allclose(together[name][0], value, rtol=1e-5, atol=1e-6)
    assert jnp.ones(1).dtype == np.float32  # float64 is nobody else's


def test_own_loop(in_child: InChild) -> None:
    in_child(own_loop)
