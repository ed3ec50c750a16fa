"""Measures artifacts so that their numbers may be compared: same run, interleaved, paired.

Method. The artifacts are measured in rounds. In each round every artifact gets one block: a fresh
process that loads it, warms it up and times some calls. The order turns round from one round to
the next (A B, B A, A B, ...), so that a clock that drifts in one direction favours nobody. Fresh
processes rather than resident ones: where memory comes to lie differs from process to process and
moves a latency by several percent; a resident process would keep one such draw for the whole run
and the interval would not know of it (Kalibera and Jones, "Rigorous benchmarking in reasonable
time", ISMM 2013). A resident process's idle threads would also spin beside the other's calls.
Tried on one file under two names, 30 times on a busy 2-core machine: pairing the calls of one
process each called it faster or slower than itself 15 times; the rounds never did.

A comparison pairs the block medians of the same round (`edgekit.paired.paired_ratio`). Percentiles
are nearest-rank (`edgekit.metrics.percentile`) over all timed calls of all rounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bench import document, layer_times, sustained
from edgekit.bench.asking import COMMAND, Files, LocalWorker, Worker, part
from edgekit.bench.request import BenchRequest, parts, random_feeds
from edgekit.errors import UnsupportedError, UsageError
from edgekit.scratch import scratch
from edgekit.signature import Signature, TensorSpec

__all__ = ["SCHEMA", "BenchRequest", "Settings", "bench", "random_feeds", "stated_signature"]

SCHEMA = "edgekit.bench/1"
ROUNDS = 10

_WARMUP_RUNS = 2_000  # a quarter of a second in which clocks come up, of short calls too
_LOAD_SECONDS = 120.0  # for importing, loading and the first call of one block
_LOOK_SECONDS = 0.5
_MOST_CALLS = 1 << 40  # as many as there are in the time


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        threads: CPU threads for each call.
        runs: timed calls per artifact over all rounds, at most.
        max_seconds: timed seconds per artifact over all rounds, at most; every round makes at
            least one timed call.
        rounds: fresh processes per artifact; under `edgekit.paired.MIN_RATIO_PAIRS` nothing can
            be compared, and comparisons say so.
        cpus: CPUs to stay on: their numbers, ``big`` or ``little``; None: all.
        max_temperature_c: a round begins at or below it; None: 10 degrees under the point where the
            kernel starts to throttle, where it states one.
        cool_down_s: seconds to wait for that, over all rounds; 0: never wait, only say.
        sustained_s: seconds of calls back to back afterwards, per artifact; 0: none.
        profile: whether the layers are timed too, in a pass of its own.
    """

    threads: int = 1
    runs: int = 200
    max_seconds: float = 10.0
    rounds: int = ROUNDS
    cpus: tuple[int, ...] | str | None = None
    max_temperature_c: float | None = None
    cool_down_s: float = 0.0
    sustained_s: float = 0.0
    profile: bool = False

    def __post_init__(self) -> None:
        for name, least in (("threads", 1), ("runs", 1), ("rounds", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; at least {least} is needed")
        if not 0 < self.max_seconds < math.inf:
            raise UsageError(f"max_seconds is {self.max_seconds}; it must be over 0, and finite")
        for name in ("cool_down_s", "sustained_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(
                    f"{name} is {getattr(self, name)}; it must be 0 or more, and finite"
                )
        if self.max_temperature_c is not None and not 0 < self.max_temperature_c < 150:
            raise UsageError(
                f"max_temperature_c is {self.max_temperature_c}; it must lie in 0 to 150 degrees"
            )
        if isinstance(self.cpus, str) and self.cpus not in ("big", "little"):
            raise UsageError(f"cpus is {self.cpus!r}; allowed are numbers, 'big' and 'little'")

    def to_json(self) -> dict[str, Any]:
        """As the document keeps them."""
        kept = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return kept | {"cpus": list(self.cpus) if isinstance(self.cpus, tuple) else self.cpus}


def bench(
    requests: Sequence[BenchRequest],
    *,
    threads: int = 1,
    runs: int = 200,
    max_seconds: float = 10.0,
    rounds: int = ROUNDS,
    compare: Sequence[tuple[str, str]] | None = None,
    force: bool = False,
    worker: Worker | Sequence[str] = COMMAND,
    timeout: float | None = None,
    progress: Callable[[int], None] = lambda _: None,
    **more: Any,
) -> dict[str, Any]:
    """Measures artifacts.

    Args:
        requests: what to measure.
        threads, runs, max_seconds, rounds: see `Settings`.
        compare: pairs of ids (a, b) to compare; by default each target's ``fp32`` artifact with
            each other artifact of that target that takes the same, and each artifact that takes the
            model's tensors with that of its scheme that takes pixels.
        force: compare what was measured under unlike conditions, too.
        worker: where; a command stands for a process of it on this machine.
        timeout: seconds for one block; by default 120 for loading, plus ten times its share of
            ``max_seconds``.
        progress: called with 1 after each block; with a long run and a profile counted as one each.
        more: other fields of `Settings`.

    Returns:
        A document ``edgekit.bench/1``. ``ratio`` of a comparison is b's latency over a's; the
        verdict is b's.

    Raises:
        UsageError: no request, an id twice, or a number below its least.
        WorkerCrashed: a runtime died, did not finish, or did not answer its request.
        EdgekitError: what the worker found wrong, as the same error.
    """
    how = Settings(threads=threads, runs=runs, max_seconds=max_seconds, rounds=rounds, **more)
    _check(requests)
    place = LocalWorker(worker) if isinstance(worker, Sequence) else worker
    begun, started = time.time(), datetime.now(UTC).isoformat(timespec="seconds")
    facts = place.facts()
    for key in ("usable_cores", "load_average"):  # a device's word, with which we reckon
        if not isinstance(facts.get(key), int | float):
            facts[key] = None
    if isinstance(facts.get("clock"), int | float):
        # The device's clock times nothing here; how wrong it is belongs to the facts all the same.
        facts["clock_skew_s"] = round(facts["clock"] - begun, 3)
    blocks = [document.Rounds(request) for request in requests]
    with scratch("bench") as folder:
        feeds = [_write_feeds(folder, i, r) for i, r in enumerate(requests)]
        run = _Run(place, how, timeout, progress)
        for number in range(how.rounds):
            turn = list(zip(blocks, feeds, strict=True))
            for block, path in turn if number % 2 == 0 else reversed(turn):
                block.add(run.block(block.request, path, number))
        facts["load_average_after"] = (blocks[-1].answers[-1].get("after") or {}).get(
            "load_average"
        )
        results = [document.result(block, how.threads, facts) for block in blocks]
        for entry, block, path in zip(results, blocks, feeds, strict=True):
            run.extras(entry, block.request, path, facts.get("usable_cores"))
    pairs = _default_pairs(requests) if compare is None else compare
    by_id = {block.request.artifact: block for block in blocks}
    found = {entry["artifact"]: entry for entry in results}
    return {
        "schema": SCHEMA,
        "where": place.where,
        "started": started,
        "settings": how.to_json(),
        "facts": facts,
        "results": results,
        "comparisons": [document.comparison(by_id, found, a, b, force=force) for a, b in pairs],
    }


class _Run:
    """Asks for blocks, and keeps how long is left to cool down."""

    def __init__(
        self,
        place: Worker,
        how: Settings,
        timeout: float | None,
        progress: Callable[[int], None],
    ) -> None:
        self._place, self._how, self._progress = place, how, progress
        share = how.max_seconds / how.rounds
        self._limit = timeout if timeout is not None else _LOAD_SECONDS + 10 * share
        self._left = how.cool_down_s
        self._common = {
            "threads": how.threads,
            "cpus": list(how.cpus) if isinstance(how.cpus, tuple) else how.cpus,
            "look_seconds": _LOOK_SECONDS,
            "warmup_runs": _WARMUP_RUNS,
            "warmup_seconds": min(0.25, share),
            "max_seconds": share,
        }

    def block(self, request: BenchRequest, feeds: Path, number: int) -> dict[str, Any]:
        """One round of one artifact."""
        how = self._how
        # The remainder goes to the first rounds, so that all add up to ``runs``.
        calls = max(1, how.runs // how.rounds + (number < how.runs % how.rounds))
        return self._ask(request, feeds, {"op": "bench", "runs": calls})

    def extras(
        self, entry: dict[str, Any], request: BenchRequest, feeds: Path, cores: int | None
    ) -> None:
        """The long run and the profile, into the artifact's entry, as far as they are wanted."""
        seconds = self._how.sustained_s
        if seconds:
            every = max(_LOOK_SECONDS, seconds / 60)
            asked = {"op": "bench", "runs": _MOST_CALLS, "max_seconds": seconds}
            answer = self._ask(request, feeds, {**asked, "look_seconds": every}, extra=2 * seconds)
            document.Rounds(request).add(answer)  # checks it
            entry["sustained"] = sustained.summary(answer, cores)
        if self._how.profile:
            try:
                answer = self._ask(
                    request, feeds, {"op": "profile", "runs": 50, "max_seconds": 5.0}
                )
                entry["profile"] = layer_times.summary(answer, request.target, request.path)
            except UnsupportedError as error:
                entry["notes"].append(f"no profile: {error.message}")
            if request.target == "coreml":
                entry["notes"] += self._units(request, feeds)

    def _units(self, request: BenchRequest, feeds: Path) -> list[str]:
        """What a profile of Core ML can tell: on which units the operations would run."""
        try:
            found = self._ask(request, feeds, {"op": "placement"})["placement"]
        except UnsupportedError as error:
            return [f"no placement: {error.message}"]
        units = [
            f"{name} {unit['ops']} operations, {unit['work']:.0%} of the work"
            for name, unit in sorted(found["units"].items())
        ]
        notes = [f"placement with all units allowed: {'; '.join(units)}"]
        if found["first_off"] is not None:
            notes.append(f"the first operation off the Neural Engine is {found['first_off']}")
        return [*notes, "measured on the CPU alone"]

    def _ask(
        self, request: BenchRequest, feeds: Path, more: Mapping[str, Any], extra: float = 0.0
    ) -> dict[str, Any]:
        question = {
            "target": request.target,
            "signature": request.signature.to_json(),
            **self._common,
            "thermal": {"limit_c": self._how.max_temperature_c, "budget_s": self._left},
            **more,
        }
        begun = time.monotonic()
        answer = self._place.ask(
            question,
            _files(request, feeds),
            what=f"artifact {request.artifact!r} on {request.target}",
            timeout=self._limit + self._left + extra,
            threads=self._how.threads,
        )
        # A device's clock may be wrong: more than passed here can't have passed there.
        answer = {**answer, "asked_s": round(time.monotonic() - begun, 3)}
        gate = answer.get("gate")
        waited = gate.get("waited_s") if isinstance(gate, dict) else None
        if isinstance(waited, int | float):
            self._left = max(0.0, min(self._left, self._left - waited))
        self._progress(1)
        return answer


def _files(request: BenchRequest, feeds: Path) -> Files:
    beside = [part for part in parts(request.target, request.path) if part != request.path]
    # A package is one folder, which holds all of its files.
    return {"path": [request.path, *([] if request.path.is_dir() else beside)], "feeds": [feeds]}


def stated_signature(
    target: str,
    path: Path,
    *,
    worker: Worker | Sequence[str] = COMMAND,
    timeout: float = _LOAD_SECONDS,
) -> Signature:
    """The signature that a bare artifact states itself, read in a process of its own.

    Raises:
        WorkerCrashed: the runtime died over the file.
        EdgekitError: as `edgekit.runtime.session.read_signature`.
    """
    place = LocalWorker(worker) if isinstance(worker, Sequence) else worker
    beside = [part for part in parts(target, path) if part != path and not path.is_dir()]
    answer = place.ask(
        {"op": "signature", "target": target},
        {"path": [path, *beside]},
        what=f"artifact {path.name!r} on {target}",
        timeout=timeout,
    )
    return Signature.from_json(part(answer, "signature", f"artifact {path.name!r}"))


def _check(requests: Sequence[BenchRequest]) -> None:
    if not requests:
        raise UsageError("there is no artifact to measure")
    ids = [request.artifact for request in requests]
    if len(set(ids)) != len(ids):
        raise UsageError(f"artifact ids are not unique: {', '.join(sorted(ids))}")


def _write_feeds(folder: Path, index: int, request: BenchRequest) -> Path:
    feeds = random_feeds(request.signature) if request.feeds is None else request.feeds
    request.signature.check_inputs(feeds, what=f"artifact {request.artifact!r}")
    path = folder / f"feeds-{index}.npz"
    np.savez(path, allow_pickle=False, **feeds)
    return path


def _default_pairs(requests: Sequence[BenchRequest]) -> list[tuple[str, str]]:
    """Float beside the other schemes, and the model's tensors beside pictures."""
    return [
        (base.artifact, other.artifact)
        for base in requests
        for other in requests
        if other.target == base.target
        and (_is_float_twin(base, other) or _adds_border(base, other))
    ]


def _is_float_twin(base: BenchRequest, other: BenchRequest) -> bool:
    same = base.signature.inputs == other.signature.inputs and base.delegate == other.delegate
    return same and base.scheme == "fp32" and other.scheme not in (None, "fp32")


def _adds_border(base: BenchRequest, other: BenchRequest) -> bool:
    """Whether two artifacts of one scheme differ in that the second does more to a picture."""
    pairs = zip(base.signature.inputs, other.signature.inputs, strict=False)
    added = [_is_border(a, b) for a, b in pairs if a != b]
    return base.scheme is not None and base.scheme == other.scheme and added == [True]


def _is_border(own: TensorSpec, taken: TensorSpec) -> bool:
    """Whether an input is one with a picture border, in place of another or of none."""
    pixels = (own.dtype, taken.dtype) == ("float32", "uint8")
    last = own.dtype == taken.dtype == "float32" and taken.layout == "NHWC" != own.layout
    return pixels or last
