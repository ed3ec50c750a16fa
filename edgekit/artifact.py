"""Artifact, an immutable record of one converted file, and Store, the content-addressed cache."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import StorageError
from edgekit.names import FLOAT_IO, artifact_id

__all__ = ["Artifact", "FileRecord", "Store", "files_of", "fingerprint", "sha256_of"]

_ENTRY = "entry.json"


@dataclass(frozen=True)
class FileRecord:
    """One file of an artifact: its name beside or within the main one, bytes, sha256 in hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """One converted model on disk.

    Attributes:
        id: see `edgekit.names.artifact_id`.
        target: target id.
        delegate: the delegate it was made for.
        scheme: quantization scheme.
        io: what it takes, out of `edgekit.names.IOS`: ``float32`` for the model's own tensors.
        variant: name of the plan's override it was made with, or None.
        path: the main file, or the directory that the artifact is.
        files: all files, the main one first; those of a directory by name, the directory included.
        digest: sha256 over the files' hashes; one artifact, one digest.
    """

    id: str
    target: str
    delegate: str
    scheme: str
    path: Path
    files: tuple[FileRecord, ...]
    digest: str
    io: str = FLOAT_IO
    variant: str | None = None

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(f.bytes for f in self.files)

    @classmethod
    def from_files(
        cls,
        files: Iterable[Path],
        *,
        target: str,
        delegate: str,
        scheme: str,
        variant: str | None = None,
        io: str = FLOAT_IO,
    ) -> Artifact:
        """The record of files that lie in one directory, the main one first.

        One of them may be a directory itself, which stands for all that is in it.
        """
        paths = list(files)
        records = tuple(
            FileRecord(f.relative_to(p.parent).as_posix(), f.stat().st_size, sha256_of(f))
            for p in paths
            for f in files_of(p)
        )
        digest = hashlib.sha256("".join(f"{r.path}\0{r.sha256}\n" for r in records).encode())
        return cls(
            id=artifact_id(target, scheme, variant, io, delegate),
            target=target,
            delegate=delegate,
            scheme=scheme,
            path=paths[0],
            files=records,
            digest=digest.hexdigest(),
            variant=variant,
            io=io,
        )


def files_of(path: Path) -> list[Path]:
    """The file itself, or all files in a directory, sorted by their names in it."""
    if not path.is_dir():
        return [path]
    found = [p for p in path.rglob("*") if p.is_file()]
    return sorted(found, key=lambda p: p.relative_to(path).as_posix())


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(**parts: Any) -> str:
    """A key over named parts (JSON values): equal parts, equal key."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """A cache of directories under keys, safe against kills and against a full disk.

    An entry is written aside and renamed into place, so it is there whole or not at all. Reading
    checks every file's hash; an entry that was changed on disk is dropped and made again.

    Args:
        root: where it lies; default ``$EDGEKIT_STORE``, else ``$XDG_CACHE_HOME/edgekit``, else
            ``~/.cache/edgekit``.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or _default_root()
        self.hits: list[str] = []
        self.misses: list[str] = []

    def get(self, key: str) -> Path | None:
        """The entry's directory, or None where there is none or it was damaged."""
        entry = self._path(key)
        try:
            listed = json.loads((entry / _ENTRY).read_text())
            for name, sha in listed.items():
                if sha256_of(entry / name) != sha:
                    raise ValueError(name)
        except FileNotFoundError:
            if not entry.exists():
                return None
            shutil.rmtree(entry, ignore_errors=True)
            return None
        except (OSError, ValueError):
            shutil.rmtree(entry, ignore_errors=True)
            return None
        return entry

    def make(self, key: str, fill: Callable[[Path], None], *, what: str = "") -> Path:
        """The entry's directory, filled by ``fill`` where it is not there yet.

        Args:
            key: from `fingerprint`.
            fill: writes the entry's files into an empty directory.
            what: a name for `hits` and `misses`.

        Raises:
            StorageError: no space or no permission.
        """
        found = self.get(key)
        if found is not None:
            self.hits.append(what)
            return found
        self.misses.append(what)
        entry = self._path(key)
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=".new-", dir=entry.parent))
        except OSError as error:
            raise storage_error(self.root, error) from error
        try:
            fill(aside)
            listed = {
                str(p.relative_to(aside)): sha256_of(p)
                for p in sorted(aside.rglob("*"))
                if p.is_file()
            }
            (aside / _ENTRY).write_text(json.dumps(listed))
            try:
                aside.rename(entry)
            except OSError:
                if self.get(key) is None:  # not simply another run that was faster
                    raise
        except OSError as error:
            raise storage_error(self.root, error) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return entry

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / key


def storage_error(where: Path, error: OSError) -> StorageError:
    """An `OSError` on writing, as the error a user sees."""
    return StorageError(
        f"cannot write under {where}: {error.strerror or error}",
        hint="free some space, or choose another place (EDGEKIT_STORE, -o)",
    )


def _default_root() -> Path:
    if chosen := os.environ.get("EDGEKIT_STORE"):
        return Path(chosen)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "edgekit"
