"""Post-training quantization: edgekit beside the vendors' own quantizers, in the same runtimes.

    python tests/benchmarks/bench_ptq.py --out out/bench/ptq.json --imagenet imagenet500.zip \
        --cifar10 cifar10.zip --sst2 sst2/
    python tests/benchmarks/ptq_table.py out/bench/ptq.json

Models x runtimes x (float, edgekit, every engine that serves the runtime). All start from the same
canonical float program and the same calibration samples; engines are set as ``peers.toml`` says.
Accuracy is paired over the evaluation samples, with a 95 % interval: each artifact against the
float one, and edgekit against the vendor that came out best; and once more over the samples of all
models of one data set together, as 372 pictures alone leave an interval of a point either way.
Latency: one call, one thread, all
artifacts of a runtime in turn in one run (`edgekit.bench.measure`). ``made_s`` and
``made_peak_mib`` are of a fresh process from the float program to the artifact, the vendors'
libraries and edgekit's converters included; of edgekit they are the plan's and the conversion's
together.

Runtimes that this system has none of (Core ML off macOS) are emulated, on ``--emulated-limit``
samples, and not timed. ``one_plan`` in the report says how far the accuracies of one plan lie apart
over the runtimes. ``--merge REPORT`` takes the rows that are not measured now from another report;
every row names its run.

Every step is kept in ``--cache`` under what it depends on; a run that was interrupted goes on.
A model without its data or weights is left out, and the report says why.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ptq_judge import judge, pool, with_latency
from ptq_models import MODELS, Spec
from ptq_report import merged, report, versions, write
from ptq_table import one_plan

import edgekit
from edgekit import engines
from edgekit.artifact import fingerprint, sha256_of
from edgekit.bench.measure import BenchRequest, bench
from edgekit.errors import EdgekitError
from edgekit.names import TARGETS
from edgekit.runtime.session import unavailable
from edgekit.signature import Signature
from edgekit.targets import find, worker

HERE = Path(__file__).parent
PEERS: dict[str, dict[str, Any]] = tomllib.loads((HERE / "peers.toml").read_text())
DATA = ("imagenet", "cifar10", "sst2")
ROUNDS = 10
STEP_TIMEOUT_S = 3 * 3600

Document = dict[str, Any]


class Run:
    """One run of the benchmark: its options, and what it does with the cache.

    Args:
        cache: folder of finished steps.
        threads: CPU threads for making artifacts.
        limit: evaluation samples at most, None for all.
        calls: timed calls per artifact.
        emulated: evaluation samples at most where a runtime is emulated.
    """

    def __init__(
        self,
        cache: Path,
        *,
        threads: int,
        limit: int | None,
        calls: int,
        emulated: int | None = None,
    ) -> None:
        self.cache, self.threads, self.calls = cache, threads, calls
        self.limit, self.emulated = limit, emulated

    def step(self, key: str, request: Document) -> tuple[Path, Document]:
        """A step of ``ptq_cell.py``: its folder and result, from the cache where it is there.

        What failed is not kept: a vendor's crash may have been this machine's.
        """
        folder = self.cache / f"{request['step']}-{key[:24]}"
        if (folder / "done.json").exists():
            return folder, json.loads((folder / "done.json").read_text())
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        path = folder / "request.json"
        request = {**request, "folder": str(folder.resolve()), "threads": self.threads}
        path.write_text(json.dumps(request, indent=1))
        result = self._spawn(path)
        if "error" not in result and "unavailable" not in result:
            write(folder / "done.json", result)
        return folder, result

    def _spawn(self, request: Path) -> Document:
        count = str(self.threads)
        env = {**os.environ, "OMP_NUM_THREADS": count, "PYTHONWARNINGS": "ignore"}
        log = request.with_name("log.txt")
        with log.open("wb") as sink:
            try:
                code = subprocess.run(
                    [sys.executable, str(HERE / "ptq_cell.py"), str(request)],
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    env=env,
                    timeout=STEP_TIMEOUT_S,
                ).returncode
            except subprocess.TimeoutExpired:
                return {"error": f"did not finish in {STEP_TIMEOUT_S} s"}
        if code != 0:
            lines = log.read_text(errors="replace").strip().splitlines() or ["no message"]
            return {"error": f"exited with {code}: {lines[-1][:300]}"}
        loaded: Document = json.loads(request.with_name("result.json").read_text())
        return loaded

    def model(self, name: str, data: Path, shift: int = 0) -> tuple[Path, Document]:
        """A model made ready: its folder and facts. ``shift`` is `ptq_models.Spec.prepare`'s."""
        about = sha256_of(data) if data.is_file() else _tree(data)
        key = fingerprint(
            step="prepare",
            model=name,
            data=about,
            shift=shift,
            code=sha256_of(HERE / "ptq_models.py"),
            weights=_checkpoint_digest(name),
            canonical=_code("compress/graph.py", "compress/_*.py", "model"),
            versions=versions("torch", "transformers"),
        )
        request = {"step": "prepare", "model": name, "data": str(data), "shift": shift}
        return self.step(key, request)

    def row(self, name: str, runtime: str, engine: str, ready: tuple[Path, Document]) -> Document:
        """Makes one artifact, runs it over the evaluation samples, and scores nothing yet."""
        folder, facts = ready
        row: Document = {"model": name, "runtime": runtime, "engine": engine, "status": "ok"}
        if unavailable(runtime) is not None:
            row["emulated"] = True
        request = {
            "step": "artifact",
            "runtime": runtime,
            "engine": engine,
            "signature": facts["signature"],
            "program": str(folder / "program.pt2"),
            "calib": str(folder / "calib.npz"),
        }
        # Only what has a part in it: a change of edgekit's quantizer leaves the vendors' rows.
        parts = ["compress/render.py", *_target_files(runtime)]
        packages = {**versions(*find(runtime).packages), **versions("torch", "torchao")}
        made: Document = {"seconds": 0.0, "peak_memory_mib": 0.0}
        plan_digest = None
        if engine == "edgekit":
            plan_key = fingerprint(
                step="plan",
                program=facts["digest"],
                code=_code("compress"),
                versions=versions("torch", "torchao"),
            )
            planned, made = self.step(plan_key, {**request, "step": "plan"})
            if "error" in made:
                return {**row, "status": "failed", "reason": made["error"]}
            # It names the digest of its program, which need not be the float one.
            plan_digest = row["plan"] = sha256_of(planned / "plan.json")
            row["plan_s"], row["plan_peak_mib"] = made["seconds"], made["peak_memory_mib"]
            request |= {"program": str(planned / "program.pt2"), "plan": str(planned / "plan.json")}
        elif engine != "float":
            own = f"engines/{engine.replace('-', '_')}.py"
            parts += ["engines/_common.py", "engines/_layers.py", own]
            packages |= versions(*engines.find(engine).packages)
            row["settings"] = request["settings"] = PEERS[engine]
        step_key = fingerprint(
            step="artifact",
            program=facts["digest"],
            runtime=runtime,
            engine=engine,
            plan=plan_digest,
            settings=row.get("settings"),
            code=_code(*parts),
            versions=packages,
        )
        place, result = self.step(step_key, request)
        if "error" in result:
            return {**row, "status": "failed", "reason": result["error"]}
        row |= {
            "bytes": result["bytes"],
            "made_s": result["seconds"] + made["seconds"],
            "made_peak_mib": max(result["peak_memory_mib"], made["peak_memory_mib"]),
            "path": str(place / result["files"][0]),
        }
        return self._infer(row, place, folder, facts)

    def _infer(self, row: Document, place: Path, folder: Path, facts: Document) -> Document:
        """Answers over the evaluation samples in ``outputs-N.npz``, by the artifact's runtime."""
        n = min(facts["n"], self.limit or facts["n"])
        if row.get("emulated"):
            n = min(n, self.emulated or n)
        outputs, told = place / f"outputs-{n}.npz", place / f"outputs-{n}.json"
        if not told.exists():
            feeds = folder / "eval.npz"
            if n < facts["n"]:
                feeds = folder / f"eval-{n}.npz"
                with np.load(folder / "eval.npz") as data:
                    np.savez(feeds, **{k: data[k][:n] for k in data.files})
            tasks = [
                {
                    "op": "infer",
                    "artifact": row["path"],
                    "signature": facts["signature"],
                    "feeds": str(feeds),
                    "outputs": str(outputs),
                    "repeats": 5,
                },
                {"op": "inspect", "artifact": row["path"]},
            ]
            try:
                answered, seen = worker.run(row["runtime"], tasks, timeout=STEP_TIMEOUT_S)
            except EdgekitError as error:
                return {**row, "status": "failed", "reason": error.message}
            if "error" in answered:
                return {**row, "status": "failed", "reason": answered["error"].message}
            placement = None if "error" in seen else seen["placement"]
            write(
                told,
                {
                    "distinct": answered["distinct"],
                    "runtime": answered["runtime"],
                    "placement": placement,
                },
            )
        found = json.loads(told.read_text())
        placement = found["placement"] or {}
        return row | {
            "outputs": str(outputs),
            "runtime_version": found["runtime"],
            "repeatable": found["distinct"] == 1,
            "float_ops": placement.get("float_ops"),
            "first_fallback": placement.get("first_fallback"),
        }

    def latency(
        self, rows: Sequence[Document], ready: tuple[Path, Document], *, fresh: bool = False
    ) -> Document:
        """Latency of all artifacts of one runtime, in turn, one thread."""
        folder, facts = ready
        digests = {r["engine"]: sha256_of(Path(r["path"])) for r in rows}
        key = fingerprint(
            step="latency",
            artifacts=digests,
            calls=self.calls,
            rounds=ROUNDS,
            code=_code("bench", "runtime"),
        )
        kept = self.cache / f"latency-{key[:24]}.json"
        if fresh or not kept.exists():
            with np.load(folder / "eval.npz") as data:
                feeds = {name: data[name][0] for name in data.files}
            signature = Signature.from_json(facts["signature"])
            pairs = [("float", r["engine"]) for r in rows if r["engine"] != "float"]
            pairs += [(r["engine"], "edgekit") for r in rows if r["engine"] in PEERS]
            known = {r["engine"] for r in rows}
            document = bench(
                [
                    BenchRequest(
                        artifact=r["engine"],
                        target=r["runtime"],
                        path=Path(r["path"]),
                        signature=signature,
                        bytes=r["bytes"],
                        feeds=feeds,
                    )
                    for r in rows
                ],
                threads=1,
                runs=self.calls,
                max_seconds=30.0,
                rounds=ROUNDS,
                compare=[p for p in pairs if set(p) <= known],
            )
            for result in document["results"]:
                del result["samples_ms"]
            write(kept, document)
        loaded: Document = json.loads(kept.read_text())
        return loaded


