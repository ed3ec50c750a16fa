"""The numbers of a model that its latency is estimated from, as a vector of `FEATURES`.

Work by kind of kernel, traffic through memory with knees where caches end, and counts of layers.
They are sums over layers, so each layer has its share of an estimate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from edgekit.bench.layers import Layer

__all__ = ["BYTES", "FEATURES", "PRIORS", "WORK", "Vector", "features", "layer_features"]

Vector = np.ndarray[Any, Any]

# name: (scale, milliseconds per scale that one lane at 2 GHz might take, whether it is arithmetic)
_TABLE: Final[Mapping[str, tuple[float, float, bool]]] = {
    "picture_out": (1e6, 2.0, True),  # elements that convolutions of a picture give
    "winograd": (1e8, 35.0, True),  # multiply-accumulates, more where channels are few
    "winograd_traffic": (1e6, 9.0, True),  # elements that are transformed
    "conv": (1e8, 150.0, True),
    "grouped": (1e7, 22.0, True),
    "pointwise": (1e8, 143.0, True),
    "uneven": (1e7, 7.0, True),  # of those above, with channels that fill no vector
    "matmul": (1e9, 2800.0, True),
    "depthwise": (1e7, 40.0, True),
    "depthwise_out": (1e6, 3.0, True),
    "streamed": (4e6, 1.0, False),  # bytes of weights that are read for one row
    "weights": (4e6, 0.5, False),
    "traffic": (4e6, 0.5, False),  # bytes read and written by layers that multiply
    "traffic_512k": (4e6, 0.5, False),  # by any layer, beyond 512 KiB: what leaves a core's cache
    "traffic_2m": (4e6, 0.5, False),
    "elementwise": (4e6, 1.0, False),
    "moved": (4e6, 0.7, False),
    "layers": (1e2, 1.0, False),  # that multiply
    "other_layers": (1e2, 0.5, False),
    "run": (1.0, 0.05, False),
}

FEATURES: Final = tuple(_TABLE)
PRIORS: Final[Vector] = np.log([row[1] for row in _TABLE.values()])
"""Log of milliseconds per unit, before anything was fitted."""

WORK: Final[Vector] = np.array([float(row[2]) for row in _TABLE.values()])
"""1 for features that arithmetic takes the time of, 0 for those of memory and overhead."""

BYTES: Final[Mapping[str, int]] = {"fp32": 4, "fp16": 2, "int8": 1}
"""Bytes of an element by the precision that kernels compute in."""

_SCALE: Final[Vector] = np.array([row[0] for row in _TABLE.values()])
_AT: Final = {name: i for i, name in enumerate(FEATURES)}
_FEW = 32.0  # channels at which Winograd's algorithm loses half of its speed
_VECTOR = 4
_KNEES: Final = {"traffic_512k": 512 * 1024, "traffic_2m": 2048 * 1024}
_ARITHMETIC: Final = {
    "stem": "conv",
    "winograd": "winograd",
    "conv": "conv",
    "grouped": "grouped",
    "pointwise": "pointwise",
    "depthwise": "depthwise",
    "matmul": "matmul",
    "product": "matmul",
}


def layer_features(layer: Layer, precision: str, weight_bytes: float | None = None) -> Vector:
    """The features of one layer [len(FEATURES)], in units of their scales.

    Args:
        layer: the layer.
        precision: what its kernel computes in, one of `BYTES`.
        weight_bytes: bytes of one stored weight; those of the precision if None.
    """
    found = dict.fromkeys(FEATURES, 0.0)
    width = BYTES[precision]
    traffic = float((layer.read + layer.written) * width)
    stored = layer.weights * (width if weight_bytes is None else weight_bytes)
    if layer.kind in _ARITHMETIC:
        found[_ARITHMETIC[layer.kind]] = layer.macs
    if layer.kind == "stem":
        found["picture_out"] = layer.written
    elif layer.kind == "depthwise":
        found["depthwise_out"] = layer.written
    elif layer.kind == "winograd":
        into = layer.weights / layer.taps / layer.channels
        found["winograd"] = layer.macs * (1 + _FEW / into) * (1 + _FEW / layer.channels)
        found["winograd_traffic"] = layer.read + layer.written
    if layer.kind in ("winograd", "conv", "pointwise") and layer.channels % _VECTOR:
        found["uneven"] = layer.macs
    if layer.macs:
        found["layers"], found["traffic"] = 1, traffic
        found["streamed" if layer.kind == "linear" else "weights"] = stored
    else:
        found["other_layers"] = 1
        found["moved" if layer.kind == "move" else "elementwise"] = traffic
    for name, knee in _KNEES.items():
        found[name] = max(0.0, traffic - knee)
    return np.array(list(found.values())) / _SCALE


def features(layers: Iterable[Layer], precision: str, weight_bytes: float | None = None) -> Vector:
    """The features of a model [len(FEATURES)]: its layers' sum, and one run."""
    total = np.sum([layer_features(one, precision, weight_bytes) for one in layers], axis=0)
    out: Vector = total + np.zeros(len(FEATURES))
    out[_AT["run"]] = 1.0
    return out
