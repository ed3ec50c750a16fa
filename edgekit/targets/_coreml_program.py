"""The operations of an ML Program, read from a package: names, types and constants as they stand.

The format is ``MIL.proto`` of coremltools: a function holds a block of operations for each version
of the operator set, and names the one that counts. Operators of compressed constants
(``constexpr_affine_dequantize``) carry their constants as attributes up to iOS17, as inputs since.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekit.errors import BadData, UnsupportedError
from edgekit.runtime.session_coreml import image_colors
from edgekit.targets import _coreml_classifier
from edgekit.targets._coreml_classifier import Classifier
from edgekit.targets._coreml_package import Package

__all__ = ["Constant", "MilProgram", "Operation", "Port", "program_of"]

Array = np.ndarray[Any, Any]

_DTYPES = {
    1: "bool",
    2: "str",
    10: "float16",
    11: "float32",
    21: "int8",
    22: "int16",
    23: "int32",
    25: "int4",
    31: "uint8",
    32: "uint16",
    33: "uint32",
}
"""``DataType`` of ``MIL.proto``, as far as programs here use it."""

_FIELDS = ("floats", "ints", "bools", "longInts", "doubles")


@dataclass(frozen=True)
class Port:
    """A value of the program: its name, dtype and shape. No shape is free."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """A constant: a number array of its shape (int4 as int8), or a text.

    Attributes:
        dtype: as stored; ``int4`` where two values share a byte.
        value: the array, or the text.
        stored: whether it lies in ``weight.bin`` rather than in the program.
    """

    dtype: str
    value: Array | str
    stored: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in the package."""
        if isinstance(self.value, str):
            return 0
        return (self.value.size + 1) // 2 if self.dtype == "int4" else int(self.value.nbytes)


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        kind: the operator's name, e.g. ``conv``.
        name: its own.
        inputs: by parameter, the names of values or constants given in place, one or several.
        several: parameters that take a list.
        outputs: what it makes.
    """

    kind: str
    name: str
    inputs: dict[str, tuple[str | Constant, ...]]
    several: frozenset[str]
    outputs: tuple[Port, ...]


@dataclass(frozen=True)
class MilProgram:
    """The main function.

    Attributes:
        opset: version of the operator set, e.g. ``CoreML7`` (iOS17).
        inputs: in the model's order.
        outputs: the same, typed by the operations that make them; without a classifier's label
            and dictionary.
        constants: by name.
        operations: all but constants and ``classify``, in order.
        images: by the names of image inputs, the order of colours that the program takes.
        classifier: what a classifier classifies by.
    """

    opset: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    constants: dict[str, Constant]
    operations: tuple[Operation, ...]
    images: dict[str, str] = field(default_factory=dict)
    classifier: Classifier | None = None

    def sources(self, operation: Operation) -> Iterator[str]:
        """Names of the computed values that an operation reads."""
        for values in operation.inputs.values():
            for value in values:
                if isinstance(value, str) and value not in self.constants:
                    yield value

    def constant(self, operation: Operation, parameter: str) -> Constant | None:
        """The constant given for a parameter; None where it is computed or not given."""
        given = operation.inputs.get(parameter, ())
        if len(given) != 1:
            return None
        return given[0] if isinstance(given[0], Constant) else self.constants.get(given[0])


def program_of(package: Package) -> MilProgram:
    """The main function of a package's program.

    Raises:
        BadData: the program is damaged.
        UnsupportedError: it holds what is not read here: free shapes, control flow, other dtypes.
    """
    what = f"coreml {package.name}"
    function = package.spec.mlProgram.functions["main"]
    if function.opset not in function.block_specializations:
        raise BadData(f"{what}: its program has no block for {function.opset or 'any opset'}")
    block = function.block_specializations[function.opset]
    inputs = tuple(_port(named, what) for named in function.inputs)
    constants: dict[str, Constant] = {}
    operations = []
    for proto in block.operations:
        if proto.blocks:
            raise UnsupportedError(f"{what}: operator {proto.type!r} holds a program of its own")
        if proto.type == "const":
            constants[proto.outputs[0].name] = _constant(proto.attributes["val"], package)
        elif proto.type != "classify":
            operations.append(_operation(proto, package))
    known = {port.name: port for port in inputs}
    for operation in operations:
        known.update({port.name: port for port in operation.outputs})
    classifier = _coreml_classifier.read(package.spec, what)
    described = package.spec.description
    classes = (described.predictedFeatureName, described.predictedProbabilitiesName)
    names = [name for name in block.outputs if classifier is None or name not in classes]
    wanted = [*names, *(() if classifier is None else (classifier.scores,))]
    lost = next((name for name in wanted if name not in known), None)
    if lost is not None:
        raise BadData(f"{what}: nothing makes its output {lost!r}")
    return MilProgram(
        function.opset,
        inputs,
        tuple(known[name] for name in names),
        constants,
        tuple(operations),
        _images(package, known, what),
        classifier,
    )


def _images(package: Package, known: dict[str, Port], what: str) -> dict[str, str]:
    colors = image_colors(package.spec, what=what)
    for feature in package.spec.description.input:
        if feature.name not in colors:
            continue
        image, port = feature.type.imageType, known.get(feature.name)
        depth = 1 if colors[feature.name] == "GRAY" else 3
        if port is None or port.shape != (1, depth, image.height, image.width):
            raise BadData(f"{what}: image {feature.name!r} is not what its program takes")
    return colors


def _operation(proto: Any, package: Package) -> Operation:
    inputs: dict[str, tuple[str | Constant, ...]] = {}
    several = set()
    for key, argument in proto.inputs.items():
        given = [
            b.name if b.WhichOneof("binding") == "name" else _constant(b.value, package)
            for b in argument.arguments
        ]
        inputs[key] = tuple(given)
        if len(given) != 1:
            several.add(key)
    for key, value in proto.attributes.items():
        if key != "name":
            inputs[key] = (_constant(value, package),)
    if proto.type in ("concat", "stack"):
        several.add("values")
    what = f"coreml {package.name}"
    outputs = tuple(_port(named, what) for named in proto.outputs)
    name = outputs[0].name if outputs else proto.type
    return Operation(proto.type, name, inputs, frozenset(several), outputs)


def _port(named: Any, what: str) -> Port:
    kind = named.type
    if kind.WhichOneof("type") != "tensorType":
        raise UnsupportedError(f"{what}: {named.name!r} is no tensor")
    shape = []
    for dimension in kind.tensorType.dimensions:
        if dimension.WhichOneof("dimension") != "constant":
            raise UnsupportedError(f"{what}: {named.name!r} has no fixed shape")
        shape.append(int(dimension.constant.size))
    return Port(named.name, _dtype(kind.tensorType.dataType, named.name, what), tuple(shape))


def _dtype(number: int, name: str, what: str) -> str:
    if number not in _DTYPES:
        raise UnsupportedError(f"{what}: {name!r} has a dtype that is not known: {number}")
    return _DTYPES[number]


def _constant(value: Any, package: Package) -> Constant:
    what = f"coreml {package.name}"
    if value.type.WhichOneof("type") != "tensorType":
        raise UnsupportedError(f"{what}: a constant is no tensor")
    tensor = value.type.tensorType
    shape = [int(d.constant.size) for d in tensor.dimensions]
    dtype = _dtype(tensor.dataType, "a constant", what)
    if value.WhichOneof("value") == "blobFileValue":
        blob = package.blob(value.blobFileValue.offset)
        if blob.dtype != dtype:
            raise BadData(f"{what}: a constant of {dtype} is stored as {blob.dtype}")
        return Constant(dtype, _shaped(blob.values, shape, what), stored=True)
    held = value.immediateValue.tensor
    field = held.WhichOneof("value")
    if field == "strings":
        return Constant("str", held.strings.values[0] if held.strings.values else "")
    plain = "int8" if dtype == "int4" else dtype
    if field == "bytes":
        if dtype == "int4":
            raise UnsupportedError(f"{what}: a constant of int4 stands in the program itself")
        data = np.frombuffer(held.bytes.values, np.uint8)
        if data.size % np.dtype(plain).itemsize:
            raise BadData(f"{what}: a constant is cut off")
        return Constant(dtype, _shaped(data.view(plain), shape, what))
    if field in _FIELDS:
        return Constant(dtype, _shaped(np.array(getattr(held, field).values, plain), shape, what))
    # A tensor without a single value has no field set.
    return Constant(dtype, _shaped(np.zeros(0, plain), shape, what))


def _shaped(values: Array, shape: list[int], what: str) -> Array:
    if values.size == 1 and not shape:
        return values.reshape(())
    if values.size != int(np.prod(shape, dtype=np.int64)):
        raise BadData(f"{what}: a constant has {values.size} values for the shape {shape}")
    return values.reshape(shape)
