"""LiteRT (TensorFlow Lite) on the CPU, with its default XNNPACK delegate."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgekit.errors import BadData, UnsupportedError
from edgekit.runtime.session import (
    Array,
    Port,
    check_static,
    closed,
    failed,
    match,
    natural_key,
    require,
    stated_spec,
    version_of,
)
from edgekit.signature import Signature, TensorSpec

TARGET = "tflite"

# The current wheel first; the older ones give the same `Interpreter` and read the same files.
_RUNTIMES = (
    ("ai_edge_litert", "ai_edge_litert.interpreter", "ai-edge-litert"),
    ("tflite_runtime", "tflite_runtime.interpreter", "tflite-runtime"),
    ("tensorflow", "tensorflow.lite", "tensorflow"),
)


class TfliteSession:
    """A ``.tflite`` file in LiteRT; see `edgekit.runtime.session.Session`."""

    target = TARGET

    def __init__(self, path: Path, signature: Signature, threads: int) -> None:
        self.signature = signature
        self.threads = threads
        self._what = f"{TARGET} {path.name}"
        self._interpreter: Any
        with _refusing(path):
            self._interpreter, self.runtime_version = _load(path, threads)
            inputs, outputs = _border(self._interpreter, path)
            self._inputs = _ports(signature.inputs, inputs, self._what)
            self._outputs = _ports(signature.outputs, outputs, self._what)
            for port in self._inputs:
                self._interpreter.resize_tensor_input(port.key, port.spec.shape, strict=True)
            self._interpreter.allocate_tensors()

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `edgekit.runtime.session.Session.run`."""
        self.prepare(feeds)
        try:
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise failed(self._what, error) from error
        # get_tensor copies, so the arrays outlive the next call.
        return {
            port.spec.name: port.decode(self._interpreter.get_tensor(port.key), what=self._what)
            for port in self._outputs
        }

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """See `edgekit.runtime.session.bare_call`."""
        if self._interpreter is None:
            raise closed(self._what)
        for index, value in self.encoded(feeds).items():
            self._interpreter.set_tensor(index, value)
        return cast("Callable[[], object]", self._interpreter.invoke)

    def encoded(self, feeds: Mapping[str, Array]) -> dict[int, Array]:
        """Inputs as the file takes them, by the tensors' indexes in its main subgraph.

        Raises:
            BadData: a feed does not fit the signature.
        """
        self.signature.check_inputs(feeds, what=self._what)
        return {port.key: port.encode(feeds[port.spec.name]) for port in self._inputs}

    def tensor_name(self, index: int) -> str:
        """The name in the file of one of its inputs."""
        details = self._interpreter.get_input_details()
        return next(str(d["name"]) for d in details if d["index"] == index)

    def close(self) -> None:
        """See `edgekit.runtime.session.Session.close`."""
        self._interpreter = None


def _runtime() -> tuple[Any, str]:
    """The `Interpreter` class of the first wheel that is installed, and that wheel's name."""
    found = (r for r in _RUNTIMES if importlib.util.find_spec(r[0]) is not None)
    _, module, distribution = next(found, _RUNTIMES[0])
    return require(module, distribution).Interpreter, distribution


def _load(path: Path, threads: int) -> tuple[Any, str]:
    interpreter, distribution = _runtime()
    _check_identifier(path)
    return interpreter(model_path=str(path), num_threads=threads), version_of(distribution)


def _check_identifier(path: Path) -> None:
    """The FlatBuffers file identifier stands at byte 4 (tflite schema, ``file_identifier``)."""
    with path.open("rb") as file:
        head = file.read(8)
    if head[4:8] != b"TFL3":
        raise BadData(f"{TARGET} {path.name} is not a TFLite file: its identifier is not TFL3")


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """LiteRT answers a damaged file with whatever its C++ or its own Python raises first."""
    try:
        yield
    except (RuntimeError, ValueError, LookupError) as error:
        message = f"{TARGET} cannot load {path.name}: {error}"
        if "custom op" in str(error) or "Didn't find op" in str(error):
            hint = "the file needs an operator this runtime lacks"
            raise UnsupportedError(message, hint=hint) from error
        raise BadData(message) from error


_Details = dict[str, dict[str, Any]]


def _border(interpreter: Any, path: Path) -> tuple[_Details, _Details]:
    """Input and output details by name, in the model's order.

    A SignatureDef's maps come sorted as text, ``args_10`` before ``args_2``, hence the natural
    sort; the converter numbers arguments and results in order. Without a SignatureDef the main
    subgraph's own order and tensor names count.
    """
    main = interpreter.get_input_details(), interpreter.get_output_details()
    for key in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(key)
        sides = runner.get_input_details(), runner.get_output_details()
        # Calls go to the main subgraph, so a signature counts only if it is that subgraph's.
        if all(
            {(d["index"], d["name"]) for d in side.values()}
            <= {(d["index"], d["name"]) for d in details}
            for side, details in zip(sides, main, strict=True)
        ):
            ordered = [{n: side[n] for n in sorted(side, key=natural_key)} for side in sides]
            return ordered[0], ordered[1]
    if interpreter.get_signature_list():
        raise UnsupportedError(f"{TARGET} {path.name}: no signature covers its main subgraph")
    return tuple({d["name"]: d for d in details} for details in main)  # type: ignore[return-value]


def _ports(specs: Sequence[TensorSpec], details: _Details, what: str) -> list[Port]:
    names = list(details)
    ports = []
    for spec, position in zip(specs, match(specs, names, what=what), strict=True):
        detail = details[names[position]]
        check_static(spec, _shape(detail), what=what)
        scale, zero_point = detail["quantization"]
        ports.append(
            Port(spec, detail["index"], np.dtype(detail["dtype"]), float(scale), int(zero_point))
        )
    return ports


def _shape(detail: dict[str, Any]) -> list[int]:
    stated = detail.get("shape_signature", detail["shape"])
    return [int(n) for n in (stated if len(stated) else detail["shape"])]


def open(path: Path, signature: Signature, threads: int) -> TfliteSession:
    """Loads a ``.tflite`` file; see `edgekit.runtime.session.open_session`."""
    return TfliteSession(path, signature, threads)


def read_signature(path: Path) -> Signature:
    """The names, shapes and dtypes of its SignatureDef, or else of its main subgraph."""
    what = f"{TARGET} {path.name}"
    with _refusing(path):
        interpreter, _ = _load(path, 1)
        inputs, outputs = (
            tuple(stated_spec(n, _shape(d), d["dtype"], what=what) for n, d in details.items())
            for details in _border(interpreter, path)
        )
    return Signature(inputs=inputs, outputs=outputs)


def preload() -> None:
    """Imports the interpreter."""
    _runtime()
