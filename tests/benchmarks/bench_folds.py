"""`bench_ptq.py`'s comparison with several calibration sets, on every picture of a small data set.

    python tests/benchmarks/bench_folds.py --out out/bench/folds.json --imagenet imagenet500.zip

Of 500 pictures 128 calibrate and 372 are left to judge with: one is 0.27 points, and which 128
were drawn moves an int8 model by as much. So each model is quantized ``--folds`` times, by edgekit
and by the vendors, with other calibration pictures each time (those of two folds may overlap a
little). A picture is scored by all artifacts that were not calibrated with it: its score is the
share of them that are right, or of several models the mean of the models' shares, as they see the
same pictures. Differences are paired over the pictures, with a 95 % interval. They tell of the mean
over such calibration sets; an artifact by itself may lie beside it (``folds`` has each).
``agreement`` is the same for having the float file's answer, right or wrong: quantization changes
some wrong answers to right ones by chance, which accuracy counts in its favour.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench_ptq import PEERS, Run, chosen
from ptq_models import MODELS
from ptq_report import versions, write

import edgekit
from edgekit import engines
from edgekit.bench.facts import host_facts
from edgekit.metrics import top1_correct
from edgekit.names import TARGETS
from edgekit.paired import paired_difference
from edgekit.targets import find

Document = dict[str, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]

DATA = ("imagenet", "cifar10")


@dataclass
class Scores:
    """How often each picture of a data set was answered right, by artifacts that may be asked.

    Or as float does, where that is what is added.
    """

    right: dict[int, float] = field(default_factory=dict)
    asked: dict[int, int] = field(default_factory=dict)
    folds: list[Document] = field(default_factory=list)

    def add(self, shift: int, samples: Sequence[int], correct: Sequence[float]) -> None:
        """Adds the answers of one artifact."""
        for sample, hit in zip(samples, correct, strict=True):
            self.right[int(sample)] = self.right.get(int(sample), 0.0) + float(hit)
            self.asked[int(sample)] = self.asked.get(int(sample), 0) + 1
        value = 100 * float(np.mean(np.asarray(correct)))
        self.folds.append({"shift": shift, "value": value, "n": len(samples)})

    def shares(self) -> dict[int, float]:
        """By picture, the share of artifacts that were right."""
        return {sample: self.right[sample] / self.asked[sample] for sample in sorted(self.right)}


def together(several: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """The mean of several models' shares, of the pictures that all have."""
    common = sorted(set.intersection(*(set(one) for one in several)))
    return {sample: float(np.mean([one[sample] for one in several])) for sample in common}


def rows_of(
    shares: Mapping[str, Mapping[int, float]],
    about: Document,
    same: Mapping[str, Mapping[int, float]] | None = None,
) -> list[Document]:
    """A row per engine: its value, and its difference from float and, edgekit's, from each vendor.

    Args:
        shares: by engine, by picture; ``float`` among them.
        about: what all rows have.
        same: the same of float's answers instead of right ones.
    """
    agreed = {} if same is None else {r["engine"]: r for r in rows_of(same, {})}
    pictures = list(shares["float"])
    arrays = {e: np.asarray([one[p] for p in pictures]) for e, one in shares.items()}
    rows = []
    for engine, mine in arrays.items():
        row: Document = {**about, "engine": engine, "value": 100 * float(mine.mean())}
        row["n"] = len(pictures)
        if engine != "float":
            row["vs_float"] = _difference(arrays["float"], mine)
        if engine == "edgekit":
            vendors = {e: a for e, a in arrays.items() if e in PEERS}
            row["vs"] = {e: _difference(a, mine) for e, a in vendors.items()}
            row["best_vendor"] = max(vendors, key=lambda e: vendors[e].mean(), default=None)
        if engine in agreed and engine != "float":
            row["agreement"] = agreed[engine]["value"]
            if engine == "edgekit":
                row["agreement_vs"] = agreed[engine]["vs"]
        rows.append(row)
    return rows


def _difference(reference: Floats, candidate: Floats) -> Document:
    found = paired_difference(reference, candidate)
    ends = [100 * found.low, 100 * found.high]
    return {
        "difference": 100 * found.difference,
        "ci95": ends,
        "discordant": found.discordant,
        "verdict": found.verdict,
    }


