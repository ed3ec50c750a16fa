"""Bytes by layer of a ``.safetensors`` file, out of its header alone."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit.errors import BadData

__all__ = ["Weights", "read_weights"]

_LARGEST: Final = 16 * 2**20
"""Bytes of a header, at most; the format itself allows six times as many."""


@dataclass(frozen=True)
class Weights:
    """A file of tensors.

    Attributes:
        origin: where it was found, for people.
        layers: names with the bytes of their tensors, largest first.
        parameters: elements of all tensors together.
    """

    origin: str
    layers: tuple[tuple[str, int], ...]
    parameters: int


def read_weights(path: Path, origin: str) -> Weights:
    """The layers of a file: the names of its tensors without their last part.

    Raises:
        BadData: it is no ``.safetensors`` file.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LARGEST:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        sizes: dict[str, int] = {}
        parameters = 0
        for name, about in header.items():
            if name != "__metadata__":
                start, end = about["data_offsets"]
                layer = name.rpartition(".")[0] or name
                sizes[layer] = sizes.get(layer, 0) + int(end) - int(start)
                parameters += math.prod(int(n) for n in about["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise BadData(f"{origin} is no .safetensors file: {error}") from error
    rows = tuple(sorted(sizes.items(), key=lambda row: (-row[1], row[0])))
    return Weights(origin, rows, parameters)
