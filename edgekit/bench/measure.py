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
are nearest-rank (`edgekit.metrics.percentile`) over all timed calls of all rounds; p90 is left out
below 10 of them, p99 below 100, where either would be the maximum under another name.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import edgekit
from edgekit import cores, errors
from edgekit.bench.facts import host_facts, load_average
from edgekit.bench.process import run_bounded
from edgekit.errors import BadData, EdgekitError, UsageError, WorkerCrashed
from edgekit.metrics import percentile
from edgekit.paired import MIN_RATIO_PAIRS, paired_ratio
from edgekit.runtime.session import Array
from edgekit.signature import Signature, TensorSpec

__all__ = ["SCHEMA", "BenchRequest", "bench", "random_feeds", "stated_signature"]

SCHEMA = "edgekit.bench/1"
ROUNDS = 10
WORKER = (sys.executable, "-m", "edgekit.bench.worker")

_MIB = 2**20
_WARMUP_RUNS = 200
_LOAD_SECONDS = 120.0  # for importing, loading and the first call of one block
_DRIFT = 1.10  # later rounds slower than earlier ones by this factor: heat, or other load
_CPU_SHARE = 0.95  # CPU time over wall time under which others' load is in the latencies
_SPREAD = 0.15  # median absolute deviation over median above which a result is called noisy


@dataclass(frozen=True)
class BenchRequest:
    """One artifact to measure.

    Attributes:
        artifact: its id, unique among the requests.
        target: whose runtime executes it.
        path: its main file.
        signature: the model's inputs and outputs.
        scheme: its scheme, None if unknown (a bare file).
        delegate: its delegate, None if unknown.
        bytes: its size, None if unknown.
        feeds: one array per input; `random_feeds` if None.
    """

    artifact: str
    target: str
    path: Path
    signature: Signature
    scheme: str | None = None
    delegate: str | None = None
    bytes: int | None = None
    feeds: Mapping[str, Array] | None = None


@dataclass
class _Blocks:
    """What the rounds gave for one artifact, round by round."""

    request: BenchRequest
    answers: list[dict[str, Any]] = field(default_factory=list)

    def medians(self) -> list[float]:
        return [median(answer["samples_ms"]) for answer in self.answers]

    def all(self, key: str) -> list[Any]:
        return [answer[key] for answer in self.answers]


