"""Drift of cohorts: what their confidence, classes and inputs are now, against what they were
before, or against what their bundles were proven on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from edgekit.errors import UsageError
from edgekit.runtime.aggregate import CONFIDENCE_BOUNDS
from edgekit.runtime.drift_reference import DriftReference
from edgekit.runtime.input_statistics import INPUT_BOUNDS
from edgekit.runtime.privacy import Noise
from edgekit.telemetry.cohorts import Window, base_of, grouped
from edgekit.telemetry.drift import Drift, compare
from edgekit.telemetry.noised import BIN, HAS_BIN
from edgekit.telemetry.store import Reader

__all__ = ["against_references", "drifts", "held_against"]

_BINS: Final = {
    "edgekit.prediction.confidence": len(CONFIDENCE_BOUNDS) + 1,
    **{f"edgekit.input.{name}": len(bounds) + 1 for name, bounds in INPUT_BOUNDS.items()},
}
_CLASSES: Final = "edgekit.prediction.classes"

_Group = tuple[Any, ...]
_Feature = tuple[str, str, str, str]
"""Metric and input; and of noised counts thousandths of epsilon and the choices, else empty."""
_Parts = dict[int, dict[int, int]]
"""Counts by bin, by day or hour."""
_Artifact = tuple[str, str]
"""A bundle's digest, and a scheme."""


def drifts(
    store: Reader,
    baseline: Window,
    window: Window,
    *,
    by: Sequence[str],
    where: Mapping[str, str] | None = None,
    k: int,
    false_alarms: float = 0.01,
    daily: bool = False,
) -> dict[_Group, dict[str, Any]]:
    """By cohort and feature, what `edgekit.telemetry.drift.compare` says of a window against a
    baseline, of which the days are the parts.

    The rate of false alarms is that of a cohort: its features share it. With ``daily`` the cohorts
    have a day more at their ends, each is compared by itself, and the rate is that of each day.

    Raises:
        UsageError: a column is not known, k is less than 2, or the rate is none.
    """
    _check_rate(false_alarms)
    base_of(store, baseline, k, where)
    before = _counts(store, by)
    base_of(store, window, k, where)
    now = _counts(store, by)
    found: dict[_Group, dict[str, Any]] = {}
    if daily:
        now = _by_day(now)
    for group in sorted(now):
        against = before.get(group[:-1] if daily else group)
        if against is None:
            continue
        features = sorted(against.keys() & now[group].keys())
        found[group] = {
            _name(feature): _document(
                _compared(
                    feature,
                    against[feature],
                    _summed(now[group][feature]),
                    false_alarms,
                    len(features),
                )
            )
            for feature in features
        }
    return found


