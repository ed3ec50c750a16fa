"""ExecuTorch (``.pte``) on the CPU by XNNPACK, for Android, iOS and embedded Linux.

The plan is rendered as quantize and dequantize operators with integer weights, each reader with a
dequantize operator of its own, as XNNPACK's partitioner takes them; biases become int32 at
``scale_input * scale_weight``, as the plan has them.
"""

from __future__ import annotations

import collections
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.compress.arithmetic import PER_ROW_ALONE
from edgekit.errors import BadData, UsageError
from edgekit.names import DELEGATES, FLOAT_IO, PICTURE_IO, unknown
from edgekit.signature import Signature
from edgekit.targets import Placement, Stored
from edgekit.targets._common import channel_digest, converter_error

if TYPE_CHECKING:
    import torch

    from edgekit.compress.plan import QuantPlan
    from edgekit.targets._executorch_file import Contents
    from edgekit.targets._executorch_xnnpack import Operator, Value
    from edgekit.targets._reasons import Role

_WASTE = ("Convert", "StaticTranspose", "StaticConstantPad", "Copy")
_MOVES = ("StaticTranspose", "StaticConstantPad", "StaticReshape", "StaticSlice", "Copy")
_MOVES_OUTSIDE = (
    "view",
    "permute",
    "clone",
    "expand",
    "slice",
    "unsqueeze",
    "squeeze",
    "dim_order",
)
_LAYERS = ("Conv2d", "DepthwiseConv2d", "ConvTranspose2d", "FullyConnected")
_LAYERS_OUTSIDE = ("aten::convolution", "aten::linear", "aten::addmm")
_KINDS = {"qint8": "activation", "qcint8": "weight", "qcint32": "bias"}


class Executorch:
    """The ExecuTorch target."""

    id = "executorch"
    suffix = ".pte"
    extra = "executorch"
    packages = ("executorch",)
    schemes = ("w8a8", "fp32", "w8a8-dyn")
    delegates = DELEGATES["executorch"]
    ios = (FLOAT_IO, PICTURE_IO)
    dynamic = PER_ROW_ALONE

    def via(self, delegate: str) -> Any:
        """The target through another delegate than XNNPACK.

        Raises:
            UsageError: there is no such delegate.
        """
        from edgekit.targets._executorch_through import Through

        if delegate == self.delegates[0]:
            return self
        if delegate not in self.delegates:
            raise UsageError(unknown("delegate of executorch", delegate, self.delegates))
        return Through(delegate)

    def convert(
        self,
        program: torch.export.ExportedProgram,
        plan: QuantPlan,
        signature: Signature,
        out: Path,
    ) -> list[Path]:
        """See `edgekit.targets.Target.convert`."""
        import torch

        from edgekit.compress.dynamic import as_computed
        from edgekit.compress.graph import example_args, graph_module
        from edgekit.compress.render import render
        from edgekit.targets._executorch_dynamic import quantize_inputs
        from edgekit.targets._executorch_file import quiet, read
        from edgekit.targets._executorch_kernels import check_kernels
        from edgekit.targets._executorch_partition import needed_passes, partitioner
        from edgekit.targets._executorch_tables import look_up_integers

        plan = as_computed(graph_module(program), plan, self)
        module = render(program, plan, "qdq-folded", bare_pads=True, pixel_rows=True)
        quantize_inputs(module, plan)
        look_up_integers(module)
        _dequantize_for_each(module)
        try:
            with quiet(), needed_passes(), torch.no_grad():
                exported = torch.export.export(module, example_args(program), strict=False)
                out.write_bytes(lowered(exported, partitioner()))
                check_kernels(read(out))
        except Exception as error:
            raise converter_error("executorch", error) from error
        return [out]

    def inspect(self, path: Path) -> Placement:
        """Operators as the file lists them: XNNPACK's by its names, those outside by theirs.

        A file for another delegate is read as such.
        """
        from edgekit.targets._executorch_file import OtherDelegate, read
        from edgekit.targets._executorch_through import delegate_of

        try:
            return _placement(read(path))
        except BadData as error:
            found = error.__cause__
            other = delegate_of(found.found) if isinstance(found, OtherDelegate) else None
            if other is None:
                raise
            placement: Placement = self.via(other).inspect(path)
            return placement

    def stored(self, path: Path) -> list[Stored]:
        """Every quantized tensor of XNNPACK's graphs, and embeddings."""
        from edgekit.targets._executorch_file import read
        from edgekit.targets._executorch_tables import stored_tables

        contents = read(path)
        found: dict[Stored, None] = dict.fromkeys(stored_tables(contents))
        for name, value in contents.values.items():
            if value.dtype in _KINDS:
                found[_stored(name, value)] = None
        return list(found)


