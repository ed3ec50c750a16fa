"""Which channels go next, and how many of them until a cost is met."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch

from edgekit.compress._cut import Gone, Survey, Width

__all__ = ["Chunk", "Order", "gone_with", "order", "portion", "spend"]

Scope = Literal["global", "layer"]

_LEAST_GAIN: Final = 0.02
"""Of the largest gain, what a channel is taken to save at least: less can't be told from noise."""

_NEAR: Final = 0.97
"""A measured cost of at least so much of its target ends the search; it is known no better."""


@dataclass(frozen=True)
class Chunk:
    """Slots of one width that go together."""

    width: str
    slots: tuple[int, ...]


Order = Sequence[Chunk]


def portion(width: Width, multiple: int) -> int:
    """Slots that go at a time, so that as many channels are left as kernels like."""
    each = width.channels // width.slots
    return 1 if width.heads else math.lcm(multiple, each) // each


def gone_with(gone: Gone, chunks: Order) -> dict[str, frozenset[int]]:
    """What is gone once these chunks are gone as well."""
    found = dict(gone)
    for chunk in chunks:
        found[chunk.width] = found.get(chunk.width, frozenset()) | frozenset(chunk.slots)
    return found


def order(
    survey: Survey,
    gone: Gone,
    scores: Mapping[str, torch.Tensor],
    *,
    gains: Mapping[str, float] | None,
    multiple: int,
    most: float,
    scope: Scope,
    relative: bool = False,
) -> list[Chunk]:
    """All that may go, in the order in which it should.

    Args:
        survey: the widths.
        gone: what is gone already.
        scores: importance of slots, by width; widths without are left alone.
        gains: what a slot of each width saves, in any unit; None takes all for equal.
        multiple: of channels, left in each width once any went.
        most: share of a width's slots that may go, over all steps.
        relative: whether scores compare within a width only. Beside gains, a chunk then counts as
            the share that it is of what its width has left: the channels that are left of a layer
            get dearer as it gets narrower.
        scope: ``global`` ranks all chunks by importance over gain; ``layer`` takes the same share
            of each width.
    """
    floor = _LEAST_GAIN * max(gains.values(), default=0.0) if gains else 0.0
    waiting: dict[str, list[Chunk]] = {}
    for width in survey.widths:
        if width.name in scores:
            taken = gone.get(width.name, frozenset())
            waiting[width.name] = _chunks(width, taken, scores[width.name], multiple, most)
    place = {w.name: i for i, w in enumerate(survey.widths)}
    slots = {w.name: w.slots for w in survey.widths}
    went = {name: len(gone.get(name, ())) for name in waiting}
    left = {name: float(scores[name][scores[name].isfinite()].sum()) for name in waiting}

    def rank(chunk: Chunk) -> float:
        if scope == "layer":
            return (went[chunk.width] + len(chunk.slots)) / slots[chunk.width]
        missed = float(scores[chunk.width][list(chunk.slots)].sum())
        if gains is None:
            return missed / len(chunk.slots)
        if relative:
            missed /= max(left[chunk.width], 1e-12)
        gain = max(gains.get(chunk.width, 0.0), floor) or 1.0
        return missed / (gain * len(chunk.slots))

    heap = [(rank(some[0]), place[name], name) for name, some in waiting.items() if some]
    heapq.heapify(heap)
    found: list[Chunk] = []
    while heap:
        _, where, name = heapq.heappop(heap)
        chunk = waiting[name].pop(0)
        found.append(chunk)
        went[name] += len(chunk.slots)
        left[name] -= float(scores[name][list(chunk.slots)].sum())
        if waiting[name]:
            heapq.heappush(heap, (rank(waiting[name][0]), where, name))
    return found


def _chunks(
    width: Width, gone: frozenset[int], scores: torch.Tensor, multiple: int, most: float
) -> list[Chunk]:
    """The chunks of one width, least important first."""
    size = portion(width, multiple)
    least = max(size, math.ceil(width.slots * (1 - most) - 1e-9))
    left = width.slots - len(gone)
    ranked = [s for s in torch.argsort(scores, stable=True).tolist() if s not in gone]
    found = []
    while left > least:
        count = left % size or size
        if left - count < least:
            break
        found.append(Chunk(width.name, tuple(ranked[:count])))
        ranked, left = ranked[count:], left - count
    return found


def spend(
    chunks: Order,
    *,
    base: float,
    target: float,
    cost: Callable[[int], float],
    saved: Sequence[float] | None,
    tries: int,
) -> tuple[int, float]:
    """How many of the chunks, from the first on, bring a cost down to its target.

    Bisection. A measured cost falls only roughly with what is cut, so an answer is always a count
    whose own cost was seen to meet the target, if not the least of these.

    Args:
        chunks: in their order.
        base: the cost with none of them gone.
        target: what is wanted.
        cost: with the first so many gone.
        saved: what each chunk is thought to save, where costs take long to measure: the search
            then starts where these say, corrected by what was measured, and ends near the target.
            None looks as long as there is anything between.
        tries: costs to ask for at most, once one met the target; for measured ones.

    Returns:
        The count and its cost; (0, base) where the target is met already. Where all chunks
        together don't meet it, their number and their cost.
    """
    if base <= target or not chunks:
        return 0, base
    low, high = 0, len(chunks) + 1
    best: tuple[int, float] | None = None
    sums = [0.0]
    for one in saved or ():
        sums.append(sums[-1] + one)
    scale, asked = 1.0, 0
    while high - low > 1:
        middle = (low + high) // 2
        if saved is not None:
            wanted = (base - target) / scale if scale > 0 else sums[-1]
            middle = next((i for i, s in enumerate(sums) if s >= wanted), len(chunks))
            middle = min(max(middle, low + 1), high - 1)
        elif best is None:
            middle = len(chunks)
        found, asked = cost(middle), asked + 1
        if found <= target:
            high, best = middle, (middle, found)
        elif middle == len(chunks):
            return middle, found
        else:
            low = middle
        if saved is not None:
            scale = max((base - found) / sums[middle], 0.25 * scale) if sums[middle] > 0 else scale
            if best is not None and (best[1] >= _NEAR * target or asked >= tries):
                break
            if best is None and asked >= tries:
                low = len(chunks) - 1  # the last word on whether it can be met at all
    assert best is not None
    return best
