"""Vetting the graph of a `.pt2` file, which is JSON that torch turns into running Python.

torch's loader resolves every operator by attribute lookup from the ``torch`` module (``os`` hangs
there too), evaluates symbolic sizes and guards as Python, prints names into source code that it
executes, and imports modules named in a tree spec. So this module rebuilds the document out of
what it knows: operators are allow-listed, names must be identifiers, sizes must parse in a small
grammar, and guards, tree specs and foreign metadata are dropped and written anew.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import Any

import torch

from edgekit.errors import BadData, TrustError, UnsupportedError
from edgekit.names import unknown
from edgekit.sources._pt2_allowed import (
    check_attribute,
    check_expression,
    check_identifier,
    check_operator,
    check_power,
    is_symbol,
)
from edgekit.sources._vetted import parse_json

__all__ = ["CleanProgram", "clean_program"]

SCHEMA_MAJOR = 8
"""Of torch._export.serde.schema.SCHEMA_VERSION, the part that changes with the meaning."""

_DEVICES = ("cpu", "cuda", "mps", "xpu")
_DIALECTS = ("", "ATEN", "TRAINING")
_METADATA = ("nn_module_stack", "stack_trace", "torch_fn")


@dataclass(frozen=True)
class CleanProgram:
    """A program that may be handed to torch.

    Attributes:
        document: the program's JSON, rebuilt.
        inputs: names of the user's inputs, in order.
        shapes: their sizes; dynamic ones are those of the example the program was exported with.
        dtypes: their scalar types, as torch's serializer numbers them.
        outputs: names of the user's outputs, in order, by the keys they were returned under.
        weights: names of parameters and buffers that the graph takes.
    """

    document: dict[str, Any]
    inputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[int, ...]
    outputs: tuple[str, ...]
    weights: frozenset[str]


def clean_program(data: bytes | memoryview, what: str) -> CleanProgram:
    """Rebuilds the program's JSON, refusing whatever it cannot account for.

    Raises:
        BadData: malformed.
        TrustError: something in it would run code.
        UnsupportedError: an operator, dialect, device or version that we don't take.
    """
    document = parse_json(data, what)
    try:
        return _Cleaner(what).program(document)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BadData(f"{what} is malformed: {type(error).__name__}: {error}") from error
    except RecursionError as error:
        raise BadData(f"{what} is nested too deep") from error


class _Cleaner:
    def __init__(self, what: str) -> None:
        self._what = what

    def program(self, document: dict[str, Any]) -> CleanProgram:
        """Checks the version, then rebuilds graph, signature and call convention."""
        version = document["schema_version"]
        if version["major"] != SCHEMA_MAJOR:
            raise UnsupportedError(
                f"{self._what} has format version {version['major']}.{version['minor']}; this "
                f"torch reads {SCHEMA_MAJOR}.x",
                hint=f"export it again with torch {torch.__version__.split('+')[0]}",
            )
        dialects = document["verifiers"]
        for dialect in dialects:
            if dialect not in _DIALECTS:
                raise UnsupportedError(
                    unknown("dialect", str(dialect), [d for d in _DIALECTS if d])
                )
        module = document["graph_module"]
        graph = self.value(module["graph"])
        specs = self.value(module["signature"])
        inputs = self._inputs(graph, specs)
        outputs = self._outputs(graph, specs, module)
        tensors = [graph["tensor_values"][name] for name in inputs]
        clean = {
            "graph_module": {
                "graph": graph,
                "signature": specs,
                "module_call_graph": [_call_entry(inputs, len(outputs))],
                "metadata": {},
                "treespec_namedtuple_fields": {},
            },
            "opset_version": {
                str(key): int(number) for key, number in document["opset_version"].items()
            },
            "range_constraints": self._ranges(document["range_constraints"]),
            "schema_version": {"major": SCHEMA_MAJOR, "minor": int(version["minor"])},
            "verifiers": dialects,
            "torch_version": str(document["torch_version"]),
            "guards_code": [],
        }
        return CleanProgram(
            document=clean,
            inputs=inputs,
            shapes=tuple(tuple(_size(n) for n in tensor["sizes"]) for tensor in tensors),
            dtypes=tuple(int(tensor["dtype"]) for tensor in tensors),
            outputs=outputs,
            weights=frozenset(
                next(iter(spec.values()))[key]
                for spec in specs["input_specs"]
                for key in ("parameter_name", "buffer_name", "tensor_constant_name")
                if key in next(iter(spec.values()))
            ),
        )

    def value(self, value: Any, key: str = "") -> Any:
        """A copy of any part of the document in which every value that torch acts on is vetted."""
        if key in _CHECKS and value is not None:
            # Of this type and no other: sympy evaluates the members of lists and mappings too.
            if not isinstance(value, str):
                raise TrustError(f"{self._what} holds {key} that is no text")
            _CHECKS[key](value, self._what)
            return value
        word = key == "as_float" and value in _FLOAT_WORDS
        if key in _NUMBERS and type(value) not in _NUMBERS[key] and not word:
            raise TrustError(f"{self._what} holds {key} that is no number")
        if isinstance(value, dict):
            return self._record(value, key)
        if isinstance(value, list):
            return [self.value(item, "" if key in _MAPPINGS else key) for item in value]
        return value

    def _record(self, record: dict[str, Any], key: str) -> dict[str, Any]:
        if key in ("as_custom_obj", "custom_obj", "custom_obj_values") and record:
            raise TrustError(
                f"{self._what} holds a custom object, which only a pickle can restore",
                hint="export a model made of tensors and torch's own operators",
            )
        if "token" in record and key in ("input_specs", "output_specs"):
            raise UnsupportedError(f"{self._what} uses an operator with side effects")
        if record.get("target") == "_operator.pow":
            check_power(record, self._what)
        if key == "metadata":
            return {k: v for k, v in record.items() if k in _METADATA and isinstance(v, str)}
        if key == "device" or key == "as_device":
            return self._device(record)
        if key in _MAPPINGS:
            # The keys are the user's names, not fields of the format.
            for name in record:
                check_identifier(name, self._what)
            return {name: self.value(item) for name, item in record.items()}
        return {k: self.value(item, k) for k, item in record.items()}

    def _device(self, record: dict[str, Any]) -> dict[str, Any]:
        """The CPU, for whatever processor the program was exported on."""
        if record["type"] not in _DEVICES:
            raise UnsupportedError(
                f"{self._what} was exported on device {record['type']!r}",
                hint="move the model to the CPU before exporting it",
            )
        return {"type": "cpu", "index": None}

    def _ranges(self, ranges: dict[str, Any]) -> dict[str, Any]:
        for name, limits in ranges.items():
            # torch counts up to the number in an unbacked symbol's name.
            if not is_symbol(name) or ("u" in name and len(name) > 7):
                raise TrustError(f"{self._what} has a size named {name!r}")
            if not all(limits[k] is None or type(limits[k]) is int for k in ("min_val", "max_val")):
                raise BadData(f"{self._what} has a malformed range for {name!r}")
        return ranges

    def _inputs(self, graph: dict[str, Any], specs: dict[str, Any]) -> tuple[str, ...]:
        """Names of the user's tensors; inputs that were constants when exporting are dropped."""
        kept, names = [], []
        pairs = zip(graph["inputs"], specs["input_specs"], strict=True)
        for given, spec in pairs:
            ((kind, _),) = spec.items()
            ((form, content),) = given.items()
            if kind in ("parameter", "buffer", "tensor_constant"):
                kept.append((given, spec))
            elif form == "as_tensor" and kind == "user_input":
                kept.append((given, spec))
                names.append(content["name"])
            elif form.startswith("as_sym_"):
                raise UnsupportedError(
                    f"{self._what} takes a number that varies from call to call as an input",
                    hint="make it a tensor, or a constant of the model",
                )
        graph["inputs"] = [given for given, _ in kept]
        specs["input_specs"] = [spec for _, spec in kept]
        return tuple(names)

    def _outputs(
        self, graph: dict[str, Any], specs: dict[str, Any], module: dict[str, Any]
    ) -> tuple[str, ...]:
        """Names of the user's outputs; None among them is dropped."""
        spec = parse_json(
            module["module_call_graph"][0]["signature"]["out_spec"].encode(), self._what
        )[1]
        paths = _leaves(spec, "", module.get("treespec_namedtuple_fields", {}))
        kept, names = [], []
        for given, about in zip(graph["outputs"], specs["output_specs"], strict=True):
            ((kind, _),) = about.items()
            ((form, _),) = given.items()
            path = paths.pop(0) if kind == "user_output" else ""
            if kind == "user_output" and form == "as_none":
                continue
            if kind == "user_output" and form != "as_tensor":
                raise UnsupportedError(f"{self._what}: output {path!r} is not a tensor")
            kept.append((given, about))
            if kind == "user_output":
                names.append(path)
        graph["outputs"] = [given for given, _ in kept]
        specs["output_specs"] = [about for _, about in kept]
        if names in ([""], ["0"]):
            return ("output",)
        return tuple(
            f"output_{name}" if name[:1].isdigit() else re.sub(r"\W", "_", name) for name in names
        )


