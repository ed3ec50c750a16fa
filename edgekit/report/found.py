"""What a report is made of: the documents of a run, of one export, or of a bundle.

A run's files are held against the hashes in its ``run.json`` as they are read, a bundle's against
its manifest: a report never shows figures out of a file that was changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from edgekit import schemas
from edgekit.artifact import sha256_of
from edgekit.errors import BadData, StorageError, TrustError, UsageError
from edgekit.report.weights import Weights, read_weights
from edgekit.runtime.bundle import Bundle

__all__ = ["Document", "Source", "find"]

RUN, EXPORT, BUNDLE, PLAN = (f"edgekit.{kind}/1" for kind in ("run", "export", "bundle", "plan"))
READ: Final = (
    EXPORT,
    BUNDLE,
    "edgekit.quantize/1",
    PLAN,
    "edgekit.evidence/1",
)
"""Schemas of the documents that a page shows, found among a stage's files and small results."""

_LARGEST: Final = 64 * 2**20
_LARGEST_PICTURE: Final = 256 * 2**10
_PNG: Final = b"\x89PNG\r\n\x1a\n"

Reader = Callable[[str], bytes]


@dataclass(frozen=True)
class Document:
    """One document, valid by its schema.

    Attributes:
        schema: the value of its ``schema`` field.
        data: the whole of it.
        origin: where it was found, for people.
        stage: the stage of the run that made it; None outside of a run.
        read: gives a file that lies beside it, by its name from there.
    """

    schema: str
    data: Mapping[str, Any]
    origin: str
    stage: str | None
    read: Reader = field(repr=False)

    def picture(self, name: str) -> bytes | None:
        """A PNG beside it; None for a file that is absent, too large, or no PNG."""
        try:
            data = self.read(name)
        except BadData:
            return None
        return data if data.startswith(_PNG) and len(data) <= _LARGEST_PICTURE else None


@dataclass(frozen=True)
class Source:
    """One argument of `edgekit report`, read.

    Attributes:
        path: as it was given.
        kind: ``run``, ``export`` or ``bundle``.
        title: what it is called on the page.
        run: the ``edgekit.run/1`` document, of a run.
        documents: what was found, in the order of stages.
        missing: files that the run names and that are not there.
        weights: of the run's ``.safetensors`` files, their layers.
    """

    path: Path
    kind: str
    title: str
    run: Mapping[str, Any] | None
    documents: tuple[Document, ...]
    missing: tuple[str, ...] = ()
    weights: tuple[Weights, ...] = ()

    def of(self, schema: str) -> list[Document]:
        """Its documents of one kind."""
        return [d for d in self.documents if d.schema == schema]


def find(paths: Sequence[Path]) -> list[Source]:
    """Reads what each path is: a run's folder, an export's document, a bundle's folder or zip.

    Titles are told apart by numbers where two are the same.

    Raises:
        BadData: it is none of these, or a document does not keep to its schema.
        TrustError: a file is not what ``run.json`` or the manifest says.
        MissingDependency: the ``jsonschema`` package is not installed.
    """
    found = [_source(Path(path)) for path in paths]
    counts: dict[str, int] = {}
    named = []
    for source in found:
        counts[source.title] = n = counts.get(source.title, 0) + 1
        title = source.title if n == 1 else f"{source.title} ({n})"
        named.append(Source(**{**vars(source), "title": title}))
    return named


def _source(path: Path) -> Source:
    if path.is_dir():
        if (path / "run.json").is_file():
            return _run(path)
        if (path / "manifest.json").is_file():
            return _bundle(path)
        raise BadData(
            f"{path} is no run and no bundle: it holds neither run.json nor manifest.json",
            hint="name the folder that `edgekit run -o` or `edgekit export -o` wrote",
        )
    if not path.exists():
        raise UsageError(f"{path} does not exist", hint="name a run, an export or a bundle")
    if path.suffix == ".zip":
        return _bundle(path)
    document = _parsed(_bytes(path), str(path))
    if document.get("schema") == EXPORT:
        schemas.validate(document)
        found = Document(EXPORT, document, path.name, None, _beside(path.parent))
        return Source(path, "export", _title(path, document["model"]), None, (found,))
    if document.get("schema") == RUN:
        return _run(path.parent)
    raise BadData(
        f"{path} is a document of schema {document.get('schema')!r}; a report is made of a run, "
        f"an {EXPORT} document or a bundle",
        hint="`edgekit export --json` and `edgekit run -o DIR` write what it takes",
    )


def _title(path: Path, name: str) -> str:
    return f"{name} ({path.stem})" if path.stem not in ("", name) else name


# -- a bundle -------------------------------------------------------------------------------------


def _bundle(path: Path) -> Source:
    with Bundle.open(path) as bundle:
        title = f"{bundle.name} {bundle.version}"
        return Source(path, "bundle", title, None, tuple(_bundled(bundle, path.name, None)))


def _bundled(bundle: Bundle, origin: str, stage: str | None) -> Iterator[Document]:
    """A bundle's manifest and plans; its other files are the devices' business."""
    manifest = dict(bundle.manifest)
    schemas.validate(manifest)
    yield Document(BUNDLE, manifest, origin, stage, _nothing)
    for name in sorted(entry["path"] for entry in manifest["files"]):
        if name.endswith(".json") and "/" not in name:
            data = _parsed(bundle.read(name), f"{origin}/{name}", strict=False)
            if _shown(data):
                schemas.validate(data)
                yield Document(data["schema"], data, f"{origin}/{name}", stage, _nothing)


