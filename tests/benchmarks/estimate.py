"""How far latency estimates are off, on devices, models and runtimes that they were not fitted to.

    python tests/benchmarks/estimate.py --reference DIR --out estimate.json
    python tests/benchmarks/estimate.py --reference DIR --judge OTHER

The tables are fitted again and again, each time without some whole chips (all their boards, clocks,
threads and precisions), some whole networks (and once all sizes of a family), or one whole runtime,
and the left-out rows are estimated. Beside each figure stands a baseline's on the very same rows
(`estimate_baselines.py`). Intervals are checked on rows whose chip *and* network were left out.
``--judge`` estimates the rows of another folder by the file that ships.

`models_same_counts` gives six terms our graphs' counts instead of the published ones: some graphs
are written down from papers and differ from the files that were measured, SSD heads above all.

Errors are of the latency, relative. The form of the features was chosen while looking at left-out
networks of these tables; the fit's own settings were set once and are the same in every fold.
About 20 minutes on one thread; ``--quick`` takes fewer folds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import estimate_baselines as baselines
import numpy as np
from estimate_fit import OUT, calibrated, fit, folds, held_out
from estimate_rows import Row, load, scored

from edgekit.bench.estimator import Estimator, Probe
from edgekit.bench.facts import host_facts

__all__ = ["double_held_out", "judge", "main"]

Say = Callable[[str], None]
_THREE = ("resnet18", "squeezenet")
_PROBES = {
    1: {p: (name,) for p, name in baselines.PROBES.items()},
    3: {p: (name, *_THREE) for p, name in baselines.PROBES.items()},
}
_SOC_FOLDS, _MODEL_FOLDS = 30, 12
_CROSS = (8, 4)  # folds of chips and of networks, both left out


def kind(row: Row) -> str:
    return "int8" if row.setting.precision == "int8" else "float"


def summary(off: Sequence[float]) -> dict[str, float]:
    """Of relative errors of estimates over truths."""
    e = np.abs(np.expm1(np.array(off)))
    return {
        "n": len(e),
        "median": round(float(np.median(e)), 4),
        "mean": round(float(e.mean()), 4),
        "within_10": round(float((e <= 0.1).mean()), 4),
        "within_20": round(float((e <= 0.2).mean()), 4),
        "within_30": round(float((e <= 0.3).mean()), 4),
    }


def beside(
    rows: Sequence[Row], ours: Mapping[int, float], theirs: Mapping[int, float]
) -> dict[str, Any]:
    """Both on the rows that both have, float and int8 apart; ours as log of ms."""
    out: dict[str, Any] = {}
    for k in ("float", "int8"):
        ids = [i for i in ours if i in theirs and kind(rows[i]) == k and scored(rows[i])]
        if not ids:
            continue
        mine = summary([ours[i] - math.log(rows[i].ms) for i in ids])
        base = summary([math.log(theirs[i] / rows[i].ms) for i in ids])
        gain = round(1 - mine["median"] / base["median"], 3)
        out[k] = {"edgekit": mine, "baseline": base, "better_by": gain}
    return out


def alone(rows: Sequence[Row], ours: Mapping[int, float]) -> dict[str, Any]:
    """Ours by themselves, float and int8 apart."""
    off: dict[str, list[float]] = {"float": [], "int8": []}
    for i, log_ms in ours.items():
        if scored(rows[i]):
            off[kind(rows[i])].append(log_ms - math.log(rows[i].ms))
    return {k: summary(v) for k, v in off.items() if v}


def left_out(
    rows: Sequence[Row], by: Callable[[Row], str], count: int, say: Say
) -> dict[int, Estimator]:
    """Row numbers to the estimator that never saw their fold."""
    at = {id(row): i for i, row in enumerate(rows)}
    return {at[id(row)]: made for row, made in held_out(rows, by, count, progress=say)}


def plain(rows: Sequence[Row], fitted: Mapping[int, Estimator]) -> dict[int, float]:
    return {i: made.log_ms(rows[i].x, rows[i].setting) for i, made in fitted.items()}


def probed(rows: Sequence[Row], fitted: Mapping[int, Estimator], count: int) -> dict[int, float]:
    """With ``count`` networks measured in the same config, which are not estimated themselves."""
    configs: dict[str, list[int]] = defaultdict(list)
    for i in fitted:
        configs[rows[i].setting.groups()[-1]].append(i)
    out: dict[int, float] = {}
    for ids in configs.values():
        wanted = _PROBES[count][rows[ids[0]].setting.precision]
        first = {rows[i].model: i for i in reversed(ids)}
        if any(name not in first for name in wanted):
            continue
        runs = [Probe(rows[first[n]].x, rows[first[n]].setting, rows[first[n]].ms) for n in wanted]
        for i in ids:
            if rows[i].model not in wanted:
                out[i] = math.log(fitted[i].estimate(rows[i].x, rows[i].setting, runs).ms)
    return out


def measured_there(rows: Sequence[Row], fitted: Mapping[int, Estimator]) -> dict[int, float]:
    """With all other networks that were measured in the same config, as six terms are fitted to."""
    configs: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        configs[row.setting.groups()[-1]].append(row)
    out: dict[int, float] = {}
    for i, made in fitted.items():
        row = rows[i]
        runs = [
            Probe(r.x, r.setting, r.ms)
            for r in configs[row.setting.groups()[-1]]
            if r.family != row.family
        ]
        out[i] = math.log(made.estimate(row.x, row.setting, runs).ms)
    return out


def double_held_out(rows: Sequence[Row], say: Say, quick: bool = False) -> list[dict[str, Any]]:
    """Of each row, without and with one probe: basis, kind, by how many spreads it was missed.

    Both its chip and its network were left out of the fit.
    """
    out: list[dict[str, Any]] = []
    chips = folds([r.soc for r in rows], _CROSS[0] // (2 if quick else 1))
    nets = folds([r.family for r in rows], _CROSS[1])
    for number, chip in enumerate(chips):
        say(f"intervals: fold {number + 1} of {len(chips)}")
        for net in nets:
            made = Estimator(fit([r for r in rows if r.soc not in chip and r.family not in net]))
            inside = [r for r in rows if r.soc in chip and r.family in net and scored(r)]
            runs = _probe_runs([r for r in rows if r.soc in chip])
            out += [m for row in inside for m in _missed(row, made, runs)]
    return out


def _probe_runs(rows: Sequence[Row]) -> dict[str, Row]:
    runs: dict[str, Row] = {}
    for row in rows:
        if row.model == baselines.PROBES[row.setting.precision]:
            runs.setdefault(row.setting.groups()[-1], row)
    return runs


def _missed(row: Row, made: Estimator, runs: Mapping[str, Row]) -> list[dict[str, Any]]:
    probe = runs.get(row.setting.groups()[-1])
    given: list[list[Probe]] = [[]]
    if probe is not None and probe.model != row.model:
        given.append([Probe(probe.x, probe.setting, probe.ms)])
    out = []
    for probes in given:
        found = made.estimate(row.x, row.setting, probes)
        off = math.log(row.ms / found.ms)
        key = f"{found.basis} {kind(row)}"
        out.append({"key": key, "soc": row.soc, "off": off, "spreads": off / found.spread})
    return out


def coverage(missed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Share of rows inside of intervals whose factor was set without the row's chip."""
    out: dict[str, Any] = {}
    chips = folds([m["soc"] for m in missed], 10)
    inside: dict[str, list[float]] = defaultdict(list)
    for chip in chips:
        factors = calibrated([(m["key"], m["spreads"]) for m in missed if m["soc"] not in chip])
        for m in missed:
            if m["soc"] in chip:
                inside[m["key"]].append(float(abs(m["spreads"]) <= factors[m["key"]]))
    for key, hits in sorted(inside.items()):
        off = [m["off"] for m in missed if m["key"] == key]
        out[key] = {"stated": 0.8, "covered": round(float(np.mean(hits)), 4), **summary(off)}
    every = [hit for hits in inside.values() for hit in hits]
    out["all"] = {"stated": 0.8, "covered": round(float(np.mean(every)), 4), "n": len(every)}
    return out


