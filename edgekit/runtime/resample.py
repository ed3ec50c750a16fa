"""Resizing pictures with numpy alone, in the two conventions that models were trained with.

- `resize_u8`: the anti-aliased separable resampling of Pillow's ``Image.resize`` (and so of
  torchvision on PIL images): the filter is widened by the reduction factor, and each of the two
  passes rounds to 8 bits in fixed point. Results equal those of Pillow 13, bit for bit.
- `resize_float`: the convention of ``torch.nn.functional.interpolate(align_corners=False)``: the
  filter is never widened, and values stay float.

Both work on ``[H, W, C]`` and can compute a window of the result only, so that a centre crop does
not pay for what it throws away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["FILTERS", "Window", "resize_float", "resize_u8"]

FILTERS: Final = ("nearest", "box", "bilinear", "bicubic")
"""Algorithms of both conventions. In `resize_float`, ``box`` is torch's mode ``area``."""

Window = tuple[int, int, int, int]
"""``(top, left, height, width)`` of the wanted part of the resized picture."""

_Float = npt.NDArray[np.float64]
_U8 = npt.NDArray[np.uint8]
_F32 = npt.NDArray[np.float32]
_Pixels = npt.NDArray[Any]

# Fixed point of Pillow's 8-bit passes: 32 bits less 8 for the pixel and 2 for overshoot.
_PRECISION = 32 - 8 - 2


@dataclass(frozen=True)
class _Taps:
    """One axis of a separable filter: output ``i`` is ``sum_t weight[i, t] * input[index[i, t]]``.

    Both arrays are ``[outputs, taps]``; padding taps repeat a valid index with weight 0.
    """

    index: npt.NDArray[np.intp]
    weight: _Float

    def __getitem__(self, outputs: slice) -> _Taps:
        return _Taps(self.index[outputs], self.weight[outputs])


def resize_u8(
    pixels: _U8, size: tuple[int, int], algorithm: str, window: Window | None = None
) -> _U8:
    """Resizes as Pillow does: anti-aliased, in two fixed-point passes.

    Args:
        pixels: uint8 ``[H, W, C]``.
        size: the new ``(height, width)`` in pixels.
        algorithm: one of `FILTERS`.
        window: the part to compute; the whole picture when None.

    Returns:
        uint8 ``[window height, window width, C]``.
    """
    top, left, height, width = window or (0, 0, *size)
    rows = _pillow_taps(pixels.shape[0], size[0], algorithm)[top : top + height]
    columns = _pillow_taps(pixels.shape[1], size[1], algorithm)[left : left + width]
    if algorithm == "nearest":
        return pixels[rows.index, columns.index[:, 0]]
    return _two_passes(pixels, rows, columns, _filter_u8, _height_first(pixels.shape[:2], size))


def resize_float(
    pixels: _Pixels, size: tuple[int, int], algorithm: str, window: Window | None = None
) -> _F32:
    """Resizes as ``torch.nn.functional.interpolate(align_corners=False)`` does, without rounding.

    Args:
        pixels: ``[H, W, C]`` of any real dtype; 0..255 stays 0..255 (bicubic may overshoot).
        size: the new ``(height, width)`` in pixels.
        algorithm: one of `FILTERS`; ``box`` is torch's ``area``, ``nearest`` torch's ``nearest``.
        window: the part to compute; the whole picture when None.

    Returns:
        float32 ``[window height, window width, C]``.
    """
    top, left, height, width = window or (0, 0, *size)
    taps = _TORCH_TAPS[algorithm]
    rows = taps(pixels.shape[0], size[0])[top : top + height]
    columns = taps(pixels.shape[1], size[1])[left : left + width]
    return _two_passes(pixels, rows, columns, _filter_float, False)


def _height_first(old: tuple[int, ...], new: tuple[int, int]) -> bool:
    # The order shows in the rounding between the passes. Up to Pillow 12 the width came first; 13
    # begins with the height where that loses more than twice as many pixels as the width.
    lost_rows, lost_columns = old[0] - new[0], old[1] - new[1]
    return lost_rows > 0 and lost_rows > 2 * lost_columns


def _two_passes(
    pixels: _Pixels,
    rows: _Taps,
    columns: _Taps,
    filter_lines: Callable[[_Pixels, _Taps], _Pixels],
    height_first: bool,
) -> _Pixels:
    """Filters both axes of ``[H, W, C]``; each pass sees its axis first, as contiguous lines."""
    if height_first:
        turned = pixels.transpose(1, 0, 2)
        return _turned(_two_passes(turned, columns, rows, filter_lines, False))
    # The first pass makes only the rows that the second one reads.
    first, last = int(rows.index.min()), int(rows.index.max())
    by_row = _turned(filter_lines(_turned(pixels[first : last + 1]), columns))
    return filter_lines(by_row, _Taps(rows.index - first, rows.weight))


def _turned(pixels: _Pixels) -> _Pixels:
    """Rows and columns exchanged, in one piece of memory."""
    height, width, channels = pixels.shape
    out = np.empty((width, height, channels), dtype=pixels.dtype)
    for c in range(channels):  # By channel, numpy copies in longer runs: four times as fast.
        out[:, :, c] = pixels[:, :, c].T
    return out


