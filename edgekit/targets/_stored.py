"""Does an artifact store what its plan says?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from edgekit.compress.graph import graph_module, tensor_of
from edgekit.compress.plan import QuantPlan
from edgekit.targets._common import channel_digest

REL = 1e-5
"""A stored scale may differ from the plan's by this much: float32 rounding of a stored range."""

FLOAT32 = 2.0**-22
"""Relative error of an integer that was a float32 in between, with its scale another one."""


def compare_stored(
    program: torch.export.ExportedProgram, plan: QuantPlan, stored: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Differences between what an artifact stores and what the plan says; empty if there are none.

    Activations are compared as sets of (scale, zero point) in both directions, since runtimes name,
    merge and repeat tensors as they like; weights by scales and by the integers of each channel.
    Biases that are stored as integers have to be among the plan's; not every format has them all,
    and some add zeros.
    """
    module = graph_module(program)
    weights: dict[tuple[Any, ...], str] = {}
    acts: dict[tuple[Any, ...], str] = {}
    biases: list[tuple[tuple[Any, ...], np.ndarray[Any, Any]]] = []
    constants = plan.constants()
    for edge in plan.edges:
        if edge.kind == "activation":
            acts[_key(edge.scale, edge.zero_point)] = edge.edge
    for node in module.graph.nodes:
        edge_ = constants.get(node.name)
        value = tensor_of(module, node)
        if edge_ is None or value is None:
            continue
        integers, key = edge_.quantize(value.numpy()), _key(edge_.scale, edge_.zero_point)
        if edge_.kind == "weight":
            weights[(*key, channel_digest(integers, edge_.axis))] = edge_.edge
        else:
            biases.append((key, integers))
    faults = []
    seen_acts: set[tuple[Any, ...]] = set()
    seen_weights: set[tuple[Any, ...]] = set()
    for item in stored:
        key = _key(item["scale"], item["zero_point"])
        if item["kind"] == "activation":
            seen_acts.add(key)
            if not _among(key, acts):
                faults.append(f"{item['name']} stores a scale that the plan does not have")
        elif item["kind"] == "weight":
            full = (*key, item["digest"])
            seen_weights.add(full)
            if not _among(full, weights):
                faults.append(f"{item['name']} stores integers or scales that are not the plan's")
        elif any(item["values"]) and not any(
            _among(key, [known]) and _alike(item["values"], ours) for known, ours in biases
        ):
            faults.append(f"{item['name']} stores a bias that is not the plan's")
    faults += [f"{n} is not in the artifact" for k, n in acts.items() if not _among(k, seen_acts)]
    faults += [
        f"{n} is not in the artifact" for k, n in weights.items() if not _among(k, seen_weights)
    ]
    return faults


def _key(scale: Sequence[float], zero: Sequence[int]) -> tuple[Any, ...]:
    return (tuple(float(s) for s in scale), tuple(int(z) for z in zero))


def _alike(stored: Sequence[int], ours: np.ndarray[Any, Any]) -> bool:
    """Equal, but for the rounding of large integers on their way through float32."""
    theirs = np.asarray(stored, np.int64)
    return theirs.shape == ours.shape and bool(
        np.all(np.abs(theirs - ours) <= 1 + np.abs(ours.astype(np.int64)) * FLOAT32)
    )


def _among(key: tuple[Any, ...], known: Any) -> bool:
    if key in known:
        return True
    scale = np.asarray(key[0])
    return any(
        other[1:] == key[1:]
        and len(other[0]) == len(key[0])
        and bool(np.allclose(scale, other[0], rtol=REL, atol=0))
        for other in known
    )
