"""TFLite Metadata in the file: a flatbuffer within the model, and a zip of label files behind it.

The flatbuffer (``metadata_schema.fbs``, version 1.5.0, identifier ``M001``) stands in a buffer of
the model that the model's entry ``TFLITE_METADATA`` names. The files that it refers to follow the
model as a zip, which interpreters don't look at and ``unzip`` reads.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import BadData
from edgekit.targets import _tflite_file
from edgekit.targets._tflite_metadata import Described, Metadata

__all__ = ["read", "write"]

ENTRY = b"TFLITE_METADATA"
_IDENTIFIER = b"M001"
_PARSER = "1.0.0"
"""The oldest version of the schema that has every field written here."""

_MAX_FILE = 2**24
"""Bytes of the largest list of labels that is read."""

_EPOCH = (1980, 1, 1, 0, 0, 0)

# Places of fields in their tables, and numbers of unions and enumerations, as the schema has them.
_MODEL = {"name": 0, "subgraphs": 3, "license": 5, "parser": 7}
_SUBGRAPH = {"inputs": 2, "outputs": 3}
_TENSOR = {"name": 0, "description": 1, "content": 3, "units": 4, "stats": 5, "files": 6}
_FILE = {"name": 0, "description": 1, "type": 2}
_FIELDS = {"model": 8, "subgraph": 10, "tensor": 7, "file": 5, "content": 3, "unit": 2, "pair": 2}
_IMAGE_PROPERTIES = 2
_NORMALIZATION = 1
_AXIS_LABELS = 2
_COLORS = {"": 0, "RGB": 1, "GRAY": 2}


def write(path: Path, metadata: Metadata) -> None:
    """Puts metadata into a ``.tflite`` file, in place of what was there.

    Label files are stored with fixed times, so that equal files come out the same.

    Raises:
        BadData: not a TFLite file.
    """
    model = _tflite_file.read(path)
    _attach(model, metadata)
    _tflite_file.write(model, path)  # without the zip that was behind the model
    _pack(path, metadata)


def _attach(model: Any, metadata: Metadata) -> None:
    api = _tflite_file.schema()
    entry = next((m for m in model.metadata or [] if bytes(m.name) == ENTRY), None)
    if entry is None:
        entry = api.MetadataT()
        entry.name, entry.buffer = ENTRY, len(model.buffers)
        model.buffers.append(api.BufferT())
        model.metadata = [*(model.metadata or []), entry]
    model.buffers[entry.buffer].data = np.frombuffer(_flatbuffer(metadata), np.uint8)


def _pack(path: Path, metadata: Metadata) -> None:
    labelled = [t for t in metadata.outputs if t.labels]
    if not labelled:
        return
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        for name, tensor in zip(_file_names(metadata), labelled, strict=True):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system, info.external_attr = 3, 0o644 << 16  # on any system
            archive.writestr(info, "".join(f"{label}\n" for label in tensor.labels).encode())


def _file_names(metadata: Metadata) -> list[str]:
    """Of the label files; readers want plain names."""
    count = sum(bool(t.labels) for t in metadata.outputs)
    return ["labels.txt"] if count == 1 else [f"labels-{i}.txt" for i in range(count)]


def _flatbuffer(metadata: Metadata) -> bytes:
    import flatbuffers

    b = flatbuffers.Builder(1024)
    files = iter(_file_names(metadata))
    inputs = [_tensor(b, t, None) for t in metadata.inputs]
    outputs = [_tensor(b, t, next(files) if t.labels else None) for t in metadata.outputs]
    subgraph = _table(
        b,
        "subgraph",
        {_SUBGRAPH["inputs"]: _vector(b, inputs), _SUBGRAPH["outputs"]: _vector(b, outputs)},
    )
    root = {
        _MODEL["name"]: b.CreateString(metadata.name),
        _MODEL["subgraphs"]: _vector(b, [subgraph]),
        _MODEL["parser"]: b.CreateString(_PARSER),
    }
    if metadata.licence:
        root[_MODEL["license"]] = b.CreateString(metadata.licence)
    b.Finish(_table(b, "model", root), file_identifier=_IDENTIFIER)
    return bytes(b.Output())


def _tensor(b: Any, tensor: Described, file: str | None) -> int:
    fields = {_TENSOR["name"]: b.CreateString(tensor.name)}
    if tensor.description:
        fields[_TENSOR["description"]] = b.CreateString(tensor.description)
    if tensor.image:
        properties = _table(b, "pair", {}, {0: _COLORS[tensor.color]})
        fields[_TENSOR["content"]] = _table(b, "content", {1: properties}, {0: _IMAGE_PROPERTIES})
    if tensor.mean:
        options = _table(b, "pair", {0: _floats(b, tensor.mean), 1: _floats(b, tensor.std)})
        unit = _table(b, "unit", {1: options}, {0: _NORMALIZATION})
        fields[_TENSOR["units"]] = _vector(b, [unit])
    if tensor.low:
        stats = {0: _floats(b, tensor.high), 1: _floats(b, tensor.low)}
        fields[_TENSOR["stats"]] = _table(b, "pair", stats)
    if file is not None:
        about = {
            _FILE["name"]: b.CreateString(file),
            _FILE["description"]: b.CreateString("the classes, one a line"),
        }
        fields[_TENSOR["files"]] = _vector(
            b, [_table(b, "file", about, {_FILE["type"]: _AXIS_LABELS})]
        )
    return _table(b, "tensor", fields)


def _table(b: Any, kind: str, offsets: dict[int, int], small: dict[int, int] | None = None) -> int:
    """A table of a kind; ``offsets`` to what was written before it, and ``small`` numbers."""
    b.StartObject(_FIELDS[kind])
    for place, offset in sorted(offsets.items()):
        b.PrependUOffsetTRelativeSlot(place, offset, 0)
    for place, number in sorted((small or {}).items()):
        b.PrependUint8Slot(place, number, 0)
    return int(b.EndObject())


def _vector(b: Any, offsets: Sequence[int]) -> int:
    b.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        b.PrependUOffsetTRelative(offset)
    return int(b.EndVector())


def _floats(b: Any, values: Sequence[float]) -> int:
    b.StartVector(4, len(values), 4)
    for value in reversed(values):
        b.PrependFloat32(value)
    return int(b.EndVector())


# -- reading --------------------------------------------------------------------------------------


def read(path: Path) -> Metadata | None:
    """The metadata of a ``.tflite`` file, or None where it has none.

    Raises:
        BadData: it is damaged, or refers to a file that is not there.
    """
    with _refusing(path):
        model = _tflite_file.read(path)
        entries = [m for m in model.metadata or [] if bytes(m.name) == ENTRY]
        if not entries:
            return None
        data = bytes(np.asarray(model.buffers[entries[0].buffer].data, np.uint8))
        if data[4:8] != _IDENTIFIER:
            raise BadData(f"{path.name}: its metadata is of no known kind: {data[4:8]!r}")
        root = _Table.root(data)
        subgraph = root.tables(_MODEL["subgraphs"])[0]
        files: list[str] = []
        members = _members(path)
        inputs = [_described(t, members, files) for t in subgraph.tables(_SUBGRAPH["inputs"])]
        outputs = [_described(t, members, files) for t in subgraph.tables(_SUBGRAPH["outputs"])]
        return Metadata(
            root.text(_MODEL["name"]),
            tuple(inputs),
            tuple(outputs),
            root.text(_MODEL["license"]),
            tuple(files),
        )


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Reading a damaged flatbuffer or zip fails in as many ways as there are fields."""
    try:
        yield
    except (
        *(struct.error, LookupError, ValueError, TypeError, OverflowError, RecursionError),
        *(EOFError, NotImplementedError, zipfile.BadZipFile),
    ) as error:
        raise BadData(f"{path.name}: its metadata is damaged: {error!r}") from error


