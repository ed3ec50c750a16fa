"""Reading a ``.ptl`` file of PyTorch Mobile without running it.

It is a zip of pickles: ``bytecode.pkl`` holds the instructions of the lite interpreter with their
operators and constants, ``data.pkl`` the module's attributes, ``data/N`` the bytes of its tensors.

torch's own loader (2.13) believes what it reads: a method that takes what it is not given, or an
instruction for a register that is not there, ends the process. So a file is gone through here
first, instruction by instruction, and only straight code is taken, which is what a traced model is.
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import BadData, UnsupportedError
from edgekit.runtime.ptl_pickle import Packed, Reader, Tensor, tensors_in

__all__ = [
    "STATED",
    "Attribute",
    "Call",
    "Packed",
    "Program",
    "Tensor",
    "operators_of",
    "read_program",
]

STATED = "signature.json"
"""edgekit's own statement of what a file takes and gives, which the format has no place for."""

Operators = Callable[[str, str], "tuple[int, int, int] | None"]

_CODE = "/bytecode.pkl"
_REGISTERS = 2**20

_FAMILIES = ("aten::", "quantized::")
_TOUCH_FILES = ("aten::from_file", "aten::save", "aten::load")


@dataclass(frozen=True)
class Value:
    """What an operator gives, or an input of the program."""

    name: str


@dataclass(frozen=True)
class Attribute:
    """A constant by its name: an attribute of the module, or one that its code holds itself."""

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
        attributes: its constants by name, in the file's order; ``constants.N`` are its code's own,
            as a frozen module has them.
        stated: `STATED`, as JSON; empty in a file that is not edgekit's.
    """

    inputs: tuple[str, ...]
    calls: tuple[Call, ...]
    results: tuple[str, ...]
    attributes: Mapping[str, Any]
    stated: bytes = b""


def read_program(path: Path, operators: Operators) -> Program:
    """Reads a ``.ptl`` file; nothing in it is run, and no class but those known is made.

    Args:
        path: the file.
        operators: how many arguments an operator takes at least and at most, and how many results
            it gives, by its name and overload; None for one that the runtime doesn't have.

    Raises:
        BadData: it is damaged, or is not for the lite interpreter.
        UnsupportedError: it has instructions other than a straight sequence, or an operator that
            the runtime lacks.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, operators)
    except UnsupportedError:
        raise
    except Exception as error:  # a damaged file fails in any way there is
        said, hint = (error.message, error.hint) if isinstance(error, BadData) else (error, "")
        text = f"torch-mobile cannot load {path.name}: {said or repr(said)}"
        raise BadData(text, hint=hint) from error


def _read(archive: zipfile.ZipFile, operators: Operators) -> Program:
    if (bad := archive.testzip()) is not None:
        raise BadData(f"{bad} in it is damaged")
    names = archive.namelist()
    root = next((n.removesuffix(_CODE) for n in names if n.endswith(_CODE)), None)
    if root is None:
        raise BadData(
            "it has no bytecode, so it is not for the lite interpreter",
            hint="save TorchScript with _save_for_lite_interpreter",
        )
    bytecode, data = (
        Reader(archive, f"{root}/{name}").load() for name in ("bytecode.pkl", "data.pkl")
    )
    extra = f"{root}/extra/{STATED}"
    stated = archive.read(extra) if extra in names else b""
    return _run_through(bytecode, data, operators, stated)


