"""Reads what XNNPACK gets of an ExecuTorch program: a header, and a flatbuffer of operators.

The schema is ``XN01`` (``backends/xnnpack/serialization/schema.fbs`` in the wheel). Fields are read
by their place in their table: ExecuTorch's way to read it, ``flatc --json``, keeps six decimals of
a scale.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_MAGIC = b"XH00"
_IDENTIFIER = b"XN01"
_DATATYPES = [
    "invalid",
    "float32",
    "float16",
    "int8",
    "uint8",
    "qint32",
    "qcint8",
    "qcint32",
    "qcint4",
    "qdint8",
    "qbint4",
    "qpint8",
    "int32",
    "pfp32",
    "bfloat16",
]
_QUANTIZED = {"int8": "qint8", "uint8": "quint8"}

# Where a node's table names the values it reads and the one it makes, by the kind of table.
_ONE = ((0,), 1)
_TWO = ((0, 1), 2)
_CONV = ((15, 16, 17), 18)
_POOL = ((10,), 11)
_CAT = ((1, 2, 3, 4, 7), 5)
_TABLES: Mapping[str, tuple[tuple[int, ...], int]] = {
    "FullyConnected": ((0, 1, 2), 3),
    "StaticTranspose": ((2,), 3),
    "StaticResizeBilinear2D": ((2,), 3),
    "StaticConstantPad": ((3,), 4),
    "StaticReshape": ((2,), 3),
    "StaticSlice": ((3,), 4),
    "ArgMaxPooling2d": ((6,), 7),
    "LeakyReLU": ((1,), 2),
    "ELU": ((1,), 2),
    "ScaledDotProductAttention": ((0, 1, 2, 3, 4), 5),
    **dict.fromkeys(("Conv2d", "DepthwiseConv2d", "ConvTranspose2d"), _CONV),
    **dict.fromkeys(("AvgPooling2d", "MaxPooling2d"), _POOL),
    **{f"Concatenate{n}": (_CAT[0][:n], _CAT[1]) for n in (2, 3, 4, 5)},
    **dict.fromkeys(
        [
            "Add",
            "Div",
            "Minimum",
            "Multiply",
            "Subtract",
            "Maximum",
            "PReLU",
            "BatchMatrixMultiply",
        ],
        _TWO,
    ),
}
_KINDS = [
    "NONE",
    "Add",
    "FullyConnected",
    "Softmax",
    "Sigmoid",
    "StaticTranspose",
    "Clamp",
    "Conv2d",
    "Div",
    "StaticResizeBilinear2D",
    "StaticConstantPad",
    "AvgPooling2d",
    "Minimum",
    "DepthwiseConv2d",
    "MaxPooling2d",
    "Multiply",
    "Subtract",
    "Floor",
    "Convert",
    "GlobalAvgPooling2d",
    "StaticReshape",
    "ArgMaxPooling2d",
    "SquareRoot",
    "Ceiling",
    "Hardswish",
    "LeakyReLU",
    "Maximum",
    "Negate",
    "Square",
    "ELU",
    "Abs",
    "PReLU",
    "Concatenate2",
    "Concatenate3",
    "Concatenate4",
    "StaticSlice",
    "ScaledDotProductAttention",
    "BatchMatrixMultiply",
    "Concatenate5",
    "ConvTranspose2d",
    "ReciprocalSquareRoot",
    "Log",
    "Gelu",
    "Tanh",
    "Exp",
    "Sin",
    "Copy",
    "Cos",
]
_NO_VALUE = 0xFFFFFFFF
_PER_CHANNEL, _PER_TENSOR = 1, 2


@dataclass(frozen=True)
class Value:
    """A tensor of an XNNPACK graph.

    Attributes:
        dtype: ``float32``, ``qint8`` (one scale), ``qcint8``, ``qcint4`` or ``qcint32`` (one for
            each channel), ``qdint8`` (quantized at run time), or another of XNNPACK's types.
        shape: its dimensions.
        data: the stored bytes of a constant, or None.
        scale: float32, one or one for each channel; empty where there is none.
        zero_point: of a tensor with one scale.
        axis: the channel axis of a tensor with many scales.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes | None = None
    scale: tuple[float, ...] = ()
    zero_point: int = 0
    axis: int = 0

    @property
    def is_integer(self) -> bool:
        """Whether it holds quantized values."""
        return self.dtype.startswith("q")


