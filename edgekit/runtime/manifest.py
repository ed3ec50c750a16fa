"""The rules of a bundle's manifest, pure: no file is touched here.

Rules:
1. The bytes are the canonical form of one JSON object (`canonical_json`); so no key stands twice,
   no number is NaN, and one manifest has one hash.
2. ``schema`` is ``edgekit.bundle/1``.
3. Every file is listed with its size and SHA-256, under a name that `check_name` accepts; no two
   names are equal once case is ignored, and no name is another's directory.
4. A file listed in more than one place (``files``, an artifact, ``golden``) has one size and hash.
5. An artifact's ``sha256`` is its file's hash, or, where it consists of several files, their
   `directory_digest`; its ``bytes`` is the sum.
6. An artifact's signature is the model's. Under the ios of `edgekit.names.BORDERS` alone it has a
   picture border, and its picture input is then the border's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.errors import BadData, TrustError
from edgekit.names import BORDERS, DELEGATES, SCHEMES
from edgekit.runtime.border import PictureBorder
from edgekit.signature import Signature

__all__ = [
    "MANIFEST",
    "SCHEMA",
    "BundleArtifact",
    "FileEntry",
    "Manifest",
    "canonical_json",
    "check_name",
    "directory_digest",
    "parse_manifest",
]

SCHEMA = "edgekit.bundle/1"
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_FILES = 10_000
MAX_NAME = 240

_PART = re.compile(r"[A-Za-z0-9_@+=,.-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """One file of a bundle: its name inside the bundle, its size in bytes, its SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class BundleArtifact:
    """One artifact as the manifest states it.

    Attributes:
        id: unique in the bundle.
        target, delegate, scheme, io, variant: what it was made for; ``io`` and ``variant`` may
            be None.
        signature: what it takes and gives: the model's own, but for the picture with a border.
        border: what it does to the picture, under an io of `edgekit.names.BORDERS`; else None.
        devices: ids of the devices it was made for; empty means any.
        path: the main file's name in the bundle, or of the folder that the artifact is.
        bytes: the size of all its files together.
        sha256: see rule 5 of this module.
        files: every file it consists of, the main one included.
        requires: run-time requirements, e.g. ``{"runtime": .., "min_version": ..}``.
        verification: how it was verified, out of `edgekit.names.VERIFICATIONS`.
        evidence: what verify, placement and bench found.
    """

    id: str
    target: str
    delegate: str | None
    scheme: str
    io: str | None
    variant: str | None
    signature: Signature
    border: PictureBorder | None
    devices: tuple[str, ...]
    path: str
    bytes: int
    sha256: str
    files: tuple[FileEntry, ...]
    requires: Mapping[str, Any]
    verification: str
    evidence: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """A manifest that obeys the rules; ``data`` is the whole JSON object."""

    data: Mapping[str, Any]
    sha256: str
    signature: Signature
    artifacts: tuple[BundleArtifact, ...]
    files: Mapping[str, FileEntry]


