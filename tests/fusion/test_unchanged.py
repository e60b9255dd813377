"""`fold` and `fuse` over many files: what is done already is no error, unless that is asked for."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import syncbn_convert
from syncbn_convert import ConversionError
from syncbn_convert.cli.main import main
from tests.fusion import cases
from tests.fusion.cases import BN, X4, W, build, norm

LAYER = f"c = Conv(x, w) y = {BN}(c, s, b, m, v)"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(build(X4, LAYER, {**W, **norm(6)}), path)
    return path


def _run(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_fuse_again_and_again(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = source.with_name("1.onnx"), source.with_name("2.onnx")
    assert _run("fuse", source, "-o", first, capsys=capsys)[0] == 0
    code, shown = _run("fuse", first, "-o", second, capsys=capsys)
    assert code == 0
    assert "nothing to fuse" in shown
    assert second.read_bytes() == first.read_bytes()
    third = source.with_name("3.onnx")
    code, shown = _run("fuse", first, "-o", third, "--fail-if-unchanged", capsys=capsys)
    assert code == 1
    assert "nothing to fuse" in shown
    assert not third.exists()


def test_fold_of_what_is_in_inference_form(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = source.with_name("o.onnx")
    code, shown = _run("fold", source, "-o", output, capsys=capsys)
    assert code == 0
    assert "nothing to fold" in shown
    assert "syncbn-convert fuse" in " ".join(shown.split())
    nodes = [onnx.load(path).graph.node for path in (source, output)]
    assert [node.op_type for node in nodes[1]] == [node.op_type for node in nodes[0]]
    code, shown = _run("fold", source, "--fail-if-unchanged", "-o", "no.onnx", capsys=capsys)
    assert (code, "nothing to fold" in shown) == (1, True)


def test_fold_and_fuse_of_what_is_in_inference_form(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = source.with_name("o.onnx")
    flags = ("--fuse", "--fail-if-unchanged")
    code, shown = _run("fold", source, *flags, "-o", output, capsys=capsys)
    assert code == 0
    assert "fused 1" in shown or "into Conv" in shown
    assert [node.op_type for node in onnx.load(output).graph.node] == ["Conv"]
    code, _ = _run("fold", output, *flags, "-o", source.with_name("p.onnx"), capsys=capsys)
    assert code == 1


@pytest.mark.parametrize("fail", [False, True])
def test_what_is_trained_has_to_be_folded_first(fail: bool) -> None:
    options = syncbn_convert.FuseOptions(fail_if_unchanged=fail)
    form = syncbn_convert.convert(build(X4, LAYER, {**W, **norm(6)}), verify=False)
    for model in (form, cases.case("training mode").model):
        with pytest.raises(ConversionError, match="fold --fuse"):
            syncbn_convert.fuse(model, options, verify=False)