@dataclass(frozen=True)
class Operator:
    """One operator that runs, inside of XNNPACK or outside.

    Attributes:
        kind: XNNPACK's name, e.g. ``Conv2d``, or the portable operator's, ``aten::cumsum.out``.
        inputs: names of the values that it reads, optional ones that are not there left out.
        outputs: names of the values that it makes.
        delegated: whether XNNPACK runs it.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    delegated: bool


def graph(
    blob: bytes, named: Mapping[str, bytes], arguments: list[str], number: int
) -> tuple[list[Operator], dict[str, Value]]:
    """The operators and values of one XNNPACK graph.

    Args:
        blob: header, flatbuffer and constants.
        named: constants that the program holds for all graphs.
        arguments: names of the program's values that the graph is called with.
        number: of the graph, for names.
    """
    if blob[4:8] != _MAGIC:
        raise ValueError(f"an XNNPACK graph begins with {blob[4:8]!r}, not with {_MAGIC!r}")
    start, size, base = struct.unpack_from("<III", blob, 10)
    buffer = blob[start : start + size]
    if buffer[4:8] != _IDENTIFIER:
        raise ValueError(f"an XNNPACK graph is of format {buffer[4:8]!r}, not {_IDENTIFIER!r}")
    root = _Table(buffer, struct.unpack_from("<I", buffer)[0])
    constants = []
    for entry in root.tables(8):
        key = entry.text(2)
        offset = base + entry.number(0, "Q")
        inline = blob[offset : offset + entry.number(1, "Q")] if not key else b""
        constants.append(named[key] if key else inline)
    values: dict[str, Value] = {}
    names: dict[int, str] = {}
    for entry in root.tables(2):
        inner = entry.table(1)
        plain = inner if entry.number(0, "B") == 1 else inner.table(0)
        position, external = plain.number(6, "I"), plain.number(4, "I")
        at_border = external < len(arguments)
        names[position] = arguments[external] if at_border else f"xnnpack {number}.{position}"
        values[names[position]] = _value(plain, None if plain is inner else inner, constants)
    operators = []
    for entry in root.tables(1):
        kind = _KINDS[entry.number(0, "B")]
        node = entry.table(1)
        read, made = _TABLES.get(kind, _ONE)
        wanted = [node.number(slot, "I") for slot in read]
        inputs = tuple(names[i] for i in wanted if i != _NO_VALUE)
        operators.append(Operator(kind, inputs, (names[node.number(made, "I")],), delegated=True))
    return operators, values


def _value(plain: _Table, quantized: _Table | None, constants: list[bytes]) -> Value:
    dtype = _DATATYPES[plain.number(0, "h")]
    shape = tuple(plain.numbers(2, "<u4"))
    index = plain.number(3, "I")
    data = constants[index] if index else None
    if quantized is None:
        return Value(dtype, shape, data)
    dtype = _QUANTIZED.get(dtype, dtype)
    kind, params = quantized.number(1, "B"), quantized.table(2)
    if kind == _PER_TENSOR:
        return Value(dtype, shape, data, (params.number(0, "f"),), params.number(1, "i"))
    if kind == _PER_CHANNEL:
        scale = params.numbers(0, "<f4")
        place = params.number(2, "I")
        if place:
            scale = [float(s) for s in np.frombuffer(constants[place], "<f4")]
        return Value(dtype, shape, data, tuple(scale), 0, params.number(1, "i"))
    return Value(dtype, shape, data)


class _Table:
    """A table of a flatbuffer; fields by their place in the schema, absent ones zero or empty."""

    def __init__(self, buffer: bytes, position: int) -> None:
        self._buffer, self._position = buffer, position
        self._vtable = position - self._read("i", position)

    def number(self, slot: int, kind: str) -> Any:
        """A scalar, of a `struct` format."""
        place = self._field(slot)
        return self._read(kind, place) if place else 0

    def numbers(self, slot: int, dtype: str) -> list[Any]:
        """A vector of scalars, of a numpy dtype."""
        place = self._field(slot)
        if not place:
            return []
        start = place + self._read("I", place)
        count = self._read("I", start)
        return list(np.frombuffer(self._buffer, dtype, count, start + 4).tolist())

    def table(self, slot: int) -> _Table:
        """A table within."""
        place = self._field(slot)
        if not place:
            raise ValueError(f"field {slot} is missing")
        return _Table(self._buffer, place + self._read("I", place))

    def tables(self, slot: int) -> list[_Table]:
        """A vector of tables."""
        place = self._field(slot)
        if not place:
            return []
        start = place + self._read("I", place)
        places = [start + 4 + 4 * i for i in range(self._read("I", start))]
        return [_Table(self._buffer, p + self._read("I", p)) for p in places]

    def text(self, slot: int) -> str:
        """A string."""
        return bytes(self.numbers(slot, "u1")).decode()

    def _field(self, slot: int) -> int:
        entry = 4 + 2 * slot
        if entry >= self._read("H", self._vtable):
            return 0
        offset = self._read("H", self._vtable + entry)
        return self._position + offset if offset else 0

    def _read(self, kind: str, position: int) -> Any:
        return struct.unpack_from("<" + kind, self._buffer, position)[0]
