"""What a program and its plans say of an artifact before it is made: work, weights, parameters.

The gates hold what was made against it (`edgekit.export.gates`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.artifact import Store, fingerprint
from edgekit.compress.plan import plan_name
from edgekit.export.document import Row
from edgekit.export.planning import Planned
from edgekit.keys import code, versions
from edgekit.model import Model
from edgekit.targets import find

__all__ = ["Source", "count", "placed", "source_of"]


@dataclass(frozen=True)
class Source:
    """The model that another one was pruned from.

    Attributes:
        name: its name; ``the source`` where a bare number was given.
        parameters: its parameters, as its author's module has them.
        stored: floating-point numbers that its canonical program holds, batch norms folded: what
            a file of it stores. None where only a number is known.
        digest: `edgekit.Model.digest`; None where only a number is known.
    """

    name: str
    parameters: int
    stored: int | None = None
    digest: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For a bundle's lineage."""
        return {"model": self.name, "parameters": self.parameters, "digest": self.digest}


def source_of(claimed: Model | int | None, store: Store) -> Source | None:
    """What a model is said to be pruned from, counted.

    Raises:
        UnsupportedError: the model can't be exported.
    """
    if claimed is None:
        return None
    if isinstance(claimed, int):
        return Source("the source", claimed)
    key = fingerprint(
        stage="source", model=claimed.digest(), code=code("compress"), versions=versions("torch")
    )

    def fill(folder: Path) -> None:
        from edgekit.compress import macs
        from edgekit.compress.graph import canonical, graph_module

        stored = macs.numbers(graph_module(canonical(claimed.program())))
        (folder / "source.json").write_text(json.dumps({"stored": stored}))

    path = store.make(key, fill, what="source")
    stored = json.loads((path / "source.json").read_text())["stored"]
    parameters = sum(p.numel() for p in claimed.module.parameters())
    return Source(claimed.name, parameters, stored, claimed.digest())


def count(rows: Sequence[Row], planned: Planned, store: Store) -> Mapping[str, Mapping[str, Any]]:
    """By the id of an artifact, what its program and plan say of it.

    Returns:
        ``layers`` (``name``, ``macs``, ``integer`` of each), ``products`` (multiply-accumulates of
        no layer), ``weights`` (``name``, ``dtype``, ``bytes`` and ``digest`` of each constant that
        the plan quantizes; empty without a plan) and ``stored`` (floating-point numbers held by the
        program).
    """
    wanted = {
        r.id: [r.job.through, plan_name(r.job.target, r.job.scheme, r.job.variant)]
        for r in rows
        if r.artifact is not None
    }
    key = fingerprint(
        stage="count",
        plan=planned.key,
        wanted=sorted(wanted.items()),
        code=code("compress", "export/counting.py", "targets"),
        versions=versions("torch"),
    )

    def fill(folder: Path) -> None:
        import torch

        from edgekit.compress.graph import graph_module

        modules: dict[Path, Any] = {}
        found = {}
        for id, (target, name) in wanted.items():
            file = planned.program(name if planned.plan(name).exists() else "fp32")
            if file not in modules:
                modules[file] = graph_module(torch.export.load(file))
            found[id] = _counted(planned, target, name, modules[file])
        (folder / "counted.json").write_text(json.dumps(found))

    path = store.make(key, fill, what="count")
    loaded: dict[str, dict[str, Any]] = json.loads((path / "counted.json").read_text())
    return loaded


def _counted(planned: Planned, target: str, name: str, module: Any) -> dict[str, Any]:
    from edgekit.compress import macs
    from edgekit.compress.dynamic import as_computed
    from edgekit.compress.plan import QuantPlan

    has_plan = planned.plan(name).exists()
    plan = QuantPlan("fp32", "")
    if has_plan:
        plan = QuantPlan.from_json(json.loads(planned.plan(name).read_text()))
        plan = as_computed(module, plan, find(target))
    return {
        # Without a plan (an engine made it) nobody says which layers are meant to be integer.
        "planned": has_plan,
        "layers": [
            {"name": one.name, "macs": one.macs, "integer": one.integer if has_plan else None}
            for one in macs.layers(module, plan)
        ],
        "products": macs.products(module),
        "weights": _weights(module, plan),
        "stored": macs.numbers(module),
    }


def _weights(module: Any, plan: Any) -> list[dict[str, Any]]:
    from edgekit.compress.graph import tensor_of
    from edgekit.targets._common import channel_digest

    edges, found = plan.constants(), []
    for node in module.graph.nodes:
        edge, value = edges.get(node.name), tensor_of(module, node)
        if edge is None or value is None or edge.kind != "weight":
            continue
        bits = {"int4": 4, "int8": 8, "float16": 16}[edge.dtype]
        found.append(
            {
                "name": edge.edge,
                "dtype": edge.dtype,
                "bytes": math.ceil(value.numel() * bits / 8),
                "digest": channel_digest(edge.quantize(value.numpy()), edge.axis),
            }
        )
    return found


def placed(row: Row, counted: Mapping[str, Any]) -> dict[str, Any]:
    """A row's placement with its multiply-accumulates and what each delegate has of it all.

    By dtype as far as the artifact bears the plan out: where it has other numbers of integer and of
    float layers than the plan, which of them fell out can't be told, and it is null.
    """
    placement = dict(row.placement or {})
    total = sum(layer["macs"] for layer in counted["layers"]) + counted["products"]
    delegate, outside = row.job.delegate, placement["undelegated_ops"]
    whole = outside == 0
    ops = sum(placement["ops"].values())
    shares = None if outside is None else {delegate: ops - outside, "outside": outside}
    placement["macs"] = {
        "total": total,
        "by_dtype": _by_dtype(counted, placement["layers"]),
        "by_delegate": {delegate: total, "outside": 0} if whole else None,
    }
    placement["ops_by_delegate"] = shares
    stored = sum(placement["bytes_by_dtype"].values())
    placement["bytes_by_delegate"] = {delegate: stored, "outside": 0} if whole else None
    return placement


def _by_dtype(counted: Mapping[str, Any], seen: Mapping[str, int]) -> dict[str, int] | None:
    layers, products = counted["layers"], counted["products"]
    work = sum(layer["macs"] for layer in layers)
    integer, float_ = seen.get("integer", 0), seen.get("float", 0)
    if not layers:
        return {"integer": 0, "float": products}
    if integer + float_ == 0:
        return None
    if (integer, float_) == (len(layers), 0):
        return {"integer": work, "float": products}
    if (integer, float_) == (0, len(layers)):
        return {"integer": 0, "float": work + products}
    planned = [layer for layer in layers if layer["integer"]]
    if not counted["planned"] or (integer == 0) != (not planned):
        return None
    # No layer on integers, in the plan or in the artifact; or as many as the plan has in each.
    if planned and (integer, float_) != (len(planned), len(layers) - len(planned)):
        return None
    mine = sum(layer["macs"] for layer in planned)
    return {"integer": mine, "float": work - mine + products}
