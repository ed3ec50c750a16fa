"""Placement: which tensors of a canonical graph are quantized, and which share their scale.

The rules follow what integer kernels of mobile runtimes compute, so that one placement serves them
all:

- A convolution or linear layer takes int8 in and gives int8 out. Its output is quantized *after*
  the activation function that kernels fuse with it (ReLU, ReLU6, a clamp from zero up), never
  before: a range that covers values which the activation throws away costs several points on
  mobile CNNs.
- Hard-swish, GELU and sigmoid are kernels of their own: the tensor before them is quantized
  too. Where such a function is flat the range is cut (`flat_range`), which loses nothing.
- An embedding's table is int8 with a scale for each row, as a weight has one for each channel; the
  rows that it gives are float, since what reads them (additions, a norm) is.
- Data movement and max pooling pass their input's scale on; concatenation shares one scale.
- Element-wise operators and pooling are quantized where all their inputs are; everything else
  (layer norm, attention) stays in float.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torchao.quantization.pt2e import PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from edgekit.compress._nodes import CURVES, ELEMENTWISE, PASS_THROUGH, TABLES
from edgekit.compress.graph import COMPUTE, LINEARS, aten, channel_axis, groups, tensor_of
from edgekit.compress.ranges import RangeObserver

_FUSED = (aten.relu.default,)
_FLAT: dict[Any, tuple[float | None, float | None]] = {
    aten.hardswish.default: (-3.0, None),
    aten.hardsigmoid.default: (-3.0, 3.0),
}

PROBABILITIES = (aten.softmax.int, aten._softmax.default, aten.sigmoid.default)
"""Operators whose integers stand for k / 256, or k / 32768 where they have 16 bits: LiteRT's
specification allows no other scale."""

_EPS = float(torch.finfo(torch.float32).tiny)
ACTIVATION = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-128,
    quant_max=127,
    qscheme=torch.per_tensor_affine,
    observer_or_fake_quant_ctr=RangeObserver.with_args(eps=_EPS),
)


def weight_spec(node: fx.Node) -> QuantizationSpec:
    """Symmetric int8 per output channel, -127..127, as every runtime's kernels take it."""
    return QuantizationSpec(
        dtype=torch.int8,
        quant_min=-127,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=channel_axis(node),
        observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=_EPS),
    )


def is_fused_activation(node: fx.Node) -> bool:
    """ReLU, ReLU6 or a clamp to [-1, 1], which integer kernels apply while requantizing.

    So do they with any clamp from zero up: the integers of its result end where the clamp does.
    """
    if node.target in _FUSED:
        return True
    if node.target is not aten.hardtanh.default:
        return False
    low, high = _limits(node)
    return (low == 0 and high > 0) or (low, high) == (-1.0, 1.0)


def _limits(node: fx.Node) -> tuple[float, float]:
    low = node.args[1] if len(node.args) > 1 else -1.0
    high = node.args[2] if len(node.args) > 2 else 1.0
    return float(low), float(high)  # type: ignore[arg-type]


def flat_range(node: fx.Node) -> tuple[float | None, float | None]:
    """The input range outside which every consumer of ``node`` is constant or zero.

    ``hardswish(x) = 0`` for ``x <= -3`` and ``hardsigmoid`` is flat outside ``[-3, 3]``, so a
    quantizer of their input may saturate there without any error.
    """
    if not node.users or any(user.target not in _FLAT for user in node.users):
        return None, None
    limits = [_FLAT[user.target] for user in node.users]
    lows = [low for low, _ in limits if low is not None]
    highs = [high for _, high in limits if high is not None]
    return (
        min(lows) if len(lows) == len(limits) else None,
        max(highs) if len(highs) == len(limits) else None,
    )


