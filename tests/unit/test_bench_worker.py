"""What the worker counts of itself: memory, and the time of calls."""

from __future__ import annotations

import math
import time
from pathlib import Path

from edgekit.bench import _memory, _timing


def board(root: Path, files: dict[str, object]) -> Path:
    """Writes files below a root."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


# Memory.


def test_memory_counts_what_zram_took_away(tmp_path: Path) -> None:
    status = "VmHWM:\t  5000 kB\nVmRSS:\t  4000 kB\nVmSwap:\t     0 kB"
    root = board(tmp_path, {"proc/self/status": status})
    peak = _memory.PeakMemory(root)
    board(root, {"proc/self/status": "VmHWM:\t 5000 kB\nVmRSS:\t 3000 kB\nVmSwap:\t 4000 kB"})
    peak.sample()
    assert peak.peak == peak.process_peak == 7000 * 1024
    assert peak.peak - peak.start == 3000 * 1024


def test_without_proc_the_systems_own_mark_counts(tmp_path: Path) -> None:
    peak = _memory.PeakMemory(tmp_path)
    assert not peak.reset
    assert 10 * 2**20 < peak.process_peak < 2**36
    peak.sample()
    assert peak.peak >= peak.start


def test_shared_memory_counts_by_its_share(tmp_path: Path) -> None:
    assert _memory.pss(tmp_path) is None
    rollup = "00400000-7fff [rollup]\nRss:   9000 kB\nPss:   600 kB\nSwapPss:   40 kB"
    assert _memory.pss(board(tmp_path, {"proc/self/smaps_rollup": rollup})) == 640 * 1024
    own = _memory.pss()
    assert own is None or 2**20 < own < 2**34


# Timing.


def test_looks_are_taken_between_calls_and_bounded_by_count_and_seconds(tmp_path: Path) -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.002)

    found = _timing.series(call, runs=10_000, seconds=0.1, every=0.02, root=tmp_path)
    assert 3 <= len(found.looks) <= 5
    assert len(found.samples) <= 50
    assert calls == len(found.samples) + len(found.looks)  # one untimed call after each look
    assert [look["n"] for look in found.looks] == sorted({look["n"] for look in found.looks})
    assert all(math.isfinite(look["at_s"]) for look in found.looks)
    few = _timing.series(call, runs=3, seconds=60, every=30, root=tmp_path)
    assert (len(few.samples), few.looks) == (3, [])
    assert min(few.samples) >= 2_000_000
    # Very many calls are thinned as they come, and one is kept of the fewest.
    calls = 0
    thin = _timing.series(call, runs=4, seconds=60, every=30, keep=5, root=tmp_path)
    assert (len(thin.samples), calls, thin.every) == (4, 20, 5)
    assert len(_timing.repeat(call, 3, 60.0, keep=5)) == 1
    clocks = _timing.Clocks().stop()
    assert clocks["timed_s"] >= 0 and clocks["resolution_ns"] < 1e6
