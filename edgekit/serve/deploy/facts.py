"""What the exports say of a bundle, and what a user may ask of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgekit.errors import UnsupportedError, UsageError
from edgekit.runtime.bundle import Bundle, BundleArtifact
from edgekit.serve.choice import TARGETS, choose
from edgekit.serve.teacher import Teacher, teacher_of

__all__ = ["Facts", "Made", "Wishes", "facts_of"]

_PORTS = (1, 65_535)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9.:-]{1,253}")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}")
_URI = re.compile(r"[a-z][a-z0-9+.-]*://[^\s\"'\\\x00-\x1f]{1,1000}")


@dataclass(frozen=True)
class Wishes:
    """What a user may ask of an export.

    Attributes:
        name: under which the model is served; None for the bundle's own.
        artifact: id, or None to choose.
        port: of our own server.
        host: that Ray's proxy and the unit of systemd listen on.
        image: of a container that holds edgekit.
        storage_uri: where KServe finds the bundle; None where the image holds it.
        min_replicas, max_replicas: the same for a fixed number.

    Raises:
        UsageError: one of them is none.
    """

    name: str | None = None
    artifact: str | None = None
    port: int = 8000
    host: str = "127.0.0.1"
    image: str | None = None
    storage_uri: str | None = None
    min_replicas: int = 1
    max_replicas: int = 1

    def __post_init__(self) -> None:
        if not _PORTS[0] <= self.port <= _PORTS[1]:
            raise UsageError(f"a port is a number from {_PORTS[0]} to {_PORTS[1]}")
        if not _HOST.fullmatch(self.host):
            raise UsageError(f"{self.host!r} is no address to listen on")
        if self.image is not None and not _IMAGE.fullmatch(self.image):
            raise UsageError(f"{self.image!r} names no image", hint="e.g. registry/edgekit:1")
        if self.storage_uri is not None and not _URI.fullmatch(self.storage_uri):
            raise UsageError(f"{self.storage_uri!r} is no URI", hint="e.g. s3://models/scores")
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise UsageError(
                f"at least {self.min_replicas} replicas are more than at most {self.max_replicas}"
            )


@dataclass(frozen=True)
class Made:
    """An export.

    Attributes:
        files: by name: their bytes, or a file or folder that is copied.
        notes: what is to be done with it, and what was not tried here; one line each.
    """

    files: Mapping[str, bytes | Path]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """A bundle, as the exports see it.

    Attributes:
        path: absolute.
        name: under which the model is served.
        renamed: whether that is another than the bundle's own.
        version, digest: the bundle's; the version on one line.
        artifact: what is to be served.
        contents: of the artifact's files, by name beside its main file.
        main: name of the main file.
        labels: class names, or none.
        pictures: whether the bundle says how pictures are preprocessed.
        teacher: that the bundle names, or None.
    """

    path: Path
    name: str
    renamed: bool
    version: str
    digest: str
    artifact: BundleArtifact
    contents: Mapping[str, bytes]
    main: str
    labels: tuple[str, ...]
    pictures: bool
    teacher: Teacher | None

    @property
    def bundles(self) -> tuple[Path, ...]:
        """The bundle and that of its teacher."""
        return (self.path,) if self.teacher is None else (self.path, self.teacher.path)

    @property
    def stored(self) -> str:
        """The bundle's own name among the files of an export: one that needs no quotes anywhere."""
        return f"{self.label}{'.zip' if self.path.is_file() else ''}"

    def copies(self, folder: str) -> dict[str, bytes | Path]:
        """The bundle, and its teacher's under the name that it is known by."""
        found: dict[str, bytes | Path] = {f"{folder}/{self.stored}": self.path}
        if self.teacher is not None:
            found[f"{folder}/{self.teacher.path.name}"] = self.teacher.path
        return found

    def argument(self, path: str) -> str:
        """How `edgekit serve` is told of the bundle, where it lies there."""
        return f"{self.name}={path}" if self.renamed else path

    @property
    def label(self) -> str:
        """The name as Kubernetes, Docker and systemd take it: a DNS label."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:53].strip("-") or "model"

    def of_server(self) -> None:
        """Refuses artifacts that Triton and OpenVINO Model Server do not run.

        Raises:
            UnsupportedError: its runtime is none of theirs.
        """
        if self.artifact.target not in TARGETS:
            raise UnsupportedError(
                f"artifact {self.artifact.id!r} is for {self.artifact.target}, which these servers "
                "do not run",
                hint=f"name one for {' or '.join(TARGETS)} with --artifact",
            )

    def as_model(self) -> dict[str, bytes]:
        """The artifact's files under the names that servers look for: ``model.onnx``,
        ``model.xml`` and ``model.bin``; others keep theirs, which the model names."""
        stem = PurePosixPath(self.main).stem
        twins = (".xml", ".bin") if self.artifact.target == "openvino" else (".onnx",)
        found = {}
        for name, content in self.contents.items():
            path = PurePosixPath(name)
            known = path.stem == stem and path.suffix in twins
            found[f"model{path.suffix}" if known else name] = content
        return found


def facts_of(bundle: Bundle, path: Path, wishes: Wishes) -> Facts:
    """Reads them.

    Raises:
        UsageError: there is no such artifact, or the name is none for a server.
        UnsupportedError: none is for a server, or runs on this processor.
        BadData, TrustError: a file, or the teacher that is named, is not what the manifest says.
    """
    name = bundle.name if wishes.name is None else wishes.name
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a model on a server: letters, digits, '.', '_' and '-'",
            hint="give another: NAME=BUNDLE",
        )
    artifact = choose(bundle, wishes.artifact)
    folder = PurePosixPath(artifact.path).parent
    contents = {}
    for entry in artifact.files:
        file = PurePosixPath(entry.path)
        beside = file.relative_to(folder) if file.is_relative_to(folder) else file
        contents[beside.as_posix()] = bundle.read(entry.path)
    return Facts(
        path.absolute(),
        name,
        name != bundle.name,
        " ".join(bundle.version.split()),
        bundle.digest,
        artifact,
        contents,
        PurePosixPath(artifact.path).name,
        bundle.labels,
        _takes_pictures(bundle),
        teacher_of(path),
    )


def _takes_pictures(bundle: Bundle) -> bool:
    rule = bundle.manifest.get("preprocess")
    return isinstance(rule, dict) and rule.get("kind") == "image"
