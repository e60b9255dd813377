from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from syncbn_convert.cli.app import app

from .fences import INSTALLS, ROOT, blocks, matches, run, steps

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture
def environment(tmp_path: Path) -> Mapping[str, str]:
    """Commands `syncbn-convert` and `python` that are this checkout's, before all others."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in (("syncbn-convert", "-m syncbn_convert"), ("python", "")):
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        script.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_block_runs_and_prints_what_is_shown(
    document: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "work"
    results = shutil.ignore_patterns("*.sync.onnx", "*.deploy.onnx")
    shutil.copytree(ROOT / "models", folder / "models", ignore=results)
    for step in steps(document):
        run(step, folder, environment)


@pytest.mark.parametrize("command", INSTALLS)
def test_readme_shows_the_command_in_a_block_of_its_own(command: str) -> None:
    assert f"{command}\n" in blocks(ROOT / "README.md", "bash")


def test_ci_runs_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert script.read_text().splitlines()[-1] == INSTALLS[1]
    assert os.access(script, os.X_OK)


def test_output_that_differs_is_noticed() -> None:
    assert matches("a  1e-06\n...\nend\n", "a 2.5e-07\nb\nc\nend\n")
    assert not matches("found 5\n", "found 4\n")
    assert not matches("found 5\n", "found 5\nmore\n")


@pytest.mark.parametrize("page", ["passes", "operators"])
def test_reference_is_up_to_date(page: str, tmp_path: Path) -> None:
    generated = tmp_path / "page.md"
    subprocess.run(
        [sys.executable, ROOT / "docs" / f"generate_{page}.py", generated],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert (ROOT / "docs" / f"{page}.md").read_text() == generated.read_text(), (
        f"run `python docs/generate_{page}.py`"
    )


def test_command_line_reference_names_every_flag_and_no_other() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text()
    commands = [app[name] for name in app if not name.startswith("-")]
    flags = {
        flag
        for command in commands
        for argument in command.assemble_argument_collection(
            default_parameter=app.default_parameter
        )
        if argument.parse and argument.show
        for flag in (*argument.names, *argument.negatives)
    }
    wanted = {flag for flag in (*flags, *app) if flag.startswith("--")}
    assert set(re.findall(r"--[a-z][a-z-]*", text)) == wanted


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda p: p.stem
)
def test_links_lead_to_files(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", document.read_text())
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert not missing
