"""The Open Inference Protocol v2 over HTTP, from the client's side: requests out, answers in.

Tensors travel in its binary extension (as Triton and KServe have it): a JSON header, then the raw
bytes of every tensor, little-endian. A server without the extension is asked in JSON. What comes
back is believed only once it was checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgekit.errors import BadData
from edgekit.signature import TensorSpec

__all__ = ["DATATYPES", "HEADER_LENGTH", "Request", "build", "input_specs", "model_path", "parse"]

HEADER_LENGTH: Final = "Inference-Header-Content-Length"

DATATYPES: Final = {
    "float32": "FP32",
    "float16": "FP16",
    "int64": "INT64",
    "int32": "INT32",
    "int16": "INT16",
    "int8": "INT8",
    "uint8": "UINT8",
    "bool": "BOOL",
}

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+=-]*")

Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Request:
    """One request: its id, its body, and the header fields that tell what the body is."""

    id: str
    body: bytes
    headers: Mapping[str, str]


def model_path(model: str, version: str | None) -> str:
    """``/v2/models/NAME[/versions/VERSION]``.

    Raises:
        BadData: a name that would mean another path.
    """
    for what, name in (("model", model), ("version", version)):
        if name is not None and (not _NAME.fullmatch(name) or len(name) > 200):
            raise BadData(
                f"{what} {name[:80]!r} cannot stand in a path",
                hint="allowed: letters, digits and _ . : @ + = -",
            )
    return f"/v2/models/{model}" + ("" if version is None else f"/versions/{version}")


def build(
    id: str,
    feeds: Arrays,
    outputs: Sequence[TensorSpec],
    *,
    binary: bool,
    timeout_us: int,
) -> Request:
    """The request that asks for ``outputs``.

    Args:
        id: names the request; an answer has to carry it too, if it carries one.
        feeds: arrays by input name, of dtypes in `DATATYPES`.
        outputs: what is asked for.
        binary: whether tensors go as raw bytes.
        timeout_us: how long the answer is of use, in microseconds (Triton's ``timeout``).

    Raises:
        BadData: a dtype that the protocol has no name for, or a float that JSON cannot hold.
    """
    inputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, value in feeds.items():
        datatype = DATATYPES.get(str(value.dtype))
        if datatype is None:
            raise BadData(f"input {name!r} is {value.dtype}; allowed: {', '.join(DATATYPES)}")
        entry: dict[str, Any] = {"name": name, "shape": list(value.shape), "datatype": datatype}
        if binary:
            data = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            entry["data"] = value.ravel().tolist()
        inputs.append(entry)
    wanted = [{"name": s.name, "parameters": {"binary_data": binary}} for s in outputs]
    document = {
        "id": id,
        "parameters": {"timeout": timeout_us},
        "inputs": inputs,
        "outputs": wanted if binary else [{"name": s.name} for s in outputs],
    }
    try:
        header = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise BadData(f"the inputs cannot be sent as JSON: {error}") from error
    headers = {"Content-Type": "application/json"}
    if binary:
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return Request(id, header + b"".join(tail), headers)


@dataclass(frozen=True)
class Parsed:
    """An answer that was checked: arrays by output name, the model's name and its version."""

    outputs: dict[str, np.ndarray[Any, Any]]
    model: str
    version: str | None


def parse(
    body: bytes,
    header_length: str | None,
    *,
    id: str,
    model: str,
    version: str | None,
    outputs: Sequence[TensorSpec],
) -> Parsed:
    """Reads an answer and holds it to what was asked.

    Args:
        body: the whole body.
        header_length: the field of that name, where the answer carries it.
        id, model, version: of the request; an answer of another one is refused.
        outputs: the names, shapes and dtypes that are allowed.

    Raises:
        BadData: it is no answer, or not to this request: another id, model or version; an output
            missing or of another shape or datatype; bytes too few or too many; a value that is not
            finite.
    """
    document, tail = _split(body, header_length)
    told = document.get("id")
    if told not in (None, "", id):
        raise BadData("it answers another request: its id is not the one that was sent")
    name, found_version = document.get("model_name"), document.get("model_version")
    if name != model:
        raise BadData(f"model {str(name)[:80]!r} answered, {model!r} was asked")
    if found_version is not None and not isinstance(found_version, str):
        raise BadData("its model_version is no text")
    if version is not None and found_version != version:
        raise BadData(f"version {str(found_version)[:80]!r} answered, {version!r} was asked")
    arrays = _outputs(document.get("outputs"), tail, outputs)
    return Parsed(arrays, model, found_version)


def input_specs(metadata: Mapping[str, Any]) -> tuple[tuple[TensorSpec, ...], ...]:
    """Inputs and outputs that a server's model metadata states; a free dimension becomes 1.

    Raises:
        BadData: it states none that we know.
    """
    names = {theirs: ours for ours, theirs in DATATYPES.items()}
    try:
        sides = [
            tuple(
                TensorSpec(
                    str(t["name"]), tuple(max(1, int(n)) for n in t["shape"]), names[t["datatype"]]
                )
                for t in metadata[side]
            )
            for side in ("inputs", "outputs")
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise BadData(f"the server's model metadata is not that of OIP v2: {error!r}") from error
    return tuple(sides)


def _split(body: bytes, header_length: str | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON header, and the bytes behind it."""
    length = len(body)
    if header_length is not None:
        if not header_length.isascii() or not header_length.isdigit() or len(header_length) > 12:
            raise BadData(f"its {HEADER_LENGTH} is {header_length[:40]!r}")
        length = int(header_length)
        if length > len(body):
            raise BadData(f"its {HEADER_LENGTH} is {length}, its body has {len(body)} bytes")
    try:
        document = json.loads(body[:length].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadData("it is not JSON") from error
    if not isinstance(document, dict):
        raise BadData("it is not a JSON object")
    return document, memoryview(body)[length:]


def _outputs(
    listed: object, tail: memoryview, wanted: Sequence[TensorSpec]
) -> dict[str, np.ndarray[Any, Any]]:
    if not isinstance(listed, list) or not all(isinstance(t, dict) for t in listed):
        raise BadData("it lists no outputs")
    specs = {spec.name: spec for spec in wanted}
    found: dict[str, np.ndarray[Any, Any]] = {}
    offset = 0
    for tensor in listed:
        parameters, data = tensor.get("parameters") or {}, tensor.get("data")
        if not isinstance(parameters, dict):
            raise BadData("an output's parameters are not an object")
        size = parameters.get("binary_data_size")
        if size is not None:
            if isinstance(size, bool) or not isinstance(size, int):
                raise BadData("an output's binary_data_size is no whole number")
            if size < 0 or offset + size > len(tail):
                raise BadData("its outputs are longer than its body")
            data, offset = tail[offset : offset + size], offset + size
        spec = specs.get(str(tensor.get("name")))
        if spec is None:
            continue  # more than was asked for
        if spec.name in found:
            raise BadData(f"output {spec.name!r} comes twice")
        found[spec.name] = _array(tensor, data, spec)
    if offset != len(tail):
        raise BadData("its body is longer than its outputs")
    missing = [name for name in specs if name not in found]
    if missing:
        raise BadData(f"output {', '.join(missing)} is missing")
    return found


def _array(tensor: Mapping[str, Any], data: object, spec: TensorSpec) -> np.ndarray[Any, Any]:
    shape, datatype = tensor.get("shape"), tensor.get("datatype")
    if shape != list(spec.shape):
        raise BadData(f"output {spec.name!r} has shape {str(shape)[:80]}, not {list(spec.shape)}")
    if datatype != DATATYPES[spec.dtype]:
        raise BadData(f"output {spec.name!r} is {str(datatype)[:40]}, not {DATATYPES[spec.dtype]}")
    dtype = np.dtype(spec.dtype)
    count = int(np.prod(spec.shape, dtype=np.int64))
    try:
        if isinstance(data, memoryview):
            if len(data) != count * dtype.itemsize:
                raise BadData(f"output {spec.name!r} has {len(data)} bytes for {count} values")
            # A copy: the caller may keep and change it, the body must not live on for it.
            value = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)
            if dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
                raise BadData(f"output {spec.name!r} holds something that is no {dtype}")
        else:
            value = _from_json(data, dtype, spec)
        value = value.reshape(spec.shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadData(f"output {spec.name!r} does not hold {count} values of {dtype}") from error
    spec.check(value, what="the server's answer")
    return value


def _from_json(data: object, dtype: np.dtype[Any], spec: TensorSpec) -> np.ndarray[Any, Any]:
    """Values out of JSON, flat or nested, none of which changes on the way."""
    if not isinstance(data, list):
        raise BadData(f"output {spec.name!r} carries no data")
    raw: np.ndarray[Any, Any] = np.asarray(data, dtype=object).ravel()
    if not all(_fits(value, dtype) for value in raw.tolist()):
        raise BadData(f"output {spec.name!r} holds something that is no {dtype}")
    with np.errstate(over="ignore"):  # infinity is refused with the rest
        return raw.astype(dtype)


def _fits(value: Any, dtype: np.dtype[Any]) -> bool:
    if dtype.kind == "b":
        return value in (0, 1) and isinstance(value, bool | int)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return isinstance(value, int) and bool(limits.min <= value <= limits.max)