def noise(rows: Sequence[Row]) -> dict[str, Any]:
    """How far two boards with one chip are apart: no estimate without a probe can be better."""
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for r in rows:
        s = r.setting
        found[r.soc, s.core, s.ghz, s.threads, s.precision, s.runtime, r.model].append(r)
    off: dict[str, list[float]] = defaultdict(list)
    for same in found.values():
        others = [
            math.log(a.ms / b.ms)
            for a in same
            for b in same
            if a.setting.session != b.setting.session
        ]
        off[kind(same[0])] += others
    return {k: summary(v) for k, v in off.items() if v}


def judge(rows: Sequence[Row], folder: Path, say: Say, quick: bool = False) -> dict[str, Any]:
    """All comparisons."""
    third = 3 if quick else 1
    known = baselines.terms(folder)
    socs = left_out(rows, lambda r: r.soc, _SOC_FOLDS // third, say)
    nets = left_out(rows, lambda r: r.model, 2 * _MODEL_FOLDS // third, say)
    families = left_out(rows, lambda r: r.family, _MODEL_FOLDS // third, say)
    six = baselines.six_terms(rows, known)
    return {
        "models": beside(rows, measured_there(rows, nets), six),
        "models_same_counts": beside(
            rows, measured_there(rows, nets), baselines.six_terms(rows, {})
        ),
        "model_families": beside(rows, measured_there(rows, families), six),
        "devices": beside(rows, plain(rows, socs), baselines.same_core(rows)),
        "devices_all": alone(rows, plain(rows, socs)),
        "devices_one_probe": beside(rows, probed(rows, socs, 1), baselines.one_probe(rows)),
        "devices_three_probes": alone(rows, probed(rows, socs, 3)),
        "runtimes": _runtimes(rows, say),
        "same_chip_other_board": noise(rows),
    }


def _runtimes(rows: Sequence[Row], say: Say) -> dict[str, Any]:
    out = {}
    for group in (("paddle-lite",), ("tflite", "xnnpack"), ("openvino",), ("onnxruntime",)):
        say(f"without {', '.join(group)}")
        made = Estimator(fit([r for r in rows if r.setting.runtime not in group]))
        fitted = {i: made for i, r in enumerate(rows) if r.setting.runtime in group}
        if not fitted:
            continue
        out["+".join(group)] = {
            "no_probe": alone(rows, plain(rows, fitted)),
            "beside_same_core": beside(rows, plain(rows, fitted), baselines.same_core(rows, True)),
            "one_probe": beside(rows, probed(rows, fitted, 1), baselines.one_probe(rows, True)),
        }
    return out


def shipped(rows: Sequence[Row]) -> dict[str, Any]:
    """By the file that ships: rows of another folder."""
    made = Estimator(json.loads(OUT.read_text(encoding="utf-8")))
    fitted = dict.fromkeys(range(len(rows)), made)
    inside = [
        made_.low <= r.ms <= made_.high
        for r in rows
        if scored(r)
        for made_ in [made.estimate(r.x, r.setting)]
    ]
    return {
        "no_probe": alone(rows, plain(rows, fitted)),
        "one_probe": alone(rows, probed(rows, fitted, 1)),
        "covered": round(float(np.mean(inside)), 4) if inside else None,
    }


def table(document: Mapping[str, Any], at: str = "") -> list[str]:
    """Lines for people."""
    lines = []
    for name, part in document.items():
        where = f"{at} {name}".strip()
        if isinstance(part, Mapping) and "baseline" in part:
            ours, base = part["edgekit"], part["baseline"]
            lines.append(
                f"{where:44} n {ours['n']:5}  median {ours['median']:.1%} mean {ours['mean']:.1%}"
                f"   baseline {base['median']:.1%} mean {base['mean']:.1%}"
                f"   better by {part['better_by']:.0%}"
            )
        elif isinstance(part, Mapping) and "median" in part:
            covered = f"  covered {part['covered']:.1%}" if "covered" in part else ""
            lines.append(
                f"{where:44} n {part['n']:5}  median {part['median']:.1%} mean {part['mean']:.1%}"
                f"  within 20 % {part['within_20']:.0%}{covered}"
            )
        elif isinstance(part, Mapping):
            lines += table(part, where)
        elif isinstance(part, float | int):
            lines.append(f"{where:44} {part:.4g}")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, default=os.environ.get("EDGEKIT_BENCH_REFERENCE"))
    parser.add_argument("--judge", type=Path, help="a folder of tables that nothing was fitted to")
    parser.add_argument("--quick", action="store_true", help="fewer folds")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    if args.reference is None:
        parser.error("say where the latency tables lie: --reference or EDGEKIT_BENCH_REFERENCE")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    folder = Path(args.reference)
    rows = load(folder)
    if args.judge is not None:
        seen = {(r.model, r.setting) for r in rows}
        new = [r for r in load(args.judge) if (r.model, r.setting) not in seen]
        result = {"rows": len(new), "shipped": shipped(new)}
    else:
        result = {"rows": len(rows), **judge(rows, folder, say, args.quick)}
        missed = double_held_out(rows, say, args.quick)
        result["intervals"] = coverage(missed)
        result["factors"] = calibrated([(m["key"], m["spreads"]) for m in missed])
    print("\n".join(table(result)))
    if args.out is not None:
        args.out.write_text(json.dumps({"facts": host_facts(), **result}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
