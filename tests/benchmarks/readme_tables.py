"""README.md's tables, from what was measured: the reports under ``results``.

``python tests/benchmarks/readme_tables.py`` writes them between README's markers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import ptq_table

import recipes

HERE = Path(__file__).parent
RESULTS, README = HERE / "results", HERE.parents[1] / "README.md"

Document = Mapping[str, Any]

# What is left out, where its figures are, and what stands beside them.
_ESTIMATE: Final = (
    ("whole networks", ("models",), "six terms"),
    ("whole devices, no probe", ("devices",), "same core"),
    ("whole devices, one probe", ("devices_one_probe",), "ratio"),
    ("a runtime (Paddle Lite), no probe", ("runtimes", "paddle-lite", "beside_same_core"), ""),
    ("a runtime (LiteRT), no probe", ("runtimes", "tflite+xnnpack", "beside_same_core"), ""),
)


def estimate(document: Document) -> str:
    """Median errors of `estimate.py`, in percent, beside the baselines on the same rows."""
    lines = ["| left out | float | int8 | the baseline, float and int8 |", "|---|---|---|---|"]
    for title, path, beside in _ESTIMATE:
        found = document
        for name in path:
            found = found[name]
        ours, theirs = (
            [f"{100 * found[kind][side]['median']:.1f} %" for kind in ("float", "int8")]
            for side in ("edgekit", "baseline")
        )
        baseline = ", ".join(theirs) + (f" ({beside})" if beside else "")
        lines.append(f"| {title} | {ours[0]} | {ours[1]} | {baseline} |")
    return "\n".join(lines)


def router(documents: Mapping[str, Document]) -> str:
    """What `router.py` found on each data."""
    head = (
        "data",
        "teacher ahead by",
        "rule, on dev",
        "sent",
        "of the teacher's accuracy",
        "by lot",
    )
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|---|---|"]
    for data, document in documents.items():
        for rule, run in document["runs"].items():
            (low, high), teacher = run["sent_ci95"], run["teacher"]
            cells = (
                f"{data}, n {run['n']}",
                f"{document['gap_points']:.2f} points",
                f"`--{rule} {document['rules'][rule]}`",
                f"{run['sent']:.1f} % [{low:.1f}, {high:.1f}]",
                f"{run['kept']:.2f} %",
                f"{100 * run['random'] / teacher:.2f} %",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def filled(text: str, results: Path = RESULTS) -> str:
    """README's text with the tables of the reports under ``results`` between its markers.

    Raises:
        SystemExit: a table has no place, or several.
    """
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    runs = [found[name] for name in ("recipes", "recipes_cifar") if name in found]
    made = {
        "ptq": ptq_table.overview(found["ptq"]),
        "ablation": ptq_table.ablation(found["ablation"], found["ptq"]["titles"]),
        "folds": ptq_table.folds(found["folds"]),
        "recipes": recipes.table({name: p for run in runs for name, p in run["parts"].items()}),
        "estimate": estimate(found["estimate"]),
        "router": router({"SST-2": found["router_sst2"], "CIFAR-10": found["router_cifar"]}),
    }
    for name, body in made.items():
        marks = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
        text, count = re.subn(marks, lambda m, body=body: f"{m[1]}{body}\n{m[2]}", text, flags=re.S)
        if count != 1:
            raise SystemExit(f"README.md has {count} places for the table {name!r}, not one")
    return text


if __name__ == "__main__":
    README.write_text(filled(README.read_text()))
