"""Golden vectors, from their pictures and sounds on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.parity import Check
    from edgekit.runtime.bundle import Bundle, BundleArtifact
    from edgekit.runtime.session import Array

__all__ = ["border_check", "from_sources_check"]


def border_check(bundle: Bundle, artifact: BundleArtifact) -> tuple[Check, ...]:
    """Whether the picture border that the manifest states is that of the model's preprocessing.

    Offsets may lie next to the model's, where an int8 plan rounds so (`compress.picture.fitted`):
    by less than two pixel values.
    """
    import dataclasses

    from edgekit.errors import UnsupportedError
    from edgekit.parity import Check
    from edgekit.runtime.border import PictureBorder

    stated = artifact.border
    if stated is None or artifact.io is None:
        return ()
    try:
        model = PictureBorder.of(bundle.signature, bundle.preprocess(), artifact.io)
    except UnsupportedError as error:
        return (Check("border", False, None, None, error.message),)
    wrong = [
        field.name
        for field in dataclasses.fields(model)
        if field.name not in ("offset", "differs")
        and getattr(model, field.name) != getattr(stated, field.name)
    ]
    every = zip(model.factor, model.offset, stated.offset, strict=False)
    if any(abs(a - b) > 2 * abs(factor) for factor, a, b in every):
        wrong.append("offset")
    said = f"it has another {', '.join(wrong)} than" if wrong else "it is that of"
    return (Check("border", not wrong, None, None, f"{said} the model's preprocessing"),)


def from_sources_check(
    bundle: Bundle, artifact: BundleArtifact, feeds: Mapping[str, Array]
) -> tuple[dict[str, Array], tuple[Check, ...]]:
    """The feeds, made anew of the bundle's pictures or sounds, and whether these are as before."""
    from edgekit.parity import Check
    from edgekit.runtime.golden import from_pictures, picture_input
    from edgekit.runtime.golden_sounds import from_sounds, sound_input
    from edgekit.runtime.preprocess import AudioPreprocess, ImagePreprocess

    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in feeds.items()}
    preprocess = bundle.preprocess()
    if isinstance(preprocess, ImagePreprocess) and (pictures := bundle.golden_pictures()):
        preprocess = preprocess.for_io(artifact.io)
        spec = picture_input(artifact.signature, preprocess)
        made, misread = from_pictures(flat, pictures, preprocess, spec)
        kind, count = "pictures", len(pictures)
    elif isinstance(preprocess, AudioPreprocess) and (sounds := bundle.golden_sounds()):
        spec = sound_input(artifact.signature, preprocess)
        made, misread = from_sounds(flat, sounds, preprocess, spec)
        kind, count = "sounds", len(sounds)
    else:
        return dict(feeds), ()
    detail = f"golden {kind} that the preprocessing makes the same inputs of as it did"
    check = Check(f"{kind}:{spec.name}", not misread, count - len(misread), count, detail)
    return {name: made[name].reshape(value.shape) for name, value in feeds.items()}, (check,)
