"""Core ML on the CPU of a Mac, through coremltools.

Core ML chooses the number of its threads by itself; a session's ``threads`` is kept for reports.
An image input is fed a Pillow image made of the pixels, as an app would feed its picture.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import BadData, UnsupportedError
from edgekit.runtime.session import (
    Array,
    Port,
    check_static,
    closed,
    failed,
    match,
    require,
    stated_spec,
)
from edgekit.signature import Signature, TensorSpec

TARGET = "coreml"
PACKAGE = True
"""An artifact is a directory."""

_COLORS = {10: "GRAY", 20: "RGB", 30: "BGR"}
"""``ColorSpace`` of an image input in ``FeatureTypes.proto``."""

_DTYPES = {1: "bool", 10: "float16", 11: "float32", 21: "int8", 23: "int32", 31: "uint8"}
"""``DataType`` of coremltools' ``MIL.proto``, as far as borders of programs have it."""


def unavailable() -> str | None:
    """Why Core ML can't run on this system; None on macOS."""
    if sys.platform == "darwin":
        return None
    return "Core ML runs on Apple's systems alone, and this is not macOS"


class CoreMLSession:
    """A ``.mlpackage`` in Core ML; see `edgekit.runtime.session.Session`."""

    target = TARGET

    def __init__(self, path: Path, signature: Signature, threads: int) -> None:
        self.signature = signature
        self.threads = threads
        self.runtime_version = f"Core ML of macOS {platform.mac_ver()[0]}"
        self._what = f"{TARGET} {path.name}"
        coremltools = require("coremltools", "coremltools")
        inputs, outputs, colors = _border(path)
        self._images = set(colors)
        self._inputs = _ports(signature.inputs, inputs, self._what)
        self._outputs = _ports(signature.outputs, outputs, self._what)
        try:
            self._model: Any = coremltools.models.MLModel(
                str(path), compute_units=coremltools.ComputeUnit.CPU_ONLY
            )
        except Exception as error:
            raise UnsupportedError(f"{self._what} does not load: {error}") from error

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `edgekit.runtime.session.Session.run`."""
        encoded = self._encoded(feeds)
        try:
            values = self._model.predict(encoded)
        except Exception as error:
            raise failed(self._what, error) from error
        return {
            port.spec.name: port.decode(
                np.array(values[port.key]).reshape(port.spec.shape), what=self._what
            )
            for port in self._outputs
        }

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """See `edgekit.runtime.session.bare_call`."""
        encoded, predict = self._encoded(feeds), self._model.predict
        return lambda: predict(encoded)

    def _encoded(self, feeds: Mapping[str, Array]) -> dict[str, Any]:
        if self._model is None:
            raise closed(self._what)
        self.signature.check_inputs(feeds, what=self._what)
        return {port.key: self._fed(port, feeds[port.spec.name]) for port in self._inputs}

    def _fed(self, port: Port, value: Array) -> Any:
        if port.key not in self._images:
            return port.encode(value)
        image = require("PIL.Image", "pillow")
        # Core ML puts the colours into the order that the model wants by itself.
        pixels = value[0, :, :, 0] if value.shape[3] == 1 else value[0]
        return image.fromarray(np.ascontiguousarray(pixels))

    def close(self) -> None:
        """See `edgekit.runtime.session.Session.close`."""
        self._model = None


_Border = list[tuple[str, tuple[int, ...], str]]
"""Name, shape (a negative number is a free dimension) and dtype of every input or output."""


def image_colors(spec: Any, *, what: str) -> dict[str, str]:
    """By the names of a model's image inputs, the order of colours that its program takes.

    Args:
        spec: the ``Model`` message.
        what: names it in messages.

    Raises:
        UnsupportedError: an image of another kind than 8 bits a colour.
    """
    found = {}
    for feature in spec.description.input:
        if feature.type.WhichOneof("Type") == "imageType":
            space = feature.type.imageType.colorSpace
            if space not in _COLORS:
                raise UnsupportedError(f"{what}: image {feature.name!r} is of kind {space}")
            found[str(feature.name)] = _COLORS[space]
    return found


def image_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of an image's pixels ``[1, H, W, C]``, given that of the program's tensor."""
    return (shape[0], shape[2], shape[3], shape[1])


def _border(path: Path) -> tuple[_Border, _Border, dict[str, str]]:
    """What the program's main function takes and gives, images as uint8 ``[1, H, W, C]``; and the
    colours of those. A classifier's label and dictionary are left out."""
    what = f"{TARGET} {path.name}"
    coremltools = require("coremltools", "coremltools")
    try:
        spec = coremltools.utils.load_spec(str(path))
        function = spec.mlProgram.functions["main"]
    except Exception as error:
        raise BadData(f"{what} is not readable: {error}") from error
    described = spec.description
    classes = (described.predictedFeatureName, described.predictedProbabilitiesName)
    block = function.block_specializations[function.opset]
    made = {o.name: o for operation in block.operations for o in operation.outputs}
    made.update({i.name: i for i in function.inputs})
    if not block.outputs or any(name not in made for name in block.outputs):
        raise BadData(f"{what} holds no ML Program that gives anything")
    colors = image_colors(spec, what=what)
    inputs = []
    for name, shape, dtype in (_typed(named, what) for named in function.inputs):
        image = name in colors and len(shape) == 4
        inputs.append((name, image_shape(shape), "uint8") if image else (name, shape, dtype))
    outputs = [_typed(made[name], what) for name in block.outputs if name not in classes]
    return inputs, outputs, colors


def _typed(named: Any, what: str) -> tuple[str, tuple[int, ...], str]:
    tensor = named.type.tensorType
    shape = tuple(
        int(d.constant.size) if d.WhichOneof("dimension") == "constant" else -1
        for d in tensor.dimensions
    )
    if tensor.dataType not in _DTYPES:
        raise UnsupportedError(f"{what}: {named.name!r} has a dtype that is not supported")
    return named.name, shape, _DTYPES[tensor.dataType]


def _ports(specs: Sequence[TensorSpec], border: _Border, what: str) -> list[Port]:
    ports = []
    order = match(specs, [name for name, _, _ in border], what=what)
    for spec, position in zip(specs, order, strict=True):
        name, shape, dtype = border[position]
        check_static(spec, shape, what=what)
        ports.append(Port(spec, name, np.dtype(dtype)))
    return ports


def open(path: Path, signature: Signature, threads: int) -> CoreMLSession:
    """Loads a ``.mlpackage``; see `edgekit.runtime.session.open_session`.

    Raises:
        UnsupportedError: this is not macOS.
    """
    reason = unavailable()
    if reason is not None:
        raise UnsupportedError(
            f"{TARGET} {path.name}: {reason}",
            hint="`edgekit verify` evaluates its program here; run it in Core ML on a Mac",
        )
    return CoreMLSession(path, signature, threads)


def read_signature(path: Path) -> Signature:
    """The names, shapes and dtypes that the program states; needs no Mac."""
    what = f"{TARGET} {path.name}"
    inputs, outputs = (
        tuple(stated_spec(name, shape, dtype, what=what) for name, shape, dtype in border)
        for border in _border(path)[:2]
    )
    return Signature(inputs=inputs, outputs=outputs)


def preload() -> None:
    """Imports coremltools; Core ML itself loads with the first model."""
    require("coremltools", "coremltools")
