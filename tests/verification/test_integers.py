from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .samples import compare, parse, scaled

GREY = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,4] x) => (TYPE[N,4] y) <float k, float s> {
  m = Mul(x, s)  p = Add(m, k)  [cast] y = Cast<to = CODE>(p)
}"""


@pytest.mark.parametrize(
    ("dtype", "code", "kind"),
    [("uint8", 2, "levels"), ("int32", 6, "indices or counts"), ("int64", 7, "indices or counts")],
)
def test_atol_counts_for_integers_and_rtol_does_not(
    tmp_path: Path, dtype: str, code: int, kind: str
) -> None:
    text = GREY.replace("TYPE", dtype).replace("CODE", str(code))
    model = parse(text, k=np.array(120.0), s=np.array(20.0))
    other = scaled(model, "k", 121 / 120)
    report = compare(tmp_path, model, other)
    assert str(report.first_difference).endswith(
        f"output 'y': its whole numbers ({dtype}, {kind}) differ by up to 1, "
        "which only --atol allows"
    )
    assert compare(tmp_path, model, other, atol=1.0).equal
    assert not compare(tmp_path, model, other, atol=0.5).equal
    assert not compare(tmp_path, model, other, rtol=0.5).equal


def test_booleans_take_no_tolerance(tmp_path: Path) -> None:
    text = """
<ir_version: 10, opset_import: ["" : 17]>
g (float[N,4] x) => (bool[N,4] y) <float k> { y = Less(x, k) }"""
    model = parse(text, k=np.array(0.5))
    assert not compare(tmp_path, model, scaled(model, "k", -1.0), atol=2.0).equal
