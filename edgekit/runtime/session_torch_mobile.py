"""PyTorch Mobile's lite interpreter on the CPU, out of torch's own wheel.

Its engine for integers (QNNPACK, as on phones) and its number of threads are the process's own
settings in torch: a session sets both while it loads and runs, and puts the engine back after that.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import BadData, UnsupportedError
from edgekit.runtime.ptl import Program, operators_of, read_program
from edgekit.runtime.session import (
    Array,
    Port,
    check_static,
    closed,
    failed,
    match,
    require,
    version_of,
)
from edgekit.signature import Signature, TensorSpec

TARGET = "torch-mobile"

_ENGINE = "qnnpack"


class TorchMobileSession:
    """A ``.ptl`` file in the lite interpreter; see `edgekit.runtime.session.Session`."""

    target = TARGET

    def __init__(self, path: Path, signature: Signature, threads: int) -> None:
        self.signature = signature
        self.threads = threads
        self.runtime_version = version_of("torch")
        self._what = f"{TARGET} {path.name}"
        self._torch = require("torch", "torch")
        program = read_program(path, operators_of(self._torch))
        stated = _stated(path, program)
        if stated is None:  # another's file: its tensors are taken by their order
            stated = signature
        for ours, theirs in ((stated.inputs, program.inputs), (stated.outputs, program.results)):
            if len(ours) != len(theirs):
                names = ", ".join(spec.name for spec in ours)
                raise BadData(f"{self._what}: {names} are {len(ours)}, its code has {len(theirs)}")
        self._inputs = _ports(signature.inputs, stated.inputs, self._what)
        self._outputs = _ports(signature.outputs, stated.outputs, self._what)
        self._module: Any = _load(self._torch, path)
        self._try()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `edgekit.runtime.session.Session.run`."""
        encoded = self._encoded(feeds)
        try:
            values = self._call(encoded)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise failed(self._what, _said(error)) from error
        return {
            port.spec.name: port.decode(values[port.key], what=self._what) for port in self._outputs
        }

    def close(self) -> None:
        """See `edgekit.runtime.session.Session.close`."""
        self._module = None

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """See `edgekit.runtime.session.bare_call`."""
        tensors = self._tensors(self._encoded(feeds))
        return lambda: self._answer(tensors)

    def _encoded(self, feeds: Mapping[str, Array]) -> list[Array]:
        if self._module is None:
            raise closed(self._what)
        self.signature.check_inputs(feeds, what=self._what)
        return [port.encode(feeds[port.spec.name]) for port in self._inputs]

    def _tensors(self, arrays: Sequence[Array]) -> list[Any]:
        ordered = sorted(zip(self._inputs, arrays, strict=True), key=lambda pair: pair[0].key)
        # torch shares an array's memory, and warns of one that may not be written.
        share = self._torch.from_numpy
        return [share(a if a.flags.writeable else a.copy()) for _, a in ordered]

    def _answer(self, tensors: Sequence[Any]) -> Any:
        with _settings(self._torch, self.threads), self._torch.no_grad():
            return self._module(*tensors)

    def _call(self, arrays: Sequence[Array]) -> list[Array]:
        answer = self._answer(self._tensors(arrays))
        values = answer if isinstance(answer, tuple | list) else [answer]
        # A result may be an input or a constant of the model, which are not the caller's.
        return [np.array(value.numpy(), order="C") for value in values]

    def _try(self) -> None:
        """Runs once: kernels pack their weights then, and what does not fit shows."""
        ones = [np.ones(port.spec.shape, port.dtype) for port in self._inputs]
        try:
            with warnings.catch_warnings():
                # torch tells once that it will drop quantized tensors; edgekit pins its version.
                warnings.simplefilter("ignore")
                values = self._call(ones)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise BadData(failed(self._what, _said(error)).message) from error
        for port in self._outputs:
            check_static(port.spec, values[port.key].shape, what=self._what)


@contextlib.contextmanager
def _settings(torch: Any, threads: int) -> Iterator[None]:
    before = torch.backends.quantized.engine
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.backends.quantized.engine = _ENGINE
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def _load(torch: Any, path: Path) -> Any:
    mobile = require("torch.jit.mobile", "torch")
    try:
        with _settings(torch, torch.get_num_threads()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return mobile._load_for_lite_interpreter(str(path))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
        raise _refusal(path, error) from error


def _said(error: Exception) -> Exception:
    """What the interpreter says without the note behind it that it knows no source lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return RuntimeError(lines[0] if lines else type(error).__name__)


def _refusal(path: Path, error: Exception) -> BadData:
    return BadData(f"{TARGET} cannot load {path.name}: {str(_said(error))[:400]}")


def _stated(path: Path, program: Program) -> Signature | None:
    """The signature that edgekit writes beside the model; None in a file that is another's."""
    if not program.stated:
        return None
    try:
        return Signature.from_json(json.loads(program.stated))
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"{TARGET} cannot load {path.name}: its signature is damaged") from error


def _ports(specs: Sequence[TensorSpec], stated: Sequence[TensorSpec], what: str) -> list[Port]:
    ports = []
    places = match(specs, [s.name for s in stated], what=what)
    for spec, place in zip(specs, places, strict=True):
        check_static(spec, stated[place].shape, what=what)
        ports.append(Port(spec, place, np.dtype(stated[place].dtype)))
    return ports


def open(path: Path, signature: Signature, threads: int) -> TorchMobileSession:
    """Loads a ``.ptl`` file; see `edgekit.runtime.session.open_session`."""
    return TorchMobileSession(path, signature, threads)


def read_signature(path: Path) -> Signature:
    """The names, shapes and dtypes that edgekit wrote into the file."""
    stated = _stated(path, read_program(path, operators_of(require("torch", "torch"))))
    if stated is None:
        raise UnsupportedError(
            f"{TARGET} {path.name} does not state its inputs' shapes",
            hint="bench the bundle, whose signature fixes it, or export with edgekit",
        )
    return stated


def preload() -> None:
    """Imports torch."""
    require("torch.jit.mobile", "torch")
