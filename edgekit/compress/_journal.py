"""What pruning has done so far, on disk, so that it goes on from there after it was killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from edgekit.artifact import sha256_of, storage_error

__all__ = ["Journal"]

_FILE: Final = "prune.json"


class Journal:
    """The finished steps of one pruning, and what was measured for them.

    Everything is written aside and renamed; a state is on disk before the journal names it.

    Args:
        folder: where it lies; None keeps nothing.
        key: of what is pruned and how. A journal of another key is thrown away.

    Raises:
        StorageError: no space or no permission.
    """

    def __init__(self, folder: Path | None, key: str) -> None:
        self.folder = folder
        self._content: dict[str, Any] = {"key": key, "measured": {}, "steps": {}}
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = _read(folder / _FILE)
            if found.get("key") == key:
                self._content = found
            else:
                for path in (*folder.glob("step-*"), *folder.glob(".new-*")):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                self._write()
        except OSError as error:
            raise storage_error(folder, error) from error

    def measured(self, what: str) -> list[float] | None:
        """Costs that were measured before, under a name of what they are of."""
        found: list[float] | None = self._content["measured"].get(what)
        return found

    def measure(self, what: str, costs: list[float]) -> None:
        """Keeps costs."""
        self._content["measured"][what] = costs
        self._write()

    def step(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """State and record of a step, or of the first half of one; None where it isn't done."""
        if self.folder is None or name not in self._content["steps"]:
            return None
        from safetensors.torch import load

        entry = self._content["steps"][name]
        path = self.folder / f"step-{name}.safetensors"
        if not path.exists() or sha256_of(path) != entry["sha256"]:
            return None
        return load(path.read_bytes()), dict(entry["record"])

    def finish(
        self, name: str, state: Mapping[str, torch.Tensor], record: Mapping[str, Any]
    ) -> None:
        """Keeps a step."""
        if self.folder is None:
            return
        from safetensors.torch import save

        path = self.folder / f"step-{name}.safetensors"
        self._put(path, save(dict(state)))
        self._content["steps"][name] = {"sha256": sha256_of(path), "record": dict(record)}
        self._write()

    def _write(self) -> None:
        if self.folder is not None:
            text = json.dumps(self._content, indent=1)
            self._put(self.folder / _FILE, text.encode())

    def _put(self, path: Path, data: bytes) -> None:
        aside = path.with_name(f".new-{path.name}")
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError as error:
            raise storage_error(path.parent, error) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
