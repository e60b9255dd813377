from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from syncbn_convert.errors import ModelFileError
from syncbn_convert.training.samples import Samples

Array = npt.NDArray[Any]

SIZE = 23


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.arange(SIZE), y=10 * np.arange(SIZE))
    return path


def dealt(
    samples: Samples, epoch: int, replicas: int, accumulate: int = 1
) -> list[list[list[Array]]]:
    """Samples by update, micro-batch and replica."""
    everyone = [
        list(samples.epoch(epoch, 7, 8, accumulate, (rank, replicas))) for rank in range(replicas)
    ]
    found = []
    for update in zip(*everyone, strict=True):
        micros = []
        for pieces in zip(*update, strict=True):
            assert len({piece.count for piece in pieces}) == 1
            assert sum(len(piece.feeds["x"]) for piece in pieces) == pieces[0].count
            for piece in pieces:
                np.testing.assert_array_equal(piece.feeds["y"], 10 * piece.feeds["x"])
            micros.append([piece.feeds["x"] for piece in pieces])
        found.append(micros)
    return found


def flat(updates: list[list[list[Array]]]) -> Array:
    return np.concatenate([piece for micros in updates for pieces in micros for piece in pieces])


@pytest.mark.parametrize("replicas", [1, 3, 10])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_sample_comes_once_an_epoch(data: Path, replicas: int, accumulate: int) -> None:
    samples = Samples(data, ["x", "y"], None, shuffle=True)
    orders = []
    for epoch in range(2):
        updates = dealt(samples, epoch, replicas, accumulate)
        assert [len(flat([micros])) for micros in updates] == [8, 8, 7]
        sizes = [len(piece) for micros in updates for pieces in micros for piece in pieces]
        assert max(sizes) - min(sizes) <= 1
        assert sorted(flat(updates)) == list(range(SIZE))
        orders.append(flat(updates))
    assert np.any(orders[0] != orders[1])
    assert np.any(orders[0] != np.arange(SIZE))


def test_order_depends_on_seed_and_epoch_alone(data: Path) -> None:
    samples = Samples(data, ["x", "y"], None, shuffle=True)
    one, four = (flat(dealt(samples, 1, replicas)) for replicas in (1, 4))
    np.testing.assert_array_equal(one, four)
    again = flat(dealt(Samples(data, ["x", "y"], None, shuffle=True), 1, 1))
    np.testing.assert_array_equal(one, again)


def test_without_shuffling_samples_keep_their_order(data: Path) -> None:
    samples = Samples(data, ["x", "y"], None, shuffle=False)
    np.testing.assert_array_equal(flat(dealt(samples, 5, 2)), np.arange(SIZE))


def test_a_folder_is_one_set_of_samples(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    for start in range(0, SIZE, 6):
        x = np.arange(SIZE)[start : start + 6]
        np.savez(folder / f"{start:02}.npz", x=x, y=10 * x)
    samples = Samples(folder, ["x", "y"], None, shuffle=True)
    assert samples.size == SIZE
    assert sorted(flat(dealt(samples, 0, 2))) == list(range(SIZE))


def test_no_samples_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.npz"
    np.savez(path, x=np.zeros((0, 3)))
    with pytest.raises(ModelFileError, match="holds no samples"):
        Samples(path, ["x"], None, shuffle=False)
