"""The audit on replicas refuses a form that does not normalize over its replicas together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import syncbn_convert
from syncbn_convert import ConvertOptions, UsageError, run_replicas
from syncbn_convert.errors import VerificationError
from syncbn_convert.files import model_file
from syncbn_convert.form import training_form
from syncbn_convert.options.layers import SyncBatchNormalizationOptions
from syncbn_convert.verification import VerifyOptions
from syncbn_convert.verification.audited_run import run_audited
from syncbn_convert.verification.form_audit import audit_model
from syncbn_convert.verification.launcher import run_audits
from syncbn_convert.verification.replica_audit import judge
from syncbn_convert.verification.verdicts import verify_converted, verify_form
from tests.models import batchnorm_model, make_layer

from .samples import save

ORIGINAL = batchnorm_model(make_layer(3), ["n", 3, 4])
OF_ONE_SIZE = batchnorm_model(make_layer(3), [2, 3, 4])
Damage = Callable[[onnx.FunctionProto], None]


def form_of(
    model: onnx.ModelProto = ORIGINAL, *, unbiased: bool = False, group_size: int | None = None
) -> onnx.ModelProto:
    parameters = SyncBatchNormalizationOptions(
        variance="unbiased" if unbiased else "population", group_size=group_size
    )
    form = syncbn_convert.convert(model, ConvertOptions(parameters=parameters), verify=False)
    assert isinstance(form, onnx.ModelProto)
    return form


def damaged(form: onnx.ModelProto, *damages: Damage) -> onnx.ModelProto:
    (function,) = (f for f in form.functions if f.name == training_form.OP_TYPE)
    for damage in damages:
        damage(function)
    onnx.checker.check_model(form)
    return form


def reads(result: str, before: str, after: str) -> Damage:
    """Let the node that computes a value of the function read another input."""

    def damage(function: onnx.FunctionProto) -> None:
        (node,) = (node for node in function.node if result in node.output)
        node.input[list(node.input).index(before)] = after

    return damage


def _all_reduce(function: onnx.FunctionProto) -> onnx.NodeProto:
    nodes = (node for node in function.node if node.op_type == training_form.ALL_REDUCE)
    found: onnx.NodeProto = next(nodes)
    return found


def dropped(function: onnx.FunctionProto) -> None:
    function.node.remove(_all_reduce(function))
    reads("count", "total", "payload")(function)


def replaced(function: onnx.FunctionProto) -> None:
    _all_reduce(function).CopyFrom(helper.make_node("Identity", ["payload"], ["total"]))


def group_of_one(function: onnx.FunctionProto) -> None:
    _all_reduce(function).attribute[0].CopyFrom(helper.make_attribute("group_size", 1))


def ungrouped(function: onnx.FunctionProto) -> None:
    del _all_reduce(function).attribute[:]


OWN_MEAN = (reads("square", "mean", "local_mean"),) * 2
OWN_VARIANCES = (
    reads("local_moments", "local_second", "local_var"),
    reads("var", "raw_var", "second"),
)
SWAPPED_MOMENTUM = (reads("added", "update", "momentum"), reads("kept", "momentum", "update"))

ALONE = r"node 'norm' differs from ONNX's training-mode BatchNormalization: "
TOGETHER = r"node 'norm' differs from one normalization over its replicas: "
NOT_SHARED = r"node 'norm': the function 'SyncBatchNormalization' of the model does not call AllR"

DAMAGES: dict[str, tuple[str, Sequence[Damage]]] = {
    "no AllReduce": (NOT_SHARED, [replaced]),
    "a count of its own": (TOGETHER + "Y by", [reads("divisor", "count", "local_count")]),
    "a mean of its own": (TOGETHER + "Y by", OWN_MEAN),
    "no momentum": (ALONE + "running_mean by", [reads("running", "next", "batch")]),
    "a part of the replicas": (NOT_SHARED, [group_of_one]),
}


def test_sound_form_passes(tmp_path: Path) -> None:
    original, form = save(tmp_path, original=ORIGINAL, form=form_of())
    verdict = verify_converted(original, form, VerifyOptions())
    assert verdict.notes == ()
    assert 0 < verdict.max_relative_error < verdict.tolerance < 1e-5


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_form_is_refused_by_the_name_of_its_node(tmp_path: Path, name: str) -> None:
    message, damages = DAMAGES[name]
    (path,) = save(tmp_path, form=damaged(form_of(OF_ONE_SIZE), *damages))
    with pytest.raises(VerificationError, match=message):
        verify_form(path, VerifyOptions(seeds=1))


def test_replicas_of_all_groups_get_different_data(tmp_path: Path) -> None:
    form = form_of(group_size=2)
    audit = model_file.to_proto(audit_model(model_file.as_model(form)))
    audited, path = save(tmp_path, audit=audit, form=form)
    _, replicas = run_audits(audited, path)
    assert [outputs["y"].shape[0] for outputs in replicas] == [2, 5, 2, 5]
    assert len({outputs["y"].tobytes() for outputs in replicas}) == 4


def audit(folder: Path, form: onnx.ModelProto, *, like: onnx.ModelProto | None = None) -> set[str]:
    """Run a form on its replicas and return what differs, if `like` is what it should be."""
    (path,) = save(folder, form=form)
    random = np.random.default_rng(0)
    feeds = [{"x": random.normal(size=(n, 3, 4)).astype(np.float32)} for n in (2, 5, 3, 5)]
    errors = judge(model_file.as_model(like or form), run_audited(path, feeds))
    assert {error.node for error in errors} == {"norm"}
    return {error.output for error in errors if not error.equal}


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("group_size", [None, 2])
def test_nothing_differs_in_a_sound_form(
    tmp_path: Path, unbiased: bool, group_size: int | None
) -> None:
    assert audit(tmp_path, form_of(unbiased=unbiased, group_size=group_size)) == set()


COUNT, MEAN, VARIANCE = (f"{part} over all replicas" for part in ("count", "mean", "variance"))
NEXT_MEAN, NEXT_VAR = (f"next value of '{name}'" for name in "mv")


@pytest.mark.parametrize(
    ("damages", "different"),
    [
        ([reads("count", "total", "payload")], {"Y", NEXT_MEAN, NEXT_VAR}),
        ([reads("payload", "weighted_moments", "local_moments")], {COUNT, MEAN, VARIANCE}),
        ([reads("mean_stash", "mean", "local_mean")], {"Y"}),
        ([reads("var_stash", "var", "local_var")], {"Y"}),
        ([reads("freedom", "count", "local_count")], {NEXT_VAR}),
        ([reads("correction", "correction_divisor", "count")], {NEXT_VAR}),
        ([reads("batch", "mean", "local_mean")], {NEXT_MEAN}),
        ([reads("batch", "batch_var", "var")], {NEXT_VAR}),
        ([reads("next", "moved", "old")], {NEXT_MEAN, NEXT_VAR}),
        ([reads("next", "moved", "batch")], {NEXT_MEAN, NEXT_VAR}),
        (OWN_MEAN, {"Y", NEXT_VAR}),
        (OWN_VARIANCES, {VARIANCE, NEXT_VAR, "Y"}),
        (SWAPPED_MOMENTUM, {NEXT_MEAN, NEXT_VAR}),
    ],
)
def test_what_differs_is_told(
    tmp_path: Path, damages: Sequence[Damage], different: set[str]
) -> None:
    assert audit(tmp_path, damaged(form_of(unbiased=True), *damages)) == different


def test_sharing_within_half_of_the_replicas_is_told(tmp_path: Path) -> None:
    different = audit(tmp_path, form_of(group_size=2), like=form_of())
    assert {COUNT, MEAN, VARIANCE, "agreement of replicas"} <= different


@pytest.mark.parametrize("damage", [dropped, replaced, group_of_one, ungrouped])
def test_form_whose_replicas_would_share_nothing_is_not_run(damage: Damage) -> None:
    feeds = [{"x": np.ones((n, 3, 4), np.float32)} for n in (2, 5)]
    with pytest.raises(UsageError, match="convert the original model again"):
        run_replicas(damaged(form_of(), damage), feeds)
