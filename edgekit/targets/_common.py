"""What the target files share."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np

from edgekit.errors import EdgekitError, UnsupportedError


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
    text = str(error)
    match = re.search(r"(aten::\w+|aten\.\w+(?:\.\w+)?|prims\.\w+|[\w.]+::[\w.]+)", text)
    culprit = f" at operator {match.group(1)}" if match else ""
    first = next((line.strip() for line in text.splitlines() if line.strip()), repr(error))
    return UnsupportedError(
        f"{target}: the converter refused this model{culprit}: {first[:400]}",
        hint="replace the operator in the model, or leave this target out with --target",
    )
