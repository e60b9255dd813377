"""How labels and samples count, and what the update adds, through XLA beside ONNX Runtime."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from syncbn_convert import StepOptions, UsageError
from syncbn_convert.options.optimizers import AdamW, RMSprop, Sgd
from syncbn_convert.options.training import EpochOptions
from tests.training.digits import UNTRAINED, batches_file
from tests.xla.beside import CLASSES, require_alike, trained
from tests.xla.conftest import InChild

_CLASSES = 10
_BATCH = 30
"""On four devices uneven, so that some samples are padding."""


def counted(folder: Path, step: StepOptions, labels: str) -> None:
    path = batches_file(folder, 3, _BATCH)
    with np.load(path) as data:
        arrays = dict(data)
    arrays["w"] = np.random.default_rng(0).uniform(0, 2, len(arrays["label"])).astype(np.float32)
    if labels == "ignored":
        arrays["label"][::7] = -1
    elif labels == "shares":
        arrays["label"] = np.eye(_CLASSES, dtype=np.float32)[arrays["label"]]
    np.savez(path, **arrays)
    judged = path if labels != "shares" else None
    require_alike(UNTRAINED, path, step, batch_size=_BATCH, eval_data=judged)


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ({"weights": "w", "ignore_index": -1}, "ignored"),
        ({"one_hot": True, "label_smoothing": 0.1}, "shares"),
        pytest.param(
            {"class_weights": (1.0, 2.0, 0.5, 1.0, 1.0, 3.0, 1.0, 1.0, 0.0, 1.0)},
            "indices",
            marks=pytest.mark.sweep,
        ),
        pytest.param({"optimizer": Sgd(clip_norm=0.1)}, "indices", marks=pytest.mark.sweep),
        pytest.param(
            {"optimizer": RMSprop(epsilon=0.01, momentum=0.5, clip_norm=1.0)},
            "indices",
            marks=pytest.mark.sweep,
        ),
        pytest.param(
            {"optimizer": AdamW(epsilon=0.01, decay_kernels_only=True)},
            "indices",
            marks=pytest.mark.sweep,
        ),
    ],
)
def test_options(given: dict[str, Any], labels: str, tmp_path: Path, in_child: InChild) -> None:
    in_child(counted, tmp_path, dataclasses.replace(CLASSES, **given), labels)


def parts(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        trained("xla", UNTRAINED, batches_file(folder, 1, 8), epoch=EpochOptions(shards=True))
    return str(caught.value)


def test_parts_of_the_data_are_refused(tmp_path: Path, in_child: InChild) -> None:
    assert in_child(parts, tmp_path).startswith("--shards: ")
