"""Models trained by TensorFlow on replicas, deployed through forms converted before that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import syncbn_convert
from syncbn_convert import FoldOptions
from tests.frontends.trainings import digits, train_on_replicas
from tests.harness import run

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.sweep
@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_onnx_runtime_and_keras_give_every_image_the_same_label(
    library: str, replicas: int, tmp_path: Path
) -> None:
    predicted = train_on_replicas(library, replicas, tmp_path)
    images, labels = digits("test")
    form, folded = tmp_path / "form.onnx", tmp_path / "folded.onnx"
    syncbn_convert.convert_file(tmp_path / "untrained.keras", form)
    options = FoldOptions(from_keras=tmp_path / "trained.keras")
    _, report = syncbn_convert.fold_file(form, folded, options)
    assert (report.converted, report.verified) == (3, True)
    found = run(onnx.load(folded), {"image": images})["digit"]
    assert (found.argmax(1) == predicted.argmax(1)).all()
    accuracy = np.mean(predicted.argmax(1) == labels)
    assert accuracy > 0.8  # two epochs; chance is 0.1
    assert np.mean(found.argmax(1) == labels) == accuracy
