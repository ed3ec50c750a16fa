"""A bundle's facts in words, for comments and the README."""

from __future__ import annotations

from edgekit.clients import _escape as escape
from edgekit.clients._facts import Facts
from edgekit.runtime.preprocess import ImagePreprocess

__all__ = ["difference", "head", "resize_words"]


def head(facts: Facts) -> str:
    """Where a client comes from, in a few words that fit any comment."""
    bundle = escape.comment(f"{facts.name} {facts.version}")
    return f"Made by edgekit {escape.comment(facts.edgekit)} for the bundle {bundle}."


def resize_words(step: ImagePreprocess) -> str:
    """How pictures were resized, as a phrase that begins with a noun."""
    if step.resize == "none":
        return f"pictures of exactly {step.height} x {step.width} (height x width), never resized"
    how = f"{step.resize} resizing"
    how += (
        ", anti-aliased as Pillow does it"
        if step.antialias
        else (", as torch.nn.functional.interpolate does it (align_corners=False, no antialias)")
    )
    if step.resize_mode == "stretch":
        return f"{how}, to {step.height} x {step.width} (height x width)"
    side = step.resize_size or max(step.height, step.width)
    return f"{how}, the shorter side to {side}, and the central {step.height} x {step.width}"


def difference(step: ImagePreprocess) -> str:
    """What a resize by the system does otherwise."""
    if step.resize == "none":
        return "Nothing differs: no picture is resized."
    if step.resize == "nearest":
        return "Which of two equally near pixels is taken may differ."
    if step.antialias:
        return (
            "A system's filter is not widened where pictures shrink much, so fine patterns differ; "
            "shrink by steps of two or compute it as the Python client does where that matters."
        )
    return "Roundings differ, by a few units of 255."
