"""Picture borders: how an artifact of ``io = "uint8"`` takes the picture itself.

Its picture input is uint8 ``[1, H, W, C]``, the pixels after resizing and cropping, in RGB or grey.
Scale, mean, standard deviation, the order of colours that the model wants and its layout are inside
the artifact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgekit.errors import BadData, UnsupportedError
from edgekit.names import FLOAT_IO, PICTURE_IO
from edgekit.runtime.preprocess import ImagePreprocess, Preprocess
from edgekit.signature import Signature, TensorSpec

__all__ = ["PictureBorder"]

_HINT = f"leave --io {PICTURE_IO} out: with --io {FLOAT_IO} the app makes the model's own tensor"


@dataclass(frozen=True)
class PictureBorder:
    """What an artifact does to pixels before the model's own first operator.

    ``tensor = pixel * factor + offset`` in float32, for each channel in the order of ``color``.
    That is ``(pixel * scale - mean) / std`` of `ImagePreprocess`. Where a plan quantizes the
    picture, ``offset`` may be moved by less than a quantization step, so that no pixel comes to lie
    between two steps, where rounding differs from one runtime to another.

    Attributes:
        input: name of the model's picture input, and of the artifact's.
        height, width, channels: of the picture.
        color: order of the channels that the model takes. The artifact takes ``RGB``, or ``GRAY``.
        layout: of the model's tensor, ``NCHW`` or ``NHWC``. The artifact's is ``NHWC``.
        factor: one value per channel, in the order of ``color``.
        offset: the same.
        differs: pairs of a pixel value and a channel that the artifact quantizes to another integer
            than the plan does: values that lie just between two steps. 0 where it has none.
    """

    input: str
    height: int
    width: int
    channels: int
    color: str
    layout: str
    factor: tuple[float, ...]
    offset: tuple[float, ...]
    differs: int = 0

    @classmethod
    def of(cls, signature: Signature, preprocess: Preprocess | None) -> Self:
        """The border of a model.

        Raises:
            UnsupportedError: the model has no preprocessing of pictures, none or several inputs
                that take the picture, or takes more than one picture at a time.
        """
        if not isinstance(preprocess, ImagePreprocess):
            has = "none" if preprocess is None else "one of texts"
            raise UnsupportedError(
                f"io {PICTURE_IO!r} puts the preprocessing of pictures into the artifact, and the "
                f"model has {has}",
                hint="give the Model preprocess=ImagePreprocess(...), or " + _HINT,
            )
        shape = preprocess.shape
        found = [s for s in signature.inputs if s.shape[1:] == shape[1:] and s.dtype == "float32"]
        if len(found) != 1:
            names = ", ".join(s.name for s in found) or "none"
            raise UnsupportedError(
                f"io {PICTURE_IO!r} needs one input that takes the picture; of this model's "
                f"{len(found)} do ({names})",
                hint=_HINT,
            )
        if found[0].shape != shape:
            raise UnsupportedError(
                f"io {PICTURE_IO!r} takes one picture at a time; input {found[0].name!r} takes "
                f"{found[0].shape[0]}",
                hint="export the model with a batch of 1, or " + _HINT,
            )
        return cls(
            input=found[0].name,
            height=preprocess.height,
            width=preprocess.width,
            channels=preprocess.channels,
            color=preprocess.color,
            layout=preprocess.layout,
            factor=tuple(_single(preprocess.scale / s) for s in preprocess.std),
            offset=tuple(
                _single(-m / s) for m, s in zip(preprocess.mean, preprocess.std, strict=True)
            ),
        )

    @property
    def taken(self) -> str:
        """The order of the channels that the artifact takes: ``RGB`` or ``GRAY``."""
        return "GRAY" if self.channels == 1 else "RGB"

    @property
    def spec(self) -> TensorSpec:
        """The artifact's picture input: uint8 ``[1, H, W, C]``."""
        shape = (1, self.height, self.width, self.channels)
        return TensorSpec(self.input, shape, "uint8", "NHWC")

    def signature(self, model: Signature) -> Signature:
        """The artifact's signature, given the model's: other inputs and all outputs are equal."""
        inputs = tuple(self.spec if s.name == self.input else s for s in model.inputs)
        return Signature(inputs, model.outputs)

    def apply(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """What the artifact makes of pixels: the model's tensor.

        Args:
            pixels: uint8 ``[1, H, W, C]``, RGB or grey.

        Returns:
            float32 in the model's layout and order of colours.

        Raises:
            BadData: another shape or dtype.
        """
        self.spec.check(pixels, what="picture border")
        ordered = pixels[..., ::-1] if self.color == "BGR" else pixels
        factor, offset = (np.array(v, np.float32) for v in (self.factor, self.offset))
        tensor = ordered.astype(np.float32) * factor + offset
        if self.layout == "NCHW":
            tensor = tensor.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(tensor, np.float32)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary of every field."""
        return {**asdict(self), "factor": list(self.factor), "offset": list(self.offset)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            BadData: a field is missing, unknown, or of another kind.
        """
        names = {f.name for f in fields(cls)}
        try:
            if set(data) != names:
                raise ValueError(f"fields {sorted(names ^ set(data))}")
            numbers = {k: tuple(float(v) for v in data[k]) for k in ("factor", "offset")}
            counts = {k: int(data[k]) for k in ("height", "width", "channels", "differs")}
            texts = {k: str(data[k]) for k in ("input", "color", "layout")}
            if {len(v) for v in numbers.values()} != {counts["channels"]}:
                raise ValueError("not one factor and offset for each channel")
            return cls(**texts, **counts, **numbers)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError) as error:
            raise BadData(f"a picture border is not one: {error}") from error


def _single(value: float) -> float:
    return float(np.float32(value))
