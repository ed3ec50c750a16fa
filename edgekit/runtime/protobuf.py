"""Protocol Buffers' wire format for messages that a table describes.

A message is a plain dictionary by field name; fields that are not in the table are kept as they
came under ``UNKNOWN`` and written again, enums are integers. Fields are written in the order of
their numbers and left out where they hold their default, so the bytes are those of Google's own
encoder.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from edgekit.errors import BadData

__all__ = ["UNKNOWN", "Field", "Messages", "decode", "encode", "length_delimited", "varint"]

UNKNOWN: Final = ""
"""The key under which a message keeps the bytes of fields that its table does not have."""

Kind = Literal[
    "string", "bytes", "message", "uint", "int", "sint", "bool", "double", "fixed64", "sfixed64",
    "fixed32",
]  # fmt: skip

_VARINT, _SIXTYFOUR, _DELIMITED, _THIRTYTWO = 0, 1, 2, 5
_WIRE: Final[Mapping[str, int]] = {
    "string": _DELIMITED,
    "bytes": _DELIMITED,
    "message": _DELIMITED,
    "uint": _VARINT,
    "int": _VARINT,
    "sint": _VARINT,
    "bool": _VARINT,
    "double": _SIXTYFOUR,
    "fixed64": _SIXTYFOUR,
    "sfixed64": _SIXTYFOUR,
    "fixed32": _THIRTYTWO,
}
_FIXED: Final = {
    "double": struct.Struct("<d"),
    "fixed64": struct.Struct("<Q"),
    "sfixed64": struct.Struct("<q"),
    "fixed32": struct.Struct("<I"),
}
_DEPTH: Final = 32
_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True)
class Field:
    """One field of a message.

    Attributes:
        number, kind: as the .proto file has them; enums are ``int``, uint32 and uint64 ``uint``.
        repeated: whether it is a list; lists of numbers are packed.
        message: of which message it is one.
        present: whether it is written even where it holds its default (``optional``, ``oneof``).
    """

    number: int
    kind: Kind
    repeated: bool = False
    message: str = ""
    present: bool = False


Messages = Mapping[str, Mapping[str, Field]]


def encode(messages: Messages, name: str, message: Mapping[str, Any]) -> bytes:
    """A message as bytes.

    Raises:
        BadData: a field is not in the table, or a value does not fit its kind.
    """
    table = messages[name]
    out = bytearray()
    unknown = sorted(set(message) - set(table) - {UNKNOWN})
    if unknown:
        raise BadData(f"{name} has no field {unknown[0]!r}; it has: {', '.join(table)}")
    for key, field in sorted(table.items(), key=lambda item: item[1].number):
        if key not in message:
            continue
        value = message[key]
        try:
            if not field.repeated:
                # Minus zero is no default.
                zero = not value and not (field.kind == "double" and math.copysign(1, value) < 0)
                if not zero or field.present or field.kind == "message":
                    out += _single(messages, field, value)
            elif value and _WIRE[field.kind] != _DELIMITED:
                packed = b"".join(_scalar(field.kind, item) for item in value)
                out += _tag(field.number, _DELIMITED) + length_delimited(packed)
            else:
                for item in value:
                    out += _single(messages, field, item)
        except (struct.error, TypeError, AttributeError, OverflowError) as error:
            raise BadData(f"{name}.{key} cannot be {type(value).__name__}: {error}") from error
    out += message.get(UNKNOWN, b"")
    return bytes(out)


def decode(messages: Messages, name: str, data: bytes, *, depth: int = _DEPTH) -> dict[str, Any]:
    """The message that some bytes hold.

    Raises:
        BadData: they are not whole, or nested more than 32 deep.
    """
    if depth == 0:
        raise BadData(f"{name} is nested more than {_DEPTH} deep")
    table = messages[name]
    by_number = {field.number: (key, field) for key, field in table.items()}
    message: dict[str, Any] = {}
    unknown = bytearray()
    for number, wire, value, start, end in _fields(data, name):
        key, field = by_number.get(number, ("", None))
        if field is None:
            unknown += data[start:end]
            continue
        packed = field.repeated and wire == _DELIMITED and _WIRE[field.kind] != _DELIMITED
        if wire != _WIRE[field.kind] and not packed:
            raise BadData(f"{name}.{key} has wire type {wire}, not {_WIRE[field.kind]}")
        if packed:
            message.setdefault(key, []).extend(_unpacked(field.kind, value, name))
            continue
        item = (
            decode(messages, field.message, value, depth=depth - 1)
            if field.kind == "message"
            else _value(field.kind, value, name)
        )
        if field.repeated:
            message.setdefault(key, []).append(item)
        else:
            message[key] = item
    if unknown:
        message[UNKNOWN] = bytes(unknown)
    return message


def varint(value: int) -> bytes:
    """A number in groups of seven bits."""
    if 0 <= value < 128:
        return bytes((value,))
    value &= _MASK
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def length_delimited(data: bytes) -> bytes:
    """Bytes with their length before them."""
    return varint(len(data)) + data


def _tag(number: int, wire: int) -> bytes:
    return varint(number << 3 | wire)


def _single(messages: Messages, field: Field, value: Any) -> bytes:
    wire = _WIRE[field.kind]
    if wire != _DELIMITED:
        return _tag(field.number, wire) + _scalar(field.kind, value)
    if field.kind == "message":
        body = encode(messages, field.message, value)
    else:
        body = value.encode() if field.kind == "string" else bytes(value)
    return _tag(field.number, wire) + length_delimited(body)


def _scalar(kind: Kind, value: Any) -> bytes:
    if kind in _FIXED:
        return _FIXED[kind].pack(value)
    number = int(value)
    if not -(1 << 63) <= number <= _MASK:
        raise OverflowError("it needs more than 64 bits")
    return varint((number << 1 ^ number >> 63) if kind == "sint" else number)


def _value(kind: Kind, raw: Any, name: str) -> Any:
    if kind in _FIXED:
        return _FIXED[kind].unpack(raw)[0]
    if kind == "string":
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise BadData(f"{name} holds a text that is not UTF-8") from error
    if kind == "int":
        return raw - (1 << 64) if raw >> 63 else raw
    if kind == "sint":
        return (raw >> 1) ^ -(raw & 1)
    return bool(raw) if kind == "bool" else raw


def _unpacked(kind: Kind, data: bytes, name: str) -> Iterator[Any]:
    if kind in _FIXED:
        size = _FIXED[kind].size
        if len(data) % size:
            raise BadData(f"{name} holds a list of numbers that is cut short")
        for at in range(0, len(data), size):
            yield _value(kind, data[at : at + size], name)
        return
    at = 0
    while at < len(data):
        raw, at = _read_varint(data, at, name)
        yield _value(kind, raw, name)


def _fields(data: bytes, name: str) -> Iterator[tuple[int, int, Any, int, int]]:
    """Number, wire type, raw value, start and end of each field."""
    at = 0
    while at < len(data):
        start = at
        key, at = _read_varint(data, at, name)
        number, wire = key >> 3, key & 7
        if number == 0 or number >= 1 << 29:
            raise BadData(f"{name} has a field of number {number}")
        value: Any
        if wire == _VARINT:
            value, at = _read_varint(data, at, name)
        elif wire in (_SIXTYFOUR, _THIRTYTWO, _DELIMITED):
            size = {_SIXTYFOUR: 8, _THIRTYTWO: 4}.get(wire, 0)
            if wire == _DELIMITED:
                size, at = _read_varint(data, at, name)
            if size > len(data) - at:
                raise BadData(f"{name} is cut short: {size} bytes wanted, {len(data) - at} there")
            value = data[at : at + size]
            at += size
        else:
            raise BadData(f"{name} has a field of wire type {wire}")
        yield number, wire, value, start, at


def _read_varint(data: Sequence[int], at: int, name: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise BadData(f"{name} is cut short within a number")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & _MASK, at
    raise BadData(f"{name} has a number of more than ten bytes")
