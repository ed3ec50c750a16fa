"""A training's checkpoint: one safetensors file with a JSON header, whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from edgekit.artifact import storage_error
from edgekit.compress._train_types import TrainSet

__all__ = ["Checkpoint", "digest_of", "digest_of_set", "read_checkpoint", "write_checkpoint"]

NAME: Final = "checkpoint.safetensors"
_HEADER: Final = "edgekit.training/1"
_PROBED: Final = 64


@dataclass
class Checkpoint:
    """Where a training stands.

    Attributes:
        belongs: what it belongs to, by part (``settings``, ``data``, ...): JSON values.
        progress: where it stands: JSON values.
        tensors: weights, the optimizer's memory, averages and the best weights, by dotted name.
    """

    belongs: Mapping[str, Any]
    progress: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors below ``prefix``, named without it."""
        return {
            name.removeprefix(f"{prefix}/"): value
            for name, value in self.tensors.items()
            if name.startswith(f"{prefix}/")
        }


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes it aside, brings it to the disk and renames it, so that one is always whole.

    Raises:
        StorageError: no space or no permission; the earlier checkpoint stays.
    """
    from safetensors.torch import save

    # Copies: weights that share memory, as tied ones do, are not taken.
    tensors = {n: v.detach().cpu().contiguous().clone() for n, v in checkpoint.tensors.items()}
    header = {"belongs": checkpoint.belongs, "progress": checkpoint.progress}
    content = save(tensors, {_HEADER: json.dumps(header, sort_keys=True, allow_nan=False)})
    aside = folder / f".{NAME}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f".{NAME}.*"):
            left.unlink(missing_ok=True)  # of a process that was killed
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(folder / NAME)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise storage_error(folder, error) from error


def read_checkpoint(folder: Path, belongs: Mapping[str, Any]) -> tuple[Checkpoint | None, str]:
    """The checkpoint in a folder, if it is there and belongs to this training.

    Returns:
        The checkpoint or None, and why one that is there is not used, or an empty string.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / NAME
    if not path.is_file():
        return None, ""
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            kept = Checkpoint(header["belongs"], header["progress"])
            kept.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        return None, f"{path} is no readable checkpoint ({error})"
    other = [part for part in belongs if kept.belongs.get(part) != belongs[part]]
    if not other:
        return kept, ""
    return None, f"the checkpoint in {folder} belongs to other {_differences(kept, belongs, other)}"


def _differences(kept: Checkpoint, belongs: Mapping[str, Any], parts: list[str]) -> str:
    told = []
    for part in parts:
        old, new = kept.belongs.get(part), belongs[part]
        if isinstance(old, dict) and isinstance(new, dict):
            names = [n for n in new if old.get(n) != new[n]]
            changed = ", ".join(f"{n} {old.get(n)!r}, now {new[n]!r}" for n in names)
            told.append(f"{part} ({changed})")
        else:
            told.append(part)
    return " and ".join(told)


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, types, shapes and values, in hexadecimal."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        if value.numel():
            total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def digest_of_set(data: TrainSet, rows: torch.Tensor) -> str:
    """Of data: their own digest, or one of the samples at up to 64 evenly spread rows."""
    told = getattr(data, "digest", None)
    if isinstance(told, str):
        return told
    spread = torch.linspace(0, len(rows) - 1, min(_PROBED, len(rows))).long()
    return f"{len(data)} {digest_of(data.batch(rows[spread], None))}"
