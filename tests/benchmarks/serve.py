"""`edgekit serve` on loopback: what it adds, what it keeps up, and what it does when overloaded.

    python tests/benchmarks/serve.py --out out/bench/serve.json
    python tests/benchmarks/serve.py --only lone litserve --seconds 2 --rounds 6

All in one run: the same artifact, pixels in binary, a load generator in a process of its own whose
processor time is told apart (`serve_load.py`). Servers are measured in turn, round by round.

- *lone*: one request at a time, against the same session called in this process, in turn, with one
  thread and with as many as there are cores, which the server may take for a lone request; the
  median of what a request takes more than the faster of both, with its 95 % interval. Limit: 1 ms.
- *litserve*: closed loop at 1 to 64 requests; for each server the largest rate of answers whose p99
  is within ``--objective-ms``; edgekit's over LitServe's. Limit: 1.3.
- *ray*: the same beside `edgekit serve --engine ray`, the same handler in as many replicas as there
  are cores. It has no limit: it tells what Ray Serve's proxy costs on one machine.
- *adaptive*: edgekit as it comes against each of a grid of fixed settings (processes, threads,
  batches), at 1 to 64 requests; its rate over that of the best. Limit: 0.9; at one request, the
  best may not be shown to be better.
- *overload*: open loop at five times the largest rate: p99 of what is let in (limit: the objective
  and one batch), of what is refused (limit: 50 ms), rate of answers over the largest (limit: 0.9),
  growth of memory (limit: 5 %), and how long until a lone request is answered at once again
  (limit: 2 s). The generator and the carrying of the flood take the same cores: beside it stands
  the largest rate while as many requests go to a server that does nothing but refuse them
  (`serve_sink.py`), and the rate of answers over that.

The model is torchvision's MobileNetV2 at 224 x 224 with the checkpoint in this folder, exported
here as int8 with pixels as its input; ``--bundle`` and ``--artifact`` take another. `counts` is
false where others took part of a core: the figures need a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import serve_sides as sides
from serve_sides import Side, Subject

from edgekit import cores
from edgekit.bench.facts import host_facts, load_average
from edgekit.paired import MIN_RATIO_PAIRS, paired_ratio
from edgekit.runtime.bundle import Bundle
from edgekit.serve.oip import datatype_of

HERE = Path(__file__).parent
PARTS = ("lone", "litserve", "ray", "adaptive", "overload")
CONCURRENCY = (1, 2, 4, 8, 16, 32, 64)
ADDED_MS, OVER_LITSERVE, OF_BEST, REFUSED_MS, GOODPUT, GROWTH, RECOVERY_S = (
    1.0, 1.3, 0.9, 50.0, 0.9, 0.05, 2.0,
)  # fmt: skip
QUIET = 0.2
"""Load average, as a share of the cores, up to which figures count."""


def exported(folder: Path) -> Path:
    """The model of the head of this file, as a bundle."""
    from export_time import WEIGHTS, prepare

    files = prepare(folder, 16)
    for path in files.values():
        with np.load(path) as stored:
            pictures = 128 + 60 * stored["x"][:, 0].transpose(0, 2, 3, 1)
        np.savez(path, x=pictures.clip(0, 255).astype(np.uint8))
    command = [sys.executable, "-m", "edgekit.cli.main", "export", "torchvision:mobilenet_v2"]
    command += ["--weights", str(WEIGHTS), "--scheme", "w8a8", "--no-bench"]
    command += ["--without", "rounding", "--target", "openvino", "--io", "uint8"]
    command += ["--calib", str(files["calib"]), "--eval", str(files["eval"])]
    env = {**os.environ, "EDGEKIT_STORE": str(folder / "store")}
    subprocess.run([*command, "-o", str(folder / "bundle")], env=env, check=True)
    return folder / "bundle"


def subject_of(path: Path, artifact: str | None) -> Subject:
    """One artifact, the one that takes pixels if there is one, and an input for it."""
    with Bundle.open(path) as bundle:
        found = [a for a in bundle.artifacts if artifact in (None, a.id) and a.target == "openvino"]
        if artifact is not None:
            found = [bundle.artifact(artifact)]
        chosen = sorted(found, key=lambda a: a.io != "uint8")[0]
        feeds, _ = bundle.golden(chosen.io)
        spec = chosen.signature.inputs[0]
        value = np.ascontiguousarray(feeds[spec.name][:1])
        kind = datatype_of(spec.dtype)
        return Subject(path, chosen.id, spec.name, value, kind, cores.usable())


class Bench:
    """One run: its settings, and the way to the load generator."""

    def __init__(self, subject: Subject, options: argparse.Namespace, folder: Path) -> None:
        self.subject = subject
        self.seconds: float = options.seconds
        self.rounds: int = options.rounds
        self.objective: float = options.objective_ms
        self.concurrency: Sequence[int] = options.concurrency
        self._folder = folder

    def _command(self, side: Side, *how: object) -> list[str]:
        path = self._folder / f"{side.name}.request"
        path.write_bytes(side.request)
        command = [sys.executable, HERE / "serve_load.py", side.port, path, *how]
        return [str(word) for word in command]

    @contextlib.contextmanager
    def flood(self, side: Side, rate: float, seconds: float) -> Iterator[None]:
        """Requests to a server at a rate, whatever comes of them, while something else is done."""
        command = self._command(side, "--open", rate, "--seconds", seconds)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.kill()
            process.wait()

    def load(self, side: Side, *how: object, seconds: float | None = None) -> dict[str, Any]:
        """What the load generator found, summed up, with the processor time of both sides."""
        took = self.seconds if seconds is None else seconds
        command = self._command(side, "--seconds", took, *how)
        before = side.cpu_s()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        by_status = {k: np.array(v) for k, v in found.pop("latency_ms").items()}
        ok = by_status.get("200", np.array([]))
        # What ends after the time is over is not part of the rate.
        rate = ok.size / max(found["seconds"], found["last_ok_s"])
        return {
            **found,
            "codes": {k: int(v.size) for k, v in by_status.items()},
            "rate": float(rate),
            "ok_ms": _percentiles(ok),
            "refused_ms": _percentiles(by_status.get("429", np.array([]))),
            "server_cpu_s": side.cpu_s() - before,
        }


def _percentiles(values: np.ndarray[Any, Any]) -> dict[str, float] | None:
    if not values.size:
        return None
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 90, 99, 100)}


def lone(bench: Bench) -> dict[str, Any]:
    """What a lone request takes more than a call in this process."""
    subject = bench.subject
    with Bundle.open(subject.bundle) as bundle, sides.edgekit(subject) as side:
        artifact, feeds = bundle.artifact(subject.artifact), {subject.name: subject.value}
        threads = sorted({1, subject.cores})
        sessions = {n: bundle.session(artifact, threads=n) for n in threads}
        by_threads: dict[int, list[float]] = {n: [] for n in threads}
        served = []
        for _ in range(max(bench.rounds, MIN_RATIO_PAIRS)):
            for n, session in sessions.items():
                until = time.perf_counter() + bench.seconds / 2
                took = []
                while time.perf_counter() < until:
                    start = time.perf_counter()
                    session.run(feeds)
                    took.append(1e3 * (time.perf_counter() - start))
                by_threads[n].append(float(np.median(took)))
            found = bench.load(side, "--closed", 1, seconds=bench.seconds / 2)
            served.append(found["ok_ms"]["p50"])
        for session in sessions.values():
            session.close()
    fastest = min(threads, key=lambda n: float(np.median(by_threads[n])))
    direct = by_threads[fastest]
    added = np.sort(np.array(served) - np.array(direct))
    ratio = paired_ratio(direct, served)
    # The interval of a median from its order statistics, as `paired_ratio` has it.
    low, high = (
        float(np.median(direct)) * (ratio.low - 1),
        float(np.median(direct)) * (ratio.high - 1),
    )
    return {
        "direct_ms": by_threads,
        "direct_threads": fastest,
        "served_ms": served,
        "added_ms": float(np.median(added)),
        "added_ms_ci95": [low, high],
        "limit_ms": ADDED_MS,
        "passed": bool(np.median(added) <= ADDED_MS),
    }


def against_litserve(bench: Bench) -> dict[str, Any]:
    """See the head of this file."""
    return against(bench, "litserve", OVER_LITSERVE)


def against_ray(bench: Bench) -> dict[str, Any]:
    """See the head of this file."""
    return against(bench, "ray", None)


def against(bench: Bench, peer: str, limit: float | None) -> dict[str, Any]:
    """Rates of answers whose p99 is within the objective, in turn; ours over the peer's."""
    rows: dict[str, list[dict[str, Any]]] = {"edgekit": [], peer: []}
    best: dict[str, list[float]] = {"edgekit": [], peer: []}
    with contextlib.ExitStack() as stack:
        running = {name: stack.enter_context(sides.SIDES[name](bench.subject)) for name in rows}
        for _ in range(max(bench.rounds, MIN_RATIO_PAIRS)):
            for name, side in running.items():
                found = [
                    {"concurrency": c, **bench.load(side, "--closed", c)} for c in bench.concurrency
                ]
                rows[name] += found
                answered = [f for f in found if f["ok_ms"] is not None]
                within = [f["rate"] for f in answered if f["ok_ms"]["p99"] <= bench.objective]
                best[name].append(max(within, default=0.0))
    # Costs, as the helper compares them: seconds per answer.
    if min(best["edgekit"] + best[peer]) <= 0:
        reason = "no rate is within p99"
        return {"rates": best, "rows": rows, "limit": limit, "passed": None, "reason": reason}
    ratio = paired_ratio([1 / r for r in best["edgekit"]], [1 / r for r in best[peer]])
    return {
        "objective_ms": bench.objective,
        "rates": best,
        "ratio": ratio.ratio,
        "ratio_ci95": [ratio.low, ratio.high],
        "limit": limit,
        "passed": None if limit is None else ratio.ratio >= limit,
        "rows": rows,
    }


