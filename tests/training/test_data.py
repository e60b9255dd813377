"""Data as people have it: types, shapes, sources, epochs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import syncbn_convert
from syncbn_convert import EpochOptions, ReplicaOptions, Schedule, StepOptions, TrainOptions
from syncbn_convert.commands.train import train_with_report
from syncbn_convert.errors import ModelFileError, SyncBNError, UsageError
from syncbn_convert.runtime.datasets import open_dataset
from syncbn_convert.runtime.fitting import InputSpec
from syncbn_convert.training.samples import Samples

from .digits import UNTRAINED, weights_of

Array = npt.NDArray[Any]
COUNT = 50
STEP = StepOptions(loss="softmax-cross-entropy", labels="label")


def options(**given: Any) -> TrainOptions:
    fields = {"batch_size": 16, "schedule": Schedule(learning_rate=0.05), **given}
    return TrainOptions(**fields)


@pytest.fixture(scope="module")
def arrays() -> dict[str, Array]:
    with np.load(UNTRAINED.parent / "digits_train.npz") as found:
        return {name: found[name][:COUNT] for name in ("image", "label")}


def trained(data: Any, **given: Any) -> dict[str, Array]:
    form, _ = train_with_report(onnx.load(UNTRAINED), data, STEP, options(**given))
    return weights_of(form)


class Indexed:
    """As a dataset of PyTorch: a sample at a time, as a tuple."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self._arrays = arrays

    def __len__(self) -> int:
        return len(self._arrays["label"])

    def __getitem__(self, index: int) -> tuple[Array, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._arrays["image"][index], int(self._arrays["label"][index])


class Chunks:
    """Pieces of uneven sizes."""

    def __init__(self, arrays: dict[str, Array]) -> None:
        self._arrays = arrays

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for start, stop in ((0, 7), (7, 30), (30, COUNT)):
            yield {name: array[start:stop] for name, array in self._arrays.items()}


def folder_of_npy(arrays: dict[str, Array], folder: Path) -> Path:
    where = folder / "npy"
    where.mkdir()
    for name, array in arrays.items():
        np.save(where / f"{name}.npy", array)
    return where


def test_every_source_gives_the_same_weights(arrays: dict[str, Array], tmp_path: Path) -> None:
    save: Any = np.savez
    save(tmp_path / "all.npz", **arrays)
    wanted = trained(tmp_path / "all.npz")
    wide = {"image": arrays["image"].astype(np.float64), "label": arrays["label"].astype(np.int8)}
    sources = [arrays, folder_of_npy(arrays, tmp_path), Indexed(arrays), wide]
    for source in sources:
        found = trained(source)
        for name, value in wanted.items():
            np.testing.assert_array_equal(found[name], value, err_msg=f"{source} {name}")
    in_order = trained(arrays, shuffle=False)
    for stream in (Chunks(arrays), lambda: iter(Chunks(arrays)), list(Chunks(arrays))):
        for name, value in trained(stream, shuffle=False).items():
            np.testing.assert_array_equal(value, in_order[name], err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.transpose(0, 3, 1, 2), r"save image.transpose\(0, 2, 3, 1\)"),
        (lambda x: x[..., 0], r"save image.reshape\(-1, 8, 8, 1\)"),
        (lambda x: x[:, :, :7], r"has shape \[50, 8, 7, 1\], the model takes \[N, 8, 8, 1\]"),
        (lambda x: x.astype(np.complex64), "holds complex64, no numbers"),
        (lambda x: x.astype(str), "no numbers"),
        (lambda x: x.astype(np.float64) + 1e39, "numbers beyond float32"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    change: Any, message: str, arrays: dict[str, Array], tmp_path: Path
) -> None:
    changed = {**arrays, "image": change(arrays["image"])}
    specs = [InputSpec("image", np.dtype(np.float32), (None, 8, 8, 1)), InputSpec("label")]
    with pytest.raises(ModelFileError, match=message):
        open_dataset(changed, specs)
    if "beyond" not in message:  # what lies on the disk is looked at when it is read
        with pytest.raises(ModelFileError, match=message):
            open_dataset(folder_of_npy(changed, tmp_path), specs)


def test_every_command_refuses_what_does_not_fit(arrays: dict[str, Array]) -> None:
    changed = {**arrays, "image": arrays["image"].transpose(0, 3, 1, 2)}
    message = "dict: 'image' has shape"
    with pytest.raises(ModelFileError, match=message):
        trained(changed)
    with pytest.raises(ModelFileError, match=message):
        train_with_report(onnx.load(UNTRAINED), arrays, STEP, options(), eval_data=changed)
    with pytest.raises(ModelFileError, match=message):
        syncbn_convert.calibrate(onnx.load(UNTRAINED), changed)


def test_whole_numbers_are_taken_as_they_stand_and_noted(arrays: dict[str, Array]) -> None:
    whole = {**arrays, "image": (arrays["image"] * 16).astype(np.uint8)}
    _, report = train_with_report(onnx.load(UNTRAINED), whole, STEP, options())
    assert "'image' is uint8 and taken as float32, its numbers as they stand" in report.notes
    same = {**whole, "image": whole["image"].astype(np.float32)}
    _, other = train_with_report(onnx.load(UNTRAINED), same, STEP, options())
    assert report.losses == other.losses


def test_objects_in_a_file_are_refused(arrays: dict[str, Array], tmp_path: Path) -> None:
    path = tmp_path / "objects.npz"
    np.savez(path, image=np.array([None] * 3), label=arrays["label"][:3], allow_pickle=True)
    with pytest.raises(ModelFileError, match="of type object, which is neither number nor boolean"):
        trained(path)


@pytest.mark.parametrize("data", [3, np.zeros((4, 8, 8, 1)), "absent:thing"], ids=str)
def test_what_is_no_data_is_refused(data: Any) -> None:
    with pytest.raises(SyncBNError, match="give"):
        trained(data)


def flat(samples: Samples, epoch: int, batch_size: int = 8) -> list[list[int]]:
    return [
        [int(x) for micro in micros for x in micro.feeds["x"]]
        for micros in samples.epoch(epoch, 7, batch_size, 1, (0, 1))
    ]


NUMBERS = {"x": np.arange(21)}


def stream() -> Iterator[dict[str, Array]]:
    for start in range(0, 21, 5):
        yield {"x": np.arange(21)[start : start + 5]}


def samples_of(data: Any, *, shuffle: bool = True, **given: Any) -> Samples:
    return Samples(data, ["x"], None, shuffle=shuffle, options=EpochOptions(**given))


@pytest.mark.parametrize("data", [NUMBERS, stream])
def test_epochs_of_some_steps_go_on_where_the_last_ended(data: Any) -> None:
    samples = samples_of(data, shuffle=False, steps=2)
    assert samples.batches(8) == 2
    epochs = [flat(samples, number) for number in range(3)]
    whole = [*range(8)], [*range(8, 16)], [*range(16, 21)]
    assert epochs == [[whole[0], whole[1]], [whole[2], whole[0]], [whole[1], whole[2]]]
    assert flat(samples, 1) == epochs[1]


@pytest.mark.parametrize("data", [NUMBERS, stream])
def test_the_rest_can_be_left_out(data: Any) -> None:
    samples = samples_of(data, shuffle=False, drop_last=True)
    assert flat(samples, 0) == [[*range(8)], [*range(8, 16)]]


@pytest.mark.parametrize("size", [1, 6, 100])
def test_a_buffer_shuffles_by_seed_and_epoch(size: int) -> None:
    samples = samples_of(stream, shuffle_buffer=size)
    epochs = [[number for batch in flat(samples, epoch) for number in batch] for epoch in (0, 1, 0)]
    assert [sorted(found) for found in epochs] == [[*range(21)]] * 3
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]
    assert epochs[0] != [*range(21)]


