"""Samples out of a ``.npz``, with limits on what a hostile or broken file may cost."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from edgekit.data.samples import ArraySamples
from edgekit.errors import BadData
from edgekit.runtime.decode import parse_npy
from edgekit.runtime.preprocess import Preprocess
from edgekit.signature import Signature

__all__ = ["LABELS", "MAX_ARRAY_BYTES", "read_npz", "without_labels"]

LABELS: Final = "y"
"""The array that holds the labels, unless an input of the model has that name."""

MAX_ARRAY_BYTES: Final = 4 * 2**30
"""What all arrays of a file may take unpacked, in bytes."""


def read_npz(path: Path, signature: Signature, preprocess: Preprocess | None) -> ArraySamples:
    """The samples of a ``.npz``: arrays named after the inputs, samples first, labels in ``y``.

    Raises:
        BadData: absent, no ``.npz``, pickled, too large, or arrays that do not fit the model.
    """
    try:
        with zipfile.ZipFile(path) as file:
            arrays = _read_members(file, path)
    except BadData:
        raise
    except FileNotFoundError as error:
        raise BadData(f"there is no file {path}") from error
    except Exception as error:
        # A bad checksum, an unknown compression, encryption: each has its own exception.
        raise BadData(
            f"cannot read {path} as .npz: {error}", hint="write it with numpy.savez"
        ) from error
    feeds, labels = without_labels(arrays, signature)
    return ArraySamples(feeds, labels, signature=signature, preprocess=preprocess, source=str(path))


def without_labels(
    arrays: dict[str, npt.NDArray[Any]], signature: Signature
) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[Any] | None]:
    """The inputs, and the labels where there are any."""
    if any(spec.name == LABELS for spec in signature.inputs) or LABELS not in arrays:
        return arrays, None
    return {name: a for name, a in arrays.items() if name != LABELS}, arrays[LABELS]


def _read_members(file: zipfile.ZipFile, path: Path) -> dict[str, npt.NDArray[Any]]:
    members = file.infolist()
    total = sum(member.file_size for member in members)
    if total > MAX_ARRAY_BYTES:
        raise BadData(
            f"{path} unpacks to {total} bytes; at most {MAX_ARRAY_BYTES} are read",
            hint="give fewer samples, or a function: file.py:function",
        )
    arrays: dict[str, npt.NDArray[Any]] = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name == member.filename:
            raise BadData(f"{path} holds {name!r}, which is no .npy array")
        if name in arrays:
            raise BadData(f"{path} holds {name!r} twice")
        arrays[name] = parse_npy(file.read(member), f"{path}: {name!r}")
    return arrays
