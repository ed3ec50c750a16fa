"""Whether a request's tensors are a model's: names, types and shapes."""

from __future__ import annotations

import math

from edgekit.serve.hosted import Version
from edgekit.serve.oip import DATATYPES, InferRequest, datatype_of
from edgekit.serve.refusal import Refusal
from edgekit.serve.work import Array

__all__ = ["check_json", "check_outputs", "inputs_of"]


_JSON_BYTES = 2**20
_ELEMENT_BYTES = 64


def check_json(size: int, version: Version) -> None:
    """Refuses more JSON than the model's tensors can be, before it is read.

    While JSON is read nothing else is answered, and a few compressed bytes hold up everybody for as
    long as the largest body takes.

    Raises:
        Refusal: 413.
    """
    elements = sum(math.prod(spec.shape) for spec in version.signature.inputs)
    most = max(_JSON_BYTES, _ELEMENT_BYTES * elements * version.engine.max_rows)
    if size > most:
        raise Refusal(413, f"JSON for this model has at most {most} bytes; tensors can be binary")


def inputs_of(request: InferRequest, version: Version) -> tuple[list[Array], int]:
    """The request's tensors in the signature's order, and how many samples they are.

    Raises:
        Refusal: 400, they are not what the model takes.
    """
    given = {tensor.name: tensor for tensor in request.inputs}
    specs = version.signature.inputs
    if set(given) != {spec.name for spec in specs}:
        names = ", ".join(spec.name for spec in specs)
        raise Refusal(400, f"the model's inputs are {names}, each once")
    engine, rows = version.engine, None
    values = []
    for spec in specs:
        tensor = given[spec.name]
        if DATATYPES[tensor.datatype] != spec.dtype:
            raise Refusal(400, f"input {spec.name!r} is of {datatype_of(spec.dtype)}")
        shape = tensor.value.shape
        if engine.by_rows:
            n = shape[0] if shape else 0
            fits = shape[1:] == spec.shape[1:] and n >= 1 and rows in (None, n)
            rows = n
        else:
            fits, rows = shape == spec.shape, 1
        if not fits:
            first = "N" if engine.by_rows else spec.shape[0] if spec.shape else ""
            wanted = ", ".join(map(str, [first, *spec.shape[1:]]))
            raise Refusal(400, f"input {spec.name!r} has the shape [{wanted}]")
        values.append(tensor.value)
    assert rows is not None
    if rows > engine.max_rows:
        raise Refusal(400, f"a request has at most {engine.max_rows} samples")
    return values, rows


def check_outputs(request: InferRequest, version: Version) -> None:
    """Refuses a wish for outputs that the model has not.

    Raises:
        Refusal: 400.
    """
    known = {spec.name for spec in version.signature.outputs}
    if not set(request.outputs) <= known:
        raise Refusal(400, f"the model's outputs are {', '.join(sorted(known))}")
