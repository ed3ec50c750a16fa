"""Evaluating a graph in torch over many samples: the reference that artifacts are held against."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from edgekit.compress.dynamic import fake_dynamic
from edgekit.compress.fake import fake_quantize
from edgekit.compress.graph import aten

Arrays = dict[str, npt.NDArray[Any]]

BATCH = 32
_SHAPED = (aten.view.default, aten.reshape.default)
# Operators that treat the samples of a batch apart from each other, whatever their arguments here.
_BATCHED = (
    aten.conv2d.default,
    aten.linear.default,
    aten.relu.default,
    aten.hardtanh.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.sigmoid.default,
    aten.silu.default,
    aten.gelu.default,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
    fake_quantize,
    aten._to_copy.default,
)
_POINTWISE = (aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor, aten.div.Tensor)
_NOISES, _GOLDEN = 1 << 16, -0x61C88647  # 2**32 over the golden ratio (Fibonacci hashing), as int32


def evaluate(
    module: fx.GraphModule,
    feeds: Mapping[str, npt.NDArray[Any]],
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    progress: Callable[[int], None] | None = None,
    together: bool | None = None,
) -> Arrays:
    """Runs a rendered graph on every sample.

    Samples go through in batches where every operator is known to treat them apart. Graphs are
    exported for one batch size and may have it written into their shapes; those are widened in a
    copy. In any other graph (one that builds a mask for its one sample, say) each goes alone.

    Args:
        module: a graph whose inputs have the signature's shapes.
        feeds: arrays [n, *input shape] by input name.
        inputs: input names in the graph's order.
        outputs: names for the outputs, in the graph's order.
        progress: called with the number of samples newly done.
        together: what `batches` found of this graph; without it, that is found out first.

    Returns:
        Arrays [n, *output shape] by output name.
    """
    tell = progress or (lambda _: None)
    arrays = [feeds[name] for name in inputs]
    count = len(arrays[0])
    size = min(BATCH, count)
    with torch.no_grad():
        wide = None if together is False else _wide(module, arrays)
        parts: list[list[npt.NDArray[Any]]] = []
        first = None
        if wide is not None and together is None:
            first = _together(wide, module, arrays, size)
            wide = None if first is None else wide
        if wide is not None:
            for start in range(0, count, size):
                rows = [np.take(a, range(start, start + size), 0, mode="clip") for a in arrays]
                answers = first if first and not start else _call(wide, [r[:, 0] for r in rows])
                done = min(size, count - start)
                parts.append([a[:done, None] for a in answers])
                tell(done)
        else:
            for i in range(count):
                parts.append([a[None] for a in _call(module, [a[i] for a in arrays])])
                tell(1)
    columns = zip(*parts, strict=True)
    return {name: np.concatenate(col) for name, col in zip(outputs, columns, strict=True)}


def batches(
    module: fx.GraphModule, feeds: Mapping[str, npt.NDArray[Any]], inputs: Sequence[str]
) -> bool:
    """Whether `evaluate` may give a graph several samples at once; the arguments are its own."""
    arrays = [feeds[name] for name in inputs]
    wide = _wide(module, arrays)
    if wide is None:
        return False
    with torch.no_grad():
        return _together(wide, module, arrays, min(BATCH, len(arrays[0]))) is not None


def jitter(value: torch.Tensor, relative: float, seed: int) -> torch.Tensor:
    """``value`` (float32) with seeded noise, up to ``relative`` of each element either way.

    Equal elements get equal noise: a kernel that divides otherwise tips all of them or none.
    """
    generator = torch.Generator().manual_seed(seed)
    factors = 1 + relative * (torch.rand(_NOISES, generator=generator) * 2 - 1)
    value = value.contiguous()
    disturbed = torch.empty_like(value)
    # In pieces that stay in the cache: nearly three times as fast.
    for source, result in zip(
        value.view(-1).split(_NOISES), disturbed.view(-1).split(_NOISES), strict=True
    ):
        hashed = source.view(torch.int32) * _GOLDEN
        hashed >>= 16
        hashed &= _NOISES - 1
        torch.mul(source, factors.index_select(0, hashed), out=result)
    return disturbed


def with_rounding_noise(
    module: fx.GraphModule, relative: float = 1e-6, *, draw: int = 0
) -> fx.GraphModule:
    """A ``fake`` rendering whose every value is disturbed a little before it is quantized.

    Kernels sum in different orders and so differ by some 1e-7 to 1e-6 of a value. Before a rounding
    that is enough to move an element by a step here and there, and deep graphs carry that on. What
    the plan's evaluation does under this noise is the closest that any runtime can be asked to
    come to it. Which roundings tip is chance: every ``draw`` is another noise.
    """
    noisy = copy.deepcopy(module)
    quantizers = [n for n in noisy.graph.nodes if n.target in (fake_quantize, fake_dynamic)]
    for seed, node in enumerate(quantizers, start=draw * len(quantizers)):
        source = node.args[0]
        with noisy.graph.inserting_before(node):
            disturbed = noisy.graph.call_function(jitter, (source, relative, seed))
        disturbed.meta = {k: v for k, v in source.meta.items() if k == "val"}
        node.args = (disturbed, *node.args[1:])
    noisy.recompile()
    return noisy


def _call(module: fx.GraphModule, arrays: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    result = module(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))
    tensors = result if isinstance(result, tuple | list) else (result,)
    return [t.numpy() for t in tensors]


def _wide(module: fx.GraphModule, arrays: Sequence[npt.NDArray[Any]]) -> fx.GraphModule | None:
    """`_widened` for the batches of ``arrays``; None where there is nothing to gain."""
    size = min(BATCH, len(arrays[0]))
    return _widened(module, size) if size > 2 and all(a.shape[1] == 1 for a in arrays) else None


def _widened(module: fx.GraphModule, size: int) -> fx.GraphModule | None:
    """A copy for ``size`` samples at once, or None where samples might mix."""
    wide = copy.deepcopy(module)
    batched = {n for n in wide.graph.nodes if n.op == "placeholder"}
    for node in wide.graph.nodes:
        if node.op != "call_function":
            continue
        sources = [n for n in node.all_input_nodes if n.op != "get_attr"]
        if not sources or any(n not in batched for n in sources):
            return None
        if node.target in _SHAPED:
            shape = list(node.args[1])
            if not shape or shape[0] != 1:
                return None
            node.args = (node.args[0], [size, *shape[1:]])
        elif node.target in _POINTWISE:
            if len({n.meta["val"].dim() for n in sources if "val" in n.meta}) > 1:
                return None
        elif node.target is aten.flip.default:
            if 0 in node.args[1]:
                return None
        elif node.target is aten.permute.default:
            if node.args[1][0] != 0:
                return None
        elif node.target is aten.cat.default:
            if node.args[1:] in ((), (0,)):
                return None
        elif node.target is aten.mean.dim:
            dims = list(node.args[1])
            if 0 in dims or any(d < 0 and -d >= node.args[0].meta["val"].dim() for d in dims):
                return None
        elif node.target is fake_dynamic:
            if node.args[1] == "tensor":
                return None
        elif node.target not in _BATCHED and node.target is not jitter:
            return None
        batched.add(node)
    wide.recompile()
    return wide


def _together(
    wide: fx.GraphModule,
    module: fx.GraphModule,
    arrays: Sequence[npt.NDArray[Any]],
    size: int,
) -> list[npt.NDArray[Any]] | None:
    """What the widened copy gives for the first samples.

    None where that is not the graph's own answer for the first and last of them.
    """
    together = _call(wide, [a[:size, 0] for a in arrays])
    for i in (0, size - 1):
        alone = _call(module, [a[i] for a in arrays])
        for one, many in zip(alone, together, strict=True):
            if many.ndim == 0 or len(many) != size or one.shape != (1, *many.shape[1:]):
                return None
            if one.dtype != many.dtype or one.size == 0:
                return None
            # A batch may sum in another order and so move a quantized tensor by a step.
            reach = float(np.abs(one).max()) or 1.0
            if not np.abs(one[0].astype(float) - many[i].astype(float)).max() <= 0.05 * reach:
                return None
    return together
