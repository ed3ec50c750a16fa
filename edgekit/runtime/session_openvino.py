"""OpenVINO on the CPU, tuned for the latency of one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from edgekit.errors import BadData, UnsupportedError
from edgekit.runtime._silence import silence
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

silence()

TARGET = "openvino"


class OpenVinoSession:
    """An ``.xml`` with its ``.bin`` in OpenVINO; see `edgekit.runtime.session.Session`."""

    target = TARGET

    def __init__(
        self,
        path: Path,
        signature: Signature,
        threads: int,
        settings: Mapping[str, Any] | None = None,
        batched: bool = False,
    ) -> None:
        self.signature = signature
        self.threads = threads
        self.runtime_version = version_of("openvino")
        self._what = f"{TARGET} {path.name}"
        core, model = _read(path)
        try:
            self._fix_shapes(model, batched)
            compiled = core.compile_model(model, "CPU", _settings(threads) | dict(settings or {}))
        except RuntimeError as error:
            raise UnsupportedError(f"{self._what} does not compile: {_first(error)}") from error
        self._inputs = _ports(signature.inputs, compiled.inputs, self._what)
        self._outputs = _ports(signature.outputs, compiled.outputs, self._what)
        self._request: Any = compiled.create_infer_request()

    def _fix_shapes(self, model: Any, batched: bool) -> None:
        """Static shapes let the plug-in plan memory and choose kernels once, at load.

        With ``batched``, the first dimension becomes the signature's, whatever it was.
        """
        specs = self.signature.inputs
        order = match(specs, _names(model.inputs, specs), what=self._what)
        shapes = {}
        for spec, position in zip(specs, order, strict=True):
            port = model.inputs[position]
            stated = _shape(port)
            if batched and stated:
                stated[0] = -1
            check_static(spec, stated, what=self._what)
            if batched or port.partial_shape.is_dynamic:
                shapes[port] = list(spec.shape)
        if shapes:
            model.reshape(shapes)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `edgekit.runtime.session.Session.run`."""
        if self._request is None:
            raise closed(self._what)
        self.signature.check_inputs(feeds, what=self._what)
        encoded = {port.key: port.encode(feeds[port.spec.name]) for port in self._inputs}
        # Inputs are read in place for this one call; outputs are copied out of the request.
        try:
            values = self._request.infer(encoded, share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise failed(self._what, error) from error
        return {
            port.spec.name: port.decode(np.asarray(values[port.key]), what=self._what)
            for port in self._outputs
        }

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """See `edgekit.runtime.session.bare_call`."""
        if self._request is None:
            raise closed(self._what)
        self.signature.check_inputs(feeds, what=self._what)
        tensor = require("openvino", "openvino").Tensor
        for port in self._inputs:
            # A copy: the request reads it later, when the caller may have changed his.
            value = np.array(port.encode(feeds[port.spec.name]), order="C")
            self._request.set_input_tensor(port.key, tensor(value, shared_memory=True))
        return cast("Callable[[], object]", self._request.infer)

    def profiling_info(self) -> list[Any]:
        """What each layer of the last call took, if compiled with the setting ``PERF_COUNT``."""
        if self._request is None:
            raise closed(self._what)
        return list(self._request.profiling_info)

    def close(self) -> None:
        """See `edgekit.runtime.session.Session.close`."""
        self._request = None


def _settings(threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # CPUs with AMX or AVX512-BF16 would otherwise run a float model in bfloat16; int8
        # operations stay int8 under this setting.
        "INFERENCE_PRECISION_HINT": "f32",
        # Two processes on one board would otherwise both be pinned to its first core.
        "ENABLE_CPU_PINNING": False,
    }


def _read(path: Path) -> tuple[Any, Any]:
    core = require("openvino", "openvino").Core()
    if not path.with_suffix(".bin").is_file():
        raise BadData(f"{TARGET} {path.name}: its weights {path.stem}.bin are not beside it")
    try:
        return core, core.read_model(str(path), str(path.with_suffix(".bin")))
    except RuntimeError as error:
        raise BadData(f"{TARGET} cannot read {path.name}: {_first(error)}") from error


def _first(error: Exception) -> str:
    """The last line of OpenVINO's message; the lines before it are its own source positions."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _names(ports: Sequence[Any], specs: Sequence[TensorSpec] = ()) -> list[str]:
    """One name for each port: of its several names the signature's, else the first by sorting."""
    wanted = {spec.name for spec in specs}
    names = []
    for index, port in enumerate(ports):
        own = sorted(port.get_names(), key=lambda name: (name not in wanted, name))
        names.append(own[0] if own else f"#{index}")
    return names


def _shape(port: Any) -> list[int]:
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        return []
    return [-1 if n.is_dynamic else int(n.get_length()) for n in shape]


def _dtype(port: Any, what: str) -> Any:
    try:
        return port.element_type.to_dtype()
    except (RuntimeError, ValueError, TypeError) as error:
        raise UnsupportedError(f"{what}: {port.element_type} is not supported") from error


def _ports(specs: Sequence[TensorSpec], nodes: Sequence[Any], what: str) -> list[Port]:
    ports = []
    order = match(specs, _names(nodes, specs), what=what)
    for spec, position in zip(specs, order, strict=True):
        check_static(spec, _shape(nodes[position]), what=what)
        ports.append(Port(spec, position, np.dtype(_dtype(nodes[position], what))))
    return ports


def open(path: Path, signature: Signature, threads: int) -> OpenVinoSession:
    """Loads an ``.xml`` file; see `edgekit.runtime.session.open_session`."""
    return OpenVinoSession(path, signature, threads)


def open_batched(path: Path, signature: Signature, threads: int) -> OpenVinoSession:
    """Loads an ``.xml`` file for several samples; see `edgekit.runtime.session.open_batched`."""
    return OpenVinoSession(path, signature, threads, batched=True)


def read_signature(path: Path) -> Signature:
    """The names, shapes and dtypes that the graph states."""
    _, model = _read(path)
    what = f"{TARGET} {path.name}"
    inputs, outputs = (
        tuple(
            stated_spec(name, _shape(port), _dtype(port, what), what=what)
            for name, port in zip(_names(ports), ports, strict=True)
        )
        for ports in (model.inputs, model.outputs)
    )
    return Signature(inputs=inputs, outputs=outputs)


def preload() -> None:
    """Imports openvino and starts its core; the CPU plug-in loads with the first model."""
    require("openvino", "openvino").Core()
