"""Exporting a module with `torch.export`, and refusing graphs that would not keep their word.

What is refused: random numbers, batch statistics, state written while running, outputs that do
not depend on any input, and values that tracing froze although they change from call to call.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_flatten

from edgekit.errors import UnsupportedError
from edgekit.model._adapter import flatten

__all__ = ["check_agreement", "export_module", "hash_program", "user_line"]

_TORCH = str(Path(torch.__file__).parent)
_EDGEKIT = str(Path(__file__).parent.parent)
_NO_OPS_IN_EVAL = tuple(
    f"aten::{kind}dropout{suffix}" for kind in ("", "alpha_", "feature_") for suffix in ("", "_")
)
_TRAINING_ARGUMENTS = ("train", "training")
_DROPOUT_ARGUMENTS = ("p", "dropout", "dropout_p")
_STATE_KINDS = {
    InputKind.BUFFER: "buffer",
    InputKind.PARAMETER: "parameter",
    InputKind.CONSTANT_TENSOR: "constant",
}


def export_module(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], *, name: str
) -> ExportedProgram:
    """The module as a static, checked program that gives a flat tuple of tensors.

    Args:
        module: in eval mode; takes `inputs` by position.
        inputs: example tensors; the program is specialised to their shapes.
        name: the model's name, for messages.

    Raises:
        UnsupportedError: the module cannot be exported, or its graph is refused; the message names
            the operator or the line in the user's code.
    """
    # torch warns of LSTM's own bookkeeping, and prints the half-made graph before it raises.
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module, inputs, strict=False)
        except Exception as error:
            raise _export_error(error, name) from error
    _check_outputs(program, name)
    _check_state(program, name)
    for node in _nodes(program.graph_module):
        _check_node(node, name)
    _drop_no_ops(program)
    # A single tensor and a dictionary both become a tuple, so that callers see one convention.
    entry = program.module_call_graph[0].signature
    assert entry is not None
    entry.out_spec = tree_flatten((0,) * len(program.graph_signature.user_outputs))[1]
    return program


def check_agreement(
    module: torch.nn.Module,
    program: ExportedProgram,
    samples: Sequence[tuple[torch.Tensor, ...]],
    *,
    name: str,
) -> None:
    """Refuses a program that does not answer as the module does, on inputs it was not traced with.

    Raises:
        UnsupportedError: the module is not repeatable, or tracing froze a value.
    """
    exported = program.module(check_guards=False)
    with torch.no_grad():
        for sample in samples:
            expected = [tensor for _, tensor in flatten(module(*sample))]
            again = [tensor for _, tensor in flatten(module(*sample))]
            if not _close(expected, again):
                raise UnsupportedError(
                    f"model {name!r} answers the same input differently from call to call",
                    hint="take random numbers, clocks and counters out of forward()",
                )
            if not _close(expected, [tensor for _, tensor in flatten(exported(*sample))]):
                raise UnsupportedError(
                    f"the exported program of {name!r} does not answer as the module does on an "
                    "input other than its example: tracing froze a value that changes",
                    hint="look for Python numbers taken from tensors or from outside forward(), "
                    "such as a counter, random.random() or a branch on a cached value",
                )


def hash_program(program: ExportedProgram) -> str:
    """SHA-256 (hex) of the graph's operators, wiring and arguments, and of every weight's bytes.

    Names of inner nodes, source lines and memory addresses do not count.
    """
    digest = hashlib.sha256()
    for line in _graph_lines(program.graph_module, program):
        digest.update(line.encode() + b"\n")
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            assert spec.target is not None
            stored = program.state_dict.get(spec.target)
            tensor = program.constants[spec.target] if stored is None else stored
            digest.update(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(flat.numpy().data)
    return digest.hexdigest()


def user_line(error: BaseException) -> str:
    """Where in the user's code an error came from, as `` (file.py:12, in forward: code)``."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((_TORCH, _EDGEKIT, "<")):
            return f" ({frame.filename}:{frame.lineno}, in {frame.name}: {frame.line})"
    return ""


