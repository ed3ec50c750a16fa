"""The export-time benchmark's own arithmetic: what it times, and what it compares."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"

BUSY = "import time\nwhile time.process_time() < 0.3: pass"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}], check=True)"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Any]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("export_time")
    finally:
        sys.path.remove(str(FOLDER))


def test_processor_time_counts_what_a_process_started(benchmark: Any, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    spent = benchmark.timed([sys.executable, "-S", "-c", PARENT], dict(os.environ), log)
    assert 0.3 <= spent["cpu_s"] < 10
    assert spent["wall_s"] > 0


def test_a_side_that_fails_ends_the_benchmark_with_its_words(
    benchmark: Any, tmp_path: Path
) -> None:
    command = [sys.executable, "-S", "-c", "raise SystemExit('no such model')"]
    with pytest.raises(RuntimeError, match="exited with 1\nno such model"):
        benchmark.timed(command, dict(os.environ), tmp_path / "log.txt")


def rounds(theirs: float, ours: float, count: int = 8) -> list[dict[str, Any]]:
    made = []
    for i in range(count):
        made.append(
            {
                "vendors": {"wall_s": theirs + i, "cpu_s": theirs},
                "edgekit": {"wall_s": ours * (theirs + i) / theirs, "cpu_s": ours},
            }
        )
    return made


def test_edgekit_is_held_against_the_sum_of_the_vendors(benchmark: Any) -> None:
    sides = ("vendors", "edgekit")
    slower = benchmark.compare(rounds(100, 90), sides)["edgekit"]
    assert slower["cpu_s"]["ratio"] == pytest.approx(0.9)
    assert slower["cpu_s"]["verdict"] == "better"
    assert not slower["cpu_s"]["at_most_limit"]
    assert benchmark.compare(rounds(100, 70), sides)["edgekit"]["wall_s"]["at_most_limit"]


def test_too_few_rounds_give_no_ratio(benchmark: Any) -> None:
    assert benchmark.compare(rounds(100, 70, count=5), ("vendors", "edgekit")) == {}


def test_the_vendors_make_what_edgekit_makes(benchmark: Any) -> None:
    text = (FOLDER / "vendor_steps.py").read_text()
    assert all(f'    "{target}": ' in text for target in benchmark.TARGETS)
