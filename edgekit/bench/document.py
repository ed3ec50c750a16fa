"""The document ``edgekit.bench/1``: what the rounds of each artifact come to, and comparisons."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from edgekit.bench import conditions, steady
from edgekit.bench.request import BenchRequest
from edgekit.errors import BadData, UsageError, WorkerCrashed
from edgekit.metrics import percentile
from edgekit.paired import MIN_RATIO_PAIRS, paired_ratio

__all__ = [
    "ENOUGH_CALLS",
    "ENOUGH_SECONDS",
    "Rounds",
    "comparison",
    "energy",
    "latency",
    "result",
]

_MIB = 2**20
_CPU_SHARE = 0.95  # CPU time over wall time under which others' load is in the latencies
_SPREAD = 0.15  # median absolute deviation over median above which a result is called noisy
_DRIFT = 1.10  # later rounds slower than earlier ones by this factor: heat, or other load

ENOUGH_CALLS: Final = 128
"""Calls, or..."""
ENOUGH_SECONDS: Final = 10.0
"""...seconds of them that a figure needs: what MLPerf Mobile's quick mode asks for. Its full rules
ask for 1024 calls and 60 s."""

_STEPS = 100  # of the clock that a call must take, for its step to be under 1 %
_ASLEEP_S = 0.25  # by which the clocks part if the machine slept


@dataclass
class Rounds:
    """What the rounds gave for one artifact, in order: the worker's answers."""

    request: BenchRequest
    answers: list[dict[str, Any]] = field(default_factory=list)

    def add(self, answer: dict[str, Any]) -> None:
        """Takes one answer.

        Raises:
            WorkerCrashed: it lacks what a measurement has, or holds what is no number.
        """
        figures = ("load_ms", "first_ms", "peak_bytes", "added_bytes")
        numbers = [answer[key] for key in figures if answer.get(key) is not None]
        samples = answer.get("samples_ms")
        if not isinstance(samples, list) or not samples:
            raise WorkerCrashed(f"artifact {self.request.artifact!r}: the worker timed no call")
        for value in (*numbers, *samples):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise WorkerCrashed(
                    f"artifact {self.request.artifact!r}: the worker measured {value!r}"
                )
            if not math.isfinite(value):
                raise WorkerCrashed(f"artifact {self.request.artifact!r}: a time is {value}")
        self.answers.append(answer)

    def medians(self) -> list[float]:
        """Each round's median latency, ms."""
        return [median(answer["samples_ms"]) for answer in self.answers]

    def all(self, key: str) -> list[Any]:
        """One figure of each round, where the worker gave it."""
        return [answer[key] for answer in self.answers if answer.get(key) is not None]


def latency(samples: Sequence[float]) -> dict[str, Any] | None:
    """Percentiles of latencies in ms; None where one is not over 0: the clock was wrong.

    p90 is left out below 10 calls, p99 below 100, where either would be the maximum under another
    name.
    """
    n = len(samples)
    if not n or min(samples) <= 0:
        return None
    middle = percentile(samples, 50)
    return {
        "p50": middle,
        "p90": percentile(samples, 90) if n >= 10 else None,
        "p99": percentile(samples, 99) if n >= 100 else None,
        "mad": percentile([abs(sample - middle) for sample in samples], 50),
        "n": n,
    }