def against_references(
    store: Reader,
    window: Window,
    references: Iterable[DriftReference],
    *,
    by: Sequence[str],
    where: Mapping[str, str] | None = None,
    k: int,
    false_alarms: float = 0.01,
    daily: bool = False,
) -> dict[_Group, dict[str, Any]]:
    """By cohort, ``features``: what `compare` says of a window against the bundles' own counts, of
    which the hours of the window are the parts; and ``no_reference``, what is not held against
    any, with the share of its counts: no bundle with its digest was given, or it has no counts.

    The rate of false alarms, and what ``daily`` does, are those of `drifts`.

    Raises:
        UsageError: a column is not known, k is less than 2, or the rate is none.
    """
    _check_rate(false_alarms)
    base_of(store, window, k, where)
    known = {reference.digest: reference for reference in references}
    found: dict[_Group, dict[_Feature, dict[_Artifact, _Parts]]] = defaultdict(dict)
    for row in _rows(store, by, '"digest", "scheme", ', "cell.hour"):
        *group, digest, scheme, metric, which, epsilon, choices, hour, place, n = row
        feature = metric, which, epsilon, choices
        group += [hour // 24] if daily else []
        artifacts = found[tuple(group)].setdefault(feature, {})
        artifacts.setdefault((digest, scheme), {}).setdefault(hour, {})[place] = n
    return {group: held_against(known, features, false_alarms) for group, features in found.items()}


def held_against(
    references: Mapping[str, DriftReference],
    features: Mapping[_Feature, Mapping[_Artifact, _Parts]],
    false_alarms: float = 0.01,
) -> dict[str, Any]:
    """Counts of one cohort held against bundles, as `against_references` has it.

    Args:
        references: by digest.
        features: by metric, input, thousandths of epsilon and choices (both empty where nothing is
            noised), by the bundle's digest and the artifact's scheme, by hour, by bin.
        false_alarms: the rate of all features together.
    """
    pairs, missing = {}, {}
    for feature, artifacts in sorted(features.items()):
        expected: list[tuple[Mapping[int, float], int]] = []
        parts: _Parts = {}
        total = 0
        for (digest, scheme), hours in artifacts.items():
            n = sum(n for bins in hours.values() for n in bins.values())
            total += n
            reference = references.get(digest)
            counts = None if reference is None else reference.counts(*feature[:2], scheme)
            if counts is not None and any(counts.values()):
                expected.append((_through(feature, counts), n))
                _add(parts, hours)
        held = sum(n for _, n in expected)
        if total > held:
            missing[_name(feature)] = 1 - held / total
        if held:
            pairs[feature] = _mixed(expected), parts
    return {
        "features": {
            _name(feature): _document(
                _compared(feature, {0: before}, now, false_alarms, len(pairs))
            )
            for feature, (before, now) in pairs.items()
        },
        "no_reference": missing,
    }


def _through(feature: _Feature, counts: dict[int, int]) -> Mapping[int, float]:
    """A reference as devices that noise would report it: the two are compared with the noise in
    both, as taking it out of one would make counts negative."""
    epsilon, choices = feature[2:]
    return Noise(int(epsilon), int(choices)).expected(counts) if epsilon else counts


def _mixed(expected: Sequence[tuple[Mapping[int, float], int]]) -> dict[int, float]:
    """The references of several artifacts in the shares of their counts in the window. They may be
    of the same samples, so together they are worth no more than the smallest."""
    size = min(sum(counts.values()) for counts, _ in expected)
    held = sum(n for _, n in expected)
    mixed: dict[int, float] = defaultdict(float)
    for counts, n in expected:
        for place, count in counts.items():
            mixed[place] += count / sum(counts.values()) * n / held * size
    return dict(mixed)


def _check_rate(false_alarms: float) -> None:
    if not 0 < false_alarms < 1:
        raise UsageError(f"a rate of false alarms is between 0 and 1, not {false_alarms}")


def _counts(store: Reader, by: Sequence[str]) -> dict[_Group, dict[_Feature, _Parts]]:
    """Counts by cohort, feature, day and bin; a class is its bin."""
    found: dict[_Group, dict[_Feature, _Parts]] = defaultdict(dict)
    for row in _rows(store, by, "", "shown.day"):
        *group, metric, which, epsilon, choices, day, place, n = row
        days = found[tuple(group)].setdefault((metric, which, epsilon, choices), {})
        days.setdefault(day, {})[place] = n
    return found


def _by_day(counts: dict[_Group, dict[_Feature, _Parts]]) -> dict[_Group, dict[_Feature, _Parts]]:
    found: dict[_Group, dict[_Feature, _Parts]] = defaultdict(dict)
    for group, features in counts.items():
        for feature, days in features.items():
            for day, bins in days.items():
                found[(*group, day)][feature] = {day: bins}
    return found


def _rows(store: Reader, by: Sequence[str], more: str, time: str) -> list[tuple[Any, ...]]:
    """Columns, ``more`` of the cohort's, metric, input, noise, time, bin and count."""
    columns = "".join(f'shown."{name}", ' for name in by)
    join = "JOIN cohort ON cohort.id = cell.cohort" if more else ""
    metrics = ", ".join(f"'{name}'" for name in (*_BINS, _CLASSES))
    return store.query(
        f"""SELECT {columns} {more} metric, input, epsilon, choices, {time}, {BIN}, sum(n)::BIGINT
        FROM cell JOIN shown ON cell.cohort = shown.cohort AND cell.hour // 24 = shown.day
        JOIN series ON series.id = cell.series {join}
        WHERE metric IN ({metrics}) AND {HAS_BIN}
        {grouped(len(by) + (2 if more else 0) + 6)}"""
    )


def _compared(
    feature: _Feature,
    before: Mapping[int, Mapping[int, float]],
    now: Mapping[int, Mapping[int, float]],
    false_alarms: float,
    features: int,
) -> Drift:
    size = _BINS.get(feature[0])
    places: Iterable[int] = range(size or 0)
    if size is None:
        places = sorted({at for parts in (before, now) for bins in parts.values() for at in bins})
    at = {place: i for i, place in enumerate(places)}

    def table(parts: Mapping[int, Mapping[int, float]]) -> np.ndarray[Any, Any]:
        counts = np.zeros((len(parts), len(at)))
        for i, part in enumerate(sorted(parts)):
            for place, n in parts[part].items():
                counts[i, at[place]] += n
        return counts

    return compare(
        table(before),
        table(now),
        ordered=size is not None,
        false_alarms=false_alarms,
        features=features,
    )


def _summed(parts: _Parts) -> _Parts:
    """All parts as one."""
    total: _Parts = {}
    for bins in parts.values():
        _add(total, {0: bins})
    return total


def _add(into: _Parts, parts: _Parts) -> None:
    for part, bins in parts.items():
        own = into.setdefault(part, {})
        for place, n in bins.items():
            own[place] = own.get(place, 0) + n


def _name(feature: _Feature) -> str:
    metric, which, epsilon, _ = feature
    short = metric.removeprefix("edgekit.")
    name = f"{short}.{which}" if which else short
    return f"{name} (noised, epsilon={int(epsilon) / 1000:g})" if epsilon else name


def _document(drift: Drift) -> dict[str, Any]:
    return {
        "flagged": drift.flagged,
        "distances": {
            name: {"value": one.value, "limit": one.limit} for name, one in drift.distances.items()
        },
        "false_alarms": drift.false_alarms,
        "design_effect": drift.design_effect,
        "counts": list(drift.counts),
        "bins": drift.bins,
    }