def _members(path: Path) -> dict[str, bytes]:
    """Files of the zip that follows the model; none where there is none."""
    data = path.read_bytes()
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        small = [i for i in archive.infolist() if i.file_size <= _MAX_FILE]
        return {info.filename: archive.read(info) for info in small}


def _described(table: _Table, members: dict[str, bytes], files: list[str]) -> Described:
    content = table.table(_TENSOR["content"])
    image = content is not None and content.small(0) == _IMAGE_PROPERTIES
    color = ""
    if content is not None and image:
        properties = content.table(1)
        number = 0 if properties is None else properties.small(0)
        color = {n: name for name, n in _COLORS.items()}.get(number, "")
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    for unit in table.tables(_TENSOR["units"]):
        options = unit.table(1)
        if unit.small(0) == _NORMALIZATION and options is not None:
            mean, std = options.floats(0), options.floats(1)
    stats = table.table(_TENSOR["stats"])
    labels: tuple[str, ...] = ()
    for file in table.tables(_TENSOR["files"]):
        if file.small(_FILE["type"]) == _AXIS_LABELS:
            name = file.text(_FILE["name"])
            if name not in members:
                raise BadData(f"the metadata names a file {name!r}, which is not in the zip")
            files.append(name)
            labels = tuple(members[name].decode().removesuffix("\n").split("\n"))
    return Described(
        name=table.text(_TENSOR["name"]),
        description=table.text(_TENSOR["description"]),
        image=image,
        color=color,
        mean=mean,
        std=std,
        low=() if stats is None else stats.floats(1),
        high=() if stats is None else stats.floats(0),
        labels=labels,
    )


@dataclass(frozen=True)
class _Table:
    """A table of a flatbuffer: its bytes, and where it stands in them."""

    data: bytes
    at: int

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, cls._u32(data, 0))

    @staticmethod
    def _u32(data: bytes, at: int) -> int:
        return int(struct.unpack_from("<I", data, at)[0])

    def _field(self, place: int) -> int | None:
        """Where a field stands; None where the table leaves it out."""
        table = self.at - struct.unpack_from("<i", self.data, self.at)[0]
        (size,) = struct.unpack_from("<H", self.data, table)
        if 4 + 2 * place >= size:
            return None
        (offset,) = struct.unpack_from("<H", self.data, table + 4 + 2 * place)
        return self.at + int(offset) if offset else None

    def _target(self, place: int) -> int | None:
        at = self._field(place)
        return None if at is None else at + self._u32(self.data, at)

    def _count(self, at: int) -> int:
        """The length of a vector of four-byte items, which must lie in the data."""
        count = self._u32(self.data, at)
        if at + 4 + 4 * count > len(self.data):
            raise ValueError(f"a vector of {count} at {at} ends behind the data")
        return count

    def small(self, place: int) -> int:
        at = self._field(place)
        return 0 if at is None else self.data[at]

    def text(self, place: int) -> str:
        at = self._target(place)
        if at is None:
            return ""
        return self.data[at + 4 : at + 4 + self._u32(self.data, at)].decode()

    def table(self, place: int) -> _Table | None:
        at = self._target(place)
        return None if at is None else _Table(self.data, at)

    def tables(self, place: int) -> list[_Table]:
        at = self._target(place)
        if at is None:
            return []
        items = range(at + 4, at + 4 + 4 * self._count(at), 4)
        return [_Table(self.data, item + self._u32(self.data, item)) for item in items]

    def floats(self, place: int) -> tuple[float, ...]:
        at = self._target(place)
        if at is None:
            return ()
        return struct.unpack_from(f"<{self._count(at)}f", self.data, at + 4)
