"""What the target files share."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np

from edgekit.errors import EdgekitError, UnsupportedError
from edgekit.targets import Stored

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_OPERATOR = re.compile(r"aten::\w+|(?:aten|prims)\.\w+(?:\.\w+)?|[\w.]+::[\w.]+")


def half(name: str, stored: np.ndarray[Any, Any]) -> Stored:
    """A weight of half precision, in the plan's terms."""
    return Stored(name, "weight", (1.0,), (0,), channel_digest(stored, None))


def channel_digest(stored: np.ndarray[Any, Any], axis: int | None) -> str:
    """sha256 over the integers of each channel, sorted within the channel.

    Layouts differ between runtimes (OIHW, OHWI, grouped); which integers a channel holds does not.
    Values of half precision (float16, without channels) are taken by their bits.
    """
    if axis is None:
        return hashlib.sha256(np.sort(stored.reshape(-1).view(np.int16)).tobytes()).hexdigest()
    channels = np.moveaxis(stored, axis, 0).reshape(stored.shape[axis], -1)
    return hashlib.sha256(np.sort(channels.astype(np.int8), axis=1).tobytes()).hexdigest()


def converter_error(target: str, error: Exception) -> EdgekitError:
    """A converter's failure as a clear error that names the operator where one can be found."""
    if isinstance(error, EdgekitError):
        return error
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    text = _COLOURS.sub("", str(root))
    match = _OPERATOR.search(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [repr(root)]
    # Converters wrap what they have to say in positions of their own source and in advice.
    reason = next((line for line in lines if match and match.group() in line), lines[0])
    culprit = f" at operator {match.group()}" if match else ""
    return UnsupportedError(
        f"{target}: the converter refused this model{culprit}: {reason[:400]}",
        hint="replace the operator in the model, or leave this target out with --target",
    )


def pack_int4(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Bytes of int4 values: two a byte, the first in the low half."""
    flat = values.reshape(-1).astype(np.int8).view(np.uint8) & 15
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    packed: np.ndarray[Any, Any] = flat[0::2] | (flat[1::2] << 4)
    return packed


def unpack_int4(packed: np.ndarray[Any, Any], shape: list[int]) -> np.ndarray[Any, Any]:
    """The inverse of `pack_int4`, as int8 values of a shape."""
    flat = packed.reshape(-1).view(np.uint8)
    halves = np.stack([flat & 15, flat >> 4], 1).reshape(-1)[: int(np.prod(shape))]
    values: np.ndarray[Any, Any] = ((halves ^ 8).astype(np.int8) - 8).astype(np.int8)
    return values.reshape(shape)