def _export_error(error: Exception, name: str) -> UnsupportedError:
    """What went wrong in `torch.export`, in the user's terms."""
    if isinstance(error, UnsupportedError):
        return error
    text = str(error).strip() or type(error).__name__
    first = text.splitlines()[0]
    where = user_line(error)
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        return UnsupportedError(
            f"model {name!r} decides by a value that it computes from its input{where}: {first}",
            hint="use torch.where or torch.cond, or make the value a constant of the module",
        )
    if (
        "fake impl" in text
        or "Meta tensors" in text
        or "UnsupportedOperator" in type(error).__name__
    ):
        operator = re.search(r"\w+::\w+(?:\.\w+)?|\w+\.\w+\.\w+", text)
        return UnsupportedError(
            f"model {name!r} uses the operator {operator[0] if operator else first!r}, "
            f"whose output shape torch cannot derive{where}",
            hint="build it from torch's own operators, or register its shape with "
            "torch.library.register_fake",
        )
    return UnsupportedError(
        f"model {name!r} cannot be exported{where}: {type(error).__name__}: {first}",
        hint="forward() must be free of data-dependent Python and take tensors only",
    )


def _nodes(graph_module: torch.fx.GraphModule) -> Iterator[torch.fx.Node]:
    """Every node, those of branches and loop bodies included."""
    for module in graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            yield from module.graph.nodes


def _check_outputs(program: ExportedProgram, name: str) -> None:
    placeholders = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    reached = {placeholders[n] for n in program.graph_signature.user_inputs if n in placeholders}
    for node in program.graph.nodes:
        if any(parent in reached for parent in node.all_input_nodes):
            reached.add(node)
    outputs = program.graph.output_node().args[0]
    assert isinstance(outputs, (tuple, list))
    if not outputs:
        raise UnsupportedError(f"model {name!r} gives no output")
    specs = program.graph_signature.output_specs
    for index, (output, spec) in enumerate(zip(outputs, specs, strict=True)):
        if spec.kind is not OutputKind.USER_OUTPUT:
            continue
        value = output.meta.get("val") if isinstance(output, torch.fx.Node) else output
        if not isinstance(value, torch.Tensor):
            raise UnsupportedError(
                f"output {index} of model {name!r} is {value!r}, not a tensor",
                hint="return tensors only",
            )
        if not all(isinstance(n, int) for n in value.shape):
            raise UnsupportedError(
                f"output {index} of model {name!r} has a shape that depends on the input's values",
                hint="keep shapes static: use a mask or torch.topk instead of nonzero() or x[mask]",
            )
        if output not in reached:
            raise UnsupportedError(
                f"output {index} of model {name!r} does not depend on any input",
                hint="leave constants out of what forward() returns",
            )


def _check_state(program: ExportedProgram, name: str) -> None:
    for node in _nodes(program.graph_module):
        _check_batch_norm(node, name)  # the likelier cause of a written buffer, so named first
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        for written in _written(node):
            spec = specs.get(written.name)
            if spec is None:
                continue
            kind, what = _STATE_KINDS.get(spec.kind, "input"), spec.target or written.name
            raise UnsupportedError(
                f"model {name!r} writes to its {kind} {what!r} while it runs{_node_line(node)}",
                hint="a model on a device keeps no state between calls and leaves its inputs "
                "alone: use the operation that is not in place, or make the state an input and "
                "an output",
            )


