"""What each layer takes: the runtime's own words, with the model's names where they can be told."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from edgekit.errors import EdgekitError

__all__ = ["summary"]

_OURS: Final = re.compile(r"^node_(.+?)(?:_token_\d+|_nchwc|_nhwc)*$")
_OUTSIDE: Final = re.compile(r"^(\w+)/aten\.")
_MODULE: Final = re.compile(r"^(?:.*\.)?[A-Z]\w*?_([A-Za-z]\w*|\d+)$")
_WEIGHTED: Final = re.compile(r"(?:Conv|Linear)\w*_\w+$")
_FUSED: Final = re.compile(r"\.activation\.\w+$|(?:ReLU\w*|Hardswish|SiLU|GELU)_\w+$")

# Kinds that a runtime may fuse into each other or split are told by one word: k-th of XNNPACK is
# k-th of the file only if both have as many of that word.
_XNNPACK: Final = {
    "Convolution": "product",
    "Fully Connected": "product",
    "Deconvolution": "deconvolution",
    "Batch Matrix Multiply": "matmul",
    "Mean": "mean",
    "Global Average Pooling": "mean",
    "Average Pooling": "average",
    "Max Pooling": "max",
    "Softmax": "softmax",
    "Add": "add",
    "Multiply": "mul",
    "Subtract": "sub",
}
_TFLITE: Final = {
    "CONV_2D": "product",
    "DEPTHWISE_CONV_2D": "product",
    "FULLY_CONNECTED": "product",
    "TRANSPOSE_CONV": "deconvolution",
    "BATCH_MATMUL": "matmul",
    "MEAN": "mean",
    "AVERAGE_POOL_2D": "average",
    "MAX_POOL_2D": "max",
    "SOFTMAX": "softmax",
    "ADD": "add",
    "MUL": "mul",
    "SUB": "sub",
}


def summary(answer: Mapping[str, Any], target: str, path: Path) -> dict[str, Any]:
    """A profile as the document has it.

    Args:
        answer: the worker's, of `edgekit.bench._profile.profile`.
        target: whose runtime it was.
        path: the artifact, whose names are looked up.

    Returns:
        What the worker told, with each layer's ``layer`` (the model's name, None where it can't be
        told) and ``share`` of the sum; ``covered`` (the sum over a call without profiling);
        ``overhead`` (a call with it over one without); ``notes``.
    """
    names = _names(answer["layers"], target, path)
    total = answer["sum_ms"]
    layers = [
        {**layer, "layer": name, "share": layer["ms"] / total if total > 0 else None}
        for layer, name in zip(answer["layers"], names, strict=True)
    ]
    covered = total / answer["plain_ms"]
    overhead = answer["profiled_ms"] / answer["plain_ms"]
    left = ("nonce", "gate", "affinity", "asked_s", "layers")
    kept = {key: value for key, value in answer.items() if key not in left}
    notes = _notes(answer, covered, overhead)
    return {**kept, "covered": covered, "overhead": overhead, "layers": layers, "notes": notes}


def _notes(answer: Mapping[str, Any], covered: float, overhead: float) -> list[str]:
    notes = []
    slack = 1e-3 * answer["resolution_us"] * len(answer["layers"])
    if answer["sum_ms"] > 1.15 * answer["plain_ms"] + slack:
        notes.append(
            f"the layers add up to {covered:.0%} of a call: timing them slows them down, or the "
            "load of others is in their times"
        )
    elif answer["sum_ms"] < 0.6 * answer["plain_ms"] - slack:
        notes.append(f"the layers account for {covered:.0%} of a call; the rest is between them")
    if overhead > 1.1:
        notes.append(f"a call takes {overhead:.2f} times as long while its layers are timed")
    small = sum(layer["ms"] < 2e-3 * answer["resolution_us"] for layer in answer["layers"])
    if answer["resolution_us"] >= 0.5 and 2 * small > len(answer["layers"]):
        step = answer["resolution_us"]
        notes.append(f"most layers are near the step of {step:.0f} us in which the runtime counts")
    return notes


def _names(layers: Sequence[Mapping[str, Any]], target: str, path: Path) -> list[str | None]:
    if target == "onnxruntime":
        return [_first(_OURS, layer["name"]) for layer in layers]
    if target == "openvino":
        return [_first(_OUTSIDE, layer["name"]) for layer in layers]
    if target == "null":
        return [layer["name"] for layer in layers]
    if target == "tflite":
        try:
            return _tflite(layers, path)
        except (EdgekitError, ImportError):  # no reader of such files here: names are a courtesy
            pass
    return [None] * len(layers)


def _first(form: re.Pattern[str], name: str) -> str | None:
    found = form.match(name)
    return found[1] if found else None


def _tflite(layers: Sequence[Mapping[str, Any]], path: Path) -> list[str | None]:
    """LiteRT's own operators by their positions, XNNPACK's by their order among its kind."""
    from edgekit.targets import _tflite_file

    model = _tflite_file.read(path)
    graph = model.subgraphs[0]
    kinds = [_tflite_file.op_name(model, op) for op in graph.operators]
    results = [bytes(graph.tensors[op.outputs[0]].name) for op in graph.operators]
    modules = [module_path(name.decode("utf-8", "replace")) for name in results]
    positions = [_position(layer, kinds) for layer in layers]
    stored: dict[str, list[str]] = {}
    for index, (kind, module) in enumerate(zip(kinds, modules, strict=True)):
        if kind in _TFLITE and index not in positions:
            stored.setdefault(_TFLITE[kind], []).append(module)
    words = [
        None if p is not None else _word(k["kind"]) for k, p in zip(layers, positions, strict=True)
    ]
    taken: dict[str, int] = {}
    names: list[str | None] = []
    for word, position in zip(words, positions, strict=True):
        known = stored.get(word or "", [])
        if position is not None:
            names.append(modules[position])
        elif word is None or len(known) != words.count(word):
            names.append(None)
        else:
            taken[word] = taken.get(word, -1) + 1
            names.append(known[taken[word]])
    return names


def _position(layer: Mapping[str, Any], kinds: Sequence[str]) -> int | None:
    """Where in the file an operator stands that LiteRT ran itself; None of what XNNPACK ran."""
    number, _, kind = str(layer["name"]).partition(": ")
    if layer["kernel"] != "LiteRT" or not number.isdigit() or int(number) >= len(kinds):
        return None
    return int(number) if kinds[int(number)] == kind else None


def _word(kind: str) -> str | None:
    found = max((k for k in _XNNPACK if kind.startswith(k)), key=len, default=None)
    return None if found is None else _XNNPACK[found]


def module_path(name: str) -> str:
    """The path of a module in the model out of the name that LiteRT's converter gave a tensor.

    ``...Net/torch.nn.modules.container.Sequential_net/torch.nn.modules.conv.Conv2d_0;1`` is
    ``net.0``. Of several, behind each other, a layer with weights counts, and what was fused to it
    (``ReLU``) doesn't; else the first, since others may be where a constant came from that it
    shares with them.
    """
    every = [part for part in name.split(";") if "/" in part]
    if not every:
        return name
    layers = [part for part in every if _WEIGHTED.search(part.rpartition("/")[2])]
    chosen = layers[-1] if layers and _FUSED.search(every[0].rpartition("/")[2]) else every[0]
    steps = [found[1] for step in chosen.split("/")[1:] if (found := _MODULE.match(step))]
    return ".".join(steps) or name
