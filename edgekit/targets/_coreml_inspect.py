"""What an ML Program holds, read from its operations: placement, and quantized tensors."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.signature import Signature
from edgekit.targets import Placement, Stored
from edgekit.targets._common import channel_digest, half
from edgekit.targets._coreml_classifier import LABEL, labelled, unique
from edgekit.targets._coreml_program import Constant, MilProgram, Operation
from edgekit.targets._reasons import Op, Role, reasons

__all__ = ["placement", "stored", "told", "told_otherwise"]

Array = np.ndarray[Any, Any]

_MOVES = (
    *(
        "cast",
        "concat",
        "crop",
        "depth_to_space",
        "expand_dims",
        "flatten2d",
        "pad",
        "pixel_shuffle",
    ),
    *("pixel_unshuffle", "reshape", "slice_by_index", "slice_by_size", "space_to_depth", "split"),
    *("squeeze", "stack", "tile", "transpose"),
)
"""Operators that compute nothing."""

_WASTE = ("cast", "dequantize", "pad", "quantize", "transpose")
_LAYERS = (
    *("add", "avg_pool", "conv", "conv_transpose", "linear", "matmul", "max_pool", "mul"),
    *("reduce_mean", "resize_bilinear", "sub", "upsample_bilinear", "upsample_nearest_neighbor"),
)
_CLAMPS = ("clip", "leaky_relu", "prelu", "relu", "relu6")
_KNOWN = {
    "gather": "an embedding's table is int8, and its rows are read in float",
    "border softmax": "makes a classifier's probabilities",
}
_WEIGHTS = {
    "conv": "weight",
    "conv_transpose": "weight",
    "gather": "x",
    "linear": "weight",
    "matmul": "y",
}
"""Parameters that hold a layer's weight, or an embedding's table."""

_U8_OFFSET = 128

_COLORS = {"RGB": ("RGB",), "BGR": ("RGB", "BGR"), "GRAY": ("GRAY",)}
"""Orders of colours that a program may ask Core ML for, by that of the model. One that takes blue
first may have the weights of its first layer in the other order."""


def placement(program: MilProgram) -> Placement:
    """Operations by type, and the type that they compute in.

    Core ML may run on integers what stands between ``dequantize`` and ``quantize``: a layer with
    its clamp. Whether it does depends on the device, so this is what the file lets it do.
    """
    roles = _Roles(program)
    ops: collections.Counter[str] = collections.Counter()
    waste: collections.Counter[str] = collections.Counter()
    float_ops = boundary = 0
    first: str | None = None
    made: list[Op] = []
    for operation in program.operations:
        if operation.kind.startswith("constexpr_"):
            continue  # restored when the model is loaded
        role = roles.of(operation)
        border_op = role == "border" or (
            role in ("quantize", "dequantize") and roles.at_border(operation)
        )
        joined = roles.joins(operation)
        inner = joined and not border_op
        ops[operation.kind] += 1
        made.append(
            Op(
                operation.kind,
                tuple(program.sources(operation)),
                tuple(p.name for p in operation.outputs),
                "border" if roles.of_pixels(operation) else "integer" if inner else role,
            )
        )
        if border_op:
            boundary += 1
        elif operation.kind in _WASTE and not joined:
            waste[operation.kind] += 1
        if role == "float":
            float_ops += 1
            dtype = operation.outputs[0].dtype
            first = first or f"{operation.kind} computes in {dtype} ({operation.name})"
    border = {p.name for p in (*program.inputs, *program.outputs)}
    return Placement(
        ops=dict(sorted(ops.items())),
        float_ops=float_ops,
        boundary_ops=boundary,
        first_fallback=first,
        bytes_by_dtype=_bytes(program),
        waste=dict(sorted(waste.items())),
        reasons=reasons(made, border, _KNOWN),
    )


def told(program: MilProgram) -> dict[str, Any] | None:
    """What a package tells an app: its images, and the labels of a classifier."""
    if not program.images and program.classifier is None:
        return None
    inputs = []
    for port in program.inputs:
        color = program.images.get(port.name)
        inputs.append(
            {"name": port.name, "image": color is not None, **({"color": color} if color else {})}
        )
    outputs: list[dict[str, Any]] = [{"name": p.name, "image": False} for p in program.outputs]
    if program.classifier is not None:
        labels = len(program.classifier.labels)
        outputs.append({"name": LABEL, "image": False, "labels": labels})
    kind = "Core ML image" if program.classifier is None else "Core ML image classifier"
    both = {"inputs": inputs, "outputs": outputs}
    return {"format": kind, "name": None, "licence": None, **both, "files": []}


def told_otherwise(
    program: MilProgram, signature: Signature, preprocess: Mapping[str, Any]
) -> list[str]:
    """Where a package's images and labels are not the model's, in words."""
    wrong = []
    taken = {s.name for s in signature.inputs if s.dtype == "uint8"}
    for name in sorted(taken | set(program.images)):
        color = program.images.get(name, "no image")
        wanted = _COLORS[str(preprocess["color"])] if name in taken else ("no image",)
        if color not in wanted:
            wrong.append(f"{name!r}: its image is {color}, not {' or '.join(wanted)}")
    scores = labelled(signature) if taken else None
    labels = None if program.classifier is None else program.classifier.labels
    right = None if scores is None else unique(scores.labels)
    if labels != right:
        wrong.append(f"its classifier's labels are {_few(labels)}, not {_few(right)}")
    elif scores is not None and not _classifies(program, scores.name):
        wrong.append(f"its classifier reads another value than {scores.name!r}")
    return wrong


def _classifies(program: MilProgram, scores: str) -> bool:
    """Whether the classifier reads an output of the program, or a softmax of it."""
    assert program.classifier is not None
    read = program.classifier.scores
    maker = next((o for o in program.operations if read in [p.name for p in o.outputs]), None)
    softmax = maker is not None and maker.kind == "softmax" and read not in _results(program)
    return read == scores or (
        softmax and maker is not None and list(program.sources(maker)) == [scores]
    )


def _few(labels: Sequence[str] | None) -> str:
    if labels is None:
        return "none"
    return ", ".join(map(repr, labels[:3])) + (f" and {len(labels) - 3} more" if labels[3:] else "")


class _Roles:
    """What each operation does."""

    def __init__(self, program: MilProgram) -> None:
        self._program = program
        self._inputs = {p.name for p in program.inputs}
        self._results = {p.name for p in program.outputs}
        self._maker = {p.name: o for o in program.operations for p in o.outputs}
        ports = (*program.inputs, *(p for o in program.operations for p in o.outputs))
        self._dtypes = {p.name: p.dtype for p in ports}
        self._readers: dict[str, list[Operation]] = {}
        for operation in program.operations:
            for name in program.sources(operation):
                self._readers.setdefault(name, []).append(operation)
        self._border = _border(program)
        self._integer: set[str] = set()
        for operation in program.operations:
            if operation.kind in (*_LAYERS, *_CLAMPS) and self._reads_integers(operation):
                self._follow(operation)

    def of(self, operation: Operation) -> Role:
        if operation.name in self._border:
            return "border"
        if operation.kind == "quantize":
            return "quantize"
        if operation.kind == "dequantize":
            return "dequantize"
        if operation.kind in _MOVES:
            return "move"
        whole = operation.name in self._integer or not self._has_float(operation)
        return "integer" if whole else "float"

    def _has_float(self, operation: Operation) -> bool:
        """Whether it reads or makes floating-point numbers; masks and indices are none."""
        names = [*self._program.sources(operation), *(p.name for p in operation.outputs)]
        return any(self._dtypes[name].startswith("float") for name in names)

    def at_border(self, operation: Operation) -> bool:
        """Whether it converts an input or an output of the model."""
        if operation.kind == "quantize":
            return (self._inputs | self._border) & self._behind(operation) != set()
        return self._results & self._before(operation) != set()

    def of_pixels(self, operation: Operation) -> bool:
        """Whether it belongs to a picture border, or makes a classifier's probabilities."""
        rounds = operation.kind == "quantize" and bool(self._border & self._behind(operation))
        return rounds or operation.name in self._border

    def joins(self, operation: Operation) -> bool:
        """Whether it belongs to a layer on integers."""
        if operation.kind == "quantize":
            return bool(self._behind(operation) & self._integer)
        if operation.kind == "dequantize":
            return bool(self._before(operation) & self._integer)
        return False

    def _behind(self, operation: Operation) -> set[str]:
        """What an operation reads, through what only moves data: names of values."""
        found = set()
        for name in self._program.sources(operation):
            maker = self._maker.get(name)
            if maker is not None and maker.kind in _MOVES:
                found |= self._behind(maker)
            else:
                found.add(name)
        return found

    def _before(self, operation: Operation) -> set[str]:
        """What reads an operation, through moves: names of operations, and of results."""
        found = set()
        for port in operation.outputs:
            found |= {port.name} & self._results
            for reader in self._readers.get(port.name, []):
                found |= self._before(reader) if reader.kind in _MOVES else {reader.name}
        return found

    def _reads_integers(self, operation: Operation) -> bool:
        makers = [self._maker.get(name) for name in self._behind(operation)]
        constant = ("constexpr_affine_dequantize", "constexpr_blockwise_shift_scale")
        kinds = {m.kind if m is not None else "" for m in makers} - set(constant)
        return kinds == {"dequantize"}

    def _follow(self, operation: Operation) -> None:
        """Marks a layer and its clamp, if what they make is read as integers alone."""
        chain = [operation]
        while True:
            names = self._before(chain[-1])
            readers = [self._maker[n] for n in names if n in self._maker]
            if names & self._results:
                return
            if all(reader.kind == "quantize" for reader in readers) and readers:
                self._integer |= {o.name for o in chain}
                return
            if len(readers) != 1 or readers[0].kind not in _CLAMPS:
                return
            chain.append(readers[0])


