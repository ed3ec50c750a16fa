"""A graph that was exported for one sample, on many."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgekit.compress._nodes import aten

__all__ = ["Many"]


class Many(nn.Module):
    """A graph that was exported for one sample, for as many as it is given.

    Each sample goes through the graph as it stands (`torch.vmap`), whatever sizes are written into
    its shapes; layers still compute all of them at once.

    Args:
        graph: takes and gives tensors whose first size is 1.
        inputs: names of the inputs, in the graph's order.
    """

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[str]) -> None:
        super().__init__()
        # A new one: that of an exported program refuses to be put into train or eval mode.
        plain = copy.deepcopy(graph.graph)
        for node in plain.nodes:
            if node.target is aten.view.default:  # samples may lie between what it joins
                node.target = aten.reshape.default
        self.graph = fx.GraphModule(graph, plain)
        self._inputs = tuple(inputs)
        self._dtypes = tuple(
            n.meta["val"].dtype for n in graph.graph.nodes if n.op == "placeholder"
        )

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        """By position or by name, ``[n, ...]`` each; a tensor, or a tuple of several."""
        given = dict(zip(self._inputs, args, strict=False)) | kwargs
        columns = [
            given[name].to(dtype)[:, None]
            for name, dtype in zip(self._inputs, self._dtypes, strict=True)
        ]
        tensors = self.tensors()
        with sdpa_kernel(SDPBackend.MATH):  # the others go sample by sample
            made, told = torch.vmap(lambda *sample: self._sample(tensors, sample))(*columns)
        self.hear(told)
        answers = tuple(tensor.squeeze(1) for tensor in made)
        return answers[0] if len(answers) == 1 else answers

    def tensors(self) -> dict[str, torch.Tensor]:
        """Constants of the graph to replace for this call."""
        return {}

    def tell(self) -> dict[str, Any]:
        """What is to be heard of one sample, a tensor each."""
        return {}

    def hear(self, told: Mapping[str, Any]) -> None:
        """`tell`'s tensors of all samples, ``[n, ...]``."""

    def _sample(self, tensors: Mapping[str, torch.Tensor], sample: tuple[Any, ...]) -> Any:
        made = torch.func.functional_call(self.graph, dict(tensors), sample)
        return tuple(made) if isinstance(made, tuple | list) else (made,), self.tell()