def _shown(data: Mapping[str, Any]) -> bool:
    """Whether a page shows something of a document; of a plan, only its sensitivity."""
    schema = data.get("schema")
    return schema in READ and (schema != PLAN or bool(data.get("sensitivity")))


def _nothing(name: str) -> bytes:
    raise BadData(f"there is no {name}")


# -- a run ----------------------------------------------------------------------------------------


def _run(path: Path) -> Source:
    document = _parsed(_bytes(path / "run.json"), str(path / "run.json"))
    if document.get("schema") != RUN:
        raise BadData(f"{path / 'run.json'} is no {RUN} document")
    schemas.validate(document)
    documents: list[Document] = []
    missing: list[str] = []
    weights: list[Weights] = []
    for stage in document["stages"]:
        files = _Files(path, stage)
        documents += _small(stage)
        for name in files.names:
            if not name.endswith((".json", ".safetensors")):
                continue
            try:
                if name.endswith(".safetensors"):
                    weights.append(files.weights(name))
                    continue
                data = _parsed(files.read(name), f"{stage['name']}/{name}", strict=False)
            except BadData as error:
                missing.append(error.message)
                continue
            if _shown(data):
                schemas.validate(data)
                origin = f"{stage['name']}/{name}"
                read = files.beside(name)
                documents.append(Document(data["schema"], data, origin, stage["name"], read))
        missing += [f"{stage['name']}/{n} is not there" for n in files.absent()]
    place = path.resolve().name
    title = f"{document['recipe']['name']} ({place})"
    found = tuple(_distinct(documents))
    lacks = tuple(dict.fromkeys(missing))
    return Source(path, "run", title, document, found, lacks, tuple(weights))


def _small(stage: Mapping[str, Any]) -> Iterator[Document]:
    """Documents that a stage returned and that ``run.json`` itself holds."""
    value = stage["value"]
    candidates = [value, *value.values()] if isinstance(value, dict) else [value]
    for found in candidates:
        if isinstance(found, dict) and _shown(found):
            schemas.validate(found)
            origin = f"what {stage['name']} returned"
            yield Document(found["schema"], found, origin, stage["name"], _nothing)


def _distinct(documents: Sequence[Document]) -> Iterator[Document]:
    """Each document once: an export may be returned, and lie in a file too."""
    seen: set[str] = set()
    for document in documents:
        key = hashlib.sha256(json.dumps(document.data, sort_keys=True).encode()).hexdigest()
        if key not in seen:
            seen.add(key)
            yield document


class _Files:
    """A stage's files, read only where they are what ``run.json`` says."""

    def __init__(self, root: Path, stage: Mapping[str, Any]) -> None:
        self._stage = stage["name"]
        self._folder = root / _plain(self._stage)
        self._hashes = {entry["path"]: entry["sha256"] for entry in stage["files"]}
        self.names = sorted(self._hashes)

    def absent(self) -> list[str]:
        return [n for n in self.names if not (self._folder / _plain(n)).is_file()]

    def read(self, name: str) -> bytes:
        """Raises BadData where it is absent or too large, TrustError where it was changed."""
        path = self._existing(name)
        data = _bytes(path)
        self._check(name, path, hashlib.sha256(data).hexdigest())
        return data

    def weights(self, name: str) -> Weights:
        """The layers of a file that may be large; raises as `read`."""
        path = self._existing(name)
        self._check(name, path, sha256_of(path))
        return read_weights(path, f"{self._stage}/{name}")

    def _existing(self, name: str) -> Path:
        path = self._folder / _plain(name)
        if name not in self._hashes:
            raise BadData(f"{self._stage}/{name} is no file of that stage")
        if not path.is_file():
            raise BadData(f"{self._stage}/{name} is not there")
        return path

    def _check(self, name: str, path: Path, digest: str) -> None:
        if digest != self._hashes[name]:
            raise TrustError(
                f"{path} is not the file that the run made: its SHA-256 is not the one in run.json",
                hint="run the recipe again; what has not changed is taken from its cache",
            )

    def beside(self, name: str) -> Reader:
        """Reads by names from the folder in which file ``name`` lies."""
        parent = PurePosixPath(name).parent
        return lambda other: self.read((parent / other).as_posix())


def _plain(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise TrustError(f"run.json names the file {name!r}, which leads out of the run's folder")
    return name


# -- files ----------------------------------------------------------------------------------------


def _beside(folder: Path) -> Reader:
    return lambda name: _bytes(folder / _plain(name))


def _bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise BadData(f"{path} has {size} bytes; a report reads {_LARGEST} at most")
        return path.read_bytes()
    except PermissionError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror or error}") from error


def _parsed(data: bytes, where: str, *, strict: bool = True) -> dict[str, Any]:
    """A JSON object; where not ``strict``, anything else is an empty one: a stage may write it."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        if strict:
            raise BadData(f"{where} is no JSON: {error}") from error
        return {}
    if isinstance(found, dict):
        return found
    if strict:
        raise BadData(f"{where} is no JSON object")
    return {}