def _border(program: MilProgram) -> set[str]:
    """Names of what makes the model's input out of an image, and a classifier's probabilities."""
    given, found = set(program.images), set[str]()
    for operation in program.operations:
        made = operation.outputs[0].name if operation.outputs else ""
        if operation.kind in ("transpose", "mul", "add") and given & {*program.sources(operation)}:
            steps = [*program.sources(operation)]
            if len(steps) == 1 and len(found) < 3:
                found.add(operation.name)
                given = given if operation.kind == "add" else given | {made}
        scores = None if program.classifier is None else program.classifier.scores
        if operation.kind == "softmax" and made == scores and made not in _results(program):
            found.add(operation.name)
    return found


def _results(program: MilProgram) -> set[str]:
    return {p.name for p in program.outputs}


def _constants(program: MilProgram) -> Iterator[Constant]:
    yield from program.constants.values()
    for operation in program.operations:
        for values in operation.inputs.values():
            yield from (v for v in values if isinstance(v, Constant))


def _bytes(program: MilProgram) -> dict[str, int]:
    sizes: collections.Counter[str] = collections.Counter()
    for constant in _constants(program):
        if constant.nbytes:
            sizes[constant.dtype] += constant.nbytes
    return dict(sorted(sizes.items()))


def stored(program: MilProgram) -> list[Stored]:
    """Scales and zero points of all operations that quantize, and weights in fewer bits."""
    found: dict[Stored, None] = {}
    for operation in program.operations:
        if operation.kind in ("quantize", "dequantize"):
            found[_activation(program, operation)] = None
        elif operation.kind == "constexpr_affine_dequantize":
            found[_affine(program, operation)] = None
        elif operation.kind == "constexpr_blockwise_shift_scale":
            found[_blockwise(program, operation)] = None
        elif operation.kind in _WEIGHTS:
            weight = program.constant(operation, _WEIGHTS[operation.kind])
            if weight is not None and weight.dtype == "float16":
                assert not isinstance(weight.value, str)
                found[half(operation.name, weight.value)] = None
    return list(found)


