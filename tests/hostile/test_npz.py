"""Archives of arrays that are not what they say."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from syncbn_convert.doors.npz import open_arrays
from syncbn_convert.errors import ModelFileError

HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}"


def member(descr: str = "<f4", shape: str = "(2, 3)", data: bytes = bytes(24)) -> bytes:
    return raw(HEADER.format(descr, shape), data)


def raw(header: str, data: bytes = b"", magic: bytes = b"\x93NUMPY\x01\x00") -> bytes:
    return magic + struct.pack("<H", len(header)) + header.encode() + data


def write(path: Path, content: bytes, packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("x.npy", content)
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x04N.", "is cut off"),
        (b"\x80\x04" + bytes(100), "is no array"),
        (member(shape="(52776558133248,)"), "has 24 bytes"),
        (member(shape=f"({'9' * 4000},)"), "a shape that no array has"),
        (member(shape=f"({'1,' * 40})"), "a shape that no array has"),
        (member(shape="(0, 4611686018427387904)", data=b""), "a shape that no array has"),
        (member("|O"), "neither number nor boolean"),
        (member("<U3"), "neither number nor boolean"),
        (member("<c8"), "neither number nor boolean"),
        (member("<M8"), "neither number nor boolean"),
        (member("<q9"), "the unknown type"),
        (raw("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}"), "plain numbers"),
        (raw("[" * 5000), "plain numbers"),
        (raw("{'descr': '<f4', 'fo"), "plain numbers"),
        (member()[:30], "is cut off"),
        (member(data=bytes(25)), "has 25 bytes"),
    ],
)
def test_arrays_that_are_none(content: bytes, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz", content)
    with pytest.raises(ModelFileError, match=words) as caught:
        open_arrays(path)
    assert str(path) in str(caught.value)
    assert "; save it again" in str(caught.value)


def encrypted(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[6] |= 1
    changed[content.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(changed)


def packed_oddly(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[8] = changed[content.rindex(b"PK\x01\x02") + 10] = 99
    return bytes(changed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (encrypted, "is encrypted"),
        (packed_oddly, "packed in another way"),
        (lambda content: content[:40] + b"\xff" * 20 + content[60:], "not an .npz file"),
        (lambda content: content[: len(content) // 2], "not an .npz file"),
        (lambda _: b"", "not an .npz file"),
        (lambda _: b"text", "not an .npz file"),
    ],
)
def test_archives_that_are_none(
    change: Callable[[bytes], bytes], words: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.npz", member())
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ModelFileError, match=words):
        open_arrays(path)


def test_damage_behind_the_header(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz", member(shape="(200, 3)", data=bytes(2400)), zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"not an \.npz file"):
        list(open_arrays(path)["x"].pieces(50))


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as target,
    ):
        target.write(raw(HEADER.format("<f4", "(50000000,)")))
        for _ in range(200):
            target.write(bytes(1_000_000))
    path = tmp_path / "x.npz"
    path.write_bytes(file.getvalue())
    tracemalloc.start()
    with pytest.raises(ModelFileError, match="as a zip bomb does"):
        open_arrays(path)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "|b1", "<u2", "|i1", "<f2"])
def test_arrays_are_read_in_pieces(dtype: str, order: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2, (7, 3, 2)).astype(dtype)
    path = tmp_path / "x.npz"
    np.savez(path, x=np.asarray(values, order=order), empty=values[:0])  # type: ignore[call-overload]
    held = open_arrays(path)
    assert held["x"].shape == (7, 3, 2)
    pieces = list(held["x"].pieces(3))
    assert [len(piece) for piece in pieces] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(pieces), values)
    np.testing.assert_array_equal(held["x"].first(4), values[:4])
    assert held["empty"].first(4).shape == (0, 3, 2)
    np.savez_compressed(path, x=values)
    np.testing.assert_array_equal(open_arrays(path)["x"].first(99), values)
