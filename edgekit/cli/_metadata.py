"""What an artifact's own metadata tells an app, as `edgekit inspect` shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["metadata_lines", "metadata_of"]

_NUMBERS = ("mean", "std", "low", "high")


def metadata_of(stated: object) -> dict[str, Any] | None:
    """The metadata that a manifest states, if it is some: a manifest may hold anything there."""
    if not isinstance(stated, Mapping):
        return None
    texts = isinstance(stated.get("format"), str) and isinstance(stated.get("name"), str | None)
    files, licence = stated.get("files"), stated.get("licence")
    known = texts and isinstance(licence, str | None) and _are(files, str)
    sides = [stated.get("inputs"), stated.get("outputs")]
    known = known and all(isinstance(side, list) and all(map(_is_told, side)) for side in sides)
    if not known or set(stated) != {"format", "name", "licence", "inputs", "outputs", "files"}:
        return None
    return dict(stated)


def _is_told(tensor: object) -> bool:
    if not isinstance(tensor, Mapping) or not isinstance(tensor.get("name"), str):
        return False
    if set(tensor) - {"name", "image", "color", "labels", *_NUMBERS}:
        return False
    numbers = all(_are(tensor.get(key, []), int | float) for key in _NUMBERS)
    labels = tensor.get("labels", 0)
    known = isinstance(tensor.get("image"), bool) and isinstance(tensor.get("color"), str | None)
    return numbers and known and isinstance(labels, int) and labels >= 0


def _are(values: object, kind: Any) -> bool:
    if not isinstance(values, list):
        return False
    return all(isinstance(v, kind) and not isinstance(v, bool) for v in values)


def metadata_lines(metadata: Mapping[str, Any] | None) -> list[str]:
    """One line for what it is, and one for each picture and each output with labels."""
    if metadata is None:
        return []
    lines = [metadata["format"]]
    for tensor in metadata["inputs"]:
        if tensor["image"]:
            lines.append(f"  {tensor['name']} is a picture, {_taken(tensor)}")
    for tensor in metadata["outputs"]:
        if tensor.get("labels"):
            lines.append(f"  {tensor['name']} has {tensor['labels']} labels{_where(metadata)}")
    return lines


def _taken(tensor: Mapping[str, Any]) -> str:
    color = tensor.get("color") or "in an order of colours without a name there"
    if not tensor.get("mean"):
        return f"{color}"
    return f"{color}: (pixel - {_few(tensor['mean'])}) / {_few(tensor['std'])}"


def _few(values: Sequence[float]) -> str:
    said = [f"{value:.6g}" for value in values]
    return said[0] if len(said) == 1 else f"[{', '.join(said)}]"


def _where(metadata: Mapping[str, Any]) -> str:
    return f" in {', '.join(metadata['files'])}" if metadata["files"] else ""
