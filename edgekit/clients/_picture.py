"""What clients in compiled languages are told of the preprocessing of pictures."""

from __future__ import annotations

from edgekit.clients import _escape as escape
from edgekit.clients._facts import Facts
from edgekit.clients._words import head
from edgekit.runtime.preprocess import ImagePreprocess

__all__ = ["boolean", "picture_fields"]


def boolean(value: bool) -> str:
    """As C++, Kotlin and Swift spell it."""
    return "true" if value else "false"


def picture_fields(facts: Facts, step: ImagePreprocess) -> dict[str, str]:
    """The fields that every template of a preprocessing has; a shorter side of 0 is none."""
    stretched = step.resize_mode == "stretch"
    side = 0 if stretched else step.resize_size or max(step.height, step.width)
    return {
        "HEAD": head(facts),
        "HEIGHT": str(step.height),
        "WIDTH": str(step.width),
        "CHANNELS": str(step.channels),
        "BGR": boolean(step.color == "BGR"),
        "NHWC": boolean(step.layout == "NHWC"),
        "SHORTER_SIDE": str(side),
        "SCALE": escape.number(step.scale),
        "MEAN": ", ".join(escape.number(v) for v in step.mean),
        "STD": ", ".join(escape.number(v) for v in step.std),
    }
