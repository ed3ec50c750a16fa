"""A plan's sensitivity as a table, for the verbs that show one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.cli._output import table

__all__ = ["sensitivity_lines", "sensitivity_of"]

_RATIOS = ("sqnr_alone_db", "gain_kept_db", "metric_alone", "metric_kept", "macs_share")
_COUNTS = ("macs", "bytes", "border_elements")


def sensitivity_of(stated: Any) -> dict[str, Any]:
    """The sensitivity that a plan states, known fields only, the layers that lose most first.

    Raises:
        KeyError, TypeError, ValueError: it is no sound one; a file may hold anything there.
    """
    if not stated:
        return {}
    rows = []
    for row in stated["layers"]:
        known: dict[str, Any] = {"layer": str(row["layer"]), "kind": str(row["kind"])}
        known["nodes"] = [str(node) for node in row["nodes"]]
        known |= {key: _number(row[key]) for key in _RATIOS}
        known |= {key: int(row[key]) for key in _COUNTS}
        rows.append(known)
    rows.sort(key=lambda r: math.inf if r["sqnr_alone_db"] is None else r["sqnr_alone_db"])
    metric = stated["metric"]
    return {
        "n": int(stated["n"]),
        "metric": None if metric is None else str(metric),
        **{key: _number(stated[key]) for key in ("sqnr_db", "metric_quantized", "metric_float")},
        "layers": rows,
    }


def sensitivity_lines(found: Mapping[str, Any] | None) -> Sequence[str]:
    """The table, under an empty line and a headline; nothing where nothing was measured."""
    if not found:
        return []
    metric = found["metric"]
    names = [] if metric is None else [f"{metric} alone", f"{metric} kept"]
    headers = ["layer", "SQNR dB alone", "gain dB kept", *names, "MACs %", "KiB more"]
    rows = []
    for row in found["layers"]:
        scores = [] if metric is None else [_short(row["metric_alone"]), _short(row["metric_kept"])]
        rows.append(
            [
                row["layer"],
                row["sqnr_alone_db"],
                row["gain_kept_db"],
                *scores,
                round(100 * row["macs_share"], 2),
                round(row["bytes"] / 1024, 1),
            ]
        )
    whole = "no noise" if found["sqnr_db"] is None else f"SQNR {found['sqnr_db']:.1f} dB"
    if metric is not None:
        whole += f", {metric} {_short(found['metric_quantized'])}"
        whole += f" (float {_short(found['metric_float'])})"
    return [
        "",
        f"sensitivity on {found['n']} calibration samples; all quantized: {whole}",
        "alone: only this is quantized; kept: only this stays in float, with what has to follow it",
        "",
        table(headers, rows),
    ]


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
