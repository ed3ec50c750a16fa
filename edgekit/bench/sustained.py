"""The latency of a chip that has been at work for minutes: a series over time, first against last.

What a phone gives in the first minute is not what it gives in the thirtieth, and neither is the
ranking of two models (one process, calls back to back; Arm's and Qualcomm's big cores lose a third
of their clock).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgekit.bench import conditions, document

__all__ = ["WINDOW", "summary"]

WINDOW: Final = 60.0
"""Seconds at each end that are compared; half of the time where that is less than two minutes."""

_POINTS: Final = 120  # of the series that is kept beside the samples


def summary(answer: Mapping[str, Any], cores: int | None) -> dict[str, Any]:
    """What one long block of calls comes to.

    Args:
        answer: the worker's.
        cores: that could be used, None if unknown.

    Returns:
        ``seconds``, ``samples_ms``, ``kept_every`` (calls that each sample stands for),
        ``series`` (``at_s`` at its end, ``p50``, ``p90``, ``n``, ``temperature_c``,
        ``frequency_mhz``), ``window_s``, ``first`` and ``last`` (percentiles of the window),
        ``ratio`` (last p50 over first), ``energy``, ``conditions``.
    """
    samples: list[float] = answer["samples_ms"]
    every = int(answer.get("kept_every", 1))
    ends = _ends(samples, every)
    seconds = ends[-1] if ends else 0.0
    window = min(WINDOW, seconds / 2)
    first = [s for s, end in zip(samples, ends, strict=True) if end <= window]
    last = [s for s, end in zip(samples, ends, strict=True) if end > seconds - window]
    head, tail = document.latency(first), document.latency(last)
    medians = [p["p50"] for p in (head, tail) if p is not None]
    return {
        "seconds": seconds,
        "samples_ms": samples,
        "kept_every": every,
        "series": _series(samples, ends, answer.get("looks") or []),
        "window_s": window,
        "first": head,
        "last": tail,
        "ratio": medians[1] / medians[0] if len(medians) == 2 else None,
        "energy": document.energy(
            [answer["energy"]] if answer.get("energy") else [], every * len(samples)
        ),
        "conditions": conditions.conditions([answer], [], cores),
    }


def _ends(samples: Sequence[float], every: int) -> list[float]:
    """Seconds of timed calls at the end of each sample."""
    ends, now = [], 0.0
    for sample in samples:
        now += every * sample / 1e3
        ends.append(now)
    return ends


def _series(
    samples: Sequence[float], ends: Sequence[float], looks: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Percentiles between two looks at the machine, and what was seen at the second."""
    step = max(1, -(-len(looks) // _POINTS))
    points, begin = [], 0
    for look in [*looks[step - 1 :: step], None]:
        end = len(samples) if look is None else min(int(look["n"]), len(samples))
        figures = document.latency(samples[begin:end])
        if figures is not None:
            points.append(
                {
                    "at_s": round(ends[end - 1], 3),
                    "p50": figures["p50"],
                    "p90": figures["p90"],
                    "n": figures["n"],
                    "temperature_c": None if look is None else look.get("temperature_c"),
                    "frequency_mhz": None if look is None else look.get("frequency_mhz"),
                }
            )
        begin = end
    return points