def grid(cores_here: int) -> dict[str, list[object]]:
    """Fixed settings: processes x threads x batches."""
    found: dict[str, list[object]] = {}
    for workers, threads in sorted({(1, 1), (1, cores_here), (cores_here, 1)}):
        for batch in (1, 4, 8):
            name = f"workers {workers}, threads {threads}, batch {batch}"
            found[name] = ["--workers", workers, "--threads", threads, "--batch", batch]
    return found


def adaptive(bench: Bench) -> dict[str, Any]:
    """Edgekit as it comes against the best of a grid, at every concurrency."""
    settings: dict[str, list[object]] = {"adaptive": [], **grid(bench.subject.cores)}
    # Nobody is refused: a closed loop asks again at once, which would be another measurement.
    settings = {name: ["--queue", 1024, *options] for name, options in settings.items()}
    costs: dict[int, dict[str, list[float]]] = {
        c: {name: [] for name in settings} for c in bench.concurrency
    }
    with contextlib.ExitStack() as stack:
        running = {
            name: stack.enter_context(sides.edgekit(bench.subject, *options, name=f"side-{i}"))
            for i, (name, options) in enumerate(settings.items())
        }
        for _ in range(max(bench.rounds, MIN_RATIO_PAIRS)):
            for c in bench.concurrency:
                for name, side in running.items():
                    costs[c][name].append(1 / bench.load(side, "--closed", c)["rate"])
    rows = []
    for c, found in costs.items():
        best = min(grid(bench.subject.cores), key=lambda name: float(np.median(found[name])))
        ratio = paired_ratio(found["adaptive"], found[best])
        passed = ratio.ratio >= OF_BEST and (c > 1 or ratio.verdict != "better")
        rows.append(
            {
                "concurrency": c,
                "best": best,
                "of_best": ratio.ratio,
                "ci95": [ratio.low, ratio.high],
                "passed": passed,
                "rates": {name: 1 / float(np.median(v)) for name, v in found.items()},
            }
        )
    return {"limit": OF_BEST, "rows": rows, "passed": all(row["passed"] for row in rows)}


