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
from edgekit.telemetry.cohorts import BASE, Window, base_of, grouped
from edgekit.telemetry.drift import Drift, compare
from edgekit.telemetry.noised import BIN, HAS_BIN
from edgekit.telemetry.store import Reader

__all__ = ["against_references", "drifts", "held_against"]

_BINS: Final = {
    "edgekit.prediction.confidence": len(CONFIDENCE_BOUNDS) + 1,
    **{f"edgekit.input.{name}": len(bounds) + 1 for name, bounds in INPUT_BOUNDS.items()},
}
_DAYS_OF_HOURS: Final = 2
_CLASSES: Final = "edgekit.prediction.classes"

_Group = tuple[Any, ...]
_Feature = tuple[str, str, str, str]
"""Metric and input; and of noised counts thousandths of epsilon and the choices, else empty."""
_Parts = dict[int, dict[int, int]]
"""Counts by bin, by day or hour."""
_Artifact = tuple[str, str]
"""A bundle's digest, and a scheme."""
_Cell = Mapping[_Artifact, _Parts]
"""The counts of a base cell."""


def drifts(
    store: Reader,
    baseline: Window,
    *,
    by: Sequence[str],
    where: Mapping[str, str] | None = None,
    k: int,
    false_alarms: float = 0.01,
    daily: bool = False,
) -> dict[_Group, dict[str, Any]]:
    """By cohort and feature, what `edgekit.telemetry.drift.compare` says of a window against a
    baseline, of which the days are the parts. The window is that of the table ``shown``
    (`edgekit.telemetry.cohorts.base_of`), which is the baseline's afterwards.

    The rate of false alarms is that of a cohort: its features share it. With ``daily`` there are
    days of cohorts, too: each is compared by itself, is found by the cohort and the day, and has
    the rate for itself.

    Raises:
        UsageError: a column is not known, k is less than 2, or the rate is none.
    """
    _check_rate(false_alarms)
    now = _counts(store, by)
    if daily:
        now |= _by_day(now)
    base_of(store, baseline, k, where)
    before = _counts(store, by)
    found: dict[_Group, dict[str, Any]] = {}
    for group in now:
        against = before.get(group[: len(by)], {})
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
    false_alarms: float = 0.01,
    daily: bool = False,
) -> dict[_Group, dict[str, Any]]:
    """By cohort, ``features``: what `compare` says of a window against the bundles' own counts. The
    days of the window are its parts, or the hours of a short one. And ``no_reference``: what is
    held against none, with the share of its counts: no bundle with its digest was given, or the
    bundle has no counts of it. The window is that of the table ``shown``.

    Base cells (`edgekit.telemetry.cohorts`) are held against bundles as a whole or not at all: one
    device with another bundle could be told from the others otherwise.

    The rate of false alarms, and what ``daily`` does, are those of `drifts`.

    Raises:
        UsageError: the rate is none.
    """
    _check_rate(false_alarms)
    known = {reference.digest: reference for reference in references}
    found: dict[_Group, dict[_Feature, dict[_Group, dict[_Artifact, _Parts]]]] = defaultdict(dict)
    columns = ("day", *BASE)
    end = len(by) + len(columns)
    time = "cell.hour" if window.last - window.first < _DAYS_OF_HOURS else "shown.day"
    for row in _rows(store, by, columns, ("digest", "scheme"), time):
        group, cell = tuple(row[: len(by)]), tuple(row[len(by) : end])
        digest, scheme, *feature, part, place, n = row[end:]
        for own in (group, (*group, cell[0])) if daily else (group,):
            cells = found[own].setdefault(_feature(*feature), {})
            artifacts = cells.setdefault(cell, {})
            artifacts.setdefault((digest, scheme), {}).setdefault(part, {})[place] = n
    return {
        group: held_against(
            known, {name: list(cells.values()) for name, cells in features.items()}, false_alarms
        )
        for group, features in found.items()
    }


def held_against(
    references: Mapping[str, DriftReference],
    features: Mapping[_Feature, Sequence[_Cell]],
    false_alarms: float = 0.01,
) -> dict[str, Any]:
    """Counts of one cohort held against bundles, as `against_references` has it.

    Args:
        references: by digest.
        features: by metric, input, thousandths of epsilon and choices (both empty where nothing is
            noised): of each base cell the counts by the bundle's digest and the artifact's scheme,
            by part, by bin.
        false_alarms: the rate of all features together.
    """
    pairs, missing = {}, {}
    for feature, cells in sorted(features.items()):
        expected: list[tuple[Mapping[int, float], int]] = []
        parts: _Parts = {}
        total = 0
        for cell in cells:
            sizes = {artifact: _size(hours) for artifact, hours in cell.items()}
            total += sum(sizes.values())
            told = {artifact: _told(references, feature, artifact) for artifact in cell}
            if all(told.values()):
                expected += [(told[artifact], sizes[artifact]) for artifact in cell]
                for hours in cell.values():
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


def _told(
    references: Mapping[str, DriftReference], feature: _Feature, artifact: _Artifact
) -> Mapping[int, float]:
    """A reference as devices report it, empty where there is none. Where they noise, so is it: with
    the noise taken out of the other side counts could be negative."""
    metric, which, epsilon, choices = feature
    reference = references.get(artifact[0])
    counts = None if reference is None else reference.counts(metric, which, artifact[1])
    if counts is None or not any(counts.values()):
        return {}
    return Noise(int(epsilon), int(choices)).expected(counts) if epsilon else counts


def _size(parts: _Parts) -> int:
    return sum(n for bins in parts.values() for n in bins.values())


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
    for row in _rows(store, by, (), (), "shown.day"):
        group, (*feature, day, place, n) = tuple(row[: len(by)]), row[len(by) :]
        days = found[group].setdefault(_feature(*feature), {})
        days.setdefault(day, {})[place] = n
    return found


def _by_day(counts: dict[_Group, dict[_Feature, _Parts]]) -> dict[_Group, dict[_Feature, _Parts]]:
    found: dict[_Group, dict[_Feature, _Parts]] = defaultdict(dict)
    for group, features in counts.items():
        for feature, days in features.items():
            for day, bins in days.items():
                found[(*group, day)][feature] = {day: bins}
    return found


def _feature(metric: str, which: str, epsilon: str, choices: str) -> _Feature:
    return metric, which, epsilon, choices


def _rows(
    store: Reader, by: Sequence[str], more: Sequence[str], cohort: Sequence[str], time: str
) -> list[tuple[Any, ...]]:
    """Columns of the base cells, ``cohort`` columns, metric, input, noise, time, bin and count."""
    names = [*(f'shown."{name}"' for name in (*by, *more)), *(f'cohort."{n}"' for n in cohort)]
    columns = "".join(f"{name}, " for name in names)
    join = "JOIN cohort ON cohort.id = cell.cohort" if cohort else ""
    metrics = ", ".join(f"'{name}'" for name in (*_BINS, _CLASSES))
    return store.query(
        f"""SELECT {columns} metric, input, epsilon, choices, {time}, {BIN}, sum(n)::BIGINT
        FROM cell JOIN shown ON cell.cohort = shown.cohort AND cell.hour // 24 = shown.day
        JOIN series ON series.id = cell.series {join}
        WHERE metric IN ({metrics}) AND {HAS_BIN}
        {grouped(len(names) + 6)}"""
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