def _written(node: torch.fx.Node) -> Iterator[torch.fx.Node]:
    """What the node writes to in place, followed through views to where the memory comes from."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    if torch.Tag.inplace_view in node.target.tags:
        return  # changes the shape that is seen, not the memory
    arguments = _arguments(node)
    for argument in node.target._schema.arguments:
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        base = arguments.get(argument.name)
        while isinstance(base, torch.fx.Node) and _is_view(base):
            base = base.args[0]
        if isinstance(base, torch.fx.Node):
            yield base


def _is_view(node: torch.fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or not node.args:
        return False
    if all(value.alias_info is None for value in node.target._schema.returns):
        return False
    base, value = node.args[0], node.meta.get("val")
    # to() may alias by its schema, but a conversion is a copy.
    return isinstance(base, torch.fx.Node) and base.meta["val"].dtype == getattr(value, "dtype", 0)


def _check_batch_norm(node: torch.fx.Node, name: str) -> None:
    if not isinstance(node.target, torch._ops.OpOverload) or "batch_norm" not in str(node.target):
        return
    if _arguments(node).get("training") or "_with_update" in str(node.target):
        raise UnsupportedError(
            f"model {name!r} normalises by the statistics of the batch: node {node.name!r} "
            f"({node.target}){_node_line(node)}",
            hint="export in eval mode, with running statistics (track_running_stats=True)",
        )


def _check_node(node: torch.fx.Node, name: str) -> None:
    """Refuses random numbers: dropout that is on, sampling, noise."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return
    arguments = _arguments(node)
    off = any(arguments.get(key) is False for key in _TRAINING_ARGUMENTS) or any(
        key in arguments and not arguments[key] for key in _DROPOUT_ARGUMENTS
    )
    if not off:
        raise UnsupportedError(
            f"model {name!r} draws random numbers: node {node.name!r} ({node.target})"
            f"{_node_line(node)}",
            hint="call eval() before exporting and pass training=self.training to dropout; "
            "make noise an input",
        )


def _arguments(node: torch.fx.Node) -> dict[str, Any]:
    """The node's arguments by the names in its operator's schema, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    given = {a.name: a.default_value for a in schema if a.has_default_value()}
    given.update({a.name: value for a, value in zip(schema, node.args, strict=False)})
    given.update(node.kwargs)
    return given


def _node_line(node: torch.fx.Node) -> str:
    for line in reversed((node.meta.get("stack_trace") or "").splitlines()):
        found = re.match(r'\s*File "(.+)", line (\d+), in (\S+)', line)
        if found and not found[1].startswith((_TORCH, _EDGEKIT)):
            return f" ({found[1]}:{found[2]}, in {found[3]})"
    return ""


def _drop_no_ops(program: ExportedProgram) -> None:
    """Erases dropout that is off and checks of metadata: every converter would step over them."""
    graph = program.graph_module.graph
    outputs = set(graph.output_node().all_input_nodes)
    for node in list(graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload) or node in outputs:
            continue
        kind = node.target._schema.name
        if kind in _NO_OPS_IN_EVAL:
            node.replace_all_uses_with(node.args[0])
        elif kind != "aten::_assert_tensor_metadata":
            continue
        graph.erase_node(node)
    program.graph_module.recompile()


def _close(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
    """Equal up to rounding: 0.1 % relative, and 1e-4 of the largest value absolute."""
    for a, b in zip(left, right, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return False
            continue
        x, y = a.double(), b.double()
        peak = float(x.abs().nan_to_num(0, 0, 0).max()) if x.numel() else 0.0
        if not torch.allclose(x, y, rtol=1e-3, atol=1e-4 * max(peak, 1e-3), equal_nan=True):
            return False
    return True


def _graph_lines(
    graph_module: torch.fx.GraphModule, program: ExportedProgram | None
) -> Iterator[str]:
    """One canonical line per node; nested graphs follow the node that refers to them."""
    users = set(program.graph_signature.user_inputs) if program else set()
    numbers: dict[torch.fx.Node, int] = {}
    for node in graph_module.graph.nodes:
        numbers[node] = len(numbers)
        target = str(node.target)
        if node.op == "placeholder":
            target = node.name if node.name in users else ""
        nested = getattr(graph_module, target, None) if node.op == "get_attr" else None
        if isinstance(nested, torch.fx.GraphModule):
            yield from ("  " + line for line in _graph_lines(nested, None))
            target = "graph"
        args = [_literal(a, numbers) for a in node.args]
        kwargs = [f"{k}={_literal(node.kwargs[k], numbers)}" for k in sorted(node.kwargs)]
        yield f"{numbers[node]} {node.op} {target}({', '.join(args + kwargs)})"


def _literal(value: Any, numbers: dict[torch.fx.Node, int]) -> str:
    if isinstance(value, torch.fx.Node):
        return f"%{numbers[value]}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_literal(v, numbers) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_literal(value[k], numbers)}" for k in sorted(value)) + "}"
    if isinstance(value, str):
        return json.dumps(value)
    return repr(value) if isinstance(value, (bool, int, float)) else str(value)
