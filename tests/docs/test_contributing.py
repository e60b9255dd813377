from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from .fences import ROOT

_FILE = re.compile(r"^ *`([\w/]+\.py)`:\n\n( *)```python\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)
_PACKAGES = ("passes/gradients", "tests/gradients/cases")
_FOLDERS = ("syncbn_convert", "passes", "tests", "docs", "models")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout with the files that CONTRIBUTING.md shows, all of them registered."""
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in _FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, _, body in _FILE.findall((ROOT / "CONTRIBUTING.md").read_text()):
        (tmp_path / name).write_text(textwrap.dedent(body))
    exports = tmp_path / "passes" / "__init__.py"
    text = exports.read_text()
    imports = "from syncbn_convert.passes.set_momentum import SetMomentum\n\n__all__ = ["
    text = text.replace("\n__all__ = [", imports, 1)
    exports.write_text(re.sub(r",?\s*\]\s*$", ', "SetMomentum"]\n', text))
    for package in _PACKAGES:
        module = (
            "syncbn_convert.passes.gradients" if package[0] == "p" else package.replace("/", ".")
        )
        with (tmp_path / package / "__init__.py").open("a") as stream:
            stream.write(f"from {module} import remainder as remainder\n")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "pytest", "-n", "0", "tests/passes/test_set_momentum.py"],
        ["-m", "ruff", "check", "passes/set_momentum.py", "tests/passes/test_set_momentum.py"],
        ["-m", "ruff", "format", "--check", "passes/set_momentum.py"],
        ["docs/generate_passes.py"],
        ["-m", "pytest", "-n", "0", "tests/gradients", "-k", "Mod or registered"],
        ["-m", "ruff", "check", *(f"{package}/remainder.py" for package in _PACKAGES)],
        ["-m", "ruff", "format", "--check", *(f"{package}/remainder.py" for package in _PACKAGES)],
        ["docs/generate_operators.py"],
    ],
    ids=lambda command: " ".join(command[:3]),
)
def test_example_is_true(checkout: Path, command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
