"""What the clients are made from: a bundle's manifest, read once into plain facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from edgekit.clients._escape import camel, identifier
from edgekit.names import BORDERS, FLOAT_IO, split_target, through_target
from edgekit.runtime.golden import GOLDEN_SQNR_DB, OTHER_SQNR_DB
from edgekit.runtime.preprocess import (
    AudioPreprocess,
    ImagePreprocess,
    Preprocess,
    TextPreprocess,
    preprocess_from_json,
)
from edgekit.signature import Signature, TensorSpec

__all__ = ["Facts", "Piece", "facts_of"]


@dataclass(frozen=True)
class Piece:
    """One artifact, as its clients name and load it.

    Attributes:
        id: the artifact's id in the bundle.
        target, scheme, io: what it is; ``io`` is ``float32`` where the manifest says nothing.
        module: a file name without its ending, unique among the clients.
        kind: a class name, unique among the clients.
        inputs: what the artifact takes; not the model's inputs where ``io`` is another.
        path: the main file, from the bundle's folder.
        files: path and SHA-256 of every file.
        requires: run-time requirements.
        limit_db: what golden vectors have to reach.
        entry: the manifest's own entry.
    """

    id: str
    target: str
    scheme: str
    io: str
    module: str
    kind: str
    inputs: tuple[TensorSpec, ...]
    path: str
    files: tuple[tuple[str, str], ...]
    requires: Mapping[str, Any]
    limit_db: float
    entry: Mapping[str, Any]

    @property
    def isa(self) -> tuple[str, ...]:
        """Instructions of which an architecture needs some, as the manifest has them."""
        return tuple(self.requires.get("isa") or ())

    @property
    def unusual(self) -> str | None:
        """The delegate, where it is not the one that its runtime's packages for computers have."""
        return split_target(through_target(self.target, self.entry.get("delegate")))[1]

    @property
    def file(self) -> str:
        """The main file's own name."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Facts:
    """A bundle.

    Attributes:
        name, version, edgekit: the bundle's, and the edgekit that packed it.
        signature: the model's.
        labels: class names, or none.
        preprocess: how raw data become the input, where that is known.
        golden: name and number of the golden vectors, where there are any.
        golden_of: names of those for artifacts with a picture border, by io.
        pictures, sounds: name of the pictures or recordings that they were made of.
        pieces: all artifacts.
        manifest: all of it.
    """

    name: str
    version: str
    edgekit: str
    signature: Signature
    labels: tuple[str, ...]
    preprocess: Preprocess | None
    golden: tuple[str, int] | None
    golden_of: Mapping[str, str]
    pictures: str | None
    sounds: str | None
    pieces: tuple[Piece, ...]
    manifest: Mapping[str, Any]

    @property
    def picture(self) -> ImagePreprocess | None:
        """The preprocessing of pictures, where the model takes a picture."""
        return self.preprocess if isinstance(self.preprocess, ImagePreprocess) else None

    @property
    def text(self) -> TextPreprocess | None:
        """The tokenizer, where the model takes a text."""
        return self.preprocess if isinstance(self.preprocess, TextPreprocess) else None

    @property
    def sound(self) -> AudioPreprocess | None:
        """The preprocessing of recordings, where the model takes one."""
        return self.preprocess if isinstance(self.preprocess, AudioPreprocess) else None

    @property
    def picture_input(self) -> TensorSpec | None:
        """The one input that has the shape of what the preprocessing makes of a picture."""
        return self._taking(self.picture)

    @property
    def sound_input(self) -> TensorSpec | None:
        """The one input that has the shape of what the preprocessing makes of a recording."""
        return self._taking(self.sound)

    def _taking(self, step: ImagePreprocess | AudioPreprocess | None) -> TensorSpec | None:
        fitting = [s for s in self.signature.inputs if step is not None and s.shape == step.shape]
        return fitting[0] if len(fitting) == 1 else None

    @property
    def golden_pictures(self) -> str | None:
        """The file of pictures, where a client can make an input of them."""
        return None if self.picture_input is None else self.pictures

    @property
    def golden_sounds(self) -> str | None:
        """The file of recordings, where a client can make an input of them."""
        return None if self.sound_input is None else self.sounds

    @property
    def scores(self) -> TensorSpec | None:
        """The output that has one number per label."""
        count = len(self.labels)
        fitting = [s for s in self.signature.outputs if count and s.shape[-1:] == (count,)]
        return fitting[0] if fitting else None


def _inputs(
    entry: Mapping[str, Any], io: str, signature: Signature, step: Preprocess | None
) -> tuple[TensorSpec, ...]:
    """What an artifact takes: its own signature, or what its border makes of the model's."""
    own = entry.get("signature")
    if own is not None:
        return Signature.from_json(own).inputs
    if io not in BORDERS or not isinstance(step, ImagePreprocess):
        return signature.inputs
    shape = (1, step.height, step.width, step.channels)
    return tuple(
        replace(spec, shape=shape, dtype=BORDERS[io], layout="NHWC")
        if spec.shape == step.shape
        else spec
        for spec in signature.inputs
    )