def _dequantize_for_each(module: torch.fx.GraphModule) -> None:
    """Gives each reader of a dequantize operator one of its own.

    A shared one would belong to two parts of the graph, and the partitioner gives up on the cycle.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or "dequantize" not in str(node.target):
            continue
        for user in list(node.users)[1:]:
            with graph.inserting_after(node):
                copy = graph.node_copy(node)
            user.replace_input_with(node, copy)
    module.recompile()


def lowered(program: torch.export.ExportedProgram, partitioner: Any) -> bytes:
    """The bytes of a ``.pte``.

    Args:
        program: with quantize and dequantize operators, or float.
        partitioner: says what XNNPACK gets.
    """
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(
        program,
        partitioner=[partitioner],
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
    )
    return bytes(edge.to_executorch().buffer)


def _placement(contents: Contents) -> Placement:
    from edgekit.targets._border import with_border_roles
    from edgekit.targets._reasons import Op, by_dtype, reasons

    ops: collections.Counter[str] = collections.Counter()
    waste: collections.Counter[str] = collections.Counter()
    made, ends = with_border_roles(
        [Op(o.kind, o.inputs, o.outputs, _role(o, contents)) for o in contents.operators],
        {name for name in contents.border if contents.values[name].dtype == "uint8"},
        {o.kind for o in contents.operators if o.kind in _LAYERS or _is_layer_outside(o.kind)},
    )
    outside: collections.Counter[str] = collections.Counter()
    float_ops = boundary = 0
    escaped: str | None = None
    in_float: str | None = None
    for place, operator in enumerate(contents.operators):
        role = made[place].role
        ops[operator.kind] += 1
        if operator.kind in _WASTE or (role == "move" and not operator.delegated):
            waste[operator.kind] += 1
        if role in ("quantize", "dequantize"):
            at_border = bool(contents.border & {*operator.inputs, *operator.outputs})
            boundary += at_border or place in ends
        boundary += role == "border"
        if not operator.delegated:
            outside[operator.kind] += 1
            escaped = escaped or f"{operator.kind} runs outside of XNNPACK"
        if role == "float":
            float_ops += 1
            in_float = in_float or f"{operator.kind} computes in float"
    sizes: collections.Counter[str] = collections.Counter()
    for value in contents.values.values():
        if value.data is not None:
            dtype = {"qcint8": "int8", "qcint32": "int32", "qcint4": "int4"}
            sizes[dtype.get(value.dtype, value.dtype)] += len(value.data)
            if value.dtype == "qcint8":
                sizes["float32"] += 4 * len(value.scale)
    return Placement(
        ops=dict(sorted(ops.items())),
        float_ops=float_ops,
        boundary_ops=boundary,
        undelegated_ops=outside.total(),
        undelegated=dict(sorted(outside.items())),
        first_undelegated=escaped,
        first_fallback=escaped or in_float,
        bytes_by_dtype=dict(sorted(sizes.items())),
        waste=dict(sorted(waste.items())),
        reasons=reasons(made, set(contents.border)),
        ops_by_dtype=by_dtype(made),
        layers=by_dtype([op for op in made if op.kind in _LAYERS or _is_layer_outside(op.kind)]),
    )


def _is_layer_outside(kind: str) -> bool:
    return kind.partition(".")[0] in _LAYERS_OUTSIDE


def _role(operator: Operator, contents: Contents) -> Role:
    """What an operator does, by the types of what it reads and makes."""
    result = contents.values[operator.outputs[0]].is_integer
    if operator.kind == "Convert":
        return "quantize" if result else "dequantize"
    if operator.kind in _MOVES:
        return "move"
    if not operator.delegated:
        name = operator.kind.split("::")[-1]
        return "move" if name.strip("_").startswith(_MOVES_OUTSIDE) else "float"
    by_integers = any(contents.values[name].dtype == "qdint8" for name in operator.inputs)
    return "integer" if result or by_integers else "float"


def _stored(name: str, value: Value) -> Stored:
    kind = _KINDS[value.dtype]
    digest, integers = "", ()
    zeros = (value.zero_point,) * len(value.scale)
    if value.data is not None and kind == "weight":
        stored = np.frombuffer(value.data, np.int8).reshape(value.shape)
        digest = channel_digest(stored, value.axis)
    elif value.data is not None and kind == "bias":
        integers = tuple(np.frombuffer(value.data, "<i4").tolist())
    return Stored(name, kind, value.scale, zeros, digest, integers)


TARGET = Executorch()
