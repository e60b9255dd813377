from __future__ import annotations

import dataclasses
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from syncbn_convert.cli.main import main
from syncbn_convert.commands import convert, fold, inspect, verify
from syncbn_convert.commands.run import Result
from syncbn_convert.reports import (
    InspectReport,
    NodeInfo,
    OutputDifference,
    Record,
    RewriteReport,
    VerifyReport,
)


def rewrite_report(command: str = "convert", **changes: Any) -> RewriteReport:
    report = RewriteReport(
        command=command,
        found=2,
        converted=1,
        records=[
            Record(node="bn1", action="converted", detail={"channels": 64, "dtype": "float32"}),
            Record(node="bn2", action="skipped", reason="inside a Loop body", location="loop/body"),
        ],
        all_reduces=1,
        verified=True,
        max_relative_error=1.2e-7,
        tolerance=3.4e-6,
        seconds=0.5,
        timings={"read": 0.1, "convert_sync_batchnorm": 0.25},
        notes=["opset raised from 9 to 18"],
    )
    return dataclasses.replace(report, **changes)


def node_info(**changes: Any) -> NodeInfo:
    info = NodeInfo(
        name="bn1",
        op_type="BatchNormalization",
        domain="",
        axis=1,
        channels=64,
        epsilon=1e-5,
        momentum=0.9,
        training_mode=False,
        dtype="float32",
        parameters=["scale", "bias", "mean", "variance"],
        location="",
        convertible=True,
        reason="",
    )
    return dataclasses.replace(info, **changes)


def verify_report(**changes: Any) -> VerifyReport:
    report = VerifyReport(
        equal=True,
        max_relative_error=2e-7,
        tolerance=1e-5,
        outputs=[
            OutputDifference(
                name="y",
                equal=True,
                max_absolute_error=1e-6,
                max_relative_error=2e-7,
                tolerance=1e-5,
            )
        ],
        first_difference=None,
        runs=4,
    )
    return dataclasses.replace(report, **changes)


class FakeCommands:
    """Stands in for `run` of the commands: keeps the calls, answers with prepared reports."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.rewrite_report = rewrite_report()
        self.inspect_report = InspectReport(opset=18, ir_version=10, nodes=[node_info()])
        self.verify_report = verify_report()
        self.written: Path | None = Path("out.onnx")
        self.during: Callable[[], None] = lambda: None

    def _called(self, name: str, *positional: Any, **named: Any) -> None:
        self.calls.append((name, positional, named))
        self.during()

    def convert(self, *positional: Any, **named: Any) -> Result[RewriteReport]:
        self._called("convert", *positional, **named)
        named["show_stage"]("rewrite")
        return self._rewritten(positional[0])

    def fold(self, *positional: Any, **named: Any) -> Result[RewriteReport]:
        self._called("fold", *positional, **named)
        return self._rewritten(positional[0])

    def inspect(self, *positional: Any) -> Result[InspectReport]:
        self._called("inspect", *positional)
        return Result(report=self.inspect_report)

    def verify(self, *positional: Any, **named: Any) -> Result[VerifyReport]:
        self._called("verify", *positional, **named)
        return Result(report=self.verify_report)

    def _rewritten(self, path: Path) -> Result[RewriteReport]:
        files = {"input": path, "output": self.written}
        return Result(report=self.rewrite_report, files=files)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> FakeCommands:
    fake = FakeCommands()
    for module in (convert, fold, inspect, verify):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, "run", getattr(fake, name))
    return fake


@dataclasses.dataclass(frozen=True)
class Finished:
    exit_code: int
    stdout: str
    stderr: str


class Run:
    """Runs the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Finished:
        exit_code = main(arguments)
        streams = self._capsys.readouterr()
        return Finished(exit_code, streams.out, streams.err)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A copy of the trained sample model in an empty folder."""
    sample = Path(__file__).parents[2] / "models" / "digits_cnn.onnx"
    return Path(shutil.copy(sample, tmp_path / "digits.onnx"))


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True
