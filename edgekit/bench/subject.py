"""What an estimate is made of: a model's layers and the memory that its tensors need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.bench.layers import Layer
from edgekit.errors import UnsupportedError
from edgekit.model import Model

__all__ = ["Subject", "bundle_subject", "subject_of"]


@dataclass(frozen=True)
class Subject:
    """A model, counted.

    Attributes:
        name: the model's.
        layers: all that take time, in execution order.
        stored: numbers that it stores.
        live: most elements of tensors that live at one time.
        placement: by artifact id, what its file was seen to hold (`edgekit.targets.Placement`);
            empty for a model that was not exported.
        sizes: by artifact id, bytes of its files.
    """

    name: str
    layers: tuple[Layer, ...]
    stored: int
    live: int
    placement: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


def subject_of(model: Model) -> Subject:
    """A model, counted from its canonical graph.

    Raises:
        UnsupportedError: it can't be exported, has an operator of which nothing is known, or
            nothing to compute.
    """
    from edgekit.bench.arena import live_elements, stored_elements
    from edgekit.bench.graph_layers import graph_of, layers_of

    graph = graph_of(model)
    layers = tuple(layers_of(graph, model.name))
    if not layers:
        raise UnsupportedError(
            f"model {model.name!r} computes nothing: there is nothing to estimate"
        )
    return Subject(model.name, layers, stored_elements(graph), live_elements(graph))


def bundle_subject(path: Path) -> Subject:
    """The model in a bundle, counted from one of its artifacts, with where their operators run.

    Raises:
        UnsupportedError: it has no artifact whose layers can be read.
        TrustError, BadData: as `edgekit.runtime.bundle.Bundle.open`.
    """
    from edgekit.bench.artifact_layers import onnx_layers
    from edgekit.runtime.bundle import Bundle

    with Bundle.open(path) as bundle:
        readable = [a for a in bundle.artifacts if a.target == "onnxruntime" and a.border is None]
        if not readable:
            raise UnsupportedError(
                f"bundle {bundle.name!r} has no onnxruntime artifact to count layers of",
                hint="estimate the model that it was made from",
            )
        chosen = min(readable, key=lambda a: (a.scheme != "fp32", a.id))
        layers, stored, live = onnx_layers(bundle.place(chosen), bundle.name)
        placement = {
            a.id: dict(a.evidence["placement"])
            for a in bundle.artifacts
            if isinstance(a.evidence.get("placement"), Mapping)
        }
        sizes = {a.id: a.bytes for a in bundle.artifacts}
    if not layers:
        raise UnsupportedError(f"bundle {path} computes nothing: there is nothing to estimate")
    return Subject(bundle.name, tuple(layers), stored, live, placement, sizes)
