from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from syncbn_convert import (
    LayerRule,
    SyncBatchNormalizationOptions,
    UsageError,
    read_options_file,
)
from syncbn_convert.options.keras_objects import regularizer_of
from syncbn_convert.options.keras_objects.initializers import RandomNormal
from syncbn_convert.options.toml import options_from

GOOD = "[[layer]]\npattern = 'a'"


def config(name: str, **values: Any) -> dict[str, Any]:
    return {"class_name": name, "config": values}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0}, "epsilon 0 is not above 0"),
        ({"epsilon": -1e-3}, "epsilon -0.001 is not above 0"),
        ({"epsilon": 1e-60}, "epsilon 1e-60 is not above 0"),
        ({"epsilon": float("nan")}, "epsilon nan is not above 0"),
        ({"momentum": 1.01}, r"momentum 1.01 is outside \[0, 1\]"),
        ({"momentum": -0.1}, r"momentum -0.1 is outside \[0, 1\]"),
        ({"momentum": float("nan")}, "momentum nan is outside"),
        ({"momentum": "0.9"}, "momentum '0.9' is not of type float"),
        ({"axis": 1.0}, "axis 1.0 is not of type int"),
        ({"axis": True}, "axis True is not of type int"),
        ({"center": 0}, "center 0 is not of type bool"),
        ({"group_size": -1}, "group_size -1 is below 0"),
        ({"variance": "sample"}, "neither 'population' nor 'unbiased'"),
        ({"gamma_initializer": "he_normol"}, "gamma_initializer: unknown .*'HeNormal'"),
        ({"beta_regularizer": "l3"}, "beta_regularizer: unknown regularizer 'l3'; did you mean 'L"),
        ({"beta_constraint": "NonNegative"}, "'NonNegative'; did you mean 'NonNeg'"),
        ({"beta_constraint": "zzz"}, "known are NonNeg, UnitNorm, MaxNorm, MinMaxNorm"),
        ({"beta_initializer": config("RandomNormal", std=1)}, "'std'"),
        ({"beta_initializer": {"class": "RandomNormal"}}, "neither a name nor a configuration"),
        ({"beta_initializer": {"class_name": "Zeros", "configs": {}}}, "configs does not belong"),
        (
            {"beta_initializer": config("RandomNormal", stddev="x")},
            "'x' is not a finite",
        ),
        ({"beta_initializer": config("RandomNormal", seed=-1)}, "seed -1"),
        ({"beta_initializer": config("VarianceScaling", mode="fan")}, "mode 'fan'"),
        ({"beta_initializer": config("VarianceScaling", scale=0)}, "scale 0"),
        ({"gamma_regularizer": -0.1}, "l2 -0.1 is below 0"),
        ({"gamma_constraint": config("MaxNorm", axis=1)}, "only axis 0"),
        ({"gamma_constraint": config("MinMaxNorm", rate=2)}, "a rate from 0 to 1"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_values_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SyncBatchNormalizationOptions(**options)


def test_names_and_configurations_become_objects() -> None:
    config = {"class_name": "random_normal", "config": {"stddev": 0.02, "seed": 7}}
    options = SyncBatchNormalizationOptions(gamma_initializer=config, beta_regularizer=0.1)
    assert options.gamma_initializer == RandomNormal(stddev=0.02, seed=7)
    assert options.beta_regularizer == regularizer_of({"class_name": "L2", "config": {"l2": 0.1}})


def test_pytorch_momentum_is_one_minus_momentum() -> None:
    assert options_from({"pytorch_momentum": 0.25}).momentum == 0.75
    with pytest.raises(UsageError, match="both given"):
        options_from({"pytorch_momentum": 0.25, "momentum": 0.75})
    with pytest.raises(UsageError, match="outside"):
        options_from({"pytorch_momentum": 1.25})


def test_file_gives_rules_in_order(tmp_path: Path) -> None:
    path = tmp_path / "layers.toml"
    path.write_text(
        """
        [[layer]]
        pattern = "stem"
        momentum = 0.99
        gamma_initializer = { class_name = "Constant", config = { value = 0.5 } }

        [[layer]]
        pattern = "."
        trainable = false
        """
    )
    first, second = read_options_file(path)
    assert first == LayerRule(
        pattern="stem",
        options=SyncBatchNormalizationOptions(momentum=0.99, gamma_initializer=0.5),
    )
    assert second.pattern == "."
    assert second.options.frozen


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"there is none; write tables \[\[layer\]\]"),
        ("[layer]\npattern = 'a'", "there is none|write tables"),
        ("[[layers]]\npattern = 'a'", "'layers' is unknown; write tables"),
        ("[[layer]]\nmomentum = 0.9", "number 1: 'pattern' is missing"),
        ("[[layer]]\npattern = '('", "is not a regular expression"),
        ("[[layer]]\npattern = 'a'\nmomentums = 0.9", "'momentums'; did you mean 'momentum'"),
        (f"{GOOD}\n[[layer]]\npattern = 'b'\nepsilon = 0", "number 2: epsilon 0 is not"),
        ("[[layer", "no TOML file"),
    ],
)
def test_bad_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "layers.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_options_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_options_file(tmp_path / "none.toml")


def test_messages_are_one_line_whatever_is_in_them() -> None:
    with pytest.raises(UsageError) as caught:
        SyncBatchNormalizationOptions(gamma_initializer="line\nbreak")
    assert "unknown initializer 'line break'" in str(caught.value)
