"""`edgekit bench` on this machine: how to measure, and what is printed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.cli._bench_text import text
from edgekit.cli.main import main
from edgekit.schemas import validate


def bench(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    code = main(["bench", *args])
    out, err = capsys.readouterr()
    return code, out, err


def test_layers_and_a_long_run_are_measured_and_shown(
    capsys: pytest.CaptureFixture[str], null_bundle: Path
) -> None:
    cpu = str(min(os.sched_getaffinity(0)))
    options = ["--artifact", "null-fp32", "--runs", "150", "--rounds", "1", "--cpus", cpu]
    options += ["--sustained", "0.6s", "--profile", "--cool-down", "0"]
    code, out, _ = bench(capsys, str(null_bundle), *options, "--json")
    assert code == 0
    document: dict[str, Any] = json.loads(out)
    validate(document)
    assert document["settings"]["cpus"] == [int(cpu)]
    (result,) = document["results"]
    assert result["conditions"]["affinity"] == [int(cpu)]
    assert result["sustained"]["seconds"] > 0.1
    shown = text(document)
    assert "s back to back: p50" in shown
    assert "layers by numpy, timed layer by layer" in shown
    assert "linear0" in shown
    p50 = result["latency_ms"]["p50"]
    assert f"{p50:.3g}" in shown  # 150 calls are a headline


def test_too_few_calls_are_no_headline(
    capsys: pytest.CaptureFixture[str], null_bundle: Path
) -> None:
    options = ["--artifact", "null-fp32", "--runs", "3", "--rounds", "1"]
    code, out, _ = bench(capsys, str(null_bundle), *options)
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("null-fp32 "))
    assert row.split()[1:4] == ["-", "-", "-"]
    assert "null-fp32: insufficient: few: 3 calls" in out


def test_unlike_conditions_are_told_in_words(
    capsys: pytest.CaptureFixture[str], null_bundle: Path
) -> None:
    options = ["--runs", "6", "--rounds", "1", "--json"]
    _, out, _ = bench(capsys, str(null_bundle), *options)
    document = json.loads(out)
    (entry,) = document["comparisons"]
    assert entry["unlike"] == []
    entry["unlike"] = ["governors performance against schedutil"]
    assert "not compared, measured under unlike conditions (--force does): gov" in text(document)
    entry |= {"ratio": 1.1, "ci95": [1.05, 1.2], "verdict": "slower"}
    assert "1.050 to 1.200); under unlike conditions: governors" in text(document)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--sustained", "ten minutes", "is no time; write 90s, 10m or 1h"),
        ("--cool-down", "-3", "is no time"),
        ("--cpus", "7-4", "names no CPUs; write big, little, 4-7 or 0,2"),
        ("--cpus", "fast", "names no CPUs"),
        ("--max-temperature", "nan", "it must lie in 0 to 150 degrees"),
        ("--max-temperature", "400", "is not in the range"),
    ],
)
def test_what_is_no_time_or_cpu_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], null_bundle: Path, option: str, value: str, words: str
) -> None:
    code, out, err = bench(capsys, str(null_bundle), option, value)
    assert (code, out) == (2, "")
    assert words in err


def test_cpus_that_are_not_there_are_named(
    capsys: pytest.CaptureFixture[str], null_bundle: Path
) -> None:
    code, _, err = bench(capsys, str(null_bundle), "--cpus", "4000-4001", "--rounds", "1")
    assert code == 7
    assert "cpus [4000, 4001]: this process can't be kept on them" in err
    assert "this process may use" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--on", "ssh://pi:hunter2@bench"], "a password has no place in it"),
        (["--on", ""], "'' is no device's URL"),  # a shell's unset variable
        (["--device", ""], "unknown device ''"),
        (["--tool", "benchmark_model=/nowhere"], "there is no program"),
        (["--wait", "nan"], "'nan' is no time"),
        (["--max-temperature", "0"], "0<x<150"),
        (["--max-seconds", "inf"], "over 0, and finite"),
    ],
)
def test_what_cannot_be_measured_so_is_said_at_once(
    capsys: pytest.CaptureFixture[str], null_bundle: Path, options: list[str], words: str
) -> None:
    code, _, err = bench(capsys, str(null_bundle), *options)
    assert code == 2 and words in err and "hunter2" not in err


def test_where_to_measure_is_looked_at_before_probes_are_made(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = bench(capsys, "--probe", "tflite-w8a8", "--on", "ssh://-oProxyCommand=x")
    assert code == 2 and "no URL" in err and "making" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_run_11_what_measures_here_ends_with_the_command(
    null_bundle: Path, tmp_path: Path, number: int
) -> None:
    command = [sys.executable, "-m", "edgekit.cli.main", "bench", str(null_bundle)]
    command += ["--artifact", "null-fp32", "--rounds", "1", "--sustained", "60s"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "EDGEKIT_STATE": str(tmp_path / "state")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        started = _until(lambda: _asked(tmp_path))
        process.send_signal(number)
        assert process.wait(20) == (130 if number == signal.SIGTERM else -number)
    assert started
    _until(lambda: not _asked(tmp_path))
    if number == signal.SIGTERM:
        assert list(tmp_path.glob("edgekit-*")) == []


def _asked(folder: Path) -> list[int]:
    """Processes that were given a request in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it is over
        if any(w.startswith(f"{folder}/") and w.endswith("request.json") for w in words):
            found.append(int(entry.parent.name))
    return found


def _until(look: Callable[[], Any]) -> Any:
    for _ in range(200):
        if found := look():
            return found
        time.sleep(0.05)
    pytest.fail("it did not come to that within 10 s")
