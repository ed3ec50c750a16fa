"""An emulation of Core ML: an ML Program's own operations, one after the other, in torch.

Core ML runs on Apple's systems alone. Elsewhere this says what a package *means*: the operations
that stand in its file, on the constants that stand in its file, each by the published definition of
its operator. It knows nothing of the model that the package was made of, so a wrong conversion
gives wrong answers here. What it can't show is what Apple's kernels make of the operations: their
own roundings, their fusions, and which unit they run on. Hence it is reported as ``emulated``, and
its speed and memory say nothing.

Values of half precision are stored as such after every operation; within one, sums are float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import edgekit
from edgekit.errors import BadData, EdgekitError, UnsupportedError
from edgekit.runtime.session import Array, Port, check_static, closed, failed, match
from edgekit.runtime.session_coreml import image_shape
from edgekit.signature import Signature
from edgekit.targets import _coreml_package
from edgekit.targets._coreml_layers import OPERATORS
from edgekit.targets._coreml_operators import Arguments
from edgekit.targets._coreml_program import Constant, MilProgram, Operation, program_of
from edgekit.targets._coreml_program import Port as Typed

__all__ = ["EmulatedSession", "evaluate", "unknown_operators"]

TARGET = "coreml"
_TORCH = {
    "bool": torch.bool,
    "float16": torch.float16,
    "float32": torch.float32,
    "int4": torch.int8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "uint16": torch.int32,
    "uint32": torch.int64,
}
"""Types to compute in; torch hardly computes with unsigned numbers of more than 8 bits."""

_SIGNED = {"uint16": np.int32, "uint32": np.int64}

Values = dict[str, Any]


class EmulatedSession:
    """A ``.mlpackage``, evaluated; see `edgekit.runtime.session.Session`."""

    target = TARGET
    emulated = True

    def __init__(self, path: Path, signature: Signature, threads: int) -> None:
        self.signature = signature
        self.threads = threads
        self.runtime_version = f"Core ML program, emulated by edgekit {edgekit.__version__}"
        self._what = f"{TARGET} {path.name}"
        program = program_of(_coreml_package.read(path))
        self._check_known(program)
        self._inputs = _ports(signature.inputs, program.inputs, self._what, program.images)
        self._outputs = _ports(signature.outputs, program.outputs, self._what)
        self._constants = {n: _tensor(c) for n, c in program.constants.items()}
        self._program: MilProgram | None = program
        torch.set_num_threads(threads)
        # Constants that are stored compressed are restored once, when a model is loaded.
        first = [o for o in program.operations if o.kind.startswith("constexpr_")]
        for operation in first:
            _step(operation, self._constants, self._what)
        self._steps = [o for o in program.operations if o not in first]

    def _check_known(self, program: MilProgram) -> None:
        if unknown := unknown_operators(program):
            raise UnsupportedError(
                f"{self._what}: the emulation has no operator {', '.join(map(repr, unknown))}",
                hint="verify it on macOS, where Core ML runs it",
            )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `edgekit.runtime.session.Session.run`."""
        if self._program is None:
            raise closed(self._what)
        self.signature.check_inputs(feeds, what=self._what)
        values: Values = dict(self._constants)
        for port in self._inputs:
            values[port.key] = self._fed(port, feeds[port.spec.name])
        with torch.no_grad():
            for operation in self._steps:
                _step(operation, values, self._what)
        return {
            port.spec.name: port.decode(values[port.key].numpy().copy(), what=self._what)
            for port in self._outputs
        }

    def _fed(self, port: Port, value: Array) -> torch.Tensor:
        """An input as the program takes it; Core ML makes of an image the numbers 0 to 255."""
        assert self._program is not None
        color = self._program.images.get(port.key)
        encoded = port.encode(value).copy()
        if color is None:
            return torch.from_numpy(encoded)
        typed = next(p for p in self._program.inputs if p.name == port.key)
        ordered = encoded[..., ::-1] if color == "BGR" else encoded
        planes = np.ascontiguousarray(ordered.transpose(0, 3, 1, 2))
        return torch.from_numpy(planes).to(_TORCH[typed.dtype])

    def close(self) -> None:
        """See `edgekit.runtime.session.Session.close`."""
        self._program = None
        self._constants = {}


def unknown_operators(program: MilProgram) -> list[str]:
    """Operators of a program that there is no definition of here."""
    return sorted({o.kind for o in program.operations} - OPERATORS.keys())


def evaluate(operation: Operation, values: Values, what: str = TARGET) -> list[torch.Tensor]:
    """The results of one operation, of the dtypes and shapes that the program states.

    Args:
        operation: what to compute.
        values: tensors and texts by name; half precision is computed on in float32.
        what: names the program in messages.

    Raises:
        UnsupportedError: there is no such operator here.
        BadData: the results have other shapes than the program states.
    """
    if operation.kind not in OPERATORS:
        raise UnsupportedError(f"{what}: the emulation has no operator {operation.kind!r}")
    given = {}
    for key, sources in operation.inputs.items():
        found = [_wide(_tensor(s) if isinstance(s, Constant) else values[s]) for s in sources]
        given[key] = found if key in operation.several else found[0]
    made = OPERATORS[operation.kind](Arguments(operation.kind, given), operation.outputs)
    results = [made] if isinstance(made, torch.Tensor) else list(made)
    return [_settled(r, p, what) for r, p in zip(results, operation.outputs, strict=True)]


def _step(operation: Operation, values: Values, what: str) -> None:
    try:
        results = evaluate(operation, values, what)
    except EdgekitError:
        raise
    except KeyError as error:
        raise BadData(f"{what}: {operation.name} reads {error}, which nothing makes") from error
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise failed(f"{what}, {operation.kind} {operation.name!r}", error) from error
    for port, result in zip(operation.outputs, results, strict=True):
        values[port.name] = result


def _wide(value: Any) -> Any:
    half = isinstance(value, torch.Tensor) and value.dtype == torch.float16
    return value.float() if half else value


def _settled(result: torch.Tensor, port: Typed, what: str) -> torch.Tensor:
    if tuple(result.shape) != port.shape:
        raise BadData(
            f"{what}: {port.name!r} comes out as {tuple(result.shape)}, "
            f"the program says {port.shape}"
        )
    return result.to(_TORCH[port.dtype])


def _tensor(constant: Constant) -> Any:
    if isinstance(constant.value, str):
        return constant.value
    dtype = _SIGNED.get(constant.dtype, constant.value.dtype)
    return torch.from_numpy(constant.value.astype(dtype))


def _ports(
    specs: Any, typed: tuple[Typed, ...], what: str, images: Mapping[str, str] | None = None
) -> list[Port]:
    ports = []
    order = match(specs, [port.name for port in typed], what=what)
    for spec, position in zip(specs, order, strict=True):
        port = typed[position]
        image = port.name in (images or {})
        check_static(spec, image_shape(port.shape) if image else port.shape, what=what)
        ports.append(Port(spec, port.name, np.dtype("uint8" if image else port.dtype)))
    return ports
