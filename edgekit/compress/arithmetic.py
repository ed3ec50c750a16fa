"""How runtimes' kernels quantize a layer's input under ``w8a8-dyn``: what shares a scale.

Targets say it of themselves; torch is loaded where a graph is asked about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import fx

__all__ = ["NO_OTHERS", "PER_ROW", "PER_ROW_ALONE", "PER_TENSOR", "Arithmetic"]

NO_OTHERS = "the runtime has no kernel for int8 weights with an input that stays in float"

Per = Literal["row", "pixel", "sample", "tensor"]


@dataclass(frozen=True)
class Arithmetic:
    """How a runtime's kernels quantize their input; None where they leave it in float.

    Attributes:
        linear: what shares a scale in a linear layer.
        convolution: what shares a scale in a convolution without groups.
        pointwise: the same where it has 1 x 1 weights, steps of one, and no padding.
        others: whether layers with their input in float can have integer weights too.
        pads_apart: whether padding is an operator of its own, so that ``pointwise`` holds with it.
    """

    linear: Per | None
    convolution: Per | None
    pointwise: Per | None
    others: bool = True
    pads_apart: bool = False

    def of(self, node: fx.Node) -> Per | None:
        """What shares a scale in the layer that ``node`` computes."""
        from edgekit.compress._nodes import LINEARS

        if node.target in LINEARS:
            return self.linear
        return self.pointwise if _is_pointwise(node, self.pads_apart) else self.convolution


PER_ROW = Arithmetic("row", "sample", "pixel", pads_apart=True)
"""XNNPACK's kernels ``qd8_f32_qc8w``; what plans say."""

PER_ROW_ALONE = Arithmetic("row", "sample", "pixel", others=False)
"""XNNPACK under ExecuTorch: the same kernels, and none for integer weights beside a float input.

Measured (1.5): 1 x 1 convolutions are computed as linear layers there too, on an x86-64 processor
with VNNI and on an emulated one without."""

PER_TENSOR = Arithmetic("tensor", None, None)
"""ONNX: ``DynamicQuantizeLinear`` before ``MatMulInteger``, which are for linear layers."""


def _is_pointwise(node: fx.Node, padded: bool) -> bool:
    """Whether a convolution looks at one pixel at a time, at all of them; ``padded`` or not."""
    weight: Any = node.args[1]
    values: list[Any] = [[1], [0]]
    values[: len(node.args[3:5])] = node.args[3:5]
    size = tuple(weight.meta["val"].shape[2:])
    return set(size) == {1} and set(values[0]) == {1} and (padded or set(values[1]) == {0})
