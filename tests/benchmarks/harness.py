"""How far edgekit's own figures can be trusted: against the vendors' harnesses, and against noise.

    python tests/benchmarks/harness.py --out out/bench/harness.json

- *agree*: the same artifact, measured in turn by edgekit's worker and by the vendor's own harness,
  each in a fresh process, in rounds; p50 over p50 with its 95 % interval. OpenVINO's is
  ``benchmark_app`` (which asks the runtime how long a call took, and so leaves out some 5 us of the
  binding for Python), LiteRT's ``benchmark_litert_model`` (which loads the file as a CompiledModel;
  edgekit's session, and most apps, as an Interpreter). onnxruntime's wheel has none: the loop of
  its documentation, ``session.run`` between two looks at the clock, stands for it. Limit: 3 %.
  Beside it the same ratio of the fastest calls: where others take the cores, a median tells of
  them, and the fastest call still of the two harnesses.
- *noise*: one artifact measured again and again as `edgekit bench` does; the spread of p50 (largest
  less smallest, over the median) is to be at most 5 %.
- *planted*: trials in which one of two copies of an artifact has a slowdown of 10 % planted, and
  trials in which neither has. It is to be called slower in 19 of 20, and no difference to be shown
  in 19 of 20.
- *memory*: the peak of the worker, as the one file that goes to devices, less that of the shortest
  program that loads the same file in the same runtime and calls it. Limit: 5 MiB.

The model is torchvision's MobileNetV2 at 224 x 224 with the checkpoint in this folder, exported
here as int8; ``--bundle`` takes another. Latencies need a machine that does nothing else: the
report says how busy it was, and `counts` is false where others took part of a core.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import edgekit
from edgekit.bench.archive import worker_archive
from edgekit.bench.asking import COMMAND, LocalWorker, environment
from edgekit.bench.facts import host_facts, load_average
from edgekit.bench.measure import bench
from edgekit.bench.request import BenchRequest, parts, random_feeds
from edgekit.bench.subjects import bundle_requests
from edgekit.paired import MIN_RATIO_PAIRS, paired_ratio
from edgekit.runtime.bundle import Bundle

HERE = Path(__file__).parent
TARGETS = ("tflite", "openvino", "onnxruntime")
AGREE, SPREAD, SLOWDOWN, OVERHEAD_MIB = 0.03, 0.05, 0.10, 5.0
NOTED, TRIALS = 0.95, 20
QUIET = 0.2
"""Load average, as a share of the cores, up to which figures count."""

LITERT = """
import json, sys
from ai_edge_litert.tools import benchmark_litert_model as tool
tool.round = lambda value, digits=None: value  # it rounds its figures to 10 us
sys.argv = ["benchmark_litert_model", *sys.argv[1:]]
tool.main()
"""

LOADING = {
    "tflite": """
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
for detail, value in zip(interpreter.get_input_details(), feeds.values()):
    interpreter.set_tensor(detail["index"], value.astype(detail["dtype"]))
call = interpreter.invoke
""",
    "openvino": """
sys.modules["openvino_telemetry"] = None
import openvino
settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
request = openvino.Core().compile_model(sys.argv[1], "CPU", settings).create_infer_request()
call = lambda: request.infer(feeds, share_inputs=True)
""",
    "onnxruntime": """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 3
session = onnxruntime.InferenceSession(
    sys.argv[1], options, providers=["CPUExecutionProvider"])
call = lambda: session.run(None, feeds)
""",
}
"""The shortest programs that load a file in a runtime; ``call`` is one inference."""

HEAD = "import sys, time\nimport numpy as np\nfeeds = dict(np.load(sys.argv[2]))\n"
TIMING = """
for _ in range(int(sys.argv[3])):
    call()
times = []
for _ in range(int(sys.argv[4])):
    start = time.perf_counter()
    call()
    times.append(1e3 * (time.perf_counter() - start))
