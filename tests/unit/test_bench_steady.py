"""Steadiness: where a series of latencies changes, and when it became steady."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from edgekit.bench import steady


def noisy(*pieces: tuple[int, float]) -> list[float]:
    """Pieces of (calls, ms), with 2 % of noise upwards and now and then a spike."""
    rng = np.random.default_rng(1)
    parts = [ms * (1 + 0.02 * np.abs(rng.standard_normal(n))) for n, ms in pieces]
    series = np.concatenate(parts)
    series[rng.random(series.size) < 0.02] *= 4
    return [float(v) for v in series]


@pytest.mark.parametrize(
    ("pieces", "state", "start"),
    [
        ([(200, 5.0)], "flat", 0),
        ([(40, 7.5), (160, 5.0)], "warmup", 40),
        ([(100, 5.0), (100, 6.5)], "slowdown", 100),
        ([(30, 8.0), (30, 5.0), (140, 6.5)], "slowdown", 60),
        ([(190, 5.0), (25, 8.0)], "unsteady", None),
        ([(19, 5.0)], "unknown", None),
        ([(20_000, 6.0), (60_000, 5.0)], "warmup", 20_000),
    ],
)
def test_the_series_is_cut_where_it_changes(
    pieces: list[tuple[int, float]], state: str, start: int | None
) -> None:
    found = steady.steadiness(noisy(*pieces))
    assert found.state == state
    if start is None:
        assert found.start is None
    else:
        assert found.start is not None and abs(found.start - start) <= max(5, 0.01 * start)


def test_noise_alone_is_no_change() -> None:
    rng = np.random.default_rng(2)
    makers = (
        lambda: np.exp(0.1 * rng.standard_normal(200)),
        lambda: 1 + 0.05 * rng.standard_gamma(1, 200),
        lambda: np.full(200, 3.0),
    )
    states = [steady.steadiness(list(make())).state for make in makers for _ in range(30)]
    assert states.count("flat") >= 89


def test_changepoints_are_the_cheapest_cuts() -> None:
    """Against a search of all cuts into two or three pieces, under the same cost."""
    rng = np.random.default_rng(3)
    for step in (0.0, 0.4, 3.0):
        values = np.concatenate([rng.standard_normal(15), step + rng.standard_normal(14)])
        scaled = (values - values.mean()) / values.std()

        def cost(*ends: int, data: Any = scaled) -> float:
            edges = [0, *ends, data.size]
            parts = [data[a:b] for a, b in pairwise(edges)]
            fit = sum(p.size * float(np.log(max(p.var(), 1e-6))) for p in parts)
            return fit + 15 * float(np.log(data.size)) * len(ends)

        cuts = [(), *((i,) for i in range(5, 25))]
        cuts += [(i, j) for i in range(5, 20) for j in range(i + 5, 25)]
        assert tuple(steady.changepoints(values)) == min(cuts, key=lambda c: cost(*c))
