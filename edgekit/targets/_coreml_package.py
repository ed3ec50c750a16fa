"""Core ML packages (``.mlpackage``) on disk: read with every doubt, written the same every time.

A package is a directory: ``Manifest.json``, and under ``Data/com.apple.CoreML`` the model (a
protobuf, ``Model.proto`` of coremltools) and ``weights/weight.bin``. That file holds a header of 64
bytes, and each constant behind a record of 64 bytes of its own, to which the model refers by its
place (``StorageFormat.hpp`` of coremltools, version 2).
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import BadData
from edgekit.targets._common import unpack_int4

__all__ = ["Blob", "Package", "quiet", "read", "write"]

Array = np.ndarray[Any, Any]

MODEL = "com.apple.CoreML/model.mlmodel"
WEIGHTS = "com.apple.CoreML/weights"
_MODEL_ID = "00000000-0000-4000-8000-000000000001"
_WEIGHTS_ID = "00000000-0000-4000-8000-000000000002"
"""Items of a package need identifiers, unique within it; these are those of all packages here."""

_SENTINEL = 0xDEADBEEF
_RECORD = 64
_DTYPES: dict[int, tuple[str, int]] = {
    1: ("float16", 16),
    2: ("float32", 32),
    3: ("uint8", 8),
    4: ("int8", 8),
    6: ("int16", 16),
    7: ("uint16", 16),
    8: ("int4", 4),
    14: ("int32", 32),
    15: ("uint32", 32),
}
"""Kinds of constants in ``weight.bin`` by their number (``BlobDataType``), with their bits."""


@dataclass(frozen=True)
class Blob:
    """One constant of ``weight.bin``: its dtype (``int4`` comes as int8 values) and flat values."""

    dtype: str
    values: Array


@dataclass(frozen=True)
class Package:
    """A package that was read.

    Attributes:
        name: of its directory, for messages.
        spec: the ``Model`` message.
        weights: bytes of ``weight.bin``; empty where there is none.
    """

    name: str
    spec: Any
    weights: bytes

    def blob(self, offset: int) -> Blob:
        """The constant whose record stands at ``offset``.

        Raises:
            BadData: there is none, or it lies outside the file.
        """
        record = self.weights[offset : offset + _RECORD]
        if offset < 0 or len(record) < _RECORD:
            raise BadData(f"coreml {self.name}: the weights end before offset {offset}")
        sentinel, kind, size, start, padding = struct.unpack_from("<IIQQQ", record)
        if sentinel != _SENTINEL or kind not in _DTYPES:
            raise BadData(f"coreml {self.name}: no constant is stored at offset {offset}")
        if start + size > len(self.weights):
            raise BadData(f"coreml {self.name}: the constant at offset {offset} is cut off")
        dtype, bits = _DTYPES[kind]
        data = np.frombuffer(self.weights, np.uint8, size, start)
        if bits == 4:
            count = (8 * size - padding) // 4
            return Blob(dtype, unpack_int4(data, [count]))
        if size % (bits // 8):
            raise BadData(f"coreml {self.name}: the constant at offset {offset} is cut off")
        return Blob(dtype, data.view(dtype))


_UNUSED = ("executorch", "libsvm", "sklearn", "tensorflow", "torchaudio", "transformers", "xgboost")
"""What coremltools imports to read other models than torch's, where it is installed."""


def quiet() -> None:
    """Imports coremltools without what it says of the versions beside it and of not being macOS.

    And without the other frameworks that it would import: beside executorch and scikit-learn that
    was 3.6 of 6.5 s of processor time.
    """
    import logging
    import warnings

    if "coremltools" in sys.modules:
        return
    logging.getLogger("coremltools").setLevel(logging.CRITICAL)
    absent = [name for name in _UNUSED if name not in sys.modules]
    hidden: dict[str, Any] = dict.fromkeys(absent)
    sys.modules.update(hidden)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import coremltools  # noqa: F401
    finally:
        for name in absent:
            del sys.modules[name]


def read(path: Path) -> Package:
    """Reads a package.

    Raises:
        BadData: it is none, it is damaged, or what it names lies outside of it.
    """
    quiet()
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    what = f"coreml {path.name}"
    try:
        manifest = json.loads((path / "Manifest.json").read_bytes())
        items = manifest["itemInfoEntries"]
        root = items[manifest["rootModelIdentifier"]]["path"]
        paths = [str(item["path"]) for item in items.values()]
    except OSError as error:
        raise BadData(f"{what} is no package: Manifest.json: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadData(f"{what}: its Manifest.json is none: {error!r}") from error
    if root != MODEL or set(paths) - {MODEL, WEIGHTS}:
        raise BadData(f"{what}: its Manifest.json names other files than a model and its weights")
    spec = Model_pb2.Model()
    try:
        spec.ParseFromString((path / "Data" / MODEL).read_bytes())
        weights = b""
        if WEIGHTS in paths:
            weights = (path / "Data" / WEIGHTS / "weight.bin").read_bytes()
    except OSError as error:
        raise BadData(f"{what}: {Path(str(error.filename)).name}: {error.strerror}") from error
    except DecodeError as error:
        raise BadData(f"{what}: its model is damaged: {error}") from error
    if spec.WhichOneof("Type") != "mlProgram" or "main" not in spec.mlProgram.functions:
        raise BadData(f"{what} holds no ML Program")
    return Package(path.name, spec, weights)


def write(spec: Any, weights: Path | None, out: Path) -> None:
    """Writes a package whose bytes depend on the model alone.

    Left out are the date, the converter's and its source's versions; maps are written in order.

    Args:
        spec: the ``Model`` message, which is changed.
        weights: a directory with ``weight.bin``, or None.
        out: the directory to make.
    """
    spec.description.metadata.userDefined.clear()
    spec.mlProgram.attributes.pop("buildInfo", None)
    data = out / "Data" / "com.apple.CoreML"
    data.mkdir(parents=True)
    (out / "Data" / MODEL).write_bytes(spec.SerializeToString(deterministic=True))
    entries = {_MODEL_ID: _entry("model.mlmodel", "CoreML Model Specification", MODEL)}
    if weights is not None and (weights / "weight.bin").is_file():
        (out / "Data" / WEIGHTS).mkdir()
        shutil.copyfile(weights / "weight.bin", out / "Data" / WEIGHTS / "weight.bin")
        entries[_WEIGHTS_ID] = _entry("weights", "CoreML Model Weights", WEIGHTS)
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": entries,
        "rootModelIdentifier": _MODEL_ID,
    }
    (out / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n")


def _entry(name: str, description: str, path: str) -> dict[str, str]:
    return {"author": "com.apple.CoreML", "description": description, "name": name, "path": path}
