"""Judging: what a rule finds in the store now.

Rules look at whole days, UTC, as reports do: only of a day is it known how many devices a figure is
of, so only of days is k kept (see `edgekit.telemetry.cohorts`).

Rules of rates, and of latency, which asks for the share of requests that took longer, compare the
lower bound of Clopper and Pearson's interval with the limit (`edgekit.telemetry.intervals`), not
the rate itself. A rule is looked at many times a day while the day's counts grow, and each look
could raise a false alarm; so each gets its part of the rate (Bonferroni's inequality), and
``false_alarms`` is the share of days without a cause on which there is any. Drift gets the same; a
canary's test holds however often one looks. Silence is no matter of chance.

Errors and fallbacks vary from device to device, and devices of a day are what is drawn. Latency is
counted without devices: there hours of cohorts are what is drawn, the devices are taken as given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgekit.errors import EdgekitError
from edgekit.runtime.drift_reference import DriftReference
from edgekit.telemetry.cohorts import Window, base_of, devices_of
from edgekit.telemetry.drifting import against_references, drifts
from edgekit.telemetry.intervals import Clusters, at_least
from edgekit.telemetry.merged import quantiles
from edgekit.telemetry.reading import ZERO
from edgekit.telemetry.rules import Rule
from edgekit.telemetry.spread import Spread, spreads
from edgekit.telemetry.store import Reader
from edgekit.telemetry.tables import DEVICE_DAYS
from edgekit.telemetry.versions import against

__all__ = ["Finding", "judge"]

_DURATION: Final = "edgekit.inference.duration"


@dataclass(frozen=True)
class Finding:
    """What a look gave.

    Attributes:
        beyond: whether it is worse than the limit, beyond chance; None where there is too little.
        clear: whether it is well again; None where there is too little.
        value: what was measured, as the limit is: a share, milliseconds, hours, a ratio to the
            limit of drift, the evidence against a canary.
        bound: what the value is at least, beyond chance; of latency, the share that took longer.
        limit: that the rule sets.
        devices: on the day that had the most.
        requests: that were counted.
        said: all of it in a line.
    """

    beyond: bool | None
    clear: bool | None
    said: str
    value: float | None = None
    bound: float | None = None
    limit: float | None = None
    devices: int = 0
    requests: int = 0

    def to_json(self) -> dict[str, Any]:
        """The figures, as documents have them."""
        names = ("said", "value", "bound", "limit", "devices", "requests")
        return {name: getattr(self, name) for name in names}


def judge(
    store: Reader,
    rule: Rule,
    *,
    now_s: float,
    k: int,
    looks: float,
    references: Sequence[DriftReference] = (),
) -> Finding:
    """What a rule finds.

    Args:
        now_s: since 1970.
        k: devices that anything is of, at least.
        looks: how often a day the rule is looked at.
        references: of bundles, which rules of drift may ask for.
    """
    today = int(now_s // 86_400)
    window = Window(today - int(rule.settings.get("days", DEVICE_DAYS)) + 1, today)
    try:
        return _JUDGES[rule.kind](_Look(store, rule, window, now_s, k, max(1.0, looks), references))
    except EdgekitError as error:
        return Finding(None, None, f"could not be looked at: {error.message}")


@dataclass(frozen=True)
class _Look:
    store: Reader
    rule: Rule
    window: Window
    now_s: float
    k: int
    looks: float
    references: Sequence[DriftReference]

    @property
    def set(self) -> Mapping[str, Any]:
        return self.rule.settings

    @property
    def tail(self) -> float:
        return float(self.set["false_alarms"]) / self.looks

    def enough(self, requests: int | None) -> tuple[int, Finding | None]:
        """How many devices there are, and what is to be said where that is too few."""
        devices = devices_of(self.store, ()).get((), (0, 0))[0]
        if devices < self.set["least_devices"]:
            wanted = self.set["least_devices"]
            said = f"fewer than {wanted} devices in groups of {self.k} or more on a day"
            return devices, Finding(None, None, said)
        least = self.set.get("least_requests", 0)
        if requests is not None and requests < least:
            said = f"{requests} requests, {least} are wanted"
            return devices, Finding(None, None, said, devices=devices, requests=requests)
        return devices, None


# -- rates ----------------------------------------------------------------------------------------


def _rate(look: _Look, of: Callable[[Spread], tuple[float, float]], what: str) -> Finding:
    """Args: of: the rate, and the trials that count."""
    base_of(look.store, look.window, look.k, look.rule.where)
    spread = spreads(look.store, ()).get(())
    requests = int(spread.errors.trials) if spread is not None else 0
    devices, little = look.enough(requests)
    if little is not None or spread is None:
        return little or Finding(None, None, "nothing was sent")
    rate, trials = of(spread)
    bound = at_least(min(rate, 1.0), trials, look.tail)
    limit = float(look.set["limit"])
    said = f"{what}: {_percent(rate)}, at least {_percent(bound)}; limit {_percent(limit)}"
    return Finding(
        bound > limit, rate <= look.set["clear"], said, rate, bound, limit, devices, requests
    )


def _errors(look: _Look) -> Finding:
    def of(spread: Spread) -> tuple[float, float]:
        sums = spread.errors
        return sums.hits / sums.trials, sums.effective(look.tail)

    return _rate(look, of, "errors of requests")


def _fallbacks(look: _Look) -> Finding:
    def of(spread: Spread) -> tuple[float, float]:
        sums = spread.elsewhere
        return sums.hits / sums.trials, sums.effective(look.tail)

    return _rate(look, of, "requests not answered on the device")


def _crashes(look: _Look) -> Finding:
    def of(spread: Spread) -> tuple[float, float]:
        return spread.crashed / spread.device_days, float(spread.device_days)

    return _rate(look, of, "device-days with a crash")


# -- latency --------------------------------------------------------------------------------------


def _latency(look: _Look) -> Finding:
    base_of(look.store, look.window, look.k, look.rule.where)
    limit_s, share = look.set["limit_ms"] / 1000, 1 - look.set["percentile"] / 100
    rows = look.store.query(
        """SELECT scale, bucket, sum(n)::BIGINT
        FROM cell JOIN shown ON cell.cohort = shown.cohort AND cell.hour // 24 = shown.day
        JOIN series ON series.id = cell.series WHERE metric = ? AND source = ?
        GROUP BY scale, bucket""",
        [_DURATION, look.set["source"]],
    )
    found = quantiles(rows, [look.set["percentile"] / 100])
    devices, little = look.enough(0 if found is None else found.count)
    if little is not None or found is None:
        return little or Finding(None, None, "nothing was timed")
    sums = _slow(look, limit_s, {row[0] for row in rows})
    slow = sums.hits / sums.trials
    bound = at_least(slow, sums.effective(look.tail), look.tail)
    value = found.values[0] * 1000
    said = (
        f"p{look.set['percentile']:g} is {value:.4g} ms, within {_percent(found.relative_error)}; "
        f"at least {_percent(bound)} took longer than {look.set['limit_ms']:g} ms, "
        f"{_percent(share)} may"
    )
    clear = value <= look.set["clear_ms"]
    limit = float(look.set["limit_ms"])
    return Finding(bound > share, clear, said, value, bound, limit, devices, found.count)


def _slow(look: _Look, limit_s: float, scales: set[int]) -> Clusters:
    """Requests by hour and cohort, and those of buckets that are beyond the limit as a whole."""
    firsts = [(scale, math.ceil(math.log2(limit_s) * 2.0**scale)) for scale in sorted(scales)]
    # Bucket i is of what is above 2 ** (i / 2 ** scale).
    beyond = " OR ".join(f"(scale = {scale} AND bucket >= {first})" for scale, first in firsts)
    rows = look.store.query(
        f"""SELECT CAST(sum(n) AS DOUBLE PRECISION),
            CAST(coalesce(sum(n) FILTER (WHERE bucket != {ZERO} AND ({beyond})), 0)
                AS DOUBLE PRECISION)
        FROM cell JOIN shown ON cell.cohort = shown.cohort AND cell.hour // 24 = shown.day
        JOIN series ON series.id = cell.series WHERE metric = ? AND source = ?
        GROUP BY cell.hour, cell.cohort""",
        [_DURATION, look.set["source"]],
    )
    return Clusters(
        len(rows),
        math.fsum(n for n, _ in rows),
        math.fsum(slow for _, slow in rows),
        math.fsum(n * n for n, _ in rows),
        math.fsum(slow * slow for _, slow in rows),
        math.fsum(n * slow for n, slow in rows),
    )


# -- the others -----------------------------------------------------------------------------------


def _drift(look: _Look) -> Finding:
    base_of(look.store, look.window, look.k, look.rule.where)
    devices, little = look.enough(None)
    if little is not None:
        return little
    if look.set["against"] == "bundle":
        if not look.references:
            return Finding(None, None, "the receiver was given no bundle: --reference")
        asked = against_references(
            look.store, look.window, look.references, by=(), false_alarms=look.tail
        )
        found = asked.get((), {"features": {}})["features"]
    else:
        first = look.window.first
        baseline = Window(first - look.set["baseline_days"], first - 1)
        where, k = look.rule.where, look.k
        asked = drifts(look.store, baseline, by=(), where=where, k=k, false_alarms=look.tail)
        found = asked.get((), {})
    told = {name: one for name, one in found.items() if one["flagged"] is not None}
    requests = max((one["counts"][1] for one in told.values()), default=0)
    if not told or requests < look.set["least_requests"]:
        said = f"{requests} of a feature on both sides, {look.set['least_requests']} are wanted"
        return Finding(None, None, said, devices=devices, requests=requests)
    ratio, name, distance = max(
        (one["value"] / one["limit"], feature, distance)
        for feature, drift in told.items()
        for distance, one in drift["distances"].items()
    )
    worst = told[name]["distances"][distance]
    said = f"{name}: {distance} {worst['value']:.3g}, limit {worst['limit']:.3g}"
    clear = ratio <= look.set["clear"]
    return Finding(ratio > 1, clear, said, ratio, ratio, 1.0, devices, requests)


def _canary(look: _Look) -> Finding:
    control, canary = look.set["control"], look.set["canary"]
    document = against(
        look.store,
        look.window,
        control,
        canary,
        where=look.rule.where,
        k=max(look.k, look.set["least_devices"]),
        alpha=look.set["false_alarms"],
    )
    worse, sides = document["worse"], (document["control"], document["canary"])
    if worse is None:
        return Finding(None, None, "no day on which both have enough devices of a kind")
    shown = (f"{s['version']}: {s['failed']} of {s['device_days']} device-days" for s in sides)
    said = f"failed of {', of '.join(shown)}; p {document['p']:.3g}"
    evidence, limit = document["evidence"], 1 / look.set["false_alarms"]
    return Finding(worse, not worse, said, evidence, evidence, limit)


def _silence(look: _Look) -> Finding:
    base_of(look.store, look.window, look.k, look.rule.where)
    ((last,),) = look.store.query(
        """SELECT max(cell.hour)
        FROM cell JOIN shown ON cell.cohort = shown.cohort AND cell.hour // 24 = shown.day"""
    )
    limit = float(look.set["hours"])
    if last is None:
        said = f"nothing of {look.k} devices on a day in the last {DEVICE_DAYS} days"
        return Finding(None, None, said, limit=limit)
    # Counts are by the hour, and that hour may have lasted to its end.
    hours = max(0.0, look.now_s / 3600 - (last + 1))
    said = f"nothing of {look.k} devices or more for {hours:.1f} hours; limit {limit:g}"
    return Finding(hours > limit, hours <= limit, said, hours, hours, limit)


_JUDGES: Final[Mapping[str, Callable[[_Look], Finding]]] = {
    "error_rate": _errors,
    "crash_rate": _crashes,
    "fallback_rate": _fallbacks,
    "latency": _latency,
    "drift": _drift,
    "canary": _canary,
    "silence": _silence,
}


def _percent(value: float) -> str:
    return f"{value * 100:.3g} %"
