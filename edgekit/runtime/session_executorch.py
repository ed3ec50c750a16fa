"""ExecuTorch on the CPU, by the XNNPACK that its wheel brings.

The wheel's Python binding takes and gives torch tensors, so torch is imported here with it; a
device that runs ExecuTorch from C++, Java or Swift needs neither. Threads are the process's own:
the session that was opened last says how many all of them use.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    version_of,
)
from edgekit.signature import Signature, TensorSpec

TARGET = "executorch"

_METHOD = "forward"
# Numbers of the errors OperatorMissing and NotFound: this build lacks an operator or a delegate.
_ABSENT = re.compile(r"\b0x:?(14|20)\b")
# The scalar types of c10, by the names that the binding's metadata prints.
_DTYPES = {
    "Float": np.float32,
    "Half": np.float16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}


class ExecutorchSession:
    """A ``.pte`` file in ExecuTorch; see `edgekit.runtime.session.Session`."""

    target = TARGET

    def __init__(
        self, path: Path, signature: Signature, threads: int, *, trace: bool = False
    ) -> None:
        self.signature = signature
        self.threads = threads
        self.runtime_version = version_of("executorch")
        self._what = f"{TARGET} {path.name}"
        binding = _runtime()
        with _quiet():
            binding._unsafe_reset_threadpool(threads)
        # The program has to outlive its method.
        self._program, self._method = _load(path, trace=trace)
        inputs, outputs = _border(self._method.metadata)
        self._inputs = _ports(signature.inputs, inputs, self._what)
        self._outputs = _ports(signature.outputs, outputs, self._what)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `edgekit.runtime.session.Session.run`."""
        encoded = self._encoded(feeds)
        try:
            values = self._method.execute(encoded)
        except RuntimeError as error:
            raise failed(self._what, error) from error
        return {
            port.spec.name: port.decode(values[port.key].numpy().copy(), what=self._what)
            for port in self._outputs
        }

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """See `edgekit.runtime.session.bare_call`."""
        encoded, execute = self._encoded(feeds), self._method.execute
        return lambda: execute(encoded)

    def _encoded(self, feeds: Mapping[str, Array]) -> list[Any]:
        if self._method is None:
            raise closed(self._what)
        import torch

        self.signature.check_inputs(feeds, what=self._what)
        return [torch.from_numpy(p.encode(feeds[p.spec.name])) for p in self._inputs]

    def write_trace(self, dump: Path, debug: Path) -> None:
        """Writes the ETDump of all calls so far, if opened with ``trace``; else nothing."""
        if self._program is None:
            raise closed(self._what)
        self._program.write_etdump_result_to_file(str(dump), str(debug))

    def close(self) -> None:
        """See `edgekit.runtime.session.Session.close`."""
        self._method = self._program = None


def _runtime() -> Any:
    with _quiet():
        return require("executorch.extension.pybindings.portable_lib", "executorch")


def _load(path: Path, *, trace: bool = False) -> tuple[Any, Any]:
    _check_identifier(path)
    with _quiet():
        runtime = require("executorch.runtime", "executorch").Runtime.get()
        try:
            program = runtime.load_program(path, **({"enable_etdump": True} if trace else {}))
            if _METHOD not in program.method_names:
                raise BadData(f"{TARGET} {path.name} has no method {_METHOD!r}")
            return program, program.load_method(_METHOD)
        except RuntimeError as error:
            raise _refusal(path, error) from error


def _check_identifier(path: Path) -> None:
    """The FlatBuffers file identifier stands at byte 4 (``program.fbs``, ``file_identifier``)."""
    with path.open("rb") as file:
        head = file.read(8)
    if head[4:6] != b"ET":
        raise BadData(f"{TARGET} {path.name} is no ExecuTorch program: its identifier is not ET..")


def _refusal(path: Path, error: Exception) -> BadData | UnsupportedError:
    """ExecuTorch's error numbers, as its message gives them (``runtime/core/error.h``)."""
    message = f"{TARGET} cannot load {path.name}: {error}"
    if _ABSENT.search(str(error)):
        return UnsupportedError(message, hint="the file needs another build of executorch")
    return BadData(message)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The binding's first import logs, and its first load prints the processor to stderr."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        logging.disable(before)


_BACKENDS = {"vulkan": "VulkanBackend", "coreml": "CoreMLBackend"}


def unavailable(delegate: str | None = None) -> str | None:
    """Why ExecuTorch can't run what is made for a delegate here; None where it can.

    XNNPACK is in every build; of the others the runtime itself says which are in this one.
    """
    if delegate not in _BACKENDS or (name := _BACKENDS[delegate]) in _backends():
        return None
    return f"the ExecuTorch of this machine has no {name}, so nothing here can run it"


_ASK = """
from executorch.runtime import Runtime
known = Runtime.get().backend_registry
print("backends", *(n for n in known.registered_backend_names if known.is_available(n)))
"""


@functools.cache
def _backends() -> frozenset[str]:
    """The backends that ExecuTorch's runtime has here, by their names in files.

    Asked in a process of its own: the native library stays out of a caller that only converts, and
    `_quiet`, which is of a whole process, out of its threads.
    """
    asked = subprocess.run(
        [sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=120, check=False
    )
    lines = [line.split() for line in asked.stdout.splitlines()]
    return frozenset(name for line in lines if line[:1] == ["backends"] for name in line[1:])


_Details = list[tuple[list[int], str]]


def _border(metadata: Any) -> tuple[_Details, _Details]:
    """Shapes and types of the inputs and outputs, which have no names in the file."""
    inputs = [metadata.input_tensor_meta(i) for i in range(metadata.num_inputs())]
    outputs = [metadata.output_tensor_meta(i) for i in range(metadata.num_outputs())]
    return _details(inputs), _details(outputs)


def _details(infos: Sequence[Any]) -> _Details:
    return [([int(n) for n in i.sizes()], str(i).split("dtype=")[1].split(",")[0]) for i in infos]


def _dtype(name: str, what: str) -> Any:
    if name not in _DTYPES:
        raise UnsupportedError(f"{what}: a tensor is of type {name}, which is not supported")
    return _DTYPES[name]


def _ports(specs: Sequence[TensorSpec], details: _Details, what: str) -> list[Port]:
    places = [str(i) for i in range(len(details))]
    ports = []
    for spec, position in zip(specs, match(specs, places, what=what), strict=True):
        shape, dtype = details[position]
        check_static(spec, shape, what=what)
        ports.append(Port(spec, position, np.dtype(_dtype(dtype, what))))
    return ports


def open(path: Path, signature: Signature, threads: int) -> ExecutorchSession:
    """Loads a ``.pte`` file; see `edgekit.runtime.session.open_session`."""
    return ExecutorchSession(path, signature, threads)


def read_signature(path: Path) -> Signature:
    """Shapes and dtypes that the file states; names it does not have, so they are numbered."""
    what = f"{TARGET} {path.name}"
    _, method = _load(path)
    inputs, outputs = (
        tuple(
            stated_spec(f"{side}{i}", shape, _dtype(dtype, what), what=what)
            for i, (shape, dtype) in enumerate(details)
        )
        for side, details in zip(("input", "output"), _border(method.metadata), strict=True)
    )
    return Signature(inputs=inputs, outputs=outputs)


def preload() -> None:
    """Imports the binding, and torch with it."""
    _runtime()
