"""What a run leaves in its folder: ``run.json``, and each stage's files in a folder of its name."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Final

from edgekit.artifact import files_of, sha256_of, storage_error
from edgekit.errors import Locked, StorageError, UsageError
from edgekit.recipe import values
from edgekit.recipe.cache import Hit
from edgekit.settings import Settings, leaves

if TYPE_CHECKING:
    from edgekit.recipe.engine import Outcome
    from edgekit.recipe.inputs import Data
    from edgekit.recipe.source import Code
    from edgekit.recipe.stages import Recipe

__all__ = ["DOCUMENT", "EXPORT", "LOCK", "build", "check_out", "held", "plain", "publish", "write"]

DOCUMENT: Final = "run.json"
LOCK: Final = ".lock"
EXPORT: Final = "export.json"
"""Where a stage that exports leaves that document; see `edgekit.recipe.exporting`."""


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted path as JSON values.

    Raises:
        UsageError: a value that is none, and can't be written as one.
    """

    def of(value: Any, name: str) -> Any:
        if isinstance(value, Enum):
            return of(value.value, name)
        if isinstance(value, Settings):
            return of(leaves(value), name)
        if isinstance(value, list | tuple):
            return [of(v, name) for v in value]
        if isinstance(value, Mapping):
            return {str(k): of(v, name) for k, v in value.items()}
        if isinstance(value, PurePath):
            return str(value)
        plain = value is None or isinstance(value, str | int | float)
        if not plain or (isinstance(value, float) and not math.isfinite(value)):
            raise UsageError(
                f"setting {name} can't be {value!r}",
                hint="settings are strings, finite numbers, booleans, None, paths, choices "
                "(Literal, Enum), sections, and tuples of those",
            )
        return value

    return {name: of(value, name) for name, value in settings.items()}


def check_out(out: Path) -> None:
    """Refuses a folder that holds something else than a run.

    Raises:
        UsageError: it does.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} is no directory", hint="name an empty or a new one with -o")
    if out.is_dir():
        held = [p.name for p in out.iterdir() if p.name != LOCK]
        if held and DOCUMENT not in held:
            raise UsageError(
                f"{out} holds files and is no run; it is left alone",
                hint="choose an empty or a new directory",
            )


def publish(hit: Hit, place: Path) -> None:
    """Copies a result's files to ``place``, aside first; what lies there in the same form stays.

    Raises:
        StorageError: no space or no permission; what was there before stays.
    """
    source = hit.folder / values.FILES
    if _same(source, place):
        return
    try:
        if not any(source.iterdir()):
            shutil.rmtree(place, ignore_errors=True)
            return
        aside = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
        try:
            shutil.copytree(source, aside / place.name)
            old = aside / ".old"
            if place.exists():
                place.rename(old)
            (aside / place.name).rename(place)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise storage_error(place, error) from error


def _same(source: Path, place: Path) -> bool:
    if not place.is_dir():
        return False
    ours, theirs = files_of(source), files_of(place)
    if [p.relative_to(source) for p in ours] != [p.relative_to(place) for p in theirs]:
        return False
    if any(a.stat().st_size != b.stat().st_size for a, b in zip(ours, theirs, strict=True)):
        return False
    return all(sha256_of(a) == sha256_of(b) for a, b in zip(ours, theirs, strict=True))


def build(
    recipe: Recipe,
    *,
    settings: Mapping[str, Any],
    data: Data | None,
    devices: Sequence[str],
    code: Mapping[str, Code],
    processor: Sequence[str],
    outcomes: Mapping[str, Outcome],
    wall_s: float,
) -> dict[str, Any]:
    """A run as ``edgekit.run/1``: from the data's digest to the hash of every file.

    Raises:
        StorageError: a result is no longer in the store.
    """
    try:
        stages = [_stage(name, o, recipe.stages[name].inputs) for name, o in outcomes.items()]
    except FileNotFoundError as error:
        raise StorageError(
            f"a result was removed while this run went on: {error.filename}",
            hint="run it again; what is gone is made again",
        ) from error
    found: dict[str, str] = {}
    for name in outcomes:
        found |= code[name].versions
    return {
        "schema": "edgekit.run/1",
        "recipe": {"name": recipe.name, "sha256": sha256_of(recipe.path)},
        "settings": dict(settings),
        "data": None if data is None else {"source": data.source, "digest": data.digest},
        "devices": list(devices),
        "versions": found,
        "machine": {
            "system": platform.system(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "processor": list(processor),
            "cores": len(os.sched_getaffinity(0)),
        },
        "stages": stages,
        "wall_s": round(wall_s, 3),
    }


def _stage(name: str, outcome: Outcome, inputs: Sequence[str]) -> dict[str, Any]:
    hit = outcome.hit
    record: Mapping[str, Any] = {} if hit is None else hit.record
    return {
        "name": name,
        "status": outcome.status,
        "cached": outcome.cached,
        "why": outcome.why,
        "fingerprint": None if hit is None else hit.key,
        "inputs": record["parts"]["inputs"] if record else dict.fromkeys(inputs),
        "reads": record.get("reads", {}),
        "result": None if hit is None else hit.digest,
        "value": None if hit is None else values.small(hit.folder),
        "files": [] if hit is None else _files(hit.folder / values.FILES),
        "metrics": record.get("metrics", {}),
        "gates": record.get("gates", []),
        "notes": record.get("notes", []),
        "attempts": outcome.attempts,
        "wall_s": outcome.wall_s,
        "reason": outcome.reason,
    }


@functools.lru_cache(maxsize=256)
def _files(folder: Path) -> list[dict[str, Any]]:
    return [
        {
            "path": path.relative_to(folder).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in files_of(folder)
    ]


def write(document: Mapping[str, Any], out: Path) -> None:
    """Writes ``run.json`` aside, then renames it.

    Raises:
        StorageError: no space or no permission; the one before stays.
    """
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"
    aside = out / f".{DOCUMENT}"
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(out / DOCUMENT)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise storage_error(out, error) from error


@contextlib.contextmanager
def held(out: Path | None) -> Iterator[None]:
    """Keeps other runs from writing to the same place."""
    if out is None:
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / LOCK).open("w")
    except OSError as error:
        raise storage_error(out, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(
                f"another run writes to {out}", hint="wait for it, or choose another place with -o"
            ) from None
        yield
