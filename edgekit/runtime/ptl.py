"""Reading a ``.ptl`` file of PyTorch Mobile without running it.

It is a zip of pickles: ``bytecode.pkl`` holds the instructions of the lite interpreter with their
operators and constants, ``data.pkl`` the module's attributes, ``data/N`` the bytes of its tensors.

torch's own loader (2.13) believes what it reads: a method that takes what it is not given, or an
instruction for a register that is not there, ends the process. So a file is gone through here
first, instruction by instruction, and only straight code is taken, which is what a traced model is.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import BadData

__all__ = ["Call", "Packed", "Program", "Tensor", "canonical_bytes", "read_program"]

_DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
}


@dataclass(frozen=True)
class Tensor:
    """A constant.

    Attributes:
        values: as stored; integers where it is quantized.
        scheme: ``per_channel_affine``, ``per_tensor_affine``, or empty for a plain tensor.
        scale: one, or one per channel; empty for a plain tensor.
        zero_point: as many.
        axis: the channel axis; None for one scale.
    """

    values: np.ndarray[Any, Any]
    scheme: str = ""
    scale: tuple[float, ...] = ()
    zero_point: tuple[int, ...] = ()
    axis: int | None = None

    @property
    def arrays(self) -> tuple[np.ndarray[Any, Any], ...]:
        """All that the file holds of it."""
        if self.scheme != "per_channel_affine":
            return (self.values,)
        return self.values, np.array(self.scale), np.array(self.zero_point, np.int64)


class Packed:
    """An object of a class of torch, by its state: the module itself, or a layer's constants."""

    kind = ""
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensors(self) -> list[Tensor]:
        """Every tensor in its state."""
        return _tensors(self.state)


@dataclass(frozen=True)
class Value:
    """What an operator gives, or an input of the program."""

    name: str


@dataclass(frozen=True)
class Attribute:
    """An attribute of the module: a constant by its name."""

    name: str
    value: Any


