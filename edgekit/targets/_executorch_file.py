"""Reads an ExecuTorch program (``.pte``): what runs outside of XNNPACK, and the graphs inside.

A program is a flatbuffer with segments behind it, which ExecuTorch's own reader takes apart;
`edgekit.targets._executorch_xnnpack` reads the graphs.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import BadData
from edgekit.targets._executorch_xnnpack import Operator, Value

XNNPACK = "XnnpackBackend"
_GRAPHS = {
    XNNPACK: "_executorch_xnnpack",
    "VulkanBackend": "_executorch_vulkan",
    "CoreMLBackend": "_executorch_coreml",
}
"""Modules that read what a delegate got, by its name in the file."""

_DAMAGE = (
    ValueError,
    IndexError,
    KeyError,
    AssertionError,
    AttributeError,
    TypeError,
    struct.error,
)
_SCALARS = {
    5: "float16",
    0: "uint8",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    6: "float32",
    11: "bool",
}


class OtherDelegate(ValueError):
    """A program delegates to another backend, ``found``, than it was read for."""

    def __init__(self, found: str, wanted: str) -> None:
        super().__init__(f"it delegates to {found}, not to {wanted}")
        self.found = found


@dataclass(frozen=True)
class Contents:
    """A whole program.

    Attributes:
        operators: in the order they run.
        values: what they read and make, by name; constants carry their bytes.
        border: names of the program's inputs and outputs.
        inputs, outputs: what these are, in their order.
        whole: what the delegate got, where it got the whole model in one; else None.
        options: what was compiled with what options, for each call of a delegate.
    """

    operators: tuple[Operator, ...]
    values: Mapping[str, Value]
    border: frozenset[str]
    inputs: tuple[Value, ...] = ()
    outputs: tuple[Value, ...] = ()
    options: tuple[Mapping[str, bytes], ...] = ()
    whole: bytes | None = None


def read(path: Path, backend: str = XNNPACK) -> Contents:
    """Takes a ``.pte`` apart.

    Raises:
        BadData: it is damaged, or delegates to something else than ``backend``.
    """
    with quiet():
        from executorch.exir._serialize._program import deserialize_pte_binary

    try:
        with quiet():
            file = deserialize_pte_binary(path.read_bytes())
            return _Reader(file, backend).contents()
    except _DAMAGE as error:
        raise BadData(f"executorch {path.name} cannot be read: {error}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The converter prints and logs what is of use to those who work on it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _Reader:
    """A program that ExecuTorch's reader has taken apart, on the way to `Contents`."""

    def __init__(self, file: Any, backend: str) -> None:
        self._backend = backend
        self._program = file.program
        self._plan = file.program.execution_plan[0]
        self._named: dict[str, bytes] = {}
        if file.named_data is not None:
            buffers = file.named_data.buffers
            entries = file.named_data.pte_data
            self._named = {key: bytes(buffers[e.buffer_index]) for key, e in entries.items()}
        self._operators: list[Operator] = []
        self._values: dict[str, Value] = {}
        self._options: list[Mapping[str, bytes]] = []
        self._delegated: list[tuple[bytes, list[str]]] = []

    def contents(self) -> Contents:
        for i, value in enumerate(self._plan.values):
            if _is_tensor(value):
                self._values[_name(i)] = self._tensor(value.val)
        for chain in self._plan.chains:
            for instruction in chain.instructions:
                call = instruction.instr_args
                if type(call).__name__ == "DelegateCall":
                    self._delegate(call)
                elif type(call).__name__ == "KernelCall":
                    self._kernel(call)
        border = frozenset(_name(i) for i in (*self._plan.inputs, *self._plan.outputs))
        ends = tuple(
            tuple(self._values[_name(i)] for i in side if _name(i) in self._values)
            for side in (self._plan.inputs, self._plan.outputs)
        )
        return Contents(
            tuple(self._operators),
            self._values,
            border,
            ends[0],
            ends[1],
            tuple(self._options),
            self._whole(),
        )

    def _whole(self) -> bytes | None:
        """What the one delegate got that takes the program's inputs and gives its outputs."""
        ends = [_name(i) for i in (*self._plan.inputs, *self._plan.outputs)]
        if len(self._delegated) != 1 or any(not o.delegated for o in self._operators):
            return None
        blob, arguments = self._delegated[0]
        return blob if arguments == ends else None

    def _tensor(self, tensor: Any) -> Value:
        dtype = _SCALARS.get(int(tensor.scalar_type), tensor.scalar_type.name.lower())
        data = None
        if tensor.data_buffer_idx and tensor.allocation_info is None:
            data = bytes(self._program.constant_buffer[tensor.data_buffer_idx].storage)
            count = int(np.prod(tensor.sizes)) * np.dtype(dtype).itemsize
            data = data[:count]  # what follows is padding
        return Value(dtype, tuple(tensor.sizes), data)

    def _kernel(self, call: Any) -> None:
        operator = self._plan.operators[call.op_index]
        tensors = [i for i in call.args if _is_tensor(self._plan.values[i])]
        # An out-variant names its result last, and gives it back as one more argument.
        made = tensors[-1:]
        read = [i for i in dict.fromkeys(tensors) if i not in made]
        kind = ".".join(filter(None, (operator.name, operator.overload)))
        names = tuple(map(_name, read)), tuple(map(_name, made))
        self._operators.append(Operator(kind, *names, delegated=False))

    def _delegate(self, call: Any) -> None:
        delegate = self._plan.delegates[call.delegate_index]
        if delegate.id != self._backend:
            raise OtherDelegate(delegate.id, self._backend)
        blob = bytes(self._program.backend_delegate_data[delegate.processed.index].data)
        arguments = [_name(i) for i in call.args]
        self._delegated.append((blob, arguments))
        module = importlib.import_module(f"edgekit.targets.{_GRAPHS[self._backend]}")
        operators, values = module.graph(blob, self._named, arguments, call.delegate_index)
        self._options.append({s.key: bytes(s.value) for s in delegate.compile_specs})
        self._operators += operators
        self._values |= values


def _name(position: int) -> str:
    return f"value {position}"


def _is_tensor(value: Any) -> bool:
    return type(value.val).__name__ == "Tensor"