def _array(program: MilProgram, operation: Operation, parameter: str) -> Array | None:
    constant = program.constant(operation, parameter)
    return None if constant is None or isinstance(constant.value, str) else constant.value


def _numbers(scale: Array, zero: Array | None, offset: int) -> tuple[Any, Any]:
    flat = scale.astype(np.float32).reshape(-1)
    zeros = np.zeros(flat.shape, np.int64) if zero is None else zero.astype(np.int64).reshape(-1)
    zeros = np.broadcast_to(zeros, flat.shape) - offset
    return tuple(float(s) for s in flat), tuple(int(z) for z in zeros)


def _activation(program: MilProgram, operation: Operation) -> Stored:
    if operation.kind == "quantize":
        unsigned = operation.outputs[0].dtype == "uint8"
        name = operation.name
    else:
        name = str(operation.inputs["input"][0])
        unsigned = _dtype_of(program, name) == "uint8"
    scale, zero = (_array(program, operation, p) for p in ("scale", "zero_point"))
    assert scale is not None
    offset = _U8_OFFSET if unsigned else 0
    return Stored(name, "activation", *_numbers(scale, zero, offset))


def _dtype_of(program: MilProgram, name: str) -> str:
    ports = [*program.inputs, *(p for o in program.operations for p in o.outputs)]
    return next((p.dtype for p in ports if p.name == name), "")


def _affine(program: MilProgram, operation: Operation) -> Stored:
    data, scale, zero, axis = (
        _array(program, operation, p) for p in ("quantized_data", "scale", "zero_point", "axis")
    )
    assert data is not None and scale is not None
    along = 0 if axis is None else int(axis)
    offset = _U8_OFFSET if data.dtype == np.uint8 else 0
    numbers = _numbers(scale, zero, offset)
    return Stored(
        operation.name, "weight", *numbers, channel_digest(data.astype(np.int16) - offset, along)
    )


def _blockwise(program: MilProgram, operation: Operation) -> Stored:
    data, scale, zero = (_array(program, operation, p) for p in ("data", "scale", "offset"))
    assert data is not None and scale is not None
    alike = [i for i, n in enumerate(scale.shape) if n == data.shape[i] and n == scale.size]
    along = alike[0] if alike else 0
    numbers = _numbers(scale, zero, 0)
    return Stored(operation.name, "weight", *numbers, channel_digest(data, along))
