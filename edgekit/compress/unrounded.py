"""What a runtime's kernels leave unrounded although the plan rounds it.

Kernels that compute two layers in one keep what is between them in floating point or in their
accumulator. That is a little more accurate than the plan and not the plan, so what such an artifact
is held against must leave the same roundings out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import fx

    from edgekit.compress.plan import Edge, QuantPlan

__all__ = ["Unrounded"]


@dataclass(frozen=True)
class Unrounded:
    """Roundings of a plan that one artifact's kernels leave out.

    Attributes:
        convolutions: ordinals, in execution order, of convolutions that are added to something
            before they are rounded. The artifact stores their scales all the same, and they keep to
            the range of the integers that these stand for.
        gates: whether the sigmoids in all SiLUs are left out: a SiLU is one operator.
        results: whether linear layers are left out whose output only floating-point operators read,
            or who receives the model's results: their kernels give float.
    """

    convolutions: tuple[int, ...] = ()
    gates: bool = False
    results: bool = False

    def without(self, program: torch.export.ExportedProgram, plan: QuantPlan) -> QuantPlan:
        """The plan without the roundings of what is left out.

        Where the range is kept the edge stays, and is not `rounded`.
        """
        ranged = dataclasses.replace(self, gates=False, results=False)._nodes(program, plan)
        dropped = self._nodes(program, plan) - ranged
        edges = (
            dataclasses.replace(e, rounded=False)
            if e.kind == "activation" and e.node in ranged
            else e
            for e in plan.edges
            if e.kind != "activation" or e.node not in dropped
        )
        return dataclasses.replace(plan, edges=tuple(edges))

    def not_stored(self) -> Unrounded:
        """What the artifact holds no scale of either."""
        return dataclasses.replace(self, convolutions=())

    def words(self, program: torch.export.ExportedProgram, plan: QuantPlan) -> str:
        """What is left out of this plan, for a report; empty if nothing is."""
        parts = (
            (Unrounded(self.convolutions), "{} convolutions that are added at once"),
            (Unrounded(gates=self.gates), "what is inside of SiLUs"),
            (Unrounded(results=self.results), "linear layers that floating point follows"),
        )
        counts = [(len(part._nodes(program, plan)), text) for part, text in parts]
        return " and of ".join(text.format(count) for count, text in counts if count)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {**dataclasses.asdict(self), "convolutions": list(self.convolutions)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Unrounded:
        """The inverse of `to_json`."""
        return cls(tuple(data["convolutions"]), bool(data["gates"]), bool(data["results"]))

    def _nodes(self, program: torch.export.ExportedProgram, plan: QuantPlan) -> set[str]:
        """Names of the plan's activations that are left out."""
        from edgekit.compress._nodes import CONVS, LINEARS
        from edgekit.compress.graph import graph_module

        nodes = [n for n in graph_module(program).graph.nodes if n.op == "call_function"]
        edges = plan.activations()
        convolutions = [n.name for n in nodes if n.target in CONVS]
        found = {convolutions[i] for i in self.convolutions}
        if self.gates:
            found |= {n.name for n in nodes if _is_silu_gate(n)}
        if self.results:
            linear = [n for n in nodes if n.target in LINEARS]
            found |= {n.name for n in linear if not _read_as_integers(n, edges)}
        return found & set(edges)


def _read_as_integers(node: fx.Node, edges: Mapping[str, Edge]) -> bool:
    """Whether a reader of ``node`` computes on its integers. A model's results are float."""
    from edgekit.compress._nodes import COMPUTE, INTEGER_KERNELS, MOVES, aten

    for user in node.users:
        if user.target in COMPUTE:
            return True
        if user.target in MOVES and _read_as_integers(user, edges):
            return True
        if user.target in INTEGER_KERNELS and user.name in edges:
            return True
        clamps = [u for u in user.users if u.target in (aten.relu.default, aten.hardtanh.default)]
        if user.target is aten.add.Tensor and any(u.name in edges for u in clamps):
            return True
    return False


def _is_silu_gate(node: fx.Node) -> bool:
    """A sigmoid that nothing but its own argument is multiplied with."""
    from edgekit.compress._nodes import aten

    if node.target is not aten.sigmoid.default:
        return False
    own = {node, node.args[0]}
    return all(u.target is aten.mul.Tensor and set(u.args) == own for u in node.users)
