"""Telemetry on the device: what it costs, what it survives, and how a fleet comes back.

    python tests/benchmarks/telemetry.py --out out/bench/telemetry.json

- *record*: `Recorder.record` into the memory, one call at a time, with all that it takes, while
  windows are written behind it every second. Limits: 5 us p50, 50 us p99. The same while the disk
  refuses every write; and without consent.
- *kills*: processes that kill themselves at a random change of their spool, three after another in
  each; and power cuts of a disk in memory that forgets what was not synced. Nothing that `append`
  returned for may be missing, and every start must succeed.
- *fleet*: the policy of 100,000 devices over 30 days with 72 hours in which nothing answers, in
  virtual time. A device has a window every quarter of an hour (25 data points), sends four times a
  day, and the server takes 50,000 points a second, the rate that one receiver is to hold. Nothing
  may be missing, and what comes to the server may not be over its cap in any ten seconds.

- *receiver*: data points a second that a receiver takes over HTTP, gzipped, from four connections,
  until the last is acknowledged and found in its store; limit: 50,000, with the sender on the same
  cores. *recorders*: 1,000 real recorders, each a thread with a spool of its own, against one
  receiver; nothing may be missing, and its process may take 400 MB. *report*: a report with drift,
  of a week against the four before it and a bundle, over 10 million counts; limit: 3 s.

``--only`` takes some of the parts (and nothing of the others is in the report).
``--short`` makes it a matter of a minute, for a look: a fifth of the fleet with a fifth of the
server, in any sixty seconds, as chance weighs more among few. `counts` is then false.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "telemetry"))

from faults import FailingFiles
from fleet import Fleet, simulate
from telemetry_receiver import recorders, reporting, throughput
from test_spool_crash import killed, power_cuts

from edgekit import __version__
from edgekit.doctor import machine_facts
from edgekit.runtime.recorder import Recorder
from edgekit.runtime.schedule import Pace

P50_US, P99_US = 5.0, 50.0
DAY = 86400.0
PACE = Pace(upload_s=6 * 3600, between_s=1800, longest_s=12 * 3600)
POINTS_A_SECOND = 50_000


def timed(call: Callable[[int], None], n: int) -> dict[str, float]:
    """Microseconds of single calls."""
    clock = time.perf_counter_ns
    times = [0] * n
    for i in range(n):
        start = clock()
        call(i)
        times[i] = clock() - start
    empty = [0] * 10_000
    for i in range(len(empty)):
        start = clock()
        empty[i] = clock() - start
    times.sort()
    quantiles = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
    found = {name: times[int(q * n)] / 1e3 for name, q in quantiles.items()}
    return {**found, "max": times[-1] / 1e3, "clock": sorted(empty)[5000] / 1e3, "n": n}


def record(folder: Path, n: int) -> dict[str, Any]:
    """How long `record` takes."""

    def refuse(operation: str, _: str) -> None:
        if operation in ("append", "overwrite", "sync"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Recorder(folder, interval_s=1.0) as recorder:

        def call(i: int) -> None:
            recorder.record(
                0.01 + i % 977 * 1e-5,
                confidence=i % 1000 / 1000,
                predicted=i % 1000,
                memory_bytes=1e8 + i % 89 * 1e4,
            )

        without = timed(call, n)
        recorder.give_consent()
        for i in range(1000):
            call(i)
        consented = timed(call, n)
        assert recorder._station is not None
        spool = recorder._station.spool
        spool._shelf.files = spool._files = FailingFiles(spool._files, refuse)
        failing = timed(call, n)
    limits = {"p50": P50_US, "p99": P99_US}
    passed = all(
        times[name] <= limit for times in (consented, failing) for name, limit in limits.items()
    )
    return {
        "us": consented,
        "us_failing_disk": failing,
        "us_without_consent": without,
        "limits_us": limits,
        "passed": passed,
    }


def kills(folder: Path, spools: int, cuts: int) -> dict[str, Any]:
    """How many deaths there were, and which were not survived."""
    failed: list[str] = []
    for seed in range(spools):
        try:
            killed(folder / str(seed), 500_000 + seed * 10)
        except Exception as error:  # whatever it was, it is the result
            failed.append(f"kill {seed}: {error!r}"[:300])
    for seed in range(cuts):
        try:
            power_cuts(1_000_000 + seed)
        except Exception as error:
            failed.append(f"power cut {seed}: {error!r}"[:300])
    return {
        "processes": 3 * spools,
        "power_cuts": 3 * cuts,
        "failed": failed[:10],
        "passed": not failed,
    }


def fleet(devices: int, days: float, span_s: float) -> dict[str, Any]:
    """How a fleet comes back; the cap is the server's share for so many devices."""
    outage = (days / 3 * DAY, days / 3 * DAY + 3 * DAY)
    cap = int(POINTS_A_SECOND * span_s * devices / 100_000)
    about = Fleet(
        devices=devices,
        days=days,
        outage=outage,
        window_s=900,
        per_request=256,
        points=25,
        pace=PACE,
        span_s=span_s,
        cap=cap,
    )
    start = time.perf_counter()
    found = simulate(about)
    whole = found.produced == found.delivered + found.pending
    passed = whole and found.peak <= cap and found.caught_up_s is not None
    return {
        "devices": devices,
        "days": days,
        "outage_h": 72,
        "span_s": span_s,
        "requests": found.requests,
        "windows": {
            "produced": found.produced,
            "delivered": found.delivered,
            "pending": found.pending,
            "longest_backlog": found.backlog,
        },
        "points_a_second": {
            "cap": cap / span_s,
            "peak_before": found.steady / span_s,
            "peak_after": found.peak / span_s,
        },
        "refused": found.refused,
        "caught_up_h": None if found.caught_up_s is None else found.caught_up_s / 3600,
        "wall_s": time.perf_counter() - start,
        "passed": passed,
    }


def main() -> int:
    """Measures, writes the JSON, and returns 1 if something did not pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--short", action="store_true")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def parts_of(short: bool) -> dict[str, Callable[[], dict[str, Any]]]:
            return {
                "record": lambda: record(folder / "record", 50_000 if short else 1_000_000),
                "kills": lambda: kills(folder, 4 if short else 340, 100 if short else 10_000),
                "fleet": lambda: fleet(*(20_000, 9.0, 60.0) if short else (100_000, 30.0, 10.0)),
                "receiver": lambda: throughput(folder / "receiver", 20 if short else 400),
                "recorders": lambda: recorders(
                    folder / "recorders", 100 if short else 1_000, 2 if short else 5
                ),
                "report": lambda: reporting(folder / "report", 1_000_000 if short else 10_000_000),
            }

        parser.add_argument("--only", choices=tuple(parts_of(True)), action="append")
        options = parser.parse_args()
        found = parts_of(options.short)
        parts = {name: found[name]() for name in options.only or found}
    passed = all(bool(part["passed"]) for part in parts.values())
    report = {
        "benchmark": "telemetry",
        "edgekit": __version__,
        "facts": machine_facts(),
        "counts": not options.short,
        **parts,
        "passed": passed,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2, sort_keys=True, allow_nan=False) + "\n")
    for name, part in parts.items():
        print(f"{name}: {'passed' if part['passed'] else 'FAILED'} {json.dumps(part)}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
