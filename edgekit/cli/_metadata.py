"""What an artifact's own metadata tells an app: shown by `inspect`, checked by `verify`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.parity import Check
    from edgekit.runtime.bundle import Bundle, BundleArtifact

__all__ = ["metadata_check", "metadata_lines", "metadata_of", "metadata_tasks", "told_by_lines"]

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


def told_by_lines(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which artifacts tell an app what they take, and how; nothing where none does."""
    kinds: dict[str, list[str]] = {}
    for entry in entries:
        if entry["metadata"] is not None:
            kinds.setdefault(entry["metadata"]["format"], []).append(entry["id"])
    return [f"{', '.join(ids)}: {kind}" for kind, ids in kinds.items()]


def metadata_tasks(bundle: Bundle, artifact: BundleArtifact, path: Path) -> list[dict[str, Any]]:
    """The task that holds what an artifact tells of itself against the manifest; none where the
    bundle does not say that it tells anything."""
    from edgekit.runtime.preprocess import ImagePreprocess

    preprocess = bundle.preprocess() if artifact.evidence.get("metadata") else None
    if not isinstance(preprocess, ImagePreprocess):
        return []
    model = bundle.manifest.get("model") or {}
    about = {
        "name": str(model.get("name", "")),
        "licence": bundle.manifest.get("licence"),
        "preprocess": preprocess.for_io(artifact.io).to_json(),
    }
    return [
        {
            "op": "metadata_faults",
            "artifact": str(path.absolute()),
            "signature": artifact.signature.to_json(),
            "about": about,
        }
    ]


def metadata_check(faults: Sequence[str]) -> Check:
    from edgekit.parity import Check

    more = f" (and {len(faults) - 1} more)" if faults[1:] else ""
    detail = f"{faults[0]}{more}" if faults else "what the file tells an app is what the bundle is"
    return Check("metadata", not faults, len(faults), 0, detail)
