"""Post-training quantization: a canonical program and calibration samples in, a plan out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import fx, nn
from torchao.quantization.pt2e import PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from edgekit.compress._nodes import COMPUTE, TABLES, aten, weight_of
from edgekit.compress.annotate import PROBABILITIES, Placement, flat_range
from edgekit.compress.graph import (
    channel_axis,
    compute_nodes,
    graph_module,
    layer_of,
    program_digest,
    tensor_of,
)
from edgekit.compress.plan import Edge, QuantPlan
from edgekit.compress.ranges import least_error_range
from edgekit.errors import BadData, UnsupportedError
from edgekit.names import WIDE

Ranges = Literal["minmax", "mse"]

_BEND = 3.0
_BEND_COST = 1.1
ROOM = 2.0
"""Times what calibration saw that activations of 16 bits hold. The bit is cheap there, and other
samples go further: with 128 to calibrate, 1,000 others had 38.8 dB without it, 40.8 with it
(MobileNetV3-Small; four times as much: 40.6)."""
INT32_ROOM = 2.0**30
"""A stored bias stays below this, so that the int32 accumulator keeps a bit of head room."""


def quantize(
    program: torch.export.ExportedProgram,
    feeds: Iterable[tuple[torch.Tensor, ...]],
    *,
    scheme: str = "w8a8",
    calibration: Mapping[str, Any] | None = None,
    ranges: Ranges = "minmax",
    progress: Callable[[int], None] | None = None,
) -> QuantPlan:
    """Makes the ``w8a8`` or ``w8a16`` plan of a canonical program by static calibration.

    Weights are int8, symmetric, per output channel (an embedding's table per row); activations
    int8, affine, per tensor, or int16, symmetric (`symmetric_int16`); biases int32 at
    ``scale_input * scale_weight``. The program stays as it is:
    `edgekit.compress.ptq.post_training` makes better plans by changing weights and biases.

    Args:
        program: a program in canonical form (`edgekit.compress.graph.canonical`).
        feeds: calibration inputs, one tuple of tensors per sample, batch of 1.
        scheme: ``w8a8`` or ``w8a16``.
        calibration: where the samples came from, kept in the plan.
        ranges: of activations: all that calibration saw (``minmax``), or what quantizes the values
            seen with the least squared error (``mse``). That is for pictures' tensors; a model's
            inputs and outputs keep their range whole, as pictures saturate and the largest logit is
            the answer. Steps of 16 bits are so fine that nothing is gained there: ``minmax``.
        progress: called with the number of samples seen so far.

    Raises:
        BadData: no samples, a tensor that was NaN or infinite for some sample, or samples that are
            not what the model is used on: all alike, one value throughout, most layers silent.
        UnsupportedError: the program has nothing that can be quantized.
    """
    placement = Placement()
    module = copy.deepcopy(graph_module(program))
    prepared = prepare_pt2e(module, placement)
    seen, alike = 0, True
    first: tuple[torch.Tensor, ...] = ()
    with torch.no_grad():
        for feed in feeds:
            prepared(*feed)
            if seen == 0:
                _rest_weight_observers(prepared)
                first = feed
            alike = alike and all(map(torch.equal, first, feed))
            seen += 1
            if progress is not None:
                progress(seen)
    if seen == 0:
        raise BadData("calibration got no samples", hint="give --calib at least one sample")
    float_module = graph_module(program)
    observers = _observers(prepared)
    wide = scheme == WIDE
    ranges = "minmax" if wide else ranges
    edges = _read_edges(observers, float_module, ranges, wide)
    if not edges:
        raise UnsupportedError(
            "nothing in this model can be quantized: it has no convolution or linear layer"
        )
    if alike and seen > 1:
        raise _suspect(f"all {seen} samples are the same")
    _refuse_silence(observers, float_module, seen)
    return QuantPlan(
        scheme=scheme,
        program_digest=program_digest(program),
        edges=tuple(edges),
        kept_float=tuple(placement.kept_float),
        calibration={**(calibration or {}), "n": seen, "observer": ranges},
    )


def _rest_weight_observers(prepared: fx.GraphModule) -> None:
    """Turns weights' observers into identities: weights are the same for every sample."""
    for module in prepared.modules():
        if isinstance(module, PerChannelMinMaxObserver):
            module.forward = nn.Identity().forward


def _observers(prepared: fx.GraphModule) -> dict[str, Any]:
    """The observer of every quantized tensor, by the name of the node that makes it."""
    observers: dict[str, Any] = {}
    for node in prepared.graph.nodes:
        if node.op == "call_module" and str(node.target).startswith("activation_post_process"):
            observers[node.args[0].name] = getattr(prepared, str(node.target))
    return observers


def _refuse_silence(observers: Mapping[str, Any], module: fx.GraphModule, seen: int) -> None:
    """Refuses calibration under which an input, or most layers, held one value throughout.

    Such ranges give a plan that is valid and useless: scale 1 where there was nothing but zeros.
    """
    nodes = [n for n in module.graph.nodes if n.op != "get_attr" and n.name in observers]
    silent = [n for n in nodes if float(observers[n.name].min_val) == observers[n.name].max_val]
    for node in silent:
        if node.op == "placeholder" and (seen > 1 or node.meta["val"].numel() > 1):
            value = float(observers[node.name].min_val)
            raise _suspect(f"input {node.target!r} is {value:g} throughout, samples: {seen}")
    if 2 * len(silent) > len(nodes):
        raise _suspect(
            f"{len(silent)} of {len(nodes)} quantized tensors hold one value throughout, "
            f"first {layer_of(silent[0])} ({silent[0].name})"
        )


def _suspect(finding: str) -> BadData:
    return BadData(
        f"calibration is suspect: {finding}",
        hint="calibrate with what the model is used on: look at how the samples are read, scaled "
        "and normalised",
    )


def _read_edges(
    observers: Mapping[str, Any], module: fx.GraphModule, ranges: Ranges, wide: bool
) -> list[Edge]:
    """Reads observers out into edges named after the float graph's nodes."""
    names: dict[int, list[str]] = {}
    for name, observer in observers.items():
        names.setdefault(id(observer), []).append(name)
    by_name = {n.name: n for n in module.graph.nodes}
    edges: list[Edge] = []
    activations: dict[str, Edge] = {}
    for node in module.graph.nodes:
        if node.name not in observers or node.op == "get_attr":
            continue
        observer = observers[node.name]
        members = names[id(observer)]
        edge = _activation_edge(node, observer, [by_name[m] for m in members], ranges, wide)
        activations[node.name] = edge
        edges.append(edge)
    tables = [n for n in module.graph.nodes if n.op == "call_function" and n.target in TABLES]
    layers = [
        n
        for n in (*compute_nodes(module), *tables)
        if weight_of(n).op == "get_attr" and weight_of(n).name in observers
    ]
    scales = _weight_scales(layers, module, observers, activations)
    done: set[fx.Node] = set()
    for layer in layers:
        weight, bias = weight_of(layer), _bias_node(layer)
        if weight not in done:
            edges.append(_constant_edge(weight, "weight", scales[weight], channel_axis(layer)))
            done.add(weight)
        if tensor_of(module, bias) is not None:
            assert isinstance(bias, fx.Node)
            step = np.float32(_source_edge(layer, activations).scale[0])
            product = (scales[weight] * step).astype(np.float32)
            edges.append(_constant_edge(bias, "bias", product, 0))
    return edges


def _activation_edge(
    node: fx.Node, observer: Any, members: list[fx.Node], ranges: Ranges, wide: bool
) -> Edge:
    low, high = float(observer.min_val), float(observer.max_val)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise BadData(
            f"calibration saw NaN or infinity at {layer_of(node)} ({node.name})",
            hint="check the calibration data's scale and the model's weights",
        )
    if len(members) == 1:
        flat_low, flat_high = flat_range(node)
        if flat_low is not None and high > flat_low:
            low = max(low, flat_low)
        if flat_high is not None and low < flat_high:
            high = min(high, flat_high)
    if ranges == "mse" and all(_may_be_cut(m) for m in members):
        low, high = least_error_range(observer.values(), low, high)
    probable = any(m.target in PROBABILITIES for m in members) and low >= 0 and high <= 1
    scale, zero = scale_of(members, low, high, probable, wide=wide)
    return Edge(
        edge=f"{layer_of(node)}/{node.name}",
        node=node.name,
        kind="activation",
        dtype="int16" if wide else "int8",
        scale=(scale,),
        zero_point=(zero,),
        axis=None,
        quant_min=-(2**15) if wide else -128,
        quant_max=2**15 - 1 if wide else 127,
        group=min(m.name for m in members) if len(members) > 1 else None,
    )


def scale_of(
    members: list[fx.Node], low: float, high: float, probable: bool, *, wide: bool
) -> tuple[float, int]:
    """Scale and zero point that ``members`` share; ``probable``: they hold probabilities."""
    if wide:
        return (2.0**-15, 0) if probable else symmetric_int16(*_with_room(members, low, high))
    if probable:
        low, high = 0.0, 255 / 256
    readers = members[0].users if len(members) == 1 else {}
    if any(user.target is aten.hardswish.default for user in readers):
        return whole_bend(low, high)
    return affine_int8(low, high)


def _with_room(members: list[fx.Node], low: float, high: float) -> tuple[float, float]:
    """A wider range than calibration saw, within what clamps can give; inputs keep theirs.

    ``members`` are all the tensors that share it.
    """
    if any(m.op == "placeholder" for m in members):
        return low, high
    clamps = all(m.target is aten.hardtanh.default for m in members)
    limit = max(float(m.args[2]) for m in members) if clamps else np.inf  # type: ignore[arg-type]
    return ROOM * low, max(high, min(ROOM * high, limit))


def _may_be_cut(node: fx.Node) -> bool:
    """Whether the largest values of a tensor may be given up for finer steps.

    Not a model's input or output, nor what comes as rows (tokens): one row's outlier may be all of
    what the norm after it keeps of that row.
    """
    boundary = node.op == "placeholder" or any(user.op == "output" for user in node.users)
    return not boundary and len(node.meta["val"].shape) == 4


def affine_int8(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point of an int8 range that holds ``low``, ``high`` and an exact zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255.0)
    if not scale > np.finfo(np.float32).tiny:
        return 1.0, 0  # a constant zero: any scale stores it exactly
    zero = int(np.clip(np.rint(-128.0 - low / float(scale)), -128, 127))
    # Rounding the zero point moved the range by up to half a step: widen the step so that the
    # farther end fits again, and the nearer one too if that costs little. The ends of -1..1 would
    # else lie halfway between two integers, and saturated pictures are full of them.
    steps = (
        -low / (zero + 128) if zero > -128 else 0.0,
        high / (127 - zero) if zero < 127 else 0.0,
    )
    reach = max(steps) if max(steps) <= 1.02 * scale else steps[int(high >= -low)]
    return float(np.float32(reach)), zero


def symmetric_int16(low: float, high: float) -> tuple[float, int]:
    """Scale and zero point (0) of an int16 range that holds ``low`` and ``high``.

    Zero is the middle, as in TensorFlow Lite's 16x8 mode, whose kernels take no other zero point.
    """
    scale = np.float32(max(-low, high, 0.0) / (2**15 - 1))
    return (float(scale), 0) if scale > np.finfo(np.float32).tiny else (1.0, 0)


def whole_bend(low: float, high: float) -> tuple[float, int]:
    """As `affine_int8`, with -3 and 3 on the grid where steps grow by a tenth at most.

    Hard-swish bends there. With both on the grid, ``clip(x + 3, 0, 6)`` is a clip of integers.
    """
    if low > -_BEND and high + _BEND <= _BEND_COST * (high - min(low, 0.0)):
        low = -_BEND
    scale, zero = affine_int8(low, high)
    bend = int(_BEND / scale * (1 + 1e-6))
    wider = float(np.float32(_BEND / bend)) if bend else np.inf
    if wider > _BEND_COST * scale:
        return scale, zero
    return wider, int(np.clip(np.rint(-128.0 - min(low, 0.0) / wider), -128, 127))


def _weight_scales(
    layers: Iterable[fx.Node],
    module: fx.GraphModule,
    observers: Mapping[str, Any],
    activations: Mapping[str, Edge],
) -> dict[fx.Node, np.ndarray[Any, Any]]:
    """Float32 scales of every weight, one per channel, wide enough for all layers that use it."""
    widest: dict[fx.Node, np.ndarray[Any, Any]] = {}
    finest: dict[fx.Node, float] = {}
    for layer in layers:
        weight = weight_of(layer)
        observer = observers[weight.name]
        reach = torch.maximum(observer.max_val.abs(), observer.min_val.abs()).double().numpy()
        if not np.isfinite(reach).all():
            raise BadData(f"the weight of {layer_of(layer)} holds NaN or infinity")
        scale = reach / 127.0
        step = 1.0 if layer.target in TABLES else _source_edge(layer, activations).scale[0]
        bias = tensor_of(module, _bias_node(layer))
        if bias is not None:
            # A channel of (nearly) zero weights would need a bias beyond int32: widen its scale.
            scale = np.maximum(scale, np.abs(bias.double().numpy()) / (step * INT32_ROOM))
        widest[weight] = np.maximum(scale, widest.get(weight, 0.0))
        finest[weight] = min(step, finest.get(weight, 1.0))
    tiny = np.finfo(np.float32).tiny
    return {  # where even the bias rounds to nothing, any scale does
        weight: np.where(scale * finest[weight] > tiny, scale, 1.0).astype(np.float32)
        for weight, scale in widest.items()
    }


def _bias_node(layer: fx.Node) -> Any:
    return layer.args[2] if layer.target in COMPUTE and len(layer.args) > 2 else None


def _source_edge(layer: fx.Node, activations: Mapping[str, Edge]) -> Edge:
    source = layer.args[0]
    assert isinstance(source, fx.Node)
    return activations[source.name]


def _constant_edge(
    node: fx.Node, kind: Literal["weight", "bias"], scale: np.ndarray[Any, Any], axis: int
) -> Edge:
    weight = kind == "weight"
    return Edge(
        edge=str(node.target),
        node=node.name,
        kind=kind,
        dtype="int8" if weight else "int32",
        scale=tuple(float(s) for s in scale),
        zero_point=(0,) * len(scale),
        axis=axis,
        quant_min=-127 if weight else -(2**31),
        quant_max=127 if weight else 2**31 - 1,
    )