class Placement(Quantizer):  # type: ignore[misc]
    """The placement rules above, as an annotator for `torchao`'s ``prepare_pt2e``.

    Attributes:
        kept_float: after `annotate`, the floating-point operators left alone, with the reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept_float: list[tuple[str, str]] = []
        self._quantized: set[fx.Node] = set()
        self._module: fx.GraphModule

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Writes a quantization annotation on every node that the rules quantize."""
        self._module = model
        for node in model.graph.nodes:
            if node.op != "call_function" or node in self._quantized:
                continue
            if node.target in COMPUTE:
                self._compute(node)
            elif node.target in PASS_THROUGH:
                self._pass_through(node)
            elif node.target is aten.cat.default:
                self._concatenate(node)
            elif node.target in TABLES:
                self._look_up(node)
            elif node.target in ELEMENTWISE:
                self._elementwise(node)
            elif _is_float(node):
                self.kept_float.append(
                    (node.name, f"no integer form of {node.target} in the rules")
                )
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Nothing to check beyond what `annotate` decides."""

    def _compute(self, node: fx.Node) -> None:
        source, weight = node.args[0], node.args[1]
        if tensor_of(self._module, weight) is None:
            self.kept_float.append((node.name, "its weight is not a constant"))
            return
        if channel_axis(node) == 1 and groups(node) != 1:
            self.kept_float.append(
                (node.name, "no integer form of a grouped transposed convolution")
            )
            return
        assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
        if self._is_lone_pad(source):
            self._annotate_move(source)
        self._mark(node, {source: ACTIVATION, weight: weight_spec(node)})
        self._quantized.add(source)

    def _look_up(self, node: fx.Node) -> None:
        """An embedding, unless something reads its table that is not quantized."""
        table = node.args[0]
        value = tensor_of(self._module, table)
        if value is None or not value.is_floating_point() or value.dim() != 2:
            self.kept_float.append((node.name, "its table is not a constant"))
            return
        assert isinstance(table, fx.Node)
        same = [n for n in self._module.graph.nodes if n.op == "get_attr"]
        users = [u for n in same if n.target == table.target for u in n.users]
        if not all(_takes_rows(u, table) for u in users):
            self.kept_float.append((node.name, "its table is read in float elsewhere"))
            return
        self._annotate(node, {table: weight_spec(node)}, None)
        self._quantized.discard(node)
        self.kept_float.append((node.name, "its table is int8; the rows that it gives are float"))

    def _is_lone_pad(self, node: fx.Node) -> bool:
        """Whether ``node`` puts zeros around a float tensor that nothing else reads.

        Such a tensor is quantized before it is padded, so that kernels can pad by themselves.
        """
        if node.target is not aten.constant_pad_nd.default or node in self._quantized:
            return False
        return not any(node.args[2:]) and len(node.all_input_nodes[0].users) == 1

    def _elementwise(self, node: fx.Node) -> None:
        inputs = [a for a in node.args if isinstance(a, fx.Node)]
        scalars = len([a for a in node.args[:2] if isinstance(a, int | float)])
        binary = node.target in (aten.add.Tensor, aten.mul.Tensor)
        if binary and (len(inputs) != 2 or scalars):
            self.kept_float.append((node.name, "one operand is a plain number"))
        elif not all(self._gives_quantized(n) for n in inputs):
            self.kept_float.append((node.name, "one of its inputs stays in float"))
        elif (binary and not self._used_quantized(node)) or (
            node.target in CURVES and not self._used_quantized(node, result=False)
        ):
            self.kept_float.append((node.name, "nothing behind it takes integers"))
        else:
            self._mark(node, {n: ACTIVATION for n in inputs})

    def _pass_through(self, node: fx.Node) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if not self._gives_quantized(source) or not _is_float(node):
            return
        if node.target is aten.constant_pad_nd.default and any(node.args[2:]):
            self.kept_float.append((node.name, "it pads with a number other than zero"))
            return
        if self._used_quantized(node):
            self._annotate_move(node)

    def _annotate_move(self, node: fx.Node) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        self._annotate(node, {source: ACTIVATION}, SharedQuantizationSpec((source, node)))
        self._quantized.add(source)

    def _concatenate(self, node: fx.Node) -> None:
        inputs = node.args[0]
        assert isinstance(inputs, list | tuple)
        sources = [n for n in inputs if isinstance(n, fx.Node)]
        if not all(self._gives_quantized(n) for n in sources):
            self.kept_float.append((node.name, "one of its inputs stays in float"))
            return
        shared = SharedQuantizationSpec((sources[0], node))
        specs: dict[fx.Node, Any] = {n: shared for n in sources}
        specs[sources[0]] = ACTIVATION
        self._annotate(node, specs, shared)

    def _mark(self, node: fx.Node, specs: dict[fx.Node, Any]) -> None:
        """Annotates ``node``; its output is quantized after the activation fused with it."""
        users = list(node.users)
        fuses = node.target in (*COMPUTE, aten.add.Tensor)
        if fuses and len(users) == 1 and is_fused_activation(users[0]):
            self._annotate(node, specs, None)
            self._annotate(users[0], {}, ACTIVATION)
        else:
            self._annotate(node, specs, ACTIVATION)

    def _annotate(self, node: fx.Node, specs: dict[fx.Node, Any], output: Any) -> None:
        node.meta["quantization_annotation"] = QuantizationAnnotation(
            input_qspec_map=specs, output_qspec=output, _annotated=True
        )
        self._quantized.add(node)

    def _gives_quantized(self, node: fx.Node) -> bool:
        return node in self._quantized and _is_float(node)

    def _used_quantized(self, node: fx.Node, *, result: bool = True) -> bool:
        """Whether some consumer, through data movement, will take the tensor as integers.

        ``result`` says whether being a result of the model counts as such.
        """
        for user in node.users:
            if user.target in COMPUTE or user.target is aten.cat.default:
                return True
            if user.target in ELEMENTWISE and self._may_take_integers(user):
                return True
            if user.target in PASS_THROUGH and self._used_quantized(user, result=result):
                return True
            if user.op == "output" and result:
                return True
        return False

    def _may_take_integers(self, node: fx.Node) -> bool:
        """Whether an element-wise operator can be quantized, and is worth it."""
        if node.target in (aten.add.Tensor, aten.mul.Tensor):
            operands = [a for a in node.args[:2] if isinstance(a, fx.Node) and a.op != "get_attr"]
            return len(operands) == 2 and self._used_quantized(node)
        return node.target not in CURVES or self._used_quantized(node, result=False)


def _takes_rows(user: fx.Node, table: fx.Node) -> bool:
    """Whether ``user`` is an embedding or linear layer that takes rows of ``table``."""
    position = 1 if user.target in LINEARS else 0
    if user.target not in (*TABLES, *LINEARS):
        return False
    read = user.args[position]
    return isinstance(read, fx.Node) and read.target == table.target


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point
