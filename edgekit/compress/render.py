"""Rendering: a canonical float program and a plan in, a graph with the plan's arithmetic out.

Three forms of the same arithmetic:

- ``fake``: fused fake-quantize operators on activations, weights and biases already rounded. This
  is the plan's own evaluation in torch, against which every artifact is proven.
- ``qdq``: quantize and dequantize operators around float weights.
- ``qdq-folded``: the same, with weights and biases stored as integers and dequantized in the graph.

Inputs that are quantized at run time are so in ``fake`` alone: the other forms leave that, and
weights of half precision, to the targets, which put their runtime's own operators there.
"""

from __future__ import annotations

import copy
from typing import Literal

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed
from torch import fx

from edgekit.compress._lean import absorbable_pads, idle_moves, saturating_clamps
from edgekit.compress.dynamic import fake_dynamic
from edgekit.compress.fake import fake_quantize
from edgekit.compress.graph import (
    example_args,
    graph_module,
    program_digest,
    set_tensor,
    tensor_of,
)
from edgekit.compress.picture import by_rows
from edgekit.compress.plan import Edge, QuantPlan
from edgekit.errors import UsageError

Form = Literal["fake", "qdq", "qdq-folded"]

_qd = torch.ops.quantized_decomposed


def render(
    program: torch.export.ExportedProgram,
    plan: QuantPlan,
    form: Form,
    *,
    bias: bool = True,
    bare_pads: bool = False,
    bare_moves: bool = False,
    pixel_rows: bool = False,
) -> fx.GraphModule:
    """Renders ``plan`` onto ``program``.

    Args:
        program: the canonical program the plan was made from.
        plan: the plan; an empty one (``fp32``) gives the float graph itself.
        form: see the module's text.
        bias: whether biases are rounded to the plan's int32 too.
        bare_pads: whether zeros around a quantized tensor go into their convolutions without being
            quantized again, which changes no value and lets converters make the two one operator.
        bare_moves: the same for data that is moved.
        pixel_rows: whether a picture border computes along rows (`edgekit.compress.picture`).

    Raises:
        UsageError: the plan was made from another program.
    """
    if plan.program_digest != program_digest(program):
        raise UsageError(
            "this plan was made from another program",
            hint="quantize again, or give the program the plan was made from",
        )
    module = copy.deepcopy(graph_module(program))
    activations, constants = plan.activations(), plan.constants()
    bare = absorbable_pads(module, activations) if bare_pads else set()
    bare |= idle_moves(module, activations) if bare_moves else set()
    clamps = saturating_clamps(module, activations) if form != "fake" else set()
    for node in list(module.graph.nodes):
        if node in bare:
            continue
        if node in clamps:
            source = node.all_input_nodes[0]
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)
            _render_activation(module, source, activations[node.name], form)
        elif node.name in activations and node.op != "get_attr":
            _render_activation(module, node, activations[node.name], form)
        elif node.name in constants and node.op == "get_attr":
            edge = constants[node.name]
            if edge.kind == "bias" and not bias:
                continue
            _render_constant(module, node, edge, form)
    if form == "fake":
        _render_dynamic(module, plan)
    if pixel_rows:
        by_rows(module)
    module.graph.lint()
    module.recompile()
    return module


def render_program(
    program: torch.export.ExportedProgram,
    plan: QuantPlan,
    form: Form,
    *,
    bias: bool = True,
    bare_pads: bool = False,
    bare_moves: bool = False,
    pixel_rows: bool = False,
) -> torch.export.ExportedProgram:
    """`render`, exported again as a program (what converters take)."""
    module = render(
        program,
        plan,
        form,
        bias=bias,
        bare_pads=bare_pads,
        bare_moves=bare_moves,
        pixel_rows=pixel_rows,
    )
    with torch.no_grad():
        return torch.export.export(module, example_args(program), strict=False)


def _render_activation(module: fx.GraphModule, node: fx.Node, edge: Edge, form: Form) -> None:
    scale, zero = edge.scale[0], edge.zero_point[0]
    graph = module.graph
    users = [u for u in node.users]
    limits = (edge.quant_min, edge.quant_max)
    with graph.inserting_after(node):
        if form == "fake" and not edge.rounded:
            last = graph.call_function(torch.clamp, (node, *edge.range))
        elif form == "fake":
            last = graph.call_function(fake_quantize, (node, scale, zero, *limits))
        else:
            assert edge.rounded
            args = (scale, zero, *limits, torch.int16 if edge.dtype == "int16" else torch.int8)
            first = graph.call_function(_qd.quantize_per_tensor.default, (node, *args))
            first.meta = {**node.meta}
            first.meta.pop("val", None)
            with graph.inserting_after(first):
                last = graph.call_function(_qd.dequantize_per_tensor.default, (first, *args))
    last.meta = {**node.meta}
    for user in users:
        user.replace_input_with(node, last)


def _render_dynamic(module: fx.GraphModule, plan: QuantPlan) -> None:
    layers = {n.name: n for n in module.graph.nodes if n.op == "call_function"}
    for dynamic in plan.dynamic:
        layer = layers[dynamic.node]
        source = layer.args[0]
        assert isinstance(source, fx.Node)
        with module.graph.inserting_before(layer):
            rounded = module.graph.call_function(fake_dynamic, (source, dynamic.per))
        rounded.meta = {k: v for k, v in source.meta.items() if k == "val"}
        layer.args = (rounded, *layer.args[1:])


def _render_constant(module: fx.GraphModule, node: fx.Node, edge: Edge, form: Form) -> None:
    value = tensor_of(module, node)
    assert value is not None
    stored = torch.from_numpy(np.ascontiguousarray(edge.quantize(value.numpy())))
    # The float constant is put on the plan's grid in every form: converters that round it again
    # (in float32, or with another tie rule) then get the plan's integers. Targets derive the int32
    # bias from scale_input * scale_weight, as the plan does, so for a bias that is all they need.
    set_tensor(module, node, torch.from_numpy(edge.dequantize(stored.numpy())))
    if form == "fake" or edge.kind == "bias" or edge.axis is None:
        return
    graph = module.graph
    users = list(node.users)
    base = str(node.target).replace(".", "_")
    scale = torch.tensor(edge.scale, dtype=torch.float32)
    zero = torch.tensor(edge.zero_point, dtype=torch.int64)
    module.register_buffer(f"{base}_scale", scale)
    module.register_buffer(f"{base}_zero_point", zero)
    limits = (edge.axis, edge.quant_min, edge.quant_max, torch.int8)
    if form == "qdq-folded":
        module.register_buffer(f"{base}_int8", stored)
    first_user = min(users, key=list(graph.nodes).index)
    with graph.inserting_before(first_user):
        scale_node = graph.get_attr(f"{base}_scale")
        zero_node = graph.get_attr(f"{base}_zero_point")
        if form == "qdq-folded":
            quantized = graph.get_attr(f"{base}_int8")
        else:
            op = _qd.quantize_per_channel.default
            quantized = graph.call_function(op, (node, scale_node, zero_node, *limits))
        op = _qd.dequantize_per_channel.default
        restored = graph.call_function(op, (quantized, scale_node, zero_node, *limits))
    for user in users:
        user.replace_input_with(node, restored)
    if form == "qdq-folded":
        graph.erase_node(node)
