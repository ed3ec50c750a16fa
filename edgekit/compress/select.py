"""Choosing the fewest parts of a ranking that make something hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["TAKEN_BACK", "fewest"]

T = TypeVar("T")

TAKEN_BACK = 8
"""How many of the choices are tried to be done without, at most."""


def fewest(
    ranking: Sequence[T],
    holds: Callable[[Sequence[T]], bool],
    *,
    cost: Callable[[T], float] = lambda _: 1.0,
    taken_back: int = TAKEN_BACK,
) -> list[T] | None:
    """Few and cheap elements of a ranking with which ``holds``; None if not even all do.

    The ranking is taken from the top, twice as much of it every time, until it holds; how much was
    needed is found by halving, and then the dearest of it are left out one by one where it holds
    without them. That is some ``2 log2`` of the answer's length and ``taken_back`` questions. Every
    answer was asked about itself; that no smaller one exists is not promised.

    Args:
        ranking: best first.
        holds: whether a choice suffices; asked of non-empty choices, in the ranking's order.
        cost: of an element.
        taken_back: how many elements to try to do without, at most.
    """
    fails, count = 0, 1
    while not holds(ranking[: min(count, len(ranking))]):
        if count >= len(ranking):
            return None
        fails, count = count, 2 * count
    count = min(count, len(ranking))
    while count - fails > 1:
        middle = (fails + count) // 2
        if holds(ranking[:middle]):
            count = middle
        else:
            fails = middle
    chosen = list(range(count))
    # The last one is needed: without it, it was tried and did not hold.
    for index in sorted(chosen[:-1], key=lambda i: -cost(ranking[i]))[:taken_back]:
        rest = [i for i in chosen if i != index]
        if holds([ranking[i] for i in rest]):
            chosen = rest
    return [ranking[i] for i in chosen]
