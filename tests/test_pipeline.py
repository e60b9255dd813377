from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest

from syncbn_convert.errors import ConversionError
from syncbn_convert.files.model_file import as_model
from syncbn_convert.options.rewrites import PipelineOptions
from syncbn_convert.passes import CanonicalizeBatchNorm
from syncbn_convert.rewriting import RewritePass, RewriteResult, pipeline
from tests.models import batchnorm_model, make_layer


def small() -> ir.Model:
    return as_model(batchnorm_model(make_layer(2), ["n", 2], opset=14))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refuse(RewritePass):
    def call(self, model: ir.Model) -> RewriteResult:
        raise ConversionError(f"graph '{model.graph.name}': no")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crash(RewritePass):
    def call(self, model: ir.Model) -> RewriteResult:
        raise KeyError(model.graph.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NameTwice(RewritePass):
    def call(self, model: ir.Model) -> RewriteResult:
        model.graph.node(0).outputs[0].name = "x"
        return RewriteResult(model, True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoseProducer(RewritePass):
    def call(self, model: ir.Model) -> RewriteResult:
        model.graph.node(0).replace_input_with(0, ir.Value(name="nowhere"))
        return RewriteResult(model, True)


def test_error_types_are_kept() -> None:
    with pytest.raises(ConversionError, match="graph 'norm': no"):
        pipeline.run(small(), [Refuse()])


def test_a_crash_names_the_pass() -> None:
    with pytest.raises(RuntimeError, match="test_pipeline failed"):
        pipeline.run(small(), [Crash()])


def test_invariants_are_checked_between_passes() -> None:
    with pytest.raises(RuntimeError, match="the name 'x' is used twice"):
        pipeline.run(small(), [NameTwice()])
    with pytest.raises(RuntimeError, match="reads 'nowhere' before it is made"):
        pipeline.run(small(), [LoseProducer()])


def test_timings_records_and_printing(capsys: pytest.CaptureFixture[str]) -> None:
    result = pipeline.run(
        small(),
        [CanonicalizeBatchNorm(), CanonicalizeBatchNorm()],
        PipelineOptions(print_between_passes=True),
    )
    assert list(result.timings) == ["canonicalize_batchnorm"]
    assert result.notes == ["opset raised from 14 to 15"]
    assert result.modified
    captured = capsys.readouterr()
    assert captured.err.count("# after canonicalize_batchnorm") == 1
    assert captured.out == ""
