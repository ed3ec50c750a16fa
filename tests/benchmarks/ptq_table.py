"""The report of `bench_ptq.py` as Markdown: ``python tests/benchmarks/ptq_table.py ptq.json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def table(document: Mapping[str, Any]) -> str:
    """One table per model, and a line on how it was measured."""
    parts = []
    for model in dict.fromkeys(row["model"] for row in document["rows"]):
        rows = [row for row in document["rows"] if row["model"] == model]
        parts.append(_model_table(document, model, rows))
    parts += _pooled_tables(document)
    parts += [f"{s['model']} was left out: {s['reason']}." for s in document["skipped"]]
    facts = document["facts"]
    parts.append(
        f"One call on one thread, {facts['cpu']}; brackets are 95 % intervals, paired over the "
        "same samples or the same rounds. Made from the float program to the file, each in a "
        f"process of its own; threads: {document['threads_making']}."
    )
    if busy := [row for row in document["rows"] if _disturbed(row)]:
        parts.append(
            f"The machine was busy: {len(busy)} of {len(document['rows'])} latencies are disturbed."
        )
    return "\n\n".join(parts)


def _model_table(document: Mapping[str, Any], model: str, rows: list[Row]) -> str:
    cosine = document["metrics"][model] == "cosine"
    n = next((row["n"] for row in rows if "n" in row), 0)
    metric = "cosine to float, mean (worst)" if cosine else "top-1"
    head = ("runtime", "quantizer", metric, "against float", "against best vendor")
    head += ("float ops", "KiB", "p50 ms", "times float", "made s", "made MiB")
    lines = [f"**{document['titles'][model]}**, {n} evaluation samples", ""]
    lines += [_line(head), _line(("---",) * len(head))]
    lines += [_line(_cells(row, cosine)) for row in rows]
    return "\n".join(lines)


def _pooled_tables(document: Mapping[str, Any]) -> list[str]:
    """A table for every set of models that share their pictures."""
    tables = []
    pooled = document.get("pooled", ())
    for models in dict.fromkeys(tuple(row["models"]) for row in pooled):
        rows = [row for row in pooled if tuple(row["models"]) == models]
        titles = " and ".join(document["titles"][m] for m in models)
        head = ("runtime", "quantizer", "top-1", "against float", "against best vendor")
        lines = [f"**{titles} together**, {rows[0]['n']} answers", "", _line(head)]
        lines += [_line(("---",) * len(head))]
        for row in rows:
            against = row.get("vs_best_vendor")
            beside = (
                "" if against is None else f"{_difference(against, False)} ({against['vendor']})"
            )
            value = f"{row['value']:.2f}"
            cells = (row["engine"], value, _difference(row.get("vs_float"), False), beside)
            lines.append(_line((row["runtime"], *cells)))
        tables.append("\n".join(lines))
    return tables


def _cells(row: Row, cosine: bool) -> tuple[str, ...]:
    if row["status"] != "ok":
        return (row["runtime"], row["engine"], f"failed: {row['reason'][:120]}", *[""] * 8)
    value = f"{row['value']:.4f} ({row['worst']:.4f})" if cosine else f"{row['value']:.2f}"
    against = row.get("vs_best_vendor")
    beside = "" if against is None else f"{_difference(against, cosine)} ({against['vendor']})"
    ratio = row.get("latency_vs_float")
    latency = row.get("latency_ms")
    return (
        row["runtime"],
        row["engine"],
        value,
        _difference(row.get("vs_float"), cosine),
        beside,
        str(row.get("float_ops", "")),
        f"{row['bytes'] / 1024:.0f}",
        "" if latency is None else f"{latency['p50']:.2f}",
        "" if ratio is None or ratio["ratio"] is None else f"{ratio['ratio']:.2f}",
        f"{row['made_s']:.0f}" + (f" (plan {row['plan_s']:.0f})" if "plan_s" in row else ""),
        f"{row['made_peak_mib']:.0f}",
    )


def _disturbed(row: Row) -> bool:
    """Whether something else ran beside the measurement, by its own notes."""
    return any(note.startswith(("busy", "waiting", "slowed")) for note in row.get("notes", ()))


def _difference(found: Row | None, cosine: bool) -> str:
    if found is None:
        return ""
    low, high = found["ci95"]
    digits = 4 if cosine else 2
    return f"{found['difference']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
