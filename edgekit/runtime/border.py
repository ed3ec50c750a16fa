"""Picture borders: how an artifact takes a picture with its channels last, ``[1, H, W, C]``.

It takes the picture after resizing and cropping, in RGB or grey. The order of colours that the
model wants and its layout are inside the artifact. Under ``io = "uint8"`` it takes the pixels, and
scale, mean and standard deviation are inside too; under ``io = "float32-nhwc"`` the app has
normalized them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from edgekit.errors import BadData, UnsupportedError
from edgekit.names import BORDERS, FLOAT_IO, NHWC_IO, PICTURE_IO
from edgekit.runtime.preprocess import (
    AudioPreprocess,
    ImagePreprocess,
    Preprocess,
    TextPreprocess,
)
from edgekit.signature import Signature, TensorSpec

__all__ = ["PictureBorder"]

_INSIDE = {
    PICTURE_IO: "puts the preprocessing of pictures into the artifact",
    NHWC_IO: "takes what the preprocessing of pictures makes, with its channels last",
}


@dataclass(frozen=True)
class PictureBorder:
    """What an artifact does to a picture before the model's own first operator.

    ``tensor = value * factor + offset`` in float32, for each channel in the order of ``color``. Of
    pixels that is ``(pixel * scale - mean) / std`` of `ImagePreprocess`. Where a plan quantizes the
    picture, ``offset`` may be moved by less than a quantization step, so that no pixel comes to lie
    between two steps, where rounding differs from one runtime to another. Of float32 values, which
    are normalized already, the factor is 1 and the offset 0.

    Attributes:
        input: name of the model's picture input, and of the artifact's.
        height, width, channels: of the picture.
        color: order of the channels that the model takes. The artifact takes ``RGB``, or ``GRAY``.
        layout: of the model's tensor, ``NCHW`` or ``NHWC``. The artifact's is ``NHWC``.
        factor: one value per channel, in the order of ``color``.
        offset: the same.
        differs: pairs of a pixel value and a channel that the artifact quantizes to another integer
            than the plan does: values that lie just between two steps. 0 where it has none.
        io: of the artifact, out of `edgekit.names.BORDERS`.
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
    io: str = PICTURE_IO

    @classmethod
    def of(cls, signature: Signature, preprocess: Preprocess | None, io: str = PICTURE_IO) -> Self:
        """The border of a model for artifacts of an io out of `edgekit.names.BORDERS`.

        Raises:
            UnsupportedError: the model has no preprocessing of pictures, none or several inputs
                that take the picture, or takes more than one picture at a time.
        """
        hint = f"leave --io {io} out: with --io {FLOAT_IO} the app makes the model's own tensor"
        if not isinstance(preprocess, ImagePreprocess):
            kinds = {TextPreprocess: "one of texts", AudioPreprocess: "one of sounds"}
            has = "none" if preprocess is None else kinds[type(preprocess)]
            raise UnsupportedError(
                f"io {io!r} {_INSIDE[io]}, and the model has {has}",
                hint=f"give the Model preprocess=ImagePreprocess(...), or {hint}",
            )
        shape = preprocess.shape
        found = [s for s in signature.inputs if s.shape[1:] == shape[1:] and s.dtype == "float32"]
        if len(found) != 1:
            names = ", ".join(s.name for s in found) or "none"
            raise UnsupportedError(
                f"io {io!r} needs one input that takes the picture; of this model's "
                f"{len(found)} do ({names})",
                hint=hint,
            )
        if found[0].shape != shape:
            raise UnsupportedError(
                f"io {io!r} takes one picture at a time; input {found[0].name!r} takes "
                f"{found[0].shape[0]}",
                hint=f"export the model with a batch of 1, or {hint}",
            )
        arithmetic = [(1.0, 0.0)] * preprocess.channels
        if io == PICTURE_IO:
            both = zip(preprocess.mean, preprocess.std, strict=True)
            arithmetic = [(_single(preprocess.scale / s), _single(-m / s)) for m, s in both]
        return cls(
            input=found[0].name,
            height=preprocess.height,
            width=preprocess.width,
            channels=preprocess.channels,
            color=preprocess.color,
            layout=preprocess.layout,
            factor=tuple(factor for factor, _ in arithmetic),
            offset=tuple(offset for _, offset in arithmetic),
            io=io,
        )

    @property
    def taken(self) -> str:
        """The order of the channels that the artifact takes: ``RGB`` or ``GRAY``."""
        return "GRAY" if self.channels == 1 else "RGB"

    @property
    def spec(self) -> TensorSpec:
        """The artifact's picture input: uint8 or float32 ``[1, H, W, C]``."""
        shape = (1, self.height, self.width, self.channels)
        return TensorSpec(self.input, shape, BORDERS[self.io], "NHWC")

    def signature(self, model: Signature) -> Signature:
        """The artifact's signature, given the model's: other inputs and all outputs are equal."""
        inputs = tuple(self.spec if s.name == self.input else s for s in model.inputs)
        return Signature(inputs, model.outputs)

    def apply(self, picture: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """What the artifact makes of a picture: the model's tensor.

        Args:
            picture: uint8 or float32 ``[1, H, W, C]``, RGB or grey.

        Returns:
            float32 in the model's layout and order of colours.

        Raises:
            BadData: another shape or dtype.
        """
        self.spec.check(picture, what="picture border")
        ordered = picture[..., ::-1] if self.color == "BGR" else picture
        factor, offset = (np.array(v, np.float32) for v in (self.factor, self.offset))
        tensor = ordered.astype(np.float32) * factor + offset
        if self.layout == "NCHW":
            tensor = tensor.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(tensor, np.float32)

    def arrange(self, tensor: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What an artifact that takes float32 takes in place of the model's tensor.

        Args:
            tensor: float32, the model's.

        Returns:
            float32 ``[1, H, W, C]``: the same values, RGB or grey.
        """
        last = tensor.transpose(0, 2, 3, 1) if self.layout == "NCHW" else tensor
        return np.ascontiguousarray(last[..., ::-1] if self.color == "BGR" else last)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary of every field but the io, which is the artifact's."""
        data = {**asdict(self), "factor": list(self.factor), "offset": list(self.offset)}
        return {k: v for k, v in data.items() if k != "io"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], io: str = PICTURE_IO) -> Self:
        """The inverse of `to_json`, for an artifact of ``io``.

        Raises:
            BadData: a field is missing, unknown, or of another kind; or values that are normalized
                already are to be scaled.
        """
        names = {f.name for f in fields(cls)} - {"io"}
        try:
            if set(data) != names:
                raise ValueError(f"fields {sorted(names ^ set(data))}")
            numbers = {k: tuple(float(v) for v in data[k]) for k in ("factor", "offset")}
            counts = {k: int(data[k]) for k in ("height", "width", "channels", "differs")}
            texts = {k: str(data[k]) for k in ("input", "color", "layout")}
            if {len(v) for v in numbers.values()} != {counts["channels"]}:
                raise ValueError("not one factor and offset for each channel")
            plain = set(numbers["factor"]) == {1.0} and set(numbers["offset"]) == {0.0}
            if io == NHWC_IO and not plain:
                raise ValueError("it scales what is normalized already")
            return cls(**texts, **counts, **numbers, io=io)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError) as error:
            raise BadData(f"a picture border is not one: {error}") from error


def _single(value: float) -> float:
    return float(np.float32(value))