print("fastest", min(times), "median", sorted(times)[len(times) // 2])
"""
PEAK = """
for _ in range(30):
    call()
lines = open("/proc/self/status").read().splitlines()
print("peak", next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))
"""

# The worker with a slowdown planted: a call of a file whose name ends in "planted" is followed by
# so much more of waiting, awake.
PLANTED = """
import sys, time
from edgekit.bench import worker
plain, opened = worker.bare_call, worker.open_session
names = []
def open_session(target, path, *rest, **more):
    names.append(path.stem)
    return opened(target, path, *rest, **more)
def bare_call(session, feeds):
    call, clock = plain(session, feeds), time.perf_counter_ns
    if not names[-1].endswith("planted"):
        return call
    def slowed():
        start = clock()
        call()
        end = clock()
        until = end + int({slowdown} * (end - start))
        while clock() < until:
            pass
    return slowed
worker.bare_call, worker.open_session = bare_call, open_session
sys.exit(worker.main(sys.argv[1:]))
"""

Note = Callable[[str], None]


def output(argv: Sequence[str]) -> str:
    """What a command prints, with one thread for numpy and OpenMP."""
    done = subprocess.run(
        argv, env=environment(1), capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))[:300]}\n{done.stderr[-2000:]}")
    return done.stdout


Figures = dict[str, float]
"""``p50`` and ``fastest`` of some calls, in ms."""


def theirs(request: BenchRequest, feeds: Path, runs: int, warmup: int) -> Figures:
    """By the vendor's harness."""
    path = str(request.path)
    if request.target == "openvino":
        tool = str(Path(sys.executable).with_name("benchmark_app"))
        options = ["-d", "CPU", "-api", "sync", "-hint", "none", "-nstreams", "1", "-nthreads", "1"]
        options += ["-pin", "NO", "-infer_precision", "f32", "-niter", str(runs)]
        told = dict(
            (name, float(value) / (1000 if unit == "us" else 1))
            for name, value, unit in re.findall(
                r"(Median|Min):\s+([\d.]+) (us|ms)", output([tool, "-m", path, *options])
            )
        )
        return {"p50": told["Median"], "fastest": told["Min"]}
    if request.target == "tflite":
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            options = ["--model", path, "--num_threads", "1", "--num_runs", str(runs)]
            options += ["--warmup_runs", str(warmup), "--result_json", file.name]
            output([sys.executable, "-c", LITERT, *options])
            latency = json.loads(Path(file.name).read_text())["latency"]
            return {"p50": latency["median_ms"], "fastest": latency["min_ms"]}
    code = HEAD + LOADING[request.target] + TIMING
    said = output([sys.executable, "-c", code, path, str(feeds), str(warmup), str(runs)])
    words = said.split()
    return {"p50": float(words[-1]), "fastest": float(words[-3])}


def ours(request: BenchRequest, feeds: Path, runs: int, warmup: int) -> Figures:
    """By one block of edgekit's worker."""
    question = {
        **{"op": "bench", "target": request.target, "signature": request.signature.to_json()},
        **{"threads": 1, "warmup_runs": warmup, "warmup_seconds": 60.0},
        **{"runs": runs, "max_seconds": 600.0},
    }
    files = {"path": [request.path], "feeds": [feeds]}
    found = LocalWorker().ask(question, files, what=request.artifact, timeout=600, threads=1)
    return {"p50": median(found["samples_ms"]), "fastest": min(found["samples_ms"])}


SIDES = {"ours": ours, "theirs": theirs}


def agree(
    requests: Sequence[BenchRequest], folder: Path, rounds: int, runs: int, note: Note
) -> dict[str, Any]:
    """Ours over the vendors', round by round in turn."""
    found: dict[str, Any] = {}
    for request in requests:
        feeds, pairs = stored_feeds(request, folder), []
        for number in range(rounds):
            order = list(SIDES) if number % 2 == 0 else list(reversed(SIDES))
            pairs.append({side: SIDES[side](request, feeds, runs, 50) for side in order})
        entry: dict[str, Any] = {"target": request.target, "rounds": pairs}
        for figure in ("p50", "fastest") if rounds >= MIN_RATIO_PAIRS else ():
            sides = [[pair[side][figure] for pair in pairs] for side in ("theirs", "ours")]
            ratio = paired_ratio(*sides)
            entry[figure] = {
                "theirs_ms": median(sides[0]),
                "ours_ms": median(sides[1]),
                "ratio": ratio.ratio,
                "ci95": [ratio.low, ratio.high],
                "within_limit": abs(ratio.ratio - 1) <= AGREE,
            }
            note(f"agree {request.artifact}: {figure} {entry[figure]}")
        entry["within_limit"] = entry.get("p50", {}).get("within_limit", False)
        found[request.artifact] = entry
    return {"limit": AGREE, "artifacts": found}


def noise(
    request: BenchRequest, repeats: int, limits: dict[str, Any], note: Note
) -> dict[str, Any]:
    """The spread of p50 over repeats."""
    p50s = []
    for _ in range(repeats):
        result = bench([request], **limits)["results"][0]
        p50s.append(result["latency_ms"]["p50"])
    spread = (max(p50s) - min(p50s)) / median(p50s)
    note(f"noise {request.artifact}: {spread:.2%} over {repeats}")
    return {
        "artifact": request.artifact,
        "p50_ms": p50s,
        "spread": spread,
        "limit": SPREAD,
        "within_limit": spread <= SPREAD,
    }


def planted(
    request: BenchRequest, folder: Path, trials: int, limits: dict[str, Any], note: Note
) -> dict[str, Any]:
    """How often a planted slowdown is called slower, and none no difference."""
    copies = {}
    for name in ("plain", "same", "planted"):
        for part in parts(request.target, request.path):
            shutil.copy(part, folder / f"{name}{part.suffix}")
        copies[name] = BenchRequest(
            name, request.target, folder / f"{name}{request.path.suffix}", request.signature
        )
    worker = (sys.executable, "-c", PLANTED.format(slowdown=SLOWDOWN))
    verdicts: dict[str, list[Any]] = {"planted": [], "same": []}
    for _ in range(trials):
        for name, found in verdicts.items():
            pair = [copies["plain"], copies[name]]
            document = bench(pair, compare=[("plain", name)], worker=worker, **limits)
            comparison = document["comparisons"][0]
            found.append({key: comparison[key] for key in ("verdict", "ratio", "ci95", "unlike")})
        note(f"planted: {verdicts['planted'][-1]}; same: {verdicts['same'][-1]}")
    flagged = sum(v["verdict"] == "slower" for v in verdicts["planted"])
    quiet = sum(v["verdict"] == "no difference shown" for v in verdicts["same"])
    return {
        "artifact": request.artifact,
        "slowdown": SLOWDOWN,
        "trials": trials,
        "flagged": flagged,
        "not_flagged_without": quiet,
        "within_limit": min(flagged, quiet) >= NOTED * trials,
        "verdicts": verdicts,
    }


def memory(
    requests: Sequence[BenchRequest], folder: Path, repeats: int, note: Note
) -> dict[str, Any]:
    """What the worker takes beside the runtime, in MiB of peak memory."""
    archive = worker_archive(folder / "worker.pyz")
    shipped, found = LocalWorker((sys.executable, str(archive))), {}
    for request in requests:
        feeds = stored_feeds(request, folder)
        code = HEAD + LOADING[request.target] + PEAK
        bare, ours = [], []
        for _ in range(repeats):
            said = output([sys.executable, "-c", code, str(request.path), str(feeds)])
            bare.append(float(said.split()[-1]))
            question = {
                **{"op": "bench", "target": request.target, "threads": 1},
                **{"signature": request.signature.to_json(), "warmup_runs": 10},
                **{"warmup_seconds": 60.0, "runs": 20, "max_seconds": 60.0},
            }
            files = {"path": [request.path], "feeds": [feeds]}
            answer = shipped.ask(question, files, what=request.artifact, timeout=600, threads=1)
            ours.append(answer["peak_bytes"] / 2**20)
        added = median(ours) - median(bare)
        entry = {"bare_mib": bare, "worker_mib": ours, "added_mib": added}
        found[request.artifact] = {**entry, "within_limit": added < OVERHEAD_MIB}
        note(f"memory {request.artifact}: {added:.2f} MiB over {median(bare):.1f}")
    return {"limit_mib": OVERHEAD_MIB, "artifacts": found}


def stored_feeds(request: BenchRequest, folder: Path) -> Path:
    """The inputs of a request as a file."""
    path = folder / f"{request.artifact}.npz"
    feeds = request.feeds or random_feeds(request.signature)
    np.savez(path, allow_pickle=False, **feeds)
    return path


def exported(folder: Path) -> Path:
    """A bundle of MobileNetV2 for the three runtimes, int8."""
    from export_time import WEIGHTS, prepare

    files = prepare(folder, 16)
    command = [sys.executable, "-m", "edgekit.cli.main", "export", "torchvision:mobilenet_v2"]
    command += ["--weights", str(WEIGHTS), "--scheme", "w8a8", "--no-bench"]
    command += ["--without", "rounding"]
    command += [word for target in TARGETS for word in ("--target", target)]
    command += ["--calib", str(files["calib"]), "--eval", str(files["eval"])]
    env = {**os.environ, "EDGEKIT_STORE": str(folder / "store")}
    subprocess.run([*command, "-o", str(folder / "bundle")], env=env, check=True)
    return folder / "bundle"


def main() -> int:
    """Measures, writes the report, and returns 1 if a figure that counts is past its limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, help="measure this one")
    steps = ("agree", "noise", "planted", "memory")
    parser.add_argument("--only", nargs="+", choices=steps, default=steps)
    parser.add_argument("--rounds", type=int, default=10, help="of each comparison")
    parser.add_argument("--runs", type=int, default=200, help="calls a block of agree")
    parser.add_argument("--trials", type=int, default=TRIALS, help="repeats, and trials")
    options = parser.parse_args()

    def note(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    report: dict[str, Any] = {
        "benchmark": "harness",
        "edgekit": edgekit.__version__,
        "facts": host_facts(),
        "worker": " ".join(COMMAND[1:]),
    }
    load = report["facts"]["load_average"]
    with tempfile.TemporaryDirectory(prefix="harness-") as name:
        folder = Path(name)
        with Bundle.open(options.bundle or exported(folder)) as bundle:
            ids = [a.id for a in bundle.artifacts if a.target in TARGETS and a.io == "float32"]
            requests = bundle_requests(bundle, tuple(ids))
            # The one with the shortest loading, so that trials go fast.
            one = next((r for r in requests if r.target == "tflite"), requests[0])
            limits = {"rounds": options.rounds, "runs": 20 * options.rounds, "max_seconds": 20.0}
            measured: dict[str, Callable[[], dict[str, Any]]] = {
                "agree": lambda: agree(requests, folder, options.rounds, options.runs, note),
                "noise": lambda: noise(one, options.trials, limits, note),
                "planted": lambda: planted(one, folder, options.trials, limits, note),
                "memory": lambda: memory(requests, folder, 3, note),
            }
            report |= {step: measured[step]() for step in options.only}
    report["load_average_after"] = load_average()
    # Its own work is one process at a time, which the load before it does not have.
    report["counts"] = load is not None and load <= QUIET * report["facts"]["usable_cores"]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    if not report["counts"]:
        note(f"the machine was busy (load {load}): latencies do not count")
    bad = [step for step in options.only if not good(report[step])]
    timed = [step for step in bad if step != "memory"]
    return int("memory" in bad or (report["counts"] and bool(timed)))


def good(part: dict[str, Any]) -> bool:
    """Whether every figure of a part is within its limit."""
    entries = part.get("artifacts", {"": part})
    return all(entry.get("within_limit", False) for entry in entries.values())


if __name__ == "__main__":
    sys.exit(main())
