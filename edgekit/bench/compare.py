"""Two measurements held against each other: faster, slower, or no difference shown.

Measured in one run, round by round in turn, they are paired (`edgekit.paired.paired_ratio`).
Measured at different times they cannot be. Their rounds then stand as two independent samples of
block medians, and the interval of the ratio is Hodges and Lehmann's (Annals of Mathematical
Statistics, 1963): between two order statistics of all ratios of a round of b to one of a, by the
distribution of the Mann-Whitney statistic. It covers what fresh processes differ by, not what the
device was like at another time; the document says which of the two it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

from edgekit.bench import conditions
from edgekit.errors import BadData, UsageError
from edgekit.paired import MIN_RATIO_PAIRS, paired_ratio

__all__ = ["SCHEMA", "block_medians", "compare", "unpaired_ratio"]

SCHEMA: Final = "edgekit.bench-compare/1"

_ALIKE = ("cpu", "board", "machine", "isa", "cores", "usable_cores", "memory_mib", "os")
_WORDS = {"better": "faster", "worse": "slower"}


def compare(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]],
    *,
    names: tuple[str, str] = ("a", "b"),
    force: bool = False,
) -> dict[str, Any]:
    """Artifacts of ``b`` against artifacts of ``a``.

    Args:
        a: an ``edgekit.bench/1`` document.
        b: another, or the same.
        pairs: ids of an artifact in a and of one in b; what is compared.
        names: of the two, for people.
        force: compare also what was measured under unlike conditions.

    Returns:
        A document ``edgekit.bench-compare/1``. ``ratio`` is b's latency over a's.

    Raises:
        UsageError: an artifact is not in its document, or the conditions were unlike.
        BadData: fewer rounds than a comparison needs, or no latencies.
    """
    entries = [_entry(a, b, pair, names, force) for pair in pairs]
    return {"schema": SCHEMA, "a": names[0], "b": names[1], "comparisons": entries}


def _entry(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    pair: tuple[str, str],
    names: tuple[str, str],
    force: bool,
) -> dict[str, Any]:
    base, other = _find(a, pair[0], names[0]), _find(b, pair[1], names[1])
    unlike = [*_unlike_machines(a, b), *conditions.unlike(base, other)]
    if unlike and not force:
        raise UsageError(
            f"{names[0]}:{pair[0]} and {names[1]}:{pair[1]} were measured under unlike conditions: "
            + "; ".join(unlike),
            hint="measure them alike, or compare them all the same with --force",
        )
    costs = block_medians(base), block_medians(other)
    one_run = a == b and len(costs[0]) == len(costs[1])
    ratio, low, high, verdict = (
        _paired(*costs) if one_run else _unpaired(*costs, f"{pair[0]} and {pair[1]}")
    )
    changed = [f"{key}: {x} against {y}" for key, x, y in _versions(a, b, base, other) if x != y]
    return {
        "a": pair[0],
        "b": pair[1],
        "metric": "latency_p50",
        "paired": one_run,
        "rounds": [len(costs[0]), len(costs[1])],
        "p50_ms": [median(costs[0]), median(costs[1])],
        "ratio": ratio,
        "ci95": [low, high],
        "verdict": verdict,
        "unlike": unlike,
        "changed": changed,
    }


def _find(document: Mapping[str, Any], artifact: str, name: str) -> Mapping[str, Any]:
    for result in document["results"]:
        if result["artifact"] == artifact:
            found: Mapping[str, Any] = result
            return found
    known = ", ".join(result["artifact"] for result in document["results"])
    raise UsageError(f"{name} has no artifact {artifact!r}", hint=f"it has {known}")


def _unlike_machines(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    one, two = a["facts"], b["facts"]
    found = [
        f"{key}: {one.get(key)} against {two.get(key)}" for key in _ALIKE if _differ(key, one, two)
    ]
    if a["where"] != b["where"] and not found:
        found.append(f"device: {a['where']} against {b['where']}")
    return found


def _differ(key: str, one: Mapping[str, Any], two: Mapping[str, Any]) -> bool:
    return one.get(key) is not None and two.get(key) is not None and one[key] != two[key]


def _versions(
    a: Mapping[str, Any], b: Mapping[str, Any], base: Mapping[str, Any], other: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """What may well differ, and be why."""
    keys = ("kernel", "distribution", "python", "edgekit")
    facts = [(key, a["facts"].get(key), b["facts"].get(key)) for key in keys]
    mine = [(key, base.get(key), other.get(key)) for key in ("runtime", "bytes", "scheme")]
    return [*facts, *mine]


def block_medians(result: Mapping[str, Any]) -> list[float]:
    """The median latency of each round of an artifact, in ms, in the order measured.

    Raises:
        BadData: its samples do not add up to its rounds.
    """
    samples, medians, start = result["samples_ms"], [], 0
    for entry in result["rounds"]:
        block = samples[start : start + entry["n"]]
        start += entry["n"]
        if not block:
            raise BadData(f"artifact {result['artifact']!r}: a round without samples")
        medians.append(median(block))
    if start != len(samples) or not medians:
        raise BadData(
            f"artifact {result['artifact']!r}: {len(samples)} samples in rounds of {start} together"
        )
    return medians


def _paired(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float, str]:
    found = paired_ratio(a, b)
    return found.ratio, found.low, found.high, _WORDS.get(found.verdict, found.verdict)


def _unpaired(a: Sequence[float], b: Sequence[float], what: str) -> tuple[float, float, float, str]:
    if min(len(a), len(b)) < MIN_RATIO_PAIRS:
        raise BadData(
            f"{what}: {len(a)} and {len(b)} rounds; at least {MIN_RATIO_PAIRS} of each are needed",
            hint=f"measure with --rounds {MIN_RATIO_PAIRS} or more",
        )
    ratio, low, high = unpaired_ratio(a, b)
    verdict = "faster" if high < 1 else "slower" if low > 1 else "no difference shown"
    return ratio, low, high, verdict


def unpaired_ratio(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """The median ratio of a cost in ``b`` to one in ``a``, with its 95 % interval.

    Args:
        a: [N] positive costs.
        b: [M] positive costs.

    Raises:
        BadData: a cost is not positive and finite, or there are too few for 95 %.
    """
    if not all(math.isfinite(cost) and cost > 0 for cost in (*a, *b)):
        raise BadData("a cost of zero or less, or none, was measured; a ratio needs positive ones")
    ratios = sorted(math.log(y) - math.log(x) for x in a for y in b)
    outside = _mann_whitney_rank(len(a), len(b))
    if outside < 0:
        raise BadData(f"{len(a)} and {len(b)} rounds are too few for an interval of 95 %")
    low, high = ratios[outside], ratios[len(ratios) - 1 - outside]
    return math.exp(median(ratios)), math.exp(low), math.exp(high)


def _mann_whitney_rank(n: int, m: int) -> int:
    """How many of the n * m ordered differences to leave out on each side for 95 %; -1: too few.

    By the exact distribution of the statistic U where there are no ties: as many arrangements of
    the n and m values give U = u as there are partitions of u into at most n parts of at most m.
    """
    ways = [1] + [0] * (n * m)
    # The Gaussian binomial coefficient: times (1 - q^(m+i)), divided by (1 - q^i).
    for i in range(1, n + 1):
        for u in range(n * m, m + i - 1, -1):
            ways[u] -= ways[u - m - i]
        for u in range(i, n * m + 1):
            ways[u] += ways[u - i]
    total, below = math.comb(n + m, n), 0
    for u, count in enumerate(ways):
        below += count
        if 40 * below > total:  # more than 2.5 %
            return u - 1
    return -1
