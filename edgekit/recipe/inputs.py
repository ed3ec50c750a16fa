"""Files that a run is given, as digests of content: ``--data``, and settings that are paths."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.artifact import Store, fingerprint, sha256_of
from edgekit.errors import BadData

__all__ = ["Data", "data", "named"]


@dataclass(frozen=True)
class Data:
    """A file or folder: its name for people, and sha256 over names and contents."""

    source: str
    digest: str


def data(path: Path, store: Store) -> Data:
    """The data at ``path``.

    A folder's files are read once; while their names, sizes and times of change stay, the digest
    is taken from the store.

    Raises:
        BadData: there is nothing at ``path``, or it can't be read.
    """
    if not path.exists():
        raise BadData(f"no data at {path}", hint="--data names a file or a folder")
    try:
        files = _files(path)
        listed = [
            (f.relative_to(path).as_posix(), (s := f.stat()).st_size, s.st_mtime_ns) for f in files
        ]
        if not files:
            raise BadData(f"{path} is empty")
        key = fingerprint(data=os.fspath(path.resolve()), files=listed)

        def fill(folder: Path) -> None:
            found = fingerprint(
                files={name: sha256_of(f) for f, (name, _, _) in zip(files, listed, strict=True)}
            )
            (folder / "digest.json").write_text(json.dumps(found))

        entry = store.make(key, fill, what="data")
        return Data(path.name, json.loads((entry / "digest.json").read_text()))
    except OSError as error:
        raise BadData(f"{error.filename} can't be read: {error.strerror}") from error


def named(settings: Mapping[str, Any]) -> dict[str, str]:
    """Of settings that are paths of files, these with the sha256 of what is in them.

    Raises:
        BadData: one can't be read.
    """
    found = {}
    for name, path in settings.items():
        if isinstance(path, Path) and path.is_file():
            try:
                found[name] = f"{path} ({sha256_of(path)})"
            except OSError as error:
                raise BadData(f"setting {name}: {path} can't be read: {error.strerror}") from error
    return found


def _files(path: Path) -> list[Path]:
    """As `files_of`, but with what folders hold that are linked to: data often lies elsewhere."""
    if not path.is_dir():
        return [path]
    found, seen = list[Path](), set[str]()
    for folder, folders, names in os.walk(path, followlinks=True):
        seen.add(os.path.realpath(folder))
        folders[:] = [f for f in folders if os.path.realpath(Path(folder, f)) not in seen]
        found += [p for n in names if (p := Path(folder, n)).is_file()]
    return sorted(found, key=lambda p: p.relative_to(path).as_posix())
