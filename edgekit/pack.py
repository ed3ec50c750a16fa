"""Packing: artifacts, golden vectors and evidence into a bundle that is whole or not there."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import edgekit
from edgekit import clients
from edgekit.artifact import Artifact, sha256_of, storage_error
from edgekit.errors import UsageError
from edgekit.names import BORDERS
from edgekit.runtime.border import PictureBorder
from edgekit.runtime.bundle import Bundle
from edgekit.runtime.manifest import (
    MANIFEST,
    SCHEMA,
    canonical_json,
    directory_digest,
    parse_manifest,
)
from edgekit.signature import Signature

__all__ = [
    "BundleContent",
    "PackedArtifact",
    "aside",
    "check_destination",
    "pack",
    "rewrite",
    "swap",
    "write_clients",
]

_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class PackedArtifact:
    """One artifact and what is known of it.

    Attributes:
        artifact: the converted files.
        devices: ids of the devices it serves.
        requires: run-time requirements, as the manifest's schema has them.
        verification: how it was verified.
        evidence: what verify, placement and bench found.
        border: the picture border, of one that has it.
    """

    artifact: Artifact
    devices: tuple[str, ...]
    requires: Mapping[str, Any]
    verification: str
    evidence: Mapping[str, Any]
    border: PictureBorder | None = None


@dataclass(frozen=True)
class BundleContent:
    """Everything that goes into a bundle.

    Attributes:
        name: the bundle's name.
        version: its version.
        model: source, digest and parameters of the model.
        signature: its inputs and outputs.
        artifacts: at least one.
        preprocess: as `Model.preprocess.to_json()` gives it, or None.
        documents: further files by name; ``golden.npz`` becomes the manifest's golden entry and
            ``plan.json`` its plan.
        golden: what is to be said of the golden vectors: ``n`` samples, ``source`` of the inputs
            (``pictures``, ``sounds``, ``arrays`` or ``made-up``), and by ``pictures``, ``sounds``
            and the ios of `edgekit.names.BORDERS` the number of samples in
            ``golden-pictures.npz``, ``golden-uint8.npz`` and so on, where there are any.
        statistics: reference statistics of inputs and predictions.
        lineage: where it all comes from.
        licence: SPDX id, or None.
        clients: languages (`edgekit.clients.LANGUAGES`) to write client code in; none without.
    """

    name: str
    version: str
    model: Mapping[str, Any]
    signature: Signature
    artifacts: Sequence[PackedArtifact]
    preprocess: Mapping[str, Any] | None = None
    documents: Mapping[str, bytes] = field(default_factory=dict)
    golden: Mapping[str, Any] = field(default_factory=dict)
    statistics: Mapping[str, Any] | None = None
    lineage: Mapping[str, Any] | None = None
    licence: str | None = None
    clients: Sequence[str] = ()


def check_destination(out: Path) -> None:
    """Refuses a place where a bundle would destroy something else.

    Raises:
        UsageError: ``out`` is a file that is no ``.zip``, or a directory that holds something but
            no bundle.
        StorageError: its parent can't be written.
    """
    if out.is_symlink():
        raise UsageError(f"{out} is a link", hint="name the place itself")
    if out.is_dir():
        if any(out.iterdir()) and not (out / MANIFEST).is_file():
            raise UsageError(
                f"{out} holds files and is no bundle; it is left alone",
                hint="choose an empty or a new directory",
            )
    elif out.exists() and out.suffix != ".zip":
        raise UsageError(f"{out} is a file", hint="name a directory or a .zip")
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.absolute().parent):
            pass
    except OSError as error:
        raise storage_error(out.absolute().parent, error) from error


def pack(content: BundleContent, out: Path) -> Path:
    """Writes the bundle aside and moves it into place.

    Equal content gives equal bytes. A bundle that was at ``out`` before is replaced at the end, in
    one step; until then, and if anything fails, it stays as it was.

    Args:
        content: what to pack.
        out: a directory, or a file ending in ``.zip``.

    Raises:
        UsageError: see `check_destination`; or there is no artifact.
        StorageError: no space or no permission.
    """
    if not content.artifacts:
        raise UsageError("a bundle needs at least one artifact")
    out = out.absolute()
    check_destination(out)
    try:
        with aside(out.parent) as folder:
            built = folder / "bundle"
            built.mkdir()
            _fill(content, built)
            _put(built, out, folder)
    except OSError as error:
        raise storage_error(out.parent, error) from error
    return out


def rewrite(bundle: Bundle, changes: Mapping[str, Any], out: Path) -> Path:
    """Writes a bundle again with some fields of its manifest changed, and no byte of any file.

    Args:
        bundle: an open one, which stays as it is.
        changes: fields of the manifest.
        out: another place: a directory, or a file ending in ``.zip``.

    Raises:
        UsageError: see `check_destination`; or ``out`` is where the bundle lies.
        TrustError: the manifest would break a rule, or a file changed since it was opened.
        StorageError: no space or no permission.
    """
    out = out.absolute()
    if out.resolve() == bundle.path.absolute().resolve():
        raise UsageError(
            f"{out} is the bundle itself", hint="it stays as it is: name another place"
        )
    check_destination(out)
    manifest = canonical_json({**bundle.manifest, **changes})
    parse_manifest(manifest)
    names = sorted({entry["path"] for entry in bundle.manifest["files"]})
    try:
        with aside(out.parent) as folder:
            built = folder / "bundle"
            _write({name: bundle.read(name) for name in names}, built)
            (built / MANIFEST).write_bytes(manifest)
            _put(built, out, folder)
    except OSError as error:
        raise storage_error(out.parent, error) from error
    return out


def write_clients(manifest: Mapping[str, Any], out: Path, languages: Sequence[str]) -> list[str]:
    """Writes the clients of a bundle that is there already into a folder of their own.

    Args:
        manifest: the bundle's.
        out: a directory that is empty or not there yet.
        languages: of `edgekit.clients.LANGUAGES`.

    Returns:
        The files' names within ``out``.

    Raises:
        UsageError: ``out`` holds something, or there is no such language.
        StorageError: no space or no permission.
    """
    out = out.absolute()
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise UsageError(f"{out} is there already", hint="choose an empty or a new directory")
    found = clients.render(manifest, languages)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with aside(out.parent) as folder:
            built = folder / "clients"
            _write(found, built)
            swap(built, out, folder / "previous")
    except OSError as error:
        raise storage_error(out.parent, error) from error
    return list(found)


def _write(found: Mapping[str, bytes], root: Path) -> None:
    for name, data in found.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def _clients(
    manifest: Mapping[str, Any], languages: Sequence[str], root: Path
) -> list[dict[str, Any]]:
    """Writes the clients into a bundle, and gives their entries in the manifest's list of files."""
    found = clients.render(manifest, languages)
    _write(found, root / clients.FOLDER)
    return [
        {
            "path": f"{clients.FOLDER}/{name}",
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        for name, data in found.items()
    ]


def _fill(content: BundleContent, root: Path) -> None:
    artifacts = [_place(item, root, content.signature) for item in content.artifacts]
    for name, data in content.documents.items():
        (root / name).write_bytes(data)
    files = [
        {"path": p.relative_to(root).as_posix(), "bytes": p.stat().st_size, "sha256": sha256_of(p)}
        for p in sorted(root.rglob("*"))
        if p.is_file()
    ]
    hashes = {str(f["path"]): str(f["sha256"]) for f in files}
    golden = _golden(content.golden, hashes) if "golden.npz" in content.documents else None
    labels = next((list(s.labels) for s in content.signature.outputs if s.labels), None)
    manifest = {
        "schema": SCHEMA,
        "name": content.name,
        "version": content.version,
        "edgekit": edgekit.__version__,
        "model": dict(content.model),
        "signature": content.signature.to_json(),
        "labels": labels,
        "preprocess": None if content.preprocess is None else dict(content.preprocess),
        "golden": golden,
        "reference_statistics": None if content.statistics is None else dict(content.statistics),
        "policy": None,
        "plan": "plan.json" if "plan.json" in content.documents else None,
        "artifacts": artifacts,
        "files": files,
        "lineage": None if content.lineage is None else dict(content.lineage),
        "licence": content.licence,
    }
    if content.clients:
        manifest["files"] = [*files, *_clients(manifest, content.clients, root)]
    (root / MANIFEST).write_bytes(canonical_json(manifest))


def _golden(about: Mapping[str, Any], hashes: Mapping[str, str]) -> dict[str, Any]:
    def entry(name: str, n: int) -> dict[str, Any]:
        return {"path": name, "sha256": hashes[name], "n": n}

    parts: dict[str, Any] = {k: v for k, v in about.items() if k == "source"}
    for kind in ("pictures", "sounds", *BORDERS):
        if kind in about:
            parts[kind] = entry(f"golden-{kind}.npz", about[kind]) if about[kind] else None
    return {**entry("golden.npz", about["n"]), **parts}


def _place(item: PackedArtifact, root: Path, model: Signature) -> dict[str, Any]:
    artifact = item.artifact
    folder = root / "artifacts" / artifact.id
    folder.mkdir(parents=True)
    files = []
    for record in artifact.files:
        source = artifact.path.parent / record.path
        (folder / record.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / record.path)
        inside = f"artifacts/{artifact.id}/{record.path}"
        files.append({"path": inside, "bytes": record.bytes, "sha256": record.sha256})
    pairs = [(str(f["path"]), str(f["sha256"])) for f in files]
    return {
        "id": artifact.id,
        "target": artifact.target,
        "delegate": artifact.delegate,
        "scheme": artifact.scheme,
        "io": artifact.io,
        "variant": artifact.variant,
        "devices": list(item.devices),
        "path": f"artifacts/{artifact.id}/{artifact.path.name}",
        "bytes": artifact.bytes,
        "sha256": files[0]["sha256"] if len(files) == 1 else directory_digest(pairs),
        "files": files,
        "requires": dict(item.requires),
        "verification": item.verification,
        "evidence": dict(item.evidence),
        **_border(item.border, model),
    }


def _border(border: PictureBorder | None, model: Signature) -> dict[str, Any]:
    if border is None:
        return {}
    return {"border": border.to_json(), "signature": border.signature(model).to_json()}


def _zip(root: Path, out: Path) -> None:
    """Stored, sorted, with fixed times and modes: equal content, equal bytes."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                info = zipfile.ZipInfo(path.relative_to(root).as_posix(), _EPOCH)
                info.external_attr = 0o644 << 16
                archive.writestr(info, path.read_bytes())


def _put(built: Path, out: Path, folder: Path) -> None:
    """Puts a finished directory in its place, as a zip where that is asked for."""
    if out.suffix == ".zip":
        _zip(built, folder / "bundle.zip")
        (folder / "bundle.zip").replace(out)
    else:
        swap(built, out, folder / "previous")


def swap(built: Path, out: Path, previous: Path) -> None:
    """Renames ``built`` to ``out``; what was there goes to ``previous``, or stays if that fails."""
    if not out.exists():
        built.rename(out)
        return
    out.rename(previous)
    try:
        built.rename(out)
    except OSError:
        previous.rename(out)
        raise


@contextlib.contextmanager
def aside(parent: Path) -> Iterator[Path]:
    """A directory beside the destination, on the same file system, so that moving is a rename."""
    folder = Path(tempfile.mkdtemp(prefix=".edgekit-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
