"""Runs commands on odd files in this process, and says what is wrong with how they end."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import random
import time
from pathlib import Path

from syncbn_convert.cli.main import main
from tests.fuzz import mutations, seeds

_SLOWEST = 20.0
_FAILURE_CODES = (1, 2)


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended."""

    command: list[str]
    code: object
    errors: str
    seconds: float

    @property
    def fault(self) -> str:
        """What is wrong with that; empty if nothing is."""
        if self.code not in (0, *_FAILURE_CODES):
            return f"exit code {self.code}"
        lines = self.errors.splitlines()
        if self.code in _FAILURE_CODES and (len(lines) != 1 or not lines[0].startswith("error: ")):
            return f"{len(lines)} lines for an error"
        return f"{self.seconds:.0f} s" if self.seconds > _SLOWEST else ""


def run(*command: str) -> Ended:
    """Run a command."""
    out, err = io.StringIO(), io.StringIO()
    start = time.perf_counter()
    code: object
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(command))
        except SystemExit as ended:
            code = ended.code
    return Ended(list(command), code, err.getvalue(), time.perf_counter() - start)


_REWRITES = ("convert", "fold", "fuse")


def commands(path: Path, dice: random.Random, *, verify: bool) -> list[list[str]]:
    """Return commands for a model file: one that looks, and one that rewrites."""
    name, output = str(path), str(path.with_suffix(".out.onnx"))
    flags = ["--force", "-o", output] if verify else ["--no-verify", "--force", "-o", output]
    chosen = dice.choice(_REWRITES)
    return [["inspect", name], [chosen, name, *flags]]


def files(folder: Path, seed: int) -> list[list[str]]:
    """Write the odd file of a seed into a folder; return the commands to run on it."""
    dice = random.Random(seed)
    models = seeds.models()
    kind = dice.random()
    if kind < 0.8:
        path = folder / "odd.onnx"
        path.write_bytes(mutations.mutated(models[dice.choice(sorted(models))], dice))
        return commands(path, dice, verify=False)
    good = folder / "good.onnx"
    good.write_bytes(models["convolutions"])
    if kind < 0.88:
        (folder / "odd.npz").write_bytes(mutations.npz(dice))
        data = ["--data", str(folder / "odd.npz")]
        flags = ["--batches", "1", "--no-verify", "--force", "-o", str(folder / "out.onnx")]
        return [["calibrate", str(good), *data, *flags]]
    if kind < 0.95:
        statistics = folder / "odd.safetensors"
        run("statistics", str(good), "-o", str(statistics), "--force", "--quiet")
        statistics.write_bytes(mutations.safetensors(statistics.read_bytes(), dice))
        flags = ["--statistics", str(statistics), "--dry-run", "--no-verify"]
        return [["fold", str(good), *flags]]
    options = folder / "odd.toml"
    options.write_text(mutations.toml(dice))
    return [["convert", str(good), "--options", str(options), "--dry-run", "--no-verify"]]


def faults(folder: Path, seed: int) -> list[str]:
    """Return what was wrong with the commands on the file of a seed."""
    found = []
    for command in files(folder, seed):
        ended = run(*command)
        if fault := ended.fault:
            found.append(f"seed {seed}: {' '.join(command)}: {fault}\n{ended.errors[-3000:]}")
    return found
