"""What XNNPACK takes of a ``.tflite`` file: asked of LiteRT, which decides when it loads one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_DELEGATE = "DELEGATE"


def outside(path: Path) -> list[int] | None:
    """Positions in the main subgraph of the operators that XNNPACK leaves to LiteRT's own kernels.

    This machine's build of LiteRT decides; another version may take more or fewer.

    Returns:
        In the order of the file; None where LiteRT doesn't load the file or doesn't tell.
    """
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
        nodes = interpreter._get_ops_details()
    except (AttributeError, RuntimeError, ValueError):
        return None
    return _left(nodes)


def _left(nodes: Sequence[Mapping[str, Any]]) -> list[int]:
    """Operators that stand in no delegate's place.

    A delegate's node says which tensors go in and come out. What it stands for is what lies between
    them.
    """
    own = [n for n in nodes if n["op_name"] != _DELEGATE]
    maker = {int(t): n for n in own for t in n["outputs"]}
    taken: set[int] = set()
    for delegate in (n for n in nodes if n["op_name"] == _DELEGATE):
        given = {int(t) for t in delegate["inputs"]}
        wanted = [int(t) for t in delegate["outputs"]]
        while wanted:
            node = maker.get(wanted.pop())
            if node is None or int(node["index"]) in taken:
                continue
            taken.add(int(node["index"]))
            wanted += [int(t) for t in node["inputs"] if int(t) not in given]
    return [int(n["index"]) for n in own if int(n["index"]) not in taken]


def told(model: Any, position: int) -> str:
    """An operator that XNNPACK left, in words."""
    from edgekit.targets import _tflite_file

    graph = model.subgraphs[0]
    op = graph.operators[position]
    result = graph.tensors[op.outputs[0]]
    kind, dtype = _tflite_file.op_name(model, op), _tflite_file.dtype_name(result)
    return f"{kind} giving {dtype} ({_tflite_file.readable(result)}): XNNPACK did not take it"