def _part(golden: Mapping[str, Any] | None, kind: str) -> str | None:
    """The path of a further file of golden vectors."""
    entry = None if golden is None else golden.get(kind)
    return None if entry is None else str(entry["path"])


def facts_of(manifest: Mapping[str, Any]) -> Facts:
    """The facts of a manifest that holds to its schema.

    Raises:
        BadData: its preprocessing or its signature is none.
    """
    stated = manifest.get("preprocess")
    step = None if stated is None else preprocess_from_json(stated)
    signature = Signature.from_json(manifest["signature"])
    golden = manifest.get("golden")
    return Facts(
        name=str(manifest["name"]),
        version=str(manifest["version"]),
        edgekit=str(manifest.get("edgekit") or ""),
        signature=signature,
        labels=tuple(manifest.get("labels") or ()),
        preprocess=step,
        golden=None if golden is None else (str(golden["path"]), int(golden.get("n", 1))),
        golden_of={io: name for io in BORDERS if (name := _part(golden, io)) is not None},
        pictures=_part(golden, "pictures"),
        sounds=_part(golden, "sounds"),
        pieces=_pieces(manifest, signature, step),
        manifest=manifest,
    )


def _pieces(
    manifest: Mapping[str, Any], signature: Signature, step: Preprocess | None
) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    for entry in manifest["artifacts"]:
        module, kind = identifier(entry["id"]), camel(entry["id"])
        # Ids that differ in punctuation or case alone would share a file.
        taken = {piece.module for piece in pieces} | _RESERVED
        number = 2
        while module in taken:
            module, kind = f"{identifier(entry['id'])}_{number}", f"{camel(entry['id'])}{number}"
            number += 1
        files = entry.get("files") or _listed(manifest, entry["path"])
        io = entry.get("io") or FLOAT_IO
        pieces.append(
            Piece(
                id=entry["id"],
                target=entry["target"],
                scheme=entry["scheme"],
                io=io,
                module=module,
                kind=kind,
                inputs=_inputs(entry, io, signature, step),
                path=entry["path"],
                files=tuple((file["path"], file["sha256"]) for file in files),
                requires=entry.get("requires") or {},
                limit_db=GOLDEN_SQNR_DB.get(entry["scheme"], OTHER_SQNR_DB),
                entry=entry,
            )
        )
    return tuple(pieces)


def _listed(manifest: Mapping[str, Any], path: str) -> list[Mapping[str, Any]]:
    """An artifact that lists no files of its own is the file, or the folder, at its path."""
    return [f for f in manifest["files"] if f["path"] == path or f["path"].startswith(f"{path}/")]


# Modules of the Python clients, and what they import: a client must not hide them.
_RESERVED = frozenset(
    (
        "client", "cpu", "features", "files", "labels", "logmel", "preprocess", "resample",
        "tokenizer", "wav", "wordpiece",
        "coremltools", "executorch", "numpy", "onnxruntime", "openvino", "torch", "ai_edge_litert",
    )
)  # fmt: skip
