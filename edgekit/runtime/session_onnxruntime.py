"""ONNX Runtime on the CPU, all graph optimizations on.

On x86 without VNNI its kernels for u8 x s8 add two products in 16 bits and saturate. There the
session asks for its precise mode, which stores weights as u8 when the graph is optimized: the same
numbers, by kernels that multiply in 16 bits and add in 32.

One optimization is left out where the runtime trips over its own result: it moves int8 quantizers
through reshapes and, in files of opset 21, states their type (``output_dtype``), which its next one
contradicts as it turns them to uint8 (1.32, on x86). Such a session says so in its version.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edgekit.errors import BadData, EdgekitError, UnsupportedError
from edgekit.runtime.cpu import lacks_vnni
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

TARGET = "onnxruntime"

_PROPAGATION = "QDQPropagationTransformer"
_PROFILE = "profile"  # no setting of the runtime's: where its profile goes

_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class OnnxRuntimeSession:
    """An ONNX file in ONNX Runtime; see `edgekit.runtime.session.Session`."""

    target = TARGET

    def __init__(
        self, path: Path, signature: Signature, threads: int, *, profile: str = ""
    ) -> None:
        self.signature = signature
        self.threads = threads
        self._what = f"{TARGET} {path.name}"
        self._session: Any
        self._session, without = _load(path, threads, {_PROFILE: profile} if profile else {})
        self.runtime_version = version_of("onnxruntime") + without
        self._inputs = _ports(signature.inputs, self._session.get_inputs(), self._what)
        self._outputs = _ports(signature.outputs, self._session.get_outputs(), self._what)
        self._output_names = [port.key for port in self._outputs]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `edgekit.runtime.session.Session.run`."""
        encoded = self._encoded(feeds)
        try:
            values = self._session.run(self._output_names, encoded)
        except Exception as error:  # see _load
            raise failed(self._what, error) from error
        return {
            port.spec.name: port.decode(value, what=self._what)
            for port, value in zip(self._outputs, values, strict=True)
        }

    def prepare(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """See `edgekit.runtime.session.bare_call`."""
        encoded, run, names = self._encoded(feeds), self._session.run, self._output_names
        return lambda: run(names, encoded)

    def _encoded(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if self._session is None:
            raise closed(self._what)
        self.signature.check_inputs(feeds, what=self._what)
        return {port.key: port.encode(feeds[port.spec.name]) for port in self._inputs}

    def end_profiling(self) -> str:
        """Ends the profile that was begun by ``profile``, a path to which its end is added.

        Returns:
            The path of the file that was written.
        """
        if self._session is None:
            raise closed(self._what)
        return str(self._session.end_profiling())

    def close(self) -> None:
        """See `edgekit.runtime.session.Session.close`."""
        self._session = None


def _load(
    path: Path, threads: int, more: Mapping[str, str] = MappingProxyType({})
) -> tuple[Any, str]:
    """The session, and what it does without, for its version."""
    ort = require("onnxruntime", "onnxruntime")
    # Only without VNNI: with it the runtime would take slower kernels for the same answers.
    if lacks_vnni():
        try:
            return _loaded(ort, path, threads, {"session.x64quantprecision": "1", **more})
        except Exception:  # see below
            # It can't where two weights share a zero point; none of edgekit's artifacts does that.
            found = _plain(ort, path, threads, more)
            warnings.warn(
                f"{path.name}: ONNX Runtime refuses to run this file by its exact kernels, and "
                "int8 sums may saturate on this processor, which has no VNNI",
                RuntimeWarning,
                stacklevel=2,
            )
            return found
    return _plain(ort, path, threads, more)


def _plain(ort: Any, path: Path, threads: int, more: Mapping[str, str]) -> tuple[Any, str]:
    try:
        return _loaded(ort, path, threads, more)
    except Exception as error:  # ONNX Runtime's own exception types share no public base class
        raise _refusal(path, error) from error


def _loaded(ort: Any, path: Path, threads: int, settings: Mapping[str, str]) -> tuple[Any, str]:
    try:
        return _session(ort, path, threads, settings), ""
    except Exception as error:
        less = without_propagation(error)
        return _session(ort, path, threads, {**settings, **less}), f" without {_PROPAGATION}"


def without_propagation(error: Exception) -> dict[str, str]:
    """Settings for another try where a session's own optimization is what it failed by.

    Raises:
        Exception: it is something else, ``error`` itself.
    """
    # So far only of a file that the optimizer has changed: where it is in the file, it stays.
    if "output_dtype" not in str(error):
        raise error
    return {"optimization.disable_specified_optimizers": _PROPAGATION}


def _session(ort: Any, path: Path, threads: int, settings: Mapping[str, str]) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors only: warnings are about nodes it leaves unfused
    for name, value in settings.items():
        if name == _PROFILE:
            options.enable_profiling, options.profile_file_prefix = True, value
            continue
        options.add_session_config_entry(name, value)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _refusal(path: Path, error: Exception) -> EdgekitError:
    """ONNX Runtime names the class of failure in the exception's type."""
    message = f"{TARGET} cannot load {path.name}: {error}"
    if type(error).__name__ in {"NotImplemented", "InvalidGraph"}:
        return UnsupportedError(message, hint="the file needs another version of onnxruntime")
    return BadData(message)


def _shape(node: Any) -> list[int]:
    return [n if isinstance(n, int) else -1 for n in node.shape]


def _dtype(node: Any, what: str) -> Any:
    if node.type not in _DTYPES:
        raise UnsupportedError(f"{what}: {node.name!r} is a {node.type}, which is not supported")
    return _DTYPES[node.type]


def _ports(specs: Sequence[TensorSpec], nodes: Sequence[Any], what: str) -> list[Port]:
    ports = []
    for spec, position in zip(specs, match(specs, [n.name for n in nodes], what=what), strict=True):
        node = nodes[position]
        check_static(spec, _shape(node), what=what)
        ports.append(Port(spec, node.name, np.dtype(_dtype(node, what))))
    return ports


def open(path: Path, signature: Signature, threads: int) -> OnnxRuntimeSession:
    """Loads an ``.onnx`` file; see `edgekit.runtime.session.open_session`."""
    return OnnxRuntimeSession(path, signature, threads)


def read_signature(path: Path) -> Signature:
    """The names, shapes and dtypes that the graph states."""
    (session, _), what = _load(path, 1), f"{TARGET} {path.name}"
    inputs, outputs = (
        tuple(stated_spec(n.name, _shape(n), _dtype(n, what), what=what) for n in nodes)
        for nodes in (session.get_inputs(), session.get_outputs())
    )
    return Signature(inputs=inputs, outputs=outputs)


def preload() -> None:
    """Imports onnxruntime."""
    require("onnxruntime", "onnxruntime")
