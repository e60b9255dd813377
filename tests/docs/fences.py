"""Fenced blocks of the documents, run as a reader would run them."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
INSTALLS = (
    "pip install -e . && syncbn-convert models/digits_cnn.onnx --force",
    "pip install -e '.[test]' && pytest",
)
"""Commands that install, which is not done here; what follows the first installation is."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FIGURE = re.compile(r"\d+(?:\.\d+)?e[-+]\d+|\b\d+\.\d{2,}\b")
_ANY_LINES = "..."


@dataclasses.dataclass(frozen=True)
class Step:
    """Something that a document tells its reader to run.

    Attributes:
        document: Its file.
        line: Line of the fence.
        command: Arguments of the process.
        output: What the document shows of its output; None if it shows none.
    """

    document: Path
    line: int
    command: tuple[str, ...]
    output: str | None


def blocks(document: Path, language: str) -> list[str]:
    """Return the contents of a document's blocks in one language."""
    return [body for found, body in _FENCE.findall(document.read_text()) if found == language]


def steps(document: Path) -> list[Step]:
    """Return what the `bash`, `console` and `python` blocks of a document run, in order.

    In a `console` block `$ ` marks commands, and what follows them is their output. The output of a
    `python` block is the `output` block directly after it.
    """
    text = document.read_text()
    found: list[Step] = []
    if INSTALLS[0] in text:
        command = INSTALLS[0].partition("&& ")[2]
        found.append(Step(document, 1, ("bash", "-euc", command), None))
    for fence in _FENCE.finditer(text):
        language, body = fence.groups()
        line = text.count("\n", 0, fence.start()) + 1
        if language == "python":
            shown = _output_after(text, fence.end())
            found.append(Step(document, line, (sys.executable, "-c", body), shown))
        elif language == "bash" and body.strip() not in INSTALLS:
            found.append(Step(document, line, ("bash", "-euc", body), None))
        elif language == "console":
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                found.append(Step(document, line, ("bash", "-uc", command), output))
    return found


def _output_after(text: str, end: int) -> str | None:
    fence = _FENCE.match(text, end + len(text[end:]) - len(text[end:].lstrip()))
    return fence[2] if fence and fence[1] == "output" else None


def run(step: Step, folder: Path, environment: Mapping[str, str]) -> None:
    """Run a step in `folder`: it must succeed, and print what the document shows."""
    where = f"{step.document.name}, block at line {step.line}: {step.command[-1]}"
    done = subprocess.run(
        step.command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if step.command[0] == "bash" else subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{where}\n{done.stdout}\n{done.stderr}"
    if step.output is not None:
        assert matches(step.output, done.stdout), f"{where}\n{done.stdout}"


def matches(shown: str, printed: str) -> bool:
    """Whether a document shows what was printed.

    Measured figures and the widths of columns may differ; a line `...` stands for any lines.
    """
    pattern = "".join(
        r"(?:.*\n)*" if line.strip() == _ANY_LINES else re.escape(_normalize(line)) + "\n"
        for line in shown.splitlines()
    )
    text = "".join(f"{_normalize(line)}\n" for line in printed.splitlines())
    return re.fullmatch(pattern, text) is not None


def _normalize(line: str) -> str:
    return re.sub(r"\s+", " ", _FIGURE.sub("#", line)).rstrip()