def result(rounds: Rounds, threads: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """One artifact's entry of the document."""
    request = rounds.request
    samples = [sample for answer in rounds.answers for sample in answer["samples_ms"]]
    figures = latency(samples)
    if figures is not None and rounds.all("aggregate"):
        figures |= {"p90": None, "p99": None}  # each sample stands for many calls
    state = conditions.conditions(rounds.answers, rounds.medians(), facts.get("usable_cores"))
    judged = _steadiness(rounds)
    lacking = _lacking(rounds, samples)
    return {
        "artifact": request.artifact,
        "target": request.target,
        "scheme": request.scheme,
        "delegate": request.delegate,
        "threads": threads,
        "runtime": str(rounds.answers[-1].get("runtime_version") or "unknown"),
        "load_ms": _median(rounds.all("load_ms")),
        "first_ms": _median(rounds.all("first_ms")),
        "latency_ms": figures,
        "samples_ms": samples,
        "whole_ms": _median([w for whole in rounds.all("whole_ms") for w in whole]),
        "insufficient": lacking,
        "steady": judged,
        "peak_memory_mib": _mib(max(rounds.all("peak_bytes"), default=None)),
        "added_memory_mib": _mib(_median(rounds.all("added_bytes"))),
        "pss_memory_mib": _mib(_median(rounds.all("pss_bytes"))),
        "reported_memory": rounds.answers[-1].get("reported"),
        "energy": energy(rounds.all("energy"), _calls(rounds)),
        "bytes": request.bytes,
        "conditions": state,
        "rounds": [_kept(answer) for answer in rounds.answers],
        "sustained": None,
        "profile": None,
        "notes": _notes(rounds, figures, state, judged, lacking, facts),
    }


def _calls(rounds: Rounds) -> int:
    """Timed calls: of very many only some are kept."""
    return sum(len(a["samples_ms"]) * int(a.get("kept_every", 1)) for a in rounds.answers)


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _mib(size: float | None) -> float | None:
    return None if size is None else size / _MIB


def _kept(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A round as it is kept: all that it told, but the samples, which stand by themselves."""
    left = ("nonce", "samples_ms", "warmup_ms", "whole_ms", "runtime_version", "reported")
    kept = {key: value for key, value in answer.items() if key not in left}
    warmup = [w for w in answer.get("warmup_ms") or [] if isinstance(w, int | float)]
    return {**kept, "n": len(answer["samples_ms"]), "warmup_n": len(warmup)}


def _steadiness(rounds: Rounds) -> dict[str, Any]:
    """When calls became steady, judged round by round, warm-up included.

    ``unsteady_rounds``: in how many calls were timed that were not steady yet, or no more.
    """
    states: Counter[str] = Counter()
    late = 0
    for answer in rounds.answers:
        warmup = answer.get("warmup_ms") or []
        found = steady.steadiness([*warmup, *answer["samples_ms"]])
        states[found.state] += 1
        begun = len(warmup)
        late += found.state == "unsteady" or (found.start is not None and found.start > begun)
    return {
        "method": steady.METHOD,
        "states": dict(sorted(states.items())),
        "unsteady_rounds": late,
    }


def _lacking(rounds: Rounds, samples: Sequence[float]) -> list[str]:
    """Why these figures are no headline; empty where they may be one."""
    reasons = []
    wrong = sum(sample <= 0 for sample in samples)
    if wrong:
        reasons.append(f"clock: {wrong} calls took 0 ms or less")
    told = rounds.all("aggregate")
    calls = sum(entry["calls"] for entry in told) if told else len(samples)
    seconds = sum(samples) / 1e3 * calls / len(samples)
    if calls < ENOUGH_CALLS and seconds < ENOUGH_SECONDS:
        reasons.append(
            f"few: {calls} calls of {seconds:.2g} s together; "
            f"{ENOUGH_CALLS} calls or {ENOUGH_SECONDS:.0f} s are asked for"
        )
    for clocks in rounds.all("clocks"):
        timed, boot = clocks.get("timed_s"), clocks.get("boottime_s")
        if timed is not None and boot is not None and boot - timed > _ASLEEP_S + 0.01 * timed:
            reasons.append(f"asleep: the machine slept for {boot - timed:.3g} s meanwhile")
            break
    for answer in rounds.answers:
        counted, passed = (answer.get("clocks") or {}).get("timed_s"), answer.get("asked_s")
        if counted is not None and passed is not None and counted > 1.02 * passed + 0.1:
            reasons.append(
                f"clock: the device counted {counted:.3g} s where {passed:.3g} s passed here"
            )
            break
    steps = [
        clocks["resolution_ns"] for clocks in rounds.all("clocks") if "resolution_ns" in clocks
    ]
    if steps and not wrong and 1e6 * median(samples) < _STEPS * max(steps):
        reasons.append(f"clock: its step of {max(steps):.0f} ns is over 1 % of a call")
    return reasons


def energy(meters: Sequence[Mapping[str, Any]], calls: int) -> dict[str, Any] | None:
    """Joules of a call, where the machine counts them, and why not where it doesn't.

    Args:
        meters: what `edgekit.bench._energy.EnergyMeter.stop` gave, of each round.
        calls: of all rounds together.
    """
    if not meters:
        return None
    joules: list[float] = [m["joules"] for m in meters if m.get("joules") is not None]
    if len(joules) < len(meters):
        reason = next(meter.get("reason") for meter in meters if meter.get("joules") is None)
        return {"joules_per_call": None, "source": None, "reason": reason}
    per_call = sum(joules) / calls
    return {"joules_per_call": per_call, "source": meters[-1].get("source"), "reason": None}


def _notes(
    rounds: Rounds,
    figures: Mapping[str, Any] | None,
    state: Mapping[str, Any],
    judged: Mapping[str, Any],
    lacking: Sequence[str],
    facts: Mapping[str, Any],
) -> list[str]:
    """What a reader must know before trusting the numbers; the samples stay as they are."""
    notes = [f"runtime: {rounds.answers[-1].get('runtime_version')}"]
    notes += dict.fromkeys(remark for told in rounds.all("remarks") for remark in told)
    notes += [f"insufficient: {reason}" for reason in lacking]
    cores, load = facts.get("usable_cores"), facts.get("load_average")
    if load is not None and cores and load > 0.5 * cores:
        notes.append(f"busy: load average {load} on {cores} cores before the run")
    if figures is not None and figures["mad"] > _SPREAD * figures["p50"]:
        share = figures["mad"] / figures["p50"]
        notes.append(f"noisy: median absolute deviation {share:.0%} of the median")
    if state["thermal"] == "throttled":
        notes.append(f"throttled: {', '.join(state['throttling']) or 'warmer and slower'}")
    elif state["thermal"] == "unknown":
        notes.append("thermal_unknown: no sensor of this machine tells how hot the chip is")
    if state["slowed"] is not None and state["slowed"] > _DRIFT:
        notes.append(
            f"slowed: the last rounds took {state['slowed']:.2f} times the first (heat or load)"
        )
    notes += conditions.remarks(state, cores)
    share = state["cpu_share"]
    if share is not None and share < _CPU_SHARE:
        notes.append(f"waiting: the calls had a core for only {share:.0%} of their time")
    if 3 * judged["unsteady_rounds"] > len(rounds.answers):
        notes.append(
            f"unsteady: in {judged['unsteady_rounds']} of {len(rounds.answers)} rounds calls were "
            "timed before the latency was steady"
        )
    calls = sum(len(answer["samples_ms"]) for answer in rounds.answers)
    if calls < 10 * len(rounds.answers) and not rounds.all("aggregate"):
        notes.append(f"few samples: {calls} calls in {len(rounds.answers)} rounds")
    if not all(rounds.all("memory_reset")):
        notes.append("memory: the kernel did not reset the high-water mark; added may be low")
    return notes


def comparison(
    rounds: Mapping[str, Rounds],
    results: Mapping[str, Mapping[str, Any]],
    a: str,
    b: str,
    *,
    force: bool = False,
) -> dict[str, Any]:
    """``b`` against ``a``, by the medians of their rounds.

    Measured under unlike conditions they are not compared, unless it is forced; ``unlike`` says
    in what the conditions differed either way.

    Raises:
        UsageError: one of them was not measured.
        WorkerCrashed: a latency is no positive number.
    """
    missing = [name for name in (a, b) if name not in rounds]
    if missing:
        raise UsageError(f"cannot compare {missing[0]!r}: it is not among the measured artifacts")
    reasons = conditions.unlike(results[a], results[b])
    base, other = rounds[a].medians(), rounds[b].medians()
    entry: dict[str, Any] = {"a": a, "b": b, "metric": "latency_p50", "unlike": reasons}
    if len(base) < MIN_RATIO_PAIRS or (reasons and not force):
        return {**entry, "ratio": None, "ci95": None, "verdict": "no difference shown"}
    try:
        found = paired_ratio(base, other)
    except BadData as error:
        raise WorkerCrashed(f"{a!r} and {b!r} cannot be compared: {error.message}") from error
    words = {"better": "faster", "worse": "slower"}
    return {
        **entry,
        "ratio": found.ratio,
        "ci95": [found.low, found.high],
        "verdict": words.get(found.verdict, found.verdict),
    }
