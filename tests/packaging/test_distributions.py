from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import syncbn_convert

from .conftest import ROOT, Distributions


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if ".dist-info/" not in name]


def test_wheel_holds_every_module_once_and_nothing_else(distributions: Distributions) -> None:
    modules = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "syncbn_convert").rglob("*.py")
        if not path.is_relative_to(ROOT / "syncbn_convert" / "passes")
    ]
    passes = [
        f"syncbn_convert/{path.relative_to(ROOT).as_posix()}"
        for path in (ROOT / "passes").rglob("*.py")
    ]
    expected = [*modules, *passes, "syncbn_convert/py.typed", "syncbn_convert/page/page.css"]
    assert Counter(names_in(distributions.wheel)) == Counter(expected)


def test_sdist_builds_the_same_wheel(distributions: Distributions) -> None:
    assert sorted(names_in(distributions.wheel_of_sdist)) == sorted(names_in(distributions.wheel))


def test_sdist_holds_the_sources_without_tests(distributions: Distributions) -> None:
    with tarfile.open(distributions.sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {"pyproject.toml", "README.md", "LICENSE", "passes/__init__.py"} <= set(names)
    assert not [name for name in names if name.startswith("tests")]


def test_installed_wheel_works(distributions: Distributions, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    run = [sys.executable, "-m"]
    subprocess.run([*run, "venv", "--system-site-packages", "--without-pip", venv], check=True)
    install = ["pip", "--python", str(venv), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*run, *install, str(distributions.wheel)], check=True, capture_output=True)
    packages = next(venv.glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))

    def output(*command: str) -> str:
        return subprocess.run(
            [venv / "bin" / command[0], *command[1:]],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
            env={},
        ).stdout

    assert output("syncbn-convert", "--version") == f"syncbn-convert {syncbn_convert.__version__}\n"
    where = "import syncbn_convert.passes as p; print(p.__file__)"
    assert output("python", "-c", where).startswith(str(packages))
