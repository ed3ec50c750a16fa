"""What the receiver takes: the metrics and events of the wire contract, and what names them.

`edgekit.runtime.otlp` is the contract. Nothing else is kept, so the store can hold no text that is
not on the allow-list, whoever sends it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from edgekit.runtime.aggregate import CONFIDENCE_BOUNDS
from edgekit.runtime.attributes import ATTRIBUTES, Value
from edgekit.runtime.input_statistics import INPUT_BOUNDS

__all__ = [
    "COHORT",
    "EVENTS",
    "METRICS",
    "NOISE",
    "SERIES",
    "Cohort",
    "Metric",
    "Series",
    "cohort_of",
    "kept",
    "series_of",
]


@dataclass(frozen=True)
class Metric:
    """One metric of the contract.

    Attributes:
        kind: the field of OTLP's ``Metric`` that it has.
        attributes: of its points.
        bounds: of an explicit histogram.
    """

    kind: str
    attributes: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


NOISE: Final = ("edgekit.noise.epsilon", "edgekit.noise.choices")
"""What points have that a device has noised; others have neither."""

METRICS: Final[Mapping[str, Metric]] = {
    "edgekit.inference.duration": Metric("exponential_histogram", ("edgekit.source",)),
    "edgekit.inference.memory": Metric("exponential_histogram"),
    "edgekit.inference.requests": Metric("sum", ("edgekit.source", "edgekit.reason")),
    "edgekit.inference.errors": Metric("sum", ("edgekit.source", "error.type")),
    "edgekit.prediction.confidence": Metric("histogram", NOISE, CONFIDENCE_BOUNDS),
    "edgekit.prediction.classes": Metric("sum", ("edgekit.class", *NOISE)),
    **{
        f"edgekit.input.{name}": Metric("histogram", ("edgekit.input", *NOISE), bounds)
        for name, bounds in INPUT_BOUNDS.items()
    },
    "edgekit.telemetry.dropped": Metric("sum", ("edgekit.signal", "edgekit.drop.reason")),
}

EVENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "edgekit.crash": ("error.type", "edgekit.stack.hash", "edgekit.source"),
    "edgekit.ota": (
        "edgekit.ota.outcome", "edgekit.ota.reason", "edgekit.ota.release", "edgekit.ota.from",
        "edgekit.ota.to",
    ),
}  # fmt: skip

COHORT: Final[Mapping[str, str]] = {
    "model": "edgekit.bundle.name",
    "version": "edgekit.bundle.version",
    "digest": "edgekit.bundle.digest",
    "target": "edgekit.artifact.target",
    "scheme": "edgekit.artifact.scheme",
    "delegate": "edgekit.artifact.delegate",
    "device": "edgekit.device.class",
    "app": "service.version",
    "os": "os.type",
    "arch": "host.arch",
}
"""Columns of a cohort: what devices are told apart by, each a resource attribute."""

SERIES: Final[Mapping[str, str]] = {
    "source": "edgekit.source",
    "reason": "edgekit.reason",
    "error": "error.type",
    "class": "edgekit.class",
    "input": "edgekit.input",
    "signal": "edgekit.signal",
    "drop_reason": "edgekit.drop.reason",
    "epsilon": "edgekit.noise.epsilon",
    "choices": "edgekit.noise.choices",
}
"""Columns of a series: the attributes of points."""

_CLASS: Final = tuple(SERIES).index("class")

Cohort = tuple[str, ...]
"""Values by the columns of `COHORT`; empty where a device told none."""


@dataclass(frozen=True)
class Series:
    """What a count is of: a metric, the scale of its buckets, and the attributes of the point.

    Attributes:
        metric: out of `METRICS`.
        scale: of an exponential histogram; 0 of others.
        values: by the columns of `SERIES`, as text; empty where the metric has none.
    """

    metric: str
    scale: int
    values: tuple[str, ...]

    @cached_property
    def part(self) -> int:
        """Tells the points of one record apart: 32 bits."""
        return zlib.crc32("\0".join((self.metric, str(self.scale), *self.values)).encode())

    @property
    def noise(self) -> tuple[str, str]:
        """Thousandths of epsilon and the number of choices; empty where nothing is noised."""
        return self.values[-2], self.values[-1]

    @property
    def class_(self) -> str:
        """The class; empty of other metrics."""
        return self.values[_CLASS]

    @cached_property
    def source(self) -> str:
        """``device``, ``cloud``, ``none``, or empty."""
        return self.values[0]


def kept(key: str, value: object) -> Value | None:
    """A value as the allow-list has it, or None where it has none of it."""
    rule = ATTRIBUTES.get(key)
    if rule is None or value is None:
        return None
    if rule.admits(value):
        assert isinstance(value, str | int)
        return value
    return rule.fallback


def cohort_of(attributes: Mapping[str, Any]) -> Cohort:
    """The cohort that a resource belongs to."""
    values = (kept(key, attributes.get(key)) for key in COHORT.values())
    return tuple("" if value is None else str(value) for value in values)


def series_of(name: str, scale: int, attributes: Iterable[tuple[str, Any]]) -> Series:
    """The series of a point of a metric that the contract has."""
    given = dict(attributes)
    of = METRICS[name].attributes
    values = (kept(key, given.get(key)) if key in of else None for key in SERIES.values())
    return Series(name, scale, tuple("" if value is None else str(value) for value in values))
