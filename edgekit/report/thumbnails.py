"""Samples as small pictures: what a model was given, for people to look at."""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.data import Samples, picture_of
from edgekit.errors import MissingDependency

__all__ = ["SIDE", "thumbnail"]

SIDE: Final = 96
"""Pixels of a thumbnail's longer side, at most; smaller pictures keep their size."""


def thumbnail(samples: Samples, i: int) -> tuple[str, bytes] | None:
    """Sample ``i`` as a PNG of at most 96 x 96 pixels.

    Returns:
        ``picture`` and the picture that the sample was made of; where only the model's tensors are
        known, ``tensor`` and the first that is a float map or wave: its smallest value black, its
        largest white. None where there is nothing to draw.

    Raises:
        BadData: the picture cannot be read.
        MissingDependency: Pillow is not installed.
    """
    picture = picture_of(samples, i)
    if picture is not None:
        return "picture", _png(picture)
    for value in samples.feed(i).values():
        drawn = _drawn(value)
        if drawn is not None:
            return "tensor", _png(drawn)
    return None


def _drawn(value: npt.NDArray[Any]) -> npt.NDArray[np.uint8] | None:
    """A tensor [1, ...] of floats as uint8 [H, W] or [H, W, 3]; None for what has no such form."""
    if value.dtype.kind != "f" or value.shape[0] != 1 or not np.isfinite(value).all():
        return None
    array = value[0].astype(np.float64)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = np.moveaxis(array, 0, -1)
    array = np.squeeze(array)
    if array.ndim == 1 and array.size >= 2 * SIDE:
        array = _wave(array)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        return None
    low, high = float(array.min()), float(array.max())
    scaled = np.rint((array - low) * (255 / ((high - low) or 1)))
    return np.asarray(scaled, np.uint8)


def _wave(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A wave [n] as a picture [48, 96]: in each column, from its lowest to its highest value."""
    height, reach = SIDE // 2, float(np.abs(values).max()) or 1.0
    rows = np.rint((1 - values / reach) * ((height - 1) / 2)).astype(int)
    picture = np.zeros((height, SIDE))
    for x, part in enumerate(np.array_split(rows, SIDE)):
        picture[part.min() : part.max() + 1, x] = 1
    return picture


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependency("Pillow is not installed", hint="pip install pillow") from error
    image = Image.fromarray(np.squeeze(pixels, -1) if pixels.shape[2:] == (1,) else pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    sink = io.BytesIO()
    image.save(sink, "PNG", optimize=True)
    return sink.getvalue()
