"""From a picture, a text or a sound to the tensors that a model takes, the same on every machine.

A model's preprocessing is data: the manifest carries it, and evaluation, server and device run this
one implementation of it, in numpy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from edgekit.errors import BadData
from edgekit.names import NHWC_IO
from edgekit.runtime._fields import (
    fields_of,
    require_finite,
    require_int,
    require_one_of,
    tuple_of,
)
from edgekit.runtime.audio import AudioPreprocess
from edgekit.runtime.decode import decode
from edgekit.runtime.resample import resize_float, resize_u8
from edgekit.runtime.text import TextPreprocess

__all__ = [
    "AudioPreprocess",
    "ImagePreprocess",
    "Preprocess",
    "TextPreprocess",
    "decode",
    "preprocess_from_json",
]

Color = Literal["RGB", "BGR", "GRAY"]
Resize = Literal["none", "bilinear", "bicubic", "nearest", "box"]
ResizeMode = Literal["stretch", "shorter-side"]
Layout = Literal["NCHW", "NHWC"]

MAX_SIDE: Final = 16_384
"""The largest height or width that a model may ask for, in pixels."""


@dataclass(frozen=True)
class ImagePreprocess:
    """How pixels become a model's input: colour, resize, crop, then ``(x * scale - mean) / std``.

    Attributes:
        height: rows of the result.
        width: columns of the result.
        channels: 1 or 3.
        color: order of the channels that the model takes; ``GRAY`` has one. Colour becomes grey by
            the ITU-R 601 luma weights, before the resize, as in Pillow.
        resize: the algorithm; ``none`` accepts pictures of exactly ``height x width`` only.
        antialias: True for Pillow's ``Image.resize`` (filter widened when shrinking, 8-bit
            rounding); False for ``torch.nn.functional.interpolate(align_corners=False)`` on float
            values, where ``box`` is its mode ``area``. See `edgekit.runtime.resample`.
        resize_mode: ``stretch`` to ``height x width``, or bring the ``shorter-side`` to
            ``resize_size`` and cut ``height x width`` from the centre.
        resize_size: pixels of the shorter side; None means ``max(height, width)``.
        scale: factor on pixels of 0..255, often 1/255.
        mean: one value per channel, in the order of ``color``, taken off after ``scale``; empty
            means zeros.
        std: one value per channel, divided by last; empty means ones.
        layout: ``NCHW`` or ``NHWC``.
        exif: `decode` turns pictures upright by their EXIF orientation.

    Raises:
        BadData: a field is out of its range, or fields contradict each other.
    """

    height: int
    width: int
    channels: int = 3
    color: Color = "RGB"
    resize: Resize = "bilinear"
    antialias: bool = True
    resize_mode: ResizeMode = "stretch"
    resize_size: int | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: Layout = "NCHW"
    exif: bool = True

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            require_int(f"preprocess {name}", getattr(self, name), 1, MAX_SIDE)
        require_one_of("channels", self.channels, (1, 3))
        require_one_of("color", self.color, ("GRAY",) if self.channels == 1 else ("RGB", "BGR"))
        require_one_of("resize", self.resize, get_args(Resize))
        require_one_of("resize_mode", self.resize_mode, get_args(ResizeMode))
        require_one_of("layout", self.layout, get_args(Layout))
        for name in ("antialias", "exif"):
            require_one_of(name, getattr(self, name), (True, False))
        self._check_resize_size()
        require_finite("scale", (self.scale,))
        for name, default in (("mean", 0.0), ("std", 1.0)):
            values = tuple(getattr(self, name)) or (default,) * self.channels
            require_finite(name, values)
            if len(values) != self.channels:
                raise BadData(
                    f"preprocess {name} has {len(values)} values for {self.channels} channels"
                )
            object.__setattr__(self, name, tuple(float(v) for v in values))
        if self.scale == 0 or 0 in self.std:
            raise BadData("preprocess scale and std must not be 0")

    def _check_resize_size(self) -> None:
        if self.resize_mode == "stretch":
            if self.resize_size is not None:
                raise BadData("preprocess resize_size is for resize_mode 'shorter-side' only")
            return
        if self.resize == "none":
            raise BadData(
                "preprocess resize_mode 'shorter-side' needs a resize algorithm, not 'none'"
            )
        if self.resize_size is not None:
            smallest = max(self.height, self.width)
            require_int("preprocess resize_size", self.resize_size, smallest, MAX_SIDE)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The result's shape, batch of 1 first."""
        if self.layout == "NCHW":
            return (1, self.channels, self.height, self.width)
        return (1, self.height, self.width, self.channels)

    def decode(self, source: str | Path | bytes) -> npt.NDArray[np.uint8]:
        """Reads a picture for `apply`: uint8 ``[H, W, C]``; see `edgekit.runtime.decode.decode`."""
        return decode(source, exif=self.exif)

    def apply(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turns one picture into the model's input.

        Args:
            pixels: uint8 ``[H, W]`` or ``[H, W, C]``: grey (1), RGB (3) or RGBA (4, alpha dropped).

        Returns:
            float32 ``[1, C, H, W]``, or ``[1, H, W, C]`` where the layout is ``NHWC``.

        Raises:
            BadData: wrong dtype or shape, or the wrong size where ``resize`` is ``none``.
        """
        resized = self._resized(self._in_color(_checked_pixels(pixels)))
        planes = np.empty((1, self.channels, self.height, self.width), dtype=np.float32)
        for c in range(self.channels):
            plane = resized[:, :, c]
            # 8-bit pixels have only 256 answers.
            eight = plane.dtype == np.uint8
            planes[0, c] = self.table[c][plane] if eight else self._normal(plane, c)
        if self.layout == "NCHW":
            return planes
        return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))

    def pixels(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Turns one picture into what an artifact of ``io = "uint8"`` takes.

        Where ``antialias`` is False the resized picture is rounded to 8 bits, which `apply` does
        not do. Arguments and errors are those of `apply`.

        Returns:
            uint8 ``[1, H, W, C]``: RGB, or grey; `edgekit.runtime.border` has the rest.
        """
        resized = self._resized(self._in_color(_checked_pixels(picture)))
        if resized.dtype != np.uint8:
            resized = np.rint(resized).clip(0, 255).astype(np.uint8)
        return np.ascontiguousarray(resized[None, :, :, :: -1 if self.color == "BGR" else 1])

    def for_io(self, io: str | None) -> Self:
        """The preprocessing whose `apply` makes what an artifact of an io takes.

        For ``float32-nhwc`` that is RGB or grey with the channels last; for others the model's own,
        whose `pixels` goes with ``uint8``.
        """
        if io != NHWC_IO:
            return self
        if self.color != "BGR":
            return replace(self, layout="NHWC")
        mean, std = self.mean[::-1], self.std[::-1]
        return replace(self, layout="NHWC", color="RGB", mean=mean, std=std)

    @cached_property
    def table(self) -> npt.NDArray[np.float32]:
        """What each pixel value becomes in each channel: float32 ``[channels, 256]``."""
        return np.stack([self._normal(np.arange(256.0), c) for c in range(self.channels)])

    def _normal(self, values: npt.NDArray[Any], channel: int) -> npt.NDArray[np.float32]:
        """In double precision, and rounded once."""
        scaled = values.astype(np.float64) * self.scale - self.mean[channel]
        normal: npt.NDArray[np.float32] = (scaled / self.std[channel]).astype(np.float32)
        return normal

    def _in_color(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        if self.channels == 1:
            if pixels.shape[2] == 1:
                return pixels
            # Pillow's fixed-point luma: the weights .299 .587 .114 in 16 bits, rounded.
            red, green, blue = (pixels[:, :, c].astype(np.uint32) for c in range(3))
            luma = red * 19595 + green * 38470 + blue * 7471 + 0x8000
            return (luma >> 16).astype(np.uint8)[:, :, None]
        if pixels.shape[2] == 1:
            return np.repeat(pixels, 3, axis=2)
        return pixels[:, :, 2::-1] if self.color == "BGR" else pixels[:, :, :3]

    def _resized(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        old, new = pixels.shape[:2], (self.height, self.width)
        if self.resize == "none":
            if old != new:
                raise BadData(
                    f"the picture is {old[0]} x {old[1]} (height x width); the model takes "
                    f"{new[0]} x {new[1]} and its preprocessing does not resize"
                )
            return pixels
        resample = resize_u8 if self.antialias else resize_float
        if self.resize_mode == "stretch":
            return resample(pixels, new, self.resize)
        side = self.resize_size or max(new)
        # As torchvision: the longer side is truncated, the crop's corner rounded half to even.
        short = min(old)
        size = (side * old[0] // short, side * old[1] // short)
        if max(size) > MAX_SIDE:
            raise BadData(
                f"the picture is {old[0]} x {old[1]} (height x width): too narrow to resize"
            )
        corner = (round((size[0] - new[0]) / 2), round((size[1] - new[1]) / 2))
        return resample(pixels, size, self.resize, (*corner, *new))

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary with ``"kind": "image"`` and every field."""
        data = asdict(self)
        return {"kind": "image", **data, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            BadData: a field is missing, unknown, or wrong.
        """
        values = fields_of(cls, "image", data)
        return cls(**{**values, "mean": tuple_of(values, "mean"), "std": tuple_of(values, "std")})


Preprocess = ImagePreprocess | TextPreprocess | AudioPreprocess


def preprocess_from_json(data: Mapping[str, Any]) -> Preprocess:
    """The preprocessing that ``to_json`` of one of the classes wrote, by its ``kind``.

    Raises:
        BadData: the kind is unknown, or a field is missing, unknown, or wrong.
    """
    kind = data.get("kind")
    if kind == "image":
        return ImagePreprocess.from_json(data)
    if kind == "text":
        return TextPreprocess.from_json(data)
    if kind == "audio":
        return AudioPreprocess.from_json(data)
    raise BadData(f"unknown kind of preprocessing {kind!r}; allowed: image, text, audio")


def _checked_pixels(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    shaped = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or shaped.ndim != 3 or shaped.shape[2] not in (1, 3, 4):
        raise BadData(
            f"the picture is {pixels.dtype} of shape {pixels.shape}; wanted uint8 [H, W] or "
            "[H, W, C] with 1, 3 or 4 channels"
        )
    if not pixels.size:
        raise BadData(f"the picture is empty: shape {pixels.shape}")
    return shaped
