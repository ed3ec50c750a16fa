"""What the target files share."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np

from edgekit.errors import EdgekitError, UnsupportedError

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_OPERATOR = re.compile(r"aten::\w+|(?:aten|prims)\.\w+(?:\.\w+)?|[\w.]+::[\w.]+")


def channel_digest(stored: np.ndarray[Any, Any], axis: int) -> str:
    """sha256 over the integers of each channel, sorted within the channel.

    Layouts differ between runtimes (OIHW, OHWI, grouped); which integers a channel holds does not.
    """
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
