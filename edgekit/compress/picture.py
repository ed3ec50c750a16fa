"""The picture border as a graph: what makes the model's tensor of a picture, in front of the model.

The result is a canonical program and its plan like any other, so everything that renders, converts,
evaluates or taps one does so with a border too. `find_prelude` tells it apart again, for targets
whose runtimes have something of their own for it.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from edgekit.compress._nodes import weight_of
from edgekit.compress.fake import fake_quantize
from edgekit.compress.graph import (
    aten,
    example_args,
    graph_module,
    groups,
    program_digest,
    set_tensor,
    tensor_of,
)
from edgekit.compress.plan import Edge, QuantPlan
from edgekit.compress.taps import first_quantized, stable_names
from edgekit.names import PICTURE_IO
from edgekit.runtime.border import PictureBorder

__all__ = ["Prelude", "by_rows", "find_prelude", "fitted", "with_border"]

FACTOR, OFFSET = "picture_factor", "picture_offset"

_SAFE = 1e-3
"""So far from the middle between two steps, in steps, no runtime's float32 arithmetic errs."""

_ROOM = 0.02
"""An offset that has to be moved is moved so far beyond the nearest such middle, given room."""


@dataclass(frozen=True)
class Prelude:
    """The nodes of a picture border in a graph.

    ``pixels`` (uint8 or float32, NHWC) -> ``flip`` -> ``permute`` -> ``convert`` (float32) ->
    ``scaled`` (times ``factor``) -> ``result`` (plus ``offset``), which stands where the model's
    own input stood. ``permute`` is there for NCHW alone, ``flip`` for those BGR models alone whose
    first layers could not take their channels in the other order instead.

    Attributes:
        pixels: the placeholder.
        flip, permute: None where there is no such node.
        convert, scaled, result: the other nodes.
        factor, offset: float32 values, one per channel in the order behind ``flip``: the model's,
            or RGB where its first layers were changed.
    """

    pixels: fx.Node
    flip: fx.Node | None
    permute: fx.Node | None
    convert: fx.Node
    scaled: fx.Node
    result: fx.Node
    factor: npt.NDArray[np.float32]
    offset: npt.NDArray[np.float32]

    @property
    def normalized(self) -> bool:
        """Whether it takes float32 values that are the model's already, but for their order."""
        return bool(self.pixels.meta["val"].dtype.is_floating_point)

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """All nodes from the placeholder (left out) to the result, in order."""
        chain = (self.flip, self.permute, self.convert, self.scaled, self.result)
        return tuple(n for n in chain if n is not None)


def find_prelude(module: fx.GraphModule) -> Prelude | None:
    """The picture border of a graph that `with_border` made, also once rendered; else None."""
    for node in module.graph.nodes:
        if node.op != "get_attr" or str(node.target) != FACTOR or not node.users:
            continue
        scaled = next(iter(node.users))
        result = next(iter(scaled.users))
        convert = scaled.args[0]
        factor, offset = tensor_of(module, node), tensor_of(module, result.args[1])
        assert isinstance(convert, fx.Node) and factor is not None and offset is not None
        chain: dict[str, fx.Node | None] = {"flip": None, "permute": None}
        source = convert.args[0]
        while isinstance(source, fx.Node) and source.op == "call_function":
            chain["permute" if source.target is aten.permute.default else "flip"] = source
            source = source.args[0]
        assert isinstance(source, fx.Node)
        return Prelude(
            pixels=source,
            convert=convert,
            scaled=scaled,
            result=result,
            factor=factor.reshape(-1).numpy(),
            offset=offset.reshape(-1).numpy(),
            **chain,
        )
    return None


def with_border(
    program: torch.export.ExportedProgram, plan: QuantPlan, border: PictureBorder, position: int
) -> tuple[torch.export.ExportedProgram, QuantPlan]:
    """The program that takes a picture, and its plan under the new names.

    Args:
        program: the canonical program.
        plan: its quantization.
        border: what stands before it, see `fitted`.
        position: of the picture among the program's inputs.
    """
    module = copy.deepcopy(graph_module(program))
    graph = module.graph
    old = [n for n in graph.nodes if n.op == "placeholder"][position]
    before = {key: name for name, key in stable_names(module).items()}
    users = list(old.users)
    flip = border.color == "BGR" and not _reversed(module, old, 1 if border.layout == "NCHW" else 3)
    last = _insert(module, old, border, flip)
    for user in users:
        user.replace_input_with(old, last)
    graph.lint()
    module = fx.GraphModule(module, graph)  # without the checks of the old input
    args = list(example_args(program))
    args[position] = torch.zeros(border.spec.shape, dtype=getattr(torch, border.spec.dtype))
    # What the plan says of the old placeholder holds for what takes its place.
    shift = sum(n.op == "call_function" for n in graph.nodes) - sum(
        key.partition(":")[0].isdigit() for key in before
    )
    with torch.no_grad():
        made = torch.export.export(module, tuple(args), strict=False)
    after = {key: name for name, key in stable_names(graph_module(made)).items()}
    prelude = find_prelude(graph_module(made))
    assert prelude is not None
    renamed = {name: after[_moved(key, shift)] for key, name in before.items()}
    renamed[old.name] = prelude.result.name
    return made, _under_new_names(plan, renamed, program_digest(made))


