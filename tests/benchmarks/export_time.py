"""One edgekit export to six targets against the vendors' own tools, one after the other.

    python tests/benchmarks/export_time.py --out out/bench/export_time.json

The model is torchvision's MobileNetV2 at 224 x 224 with the weights of the CIFAR-10 checkpoint in
this folder (its parameters are the same): with random weights and settled statistics the plan's own
evaluation moves to 17 dB under rounding noise of one part in a million, of which nothing can be
proven, and edgekit refuses it. Pictures are made; weights and pictures are files that every side
reads. All quantize to int8 weights and activations, calibrated with all calibration pictures.

- *vendors*: the six scripts of ``vendor_steps.py``, each in a fresh process; their times added up.
  Each builds the network, calibrates, quantizes, converts and writes its file. Nothing is checked.
- *edgekit*: ``edgekit export --no-bench`` with an empty store: the plan with all its methods, six
  int8 artifacts and their float twins, each int8 artifact run in its runtime (Core ML in the
  emulation) on `EVALUATION` other pictures and on probes, held against the plan, gates, bundle.
- *edgekit-plain*: the same ``--without rounding``, the method that no vendor's tool here has.
- *edgekit-whole*: as *edgekit*, and latency and memory measured beside the float twins.

Sides take turns, in another order each round. Wall time depends on what else the machine does and
on its cores (edgekit makes two targets at a time); processor time, of a process and all that it
started, hardly does. A ratio is the median of the rounds' with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgekit.bench.facts import host_facts
from edgekit.paired import MIN_RATIO_PAIRS, paired_ratio

HERE = Path(__file__).parent
TARGETS = ("tflite", "openvino", "onnxruntime", "executorch", "torch-mobile", "coreml")
SIDE = 224
EVALUATION = 16
"""Pictures that edgekit proves on; the vendors' tools have no use for them."""
WEIGHTS = HERE / "checkpoints" / "cifar10_mobilenet_v2.safetensors"
LIMIT = 0.8
"""The aim: edgekit's time over the sum of the vendors'."""

SIDES: dict[str, list[str] | None] = {
    "vendors": None,
    "edgekit": ["--no-bench"],
    "edgekit-plain": ["--no-bench", "--without", "rounding"],
    "edgekit-whole": [],
}
"""What each side gives to ``edgekit export``; the vendors, nothing."""

PACKAGES = (
    "torch", "torchvision", "torchao", "litert-torch", "ai-edge-quantizer", "openvino", "nncf",
    "onnx", "onnxruntime", "executorch", "coremltools",
)  # fmt: skip


def prepare(folder: Path, samples: int) -> dict[str, Path]:
    """Writes calibration and other pictures: flat discs on a gradient, with noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    pictures = rng.normal(0, 0.1, (samples + EVALUATION, 1, 3, SIDE, SIDE)).astype(np.float32)
    for picture in pictures[:, 0]:
        picture += rng.uniform(-1, 1, (3, 1, 1)) * rows + rng.uniform(-1, 1, (3, 1, 1)) * columns
        for _ in range(8):
            x, y, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.05, 0.3)
            inside = np.hypot(columns - x, rows - y) < radius
            picture[:, inside] = rng.uniform(-2, 2, (3, 1))
    files = {"calib": folder / "calib.npz", "eval": folder / "eval.npz"}
    np.savez(files["calib"], x=pictures[:samples])
    np.savez(files["eval"], x=pictures[samples:])
    return files


def timed(command: Sequence[str], environment: dict[str, str], log: Path) -> dict[str, float]:
    """Runs a command; seconds of wall time and of the processors, children included.

    Raises:
        RuntimeError: it failed; with the last it printed.
    """
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}\n{tail}")
    return {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime}


def run_side(side: str, files: dict[str, Path], environment: dict[str, str]) -> dict[str, Any]:
    """One side once, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="export-time-") as name:
        folder = Path(name)
        options = SIDES[side]
        if options is not None:
            command = [sys.executable, "-m", "edgekit.cli.main", "export"]
            command += ["torchvision:mobilenet_v2", "--weights", str(WEIGHTS)]
            command += [word for target in TARGETS for word in ("--target", target)]
            command += ["--scheme", "w8a8", *options]
            command += ["--calib", str(files["calib"]), "--eval", str(files["eval"])]
            command += ["-o", str(folder / "bundle")]
            own = {**environment, "EDGEKIT_STORE": str(folder / "store")}
            return timed(command, own, folder / "log.txt")
        parts = {}
        for target in TARGETS:
            (folder / target).mkdir()
            command = [sys.executable, str(HERE / "vendor_steps.py"), target]
            command += [str(WEIGHTS), str(files["calib"]), str(folder / target)]
            parts[target] = timed(command, environment, folder / "log.txt")
        total = {key: sum(p[key] for p in parts.values()) for key in ("wall_s", "cpu_s")}
        return {**total, "tools": parts}


