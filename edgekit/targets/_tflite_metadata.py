"""TFLite Metadata: what a picture model's file tells an app of the tensors that it takes and gives.

ML Kit and MediaPipe Tasks read it to turn a camera's picture into the input, and to name classes;
`edgekit.targets._tflite_metadata_file` writes and reads it. Normalization is told in pixels of
0..255, as ``(pixel - mean) / std``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.signature import Signature, TensorSpec

__all__ = ["Described", "Metadata", "describe", "differences", "lines_of"]


@dataclass(frozen=True)
class Described:
    """One input or output, as the metadata tells of it.

    Attributes:
        name: of the tensor.
        description: for people.
        image: whether it is a picture.
        color: ``RGB`` or ``GRAY``; empty where it is no picture, or one in an order of channels
            that the metadata has no word for.
        mean: taken off a pixel of 0..255, one value per channel or one for all; empty for none.
        std: what that is divided by; as many as ``mean``.
        low: the least value per channel, or one for all; empty where it is not told.
        high: the largest; as many as ``low``.
        labels: the classes that its last axis stands for; empty for none.
    """

    name: str
    description: str = ""
    image: bool = False
    color: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; numbers are those of the file, labels are counted."""
        told: dict[str, Any] = {"name": self.name, "image": self.image}
        if self.image:
            told["color"] = self.color or None
        for key in ("mean", "std", "low", "high"):
            if getattr(self, key):
                told[key] = list(getattr(self, key))
        if self.labels:
            told["labels"] = len(self.labels)
        return told


@dataclass(frozen=True)
class Metadata:
    """What is told of a model: its inputs and outputs in the order in which it has them.

    Attributes:
        name: of the model.
        inputs: all of them.
        outputs: all of them.
        licence: an SPDX identifier; empty where it is not known.
        files: names of the label files, in the order of the labelled outputs; found when reading.
    """

    name: str
    inputs: tuple[Described, ...]
    outputs: tuple[Described, ...]
    licence: str = ""
    files: tuple[str, ...] = field(default=(), compare=False)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {
            "format": "TFLite Metadata",
            "name": self.name,
            "licence": self.licence or None,
            "inputs": [t.to_json() for t in self.inputs],
            "outputs": [t.to_json() for t in self.outputs],
            "files": list(self.files),
        }


def describe(
    signature: Signature, preprocess: ImagePreprocess, *, name: str, licence: str = ""
) -> Metadata:
    """What to tell of an artifact of a picture model.

    An input of pixels (uint8) takes them as they are: mean 0, standard deviation 1. A float input
    takes ``(pixel - mean) / std``, in the layout that ``preprocess`` has. Pictures in BGR have a
    color that the schema lacks; without one no app takes them for RGB.

    Args:
        signature: the artifact's own.
        preprocess: the model's, for the artifact's io (`ImagePreprocess.for_io`).
        name: of the model.
        licence: an SPDX identifier, if it is known.
    """
    pictures = [s.name for s in signature.inputs if _takes_picture(s, preprocess)]
    one = pictures[0] if len(pictures) == 1 else None
    inputs = [
        _picture(s, preprocess) if s.name == one else Described(s.name) for s in signature.inputs
    ]
    outputs = [Described(s.name, labels=lines_of(s.labels)) for s in signature.outputs]
    return Metadata(name, tuple(inputs), tuple(outputs), licence)


def lines_of(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels as a file with one a line can have them: white space of any kind becomes a space."""
    return tuple(" ".join(label.split()) for label in labels)


def differences(found: Metadata | None, wanted: Metadata) -> list[str]:
    """What metadata says otherwise than it has to, in words; empty if nothing."""
    if found is None:
        return ["it has no TFLite metadata"]
    wrong = [
        f"its {what} is {getattr(found, what)!r}, not {getattr(wanted, what)!r}"
        for what in ("name", "licence")
        if getattr(found, what) != getattr(wanted, what)
    ]
    for side in ("inputs", "outputs"):
        have, want = getattr(found, side), getattr(wanted, side)
        if len(have) != len(want):
            wrong.append(f"it tells of {len(have)} {side}, not of {len(want)}")
            continue
        for mine, other in zip(have, want, strict=True):
            wrong += _differing(mine, other)
    return wrong


def _differing(found: Described, wanted: Described) -> list[str]:
    said = []
    for item in fields(Described):
        mine, other = getattr(found, item.name), getattr(wanted, item.name)
        if item.name in ("mean", "std", "low", "high"):
            other = tuple(float(np.float32(v)) for v in other)
        if mine != other:
            said.append(f"{wanted.name!r}: {item.name} is {_short(mine)}, not {_short(other)}")
    return said


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _takes_picture(spec: TensorSpec, preprocess: ImagePreprocess) -> bool:
    pixels = (1, preprocess.height, preprocess.width, preprocess.channels)
    if spec.dtype == "uint8":
        return spec.shape == pixels
    return spec.dtype == "float32" and spec.shape[1:] == preprocess.shape[1:]


def _picture(spec: TensorSpec, preprocess: ImagePreprocess) -> Described:
    grey = preprocess.channels == 1
    if spec.dtype == "uint8":
        return Described(
            name=spec.name,
            description="pixels of 0..255, grey" if grey else "pixels of 0..255, red first",
            image=True,
            color="GRAY" if grey else "RGB",
            mean=(0.0,),
            std=(1.0,),
            low=(0.0,),
            high=(255.0,),
        )
    ends = [
        sorted(((0 - m) / s, (255 * preprocess.scale - m) / s))
        for m, s in zip(preprocess.mean, preprocess.std, strict=True)
    ]
    return Described(
        name=spec.name,
        description=f"(pixel - mean) / std, {preprocess.color}, {spec.layout or preprocess.layout}",
        image=True,
        color="" if preprocess.color == "BGR" else preprocess.color,
        mean=tuple(m / preprocess.scale for m in preprocess.mean),
        std=tuple(s / preprocess.scale for s in preprocess.std),
        low=tuple(low for low, _ in ends),
        high=tuple(high for _, high in ends),
    )
