"""Golden vectors, from their pictures on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.parity import Check
    from edgekit.runtime.bundle import Bundle, BundleArtifact
    from edgekit.runtime.session import Array

__all__ = ["from_pictures_check"]


def from_pictures_check(
    bundle: Bundle, artifact: BundleArtifact, feeds: Mapping[str, Array]
) -> tuple[dict[str, Array], tuple[Check, ...]]:
    """The feeds, made anew of the bundle's pictures, and whether they are what they were."""
    from edgekit.parity import Check
    from edgekit.runtime.golden import from_pictures, picture_input
    from edgekit.runtime.preprocess import ImagePreprocess

    pictures, preprocess = bundle.golden_pictures(), bundle.preprocess()
    if not pictures or not isinstance(preprocess, ImagePreprocess):
        return dict(feeds), ()
    preprocess = preprocess.for_io(artifact.io)
    spec = picture_input(artifact.signature, preprocess)
    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in feeds.items()}
    made, misread = from_pictures(flat, pictures, preprocess, spec)
    detail = "golden pictures that the preprocessing makes the same inputs of as it did"
    fine = len(pictures) - len(misread)
    check = Check(f"pictures:{spec.name}", not misread, fine, len(pictures), detail)
    return {name: made[name].reshape(value.shape) for name, value in feeds.items()}, (check,)
