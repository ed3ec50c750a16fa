"""Finding a plan's weights among the constants of a converted file.

Converters turn weights into other layouts and name them as they like. In a program rendered as
``fake`` every weight has the values that its integers stand for, and by these it is found again.
Kernels of transposed convolutions may also be turned round.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.compress.graph import graph_module, tensor_of
from edgekit.compress.plan import Edge, QuantPlan

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]

__all__ = ["Weight", "Weights"]


@dataclass(frozen=True)
class Weight:
    """A weight as a file is to store it, in the layout of the file's constant.

    Attributes:
        edge: how the plan quantizes it.
        stored: what is stored: int8 (also for int4), float16, or float32 where the plan has none.
        scale: float32 scales, shaped to be multiplied with ``stored``; None for floats.
    """

    edge: Edge
    stored: Array
    scale: Array | None


class Weights:
    """The weights of a plan by their values.

    Args:
        program: the canonical program.
        plan: its quantization.
        written: the plan whose integers the file holds now, by which weights are found, those that
            the plan keeps in float too; None where it holds the float values that the plan's
            integers stand for.
    """

    def __init__(
        self,
        program: torch.export.ExportedProgram,
        plan: QuantPlan,
        written: QuantPlan | None = None,
    ) -> None:
        module, constants = graph_module(program), plan.constants()
        others = {} if written is None else written.constants()
        self._known: dict[str, tuple[Edge, Array]] = {}
        for node in module.graph.nodes:
            edge, value = constants.get(node.name), tensor_of(module, node)
            kept = edge is None
            edge = edge or others.get(node.name)
            if edge is None or value is None or edge.kind != "weight":
                continue
            stored = value.numpy() if kept else edge.quantize(value.numpy())
            held, axis = (stored if kept else edge.dequantize(stored)), edge.axis
            if node.name in others:
                held, axis = others[node.name].quantize(value.numpy()), others[node.name].axis
            self._known[_digest(held)] = (edge, stored)
            if axis == 1 and stored.ndim == 4:  # of a transposed convolution
                turned = stored[..., ::-1, ::-1]
                self._known.setdefault(_digest(held[..., ::-1, ::-1]), (edge, turned))

    def find(self, value: Array) -> Weight | None:
        """The weight that a constant holds, its axes in any order; None if it holds none."""
        for order in _orders(value.ndim):
            found = self._known.get(_digest(value.transpose(order)))
            if found is None:
                continue
            edge, stored = found
            back = np.argsort(order)
            shape = [value.shape[i] for i in order]
            plain = edge.axis is None or stored.dtype == np.float32
            scale = None if plain else _scale_in(edge, stored.shape, shape)
            if not plain and scale is None:
                continue
            moved = np.ascontiguousarray(stored.reshape(shape).transpose(back))
            return Weight(edge, moved, None if scale is None else scale.transpose(back))
        return None


def _digest(value: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()


def _orders(ndim: int) -> Iterator[tuple[int, ...]]:
    """Orders of axes that a converter may have made of a weight, the likely ones first."""
    yield tuple(range(ndim))
    if ndim == 2:
        yield (1, 0)
    elif ndim == 4:
        yield from (o for o in itertools.permutations(range(4)) if o != (0, 1, 2, 3))


def _scale_in(edge: Edge, stored: tuple[int, ...], shape: list[int]) -> Array | None:
    """Scales for another shape of the same values, where channels may be split in groups."""
    assert edge.axis is not None
    before = int(np.prod(stored[: edge.axis], dtype=np.int64))
    for i in range(len(shape)):
        for j in range(i + 1, len(shape) + 1):
            size = int(np.prod(shape[i:j], dtype=np.int64))
            if int(np.prod(shape[:i], dtype=np.int64)) == before and size == stored[edge.axis]:
                sizes = [n if i <= k < j else 1 for k, n in enumerate(shape)]
                return np.asarray(edge.scale, np.float32).reshape(sizes)
    return None
