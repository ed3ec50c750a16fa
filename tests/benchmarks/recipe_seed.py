"""What seeds of all recipes do alike: run the recipe, and time bundles beside each other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit import Bundle
from edgekit.bench.measure import BenchRequest, bench
from edgekit.bench.subjects import bundle_requests

__all__ = ["run_recipe", "side_by_side"]


def run_recipe(
    recipe: Path, data: Path, out: Path, settings: Mapping[str, Any], only: Sequence[str] = ()
) -> Mapping[str, Any]:
    """`edgekit run`, and its document; what of it is kept is not made again."""
    command = [sys.executable, "-m", "edgekit.cli.main", "run", str(recipe), "--json"]
    command += ["--data", str(data), "-o", str(out), *(f"--only={stage}" for stage in only)]
    command += [f"-s{name}={value}" for name, value in settings.items()]
    # A gate that does not hold is a figure here, not an end: exit code 1.
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(done.returncode)
    document: Mapping[str, Any] = json.loads(done.stdout)
    return document


def side_by_side(
    bundles: Mapping[str, Path], first: str, kept: Path, *, runs: int
) -> Mapping[str, Any]:
    """Latencies of all artifacts at one thread, in rounds beside each other.

    Args:
        bundles: by name.
        first: the name of the one that the others are held against.
        kept: a file that holds what was measured before, or will.
        runs: calls of each artifact.

    Returns:
        ``ms`` by bundle and runtime, ``ratio`` (latency over the first one's) by each other bundle
        and runtime, and ``bench``, the document.

    Raises:
        SystemExit: two could not be compared.
    """
    if kept.is_file():
        found: Mapping[str, Any] = json.loads(kept.read_text())
        return found
    requests: list[BenchRequest] = []
    for name, path in bundles.items():
        with Bundle.open(path) as opened:
            requests += [
                BenchRequest(**{**vars(r), "artifact": f"{name} {r.target}"})
                for r in bundle_requests(opened)
            ]
    pairs = [
        (f"{first} {request.target}", request.artifact)
        for request in requests
        if request.artifact.split()[0] != first
    ]
    document = bench(requests, threads=1, runs=runs, max_seconds=20.0, compare=pairs)
    ms: dict[str, dict[str, float]] = {name: {} for name in bundles}
    ratio: dict[str, dict[str, float]] = {name: {} for name in bundles if name != first}
    for row in document["results"]:
        name, target = row["artifact"].split()
        ms[name][target] = row["latency_ms"]["p50"]
    for row in document["comparisons"]:
        name, target = row["b"].split()
        if row["ratio"] is None:
            raise SystemExit(f"{row['b']} could not be compared with {row['a']}")
        ratio[name][target] = row["ratio"]
    made = {"ms": ms, "ratio": ratio, "bench": document}
    kept.write_text(json.dumps(made, allow_nan=False))
    return made
