"""Which result a stage has already, and why it has none.

What a stage's result depends on is known in two parts: code, inputs, versions, threads and
processor before it runs, and the settings that it reads only by running it. So a record is kept
under the key of the first part, with the settings that were read and their values; it holds where
all of these have the same values now.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.artifact import Store, fingerprint, storage_error
from edgekit.recipe import values

__all__ = ["Cache", "Hit"]

Parts = Mapping[str, Any]


@dataclass(frozen=True)
class Hit:
    """A kept result.

    Attributes:
        folder: where it lies; see `edgekit.recipe.values`.
        key: its fingerprint.
        record: what else is known: ``reads``, ``metrics``, ``gates``, ``notes``, ``wall_s``,
            ``attempts``, ``digest``.
    """

    folder: Path
    key: str
    record: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """sha256 of the result: what stages that take it depend on."""
        return str(self.record["digest"])


class Cache:
    """Results of stages in a store.

    Args:
        store: where.
        recipe: the script, for which the last result of each stage is remembered.
    """

    def __init__(self, store: Store, recipe: Path) -> None:
        self._store = store
        self._root = store.root / "recipes"
        self._checked: dict[str, Hit] = {}
        self._last = self._root / "last" / hashlib.sha256(str(recipe).encode()).hexdigest()[:16]

    def find(self, parts: Parts, settings: Mapping[str, Any]) -> Hit | None:
        """The result that these parts and settings gave, where it is still whole."""
        for _, record in self._records(parts):
            if all(settings.get(k, _ABSENT) == v for k, v in record["reads"].items()):
                hit = self._whole(record["key"])
                if hit is not None:
                    return hit
        return None

    def _whole(self, key: str) -> Hit | None:
        """The entry, its files' hashes checked once by this process."""
        known = self._checked.get(key)
        if known is not None and known.folder.is_dir():
            return known
        folder = self._store.get(key)
        if folder is None:
            return None
        hit = Hit(folder, key, json.loads((folder / "record.json").read_text()))
        self._checked[key] = hit
        return hit

    def keep(
        self, stage: str, parts: Parts, settings: Mapping[str, Any], result: Path, about: Parts
    ) -> Hit:
        """Takes a finished stage's result, which moves from ``result`` into the store.

        Raises:
            StorageError: no space or no permission; then nothing is kept.
        """
        reads = {name: settings[name] for name in about["reads"]}
        digest = values.digest(result)
        # A stage that is run again need not give the same: what it gave last is what counts.
        told = {name: about[name] for name in _TOLD}
        key = fingerprint(parts=parts, reads=reads, digest=digest, told=told)
        record = {**about, "reads": reads, "digest": digest, "parts": parts}

        def fill(folder: Path) -> None:
            (result / "record.json").write_text(json.dumps(record))
            for path in result.iterdir():
                path.rename(folder / path.name)

        folder = self._store.make(key, fill, what=stage)
        try:
            found = self._records_of(parts)
            _write(found / f"{fingerprint(reads=reads)[:32]}.json", {"reads": reads, "key": key})
            _write(self._last / f"{stage}.json", {"parts": parts, "reads": reads})
        except OSError as error:
            raise storage_error(self._root, error) from error
        return Hit(folder, key, json.loads((folder / "record.json").read_text()))

    def why(self, stage: str, parts: Parts, settings: Mapping[str, Any]) -> str:
        """In which way a stage differs from when it last ran, in words."""
        try:
            last = json.loads((self._last / f"{stage}.json").read_text())
            changes = [*_changes(last["parts"], parts), *_moved(last["reads"], settings)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return "never run"
        return "; ".join(changes) or "its result is gone from the store"

    def scratch(self, stage: str, parts: Parts, settings: Mapping[str, Any]) -> Path:
        """The folder in which a stage works until it has ended, the same for the same work."""
        key = fingerprint(stage=stage, parts=parts, settings=dict(settings))
        return self._root / "work" / key[:32]

    def _records_of(self, parts: Parts) -> Path:
        key = fingerprint(parts=parts)
        return self._root / "records" / key[:2] / key

    def _records(self, parts: Parts) -> Iterator[tuple[Path, Any]]:
        folder = self._records_of(parts)
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            record = None
            with contextlib.suppress(OSError, ValueError):
                record = json.loads(path.read_text())
            if isinstance(record, dict) and isinstance(record.get("reads"), dict):
                yield path, record


_ABSENT = object()
_TOLD = ("metrics", "gates", "notes")


def _changes(before: Parts, now: Parts) -> Iterator[str]:
    if before["code"] != now["code"]:
        yield "its code changed"
    for name in sorted({*before["inputs"], *now["inputs"]}):
        if before["inputs"].get(name) != now["inputs"].get(name):
            yield f"its input {name} changed"
    for name in sorted({*before["versions"], *now["versions"]}):
        old, new = before["versions"].get(name), now["versions"].get(name)
        if old != new:
            yield f"{name} is {new or 'no longer used'}, was {old or 'not used'}"
    for name in ("data", "devices", "threads", "processor"):
        if before.get(name) != now.get(name):
            yield f"{name} changed"


def _moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name, value in before.items():
        if name not in now:
            yield f"{name} is no setting any more"
        elif now[name] != value:
            yield f"{name} is {json.dumps(now[name])}, was {json.dumps(value)}"


def _write(path: Path, document: Parts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(document, file)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