def _moved(key: str, shift: int) -> str:
    place, colon, target = key.partition(":")
    return f"{int(place) + shift}{colon}{target}" if place.isdigit() else key


def _under_new_names(plan: QuantPlan, renamed: dict[str, str], digest: str) -> QuantPlan:
    return dataclasses.replace(
        plan,
        edges=tuple(dataclasses.replace(e, node=renamed[e.node]) for e in plan.edges),
        dynamic=tuple(dataclasses.replace(d, node=renamed[d.node]) for d in plan.dynamic),
        kept_float=tuple((renamed.get(n, n), why) for n, why in plan.kept_float),
        program_digest=digest,
    )


def _reversed(module: fx.GraphModule, node: fx.Node, axis: int) -> bool:
    """Lets the layers that read a picture take its channels, on ``axis``, in the other order.

    Returns:
        False, with nothing changed, where something else than a convolution over all channels
        reads it.
    """
    weights: set[fx.Node] = set()
    todo = [(node, axis)]
    while todo:
        source, axis = todo.pop()
        for user in source.users:
            if user.target is aten.permute.default:
                todo.append((user, list(user.args[1]).index(axis)))  # type: ignore[arg-type]
            elif user.target is aten.constant_pad_nd.default and axis == 1:
                todo.append((user, axis))
            elif user.target is aten.conv2d.default and axis == 1 and groups(user) == 1:
                weights.add(weight_of(user))
            else:
                return False
    constants = [(w, tensor_of(module, w)) for w in weights]
    if any(value is None or len(w.users) != 1 for w, value in constants):
        return False
    for weight, value in constants:
        assert value is not None
        set_tensor(module, weight, value.flip(1).contiguous())
    return True


def _insert(module: fx.GraphModule, pixels: fx.Node, border: PictureBorder, flip: bool) -> fx.Node:
    """Puts the prelude behind a placeholder and gives its last node."""
    shape = (1, -1, 1, 1) if border.layout == "NCHW" else (1, 1, 1, -1)
    turned = border.color == "BGR" and not flip
    for name, given in ((FACTOR, border.factor), (OFFSET, border.offset)):
        values = given[::-1] if turned else given
        module.register_buffer(name, torch.tensor(values, dtype=torch.float32).reshape(shape))
    pixels.meta = {k: v for k, v in pixels.meta.items() if k != "val"}
    pixels.type = None
    last = pixels
    steps: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    if flip:
        steps.append((aten.flip.default, ([3],), {}))
    if border.layout == "NCHW":
        steps.append((aten.permute.default, ([0, 3, 1, 2],), {}))
    # Contiguous, since views further on may rely on the layout that the model was exported with.
    contiguous = {"dtype": torch.float32, "memory_format": torch.contiguous_format}
    steps.append((aten._to_copy.default, (), contiguous))
    for target, args, kwargs in steps:
        with module.graph.inserting_after(last):
            last = module.graph.call_function(target, (last, *args), kwargs)
    for target, name in ((aten.mul.Tensor, FACTOR), (aten.add.Tensor, OFFSET)):
        with module.graph.inserting_after(last):
            constant = module.graph.get_attr(name)
        with module.graph.inserting_after(constant):
            last = module.graph.call_function(target, (last, constant))
    return last