def _leaves(spec: dict[str, Any], path: str, fields: dict[str, Any]) -> list[str]:
    """Paths to the leaves of a tree spec: its keys, fields and positions, joined."""
    children = spec["children_spec"]
    if spec["type"] is None:
        return [path]
    context = spec["context"]
    keys: list[str] = [str(i) for i in range(len(children))]
    if isinstance(context, str) and context in fields:
        keys = list(fields[context]["field_names"])
    elif isinstance(context, str):
        # Dictionaries and the like keep their keys here; other classes keep what they want.
        with contextlib.suppress(BadData):
            found = parse_json(context.encode(), "a tree spec")
            if isinstance(found, list) and len(found) == len(children):
                keys = [str(key) for key in found]
    pairs = zip(keys, children, strict=True)
    return [
        leaf
        for key, child in pairs
        for leaf in _leaves(child, f"{path}_{key}" if path else key, fields)
    ]


def _call_entry(inputs: tuple[str, ...], outputs: int) -> dict[str, Any]:
    """The calling convention: positional tensors in, a flat tuple of tensors out."""
    leaf = '{"type": null, "context": null, "children_spec": []}'

    def row(count: int) -> str:
        leaves = ", ".join([leaf] * count)
        return '{"type": "builtins.tuple", "context": "null", "children_spec": [' + leaves + "]}"

    none = '{"type": "builtins.dict", "context": "[]", "children_spec": []}'
    call = (
        '{"type": "builtins.tuple", "context": "null", "children_spec": ['
        + row(len(inputs))
        + ", "
        + none
        + "]}"
    )
    return {
        "fqn": "",
        "signature": {
            "inputs": [],
            "outputs": [],
            "in_spec": f"[1, {call}]",
            "out_spec": f"[1, {row(outputs)}]",
            "forward_arg_names": list(inputs),
        },
    }


def _size(size: dict[str, Any]) -> int:
    """A dimension of an input; a dynamic one takes the value of the exporting example."""
    found = size["as_int"] if "as_int" in size else size["as_expr"]["hint"]["as_int"]
    if type(found) is not int or not 0 <= found < 2**40:
        raise ValueError(f"size {found!r}")
    return found


# By the key under which a text stands in the document.
_CHECKS = {
    "target": check_operator,
    "as_operator": check_operator,
    "expr_str": check_expression,
    "as_name": check_identifier,
    "parameter_name": check_attribute,
    "buffer_name": check_attribute,
    "tensor_constant_name": check_attribute,
    "user_input_name": check_identifier,
    "name": check_identifier,
}
_NUMBERS: dict[str, tuple[type, ...]] = {
    "as_int": (int,),
    "as_bool": (bool,),
    "as_float": (float, int),
}
_FLOAT_WORDS = ("Infinity", "-Infinity", "NaN")
_MAPPINGS = (
    "as_string_to_argument",
    "sym_bool_values",
    "sym_float_values",
    "sym_int_values",
    "tensor_values",
)
