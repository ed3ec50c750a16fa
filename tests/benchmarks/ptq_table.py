"""The reports of `bench_ptq.py`, `bench_folds.py` and `bench_ablation.py` as Markdown.

``python tests/benchmarks/ptq_table.py ptq.json`` prints every row of a report.
`readme_tables.py` puts shorter ones into README.md.
"""

from __future__ import annotations

import argparse
import json
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
    parts.append(one_plan(document))
    parts += [_conditions(document, i) for i in range(len(document["runs"]))]
    if busy := [row for row in document["rows"] if _disturbed(row)]:
        parts.append(
            f"The machine was busy: {len(busy)} of {len(document['rows'])} latencies are disturbed."
        )
    return "\n\n".join(parts)


def one_plan(document: Mapping[str, Any]) -> str:
    """How far the accuracies of one plan lie apart over the runtimes, a line for every plan."""
    lines = []
    for found in document["one_plan"]:
        title, cosine = document["titles"][found["model"]], found["limit"] is None
        values = ", ".join(
            f"{runtime} {value:.4f}" if cosine else f"{runtime} {value:.2f}"
            for runtime, value in found["values"].items()
        )
        said = f"{title}, one plan (sha256 {found['plan'][:12]}): {values or 'in no runtime'}"
        if found["spread"] is not None:
            said += f"; {found['spread']:.4f} apart" if cosine else f"; {found['spread']:.2f} apart"
        if found["within"] is not None:
            said += f", {'within' if found['within'] else 'OVER'} {found['limit']:g} points"
        for runtime, row in found["emulated"].items():
            said += f"; {runtime}, emulated, {row['n']} samples: {_difference(row, cosine)} "
            said += "against float"
        lines.append(f"{said}.")
    return "\n".join(lines) or "No runtime has a row of edgekit's with its plan."


def _conditions(document: Mapping[str, Any], number: int) -> str:
    """How the rows of one run were measured."""
    run = document["runs"][number]
    whose = dict.fromkeys(r["runtime"] for r in document["rows"] if r["run"] == number)
    return (
        f"{', '.join(whose)}: one call on one thread, {run['facts']['cpu']}; brackets are 95 % "
        "intervals, paired over the same samples or the same rounds. Made from the float program "
        f"to the file, each in a process of its own; threads: {run['threads_making']}."
    )


def _runtime(row: Row) -> str:
    """A row's runtime, with the number of its answers where it is emulated."""
    if not row.get("emulated"):
        return str(row["runtime"])
    return f"{row['runtime']} (emulated" + (f", n {row['n']})" if "n" in row else ")")


def _quantizer(row: Row) -> str:
    """A row's quantizer, and what its runtime had to do without to load the file."""
    _, without, what = str(row.get("runtime_version", "")).partition(" without ")
    return f"{row['engine']} (loaded{without}{what})" if without else str(row["engine"])