def overload(bench: Bench) -> dict[str, Any]:
    """Five times what it can do, open loop, and what comes after."""
    objective = ["--objective-ms", bench.objective]
    with sides.edgekit(bench.subject, *objective) as side:
        rates = {c: bench.load(side, "--closed", c)["rate"] for c in bench.concurrency}
        best = max(rates, key=lambda c: rates[c])
        peak = rates[best]
        alone = bench.load(side, "--closed", 1)
        rate, seconds = 5 * peak, max(4 * bench.seconds, 4.0)
        bench.load(side, "--open", rate, seconds=1.0)
        before = side.rss_mib()
        found = bench.load(side, "--open", rate, seconds=seconds)
        after = side.rss_mib()
        recovered = _recovery(bench, side, alone["ok_ms"]["p50"])
        beside = _beside_flood(bench, side, best, rate, seconds)
    batch_ms = 8 * alone["ok_ms"]["p50"]
    refused = found["refused_ms"]
    checks = {
        "p99_ms": found["ok_ms"]["p99"] <= bench.objective + batch_ms,
        "refused_ms": refused is not None and refused["p99"] < REFUSED_MS,
        "goodput": found["rate"] / peak >= GOODPUT,
        "memory": after / before - 1 <= GROWTH,
        "recovery_s": recovered <= RECOVERY_S,
        "accounted": found["unanswered"] == 0 and set(found["codes"]) <= {"200", "429"},
    }
    return {
        "peak_rate": peak, "sent_rate": rate, "goodput": found["rate"] / peak,
        "peak_beside_flood": beside, "goodput_of_that": found["rate"] / beside,
        "rss_mib": [before, after], "recovery_s": recovered, "found": found, "checks": checks,
        "passed": all(checks.values()),
    }  # fmt: skip


