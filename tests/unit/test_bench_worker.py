"""What the worker counts of itself: memory, and the time of calls."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np

from edgekit.bench import _memory, _timing, conditions
from edgekit.bench.asking import LocalWorker
from edgekit.signature import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", (1, 4)),), (TensorSpec("y", (1, 3)),))


def board(root: Path, files: dict[str, object]) -> Path:
    """Writes files below a root."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def test_a_worker_on_a_hot_board_says_so(tmp_path: Path) -> None:
    """The whole of it, with a board's files in place of this machine's."""
    zone, cpufreq = "sys/class/thermal/thermal_zone0", "sys/devices/system/cpu/cpufreq/policy0"
    root = board(
        tmp_path / "board",
        {
            f"{zone}/type": "cpu-thermal",
            f"{zone}/temp": 84000,
            f"{zone}/trip_point_0_type": "passive",
            f"{zone}/trip_point_0_temp": 80000,
            f"{cpufreq}/scaling_cur_freq": 1800000,
            f"{cpufreq}/affected_cpus": "0 1 2 3",
            f"{cpufreq}/scaling_governor": "ondemand",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "80008",
            "sys/class/powercap/intel-rapl:0/name": "package-0",
            "sys/class/powercap/intel-rapl:0/energy_uj": 5,
            "proc/loadavg": "3.50 1.00 0.50 4/200 77",
        },
    )
    np.savez(tmp_path / "a.npz", w0=np.ones((4, 3), "f"), b0=np.zeros(3, "f"))
    np.savez(tmp_path / "feeds.npz", x=np.ones((1, 4), "f"))
    question = {
        **{"op": "bench", "target": "null", "signature": SIGNATURE.to_json(), "threads": 1},
        **{"warmup_runs": 5, "warmup_seconds": 1.0, "runs": 20, "max_seconds": 5.0},
        **{"root": str(root), "thermal": {"limit_c": None, "budget_s": 0.0}},
    }
    files = {"path": [tmp_path / "a.npz"], "feeds": [tmp_path / "feeds.npz"]}
    found = LocalWorker().ask(question, files, what="a", timeout=60.0)
    assert found["gate"]["state"] == "hot" and found["gate"]["limit_c"] == 70.0
    assert found["before"]["temperature_c"] == found["after"]["temperature_c"] == 84.0
    assert found["after"]["throttling"] == ["soft temperature limit"]
    assert found["before"]["frequency_mhz"] == 1800
    assert found["energy"]["reason"] == "too short for RAPL's counters, which have not moved"
    state = conditions.conditions([found], [1.0], 4)
    assert state["thermal"] == "throttled" and state["busy"] is True
    assert state["governors"] == ["ondemand"]
    assert len(found["samples_ms"]) == 20 and found["kept_every"] == 1


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
