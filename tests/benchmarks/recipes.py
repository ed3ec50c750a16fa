"""What the recipes reach on real data: the bars of each, over seeds, as a table.

    python tests/benchmarks/recipes.py --sst2 sst2/ --work out/bench/recipes --out recipes.json

    python tests/benchmarks/recipes.py --cifar cifar10.zip --length short --out cifar.json

Each seed is a run of the recipe itself (`edgekit run`), followed by what a recipe does not measure.
It takes hours (of a GPU, on CIFAR-10 at full length), and goes on where it was interrupted: a run's
stages are kept by the engine, and a seed that is done leaves its figures in ``--work``. A bar is
held by the mean over seeds; the interval is Student's, 95 %. Choices are made on dev, figures are
of test. ``--length short`` trains less where a part can: its figures are told, and hold no bar.
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

import recipe_cifar
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
        seed: runs one seed of a length in a folder, and gives its figures by name.
        lengths: that it knows; the first is the one that bars are for.
    """

    bars: tuple[Bar, ...]
    seed: Callable[[Path, Path, int, str], Mapping[str, Any]]
    lengths: tuple[str, ...] = ("full",)


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
    "cifar": Part(
        (
            Bar("alone", "MobileNetV2-0.35, no teacher: top-1 on test, %", 79.0),
            Bar("taught_gain", "points that its teacher brings", 2.0),
            Bar("pruned_time", "pruned, int8: part of the unpruned int8's time", 0.5, least=False),
            Bar("pruned_lost", "pruned, int8: points lost", 1.0, least=False),
        ),
        recipe_cifar.seed,
        tuple(recipe_cifar.LENGTHS),
    ),
}


def judged(bar: Bar, values: Sequence[float | None], *, whole: bool = True) -> Document:
    """A bar over its seeds: mean, interval and whether it was held.

    None where a seed has no figure, or where training was not of the ``whole`` length.
    """
    known = [value for value in values if value is not None]
    document: Document = {"name": bar.name, "title": bar.title, "limit": bar.limit}
    document |= {"least": bar.least, "seeds": list(values), "mean": None, "interval": None}
    if not known or len(known) < len(values):
        return document | {"held": None}
    mean = statistics.fmean(known)
    held = (mean >= bar.limit if bar.least else mean <= bar.limit) if whole else None
    if len(known) > 1:
        reach = _T[len(known) - 1] * statistics.stdev(known) / math.sqrt(len(known))
        document["interval"] = [mean - reach, mean + reach]
    return document | {"mean": mean, "held": held}


def table(parts: Mapping[str, Document]) -> str:
    """The bars as Markdown."""
    words = {True: "held", False: "NOT HELD", None: "not judged"}
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


def figures(part: Part, data: Path, work: Path, number: int, length: str) -> Mapping[str, Any]:
    """A seed's figures: those that it left, or made now."""
    kept = work / f"seed-{number}.json"
    if kept.is_file():
        found: Mapping[str, Any] = json.loads(kept.read_text())
        return found
    made = part.seed(data, work / f"seed-{number}", number, length)
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
    parser.add_argument("--length", default="full", choices=("full", "short"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    parts: dict[str, Document] = {}
    for name, part in PARTS.items():
        data: Path | None = getattr(options, name)
        if data is None:
            print(f"{name}: left out, there is no --{name}", file=sys.stderr)
            continue
        length = options.length if options.length in part.lengths else part.lengths[0]
        whole = length == part.lengths[0]
        work = options.work / (name if whole else f"{name}-{length}")
        work.mkdir(parents=True, exist_ok=True)
        seeds = []
        for number in range(options.seeds):
            seeds.append(figures(part, data, work, number, length))
            print(f"{name}, seed {number}: {json.dumps(seeds[-1]['bars'])}", file=sys.stderr)
        bars = [
            judged(bar, [seed["bars"][bar.name] for seed in seeds], whole=whole)
            for bar in part.bars
        ]
        parts[name] = {"length": length, "bars": bars, "seeds": seeds}
        document = {"edgekit": edgekit.__version__, "machine": host_facts(), "parts": parts}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
    print(table(parts))
    return int(any(bar["held"] is not True for p in parts.values() for bar in p["bars"]))


if __name__ == "__main__":
    sys.exit(main())
