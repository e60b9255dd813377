from __future__ import annotations

import numpy as np
import pytest

from syncbn_convert import VerificationError, convert_with_report, fold_with_report, inspect
from tests.verification.samples import parse

NET = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,3] x) => (float[N,3] y) <float[3] s, float[3] b, float[3] m, float[3] v> {
  [bn] y, rm, rv = BatchNormalization<training_mode = 1>(x, s, b, m, v)
}"""
SICK = {
    "NaN": ("v", [1.0, np.nan, np.nan], "moving variance 'v' is NaN in channel 1 and 1 more"),
    "NaN mean": ("m", [np.nan, 0.0, 0.0], "moving mean 'm' is NaN in channel 0"),
    "infinite": ("v", [1.0, 2.0, np.inf], "moving variance 'v' is infinite in channel 2"),
    "negative": ("v", [-0.5, 2.0, 1.0], "moving variance 'v' is negative in channel 0"),
}


@pytest.mark.parametrize(("name", "values", "told"), SICK.values(), ids=SICK)
def test_sick_statistic_is_told_with_node_and_name(
    name: str, values: list[float], told: str
) -> None:
    model = parse(NET, 0, **{name: np.array(values)})
    assert inspect(model).nodes[0].sick == told
    _, folded = fold_with_report(model, verify=False)
    _, converted = convert_with_report(model, verify=False)
    for report in (folded, converted):
        assert f"node 'bn': {told}" in report.notes
    if not np.isfinite(values).all():
        with pytest.raises(VerificationError, match="cannot be compared; repair") as error:
            convert_with_report(model)
        assert str(error.value).startswith(f"node 'bn': {told}")


def test_statistics_that_nothing_moved_are_told() -> None:
    model = parse(NET, 0, m=np.zeros(3), v=np.ones(3))
    assert "initial 0 and 1" in inspect(model).nodes[0].sick
    _, report = fold_with_report(model)
    assert any("moving mean and variance are still at the initial" in n for n in report.notes)


def test_convert_tells_statistics_that_nothing_moved_once() -> None:
    calls = "".join(
        f"[bn{i}] t{i + 1} = BatchNormalization(t{i}, s{i}, b, m, v) " for i in range(5)
    )
    scales = ", ".join(f"float[3] s{i}" for i in range(5))
    text = f"""<ir_version: 10, opset_import: ["" : 17]>
    g (float[N,3] x) => (float[N,3] t5) <{scales}, float[3] b, float[3] m, float[3] v> {{
      t0 = Relu(x) {calls}
    }}"""
    model = parse(text, 0, m=np.zeros(3), v=np.ones(3))
    _, report = convert_with_report(model, verify=False)
    (note,) = report.notes
    assert note.startswith("nodes 'bn0', 'bn1', 'bn2' and 2 more: moving mean and variance are")


def test_statistics_of_the_batch_are_told() -> None:
    text = NET.replace("[bn]", "mm = ReduceMean<axes = [0], keepdims = 0>(x)  [bn]")
    model = parse(text.replace("b, m, v)\n", "b, mm, v)\n"))
    told = "moving mean 'mm' is computed at run time, such as from the batch itself"
    assert inspect(model).nodes[0].sick == told
    _, report = fold_with_report(model)
    assert f"node 'bn': {told}" in report.notes


def test_sound_statistics_are_not_mentioned() -> None:
    model = parse(NET)
    assert inspect(model).nodes[0].sick == ""
    assert fold_with_report(model)[1].notes == []