def by_rows(module: fx.GraphModule, *, contiguous: bool = True) -> None:
    """Changes a picture border so that its arithmetic runs along rows of pixels.

    ``pixels`` -> ``flip`` -> float32 -> rows ``[1, H, W * C]`` -> times and plus one value for each
    place in a row -> ``[1, H, W, C]`` -> ``permute``: the very same values. Kernels that broadcast
    three values over the last axis take many times as long. What is left for the end is the change
    of layout, which runtimes whose kernels take channels last then leave out.

    Args:
        module: any graph; without a border it stays as it is.
        contiguous: whether the result lies in memory as its shape says. If not, `torch.export`
            follows its strides through all that is computed of it.
    """
    prelude = find_prelude(module)
    if prelude is None:
        return
    graph, channels = module.graph, len(prelude.factor)
    first = prelude.flip or prelude.pixels
    height, width = prelude.pixels.meta["val"].shape[1:3]
    for name, values in ((FACTOR, prelude.factor), (OFFSET, prelude.offset)):
        module.register_buffer(f"{name}_row", torch.from_numpy(np.tile(values, width)))
    last = first
    with graph.inserting_after(prelude.result):
        anchor = graph.call_function(aten.alias.default, (prelude.result,))
    with graph.inserting_before(anchor):
        factor, offset = (graph.get_attr(f"{name}_row") for name in (FACTOR, OFFSET))
        last = graph.call_function(aten._to_copy.default, (first,), {"dtype": torch.float32})
        last = graph.call_function(aten.reshape.default, (last, [1, height, width * channels]))
        last = graph.call_function(aten.mul.Tensor, (last, factor))
        last = graph.call_function(aten.add.Tensor, (last, offset))
        last = graph.call_function(aten.reshape.default, (last, [1, height, width, channels]))
        if prelude.permute is not None:
            last = graph.call_function(aten.permute.default, (last, [0, 3, 1, 2]))
            if contiguous:
                kept: dict[str, Any] = {"memory_format": torch.contiguous_format}
                last = graph.call_function(aten.clone.default, (last,), kept)
    last.meta, name = dict(prelude.result.meta), prelude.result.name
    graph.erase_node(anchor)
    prelude.result.replace_all_uses_with(last)
    graph.eliminate_dead_code()
    last.name = name  # which the plan's edge has
    module.recompile()


def fitted(
    border: PictureBorder,
    table: npt.NDArray[np.float32],
    program: torch.export.ExportedProgram,
    plan: QuantPlan,
    position: int,
) -> PictureBorder:
    """The border whose every pixel becomes the integer that the plan gives for the same pixel.

    Arithmetic in float32 errs by some 1e-5 of a step. That moves a pixel to the next integer only
    where its value lies next to the middle between two steps; there, the offset is moved to the
    side that the plan's own evaluation rounds to.

    Args:
        border: of the model; one that takes normalized values stays as it is.
        table: the model's own preprocessing, float32 ``[channels, 256]``: what each pixel value
            becomes.
        program: the canonical program.
        plan: its quantization; where it keeps the picture in float, the border stays as it is.
        position: of the picture among the program's inputs.
    """
    edges = plan.activations()
    nodes = [n for n in graph_module(program).graph.nodes if n.op == "placeholder"]
    name = first_quantized(nodes[position], edges)
    if name is None or border.io != PICTURE_IO:
        return border
    offsets, differs = [], 0
    for channel, (factor, offset) in enumerate(zip(border.factor, border.offset, strict=True)):
        wanted = _integers(torch.from_numpy(table[channel]), edges[name])
        moved = _moved_offset(factor, offset, wanted, edges[name])
        made = torch.arange(256, dtype=torch.float32) * factor + moved
        differs += int((_integers(made, edges[name]) != wanted).sum())
        offsets.append(moved)
    return dataclasses.replace(border, offset=tuple(offsets), differs=differs)


def _integers(values: torch.Tensor, edge: Edge) -> npt.NDArray[np.int64]:
    """What the plan's evaluation in torch makes of values, without its zero point."""
    scale, zero = edge.scale[0], edge.zero_point[0]
    real = fake_quantize(values, scale, zero, edge.quant_min, edge.quant_max)
    found: npt.NDArray[np.int64] = np.rint(real.double().numpy() / scale).astype(np.int64)
    return found


def _moved_offset(factor: float, offset: float, wanted: npt.NDArray[np.int64], edge: Edge) -> float:
    """The offset next to ``offset`` that gives most of the integers that are wanted, surely."""
    scale, zero = edge.scale[0], edge.zero_point[0]
    low, high = edge.quant_min - zero, edge.quant_max - zero
    steps = (np.arange(256) * factor + offset) / scale
    # Moving all values by one of these brings one of them to the middle between two steps.
    middles = np.unique(np.floor(steps) + 0.5 - steps)
    ends = np.concatenate([middles[-1:] - 1, middles, middles[:1] + 1])
    best: tuple[tuple[int, bool, float], float] | None = None
    for start, end in itertools.pairwise(ends):
        room = min(_ROOM, (end - start) / 2)
        move = float(np.clip(0.0, start + room, end - room))
        if start + _SAFE <= 0.0 <= end - _SAFE:
            move, room = 0.0, _SAFE
        got = np.clip(np.rint(steps + move), low, high)
        rank = (int((got != wanted).sum()), room < _SAFE, abs(move))
        if best is None or rank < best[0]:
            best = rank, move
    assert best is not None
    return float(np.float32(offset + best[1] * scale))
