"""The floors of the house: who may import whom, as pyproject.toml says it."""

from __future__ import annotations

import ast
import graphlib
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import grimp
import pytest

from syncbn_convert import passes

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "syncbn_convert"
_LINT = "import sys; from importlinter import cli; sys.exit(cli.lint_imports(no_cache=True))"
_MOST_LOOSE_MODULES = 5


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contract of a checkout, whose package is the one that is found first."""
    return subprocess.run(
        [sys.executable, "-c", _LINT], cwd=folder, capture_output=True, text=True, check=False
    )


def test_floors_are_kept() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line", "said"),
    [
        (
            "syncbn_convert/files/staging.py",
            "import syncbn_convert.keras.reading",
            "syncbn_convert.files.staging -> syncbn_convert.keras.reading",
        ),
        (
            "passes/fusion/scaled.py",
            "from syncbn_convert.runtime import session",
            "syncbn_convert.passes.fusion.scaled -> syncbn_convert.runtime.session",
        ),
        ("syncbn_convert/attic.py", "", "syncbn_convert.attic"),
    ],
)
def test_what_breaks_them_is_named(module: str, line: str, said: str, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("syncbn_convert", "passes"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a") as stream:
        stream.write(f"{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert said in done.stdout


def test_imports_have_no_circles() -> None:
    graph = grimp.build_graph("syncbn_convert", exclude_type_checking_imports=True, cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert "syncbn_convert.passes.gradients.gradient_tape" in imports
    graphlib.TopologicalSorter(imports).prepare()


def test_onnx_runtime_is_opened_in_one_place() -> None:
    files = (path for folder in (PACKAGE, ROOT / "passes") for path in folder.rglob("*.py"))
    openers = {path.name for path in files if "InferenceSession(" in path.read_text()}
    assert openers == {"onnx_session.py"}


def test_child_of_verification_loads_nothing_of_replicas_but_the_opener() -> None:
    command = "import sys, syncbn_convert.verification.child; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    loaded = {name for name in done.stdout.split() if name.startswith("syncbn_convert.runtime.")}
    assert loaded == {"syncbn_convert.runtime.onnx_session"}, done.stderr


def test_passes_run_in_the_pipeline() -> None:
    folders = ("commands", "keras", "page", "runtime", "training", "verification")
    for path in (path for folder in folders for path in (PACKAGE / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Call):
                called = ast.unparse(node.func.func).rpartition(".")[2]
                assert called not in passes.__all__, f"{path}:{node.lineno}"


def test_architecture_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = {
        name for name in re.findall(r"`([\w/]+\.py|[\w/]+/)`", text) if "/" in name or "." in name
    }
    files = [path for folder in ("syncbn_convert", "passes", "tests") for path in rooms(folder)]
    missing = [name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in files)]
    assert len(named) > 50
    assert not missing


def rooms(folder: str) -> list[str]:
    """Return the files and folders of a folder, folders with a slash at their end."""
    found = [
        *(ROOT / folder).rglob("*.py"),
        *(path for path in (ROOT / folder).rglob("*") if path.is_dir()),
    ]
    names = [f"{path.relative_to(ROOT)}{'/' * path.is_dir()}" for path in found]
    return [*names, f"{folder}/"]


def test_no_two_modules_share_a_name() -> None:
    paths = [Path(name) for name in (*rooms("syncbn_convert"), *rooms("passes"))]
    counted = Counter(path.name for path in paths if path.suffix and "__init__" not in path.name)
    assert {name for name, count in counted.items() if count > 1} == set()


def test_few_modules_are_loose() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= _MOST_LOOSE_MODULES
