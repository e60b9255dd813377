"""The flags that set the layer's parameters: what reaches the API, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from syncbn_convert import ConvertOptions, LayerRule, SyncBatchNormalizationOptions
from tests.models import DIGITS

from .conftest import FakeCommands, Run

L2 = '{"class_name": "L2", "config": {"l2": 0.5}}'


def test_every_flag_becomes_an_option(commands: FakeCommands, run: Run, tmp_path: Path) -> None:
    toml = tmp_path / "layers.toml"
    toml.write_text("[[layer]]\npattern = 'stem'\nmomentum = 0.5\n")
    finished = run(
        *["m.onnx", "--axis", "-1", "--pytorch-momentum", "0.25", "--epsilon", "0.125"],
        *["--no-center", "--scale", "--beta-initializer", "zeros", "--gamma-initializer", "2.5"],
        *["--moving-mean-initializer", "random_normal", "--moving-variance-initializer", "ones"],
        *["--beta-regularizer", "0.25", "--gamma-regularizer", L2, "--beta-constraint", "NonNeg"],
        *["--gamma-constraint", "unit_norm", "--trainable", "--no-training", "--sync"],
        *["--variance", "unbiased", "--group-size", "2", "--options", str(toml), "--reset"],
        *["--seed", "3"],
    )
    assert finished.stderr == ""
    [(_, (_, options, *_), _)] = commands.calls
    assert options == ConvertOptions(
        parameters=SyncBatchNormalizationOptions(
            axis=-1,
            momentum=0.75,
            epsilon=0.125,
            center=False,
            scale=True,
            beta_initializer="zeros",
            gamma_initializer=2.5,
            moving_mean_initializer="random_normal",
            moving_variance_initializer="ones",
            beta_regularizer=0.25,
            gamma_regularizer={"class_name": "L2", "config": {"l2": 0.5}},
            beta_constraint="NonNeg",
            gamma_constraint="unit_norm",
            trainable=True,
            training=False,
            synchronized=True,
            variance="unbiased",
            group_size=2,
        ),
        layers=(LayerRule(pattern="stem", options=SyncBatchNormalizationOptions(momentum=0.5)),),
        reset=True,
        seed=3,
    )


@pytest.mark.parametrize(
    ("flags", "exit_code", "message"),
    [
        (["--epsilon", "0"], 2, "epsilon 0 is not above 0"),
        (["--epsilon", "-1"], 2, "epsilon -1 is not above 0"),
        (["--momentum", "1.5"], 2, "momentum 1.5 is outside [0, 1]"),
        (["--pytorch-momentum", "-1"], 2, "pytorch_momentum -1 is outside [0, 1]"),
        (["--momentum", "0.9", "--pytorch-momentum", "0.1"], 2, "are both given"),
        (["--axis", "4"], 1, "axis 4 is out of range for an input of rank 4"),
        (["--axis", "-1"], 1, "the numbers of channels differ"),
        (["--gamma-initializer", "he_norml"], 2, "did you mean 'HeNormal'?"),
        (["--beta-regularizer", "ll2"], 2, "did you mean 'L1L2'?"),
        (["--beta-constraint", "max_nrm"], 2, "did you mean 'MaxNorm'?"),
        (["--beta-constraint", "{"], 2, "'{' is not JSON that can be read"),
        (["--group-size", "-2"], 2, "group_size -2 is below 0"),
        (["--variance", "sample"], 2, "sample"),
        (["--options", "missing.toml"], 2, "missing.toml: cannot be read"),
        (["--no-center"], 1, "pass --reset"),
        (["--no-sync", "--variance", "unbiased"], 1, "has no variance='unbiased'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_refusals_are_one_line_and_leave_nothing(
    flags: list[str], exit_code: int, message: str, run: Run, tmp_path: Path
) -> None:
    output = tmp_path / "out.onnx"
    finished = run(str(DIGITS), "-o", str(output), *flags)
    assert finished.exit_code == exit_code
    assert finished.stdout == ""
    assert message in finished.stderr
    assert finished.stderr.startswith("error: ")
    assert finished.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_pattern_that_matches_nothing_is_refused(run: Run, tmp_path: Path) -> None:
    toml = tmp_path / "layers.toml"
    toml.write_text("[[layer]]\npattern = 'steam'\nmomentum = 0.5\n")
    finished = run(str(DIGITS), "-o", str(tmp_path / "out.onnx"), "--options", str(toml))
    assert finished.exit_code == 1
    assert "--options 'steam' matches no BatchNormalization" in finished.stderr


def test_dry_run_says_what_would_change_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    before = hashlib.sha256(DIGITS.read_bytes()).digest()
    finished = run(
        *[str(DIGITS), "-o", str(tmp_path / "out.onnx"), "--dry-run", "--momentum", "0.99"],
        *["--gamma-regularizer", "l2", "--variance", "unbiased", "--include", "stem"],
    )
    assert finished.exit_code == 0
    text = " ".join(finished.stdout.split())
    assert (
        "stem_bn 32 float32 converted: unbiased moving variance, momentum 0.9 -> 0.99, "
        "gamma penalty l1=0 l2=0.01"
    ) in text
    assert "nothing written" in text
    assert not list(tmp_path.iterdir())
    assert hashlib.sha256(DIGITS.read_bytes()).digest() == before
