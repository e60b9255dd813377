"""Every hostile case: what can be fused is, what cannot is left, and the function stays."""

from __future__ import annotations

import onnx
import pytest

import syncbn_convert
from syncbn_convert import ConversionError
from syncbn_convert.files import model_file
from syncbn_convert.passes import FuseBatchNorm
from tests.fusion import catalog as cases
from tests.fusion.judge import batchnorms, require_same


@pytest.mark.parametrize("name", cases.names())
def test_case(name: str) -> None:
    case = cases.case(name)
    before = case.model.SerializeToString()
    subject = model_file.as_model(case.model)
    result = FuseBatchNorm()(subject)
    fused = model_file.to_proto(subject)
    assert case.model.SerializeToString() == before
    onnx.checker.check_model(fused, full_check=True)
    require_same(case.model, fused)
    kept = [record for record in result.records if record.action == "kept"]  # type: ignore[attr-defined]
    assert batchnorms(fused, case.counted) == case.left, [record.reason for record in kept]
    assert all(record.reason for record in kept)
    again = FuseBatchNorm()(subject)
    assert not again.modified


def test_there_are_as_many_as_promised() -> None:
    assert len(cases.names()) >= 200


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(ConversionError, match="all are in training mode; fold the model first"):
        syncbn_convert.fuse(cases.case("training mode").model)
