"""The Open Inference Protocol, version 2: requests to arrays and arrays to answers.

JSON and the binary tensor extension (``Inference-Header-Content-Length``: that many bytes of JSON,
then the tensors, little-endian, in the order of the list; each element of BYTES after its length in
four bytes). numpy alone, no server.

Stricter than JSON itself: NaN and Infinity, a key that stands twice, and numbers that their type
does not hold are refused. The two documents of the protocol contradict each other in places
(https://github.com/kserve/open-inference-protocol): an answer always carries ``model_name``, and
the shape always has as many elements as there are data.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from edgekit.serve.refusal import Refusal

__all__ = [
    "DATATYPES",
    "EXTENSIONS",
    "HEADER_LENGTH",
    "Array",
    "InferRequest",
    "Tensor",
    "datatype_of",
    "parse",
    "render",
]

Array = np.ndarray[Any, Any]

HEADER_LENGTH: Final = "inference-header-content-length"
EXTENSIONS: Final = ("binary_tensor_data", "model_repository", "statistics")

DATATYPES: Final = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
"""The protocol's names of types and numpy's; BYTES are arrays of ``bytes`` objects."""

_NAMES = {theirs: ours for ours, theirs in DATATYPES.items()}
_MAX_TENSORS = 64
_MAX_RANK = 16
_MAX_ELEMENTS = 2**40


@dataclass(frozen=True)
class Tensor:
    """One input: its name and its value, in the shape and type that the request states.

    A value out of the body is a view of it and cannot be written to.
    """

    name: str
    datatype: str
    value: Array


@dataclass(frozen=True)
class InferRequest:
    """One request.

    Attributes:
        inputs: in the request's order, no name twice.
        id: to be echoed, or None.
        parameters: as sent.
        outputs: names asked for, and whether each is wanted in binary; empty for all.
        binary: whether outputs that say nothing are wanted in binary.
    """

    inputs: tuple[Tensor, ...]
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, bool] = field(default_factory=dict)
    binary: bool = False


def datatype_of(dtype: str) -> str:
    """The protocol's name of a numpy dtype's name (``float32``: ``FP32``)."""
    return _NAMES[dtype]


def parse(body: bytes | memoryview, header_length: int | None = None) -> InferRequest:
    """Reads a request.

    Args:
        body: all of it, decompressed.
        header_length: bytes of JSON in front, where binary tensors follow; None if all is JSON.

    Raises:
        Refusal: 400, saying which part does not fit.
    """
    if header_length is None:
        head, rest = bytes(body), memoryview(b"")
    else:
        if not 0 <= header_length <= len(body):
            raise _bad(f"the body has {len(body)} bytes, its header says {header_length} of JSON")
        head, rest = bytes(body[:header_length]), memoryview(body)[header_length:]
    document = _document(head)
    parameters = _parameters(document, "the request")
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise _bad("id is not a string")
    inputs, at = [], 0
    for entry in _entries(document, "inputs", required=True):
        tensor, at = _input(entry, rest, at)
        inputs.append(tensor)
    if at != len(rest):
        raise _bad(
            f"{len(rest)} bytes follow the JSON, the inputs' binary_data_size add up to {at}"
        )
    names = [tensor.name for tensor in inputs]
    if len(set(names)) != len(names):
        raise _bad("an input stands twice")
    binary = _flag(parameters, "binary_data_output", False)
    return InferRequest(tuple(inputs), identity, parameters, _wanted(document, binary), binary)


def _document(head: bytes) -> dict[str, Any]:
    try:
        document = json.loads(
            head.decode("utf-8"), parse_constant=_constant, object_pairs_hook=_object
        )
    except UnicodeDecodeError as error:
        raise _bad("the JSON is not UTF-8") from error
    except RecursionError as error:
        raise _bad("the JSON is nested too deeply") from error
    except ValueError as error:
        raise _bad(f"the body is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise _bad("the JSON is not an object")
    return document


def _constant(name: str) -> None:
    raise _bad(f"{name} is no JSON number; send it in binary where the model takes it")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _bad("a key stands twice in one object")
    return found


def _entries(document: Mapping[str, Any], key: str, *, required: bool) -> list[dict[str, Any]]:
    entries = document.get(key)
    if entries is None and not required:
        return []
    if not isinstance(entries, list) or (required and not entries):
        raise _bad(f"{key} is not a list{' of at least one tensor' if required else ''}")
    if len(entries) > _MAX_TENSORS:
        raise _bad(f"{key} has {len(entries)} tensors, more than {_MAX_TENSORS}")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise _bad(f"an entry of {key} is no object with a name")
    return entries


def _parameters(entry: Mapping[str, Any], what: str) -> dict[str, Any]:
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise _bad(f"the parameters of {what} are not an object")
    if any(name.startswith("shared_memory") for name in parameters):
        raise _bad("shared memory is not served")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise _bad(f"{name} is neither true nor false")
    return value


def _wanted(document: Mapping[str, Any], binary: bool) -> dict[str, bool]:
    wanted: dict[str, bool] = {}
    for entry in _entries(document, "outputs", required=False):
        parameters = _parameters(entry, "an output")
        if parameters.get("classification"):
            raise _bad("classification is not served here; /v1/predict gives labels")
        if entry["name"] in wanted:
            raise _bad("an output stands twice")
        wanted[entry["name"]] = _flag(parameters, "binary_data", binary)
    return wanted


def _input(entry: Mapping[str, Any], rest: memoryview, at: int) -> tuple[Tensor, int]:
    name, datatype = entry["name"], entry.get("datatype")
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise _bad(f"input {_short(name)} has no datatype out of {', '.join(DATATYPES)}")
    shape = _shape(entry.get("shape"), name)
    size = _parameters(entry, f"input {_short(name)}").get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise _bad(f"input {_short(name)} has neither data nor binary_data_size")
        return Tensor(name, datatype, _from_json(entry["data"], datatype, shape, name)), at
    if "data" in entry:
        raise _bad(f"input {_short(name)} has both data and binary_data_size")
    if type(size) is not int or not 0 <= size <= len(rest) - at:
        raise _bad(f"input {_short(name)}: binary_data_size is not what follows the JSON")
    value = _from_bytes(rest[at : at + size], datatype, shape, name)
    return Tensor(name, datatype, value), at + size


def _shape(shape: Any, name: str) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > _MAX_RANK:
        raise _bad(f"input {_short(name)}: shape is not a list of at most {_MAX_RANK} numbers")
    # bool is an int in Python, not in the protocol.
    if any(type(n) is not int or not 0 <= n < 2**63 for n in shape):
        raise _bad(f"input {_short(name)}: a dimension is not a whole number of 0 or more")
    # numpy cannot hold a shape whose other dimensions are too large, even where one is 0.
    if math.prod(max(1, n) for n in shape) > _MAX_ELEMENTS:
        raise _bad(f"input {_short(name)}: the shape has too many elements")
    return tuple(shape)


def _from_bytes(data: memoryview, datatype: str, shape: tuple[int, ...], name: str) -> Array:
    count = math.prod(shape)
    if datatype == "BYTES":
        return _byte_elements(data, count, name).reshape(shape)
    dtype = np.dtype(DATATYPES[datatype]).newbyteorder("<")
    if len(data) != count * dtype.itemsize:
        raise _bad(
            f"input {_short(name)}: {count} elements of {datatype} are {count * dtype.itemsize} "
            f"bytes, binary_data_size is {len(data)}"
        )
    if datatype == "BOOL" and count and max(data) > 1:
        raise _bad(f"input {_short(name)}: BOOL bytes are 0 or 1")
    return np.frombuffer(data, dtype).reshape(shape).astype(DATATYPES[datatype], copy=False)


def _byte_elements(data: memoryview, count: int, name: str) -> Array:
    # Each takes at least four bytes, so the count is believed only then.
    if 4 * count > len(data):
        raise _bad(f"input {_short(name)}: {len(data)} bytes hold fewer than {count} elements")
    elements, at = np.empty(count, dtype=object), 0
    for i in range(count):
        if at + 4 > len(data):
            raise _bad(f"input {_short(name)}: an element's length is cut off")
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if at + size > len(data):
            raise _bad(f"input {_short(name)}: an element is cut off")
        elements[i] = bytes(data[at : at + size])
        at += size
    if at != len(data):
        raise _bad(f"input {_short(name)}: {len(data) - at} bytes are left over")
    return elements


def _from_json(data: Any, datatype: str, shape: tuple[int, ...], name: str) -> Array:
    flat = _flat(data, shape, name)
    kinds = set(map(type, flat))
    allowed: set[type] = {int, float} if datatype.startswith("FP") else {int}
    if datatype in ("BOOL", "BYTES"):
        allowed = {bool} if datatype == "BOOL" else {str}
    if kinds - allowed:
        found = ", ".join(sorted(kind.__name__ for kind in kinds - allowed))
        raise _bad(f"input {_short(name)}: {datatype} does not hold {found}")
    if datatype == "BYTES":
        texts = np.empty(len(flat), dtype=object)
        texts[:] = [text.encode("utf-8", "surrogatepass") for text in flat]
        return texts.reshape(shape)
    dtype = DATATYPES[datatype]
    try:
        with np.errstate(over="ignore"):
            value = np.array(flat, dtype=dtype)
    except (OverflowError, ValueError) as error:
        raise _bad(f"input {_short(name)}: a number lies outside {datatype}") from error
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise _bad(f"input {_short(name)}: a number lies outside {datatype}")
    return value.reshape(shape)


def _flat(data: Any, shape: tuple[int, ...], name: str) -> list[Any]:
    """The elements in row-major order, of a flat list or of lists nested as the shape says."""
    count = math.prod(shape)
    if not isinstance(data, list):
        raise _bad(f"input {_short(name)}: data is not a list")
    if not any(isinstance(item, list) for item in data):
        if len(data) != count:
            raise _bad(f"input {_short(name)}: the shape has {count} elements, data {len(data)}")
        return data
    level = data
    for i, n in enumerate(shape):
        if i == 0:
            fits = len(level) == n
        else:
            fits = all(isinstance(item, list) and len(item) == n for item in level)
            level = [inner for item in level if isinstance(item, list) for inner in item]
        if not fits:
            raise _bad(f"input {_short(name)}: data are not nested as the shape says")
    return level


def render(
    outputs: Sequence[tuple[str, Array]],
    *,
    model: str,
    version: str,
    request: InferRequest,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[bytes, int | None]:
    """The body of an answer.

    Args:
        outputs: names and values, in the model's order; those not asked for are left out.
        model, version: what computed them.
        request: whose id is echoed and whose wishes are kept.
        parameters: of the answer.

    Returns:
        The body and, where it holds binary tensors, the length of its JSON.

    Raises:
        Refusal: 500, an output that is to be JSON holds NaN or infinity.
    """
    entries: list[dict[str, Any]] = []
    tail: list[bytes] = []
    any_binary = False
    for name, value in outputs:
        if request.outputs and name not in request.outputs:
            continue
        kind = datatype_of(value.dtype.name)
        entry: dict[str, Any] = {"name": name, "datatype": kind, "shape": list(value.shape)}
        if request.outputs.get(name, request.binary):
            data = _to_bytes(value)
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
            any_binary = True
        else:
            entry["data"] = _to_json(value, name)
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    if parameters:
        document["parameters"] = dict(parameters)
    document["outputs"] = entries
    head = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    return b"".join([head, *tail]), len(head) if any_binary else None


def _to_bytes(value: Array) -> bytes:
    if value.dtype == object:
        flat = [bytes(item) for item in value.reshape(-1)]
        return b"".join(struct.pack("<I", len(item)) + item for item in flat)
    return value.astype(value.dtype.newbyteorder("<"), copy=False).tobytes()


def _to_json(value: Array, name: str) -> list[Any]:
    if value.dtype == object:
        try:
            return [bytes(item).decode("utf-8") for item in value.reshape(-1)]
        except UnicodeDecodeError as error:
            raise _bad(f"output {_short(name)} is not UTF-8; ask for it in binary") from error
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise Refusal(500, f"output {_short(name)} holds NaN or infinity, which JSON has not")
    flat: list[Any] = value.reshape(-1).tolist()
    return flat


def _short(name: str) -> str:
    return repr(name if len(name) <= 64 else f"{name[:61]}...")


def _bad(message: str) -> Refusal:
    return Refusal(400, message)
