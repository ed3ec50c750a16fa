"""What a latency estimate sees of a model: its layers, each with its work and its traffic.

A `Layer` holds counts alone, no names of models or of devices: an estimate of a network that nobody
measured rests on these.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KINDS", "Layer"]

KINDS = (
    "stem",
    "winograd",
    "conv",
    "grouped",
    "depthwise",
    "pointwise",
    "linear",
    "matmul",
    "product",
    "elementwise",
    "pool",
    "norm",
    "move",
)
"""What layers are: a convolution of a picture's own channels; 3x3, stride 1 (Winograd's algorithm
takes fewer multiplications there: Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", 2015, arXiv 1509.09308); other dense convolutions; grouped ones; one filter per channel;
1x1; a linear layer of one row, which streams its weights; of many rows; a product of two computed
tensors; and what multiplies nothing."""

_PICTURE = 4  # channels up to which a convolution's input is taken for a picture
_WINOGRAD = 16  # channels from which kernels take Winograd's algorithm


@dataclass(frozen=True)
class Layer:
    """One layer, an activation that kernels fuse counted in.

    Attributes:
        name: the user's module, or what it is.
        kind: one of `KINDS`.
        macs: multiply-accumulates of one call.
        weights: numbers stored in it, biases not counted.
        read: elements read, weights not counted.
        written: elements written.
        taps: the filter's height times width; 1 where there is none.
        channels: of its output; 0 where it has no weights.
    """

    name: str
    kind: str
    macs: int
    weights: int
    read: int
    written: int
    taps: int = 1
    channels: int = 0

    @classmethod
    def conv(
        cls,
        name: str,
        channels: int,
        out: int,
        kernel: tuple[int, int],
        stride: int,
        groups: int,
        size: tuple[int, int],
        read: int,
    ) -> Layer:
        """A convolution with ``out`` channels of ``size`` (height, width)."""
        taps = kernel[0] * kernel[1]
        weights = out * (channels // groups) * taps
        if groups > 1 and groups == channels:
            kind = "depthwise"
        elif channels // groups < _WINOGRAD and groups > 1:
            kind = "grouped"
        elif taps == 1:
            kind = "linear" if size == (1, 1) else "pointwise"
        elif channels <= _PICTURE:
            kind = "stem"
        elif kernel == (3, 3) and stride == 1 and min(channels, out) >= _WINOGRAD:
            kind = "winograd"
        else:
            kind = "conv"
        area = size[0] * size[1]
        return cls(name, kind, weights * area, weights, read, out * area, taps, out)

    @classmethod
    def linear(cls, name: str, features: int, out: int, rows: int) -> Layer:
        """``rows`` vectors times one matrix."""
        kind = "linear" if rows == 1 else "matmul"
        size = features * out
        return cls(name, kind, rows * size, size, rows * features, rows * out, channels=out)

    @classmethod
    def product(cls, name: str, rows: int, inner: int, columns: int, times: int = 1) -> Layer:
        """``times`` products of two computed matrices."""
        macs = times * rows * inner * columns
        read = times * inner * (rows + columns)
        return cls(name, "product", macs, 0, read, times * rows * columns)

    @classmethod
    def other(cls, name: str, kind: str, read: int, written: int) -> Layer:
        """A layer without multiplications."""
        return cls(name, kind, 0, 0, read, written)