def test_a_stream_is_not_shuffled_unasked() -> None:
    with pytest.raises(UsageError, match="pass --shuffle-buffer N"):
        samples_of(stream)
    with pytest.raises(UsageError, match="no second epoch can begin anew"):
        samples_of(stream(), shuffle=False)


def test_fewer_samples_than_a_batch_are_refused() -> None:
    with pytest.raises(UsageError, match="less than the batch of 32 that --drop-last asks for"):
        samples_of(NUMBERS, drop_last=True).batches(32)


def test_parts_count_what_all_have() -> None:
    """Two parts of 21 samples, batches of 3 samples: 2 of the first part, 1 of the second."""
    samples = samples_of(NUMBERS, shuffle=False, shards=True)
    for rank, size in ((0, 1), (1, 2)):
        dealt = samples.part(0, 7, 3, 1, (rank, 2))
        pieces = [next(dealt)[0] for _ in range(23)]
        assert [len(piece.feeds["x"]) for piece in pieces[:2]] == [size, size]
        assert sum(piece.count for piece in pieces) == 21
        assert pieces[-1].feeds["x"].shape == (0,)


def test_a_data_set_on_the_disk_is_read_as_far_as_it_is_needed(tmp_path: Path) -> None:
    """A sparse file of 8 GiB: the last samples alone are looked at."""
    folder = tmp_path / "large"
    folder.mkdir()
    count = 2**31 // 64
    large = np.lib.format.open_memmap(
        folder / "image.npy", mode="w+", dtype=np.float32, shape=(count, 1, 8, 8)
    )
    large[-1] = 1
    del large
    np.save(folder / "label.npy", np.zeros(count, np.int8))
    dataset = open_dataset(folder, ["image", "label"])
    assert dataset.take is not None
    assert dataset.size == count
    found = dataset.take(np.array([count - 1, 0]))
    assert found["image"].mean(axis=(1, 2, 3)).tolist() == [1, 0]
    assert dataset.digest() == dataset.digest()


def test_replicas_agree_on_what_they_read(arrays: dict[str, Array]) -> None:
    other = {**arrays, "image": arrays["image"] + np.float32(1e-3)}
    digests = [
        Samples(data, list(arrays), None, shuffle=False).digest() for data in (arrays, other)
    ]
    assert digests[0] != digests[1]
    assert digests[0] == Samples(dict(arrays), list(arrays), None, shuffle=False).digest()


def test_shards_need_processes(arrays: dict[str, Array]) -> None:
    with pytest.raises(UsageError, match="start them with mpirun or torchrun"):
        train_with_report(
            onnx.load(UNTRAINED),
            arrays,
            STEP,
            options(epoch=EpochOptions(shards=True)),
            replicas=ReplicaOptions(replicas=2),
        )