def _filter_u8(lines: _Pixels, taps: _Taps) -> _U8:
    """Filters the first axis in Pillow's fixed point, whose sums fit 32 bits."""
    fixed = taps.weight * (1 << _PRECISION)
    # C's cast truncates, so half is added away from zero first.
    weight = np.trunc(np.where(fixed < 0, fixed - 0.5, fixed + 0.5)).astype(np.int32)
    total = np.full((len(weight), *lines.shape[1:]), 1 << (_PRECISION - 1), dtype=np.int32)
    term = np.empty_like(total)
    for index, factor in zip(taps.index.T, weight.T, strict=True):
        np.multiply(lines[index], factor[:, None, None], out=term)
        total += term
    total >>= _PRECISION
    return np.clip(total, 0, 255, out=total).astype(np.uint8)


def _filter_float(lines: _Pixels, taps: _Taps) -> _F32:
    """Filters the first axis in float32."""
    weight = taps.weight.astype(np.float32)
    total = np.zeros((len(weight), *lines.shape[1:]), dtype=np.float32)
    for index, factor in zip(taps.index.T, weight.T, strict=True):
        total += lines[index] * factor[:, None, None]
    return total


def _box(x: _Float) -> _Float:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


def _triangle(x: _Float) -> _Float:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _cubic(x: _Float, a: float = -0.5) -> _Float:
    """Keys' cubic convolution kernel (IEEE Trans. ASSP 29(6), 1981)."""
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


# Kernel and its half width, in input pixels at scale 1.
_KERNELS: Final[dict[str, tuple[Callable[[_Float], _Float], float]]] = {
    "box": (_box, 0.5),
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
}


def _pillow_taps(old: int, new: int, algorithm: str) -> _Taps:
    """Taps when ``old`` pixels become ``new``."""
    scale = old / new
    if algorithm == "nearest":
        # Pillow steps from pixel to pixel, so its rounding errors add up and decide ties.
        centre = np.add.accumulate(np.concatenate([[scale * 0.5], np.full(new - 1, scale)]))
        nearest = np.minimum(centre.astype(np.intp), old - 1)[:, None]
        return _Taps(nearest, np.ones(nearest.shape))
    centre = (np.arange(new) + 0.5) * scale
    kernel, support = _KERNELS[algorithm]
    widened = max(scale, 1.0)
    support *= widened
    low = np.maximum(np.trunc(centre - support + 0.5), 0.0).astype(np.intp)
    high = np.minimum(np.trunc(centre + support + 0.5), old).astype(np.intp)
    index = low[:, None] + np.arange(int((high - low).max()))
    weight = kernel((index - centre[:, None] + 0.5) * (1.0 / widened))
    weight[index >= high[:, None]] = 0.0
    # Added up one by one, as in C: pairwise sums could differ in the last bit.
    total = np.add.accumulate(weight, axis=1)[:, -1:]
    weight = np.divide(weight, total, out=weight, where=total != 0.0)
    return _Taps(np.minimum(index, old - 1), weight)


def _torch_nearest(old: int, new: int) -> _Taps:
    out = np.arange(new)
    # torch multiplies in float32, which decides ties; equal sizes are copied.
    scale = np.float32(old) / np.float32(new)
    source = np.floor(out.astype(np.float32) * scale).astype(np.intp)
    index = (out if old == new else np.minimum(source, old - 1))[:, None]
    return _Taps(index, np.ones(index.shape))


def _torch_area(old: int, new: int) -> _Taps:
    """Adaptive average pooling: the mean of every input pixel that the output pixel touches."""
    out = np.arange(new)
    low = out * old // new
    high = -(-(out + 1) * old // new)
    index = low[:, None] + np.arange(int((high - low).max()))
    weight = np.where(index < high[:, None], 1.0 / (high - low)[:, None], 0.0)
    return _Taps(np.minimum(index, old - 1), weight)


def _torch_kernel(kernel: str, old: int, new: int) -> _Taps:
    """Linear (2 taps) or cubic (4 taps) at half-pixel centres; beyond an edge, the edge repeats."""
    centre = (np.arange(new) + 0.5) * (old / new) - 0.5
    base = np.floor(centre)
    offsets = np.arange(0, 2) if kernel == "linear" else np.arange(-1, 3)
    distance = (centre - base)[:, None] - offsets
    # torch's cubic takes a = -0.75, Pillow's -0.5.
    weight = _triangle(distance) if kernel == "linear" else _cubic(distance, a=-0.75)
    index = base[:, None].astype(np.intp) + offsets
    return _Taps(np.clip(index, 0, old - 1), weight)


_TORCH_TAPS: Final[dict[str, Callable[[int, int], _Taps]]] = {
    "nearest": _torch_nearest,
    "box": _torch_area,
    "bilinear": partial(_torch_kernel, "linear"),
    "bicubic": partial(_torch_kernel, "cubic"),
}