def _beside_flood(bench: Bench, side: Side, concurrency: int, rate: float, seconds: float) -> float:
    """The rate at a concurrency while a flood goes to a server that only refuses."""
    with sides.sink(side.request) as sink, bench.flood(sink, rate, seconds + 4):
        # Until it flows.
        time.sleep(2)
        return float(bench.load(side, "--closed", concurrency, seconds=seconds)["rate"])


def _recovery(bench: Bench, side: Side, alone_ms: float) -> float:
    """Seconds from the end of an overload until lone requests take what they took before."""
    start = time.perf_counter()
    while time.perf_counter() - start < 30:
        begun = time.perf_counter() - start
        found = bench.load(side, "--closed", 1, seconds=0.2)
        if set(found["codes"]) == {"200"} and found["ok_ms"]["p50"] <= 2 * alone_ms:
            return begun
    return float("inf")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--artifact")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--objective-ms", type=float, default=100.0)
    parser.add_argument("--concurrency", type=int, nargs="+", default=CONCURRENCY)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    busy = load_average()
    parts = {
        "lone": lone, "litserve": against_litserve, "ray": against_ray, "adaptive": adaptive,
        "overload": overload,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subject = subject_of(options.bundle or exported(folder), options.artifact)
        bench = Bench(subject, options, folder)
        report: dict[str, Any] = {
            "artifact": subject.artifact, "payload_bytes": subject.value.nbytes,
            "cores": subject.cores, "facts": host_facts(), "load_before": busy,
            "peers": {"litserve": sides.PEERS["litserve"]},
        }  # fmt: skip
        for part in options.only:
            print(f"{part} ...", file=sys.stderr, flush=True)
            report[part] = parts[part](bench)
            shown = {k: v for k, v in report[part].items() if k not in ("rows", "found")}
            print(json.dumps(shown), file=sys.stderr, flush=True)
    report["counts"] = busy is not None and busy <= QUIET * subject.cores
    judged = [part for part in options.only if report[part].get("limit", 0) is not None]
    report["passed"] = all(report[part]["passed"] for part in judged) if judged else None
    text = json.dumps(report, indent=2, default=str) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text, encoding="utf-8")
    return 0 if report["passed"] or not judged else 1


if __name__ == "__main__":
    sys.exit(main())
