"""What the recipes reach on real data: the bars of each, over seeds, as a table.

    python tests/benchmarks/recipes.py --sst2 sst2/ --work out/bench/recipes --out recipes.json

Each seed is a run of the recipe itself (`edgekit run`), followed by what a recipe does not measure.
It takes hours, and goes on where it was interrupted: a run's stages are kept by the engine, and a
seed that is done leaves its figures in ``--work``. A bar is held by the mean over seeds; the
interval is Student's, 95 %. Choices are made on dev, figures are of test.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import recipe_sst2

import edgekit
from edgekit.bench.facts import host_facts

Document = dict[str, Any]

SEEDS: Final = 3

# Student's t, two-sided 95 %, by degrees of freedom.
_T: Final = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}


@dataclass(frozen=True)
class Bar:
    """A figure that a recipe has to reach.

    Attributes:
        name: of the figure, among those that a seed gives.
        title: for the table.
        limit: what it is held to.
        least: whether it may not be less, or else not more.
    """

    name: str
    title: str
    limit: float
    least: bool = True


@dataclass(frozen=True)
class Part:
    """A recipe on one set of data.

    Attributes:
        bars: what it has to reach.
        seed: runs one seed in a folder, and gives its figures by name.
    """

    bars: tuple[Bar, ...]
    seed: Callable[[Path, Path, int], Mapping[str, Any]]


PARTS: Final[Mapping[str, Part]] = {
    "sst2": Part(
        (
            Bar("teacher_test", "teacher, top-1 on test, %", 88.5),
            Bar("student_share", "3 layers: part of the teacher's accuracy, %", 97.0),
            Bar("student_speed", "3 layers: times the teacher's speed", 1.8),
            Bar("narrow_share", "narrow, int8: part of the teacher's accuracy, %", 96.0),
            Bar("narrow_smaller", "narrow, int8: times smaller than the float teacher", 10.0),
            Bar("narrow_speed", "narrow, int8: times the float teacher's speed", 6.0),
            Bar("int8_lost", "int8: points lost on dev and test together", 0.5, least=False),
        ),
        recipe_sst2.seed,
    ),
}


def judged(bar: Bar, values: Sequence[float | None]) -> Document:
    """A bar over its seeds: mean, interval and whether it was held; None where a seed has none."""
    known = [value for value in values if value is not None]
    document: Document = {"name": bar.name, "title": bar.title, "limit": bar.limit}
    document |= {"least": bar.least, "seeds": list(values), "mean": None, "interval": None}
    if not known or len(known) < len(values):
        return document | {"held": None}
    mean = statistics.fmean(known)
    held = mean >= bar.limit if bar.least else mean <= bar.limit
    if len(known) > 1:
        reach = _T[len(known) - 1] * statistics.stdev(known) / math.sqrt(len(known))
        document["interval"] = [mean - reach, mean + reach]
    return document | {"mean": mean, "held": held}


def table(parts: Mapping[str, Document]) -> str:
    """The bars as Markdown."""
    words = {True: "held", False: "NOT HELD", None: "not measured"}
    lines = ["| data | | bar | mean | 95 % interval | |", "|---|---|---|---|---|---|"]
    for name, part in parts.items():
        for bar in part["bars"]:
            sign = "at least" if bar["least"] else "at most"
            mean = "-" if bar["mean"] is None else f"{bar['mean']:.2f}"
            interval = bar["interval"]
            reach = "-" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"
            limit = f"{sign} {bar['limit']:g}"
            cells = (name, bar["title"], limit, mean, reach, words[bar["held"]])
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def figures(part: Part, data: Path, work: Path, number: int) -> Mapping[str, Any]:
    """A seed's figures: those that it left, or made now."""
    kept = work / f"seed-{number}.json"
    if kept.is_file():
        found: Mapping[str, Any] = json.loads(kept.read_text())
        return found
    made = part.seed(data, work / f"seed-{number}", number)
    aside = kept.with_suffix(".part")
    aside.write_text(json.dumps(made, indent=2, allow_nan=False) + "\n")
    aside.replace(kept)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what data are given for; 1 if a bar is not held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in PARTS:
        given = os.environ.get(f"EDGEKIT_BENCH_{name.upper()}")
        parser.add_argument(f"--{name}", type=Path, default=given and Path(given), metavar="PATH")
    parser.add_argument("--work", type=Path, default=Path("out/bench/recipes"))
    parser.add_argument("--seeds", type=int, default=SEEDS, choices=range(1, len(_T) + 2))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    parts: dict[str, Document] = {}
    for name, part in PARTS.items():
        data: Path | None = getattr(options, name)
        if data is None:
            print(f"{name}: left out, there is no --{name}", file=sys.stderr)
            continue
        work = options.work / name
        work.mkdir(parents=True, exist_ok=True)
        seeds = []
        for number in range(options.seeds):
            seeds.append(figures(part, data, work, number))
            print(f"{name}, seed {number}: {json.dumps(seeds[-1]['bars'])}", file=sys.stderr)
        bars = [judged(bar, [seed["bars"][bar.name] for seed in seeds]) for bar in part.bars]
        parts[name] = {"bars": bars, "seeds": seeds}
        document = {"edgekit": edgekit.__version__, "machine": host_facts(), "parts": parts}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
    print(table(parts))
    return int(any(bar["held"] is not True for p in parts.values() for bar in p["bars"]))


if __name__ == "__main__":
    sys.exit(main())
