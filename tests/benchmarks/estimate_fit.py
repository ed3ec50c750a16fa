"""Fits the estimator: rates of features by groups of settings, then what those do not see.

    python tests/benchmarks/estimate.py --reference DIR --out judged.json
    python tests/benchmarks/estimate_fit.py --reference DIR --judged judged.json

writes `edgekit/bench/estimator.json`, which ships. Maximum a posteriori of a mixed model in log
latency with Student-t errors (three degrees of freedom: tables have runs that were disturbed), by
L-BFGS; every group's effects have the spread that `edgekit.bench.setting.GROUPS` says. A Gaussian
process is then put through the residuals. One fit takes seconds on one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from estimate_rows import FILES, Row, load, scored

from edgekit.bench import estimator as shipped
from edgekit.bench.estimator import Estimator, vector_of
from edgekit.bench.features import FEATURES, PRIORS, WORK
from edgekit.bench.setting import DESCRIPTORS, GROUPS

__all__ = ["FACTORS", "SETTINGS", "Settings", "calibrated", "fit", "folds", "held_out"]

Settings = dict[str, float]
SETTINGS: Final[Settings] = {
    "noise": 0.12,  # of one row, log latency
    "model": 0.02,  # of a network: nearly none, so that features have to explain it
    "rate": 0.4,  # of one feature around its prior
    "slope": 0.3,
    "iterations": 120,
    "history": 100,
}
FACTORS: Final = {f"{b} {k}": 1.28 for b in shipped.BASES for k in ("float", "int8")}
_DEGREES = 3.0
_OWN = 0.4  # of a group's spread: what each feature has for itself
OUT = Path(shipped.__file__).with_name("estimator.json")


def _slopes() -> torch.Tensor:
    """Prior slopes: work goes with clock, lanes and threads, memory less so."""
    work = torch.tensor(WORK)
    prior = torch.zeros(len(DESCRIPTORS), len(FEATURES), dtype=torch.float64)
    at = {name: i for i, name in enumerate(DESCRIPTORS)}
    prior[at["clock"]] = -(0.4 + 0.6 * work)
    prior[at["lanes"]] = -(0.2 + 0.8 * work)
    prior[at["threads"]] = -(0.3 + 0.6 * work)
    prior[at["oversubscribed"]] = 0.8  # work is shared out evenly, and little cores come last
    prior[at["beyond_8"]] = 0.5 * work
    prior[at["bandwidth"]] = -0.3 * (1 - work)
    return prior


def fit(rows: Sequence[Row], settings: Settings = SETTINGS, whole: bool = False) -> dict[str, Any]:
    """A document ``edgekit.estimator/1`` with uncalibrated intervals.

    ``whole``: with what is known of each session and config, to estimate other networks there.
    What ships has none of it.
    """
    torch.set_num_threads(1)
    rates, slopes, groups = _mixed(rows, settings)
    data: dict[str, Any] = {
        "rates": rates,
        "slopes": slopes,
        "groups": {
            name: members for name, members in groups.items() if name not in shipped._UNFITTED
        },
        "likeness": {
            "graphs": np.zeros((0, len(FEATURES) + 1)),
            "cell_graph": [],
            "cells": [[]] * 4,
            "names": [[]] * 4,
            "alpha": [],
        },
        "interval": {"coverage": 0.8, "factors": FACTORS},
    }
    whole = Estimator({**data, "groups": groups})
    residuals = [math.log(r.ms) - whole.log_ms(r.x, r.setting) for r in rows]
    data["likeness"] = _likeness(rows, residuals)
    return data


def _mixed(
    rows: Sequence[Row], settings: Settings
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], dict[str, dict[str, Any]]]:
    double = {"dtype": torch.float64}
    configs: dict[str, Row] = {}
    for row in rows:
        configs.setdefault(row.setting.groups()[-1], row)
    at = {key: i for i, key in enumerate(configs)}
    members: list[dict[str, int]] = []
    index: list[torch.Tensor] = []
    for number in range(len(GROUPS)):
        found: dict[str, int] = {}
        ids = [found.setdefault(r.setting.groups()[number], len(found)) for r in configs.values()]
        members.append(found)
        index.append(torch.tensor(ids))
    design = torch.tensor(np.array([r.setting.descriptors() for r in configs.values()]))
    x = torch.tensor(np.array([r.x for r in rows]))
    y = torch.tensor([math.log(r.ms) for r in rows], **double)
    config = torch.tensor([at[r.setting.groups()[-1]] for r in rows])
    nets = {name: i for i, name in enumerate(sorted({r.model for r in rows}))}
    net = torch.tensor([nets[r.model] for r in rows])
    kinds = torch.tensor(np.stack([WORK, 1 - WORK]))
    prior, prior_slopes = torch.tensor(PRIORS), _slopes()
    n, d = len(FEATURES), len(DESCRIPTORS)
    shapes = [(n,), (1,), (2,), (d, n), (d, 2), (len(nets),)]
    for found in members:
        shapes += [(len(found), 1), (len(found), n), (len(found), 2)]
    slope = settings["slope"]
    spreads = [settings["rate"], 2.0, 1.0, slope * _OWN, slope, settings["model"]]
    for _, common, each in GROUPS:
        spreads += [common, each * _OWN, each]
    # In units of their spreads: the optimizer then sees one scale everywhere.
    units = [torch.zeros(*shape, **double).requires_grad_(True) for shape in shapes]

    def scaled() -> list[torch.Tensor]:
        return [unit * spread for unit, spread in zip(units, spreads, strict=True)]

    def effects(p: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return prior + p[0] + p[1] + p[2] @ kinds, prior_slopes + p[3] + p[4] @ kinds

    def loss() -> torch.Tensor:
        free = scaled()
        rates, slopes = effects(free)
        logs = rates + design @ slopes
        for g, ids in enumerate(index):
            common, own, kind = free[6 + 3 * g : 9 + 3 * g]
            logs = logs + common[ids] + own[ids] + kind[ids] @ kinds
        middle = torch.log((x * torch.exp(logs)[config]).sum(1)) + free[5][net]
        off = (y - middle) / settings["noise"]
        misfit = (_DEGREES + 1) / 2 * torch.log1p(off * off / _DEGREES).sum()
        return misfit + sum((unit**2).sum() for unit in units) / 2

    optimizer = torch.optim.LBFGS(
        units, max_iter=int(settings["iterations"]), history_size=int(settings["history"]),
        line_search_fn="strong_wolfe", tolerance_change=1e-6,
    )  # fmt: skip

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    done = [p.detach() for p in scaled()]
    rates, slopes = effects(done)
    groups: dict[str, dict[str, Any]] = {}
    for g, ((name, _, _), found) in enumerate(zip(GROUPS, members, strict=True)):
        common, own, kind = done[6 + 3 * g : 9 + 3 * g]
        table = (common + own + kind @ kinds).numpy()
        groups[name] = {member: table[i] for member, i in found.items()}
    return rates.numpy(), slopes.numpy(), groups


def _likeness(rows: Sequence[Row], residuals: Sequence[float]) -> dict[str, Any]:
    """A Gaussian process through residuals, those of like settings of one graph taken together."""
    cells: dict[tuple[str, ...], list[float]] = defaultdict(list)
    first: dict[tuple[str, ...], Row] = {}
    for row, residual in zip(rows, residuals, strict=True):
        graph = row.x.tobytes() + row.setting.precision.encode()
        key = (hashlib.sha256(graph).hexdigest(), *shipped._likenesses(row.setting))
        cells[key].append(residual)
        first.setdefault(key, row)
    graphs = {key: i for i, key in enumerate(dict.fromkeys(key[0] for key in cells))}
    where: dict[str, Any] = {}
    for key in cells:
        where.setdefault(key[0], vector_of(first[key].x))
    points = np.array([where[key] for key in graphs])
    cell_graph = np.array([graphs[key[0]] for key in cells])
    names = [list(dict.fromkeys(key[j + 1] for key in cells)) for j in range(4)]
    columns = [
        np.array([{n: i for i, n in enumerate(names[j])}[key[j + 1]] for key in cells])
        for j in range(4)
    ]
    far = ((points[:, None] - points[None]) ** 2).sum(2)
    near = np.exp(-far / (2 * shipped._REACH**2))[np.ix_(cell_graph, cell_graph)]
    weight = np.full(near.shape, shipped._LIKENESS[0] ** 2)
    for spread, column in zip(shipped._LIKENESS[1:], columns, strict=True):
        weight += spread**2 * (column[:, None] == column[None])
    kernel = near * weight
    counts = np.array([len(v) for v in cells.values()])
    kernel[np.diag_indices(len(cells))] += 0.05**2 + 0.1**2 / counts
    alpha = np.linalg.solve(kernel, np.array([float(np.median(v)) for v in cells.values()]))
    return {
        "graphs": points, "cell_graph": cell_graph, "cells": columns, "names": names,
        "alpha": alpha,
    }  # fmt: skip


def folds(names: Sequence[str], count: int) -> list[set[str]]:
    """Groups of names, the same on every call."""
    order = sorted(set(names), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return [set(order[i::count]) for i in range(count)]


def held_out(
    rows: Sequence[Row],
    by: Callable[[Row], str],
    count: int,
    settings: Settings = SETTINGS,
    progress: Callable[[str], None] = lambda _: None,
) -> list[tuple[Row, Estimator]]:
    """Each row with an estimator that was fitted without its fold."""
    out: list[tuple[Row, Estimator]] = []
    groups = folds([by(r) for r in rows], count)
    for number, fold in enumerate(groups):
        progress(f"fold {number + 1} of {len(groups)}")
        made = Estimator(fit([r for r in rows if by(r) not in fold], settings))
        out += [(r, made) for r in rows if by(r) in fold]
    return out


def calibrated(missed: Sequence[tuple[str, float]], coverage: float = 0.8) -> dict[str, float]:
    """Factors by basis and kind.

    Args:
        missed: of each held-out row its basis and kind, and by how many spreads it was missed.
    """
    found = dict(FACTORS)
    for key in found:
        off = sorted(abs(m) for k, m in missed if k == key)
        if off:
            found[key] = off[min(len(off) - 1, math.ceil(coverage * (len(off) + 1)) - 1)]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Fits to all rows and writes the file that ships."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, default=os.environ.get("EDGEKIT_BENCH_REFERENCE"))
    parser.add_argument(
        "--judged", type=Path, required=True, help="what estimate.py --out wrote: for the intervals"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    if args.reference is None:
        parser.error("say where the latency tables lie: --reference or EDGEKIT_BENCH_REFERENCE")
    rows = load(Path(args.reference))
    data = {"schema": "edgekit.estimator/1", "features": list(FEATURES), **fit(rows)}
    judged = json.loads(args.judged.read_text(encoding="utf-8"))
    data["interval"]["factors"] = judged["factors"]
    data["sources"] = sources(Path(args.reference), rows)
    args.out.write_text(json.dumps(rounded(data), separators=(",", ":"), sort_keys=True) + "\n")
    print(f"{args.out}: {args.out.stat().st_size} bytes from {len(rows)} rows")
    return 0


def sources(folder: Path, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What was fitted to: the tables, with the pages that they were taken from."""
    used = {r.setting.runtime for r in rows if scored(r)}
    return [
        {
            "table": name,
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            "from": _pages(folder / name),
        }
        for name in FILES
        if (folder / name).is_file() and used
    ]


def _pages(path: Path) -> str:
    import csv

    with path.open(encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))["source"]
    return first.split(" L")[0]


def rounded(value: Any) -> Any:
    """Plain lists and numbers of five digits."""
    if isinstance(value, dict):
        return {str(k): rounded(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return rounded(value.tolist())
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    raise SystemExit(main())
