"""Peak memory as estimated and as measured on this machine, for the conformance models and others.

    python tests/benchmarks/estimate_memory.py --out memory.json
    python tests/benchmarks/estimate_memory.py --fit

Each artifact is loaded and run in processes of its own (`edgekit bench`), which tell the peak of
all their memory. ``--fit`` sets the factors of `edgekit/bench/estimate_memory.json` by what it
measured of networks that are *not* the conformance suite's, and the suite is the judge.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
import models as conformance

from edgekit._torchvision import torchvision
from edgekit.bench import estimate as product
from edgekit.bench.facts import host_facts
from edgekit.bench.measure import BenchRequest, bench
from edgekit.bench.subject import subject_of
from edgekit.device import load, plan_targets
from edgekit.errors import EdgekitError
from edgekit.export.converted import artifacts_of
from edgekit.model import Model
from edgekit.runtime.session import unavailable

FILE = Path(product.__file__).with_name("estimate_memory.json")
TARGETS = ("tflite", "openvino", "onnxruntime")
SCHEMES = ("fp32", "w8a8")
_MIB = 2**20
_RELATIVE = 0.2


def _vision(name: str, side: int = 224) -> Model:
    torch.manual_seed(0)
    net = getattr(torchvision().models, name)(weights=None).eval()
    return Model.from_module(net, {"x": torch.randn(1, 3, side, side)}, name=name)


def _learnt() -> dict[str, Callable[[], Model]]:
    """Networks that the factors are set by."""
    return {
        "mobilenet_v2@224": lambda: _vision("mobilenet_v2"),
        "mobilenet_v2@448": lambda: _vision("mobilenet_v2", 448),
        "resnet18@224": lambda: _vision("resnet18"),
    }


def _suite() -> dict[str, Callable[[], Model]]:
    """The conformance suite's, untrained: weights take the same room."""

    def build(name: str) -> Model:
        torch.manual_seed(0)
        kind = conformance.KINDS[name]
        inputs, _ = kind.data()
        examples = {key: value[:1] for key, value in inputs.items()}
        return Model.from_module(kind.build().eval(), examples, name=name)

    return {name: lambda n=name: build(n) for name in conformance.KINDS}


def measured(
    models: Mapping[str, Callable[[], Model]], targets: Sequence[str], kept: Path | None
) -> list[dict[str, Any]]:
    """One row per model, target and scheme that can be converted here.

    Rows in the file ``kept`` are taken from there, new ones are added to it.
    """
    old = (
        [json.loads(line) for line in kept.read_text().splitlines()]
        if kept and kept.is_file()
        else []
    )
    done = {(r["model"], r["target"], r["scheme"]): r for r in old}
    rows = []
    for name, build in models.items():
        wanted = [(t, s) for t in targets for s in SCHEMES if unavailable(t) is None]
        rows += [done[name, t, s] for t, s in wanted if (name, t, s) in done]
        missing = [(t, s) for t, s in wanted if (name, t, s) not in done]
        for row in _rows(name, build(), missing) if missing else ():
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
            if kept is not None:
                with kept.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    return rows


def _rows(name: str, model: Model, wanted: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    subject, device = subject_of(model), load("host")
    pairs = zip(model.signature.inputs, model.example_inputs(), strict=True)
    feeds = {spec.name: tensor.numpy() for spec, tensor in pairs}
    for target, scheme in wanted:
        (job,) = plan_targets([device], [target], [scheme])
        try:
            yield _row(name, model, subject, job, feeds)
        except EdgekitError as error:
            print(f"{name} {target} {scheme}: {error.message}", file=sys.stderr)


def _row(name: str, model: Model, subject: Any, job: Any, feeds: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="edgekit-memory-") as scratch:
        (path,) = artifacts_of([model], job, feeds, Path(scratch))
        request = BenchRequest(
            "one", job.target, path, model.signature, job.scheme, job.delegate, None, feeds
        )
        document = bench([request], threads=1, runs=20, max_seconds=2.0, rounds=2)
    result = document["results"][0]
    bytes_ = 1 if job.scheme == "w8a8" else 4
    return {
        "model": name,
        "target": job.target,
        "scheme": job.scheme,
        "peak_mib": result["peak_memory_mib"],
        "added_mib": result["added_memory_mib"],
        "weights_mib": subject.stored * bytes_ / _MIB,
        "arena_mib": subject.live * bytes_ / _MIB,
    }


def fitted(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Factors by target: what the runtime takes, and how often it holds weights and arena."""
    targets: dict[str, Any] = {}
    for target in TARGETS:
        mine = [r for r in rows if r["target"] == target]
        if not mine:
            continue
        # What the process held before it loaded anything is known; the rest is shared out.
        base = float(np.median([r["peak_mib"] - r["added_mib"] for r in mine]))
        table, added = [], []
        for r in mine:
            integer = r["scheme"] == "w8a8"
            sizes = [r["weights_mib"], r["arena_mib"]]
            table.append([1.0, *([0, 0] if integer else sizes), *(sizes if integer else [0, 0])])
            added.append(r["added_mib"])
        weight = 1 / np.array([r["peak_mib"] for r in mine])
        found, _ = nnls(np.array(table) * weight[:, None], np.array(added) * weight)
        fixed, fw, fa, iw, ia = (round(float(v), 3) for v in found)
        targets[target] = {
            "base_mib": round(base + fixed, 1),
            "float": {"weights": fw, "arena": fa},
            "int8": {"weights": iw, "arena": ia},
            "relative": _RELATIVE,
            "basis": "measured on x86-64 Linux",
        }
    return {"schema": "edgekit.memory/1", "facts": host_facts(), "targets": targets}


def judged(rows: Sequence[Mapping[str, Any]], file: Mapping[str, Any]) -> list[dict[str, Any]]:
    out = []
    for r in rows:
        known = file["targets"].get(r["target"])
        if known is None:
            continue
        row = known["int8" if r["scheme"] == "w8a8" else "float"]
        value = (
            known["base_mib"] + row["weights"] * r["weights_mib"] + row["arena"] * r["arena_mib"]
        )
        out.append(
            {**r, "estimate_mib": round(value, 1), "off": round(value / r["peak_mib"] - 1, 4)}
        )
    return out


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="set the factors that ship")
    parser.add_argument("--target", action="append", choices=TARGETS)
    parser.add_argument("--rows", type=Path, help="a file of rows, to go on where it ended")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    targets = args.target or TARGETS
    if args.fit:
        FILE.write_text(
            json.dumps(fitted(measured(_learnt(), targets, args.rows)), indent=1) + "\n"
        )
    rows = judged(measured(_suite(), targets, args.rows), json.loads(FILE.read_text()))
    for r in rows:
        what = f"{r['model']:16} {r['target']:14} {r['scheme']:6}"
        figures = f"{r['peak_mib']:8.1f} MiB, estimate {r['estimate_mib']:8.1f} ({r['off']:+.1%})"
        print(what + figures)
    inside = sum(abs(r["off"]) <= _RELATIVE for r in rows)
    print(f"{inside} of {len(rows)} within {_RELATIVE:.0%}")
    if args.out is not None:
        args.out.write_text(json.dumps({"facts": host_facts(), "rows": rows}, indent=2) + "\n")
    return 0 if inside == len(rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
