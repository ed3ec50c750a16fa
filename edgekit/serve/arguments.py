"""Whether a request's tensors are a model's: names, types and shapes."""

from __future__ import annotations

from edgekit.serve.hosted import Version
from edgekit.serve.oip import DATATYPES, InferRequest, datatype_of
from edgekit.serve.refusal import Refusal
from edgekit.serve.work import Array

__all__ = ["check_outputs", "inputs_of"]


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