def canonical_json(obj: Any) -> bytes:
    """The one spelling of a JSON document: UTF-8, sorted keys, no spaces, newline at the end.

    Raises:
        BadData: it holds NaN, infinity, or something that JSON cannot hold.
    """
    try:
        text = json.dumps(
            obj, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
        return (text + "\n").encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise BadData(f"not JSON: {error}") from error


def directory_digest(files: Iterable[tuple[str, str]]) -> str:
    """The one hash of several files: SHA-256 over ``path NUL sha256 LF`` lines, sorted by path.

    Args:
        files: pairs of a path (POSIX, relative to the bundle) and its file's SHA-256 in hex.

    Raises:
        BadData: a path stands twice, or holds NUL or a line feed.
    """
    lines = sorted(files)
    paths = [path for path, _ in lines]
    if len(set(paths)) != len(paths) or any("\0" in p or "\n" in p for p in paths):
        raise BadData("a directory digest takes each path once, without NUL and line feed")
    text = "".join(f"{path}\0{sha256}\n" for path, sha256 in lines)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def check_name(name: str) -> str:
    """Accepts a file name that means the same file on every system, and nothing outside.

    Relative, ``/`` between the parts, parts out of ``A-Z a-z 0-9 _ @ + = , . -`` which are neither
    ``.`` nor ``..`` and do not start with ``-`` (an option to a tool) or end with ``.``.

    Raises:
        TrustError: any other name; so no absolute path, drive, backslash, NUL, percent sign, and
            no letter that Unicode can spell in two ways.
    """
    parts = name.split("/")
    fine = len(name) <= MAX_NAME and all(
        _PART.fullmatch(part) and not part.startswith("-") and not part.endswith(".")
        for part in parts
    )
    if not fine:
        raise TrustError(
            f"the bundle names a file {name[:MAX_NAME]!r}, which is not allowed",
            hint="allowed: relative names of letters, digits and _ @ + = , . - with / between",
        )
    return name


def parse_manifest(data: bytes) -> Manifest:
    """Reads a manifest and enforces the rules above.

    Raises:
        TrustError: a rule is broken; the message says which and where.
    """
    obj = _canonical_object(data)
    if obj.get("schema") != SCHEMA:
        raise TrustError(
            f"the manifest's schema is {str(obj.get('schema'))[:80]!r}, not {SCHEMA}",
            hint="update edgekit if the bundle is newer",
        )
    for key in ("name", "version"):
        _take(obj, key, str, "the manifest")
    labels = _take(obj, "labels", list, "the manifest") if obj.get("labels") is not None else []
    if not all(isinstance(label, str) for label in labels):
        raise TrustError("the manifest's labels are not all text")
    signature = _signature(_take(obj, "signature", dict, "the manifest"))
    listed = _entries(obj, "files", "the manifest")
    stated = _take(obj, "artifacts", list, "the manifest")
    artifacts = tuple(_artifact(a, listed, signature) for a in stated)
    ids = [artifact.id for artifact in artifacts]
    if len(set(ids)) != len(ids):
        raise TrustError(f"the manifest has two artifacts of one id: {', '.join(sorted(ids))}")
    for artifact in artifacts:
        listed.extend(artifact.files)
    files = _union(listed)
    _check_golden(obj, files)
    return Manifest(obj, hashlib.sha256(data).hexdigest(), signature, artifacts, files)


def _canonical_object(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_MANIFEST_BYTES:
        raise TrustError(f"the manifest is {len(data)} bytes, more than {MAX_MANIFEST_BYTES}")
    try:
        obj = json.loads(data.decode("utf-8"))
        canonical = canonical_json(obj)
    except (ValueError, RecursionError, BadData) as error:
        raise TrustError(f"the manifest is not JSON: {str(error)[:200]}") from error
    if not isinstance(obj, dict):
        raise TrustError("the manifest is not a JSON object")
    if canonical != data:
        raise TrustError(
            "the manifest is not in canonical form: a key twice, or edited by hand",
            hint="a bundle is immutable; build a new one",
        )
    return obj


def _signature(obj: dict[str, Any]) -> Signature:
    try:
        signature = Signature.from_json(obj)
        sides = (obj["inputs"], signature.inputs), (obj["outputs"], signature.outputs)
        for stated, read in sides:
            for tensor, spec in zip(stated, read, strict=True):
                texts = (spec.name, spec.layout, *spec.labels)
                if not all(isinstance(text, str) for text in texts):
                    raise BadData(
                        f"tensor {spec.name!r} has a name, layout or label that is no text"
                    )
                whole = list(spec.shape) == tensor["shape"] and min(spec.shape, default=1) > 0
                if not whole or not isinstance(spec.high, int | None):
                    raise BadData(f"tensor {spec.name!r}: its shape or its limit is none")
    except (BadData, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TrustError(f"the manifest's signature is not one: {error!r}") from error
    return signature


def _take(obj: Mapping[str, Any], key: str, kind: type, where: str, default: Any = None) -> Any:
    value = obj.get(key, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TrustError(f"{where}: {key!r} is {str(value)[:80]!r}, not {kind.__name__}")
    return value


def _optional_text(obj: Mapping[str, Any], key: str, where: str) -> str | None:
    return None if obj.get(key) is None else str(_take(obj, key, str, where))


def _entry(obj: Any, where: str) -> FileEntry:
    if not isinstance(obj, dict):
        raise TrustError(f"{where}: a file entry is {str(obj)[:80]!r}, not an object")
    path = check_name(_take(obj, "path", str, where))
    size = _take(obj, "bytes", int, f"{where}, {path}")
    digest = _take(obj, "sha256", str, f"{where}, {path}")
    if size < 0 or not _SHA256.fullmatch(digest):
        raise TrustError(f"{where}, {path}: its size or hash is not one")
    return FileEntry(path, size, digest)


def _entries(obj: Mapping[str, Any], key: str, where: str) -> list[FileEntry]:
    return [_entry(item, where) for item in _take(obj, key, list, where, [])]


def _artifact(obj: Any, listed: Iterable[FileEntry], model: Signature) -> BundleArtifact:
    where = "an artifact"
    if not isinstance(obj, dict):
        raise TrustError(f"{where} is {str(obj)[:80]!r}, not an object")
    where = f"artifact {_take(obj, 'id', str, where)!r}"
    path = check_name(_take(obj, "path", str, where))
    size, digest = _take(obj, "bytes", int, where), _take(obj, "sha256", str, where)
    # An artifact that lists no files of its own is the file, or the folder, at its path.
    files = _entries(obj, "files", where) or [f for f in listed if _within(f.path, path)]
    if not any(_within(f.path, path) for f in files):
        raise TrustError(f"{where}: its path {path} is none of its files")
    whole = files[0].sha256 if len(files) == 1 else directory_digest(_pairs(files, where))
    if digest != whole or size != sum(f.bytes for f in files):
        raise TrustError(f"{where}: its size or hash is not that of its files")
    scheme = _take(obj, "scheme", str, where)
    if scheme not in SCHEMES:
        raise TrustError(f"{where}: {scheme[:80]!r} is no scheme; known: {', '.join(SCHEMES)}")
    target, delegate = _take(obj, "target", str, where), _optional_text(obj, "delegate", where)
    known = DELEGATES.get(target, ())
    if known and delegate not in (None, *known):
        raise TrustError(
            f"{where}: {str(delegate)[:80]!r} is no delegate of {target}; known: {', '.join(known)}"
        )
    devices = _take(obj, "devices", list, where, [])
    evidence = _take(obj, "evidence", dict, where, {})
    io = _optional_text(obj, "io", where)
    signature, border = _taken(obj, io, model, where)
    return BundleArtifact(
        id=obj["id"],
        target=target,
        delegate=delegate,
        scheme=scheme,
        io=io,
        variant=_optional_text(obj, "variant", where),
        signature=signature,
        border=border,
        devices=tuple(str(device) for device in devices),
        path=path,
        bytes=size,
        sha256=digest,
        files=tuple(files),
        requires=_take(obj, "requires", dict, where, {}),
        verification=_take(obj, "verification", str, where, evidence.get("verification", "none")),
        evidence=evidence,
    )


def _taken(
    obj: Mapping[str, Any], io: str | None, model: Signature, where: str
) -> tuple[Signature, PictureBorder | None]:
    """What an artifact takes and gives (rule 6)."""
    stated, border = obj.get("signature"), obj.get("border")
    if (io in BORDERS) != (border is not None):
        raise TrustError(
            f"{where}: a picture border goes with io {' or '.join(BORDERS)}, and with no other"
        )
    own = model if stated is None else _signature(_take(obj, "signature", dict, where))
    if border is None:
        if own != model:
            raise TrustError(f"{where}: its signature is not the model's, and it has no border")
        return model, None
    try:
        read = PictureBorder.from_json(_take(obj, "border", dict, where), str(io))
    except BadData as error:
        raise TrustError(f"{where}: {error.message}") from error
    if own != read.signature(model) or read.input not in {s.name for s in model.inputs}:
        raise TrustError(f"{where}: its signature is not the model's with that border before it")
    return own, read


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(path + "/")


def _pairs(files: Iterable[FileEntry], where: str) -> list[tuple[str, str]]:
    pairs = [(f.path, f.sha256) for f in files]
    if len({path for path, _ in pairs}) != len(pairs):
        raise TrustError(f"{where}: one file is listed twice")
    return pairs


def _union(listed: Iterable[FileEntry]) -> dict[str, FileEntry]:
    """All files by name, checked against each other (rules 3 and 4)."""
    files: dict[str, FileEntry] = {}
    folded: dict[str, str] = {}
    for entry in listed:
        if files.setdefault(entry.path, entry) != entry:
            raise TrustError(f"{entry.path} is listed twice, with different sizes or hashes")
        twin = folded.setdefault(entry.path.casefold(), entry.path)
        if twin != entry.path:
            raise TrustError(f"{twin} and {entry.path} are one file where case does not count")
    if MANIFEST in folded:
        raise TrustError(f"the manifest lists itself, as {folded[MANIFEST]}")
    if len(files) > MAX_FILES:
        raise TrustError(f"the manifest lists {len(files)} files, more than {MAX_FILES}")
    for name in folded:
        parents = name.split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            if "/".join(parents[:depth]) in folded | {MANIFEST: MANIFEST}:
                raise TrustError(f"{folded[name]} lies inside another listed file")
    return files


def _check_golden(obj: Mapping[str, Any], files: Mapping[str, FileEntry]) -> None:
    golden = obj.get("golden")
    if golden is None:
        return
    if not isinstance(golden, dict):
        raise TrustError("the manifest's golden entry is not an object")
    parts = [
        golden,
        *(golden[k] for k in ("pictures", "sounds", *BORDERS) if golden.get(k) is not None),
    ]
    for part in parts:
        if not isinstance(part, dict):
            raise TrustError("golden: one of its entries is not an object")
        path = check_name(_take(part, "path", str, "golden"))
        if path not in files or files[path].sha256 != part.get("sha256"):
            raise TrustError(f"golden: {path} is not listed with that hash in the manifest's files")
