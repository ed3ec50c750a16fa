"""Pictures changed a little, each in its own way, so that a network learns what doesn't matter.

Batches are changed at once, by torchvision's v2 functions where they take a batch. Every draw comes
from the caller's generator, never from torch's global one, so that batches can be made in another
thread and made again.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Annotated, Any, Final

import torch
from pydantic import Field
from torch import nn

from edgekit._torchvision import torchvision
from edgekit.settings import Settings

__all__ = ["Augment", "augment", "erase"]

Part = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]

ERASED: Final = (0.02, 0.33)
"""Parts of a picture's area that erasing takes, and below, its shapes, height by width."""
ERASED_SHAPE: Final = (0.3, 3.3)

BINS: Final = 31
"""RandAugment's magnitudes are counted from 0 to `BINS` - 1."""

_SIGNED: Final = {
    "shear-x": 0.3,
    "shear-y": 0.3,
    "translate-x": 150 / 331,
    "translate-y": 150 / 331,
    "rotate": 30.0,
    "brightness": 0.9,
    "colour": 0.9,
    "contrast": 0.9,
    "sharpness": 0.9,
}
_UNSIGNED: Final = ("identity", "posterize", "solarize", "autocontrast", "equalize")
_OPERATIONS: Final = (*_SIGNED, *_UNSIGNED)


class Augment(Settings):
    """How pictures are changed; everything is off by default, and done in this order.

    Attributes:
        crop: pixels of black border, out of which the picture's size is cut again anywhere.
        flip: how often the picture is mirrored, left to right, 0 to 1.
        rotate: largest turn, in degrees, either way.
        shear: largest shear, in degrees.
        scale: largest change of size, as a part: 0.1 is 90 to 110 percent.
        shift: largest move, as a part of the side.
        rand: how many operations RandAugment draws for each picture (Cubuk et al., "RandAugment",
            2019, arXiv:1909.13719).
        magnitude: how strong they are, 0 to 30.
        brightness, contrast, saturation: largest change, as a part: 0.4 is a factor 0.6 to 1.4.
        hue: largest turn of the colours, 0 to 0.5 of a full one.
        erase: how often a rectangle is replaced by the mean colour, 0 to 1 (Zhong et al., "Random
            Erasing Data Augmentation", 2017, arXiv:1708.04896).
    """

    crop: Annotated[int, Field(ge=0)] = 0
    flip: Part = 0.0
    rotate: NotNegative = 0.0
    shear: Annotated[float, Field(ge=0, lt=90)] = 0.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.0
    shift: Part = 0.0
    rand: Annotated[int, Field(ge=0)] = 0
    magnitude: Annotated[int, Field(ge=0, lt=BINS)] = 9
    brightness: Part = 0.0
    contrast: Part = 0.0
    saturation: Part = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    erase: Part = 0.0


def augment(x: torch.Tensor, how: Augment, generator: torch.Generator) -> torch.Tensor:
    """The pictures, each changed in its own way; all but erasing.

    Args:
        x: uint8 ``[n, C, H, W]``, RGB or grey.
        how: what is done.
        generator: what is drawn from.

    Returns:
        uint8 ``[n, C, H, W]``.
    """
    if how.crop or how.flip:
        x = _cropped(x, how, generator)
    if how.rotate or how.shear or how.scale or how.shift:
        x = _moved(x, how, generator)
    for _ in range(how.rand):
        x = _rand(x, how.magnitude, generator)
    if how.brightness or how.contrast or how.saturation or how.hue:
        x = _coloured(x, how, generator)
    return x


def erase(x: torch.Tensor, often: float, generator: torch.Generator) -> torch.Tensor:
    """The pictures, some with a rectangle set to 0, which is the mean where it was subtracted.

    Args:
        x: float ``[n, C, H, W]``.
        often: how often, 0 to 1.
        generator: what is drawn from.
    """
    n, _, height, width = x.shape
    chosen, area, shape, top, left = torch.rand(5, n, generator=generator)
    area = (ERASED[0] + area * (ERASED[1] - ERASED[0])) * height * width
    low, high = (math.log(s) for s in ERASED_SHAPE)
    shape = torch.exp(low + shape * (high - low))
    rows = (area * shape).sqrt().round().clamp(1, height)
    columns = (area / shape).sqrt().round().clamp(1, width)
    first_row = (top * (height - rows + 1)).floor()
    first_column = (left * (width - columns + 1)).floor()
    inside_rows = _within(torch.arange(height), first_row, rows)
    inside_columns = _within(torch.arange(width), first_column, columns)
    hole = inside_rows[:, :, None] & inside_columns[:, None, :] & (chosen < often)[:, None, None]
    return x.masked_fill(hole[:, None], 0.0)


def _functional() -> Any:
    torchvision()
    return importlib.import_module("torchvision.transforms.v2.functional")


