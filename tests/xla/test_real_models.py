"""Real networks, twenty steps through XLA beside ONNX Runtime's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.xla.beside import CLASSES, require_alike
from tests.xla.conftest import InChild

_STEPS, _BATCH, _CLASSES = 20, 6, 2


def classifier_of_text_lines(folder: Path, devices: int) -> None:
    """PP-OCR's classifier: 35 normalizations, weights that were trained."""
    import rapidocr_onnxruntime

    models = Path(rapidocr_onnxruntime.__file__).parent / "models"
    (path,) = models.glob("*cls*.onnx")
    model = onnx.load(path)
    random = np.random.default_rng(0)
    count = _STEPS * _BATCH
    arrays: dict[str, Any] = {
        model.graph.input[0].name: random.normal(size=(count, 3, 48, 64)).astype(np.float32),
        "label": random.integers(0, _CLASSES, count),
    }
    data = folder / "lines.npz"
    np.savez(data, **arrays)
    require_alike(model, data, CLASSES, batch_size=_BATCH, devices=devices, rate=1e-4)


@pytest.mark.sweep
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("devices", [2, 4])
def test_classifier_of_text_lines(devices: int, tmp_path: Path, in_child: InChild) -> None:
    in_child(classifier_of_text_lines, tmp_path, devices)
