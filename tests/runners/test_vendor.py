"""The runtimes' own benchmark programs: what they print, and a device that has nothing else."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.bench.devices import open_worker
from edgekit.bench.measure import BenchRequest, bench
from edgekit.bench.runners import open_runner
from edgekit.bench.runners.shell import ShellRunner
from edgekit.bench.vendor import (
    Tool,
    VendorWorker,
    parse_benchmark_model,
    parse_executor_runner,
)
from edgekit.errors import UnsupportedError, UsageError, WorkerCrashed
from edgekit.schemas import validate
from edgekit.signature import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", (1, 4)),), (TensorSpec("y", (1, 3)),))

# The form of each program's output in versions of that year; the figures are ours.
OUTPUTS = Path(__file__).with_name("outputs")
BENCHMARK_2022 = (OUTPUTS / "benchmark_model_2022.txt").read_text()
BENCHMARK_2025 = (OUTPUTS / "benchmark_model_2025.txt").read_text()
RUNNER_2026 = (OUTPUTS / "executor_runner_2026.txt").read_text()
RUNNER_2024 = (OUTPUTS / "executor_runner_2024.txt").read_text()
RUNNER_2023 = (OUTPUTS / "executor_runner_2023.txt").read_text()


def test_benchmark_model_of_both_forms() -> None:
    old = parse_benchmark_model(BENCHMARK_2022, "a")
    assert (old["load_ms"], old["first_ms"]) == (17.187, 2512.391)
    assert old["samples_ms"] == [2150.34]
    assert old["aggregate"]["kind"] == "mean" and old["aggregate"]["calls"] == 50
    assert old["added_bytes"] == 46.25 * 2**20 and old["peak_bytes"] is None
    new = parse_benchmark_model(BENCHMARK_2025, "a")
    assert new["samples_ms"] == [2.781] and new["first_ms"] == 5.761
    assert new["aggregate"]["kind"] == "median" and new["aggregate"]["calls"] == 337
    assert new["aggregate"]["told_us"]["p95"] == 3169
    assert new["peak_bytes"] == 62.5 * 2**20
    assert any("partially executed by the delegate" in remark for remark in new["remarks"])


@pytest.mark.parametrize(
    "text",
    ["", "ERROR: Failed to load model\n", BENCHMARK_2025.split("INFO: Inference timings")[0]],
)
def test_run_06_benchmark_model_that_did_not_finish_gives_nothing(text: str) -> None:
    with pytest.raises(WorkerCrashed, match="told no timings"):
        parse_benchmark_model(text, "a")


def test_executor_runner_of_three_forms() -> None:
    new = parse_executor_runner(RUNNER_2026, "a", warmup=2)
    assert (new["load_ms"], new["first_ms"]) == (19.25, 12.0)
    assert new["warmup_ms"] == [9.0, 8.5] and new["samples_ms"] == [8.125, 8.25, 8.0]
    assert new["aggregate"] is None and new["remarks"] == []
    old = parse_executor_runner(RUNNER_2024, "a")
    assert old["samples_ms"] == [123.45] and old["first_ms"] is None
    assert old["aggregate"]["kind"] == "mean" and old["aggregate"]["calls"] == 10
    with pytest.raises(UnsupportedError, match="tells no times"):
        parse_executor_runner(RUNNER_2023, "a")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "did not finish: it printed nothing"),
        (RUNNER_2026.split("I 00:00:00.073163")[0], "did not finish"),
        (RUNNER_2026.replace("Iteration 3 of 6: 8.500000 ms", ""), "told 5 of 6 executions"),
    ],
)
def test_run_06_executor_runner_that_did_not_finish_gives_nothing(text: str, words: str) -> None:
    with pytest.raises(WorkerCrashed, match=words):
        parse_executor_runner(text, "a")


# On a device: a program of that name that prints what the real one does.


@pytest.fixture
def runner() -> Iterator[ShellRunner]:
    """A device without Python, as far as it is asked for any."""
    with open_runner("fake:phone") as opened:
        yield opened


def program(folder: Path, output: str, code: int = 0) -> Path:
    """A program that notes its arguments and prints what it is given."""
    path = folder / "program"
    note = f'printf "%s\\n" "$@" >{folder}/arguments; echo run >>{folder}/runs'
    path.write_text(f"#!/bin/sh\n{note}\ncat <<'END' >&2\n{output}END\nexit {code}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def request(path: Path, target: str) -> BenchRequest:
    """One artifact of a target."""
    path.write_bytes(b"weights")
    return BenchRequest(path.name, target, path, SIGNATURE, "w8a8", None, 7)


def test_a_phone_without_python_is_measured_by_benchmark_model(
    runner: ShellRunner, tmp_path: Path
) -> None:
    tool = Tool("benchmark_model", program(tmp_path, BENCHMARK_2025), ("--use_xnnpack=true",))
    document = bench(
        [request(tmp_path / "a b.tflite", "tflite")],
        rounds=10,
        runs=100,
        threads=4,
        cpus=(0,),
        worker=VendorWorker(runner, [tool]),
    )
    validate(document)
    (result,) = document["results"]
    assert result["latency_ms"]["p50"] == 2.781
    # A figure per process says nothing of the calls' percentiles.
    assert result["latency_ms"]["p90"] is None and result["latency_ms"]["n"] == 10
    assert result["peak_memory_mib"] == 62.5 and result["load_ms"] == 6.395
    assert result["insufficient"] == []  # 337 calls in each process
    assert any("placement" in note for note in result["notes"])
    assert document["facts"]["machine"] and document["where"] == "fake:phone"
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert "--num_runs=10" in arguments and "--num_threads=4" in arguments
    assert arguments[-1] == "--use_xnnpack=true"
    assert any(a.startswith("--graph=files-") and a.endswith("/a b.tflite") for a in arguments)


def test_executor_runner_is_given_as_many_executions_as_fit(
    runner: ShellRunner, tmp_path: Path
) -> None:
    tool = Tool("executor_runner", program(tmp_path, RUNNER_2026))
    worker = VendorWorker(runner, [tool])
    requests = [request(tmp_path / "a.pte", "executorch")]
    document = bench(requests, rounds=1, runs=1000, max_seconds=0.08, worker=worker)
    assert "--num_executions=10" in (tmp_path / "arguments").read_text()  # 0.08 s of 8 ms
    assert (tmp_path / "runs").read_text() == "run\n" * 2
    assert document["results"][0]["samples_ms"] == [8.25, 8.0]
    validate(document)


def test_a_program_that_fails_is_said(runner: ShellRunner, tmp_path: Path) -> None:
    output = "ERROR: unknown command line flag 'cpu_threads'\n"
    tool = Tool("executor_runner", program(tmp_path, output, 1))
    with pytest.raises(WorkerCrashed, match="exit status 1: ERROR: unknown command line flag"):
        bench([request(tmp_path / "a.pte", "executorch")], worker=VendorWorker(runner, [tool]))


def test_what_no_program_is_named_for_is_not_measured(runner: ShellRunner, tmp_path: Path) -> None:
    tool = Tool("benchmark_model", program(tmp_path, BENCHMARK_2025))
    with pytest.raises(UnsupportedError, match="can't do bench of onnxruntime"):
        bench([request(tmp_path / "a.onnx", "onnxruntime")], worker=VendorWorker(runner, [tool]))
    with pytest.raises(UnsupportedError, match="which CPUs are 'big'"):
        bench(
            [request(tmp_path / "a.tflite", "tflite")],
            cpus="big",
            worker=VendorWorker(runner, [tool]),
        )
    with pytest.raises(UsageError, match="unknown benchmark program"):
        Tool("benchmark", tmp_path / "program")
    with pytest.raises(UsageError, match="no program"):
        Tool("benchmark_model", tmp_path / "absent")


def test_programs_go_with_the_worker_where_they_do_not_cover_all(tmp_path: Path) -> None:
    tool = Tool("benchmark_model", program(tmp_path, BENCHMARK_2025))
    kinds: dict[str, Any] = {}
    for targets in (["tflite"], ["tflite", "onnxruntime"], []):
        with open_worker("fake:a", [tool], targets=targets) as worker:
            kinds[" ".join(targets)] = type(worker).__name__
    assert kinds == {"tflite": "VendorWorker", "tflite onnxruntime": "_Both", "": "_Both"}
