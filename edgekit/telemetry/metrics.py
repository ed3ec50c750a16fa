"""Metrics: the receiver's own, and the fleet's as of the last look, in Prometheus' text.

A scrape reads what is in memory: what it costs has nothing to do with the store. Gauges of the
fleet are those of a report, so a version of which there are fewer than k devices has none. As of
reports that are asked one after the other, what two looks differ by may be of fewer devices: who
keeps every look is to be trusted as an admin is, and the key that reads them is an admin's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from edgekit.serve.metrics import BUCKETS_S, labels
from edgekit.telemetry.watch import Fleet, Watch

__all__ = ["Measures", "render"]

_MOST_VERSIONS: Final = 200
_QUANTILES: Final = {"p50": "0.5", "p90": "0.9", "p99": "0.99"}

Sample = tuple[Mapping[str, object], float | int]


@dataclass
class Measures:
    """What a receiver has done since it started.

    Attributes:
        statuses: requests by status.
        counted: points and events that were ``written``, and ``duplicates``, metrics and events of
            records that came again.
        rejected: points and events, by the reason.
        buckets: of times of writes, by `BUCKETS_S` and one more, not cumulated.
        write_s: the sum of these times.
        written_s: when something was written last, in seconds since 1970.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    counted: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    write_s: float = 0.0
    written_s: float | None = None

    def wrote(self, took_s: float, at_s: float) -> None:
        """A transaction was written."""
        place = next((i for i, bound in enumerate(BUCKETS_S) if took_s <= bound), len(BUCKETS_S))
        self.buckets[place] += 1
        self.write_s += took_s
        self.written_s = at_s


def render(measures: Measures, now: Mapping[str, int | None], watch: Watch | None) -> str:
    """The text that Prometheus reads.

    Args:
        measures: of the receiver.
        now: gauges of it by name, without ``edgekit_telemetry_``; None where it is not known.
        watch: what looks at the fleet.
    """
    lines = _receiver(measures, now)
    if watch is not None:
        lines += _alerts(watch)
        if watch.fleet is not None:
            lines += _fleet(watch.fleet)
    return "\n".join(lines) + "\n"


_NOW: Final = {
    "held_bytes": "Bytes of bodies that are read or wait to be written",
    "held_limit_bytes": "The most that they may be, beyond which 503 is answered",
    "waiting_requests": "Requests that wait to be written",
    "reports": "Reports that are being made",
    "store_bytes": "Bytes of the store's files",
}


def _receiver(measures: Measures, now: Mapping[str, int | None]) -> list[str]:
    counted = measures.counted
    lines = _metric(
        "edgekit_telemetry_requests_total", "counter", "Requests by status; 499 left by clients",
        [({"code": code}, n) for code, n in sorted(measures.statuses.items())],
    )  # fmt: skip
    lines += _metric(
        "edgekit_telemetry_points_total", "counter", "Points and events by what became of them",
        [({"outcome": "written"}, counted["written"]),
         ({"outcome": "rejected"}, measures.rejected.total())],
    )  # fmt: skip
    lines += _metric(
        "edgekit_telemetry_rejected_total", "counter", "Points and events that were not taken",
        [({"reason": why}, n) for why, n in sorted(measures.rejected.items())],
    )  # fmt: skip
    lines += _metric(
        "edgekit_telemetry_duplicates_total", "counter", "Metrics and events that came again",
        [({}, counted["duplicates"])],
    )  # fmt: skip
    for name, text in _NOW.items():
        value = now.get(name)
        if value is not None:
            lines += _metric(f"edgekit_telemetry_{name}", "gauge", text, [({}, value)])
    if measures.written_s is not None:
        lines += _metric(
            "edgekit_telemetry_last_write_timestamp_seconds", "gauge", "When points came last",
            [({}, measures.written_s)],
        )  # fmt: skip
    return lines + _histogram(measures)


def _histogram(measures: Measures) -> list[str]:
    name = "edgekit_telemetry_write_seconds"
    lines = [f"# HELP {name} Transactions of the store.", f"# TYPE {name} histogram"]
    below = 0
    for bound, n in zip((*map(str, BUCKETS_S), "+Inf"), measures.buckets, strict=True):
        below += n
        lines.append(f"{name}_bucket{labels({'le': bound})} {below}")
    return [*lines, f"{name}_sum {measures.write_s}", f"{name}_count {below}"]


