"""What latency estimates are held against: simple ways that need no model of a processor.

- *six terms*: in each config on its own, a non-negative fit of dense, pointwise and depthwise
  multiply-accumulates, weight bytes, activation bytes and layers to the other networks' latencies.
- *same core*: the median of what others' chips with that core took for that very network, scaled
  by the clock.
- *one probe*: a network measured there, times the median ratio of the two on other chips.

The last two look a network up by its name: they say nothing of one that was never measured.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from estimate_rows import Row, layers_of
from scipy.optimize import nnls

__all__ = ["PROBES", "one_probe", "same_core", "six_terms", "terms"]

PROBES = {"fp32": "mobilenet_v2", "fp16": "mobilenet_v2", "int8": "mobilenet_v1"}
"""The network that is measured first; int8 tables have no MobileNetV2."""

_LEAST = 6  # networks in a config, for six terms

Pairs = dict[int, float]
"""Estimates in ms by the row's number."""


def terms(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The six counts of networks, as published for their ncnn files; bytes in elements."""
    path = folder / "ncnn_model_features.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {r["model"]: _published(r) for r in csv.DictReader(file)}


def _published(r: dict[str, str]) -> np.ndarray[Any, Any]:
    rows = ("macs_pointwise", "macs_fc", "macs_attention")
    pointwise = sum(float(r[name]) for name in rows)
    rest = [float(r[k]) for k in ("macs_depthwise", "params", "activation_elems", "layers")]
    return np.array([float(r["macs_conv_kxk"]), pointwise, *rest])


def _counted(network: str) -> np.ndarray[Any, Any]:
    layers = layers_of(network)
    dense = sum(a.macs for a in layers if a.kind in ("stem", "winograd", "conv", "grouped"))
    deep = sum(a.macs for a in layers if a.kind == "depthwise")
    rest = sum(a.macs for a in layers) - dense - deep
    weights = sum(a.weights for a in layers)
    return np.array([dense, rest, deep, weights, sum(a.written for a in layers), len(layers)])


def six_terms(rows: Sequence[Row], known: dict[str, np.ndarray[Any, Any]]) -> Pairs:
    """Of each row of a config with networks enough, fitted without that network."""
    configs: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        configs[row.setting.groups()[-1]].append(i)
    out: Pairs = {}
    for ids in configs.values():
        if len({rows[i].model for i in ids}) < _LEAST:
            continue
        for i in ids:
            others = [j for j in ids if rows[j].model != rows[i].model]
            table = np.array([_terms(rows[j], known) / rows[j].ms for j in others])
            scale = np.maximum(table.max(0), 1e-12)
            weights, _ = nnls(table / scale, np.ones(len(others)))
            out[i] = max(1e-6, float((_terms(rows[i], known) / scale) @ weights))
    return out


def _terms(row: Row, known: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    width = 1 if row.setting.precision == "int8" else 4
    found = known[row.model] if row.model in known else _counted(row.model)
    return found * np.array([1, 1, 1, width, width, 1])


def same_core(rows: Sequence[Row], runtimes: bool = False) -> Pairs:
    """Of each row whose network was measured on another chip with that core.

    Args:
        rows: all there are.
        runtimes: take those of other runtimes instead, the same chip's too.
    """
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[_like(row)].append(row)
    out: Pairs = {}
    for i, row in enumerate(rows):
        others = [
            r.ms * r.setting.ghz / row.setting.ghz
            for r in found[_like(row)]
            if _other(r, row, runtimes)
        ]
        if others:
            out[i] = float(np.exp(np.median(np.log(others))))
    return out


def _like(row: Row) -> tuple[Any, ...]:
    s = row.setting
    return s.core, s.threads, s.precision, row.model


def _other(r: Row, row: Row, runtimes: bool) -> bool:
    return r.setting.runtime != row.setting.runtime if runtimes else r.soc != row.soc


def one_probe(rows: Sequence[Row], runtimes: bool = False) -> Pairs:
    """Of each row in whose config the probe was measured; ``runtimes`` as in `same_core`."""
    probed: dict[str, float] = {}
    for row in rows:
        if row.model == PROBES[row.setting.precision]:
            probed.setdefault(row.setting.groups()[-1], row.ms)
    ratios: dict[tuple[str, str], list[tuple[Row, float]]] = defaultdict(list)
    for row in rows:
        key = row.setting.groups()[-1]
        if key in probed:
            ratios[row.model, row.setting.precision].append((row, row.ms / probed[key]))
    out: Pairs = {}
    for i, row in enumerate(rows):
        key, p = row.setting.groups()[-1], row.setting.precision
        if key not in probed or row.model == PROBES[p]:
            continue
        others = [ratio for r, ratio in ratios[row.model, p] if _other(r, row, runtimes)]
        if others:
            out[i] = float(probed[key] * np.median(others))
    return out
