"""The pickles of a ``.ptl`` file, read without making anything but numbers, lists and tensors."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.errors import BadData

__all__ = ["Packed", "Reader", "Tensor", "tensors_in"]

_PICKLED = frozenset(
    (
        *("PROTO", "STOP", "MARK", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID"),
        *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE"),
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
        *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    )
)
"""The instructions of pickles that torch writes."""

_DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
}


@dataclass(frozen=True)
class Tensor:
    """A constant.

    Attributes:
        values: as stored; integers where it is quantized.
        scheme: ``per_channel_affine``, ``per_tensor_affine``, or empty for a plain tensor.
        scale: one, or one per channel; empty for a plain tensor.
        zero_point: as many.
        axis: the channel axis; None for one scale.
    """

    values: np.ndarray[Any, Any]
    scheme: str = ""
    scale: tuple[float, ...] = ()
    zero_point: tuple[int, ...] = ()
    axis: int | None = None

    @property
    def arrays(self) -> tuple[np.ndarray[Any, Any], ...]:
        """All that the file holds of it."""
        if self.scheme != "per_channel_affine":
            return (self.values,)
        return self.values, np.array(self.scale), np.array(self.zero_point, np.int64)


class Packed:
    """An object of a class of torch, by its state: the module itself, or a layer's constants."""

    kind = ""
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensors(self) -> list[Tensor]:
        """Every tensor in its state."""
        return tensors_in(self.state)


class Reader(pickle.Unpickler):
    """Unpickles numbers, lists, tensors and `Packed` objects, nothing else."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        data = archive.read(name)
        for op, arg, _ in pickletools.genops(data):
            if op.name not in _PICKLED:
                raise BadData(f"it is pickled with {op.name}, which torch does not write")
            if op.name == "LONG_BINPUT" and int(arg or 0) > len(
                data
            ):  # would take memory for all before it
                raise BadData(f"it remembers {arg} things in {len(data)} bytes")
        super().__init__(io.BytesIO(data))
        self._archive = archive
        self._folder = name.replace("bytecode.pkl", "constants").removesuffix(".pkl")

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch" and name in ("per_channel_affine", "per_tensor_affine"):
            return name
        if module.startswith("__torch__"):
            return type("Packed", (Packed,), {"kind": f"{module}.{name}"})
        known = {
            "torch._utils._rebuild_tensor_v2": _plain,
            "torch._utils._rebuild_qtensor": _quantized,
            "collections.OrderedDict": dict,
            "torch.device": str,
            "torch.jit._pickle.restore_type_tag": lambda value, _: value,
        }
        found = known.get(f"{module}.{name}")
        if found is None and module == "torch.jit._pickle" and name.startswith("build_"):
            found = list
        if found is None:
            raise BadData(f"it names {module}.{name}, which no such file needs")
        return found

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not str(key).removesuffix(".storage").isdigit():
            raise BadData(f"it refers to {pid!r}, which is no tensor's bytes")
        return np.frombuffer(self._archive.read(f"{self._folder}/{key}"), np.dtype(dtype))


def _plain(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    if math.prod(shape) > storage.size:
        raise BadData(f"a tensor {tuple(shape)} has {storage.size} stored values")
    size = storage.itemsize
    view: np.ndarray[Any, Any] = np.ndarray(
        shape, storage.dtype, storage, offset * size, tuple(n * size for n in strides)
    )
    return Tensor(view)


def _quantized(storage: Any, offset: int, shape: Any, strides: Any, how: Any, *_: Any) -> Tensor:
    values, scheme = _plain(storage, offset, shape, strides).values, how[0]
    if scheme == "per_tensor_affine":
        return Tensor(values, scheme, (float(how[1]),), (int(how[2]),))
    scale, zero = (part.values.tolist() for part in how[1:3])
    return Tensor(values, scheme, tuple(scale), tuple(zero), int(how[3]))


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in a value of a file."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Packed):
        return value.tensors()
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for v in value for t in tensors_in(v)] if isinstance(value, list | tuple) else []