def compare(rounds: Sequence[dict[str, Any]], sides: Sequence[str]) -> dict[str, Any]:
    """Every side of edgekit's over the vendors, by wall and by processor time."""
    if len(rounds) < MIN_RATIO_PAIRS:
        return {}
    found: dict[str, Any] = {}
    for side in (s for s in sides if s != "vendors"):
        found[side] = {}
        for key in ("wall_s", "cpu_s"):
            theirs, ours = ([r[s][key] for r in rounds] for s in ("vendors", side))
            ratio = paired_ratio(theirs, ours)
            found[side][key] = {
                "ratio": ratio.ratio,
                "ci95": [ratio.low, ratio.high],
                "n": ratio.n,
                "verdict": ratio.verdict,
                "at_most_limit": ratio.high <= LIMIT,
            }
    return found


def report(rounds: Sequence[dict[str, Any]], sides: Sequence[str], samples: int) -> dict[str, Any]:
    """What is written: facts, medians, ratios and every round."""
    medians = {
        side: {key: median(r[side][key] for r in rounds) for key in ("wall_s", "cpu_s")}
        for side in sides
    }
    if "vendors" in sides:
        medians["vendors"]["tools"] = {
            t: median(r["vendors"]["tools"][t]["cpu_s"] for r in rounds) for t in TARGETS
        }
    return {
        "benchmark": "export_time",
        "facts": host_facts(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "model": f"torchvision mobilenet_v2, {SIDE} x {SIDE}, CIFAR-10 checkpoint, w8a8",
        "samples": samples,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "limit": LIMIT,
        "medians": medians,
        "ratios": compare(rounds, sides),
        "rounds": list(rounds),
    }


def main() -> int:
    """Runs the rounds; the report is written anew after every one. 1 if the aim is not reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=MIN_RATIO_PAIRS)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    options = parser.parse_args()
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "NO_COLOR": "1"}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="export-time-") as folder:
        files = prepare(Path(folder), options.samples)
        for number in range(options.rounds):
            turn = number % len(options.sides)
            done = {}
            for side in (*options.sides[turn:], *options.sides[:turn]):
                done[side] = run_side(side, files, environment)
                shown = {k: round(done[side][k], 1) for k in ("wall_s", "cpu_s")}
                print(f"round {number + 1}, {side}: {shown}", flush=True)
            rounds.append(done)
            made = report(rounds, options.sides, options.samples)
            options.out.write_text(json.dumps(made, indent=2, allow_nan=False) + "\n")
    ratios = made["ratios"]
    for side, kinds in ratios.items():
        for key, r in kinds.items():
            low, high = r["ci95"]
            print(f"{side} takes {r['ratio']:.2f} ({low:.2f} to {high:.2f}) of the vendors' {key}")
    return 0 if ratios.get("edgekit", {}).get("wall_s", {}).get("at_most_limit") else 1


if __name__ == "__main__":
    sys.exit(main())
