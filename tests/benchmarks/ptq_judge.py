"""What `bench_ptq.py` makes of answers: accuracies, and how they differ, paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import engines
from edgekit.metrics import top1_correct
from edgekit.paired import paired_difference

Document = dict[str, Any]

ONE_PLAN_POINTS = 0.3
"""Within how many points the accuracies of one plan in all runtimes are to lie."""


def judge(rows: Sequence[Document], labels: np.ndarray[Any, Any] | None) -> list[Document]:
    """Rows of one runtime with their values, and how they differ from float and best vendor.

    Args:
        rows: with ``outputs`` where the artifact ran; the first output is scored.
        labels: class indices, or None for the cosine to the float artifact's answers.
    """
    answers = {r["engine"]: _answers(Path(r["outputs"])) for r in rows if r["status"] == "ok"}
    judged = []
    scores: dict[str, np.ndarray[Any, Any]] = {}
    for row in rows:
        answer = answers.get(row["engine"])
        if answer is None or "float" not in answers:
            judged.append(row)
            continue
        if not np.isfinite(answer).all():
            judged.append({**row, "status": "failed", "reason": "answers are NaN or infinite"})
            continue
        if labels is None:
            score = _cosines(answer, answers["float"])
            value = {"value": float(score.mean()), "worst": float(score.min())}
        else:
            score = top1_correct(answer, labels[: len(answer)])
            value = {"value": float(score.mean()) * 100}
        scores[row["engine"]] = score
        judged.append({**row, **value, "n": len(score)})
    return _compared(judged, scores, 1.0 if labels is None else 100.0)


def _compared(
    rows: Sequence[Document], scores: Mapping[str, np.ndarray[Any, Any]], unit: float
) -> list[Document]:
    """Rows with what lies between them and float, and between edgekit and the best vendor."""
    vendors = [r for r in rows if r["engine"] in engines.available() and r["engine"] in scores]
    best = max(vendors, key=lambda r: r["value"], default=None)
    compared = []
    for row in rows:
        mine = scores.get(row["engine"])
        found = dict(row)
        if mine is not None and row["engine"] != "float":
            found["vs_float"] = _difference(scores["float"], mine, unit)
        if mine is not None and row["engine"] == "edgekit" and best is not None:
            beside = _difference(scores[best["engine"]], mine, unit)
            found["vs_best_vendor"] = {"vendor": best["engine"], **beside}
        compared.append(found)
    return compared


def pool(groups: Mapping[str, tuple[Sequence[Document], np.ndarray[Any, Any]]]) -> list[Document]:
    """Top-1 over the samples of several models together: one model's are few for an interval.

    Args:
        groups: by model, its rows of one runtime and the class indices of its samples.

    Returns:
        A row for every engine that all the models have answers of.
    """
    found: dict[str, list[np.ndarray[Any, Any]]] = {}
    for rows, labels in groups.values():
        for row in rows:
            if row["status"] == "ok" and "value" in row:
                answer = _answers(Path(row["outputs"]))
                right = top1_correct(answer, labels[: len(answer)])
                found.setdefault(row["engine"], []).append(right)
    scores = {k: np.concatenate(v) for k, v in found.items() if len(v) == len(groups)}
    if len(groups) < 2 or "float" not in scores:
        return []
    (runtime,) = {row["runtime"] for rows, _ in groups.values() for row in rows}
    pooled = [
        {
            "models": list(groups),
            "runtime": runtime,
            "engine": engine,
            "value": float(score.mean()) * 100,
            "n": len(score),
        }
        for engine, score in scores.items()
    ]
    return _compared(pooled, scores, 100.0)


def _difference(reference: Any, candidate: Any, unit: float) -> Document:
    found = paired_difference(reference, candidate)
    return {
        "difference": unit * found.difference,
        "ci95": [unit * found.low, unit * found.high],
        "discordant": found.discordant,
        "verdict": found.verdict,
    }


def _answers(path: Path) -> np.ndarray[Any, Any]:
    """The first output as [n, values]."""
    with np.load(path) as data:
        first: np.ndarray[Any, Any] = data[data.files[0]]
    return first.reshape(len(first), -1)


def _cosines(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / np.maximum(norms, 1e-30))


def with_latency(rows: Sequence[Document], measured: Document) -> list[Document]:
    """Rows of one runtime with what `edgekit.bench.measure.bench` found of them."""
    results = {r["artifact"]: r for r in measured["results"]}
    pairs = {(c["a"], c["b"]): c for c in measured["comparisons"]}
    timed = []
    for row in rows:
        result = results.get(row["engine"])
        if result is None:
            timed.append(row)
            continue
        more: Document = {
            "latency_ms": result["latency_ms"],
            "load_ms": result["load_ms"],
            "run_peak_mib": result["peak_memory_mib"],
            "notes": result["notes"],
        }
        if (found := pairs.get(("float", row["engine"]))) is not None:
            more["latency_vs_float"] = found
        if row["engine"] == "edgekit":
            more["latency_vs"] = {
                a: c for (a, b), c in pairs.items() if b == "edgekit" and a in engines.available()
            }
        timed.append({**row, **more})
    return timed


def spreads(rows: Sequence[Document], metrics: Mapping[str, str]) -> list[Document]:
    """How far the accuracies of one plan lie apart, runtime by runtime.

    Runtimes that are emulated stand apart, by what they lose on the samples that they answered.

    Args:
        rows: judged; those of edgekit's with the digest of their ``plan`` count.
        metrics: by model.
    """
    found = []
    mine = [r for r in rows if r["engine"] == "edgekit" and "value" in r and "plan" in r]
    for model, plan in dict.fromkeys((r["model"], r["plan"]) for r in mine):
        group = [r for r in mine if (r["model"], r["plan"]) == (model, plan)]
        real = {r["runtime"]: r["value"] for r in group if not r.get("emulated")}
        spread = max(real.values()) - min(real.values()) if real else None
        points = metrics[model] == "top1"
        several = spread is not None and len(real) > 1
        found.append(
            {
                "model": model,
                "plan": plan,
                "values": real,
                "spread": spread if several else None,
                "limit": ONE_PLAN_POINTS if points else None,
                "within": spread <= ONE_PLAN_POINTS if several and points else None,
                "emulated": {
                    r["runtime"]: {"n": r["n"], **r["vs_float"]} for r in group if r.get("emulated")
                },
            }
        )
    return found
