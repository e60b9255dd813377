"""Random changes to files that keep them readable for their formats, more or less."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.message import Message  # type: ignore[import-untyped]

NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**31 - 1, -(2**31), 2**31, 2**62, -(2**63), 2**63 - 1)
FLOATS = (0.0, -1.0, 1e-45, 3.4e38, float("inf"), float("nan"))
TEXTS = ("", "x", "\0", "\x1b[31m", "\U0001f600", "a" * 300, "../x", "%s{}", "BatchNormalization")
NOT_UTF8 = b"\xff\xfe"
BRACKETS = "[" * 3000
_MAGIC = b"\x93NUMPY\x01\x00"


def mutated(serialized: bytes, dice: random.Random) -> bytes:
    """Return a model with one to three fields changed; now and then raw bytes."""
    if dice.random() < 0.07:
        return _raw(serialized, dice)
    model = onnx.ModelProto.FromString(serialized)
    texts: list[bytes] = []
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        _change(model, dice, texts)
    content: bytes = model.SerializeToString()
    for text in texts:
        content = content.replace(text, NOT_UTF8 * (len(text) // 2))
    return content


def _change(model: onnx.ModelProto, dice: random.Random, texts: list[bytes]) -> None:
    """Change a field: kinds of fields are equally likely, so that initializers do not win."""
    places: dict[str, list[tuple[Message, Any]]] = {}
    for message in _messages(model):
        for field in message.DESCRIPTOR.fields:
            places.setdefault(field.full_name, []).append((message, field))
    name = dice.choice(sorted(places))
    filled = [(m, f) for m, f in places[name] if _is_filled(m, f)]
    message, field = dice.choice(filled if filled and dice.random() < 0.7 else places[name])
    if field.is_repeated:
        _change_repeated(message, field, dice, texts)
    elif dice.random() < 0.15:
        message.ClearField(field.name)
    elif field.message_type is not None:
        _copy_from_elsewhere(message, field, places, dice)
    else:
        setattr(message, field.name, _value(field, dice, texts))


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for child in value if field.is_repeated else (value,):
            yield from _messages(child)


def _is_filled(message: Message, field: Any) -> bool:
    if field.is_repeated:
        return bool(getattr(message, field.name))
    return bool(message.HasField(field.name))


def _change_repeated(message: Message, field: Any, dice: random.Random, texts: list[bytes]) -> None:
    values = getattr(message, field.name)
    action = dice.choice(("remove", "twice", "swap", "change", "add"))
    if action == "add" or not values:
        if field.message_type is not None:
            values.add()
        else:
            values.append(_value(field, dice, texts))
    elif action == "remove":
        del values[dice.randrange(len(values))]
    elif action == "twice":
        values.extend([values[dice.randrange(len(values))]])
    elif action == "swap" and field.message_type is None:
        first, second = dice.randrange(len(values)), dice.randrange(len(values))
        values[first], values[second] = values[second], values[first]
    elif field.message_type is None:
        values[dice.randrange(len(values))] = _value(field, dice, texts)
    else:
        first, second = dice.choice(values), dice.choice(values)
        first.CopyFrom(second)


def _copy_from_elsewhere(
    message: Message,
    field: Any,
    places: dict[str, list[tuple[Message, Any]]],
    dice: random.Random,
) -> None:
    others = [m for m, f in places[field.full_name] if f is field and m.HasField(field.name)]
    if others and dice.random() < 0.7:
        child = type(getattr(message, field.name))()
        child.CopyFrom(getattr(dice.choice(others), field.name))
        getattr(message, field.name).CopyFrom(child)
    else:
        getattr(message, field.name).SetInParent()


def _value(field: Any, dice: random.Random, texts: list[bytes]) -> Any:
    if field.enum_type is not None:
        return dice.choice([value.number for value in field.enum_type.values])
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return dice.choice(FLOATS)
    if field.type == field.TYPE_STRING:
        if dice.random() < 0.15:
            text = f"zq{len(texts)}{dice.randrange(10)}"
            texts.append(text.encode())
            return text
        return dice.choice((*TEXTS, BRACKETS))
    if field.type == field.TYPE_BYTES:
        return dice.choice([text.encode() for text in TEXTS] + [NOT_UTF8, bytes(4), bytes(12)])
    low = -(2**31) if field.type == field.TYPE_INT32 else -(2**63)
    high = 2**31 - 1 if field.type == field.TYPE_INT32 else 2**63 - 1
    if field.type in (field.TYPE_UINT64, field.TYPE_UINT32):
        low = 0
    number = dice.choice(NUMBERS) if dice.random() < 0.5 else dice.randrange(20)
    return min(max(number, low), high)


def _raw(content: bytes, dice: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(dice.choice((1, 2, 8))):
        at = dice.randrange(len(changed))
        kind = dice.randrange(3)
        if kind == 0:
            changed[at] = dice.randrange(256)
        elif kind == 1:
            del changed[at : at + dice.randrange(1, 30)]
        else:
            changed[at:at] = dice.randbytes(dice.randrange(1, 9))
        if not changed:
            break
    return bytes(changed)


def npz(dice: random.Random) -> bytes:
    """Return an archive that has one array `x` of float32 [8, 3, 9, 9], or nearly so."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (8, 3, 9, 9)}
    data = bytes(8 * 3 * 81 * 4)
    if dice.random() < 0.6:
        header["shape"] = dice.choice(((8,), (), (2**40, 2**40), (8, 3, 9), (-8, 3), (0, 3, 9, 9)))
    if dice.random() < 0.4:
        header["descr"] = dice.choice(("|O", "<U4", ">f8", "<c8", "|b1", "<M8[s]", "|V3", [], "f"))
    text = str(header)
    if dice.random() < 0.2:
        text = dice.choice((text[:20], BRACKETS, text.replace("8", "8" * 50, 1), "", text * 900))
    magic = dice.choice(
        (b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00", b"\x80\x04N.", b"\x93NUMPY\x09\x00")
    )
    member = magic + struct.pack("<H", len(text) % 65536) + text.encode() + data
    file = io.BytesIO()
    packing = dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(file, "w", packing) as archive:
        archive.writestr(dice.choice(("x.npy", "x.npy", "x.npy", "x", "y.npy")), member)
    content = file.getvalue()
    return _raw(content, dice) if dice.random() < 0.3 else content


def safetensors(content: bytes, dice: random.Random) -> bytes:
    """Return a file of statistics with a header that is changed."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = dice.choice(sorted(header))
    if name == "__metadata__":
        header[name] = dice.choice(
            (
                {},
                {"syncbn_convert": BRACKETS},
                {"syncbn_convert": "[]"},
                {"syncbn_convert": '{"layers_digest": 3}'},
                {"syncbn_convert": '{"layers_digest": null}'},
            )
        )
    else:
        field = dice.choice(("dtype", "shape", "data_offsets"))
        odd = {"dtype": "F8_E4M3", "shape": [2**62], "data_offsets": [0, 2**40]}
        header[name][field] = dice.choice((odd[field], None, 3, [], "I64"))
    text = json.dumps(header).encode()
    changed = struct.pack("<Q", len(text)) + text + data
    return _raw(changed, dice) if dice.random() < 0.3 else changed


def toml(dice: random.Random) -> str:
    """Return a file of options that is odd somewhere."""
    value = dice.choice(
        ("1e400", "-1", '"x"', "[]", "{}", "nan", "9" * 5000, BRACKETS, "1979-05-27", "true", "inf")
    )
    key = dice.choice(("momentum", "epsilon", "axis", "gamma_initializer", "beta_constraint", "no"))
    pattern = dice.choice((".*", "a{99999999999}", "(" * 500, "[", "(a+)+$", "\\\\1", ""))
    return dice.choice(
        (
            f'[[layer]]\npattern = "{pattern}"\n{key} = {value}\n',
            f"[layer]\n{key} = {value}",
            f"layer = {value}",
            ".".join(["a"] * 3000) + " = 1",
            "\0",
        )
    )