def main() -> int:
    """Quantizes, runs and scores; the report is written anew after every model of every fold."""
    options = _options()
    cache = options.cache or options.out.parent / "ptq-cache"
    run = Run(cache.resolve(), threads=options.threads, limit=None, calls=0)
    scores: dict[tuple[str, str, str, str], Scores] = {}
    failed: list[Document] = []
    for shift in range(options.folds):
        for model in options.models:
            data = getattr(options, MODELS[model].data)
            if data is None:
                raise SystemExit(f"{model} needs --{MODELS[model].data}")
            folder, facts = run.model(model, data.resolve(), shift)
            if reason := facts.get("unavailable") or facts.get("error"):
                raise SystemExit(f"{model}: {reason}")
            labels, samples = np.load(folder / "labels.npy"), np.load(folder / "samples.npy")
            for runtime in options.runtimes:
                for engine in chosen(runtime, options.engines):
                    print(f"fold {shift}: {model} {runtime} {engine}", flush=True)
                    row = run.row(model, runtime, engine, (folder, facts))
                    if row["status"] != "ok":
                        print(f"  failed: {row['reason']}", flush=True)
                        failed.append({**row, "shift": shift})
                        continue
                    with np.load(row["outputs"]) as answers:
                        first = answers[answers.files[0]]
                    flat = first.reshape(len(first), -1)
                    if engine == "float":
                        as_float = flat.argmax(axis=1)
                    for kind, answer in (("right", labels), ("same", as_float)):
                        mine = scores.setdefault((kind, model, runtime, engine), Scores())
                        mine.add(shift, samples, top1_correct(flat, answer))
            write(options.out, report(scores, failed, options))
    return 1 if failed else 0


def report(
    scores: Mapping[tuple[str, str, str, str], Scores],
    failed: Sequence[Document],
    options: argparse.Namespace,
) -> Document:
    """The report: of each model, of all models together, and what failed."""
    rows, pooled = [], []
    for runtime in options.runtimes:
        right, same = (_shares(scores, kind, runtime) for kind in ("right", "same"))
        for model, mine in right.items():
            made = rows_of(mine, {"model": model, "runtime": runtime}, same[model])
            rows += [
                {**r, "folds": scores["right", model, runtime, r["engine"]].folds} for r in made
            ]
        if len(right) > 1:
            about = {"models": list(right), "runtime": runtime}
            pooled += rows_of(_joined(right), about, _joined(same))
    packages = {p for e in options.engines if e in PEERS for p in engines.find(e).packages}
    packages |= {"torch", *(p for t in options.runtimes for p in find(t).packages)}
    return {
        "benchmark": "folds",
        "edgekit": edgekit.__version__,
        "facts": host_facts(),
        "packages": versions(*sorted(packages)),
        "settings": {e: PEERS[e] for e in options.engines if e in PEERS},
        "titles": {name: MODELS[name].title for name in options.models},
        "rows": rows,
        "pooled": pooled,
        "failed": list(failed),
    }


_Shares = dict[str, dict[str, dict[int, float]]]
"""By model, by engine, by picture."""


def _shares(scores: Mapping[tuple[str, str, str, str], Scores], kind: str, runtime: str) -> _Shares:
    """Without engines that failed in a fold: theirs would be shares of other calibration sets."""
    found: _Shares = {}
    for (what, model, where, engine), one in scores.items():
        whole = scores.get((kind, model, runtime, "float"))
        if (what, where) == (kind, runtime) and whole is not None and one.asked == whole.asked:
            found.setdefault(model, {})[engine] = one.shares()
    return found


def _joined(shares: _Shares) -> dict[str, dict[int, float]]:
    """All models together, by engine; of engines that all have answers of."""
    common = [e for e in next(iter(shares.values())) if all(e in mine for mine in shares.values())]
    return {engine: together([mine[engine] for mine in shares.values()]) for engine in common}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ["edgekit", *engines.available()]
    scored = [name for name, spec in MODELS.items() if spec.data in DATA]
    parser.add_argument("--out", type=Path, required=True, help="the report, JSON")
    parser.add_argument("--cache", type=Path, help="as bench_ptq.py's, and may be the same")
    for name in DATA:
        parser.add_argument(f"--{name}", type=Path, help="its data")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=scored,
        default=["efficientnet-lite1", "efficientnet-lite2"],
        help="of one data set",
    )
    parser.add_argument(
        "--runtimes", nargs="+", choices=TARGETS, default=[t for t in TARGETS if t != "coreml"]
    )
    parser.add_argument("--engines", nargs="+", choices=known, default=known)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads for making artifacts")
    options = parser.parse_args()
    if len({MODELS[m].data for m in options.models}) > 1:
        parser.error("--models are of several data sets; their pictures have nothing in common")
    return options


if __name__ == "__main__":
    sys.exit(main())