def _alerts(watch: Watch) -> list[str]:
    document = watch.to_json()
    states = {row["name"]: row["state"] for row in document["rules"]}
    lines: list[str] = []
    for state, name, text in (
        ("firing", "edgekit_alert", "1 where the rule's alert fires"),
        ("pending", "edgekit_alert_pending", "1 where it does if this lasts"),
        ("unknown", "edgekit_alert_unknown", "1 where there is too little to tell"),
    ):
        samples: list[Sample] = [({"rule": r}, int(s == state)) for r, s in states.items()]
        lines += _metric(name, "gauge", text, samples) if samples else []
    if watch.looked_s is not None:
        lines += _metric(
            "edgekit_alerts_looked_timestamp_seconds", "gauge", "When rules were looked at last",
            [({}, watch.looked_s)],
        )  # fmt: skip
    webhook = document["webhook"]
    if webhook is not None:
        lines += _metric(
            "edgekit_webhook_attempts_total", "counter", "Deliveries of alerts by outcome",
            [({"outcome": name}, webhook[name]) for name in ("ok", "failed", "given_up")],
        )  # fmt: skip
        lines += _metric(
            "edgekit_webhook_waiting", "gauge", "Alerts to be delivered",
            [({}, webhook["waiting"])],
        )  # fmt: skip
        lines += _metric(
            "edgekit_webhook_lost_total", "counter", "Alerts given up for newer ones",
            [({}, webhook["lost"])],
        )  # fmt: skip
    return lines


_RATES: Final = {
    "devices": "Devices, on the day of the window that had the most",
    "requests": "Requests in the window",
    "error_rate": "Errors for each request",
    "fallback_rate": "Share of requests not answered on the device",
    "crash_rate": "Share of device-days with a crash",
}


def _fleet(fleet: Fleet) -> list[str]:
    cohorts = sorted(fleet.report["cohorts"], key=lambda one: -one["requests"])
    entries = [(_named(entry), entry) for entry in cohorts[:_MOST_VERSIONS]]
    lines: list[str] = []
    for name, text in _RATES.items():
        found = [(who, entry[name]) for who, entry in entries if entry[name] is not None]
        lines += _metric(f"edgekit_fleet_{name}", "gauge", text, found) if found else []
    lines += _some(
        "edgekit_fleet_latency_seconds", "Of merged histograms, by who answered",
        (({**who, "source": source, "quantile": quantile}, told[rank])
         for who, entry in entries for source, told in entry["latency_s"].items() if told
         for rank, quantile in _QUANTILES.items()),
    )  # fmt: skip
    drift = [
        ({**who, "against": against, "feature": feature}, one)
        for who, entry in entries
        for against, features in _drifts(entry).items()
        for feature, one in features.items()
        if one["flagged"] is not None
    ]
    psi = [(who, one["distances"].get("psi")) for who, one in drift]
    lines += _some(
        "edgekit_fleet_drift_psi", "Population stability index",
        ((who, one["value"]) for who, one in psi if one),
    )  # fmt: skip
    lines += _some(
        "edgekit_fleet_drift_psi_limit", "What chance keeps below",
        ((who, one["limit"]) for who, one in psi if one),
    )  # fmt: skip
    lines += _some(
        "edgekit_fleet_drift", "1 where a distance is beyond its limit",
        ((who, int(one["flagged"])) for who, one in drift),
    )  # fmt: skip
    lines += _metric(
        "edgekit_fleet_versions", "gauge", "Versions of enough devices; those with most requests "
        f"are shown, {_MOST_VERSIONS} at most", [({}, len(cohorts))],
    )  # fmt: skip
    lines += _metric(
        "edgekit_fleet_looked_timestamp_seconds", "gauge", "When the fleet was looked at last",
        [({}, fleet.at_s)],
    )  # fmt: skip
    return lines + _metric(
        "edgekit_fleet_look_seconds", "gauge", "How long that took", [({}, fleet.took_s)]
    )


def _drifts(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Features by what their drift is told against."""
    held = entry.get("reference_drift", {"features": {}})
    return {"days": entry.get("drift", {}), "bundle": held["features"]}


def _named(entry: Mapping[str, Any]) -> dict[str, object]:
    return {"model": entry["model"], "version": entry["version"]}


def _some(name: str, text: str, samples: Iterable[Sample]) -> list[str]:
    found = list(samples)
    return _metric(name, "gauge", text, found) if found else []


def _metric(name: str, kind: str, text: str, samples: Sequence[Sample]) -> list[str]:
    lines = [f"# HELP {name} {text}.", f"# TYPE {name} {kind}"]
    return lines + [f"{name}{labels(pairs) if pairs else ''} {value}" for pairs, value in samples]