def _within(places: torch.Tensor, first: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    return (places >= first[:, None]) & (places < (first + count)[:, None])


def _spread(amount: float, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Values from -amount to amount, evenly."""
    return (torch.rand(shape, generator=generator) * 2 - 1) * amount


def _cropped(x: torch.Tensor, how: Augment, generator: torch.Generator) -> torch.Tensor:
    n, channels, height, width = x.shape
    corner = torch.randint(0, 2 * how.crop + 1, (n, 2), generator=generator)
    mirrored = torch.rand(n, generator=generator) < how.flip
    padded = nn.functional.pad(x, (how.crop,) * 4)
    rows = corner[:, :1] + torch.arange(height)
    columns = corner[:, 1:] + torch.arange(width)
    columns[mirrored] = columns[mirrored].flip(1)
    return padded[
        torch.arange(n)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _moved(x: torch.Tensor, how: Augment, generator: torch.Generator) -> torch.Tensor:
    """Turned, sheared, scaled and shifted, each by its own matrix; edges are continued."""
    n, _, height, width = x.shape
    angle = _spread(math.radians(how.rotate), (n,), generator)
    shear = torch.tan(_spread(math.radians(how.shear), (n,), generator))
    size = 1 + _spread(how.scale, (n,), generator)
    # The grid's units are half sides, so a turn of an oblong needs its proportions.
    move = _spread(2 * how.shift, (n, 2), generator)
    cos, sin, side = angle.cos() / size, angle.sin() / size, height / width
    rows = (
        torch.stack((cos, (shear * cos - sin) * side, move[:, 0]), 1),
        torch.stack((sin / side, shear * sin + cos, move[:, 1]), 1),
    )
    grid = nn.functional.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    moved = nn.functional.grid_sample(x.float(), grid, padding_mode="border", align_corners=False)
    return moved.round().clamp(0, 255).to(torch.uint8)


def _coloured(x: torch.Tensor, how: Augment, generator: torch.Generator) -> torch.Tensor:
    n, functional = len(x), _functional()
    bright, contrast, saturation = (
        (1 + _spread(amount, (n, 1, 1, 1), generator))
        for amount in (how.brightness, how.contrast, how.saturation)
    )
    turns = _spread(how.hue, (n,), generator).tolist()
    y = (x.float() * bright).clamp(0, 255)
    grey = functional.rgb_to_grayscale(y) if x.shape[1] == 3 else y
    mean = grey.mean((1, 2, 3), keepdim=True)
    y = (mean + contrast * (y - mean)).clamp(0, 255)
    if x.shape[1] == 3:
        grey = functional.rgb_to_grayscale(y)
        y = (grey + saturation * (y - grey)).clamp(0, 255)
    made = y.round().to(torch.uint8)
    if not how.hue or x.shape[1] == 1:
        return made
    turned = [functional.adjust_hue(p, t) for p, t in zip(made, turns, strict=True)]
    return torch.stack(turned)


def _rand(x: torch.Tensor, magnitude: int, generator: torch.Generator) -> torch.Tensor:
    """One operation of RandAugment for each picture; those of one kind are changed together."""
    chosen = torch.randint(len(_OPERATIONS), (len(x),), generator=generator)
    signs = 1 - 2 * torch.randint(2, (len(x),), generator=generator)
    out = x.clone()
    for number, name in enumerate(_OPERATIONS):
        for sign in (1, -1) if name in _SIGNED else (0,):
            these = (chosen == number) & ((signs == sign) | (sign == 0))
            if bool(these.any()):
                out[these] = _operate(x[these], name, sign, magnitude)
    return out


def _operate(x: torch.Tensor, name: str, sign: int, magnitude: int) -> torch.Tensor:
    functional = _functional()
    part = magnitude / (BINS - 1)
    amount = sign * part * _SIGNED.get(name, 0.0)
    height, width = x.shape[-2:]

    def bent(
        turn: float = 0.0, by: tuple[float, float] = (0.0, 0.0), lean: Any = (0.0, 0.0)
    ) -> Any:
        moved = [int(by[0]), int(by[1])]
        center = [0.0, 0.0] if any(lean) else None
        return functional.affine(
            x, angle=turn, translate=moved, scale=1.0, shear=list(lean), center=center
        )

    lean = math.degrees(math.atan(amount))
    made: dict[str, Callable[[], Any]] = {
        "identity": lambda: x,
        "shear-x": lambda: bent(lean=(lean, 0.0)),
        "shear-y": lambda: bent(lean=(0.0, lean)),
        "translate-x": lambda: bent(by=(amount * width, 0.0)),
        "translate-y": lambda: bent(by=(0.0, amount * height)),
        "rotate": lambda: functional.rotate(x, amount),
        "brightness": lambda: functional.adjust_brightness(x, 1 + amount),
        "colour": lambda: functional.adjust_saturation(x, 1 + amount),
        "contrast": lambda: functional.adjust_contrast(x, 1 + amount),
        "sharpness": lambda: functional.adjust_sharpness(x, 1 + amount),
        "posterize": lambda: functional.posterize(x, 8 - round(magnitude / ((BINS - 1) / 4))),
        "solarize": lambda: functional.solarize(x, 255 * (1 - part)),
        "autocontrast": lambda: functional.autocontrast(x),
        "equalize": lambda: functional.equalize(x),
    }
    result: torch.Tensor = made[name]()
    return result
