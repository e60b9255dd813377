from __future__ import annotations

import dataclasses
import inspect
import os
import subprocess
import sys
import tomllib

import pytest

import syncbn_convert
from syncbn_convert import passes
from syncbn_convert.rewriting import RewritePass

from .conftest import ROOT


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", syncbn_convert.__all__)
def test_public_name_exists_and_is_described(name: str) -> None:
    assert inspect.getdoc(getattr(syncbn_convert, name))


@pytest.mark.parametrize("name", passes.__all__)
def test_pass_is_a_frozen_dataclass_in_a_file_of_its_name(name: str) -> None:
    pass_class = getattr(passes, name)
    assert issubclass(pass_class, RewritePass)
    assert dataclasses.is_dataclass(pass_class)
    assert pass_class.__module__.rpartition(".")[2].replace("_", "") == name.lower()
    assert pass_class.__doc__ is not None
    assert "before" in pass_class.__doc__


def test_every_file_of_passes_is_exported() -> None:
    files = {path.stem for path in (ROOT / "passes").glob("*.py")} - {"__init__", "recipes"}
    homes = {getattr(passes, name).__module__.rpartition(".")[2] for name in passes.__all__}
    assert files == homes


def test_a_command_loads_only_its_own_passes() -> None:
    done = run_python(
        "import sys, syncbn_convert.commands.fuse; "
        "from syncbn_convert import passes; passes.FuseBatchNorm; "
        "print(sorted(name for name in sys.modules if name.startswith('syncbn_convert.passes.')))"
    )
    assert "syncbn_convert.passes.fuse_batchnorm" in done.stdout, done.stderr
    assert "differentiate" not in done.stdout
    assert "recognize_batchnorm" not in done.stdout


def test_a_pass_that_is_none_is_named() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'FuseAll'"):
        passes.FuseAll  # noqa: B018


def test_version_is_the_one_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert syncbn_convert.__version__ == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_link_to_passes_serves_the_checkout() -> None:
    link = ROOT / "syncbn_convert" / "passes"
    assert os.readlink(link) == os.path.join("..", "passes")
    done = run_python("import syncbn_convert.passes as p; print(p.__file__)")
    assert done.stdout.strip() == str(link / "__init__.py"), done.stderr


def test_passes_cannot_be_imported_as_a_top_level_package() -> None:
    done = run_python("import passes")
    assert done.returncode == 1
    assert "ImportError: this package is 'syncbn_convert.passes', not 'passes'" in done.stderr
