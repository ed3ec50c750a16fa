"""Signature: the named inputs and outputs of a model, as every artifact must present them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekit.errors import BadData

__all__ = ["DTYPES", "Signature", "TensorSpec"]

DTYPES = ("float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor.

    Attributes:
        name: the tensor's name, unique among the inputs (or outputs).
        shape: its full static shape, batch first.
        dtype: a numpy dtype name out of `DTYPES`.
        layout: one letter per dimension (``NCHW``, ``NHWC``), or empty where it has no meaning.
        labels: for a classifier's output, the class names in order.
        high: for integer inputs, the largest value allowed (a vocabulary's last id).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = ""
    labels: tuple[str, ...] = ()
    high: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise BadData(
                f"tensor {self.name!r} has dtype {self.dtype!r}; allowed: {', '.join(DTYPES)}"
            )
        if self.layout and len(self.layout) != len(self.shape):
            raise BadData(
                f"tensor {self.name!r} has layout {self.layout!r} for {len(self.shape)} dimensions"
            )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary; empty fields are left out."""
        out: dict[str, Any] = {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}
        if self.layout:
            out["layout"] = self.layout
        if self.labels:
            out["labels"] = list(self.labels)
        if self.high is not None:
            out["high"] = self.high
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TensorSpec:
        """The inverse of `to_json`."""
        return cls(
            name=data["name"],
            shape=tuple(int(n) for n in data["shape"]),
            dtype=data["dtype"],
            layout=data.get("layout", ""),
            labels=tuple(data.get("labels", ())),
            high=data.get("high"),
        )

    def check(self, value: np.ndarray[Any, Any], *, what: str) -> None:
        """Refuses a value that this tensor cannot hold.

        Raises:
            BadData: shape or dtype differ, or a float value is not finite; names ``what``.
        """
        if tuple(value.shape) != self.shape:
            raise BadData(
                f"{what}: {self.name!r} has shape {tuple(value.shape)}, "
                f"the model takes {self.shape}"
            )
        if str(value.dtype) != self.dtype:
            raise BadData(f"{what}: {self.name!r} is {value.dtype}, the model takes {self.dtype}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise BadData(f"{what}: {self.name!r} holds NaN or infinity")


@dataclass(frozen=True)
class Signature:
    """Named inputs and outputs, in the order in which the model takes and gives them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...] = field(default=())

    def __post_init__(self) -> None:
        for kind, specs in (("input", self.inputs), ("output", self.outputs)):
            names = [spec.name for spec in specs]
            if len(set(names)) != len(names):
                raise BadData(f"{kind} names are not unique: {', '.join(names)}")

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, as the manifest stores it."""
        return {
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        """The inverse of `to_json`."""
        return cls(
            inputs=tuple(TensorSpec.from_json(d) for d in data["inputs"]),
            outputs=tuple(TensorSpec.from_json(d) for d in data["outputs"]),
        )

    def check_inputs(self, feeds: Mapping[str, np.ndarray[Any, Any]], *, what: str) -> None:
        """Refuses feeds that do not fit the inputs, naming the first misfit.

        Raises:
            BadData: an input is missing, unknown, or does not fit its spec.
        """
        names = [spec.name for spec in self.inputs]
        missing = [n for n in names if n not in feeds]
        extra = [n for n in feeds if n not in names]
        if missing or extra:
            wrong = f"missing {', '.join(missing)}" if missing else f"unknown {', '.join(extra)}"
            raise BadData(f"{what}: {wrong}; the model's inputs are {', '.join(names)}")
        for spec in self.inputs:
            spec.check(feeds[spec.name], what=what)