def bench(
    requests: Sequence[BenchRequest],
    *,
    threads: int = 1,
    runs: int = 200,
    max_seconds: float = 10.0,
    rounds: int = ROUNDS,
    compare: Sequence[tuple[str, str]] | None = None,
    worker: Sequence[str] = WORKER,
    timeout: float | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Measures artifacts on this machine.

    Args:
        requests: what to measure.
        threads: CPU threads for each call.
        runs: timed calls per artifact over all rounds, at most.
        max_seconds: timed seconds per artifact over all rounds, at most; every round makes at
            least one timed call.
        rounds: fresh processes per artifact; under `edgekit.paired.MIN_RATIO_PAIRS` nothing can
            be compared, and comparisons say so.
        compare: pairs of ids (a, b) to compare; by default each target's ``fp32`` artifact with
            each other artifact of that target that takes the same, and each artifact that takes the
            model's tensors with that of its scheme that takes pixels.
        worker: the command that measures one request.
        timeout: seconds for one block; by default 120 for loading, plus ten times its share of
            ``max_seconds``.
        progress: called with 1 after each block.

    Returns:
        A document ``edgekit.bench/1``. ``ratio`` of a comparison is b's latency over a's; the
        verdict is b's.

    Raises:
        UsageError: no request, an id twice, or a number below its least.
        WorkerCrashed: a runtime died, did not finish, or did not answer its request.
        EdgekitError: what the worker found wrong, as the same error.
    """
    _check(requests, threads, runs, max_seconds, rounds)
    share = {
        "threads": threads,
        "max_seconds": max_seconds / rounds,
        "warmup_runs": _WARMUP_RUNS,
        "warmup_seconds": min(0.25, max_seconds / rounds),
    }
    limit = timeout if timeout is not None else _LOAD_SECONDS + 10 * max_seconds / rounds
    facts = host_facts()
    blocks = [_Blocks(request) for request in requests]
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as folder:
        feeds = [_write_feeds(Path(folder), i, r) for i, r in enumerate(requests)]
        for number in range(rounds):
            turn = list(zip(blocks, feeds, strict=True))
            for block, path in turn if number % 2 == 0 else reversed(turn):
                # The remainder goes to the first rounds, so that all add up to ``runs``.
                calls = max(1, runs // rounds + (number < runs % rounds))
                question = _question(block.request, path, {**share, "runs": calls})
                what = f"artifact {block.request.artifact!r} on {block.request.target}"
                block.answers.append(_ask(question, Path(folder), what, worker, limit, threads))
                progress(1)
    facts["load_average_after"] = load_average()
    pairs = _default_pairs(requests) if compare is None else compare
    by_id = {block.request.artifact: block for block in blocks}
    return {
        "schema": SCHEMA,
        "where": "local",
        "facts": facts,
        "results": [_result(block, threads, facts) for block in blocks],
        "comparisons": [_comparison(by_id, a, b) for a, b in pairs],
    }


def stated_signature(
    target: str, path: Path, *, worker: Sequence[str] = WORKER, timeout: float = _LOAD_SECONDS
) -> Signature:
    """The signature that a bare artifact states itself, read in a process of its own.

    Raises:
        WorkerCrashed: the runtime died over the file.
        EdgekitError: as `edgekit.runtime.session.read_signature`.
    """
    question = {"op": "signature", "target": target, "path": str(path.absolute())}
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as folder:
        what = f"artifact {path.name!r} on {target}"
        answer = _ask(question, Path(folder), what, worker, timeout, 1)
    return Signature.from_json(answer["signature"])


def random_feeds(signature: Signature, *, seed: int = 0) -> dict[str, Array]:
    """Inputs that fit a signature: standard normal floats, integers in 0..high (1 if unknown)."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in signature.inputs:
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            feeds[spec.name] = rng.standard_normal(spec.shape).astype(dtype)
        elif dtype.itemsize == 1 and dtype.kind in "iu" and spec.high is None:
            limits = np.iinfo(dtype)  # a quantized picture rather than a flag
            feeds[spec.name] = rng.integers(limits.min, limits.max, spec.shape, dtype, True)
        else:
            high = 1 if spec.high is None else spec.high
            feeds[spec.name] = rng.integers(0, high, spec.shape, endpoint=True).astype(dtype)
    return feeds


def _check(
    requests: Sequence[BenchRequest], threads: int, runs: int, seconds: float, rounds: int
) -> None:
    if not requests:
        raise UsageError("there is no artifact to measure")
    ids = [request.artifact for request in requests]
    if len(set(ids)) != len(ids):
        raise UsageError(f"artifact ids are not unique: {', '.join(sorted(ids))}")
    for name, value in (("threads", threads), ("runs", runs), ("rounds", rounds)):
        if value < 1:
            raise UsageError(f"{name} is {value}; at least 1 is needed")
    if not 0 < seconds < float("inf"):
        raise UsageError(f"max_seconds is {seconds}; it must be over 0")


def _write_feeds(folder: Path, index: int, request: BenchRequest) -> Path:
    feeds = random_feeds(request.signature) if request.feeds is None else request.feeds
    request.signature.check_inputs(feeds, what=f"artifact {request.artifact!r}")
    path = folder / f"feeds-{index}.npz"
    np.savez(path, allow_pickle=False, **feeds)
    return path


def _question(request: BenchRequest, feeds: Path, share: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "op": "bench",
        "target": request.target,
        "path": str(request.path.absolute()),
        "signature": request.signature.to_json(),
        "feeds": str(feeds),
        **share,
    }


def _ask(
    question: Mapping[str, Any],
    folder: Path,
    what: str,
    worker: Sequence[str],
    timeout: float,
    threads: int,
) -> dict[str, Any]:
    """Runs one worker; the nonce proves that the answer belongs to this question."""
    nonce = secrets.token_hex(16)
    path = folder / "request.json"
    path.write_text(json.dumps({**question, "nonce": nonce}), encoding="utf-8")
    env = _environment(threads)
    done = run_bounded([*worker, str(path)], timeout=timeout, what=what, env=env)
    if done.code != 0:
        raise WorkerCrashed(
            f"{what}: the worker {done.death()}",
            hint="the file may be damaged, or this version of the runtime may have a fault",
        )
    try:
        answer = json.loads(done.stdout)
    except (ValueError, RecursionError) as error:
        raise WorkerCrashed(f"{what}: the worker's answer is not JSON") from error
    if not isinstance(answer, dict) or answer.get("nonce") != nonce:
        raise WorkerCrashed(f"{what}: the worker's answer does not carry its request's nonce")
    if "error" in answer:
        raise _as_error(answer["error"], what)
    return answer


def _environment(threads: int) -> dict[str, str]:
    """This process's environment, with edgekit importable and numpy's own threads bounded."""
    env = dict(os.environ)
    cores.as_it_comes(env)
    root = str(Path(edgekit.__file__).resolve().parents[1])
    env["PYTHONPATH"] = os.pathsep.join(p for p in (root, env.get("PYTHONPATH")) if p)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        env[name] = str(threads)
    return env


def _as_error(error: Mapping[str, Any], what: str) -> EdgekitError:
    kind = getattr(errors, str(error.get("kind")), None)
    message = f"{what}: {error.get('message')}"
    if isinstance(kind, type) and issubclass(kind, EdgekitError):
        return kind(message, hint=str(error.get("hint") or ""))
    return WorkerCrashed(message)


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


def _result(block: _Blocks, threads: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    request = block.request
    samples = [sample for answer in block.answers for sample in answer["samples_ms"]]
    n = len(samples)
    middle = percentile(samples, 50)
    spread = percentile([abs(sample - middle) for sample in samples], 50)
    return {
        "artifact": request.artifact,
        "target": request.target,
        "scheme": request.scheme,
        "delegate": request.delegate,
        "threads": threads,
        "load_ms": median(block.all("load_ms")),
        "first_ms": median(block.all("first_ms")),
        "latency_ms": {
            "p50": middle,
            "p90": percentile(samples, 90) if n >= 10 else None,
            "p99": percentile(samples, 99) if n >= 100 else None,
            "mad": spread,
            "n": n,
        },
        "samples_ms": samples,
        "peak_memory_mib": max(block.all("peak_bytes")) / _MIB,
        "added_memory_mib": median(block.all("added_bytes")) / _MIB,
        "bytes": request.bytes,
        "notes": _notes(block, samples, middle, spread, facts),
    }


def _notes(
    block: _Blocks,
    samples: Sequence[float],
    middle: float,
    spread: float,
    facts: Mapping[str, Any],
) -> list[str]:
    """What a reader must know before trusting the numbers; the samples stay as they are."""
    notes = [f"runtime: {block.answers[-1]['runtime_version']}"]
    cores, load = facts["usable_cores"], facts["load_average"]
    if load is not None and load > 0.5 * cores:
        notes.append(f"busy: load average {load} on {cores} cores before the run")
    if spread > _SPREAD * middle:
        notes.append(f"noisy: median absolute deviation {spread / middle:.0%} of the median")
    medians = block.medians()
    third = len(medians) // 3
    if third and median(medians[-third:]) > _DRIFT * median(medians[:third]):
        slower = median(medians[-third:]) / median(medians[:third])
        notes.append(f"slowed: the last rounds took {slower:.2f} times the first (heat or load)")
    share = median(block.all("cpu_share"))
    if share < _CPU_SHARE:
        notes.append(f"waiting: the calls had a core for only {share:.0%} of their time")
    if len(samples) < 10 * len(block.answers):
        notes.append(f"few samples: {len(samples)} calls in {len(block.answers)} rounds")
    if not all(block.all("memory_reset")):
        notes.append("memory: the kernel did not reset the high-water mark; added may be low")
    return notes


def _comparison(blocks: Mapping[str, _Blocks], a: str, b: str) -> dict[str, Any]:
    missing = [name for name in (a, b) if name not in blocks]
    if missing:
        raise UsageError(f"cannot compare {missing[0]!r}: it is not among the measured artifacts")
    base, other = blocks[a].medians(), blocks[b].medians()
    entry: dict[str, Any] = {"a": a, "b": b, "metric": "latency_p50"}
    if len(base) < MIN_RATIO_PAIRS:
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