def _model_table(document: Mapping[str, Any], model: str, rows: list[Row]) -> str:
    cosine = document["metrics"][model] == "cosine"
    n = max((row["n"] for row in rows if "n" in row), default=0)
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
        return (_runtime(row), row["engine"], f"failed: {row['reason'][:120]}", *[""] * 8)
    value = f"{row['value']:.4f} ({row['worst']:.4f})" if cosine else f"{row['value']:.2f}"
    against = row.get("vs_best_vendor")
    beside = "" if against is None else f"{_difference(against, cosine)} ({against['vendor']})"
    ratio = row.get("latency_vs_float")
    latency = row.get("latency_ms")
    return (
        _runtime(row),
        _quantizer(row),
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


def overview(document: Mapping[str, Any]) -> str:
    """One line per model and runtime: edgekit beside float and the vendor that came out best."""
    head = ("model", "runtime", "float", "edgekit, against float")
    head += ("best vendor; edgekit against it", "KiB", "time over float's")
    lines = [_line(head), _line(("---",) * len(head))]
    pooled = [(row["models"], row) for row in document.get("pooled", ())]
    for models, row in [*(([r["model"]], r) for r in document["rows"]), *pooled]:
        if row["engine"] != "edgekit" or row.get("status", "ok") != "ok":
            continue
        cosine = document["metrics"][models[0]] == "cosine"
        every = document["rows"] if row.get("model") else document["pooled"]
        beside = {
            r["engine"]: r
            for r in every
            if r.get("model", r.get("models")) == row.get("model", row.get("models"))
            and r["runtime"] == row["runtime"]
        }
        against = row.get("vs_best_vendor")
        best = beside[against["vendor"]] if against else None
        compared = "" if best is None else _beside(best, against, cosine)
        cells = (
            " and ".join(document["titles"][m] for m in models) + f", n {row['n']}",
            f"{row['runtime']} (emulated)" if row.get("emulated") else row["runtime"],
            "" if cosine else _value(beside["float"], cosine),
            f"{_value(row, cosine)}, {_difference(row['vs_float'], cosine)}",
            compared,
            _pair(row, best, lambda r: f"{r['bytes'] / 1024:.0f}" if "bytes" in r else ""),
            _pair(row, best, _ratio),
        )
        lines.append(_line(cells))
    return "\n".join(lines)


def _beside(best: Row, against: Any, cosine: bool) -> str:
    return f"{_value(best, cosine)} {best['engine']}; {_difference(against, cosine)}"


def _value(row: Row, cosine: bool) -> str:
    return f"{row['value']:.4f} (worst {row['worst']:.4f})" if cosine else f"{row['value']:.2f}"


def _ratio(row: Row) -> str:
    found = row.get("latency_vs_float")
    return "" if found is None or found["ratio"] is None else f"{found['ratio']:.2f}"


def _pair(mine: Row, best: Row | None, show: Any) -> str:
    """What edgekit's file has and, in brackets, the best vendor's."""
    ours, theirs = show(mine), show(best) if best else ""
    return f"{ours} ({theirs})" if theirs else str(ours)


def ablation(document: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """One line per choice of methods, two columns per model."""
    models = document["models"]
    head = ("methods", *(c for m in models for c in (f"{titles[m]}, dB", _metric(models[m]))))
    head = (*head, *(f"{titles[m]}, plan s" for m in models))
    lines = [_line(head), _line(("---",) * len(head))]
    for rows in zip(*models.values(), strict=True):
        cells = [c for row in rows for c in (f"{row['sqnr_db']:.1f}", _figure(row))]
        cells += [f"{row['plan_s']:.0f}" for row in rows]
        lines.append(_line((rows[0]["methods"], *cells)))
    return "\n".join(lines)


def _metric(rows: list[Row]) -> str:
    if "cosine" in rows[0]:
        return "cosine (worst)"
    return f"top-1 (float {rows[0]['float_top1']:.2f}, n {rows[0]['n']})"


def _figure(row: Row) -> str:
    if "cosine" in row:
        return f"{row['cosine']:.4f} ({row['worst_cosine']:.4f})"
    return f"{row['top1']:.2f}"


def folds(document: Mapping[str, Any]) -> str:
    """One line per model and runtime, and per runtime over all models, of `bench_folds.py`."""
    lines = [
        _line(
            ("model", "runtime", "float", "edgekit, against float", "edgekit against", "as float")
        )
    ]
    lines.append(_line(("---",) * 6))
    every = [*document["rows"], *document["pooled"]]
    for row in (r for r in every if r["engine"] == "edgekit"):
        models = row.get("models", [row.get("model")])
        same = [r for r in every if _whose(r) == _whose(row)]
        beside = {r["engine"]: r["value"] for r in same}
        found = sorted(row["vs"].items(), key=lambda item: -beside[item[0]])
        said = [f"{beside[e]:.2f} {e}: {_difference(d, False)}" for e, d in found]
        cells = (
            " and ".join(document["titles"][m] for m in models),
            row["runtime"],
            f"{beside['float']:.2f}",
            f"{row['value']:.2f}, {_difference(row['vs_float'], False)}",
            "; ".join(said),
            _agreements(row, same, [engine for engine, _ in found]),
        )
        lines.append(_line(cells))
    return "\n".join(lines)


def _agreements(row: Row, beside: list[Row], engines: list[str]) -> str:
    """How often edgekit and vendors have float's answer, and edgekit's difference from them."""
    if "agreement" not in row:
        return ""
    values = {r["engine"]: r.get("agreement") for r in beside}
    said = [f"{values[e]:.2f} {e}: {_difference(row['agreement_vs'][e], False)}" for e in engines]
    return "; ".join([f"{row['agreement']:.2f}", *said])


def _whose(row: Row) -> tuple[Any, ...]:
    return tuple(row.get("models", [row.get("model")])), row["runtime"]


def main() -> None:
    """Prints a report's tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="of bench_ptq.py")
    print(table(json.loads(parser.parse_args().report.read_text())))


if __name__ == "__main__":
    main()
