from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_NOT_SOURCE = (".*", "__pycache__", "*.egg-info", "build", "dist")


@dataclasses.dataclass(frozen=True)
class Distributions:
    """What was built: a wheel from the checkout, an sdist, and a wheel from the sdist."""

    wheel: Path
    sdist: Path
    wheel_of_sdist: Path


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    folder = tmp_path_factory.mktemp("distributions")
    source = _copy_of_checkout(folder / "source")
    _build(source, folder / "direct", "--wheel")
    _build(source, folder / "through_sdist")
    (wheel,) = (folder / "direct").glob("*.whl")
    (sdist,) = (folder / "through_sdist").glob("*.tar.gz")
    (wheel_of_sdist,) = (folder / "through_sdist").glob("*.whl")
    return Distributions(wheel, sdist, wheel_of_sdist)


def _copy_of_checkout(target: Path) -> Path:
    """Copy what git would keep: files and links, but no empty folders."""
    ignored = shutil.ignore_patterns(*_NOT_SOURCE)
    shutil.copytree(ROOT, target, symlinks=True, ignore=ignored)
    for folder in sorted((path for path in target.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()
    return target


def _build(source: Path, output: Path, *options: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir"]
    done = subprocess.run(
        [*command, str(output), str(source)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
