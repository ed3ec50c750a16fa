"""Each method of the plan maker alone and left out: what it gives, and what it costs.

    python tests/benchmarks/bench_ablation.py --out out/ablation.json --imagenet imagenet500.zip

Every plan is evaluated in torch, as the reference that artifacts are proven against, on samples
that calibration has not seen. Beside the task metric stands the signal-to-quantization-noise ratio
of the outputs (dB, about each output's mean), which tells methods apart on few samples, and how
many answers stay the float model's. Data come by option or, as for ``bench_ptq.py``, from
``EDGEKIT_BENCH_IMAGENET`` and so on; a model without them is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ptq_models import MODELS, Arrays, Prepared, Unavailable

from edgekit.bench.facts import host_facts
from edgekit.metrics import top1_correct
from edgekit.paired import paired_difference

DATA = ("imagenet", "cifar10", "sst2")
ALONE: dict[str, dict[str, Any]] = {
    "equalization": {"equalization": True},
    "splitting": {"splitting": True},
    "smoothing": {"smoothing": True},
    "mse ranges": {"ranges": "mse"},
    "bias correction": {"bias_correction": True},
    "rounding": {"rounding": True},
}


def variants() -> dict[str, Any]:
    """Methods by the name of the table's row."""
    from edgekit.compress.ptq import PLAIN, Methods

    rows = {"none": PLAIN}
    rows |= {f"{name} alone": dataclasses.replace(PLAIN, **on) for name, on in ALONE.items()}
    rows["all"] = Methods()
    for name, on in ALONE.items():
        off = {key: "minmax" if key == "ranges" else False for key in on}
        rows[f"all but {name}"] = dataclasses.replace(Methods(), **off)
    return rows


def measure(ready: Prepared, limit: int | None, chosen: Sequence[str]) -> list[dict[str, Any]]:
    """One row per variant of one model."""
    import torch

    from edgekit.compress.graph import canonical, graph_module
    from edgekit.compress.ptq import post_training
    from edgekit.compress.render import render
    from edgekit.compress.unrounded import Unrounded
    from edgekit.model import Model

    examples = {name: torch.from_numpy(value[0].copy()) for name, value in ready.calib.items()}
    model = Model.from_module(ready.net, examples, name="ablation")
    names = [spec.name for spec in model.signature.inputs]
    program = canonical(model.program())
    feeds = {name: ready.evaluation[name][:limit] for name in names}
    labels = None if ready.labels is None else ready.labels[:limit]
    exact = _answers(graph_module(program), feeds, names)
    count = len(ready.calib[names[0]])
    calib = [tuple(torch.from_numpy(ready.calib[n][i]) for n in names) for i in range(count)]
    found = []
    for name, methods in variants().items():
        if chosen and name not in chosen:
            continue
        start = time.perf_counter()
        made = post_training(program, calib, methods)
        seconds = time.perf_counter() - start
        # What every runtime rounds; LiteRT rounds the results of linear layers, too.
        plan = Unrounded(gates=True, results=True).without(made.program, made.plan)
        answers = _answers(render(made.program, plan, "fake"), feeds, names)
        row = {"methods": name, "plan_s": seconds, **_judge(exact, answers, labels)}
        found.append(row)
        print(json.dumps(row), flush=True)
    return found


def _answers(module: Any, feeds: Arrays, names: Sequence[str]) -> np.ndarray[Any, Any]:
    from edgekit.compress.evaluate import evaluate

    answers = evaluate(module, feeds, names, ["answer"])["answer"]
    flat: np.ndarray[Any, Any] = answers.reshape(len(answers), -1)
    return flat


def _judge(
    exact: np.ndarray[Any, Any], answers: np.ndarray[Any, Any], labels: Any
) -> dict[str, Any]:
    about = exact - exact.mean(1, keepdims=True)
    noise = (answers - answers.mean(1, keepdims=True)) - about
    cosine = (exact * answers).sum(1) / (
        np.linalg.norm(exact, axis=1) * np.linalg.norm(answers, axis=1)
    )
    row: dict[str, Any] = {
        "n": len(exact),
        "sqnr_db": float(10 * np.log10((about**2).sum() / max((noise**2).sum(), 1e-30))),
    }
    if labels is None:
        return {**row, "cosine": float(cosine.mean()), "worst_cosine": float(cosine.min())}
    right, mine = top1_correct(exact, labels), top1_correct(answers, labels)
    difference = paired_difference(right, mine)
    return {
        **row,
        "top1": 100 * float(mine.mean()),
        "float_top1": 100 * float(right.mean()),
        "difference_points": 100 * difference.difference,
        "ci95": [100 * difference.low, 100 * difference.high],
        "agreement": 100 * float((exact.argmax(1) == answers.argmax(1)).mean()),
    }


def main() -> int:
    """Runs what was asked for; the report is written anew after every model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=list(variants()), default=[])
    parser.add_argument("--limit", type=int, help="evaluation samples at most")
    parser.add_argument("--threads", type=int, default=2)
    for data in DATA:
        place = os.environ.get(f"EDGEKIT_BENCH_{data.upper()}")
        parser.add_argument(f"--{data}", type=Path, default=Path(place) if place else None)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {"facts": host_facts(), "models": {}, "left_out": {}}
    for name in options.models:
        data = getattr(options, MODELS[name].data)
        try:
            if data is None:
                raise Unavailable(f"no --{MODELS[name].data}")
            ready = MODELS[name].prepare(data, 0)
        except Unavailable as error:
            report["left_out"][name] = str(error)
            print(f"{name}: left out: {error}", flush=True)
            continue
        report["models"][name] = measure(ready, options.limit, options.methods)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