@dataclass(frozen=True)
class Call:
    """One executed operator.

    Attributes:
        op: its name with the namespace, e.g. ``quantized::conv2d``.
        args: numbers, lists, `Value`, `Attribute`.
        outputs: what it gives.
    """

    op: str
    args: tuple[Any, ...]
    outputs: tuple[Value, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the computed tensors that it reads."""
        return tuple(v.name for v in _flat(self.args) if isinstance(v, Value))


@dataclass(frozen=True)
class Program:
    """A ``.ptl`` file.

    Attributes:
        inputs: what it takes, in order.
        calls: its operators, in the order in which they run.
        results: names of what it gives.
        attributes: its constants by name, in the file's order.
    """

    inputs: tuple[str, ...]
    calls: tuple[Call, ...]
    results: tuple[str, ...]
    attributes: Mapping[str, Any]


def read_program(path: Path) -> Program:
    """Reads a ``.ptl`` file; nothing in it is run, and no class but those known is made.

    Raises:
        BadData: it is no such file, or holds what edgekit's files don't.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            root = next(n for n in names if n.endswith("/bytecode.pkl")).rsplit("/", 1)[0]

            def load(name: str) -> Any:
                return _Reader(archive, f"{root}/{name}").load()

            return _run_through(load("bytecode.pkl"), load("data.pkl"))
    except BadData:
        raise
    except Exception as error:  # a damaged pickle fails in any way there is
        raise BadData(f"torch-mobile cannot read {path.name}: {error}") from error


class _Reader(pickle.Unpickler):
    """Unpickles numbers, lists, tensors and `Packed` objects, nothing else."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        super().__init__(io.BytesIO(archive.read(name)))
        self._archive, self._folder = archive, name.removesuffix(".pkl")

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch" and name in ("per_channel_affine", "per_tensor_affine"):
            return name
        if module.startswith("__torch__"):
            return type("Packed", (Packed,), {"kind": f"{module}.{name}"})
        known = {
            "torch._utils._rebuild_tensor_v2": _plain,
            "torch._utils._rebuild_qtensor": _quantized,
            "collections.OrderedDict": dict,
            "torch.jit._pickle.restore_type_tag": lambda value, _: value,
        }
        found = known.get(f"{module}.{name}")
        if found is None and module == "torch.jit._pickle" and name.startswith("build_"):
            found = list
        if found is None:
            raise BadData(f"it names {module}.{name}, which no such file needs")
        return found

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not str(key).isdigit():
            raise BadData(f"it refers to {pid!r}, which is no tensor's bytes")
        return np.frombuffer(self._archive.read(f"{self._folder}/{key}"), np.dtype(dtype))


def _plain(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    size = storage.itemsize
    view: np.ndarray[Any, Any] = np.ndarray(
        shape, storage.dtype, storage, offset * size, tuple(n * size for n in strides)
    )
    return Tensor(view)


def _quantized(storage: Any, offset: int, shape: Any, strides: Any, how: Any, *_: Any) -> Tensor:
    values, scheme = _plain(storage, offset, shape, strides).values, how[0]
    if scheme == "per_tensor_affine":
        return Tensor(values, scheme, (float(how[1]),), (int(how[2]),))
    scale, zero = (part.values.tolist() for part in how[1:3])
    return Tensor(values, scheme, tuple(scale), tuple(zero), int(how[3]))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Packed):
        return value.tensors()
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, list | tuple) else []


def _flat(value: Any) -> list[Any]:
    return [v for part in value for v in _flat(part)] if isinstance(value, list | tuple) else [value]


def _run_through(bytecode: Any, data: Any) -> Program:
    method = next(m for m in bytecode[1:] if m[0].endswith(".forward"))
    code, schema = dict(method[1]), dict(method[2])
    attributes = {n: v for n, v in data.state.items() if _tensors(v)}
    names = [dict(argument)["name"] for argument in schema["arguments"]]
    machine = _Machine(code, list(data.state.items()), names[1:])
    results = [v for r in machine.run() for v in _flat(r)]
    return Program(
        tuple(names[1:]),
        tuple(machine.calls),
        tuple(v.name for v in results if isinstance(v, Value)),
        attributes,
    )


class _Machine:
    """Follows the instructions of one method with names for tensors.

    Straight code only: that is what a traced model is.
    """

    def __init__(
        self, code: Mapping[str, Any], attributes: Sequence[tuple[str, Any]], inputs: Sequence[str]
    ) -> None:
        self.calls: list[Call] = []
        self._code, self._attributes = code, attributes
        self._stack: list[Any] = [None, *map(Value, inputs)]
        self._registers: dict[int, Any] = {}

    def run(self) -> list[Any]:
        """What is left on the stack at the end."""
        for name, x, n in self._code["instructions"]:
            if name == "RET":
                return self._stack
            step: Callable[[int, int], None] | None = getattr(self, f"_do_{name.lower()}", None)
            if step is None:
                raise BadData(f"it has an instruction {name}, and is no straight sequence")
            step(x, n)
        raise BadData("its instructions have no end")

    def _pop(self, count: int) -> list[Any]:
        taken = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return taken

    def _do_op(self, x: int, n: int) -> None:
        name, overload, count = self._code["operators"][x]
        args = tuple(self._pop(count))
        made = _results_of(name, overload)
        outputs = tuple(Value(f"{len(self.calls)}.{i}" if i else f"{len(self.calls)}") for i in range(made))
        self.calls.append(Call(name, args, outputs))
        self._stack += outputs

    def _do_load(self, x: int, n: int) -> None:
        self._stack.append(self._registers[x])

    def _do_move(self, x: int, n: int) -> None:
        self._stack.append(self._registers.pop(x))

    def _do_store(self, x: int, n: int) -> None:
        self._registers[x] = self._stack.pop()

    def _do_storen(self, x: int, n: int) -> None:
        self._registers.update(zip(range(x, x + n), self._pop(n), strict=True))

    def _do_loadc(self, x: int, n: int) -> None:
        self._stack.append(self._code["constants"][x])

    def _do_get_attr(self, x: int, n: int) -> None:
        self._stack.pop()
        self._stack.append(Attribute(*self._attributes[x]))

    def _do_drop(self, x: int, n: int) -> None:
        self._stack.pop()

    def _do_dropr(self, x: int, n: int) -> None:
        self._registers.pop(x)

    def _do_list_construct(self, x: int, n: int) -> None:
        self._stack.append(self._pop(n))

    def _do_tuple_construct(self, x: int, n: int) -> None:
        self._stack.append(self._pop(x))


def _results_of(name: str, overload: str) -> int:
    import torch

    schemas = torch._C._jit_get_schemas_for_operator(name)
    return next((len(s.returns) for s in schemas if s.overload_name == overload), 1)
