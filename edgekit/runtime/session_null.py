"""The null runtime: a chain of linear layers in plain numpy, so that tests need no wheel.

An artifact is an ``.npz`` with float32 arrays ``w0`` [n0, n1], ``b0`` [n1], ``w1``, ``b1``, ...
The input is flattened after the batch; every layer but the last is followed by a ReLU.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgekit.errors import BadData
from edgekit.runtime.session import Array, Port, closed
from edgekit.signature import Signature, TensorSpec

TARGET = "null"


class NullSession:
    """A numpy session; see `edgekit.runtime.session.Session`."""

    target = TARGET

    def __init__(self, path: Path, signature: Signature, threads: int) -> None:
        self.signature = signature
        self.threads = threads
        self.runtime_version = f"numpy {np.__version__}"
        self._what = f"{TARGET} {path.name}"
        self._layers: list[tuple[Array, Array]] | None = _layers(path)
        if len(signature.inputs) != 1 or len(signature.outputs) != 1:
            raise BadData(f"{self._what}: the null target has exactly one input and one output")
        self._input = Port(signature.inputs[0], 0, np.dtype(np.float32))
        self._output = Port(signature.outputs[0], 0, np.dtype(np.float32))
        width = int(np.prod(signature.inputs[0].shape[1:], dtype=np.int64))
        if width != self._layers[0][0].shape[0]:
            raise BadData(
                f"{self._what}: the input has {width} values a sample, "
                f"the first layer takes {self._layers[0][0].shape[0]}"
            )

    @property
    def layers(self) -> list[tuple[Array, Array]]:
        """Weight and bias of each layer."""
        if self._layers is None:
            raise closed(self._what)
        return self._layers

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `edgekit.runtime.session.Session.run`."""
        if self._layers is None:
            raise closed(self._what)
        self.signature.check_inputs(feeds, what=self._what)
        x = self._input.encode(feeds[self._input.spec.name])
        x = x.reshape(x.shape[0], -1)
        for index, (w, b) in enumerate(self._layers):
            if index:
                x = np.maximum(x, 0.0)
            x = x @ w + b
        x = x.reshape(self._output.spec.shape) if x.size == self._size() else x
        return {self._output.spec.name: self._output.decode(x, what=self._what)}

    def _size(self) -> int:
        return int(np.prod(self._output.spec.shape, dtype=np.int64))

    def close(self) -> None:
        """See `edgekit.runtime.session.Session.close`."""
        self._layers = None


def _layers(path: Path) -> list[tuple[Array, Array]]:
    what = f"{TARGET} {path.name}"
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadData(f"{what} is not readable: {error}") from error
    layers: list[tuple[Array, Array]] = []
    while f"w{len(layers)}" in arrays:
        w, b = arrays[f"w{len(layers)}"], arrays.get(f"b{len(layers)}")
        if b is None or w.ndim != 2 or b.shape != (w.shape[1],):
            raise BadData(f"{what}: layer {len(layers)} needs w [n, m] and b [m]")
        if layers and layers[-1][0].shape[1] != w.shape[0]:
            raise BadData(f"{what}: layer {len(layers)} does not fit the one before it")
        layers.append((w.astype(np.float32), b.astype(np.float32)))
    if not layers:
        raise BadData(f"{what} holds no array w0")
    return layers


def open(path: Path, signature: Signature, threads: int) -> NullSession:
    """Loads the chain; see `edgekit.runtime.session.open_session`."""
    return NullSession(path, signature, threads)


def read_signature(path: Path) -> Signature:
    """One input ``x`` [1, n0] and one output ``y`` [1, last], float32."""
    layers = _layers(path)
    return Signature(
        inputs=(TensorSpec("x", (1, layers[0][0].shape[0])),),
        outputs=(TensorSpec("y", (1, layers[-1][0].shape[1])),),
    )


def preload() -> None:
    """Nothing to import: numpy is there already."""