def _flat(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        return [value]
    return [v for part in value for v in _flat(part)]


def _run_through(bytecode: Any, data: Any, operators: Operators, stated: bytes) -> Program:
    method = next(m for m in bytecode[1:] if m[0].endswith(".forward"))
    code, schema = dict(method[1]), dict(method[2])
    (_, own), *takes = [(dict(a)["name"], dict(a)["type"]) for a in schema["arguments"]]
    if own != data.kind or any(kind != "Tensor" for _, kind in takes):
        raise BadData(
            f"its method takes {[own, *(k for _, k in takes)]}, not {data.kind} and tensors"
        )
    machine = _Machine(code, operators, data, [name for name, _ in takes])
    results = _flat(machine.run())
    if not results or not all(isinstance(r, Value | Attribute) for r in results):
        raise BadData("it gives something else than tensors")
    return Program(
        tuple(name for name, _ in takes),
        tuple(machine.calls),
        tuple(r.name for r in results),
        {name: value for name, value in data.state.items() if tensors_in(value)} | machine.held,
        stated,
    )


class _Machine:
    """Follows the instructions of one method with names for tensors.

    Whatever an instruction refers to has to be there; Python's own errors say what is not.
    """

    def __init__(
        self,
        code: Mapping[str, Any],
        operators: Operators,
        module: Packed,
        inputs: Sequence[str],
    ) -> None:
        self.calls: list[Call] = []
        self.held: dict[str, Any] = {}
        self._code, self._operators = code, operators
        self._stack: list[Any] = [Attribute("", module), *map(Value, inputs)]
        self._registers: dict[int, Any] = {}

    def run(self) -> list[Any]:
        """What is left on the stack at the end."""
        for name, x, n in self._code["instructions"]:
            if name == "RET":
                return self._stack
            step = _STEPS.get(name)
            if step is None:
                raise UnsupportedError(
                    f"torch-mobile: the file has an instruction {name}, and only straight code "
                    "is taken, as tracing gives it"
                )
            if x < 0 or n < 0:
                raise BadData(f"its instruction {name} refers to {x}, {n}")
            step(self, x, n)
        raise BadData("its instructions have no end")

    def _pop(self, count: int) -> list[Any]:
        if count > len(self._stack):
            raise BadData(f"an instruction takes {count} values of {len(self._stack)}")
        taken = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return taken

    def _op(self, x: int, n: int) -> None:
        name, overload, count = self._code["operators"][x]
        known = self._operators(name, overload)
        if not name.startswith(_FAMILIES) or name in _TOUCH_FILES:
            raise UnsupportedError(f"torch-mobile: the file calls {name}, which no model needs")
        if known is None:
            raise UnsupportedError(
                f"torch-mobile: the runtime has no operator {name}.{overload}",
                hint="the file needs another version of torch",
            )
        least, most, gives = known
        if not least <= count <= most:
            raise BadData(f"it gives {name} {count} arguments, not {least} to {most}")
        args, number = tuple(self._pop(count)), len(self.calls)
        outputs = tuple(Value(f"{number}.{i}" if i else f"{number}") for i in range(gives))
        self.calls.append(Call(name, args, outputs))
        self._stack += outputs

    def _load(self, x: int, n: int) -> None:
        self._stack.append(self._register(x))

    def _move(self, x: int, n: int) -> None:
        self._stack.append(self._register(x))
        del self._registers[x]

    def _drop_register(self, x: int, n: int) -> None:
        self._register(x)
        del self._registers[x]

    def _register(self, x: int) -> Any:
        if x not in self._registers:
            raise BadData(f"nothing is in register {x}")
        return self._registers[x]

    def _store(self, x: int, n: int) -> None:
        self._store_many(x, 1)

    def _store_many(self, x: int, n: int) -> None:
        # The first register is 1; there is room for as many as the file says.
        if not 1 <= x <= x + n - 1 <= self._code["register_size"] <= _REGISTERS:
            raise BadData(f"there are no registers {x} to {x + n - 1}")
        self._registers.update(zip(range(x, x + n), self._pop(n), strict=True))

    def _load_constant(self, x: int, n: int) -> None:
        value, name = self._code["constants"][x], f"constants.{x}"
        if isinstance(value, Tensor | Packed):
            self.held[name] = value
            value = Attribute(name, value)
        self._stack.append(value)

    def _get_attribute(self, x: int, n: int) -> None:
        [owner] = self._pop(1)
        held = owner.value.state if isinstance(owner, Attribute) else None
        if not isinstance(owner.value, Packed) or not isinstance(held, Mapping):
            raise BadData("it asks something else than a module for an attribute")
        name, value = list(held.items())[x]
        self._stack.append(Attribute(f"{owner.name}.{name}".lstrip("."), value))

    def _drop(self, x: int, n: int) -> None:
        self._pop(1)

    def _list(self, x: int, n: int) -> None:
        if not isinstance(self._code["types"][x], str):
            raise BadData(f"it has no type {x}")
        self._stack.append(self._pop(n))

    def _tuple(self, x: int, n: int) -> None:
        self._stack.append(self._pop(x))


_STEPS: dict[str, Callable[[_Machine, int, int], None]] = {
    "OP": _Machine._op,
    "LOAD": _Machine._load,
    "MOVE": _Machine._move,
    "STORE": _Machine._store,
    "STOREN": _Machine._store_many,
    "LOADC": _Machine._load_constant,
    "GET_ATTR": _Machine._get_attribute,
    "DROP": _Machine._drop,
    "DROPR": _Machine._drop_register,
    "LIST_CONSTRUCT": _Machine._list,
    "TUPLE_CONSTRUCT": _Machine._tuple,
}


def operators_of(torch: Any) -> Operators:
    """The operators of an installed torch."""

    @functools.cache
    def look_up(name: str, overload: str) -> tuple[int, int, int] | None:
        for schema in torch._C._jit_get_schemas_for_operator(name):
            if schema.overload_name == overload:
                free = sum(a.has_default_value() for a in schema.arguments)
                most = len(schema.arguments)
                return most - free, most, len(schema.returns)
        return None

    return look_up
