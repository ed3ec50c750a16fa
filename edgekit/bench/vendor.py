"""The runtimes' own benchmark programs, for devices without Python, such as most phones.

A team names the program it built for its device: LiteRT's ``benchmark_model`` or ExecuTorch's
``executor_runner``. It is pushed, run in a fresh process for each round, and what it prints becomes
the same answer that the worker gives, as far as it says so; what it does not tell stays unknown.
Both feed inputs of their own: random numbers (``benchmark_model``), ones (``executor_runner``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edgekit.bench.asking import Files
from edgekit.bench.process import Finished
from edgekit.bench.remote import Pushed
from edgekit.bench.runners import Runner
from edgekit.errors import UnsupportedError, UsageError, WorkerCrashed
from edgekit.names import unknown

__all__ = ["TOOLS", "Tool", "VendorWorker", "parse_benchmark_model", "parse_executor_runner"]

TOOLS: Final = {"benchmark_model": "tflite", "executor_runner": "executorch"}
"""Programs we can run and read, and the target whose artifacts each runs."""

_MIB = 2**20
_PROBE = 3  # executions that tell how many fit into the time
_NUMBER = r"([0-9.]+(?:e[+-]?[0-9]+)?)"
_SERIES = re.compile(r"\bcount=(\d+)((?: (?:first|curr|min|max|avg|std|p5|median|p95)=\S+)+)")
_TIMINGS = re.compile(
    rf"Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER}, "
    rf"Warmup \(avg\): {_NUMBER}, Inference \(avg\): {_NUMBER}"
)
_FOOTPRINT = re.compile(
    rf"(?:Memory footprint delta from the start of the tool|Peak memory footprint) \(MB\): "
    rf"init={_NUMBER} overall={_NUMBER}"
)
_PEAK = re.compile(rf"Overall peak memory footprint \(MB\) via periodic monitoring: {_NUMBER}")
_PLACED = re.compile(r"\bthe model graph will be (completely|partially|not be)? ?executed[^\n]*")
_ITERATION = re.compile(rf"Iteration (\d+) of (\d+): {_NUMBER} ms")
_EXECUTED = re.compile(rf"Model executed successfully (\d+) time\(s\) in {_NUMBER} ms")
_LOADED = re.compile(rf"Model loaded in {_NUMBER} ms")


@dataclass(frozen=True)
class Tool:
    """A program that a team built for its device.

    Attributes:
        name: a key of `TOOLS`.
        path: the program, on this machine.
        args: further options of its own, such as ``--use_gpu=true``.
    """

    name: str
    path: Path
    args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in TOOLS:
            raise UsageError(unknown("benchmark program", self.name, TOOLS))
        if not self.path.is_file():
            raise UsageError(f"{self.name}: there is no program {str(self.path)!r}")


class VendorWorker:
    """A `edgekit.bench.asking.Worker` that has the runtimes' own programs measure.

    Args:
        runner: an open runner; it stays the caller's.
        tools: at most one program per target.
    """

    def __init__(self, runner: Runner, tools: Sequence[Tool]) -> None:
        self.where = runner.url
        self._runner, self._pushed = runner, Pushed(runner)
        self._tools = {TOOLS[tool.name]: tool for tool in tools}
        self._there: set[str] = set()
        self._call_ms: dict[str, float] = {}

    def ask(
        self,
        question: Mapping[str, Any],
        files: Files,
        *,
        what: str,
        timeout: float,
        threads: int = 1,
    ) -> dict[str, Any]:
        """See `edgekit.bench.asking.Worker.ask`; only ``op`` ``bench`` can be asked.

        Raises:
            UnsupportedError: no program is named for the target, or it cannot do what is asked.
        """
        target = str(question["target"])
        tool = self._tools.get(target)
        if tool is None or question["op"] != "bench":
            named = ", ".join(sorted(self._tools)) or "none"
            raise UnsupportedError(
                f"{what}: a vendor's program can't do {question['op']} of {target} on {self.where}",
                hint=f"programs are named for: {named}; the worker does it where there is Python",
            )
        if tool.name not in self._there:
            self._runner.push(tool.path, tool.name, executable=True)
            self._there.add(tool.name)
        model = self._pushed.place(files["path"])
        how = {**question, "threads": threads}
        if tool.name == "benchmark_model":
            return self._benchmark_model(tool, model, how, what, timeout)
        return self._executor_runner(tool, model, how, what, timeout)

    def facts(self) -> dict[str, Any]:
        """What the device's shell tells."""
        return {"usable_cores": None, "packages": {}, **self._runner.facts()}

    def _benchmark_model(
        self, tool: Tool, model: str, how: Mapping[str, Any], what: str, timeout: float
    ) -> dict[str, Any]:
        options = [
            f"--graph={model}",
            f"--num_threads={how['threads']}",
            f"--num_runs={how['runs']}",
            "--min_secs=0",
            f"--max_secs={how['max_seconds']}",
            f"--warmup_min_secs={how['warmup_seconds']}",
            "--report_peak_memory_footprint=true",
        ]
        return parse_benchmark_model(self._run(tool, options, how, what, timeout), what)

    def _executor_runner(
        self, tool: Tool, model: str, how: Mapping[str, Any], what: str, timeout: float
    ) -> dict[str, Any]:
        def run(executions: int) -> dict[str, Any]:
            options = [
                f"--model_path={model}",
                f"--num_executions={executions}",
                f"--cpu_threads={how['threads']}",
            ]
            text = self._run(tool, options, how, what, timeout)
            return parse_executor_runner(text, what, warmup=min(5, executions // 3))

        if model not in self._call_ms:
            self._call_ms[model] = min(run(_PROBE)["samples_ms"])
        # It knows no time limit of its own.
        fit = int(1e3 * how["max_seconds"] / max(1e-6, self._call_ms[model]))
        return run(max(_PROBE, min(int(how["runs"]), fit)))

    def _run(
        self,
        tool: Tool,
        options: Sequence[str],
        how: Mapping[str, Any],
        what: str,
        timeout: float,
    ) -> str:
        """What the program prints on both streams, in one."""
        command = [*_affinity(how.get("cpus"), what), f"./{tool.name}", *options, *tool.args]
        script = 'exec "$@" 2>&1'
        done = self._runner.run(["sh", "-c", script, "sh", *command], timeout=timeout)
        text = done.stdout.decode("utf-8", "replace").replace("\r", "")
        if done.code != 0:
            tail = Finished(done.code, b"", text, done.seconds)
            raise WorkerCrashed(
                f"{what}: {tool.name} {tail.death()}",
                hint="is it built for this device, with this artifact's operators?",
            )
        return text


def _affinity(cpus: object, what: str) -> list[str]:
    if cpus is None:
        return []
    if isinstance(cpus, list | tuple):
        return ["taskset", f"{sum(1 << int(number) for number in set(cpus)):x}"]
    raise UnsupportedError(
        f"{what}: which CPUs are {cpus!r} is not known to a vendor's program",
        hint="give their numbers",
    )


def parse_benchmark_model(text: str, what: str) -> dict[str, Any]:
    """What LiteRT's ``benchmark_model`` prints, as a worker's answer.

    It tells a series, not its calls: ``samples_ms`` holds one figure, its median where it states
    one (newer versions), else its mean, and ``aggregate`` says which and of how many calls.

    Raises:
        WorkerCrashed: it did not come to its end.
    """
    timings, series = _TIMINGS.search(text), _SERIES.findall(text)
    if timings is None or not series:
        raise WorkerCrashed(f"{what}: benchmark_model told no timings: {_last(text)}")
    count, fields = int(series[-1][0]), dict(re.findall(r" (\w+)=(\S+)", series[-1][1]))
    kind = "median" if "median" in fields else "mean"
    middle = fields.get("median") or fields.get("avg") or timings[4]
    peak, footprint = _PEAK.search(text), _FOOTPRINT.search(text)
    placed = _PLACED.search(text)
    return {
        "load_ms": float(timings[1]) / 1e3,
        "first_ms": float(timings[2]) / 1e3,
        "samples_ms": [float(middle) / 1e3],
        "aggregate": {"kind": kind, "calls": count, "told_us": _figures(fields)},
        "peak_bytes": None if peak is None else float(peak[1]) * _MIB,
        "added_bytes": None if footprint is None else float(footprint[2]) * _MIB,
        "runtime_version": "benchmark_model, of a version that it does not tell",
        "remarks": [
            f"each sample is the {kind} of the calls of one process, as benchmark_model tells it",
            *([] if placed is None else [f"placement: {placed[0].strip()}"]),
        ],
    }


def _figures(fields: Mapping[str, str]) -> dict[str, float]:
    return {name: float(value) for name, value in fields.items() if name != "curr"}


def parse_executor_runner(text: str, what: str, *, warmup: int = 0) -> dict[str, Any]:
    """What ExecuTorch's ``executor_runner`` prints, as a worker's answer.

    Newer versions tell each execution; others only their sum, of which ``samples_ms`` holds the
    mean, and ``aggregate`` says so.

    Args:
        text: its output.
        what: names the artifact in errors.
        warmup: executions after the first that are left out.

    Raises:
        WorkerCrashed: it did not come to its end.
        UnsupportedError: it is of a version that tells no times.
    """
    done, loaded = _EXECUTED.search(text), _LOADED.search(text)
    if done is None:
        if "Model executed successfully" in text:
            raise UnsupportedError(
                f"{what}: this executor_runner tells no times",
                hint="build it from a version that prints 'time(s) in ... ms'",
            )
        raise WorkerCrashed(f"{what}: executor_runner did not finish: {_last(text)}")
    count, total = int(done[1]), float(done[2])
    calls = [float(ms) for _, _, ms in _ITERATION.findall(text)]
    if count < 1 or (calls and len(calls) != count):
        raise WorkerCrashed(f"{what}: executor_runner told {len(calls)} of {count} executions")
    whole = len(calls) > 1 + warmup
    mean = {"kind": "mean", "calls": count, "told_us": {"avg": 1e3 * total / count}}
    return {
        "load_ms": float(loaded[1]) if loaded else None,
        "first_ms": calls[0] if calls else None,
        "warmup_ms": calls[1 : 1 + warmup],
        "samples_ms": calls[1 + warmup :] if whole else [total / count],
        "aggregate": None if whole else mean,
        "peak_bytes": None,
        "added_bytes": None,
        "runtime_version": "executor_runner, of a version that it does not tell",
        "remarks": [] if whole else ["each sample is the mean of the calls of one process"],
    }


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it printed nothing"
