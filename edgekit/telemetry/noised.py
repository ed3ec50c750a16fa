"""Noised counts: what devices with local differential privacy have reported, without the noise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

from edgekit.runtime.privacy import Noise
from edgekit.telemetry.cohorts import grouped
from edgekit.telemetry.store import Reader

__all__ = ["BIN", "HAS_BIN", "noised"]

_CLASSES: Final = "edgekit.prediction.classes"

BIN: Final = f"CASE WHEN metric = '{_CLASSES}' THEN nullif(class, '')::INTEGER ELSE bucket END"
"""The class, which is a series' own, or the bin of a histogram, in SQL."""

HAS_BIN: Final = f"(metric != '{_CLASSES}' OR class != '')"
"""Whether there is one: not of a class that a device did not name."""

_Z95: Final = 1.959963984540054

_Group = tuple[str, ...]


def noised(store: Reader, by: Sequence[str]) -> dict[_Group, list[dict[str, Any]]]:
    """By cohort, for each feature and kind of noise: ``epsilon`` of one report, how many
    ``reports``, the ``shares`` of bins or classes that the noise leaves standing, and ``error``,
    which each of them keeps to with a probability of 95 %. Estimates have no bias, so single ones
    may be below zero; they are told as they are, since cutting them off would have one.

    Of the table ``shown`` (`edgekit.telemetry.cohorts.base_of`).
    """
    columns = "".join(f'shown."{name}", ' for name in by)
    rows = store.query(
        f"""SELECT {columns} metric, input, epsilon, choices, {BIN}, sum(n)::BIGINT
        FROM cell JOIN shown ON cell.cohort = shown.cohort AND cell.hour // 24 = shown.day
        JOIN series ON series.id = cell.series
        WHERE epsilon != '' AND {HAS_BIN} {grouped(len(by) + 5)}"""
    )
    found: dict[_Group, dict[tuple[str, ...], dict[int, int]]] = defaultdict(dict)
    for row in rows:
        *group, metric, which, epsilon, choices, place, n = row
        kind = metric, which, epsilon, choices
        found[tuple(group)].setdefault(kind, {})[place] = n
    return {
        group: [_estimated(kind, counts) for kind, counts in sorted(kinds.items())]
        for group, kinds in found.items()
    }


def _estimated(kind: tuple[str, ...], counts: dict[int, int]) -> dict[str, Any]:
    metric, which, epsilon, choices = kind
    noise = Noise(int(epsilon), int(choices))
    listed = [counts.get(place, 0) for place in range(noise.choices)]
    n = sum(listed)
    short = metric.removeprefix("edgekit.")
    return {
        "feature": f"{short}.{which}" if which else short,
        "epsilon": noise.epsilon,
        "reports": n,
        "shares": [value / n for value in noise.estimated(listed)],
        "error": _Z95 * noise.error(n) / n,
    }
