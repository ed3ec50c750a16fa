"""Exports: what another server, or another way to run ours, needs to serve a bundle.

Every kind is one function that gives files by name; `export` writes them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from edgekit.artifact import storage_error
from edgekit.errors import UsageError
from edgekit.names import unknown
from edgekit.pack import aside, swap
from edgekit.runtime.bundle import Bundle
from edgekit.serve.deploy import docker, kserve, ray, repositories, systemd
from edgekit.serve.deploy.facts import Facts, Made, Wishes, facts_of

__all__ = ["KINDS", "Made", "Wishes", "export"]

_MAKERS: Mapping[str, Callable[[Facts, Wishes], Made]] = {
    "kserve": kserve.made,
    "triton": repositories.triton,
    "ovms": repositories.ovms,
    "ray": ray.made,
    "docker": docker.made,
    "systemd": systemd.made,
}
KINDS = tuple(_MAKERS)
"""What a bundle can be exported for."""


def export(bundle: Path, kind: str, out: Path, wishes: Wishes, *, force: bool = False) -> Made:
    """Writes what ``kind`` needs to serve a bundle, aside first, then renamed.

    Args:
        bundle: a directory or zip.
        kind: of `KINDS`.
        out: a directory that is not there yet.
        wishes: see there.
        force: put it in the place of what is there.

    Returns:
        What was written, and what is yet to be done with it.

    Raises:
        UsageError: there is no such kind, ``out`` is there, or a wish is missing or does not fit.
        UnsupportedError: the bundle has no artifact that this kind runs.
        BadData, TrustError: it is no bundle, or not what its manifest says.
        StorageError: no space or no permission.
    """
    if kind not in _MAKERS:
        raise UsageError(unknown("kind of export", kind, KINDS))
    out = out.absolute()
    if out.exists() and not force:
        raise UsageError(f"{out} is there already", hint="choose another place, or --force")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is no directory", hint="choose another place")
    with Bundle.open(bundle) as opened:
        facts = facts_of(opened, bundle, wishes)
        if _inside(out, facts):
            raise UsageError(f"{out} holds the bundle itself", hint="choose another place")
        made = _MAKERS[kind](facts, wishes)
    try:
        _write(made, out)
    except OSError as error:
        raise storage_error(out.parent, error) from error
    return made


def _inside(out: Path, facts: Facts) -> bool:
    """Whether replacing ``out`` would take the bundle away."""
    return any(out == path or out in path.parents for path in facts.bundles)


def _write(made: Made, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with aside(out.parent) as folder:
        new = folder / "new"
        new.mkdir()
        for name, content in made.files.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif content.is_dir():
                shutil.copytree(content, path, symlinks=True)
            else:
                shutil.copyfile(content, path)
        swap(new, out, folder / "old")