def _checkpoint_digest(name: str) -> str | None:
    path = HERE / "checkpoints" / f"cifar10_{name.replace('-', '_')}.safetensors"
    return sha256_of(path) if path.exists() else None


def _tree(folder: Path) -> list[str]:
    return [sha256_of(f) for f in sorted(folder.rglob("*")) if f.is_file()]


def _target_files(runtime: str) -> list[str]:
    """A target's own file, its private ones, and those that no target has for itself."""
    stems = {name: name.replace("-", "_").removesuffix("runtime") for name in TARGETS}
    others = tuple(f"_{stem}" for name, stem in stems.items() if name != runtime)
    private = sorted(Path(edgekit.__file__).parent.glob("targets/_*.py"))
    own = [f"targets/{f.name}" for f in private if not f.name.startswith(others)]
    return [*own, f"targets/{runtime.replace('-', '_')}.py"]


def _code(*parts: str) -> str:
    """sha256 of edgekit's files and folders that these patterns name."""
    sha = hashlib.sha256()
    root = Path(edgekit.__file__).parent
    for place in (p for part in parts for p in sorted(root.glob(part))):
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            sha.update(file.read_bytes())
    return sha.hexdigest()


def chosen(runtime: str, wanted: Sequence[str]) -> list[str]:
    """float and edgekit first, then the engines that serve a runtime."""
    serving = [e for e in engines.available() if runtime in engines.find(e).targets]
    return ["float", *(e for e in ["edgekit", *serving] if e in wanted)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ["edgekit", *engines.available()]
    parser.add_argument("--out", type=Path, required=True, help="the report, JSON")
    parser.add_argument("--cache", type=Path, default=None, help="default: ptq-cache beside --out")
    for name in DATA:
        variable = f"EDGEKIT_BENCH_{name.upper()}"
        value = os.environ.get(variable)
        parser.add_argument(
            f"--{name}", type=Path, default=value, help=f"its data; default: ${variable}"
        )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--runtimes", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument(
        "--engines", nargs="+", choices=known, default=known, help="beside float, always made"
    )
    parser.add_argument("--limit", type=int, default=None, help="evaluation samples at most")
    parser.add_argument(
        "--emulated-limit",
        type=int,
        default=200,
        help="the same where a runtime is emulated (Core ML off macOS)",
    )
    parser.add_argument(
        "--merge",
        type=Path,
        metavar="REPORT",
        help="a report to take the rows from of all models and runtimes not measured now",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads for making artifacts")
    parser.add_argument("--calls", type=int, default=300, help="timed calls per artifact")
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument(
        "--fresh-latency", action="store_true", help="measure again what was measured on a busy day"
    )
    return parser.parse_args()


def main() -> int:
    """Runs what was asked for; the report is written anew after every runtime of every model."""
    options = _options()
    cache = options.cache or options.out.parent / "ptq-cache"
    run = Run(
        cache.resolve(),
        threads=options.threads,
        limit=options.limit,
        calls=options.calls,
        emulated=options.emulated_limit,
    )
    before = json.loads(options.merge.read_text()) if options.merge else None

    def save() -> Document:
        document = report(rows, pooled, skipped, PEERS, run.threads)
        document = document if before is None else merged(before, document)
        write(options.out, document)
        return document

    rows: list[Document] = []
    pooled: list[Document] = []
    skipped: list[Document] = []
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for name in (name for name in MODELS if name in options.models):
        spec: Spec = MODELS[name]
        data = getattr(options, spec.data)
        ready = None if data is None else run.model(name, data.resolve())
        reason = f"no --{spec.data}" if ready is None else ready[1].get("unavailable")
        reason = reason or (ready[1].get("error") if ready else None)
        if ready is None or reason:
            skipped.append({"model": name, "reason": reason})
            print(f"{name}: left out: {reason}", flush=True)
            continue
        labels = np.load(ready[0] / "labels.npy")
        for runtime in options.runtimes:
            made = []
            for engine in chosen(runtime, options.engines):
                print(f"{name} {runtime} {engine}", flush=True)
                made.append(run.row(name, runtime, engine, ready))
                if made[-1]["status"] != "ok":
                    print(f"  failed: {made[-1]['reason']}", flush=True)
            judged = judge(made, labels if labels.size else None)
            alive = [r for r in judged if r["status"] == "ok"]
            if alive and not options.no_latency and unavailable(runtime) is None:
                judged = with_latency(
                    judged, run.latency(alive, ready, fresh=options.fresh_latency)
                )
            rows += judged
            if labels.size:
                groups.setdefault((spec.data, runtime), {})[name] = (judged, labels)
            pooled = [row for group in groups.values() for row in pool(group)]
            save()
    print(one_plan(save()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
