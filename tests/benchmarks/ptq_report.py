"""The report of `bench_ptq.py`: rows, each with the run that it came from."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ptq_judge import spreads
from ptq_models import MODELS

import edgekit
from edgekit import engines
from edgekit.bench.facts import host_facts
from edgekit.names import TARGETS
from edgekit.targets import find

Document = dict[str, Any]

PACKAGES = ("torch", "torchao", "numpy", "onnx", "onnxscript", "litert-torch", "ai-edge-litert")
_OF_A_RUN = ("edgekit", "facts", "packages", "threads_making", "threads_measuring")
_HIDDEN = ("path", "outputs")


def report(
    rows: Sequence[Document],
    pooled: Sequence[Document],
    skipped: Sequence[Document],
    settings: Mapping[str, Any],
    threads: int,
) -> Document:
    """The report of one run.

    Args:
        rows: judged and timed.
        pooled: of several models together.
        skipped: models, each with the reason.
        settings: of the vendors' quantizers.
        threads: with which artifacts were made.
    """
    used = {p for e in settings for p in engines.find(e).packages}
    used |= {*PACKAGES, *(p for t in TARGETS for p in find(t).packages)}
    run = {
        "edgekit": edgekit.__version__,
        "facts": host_facts(),
        "packages": versions(*sorted(used)),
        "threads_making": threads,
        "threads_measuring": 1,
    }
    return _whole(
        {
            "runs": [run],
            "settings": dict(settings),
            "rows": [
                {**{k: v for k, v in row.items() if k not in _HIDDEN}, "run": 0} for row in rows
            ],
            "pooled": list(pooled),
            "skipped": list(skipped),
        }
    )


def merged(old: Document, new: Document) -> Document:
    """``new`` with what ``old`` has of models and runtimes that it did not measure.

    Rows keep the run that they came from. What several models have together is kept where none of
    them was measured again in that runtime.
    """
    old = _by_run(old)
    measured = {(row["model"], row["runtime"]) for row in new["rows"]}
    kept = [r for r in old["rows"] if (r["model"], r["runtime"]) not in measured]
    runs = [*new["runs"], *old["runs"]]
    rows = [*new["rows"], *({**row, "run": row["run"] + len(new["runs"])} for row in kept)]
    needed = sorted({row["run"] for row in rows})
    rows = [{**row, "run": needed.index(row["run"])} for row in rows]
    together = [
        row
        for row in old["pooled"]
        if not any((model, row["runtime"]) in measured for model in row["models"])
    ]
    models = {row["model"] for row in rows}
    left_out = {s["model"]: s for s in (*old["skipped"], *new["skipped"])}
    return _whole(
        {
            "runs": [runs[i] for i in needed],
            "settings": new["settings"],
            "rows": rows,
            "pooled": [*new["pooled"], *together],
            "skipped": [s for name, s in left_out.items() if name not in models],
        }
    )


def versions(*names: str) -> dict[str, str | None]:
    """Versions of distributions, None where one is missing."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Writes JSON; what was there before stays whole until it is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n")
    aside.replace(path)


def _by_run(document: Document) -> Document:
    """A report in today's form; before, all rows were of one run."""
    if "runs" in document:
        return document
    run = {name: document[name] for name in _OF_A_RUN}
    return {**document, "runs": [run], "rows": [{**row, "run": 0} for row in document["rows"]]}


def _whole(parts: Document) -> Document:
    """In the order of models and runtimes, with what follows from the rows."""
    models, runtimes = list(MODELS), list(TARGETS)
    metrics = {name: spec.metric for name, spec in MODELS.items()}
    rows = sorted(
        parts["rows"], key=lambda r: (models.index(r["model"]), runtimes.index(r["runtime"]))
    )
    pooled = sorted(
        parts["pooled"],
        key=lambda r: ([models.index(m) for m in r["models"]], runtimes.index(r["runtime"])),
    )
    return {
        "benchmark": "ptq",
        **parts,
        "titles": {name: spec.title for name, spec in MODELS.items()},
        "metrics": metrics,
        "rows": rows,
        "pooled": pooled,
        "one_plan": spreads(rows, metrics),
    }
