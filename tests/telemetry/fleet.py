"""A fleet in virtual time: the real policy of each device, one server, and an outage.

What a device has to send is a number of windows; the schedule that says when, and what an answer
means, is `edgekit.runtime.schedule.Schedule` itself.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

from edgekit.runtime.schedule import Answer, Conditions, Pace, Schedule, Verdict, judge

__all__ = ["Fleet", "Outcome", "simulate"]

_OK = Answer(200, content_type="application/x-protobuf")


@dataclass(frozen=True)
class Fleet:
    """What is simulated.

    Attributes:
        devices: how many.
        days: for how long.
        outage: from which second to which nothing is answered.
        window_s: a device has one window more after so many seconds.
        per_request: windows that fit into a request.
        points: data points in a window.
        pace: the policy's settings.
        span_s: over how many seconds the server's load is taken; cap: points that it takes in them.
            Beyond, it answers 429 and asks for ten minutes.
    """

    devices: int
    days: float
    outage: tuple[float, float]
    window_s: float
    per_request: int
    points: int
    pace: Pace
    span_s: float
    cap: int


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    Attributes:
        produced, delivered, pending: windows.
        peak: the most points that came to the server within one span after the outage.
        steady: the same before the outage.
        refused: requests that it answered with 429.
        caught_up_s: how long after the outage the last device had sent its backlog; None: never.
        backlog: the longest of a device, in windows.
        requests: how many there were.
    """

    produced: int
    delivered: int
    pending: int
    peak: int
    steady: int
    refused: int
    caught_up_s: float | None
    backlog: int
    requests: int


def simulate(fleet: Fleet, seed: int = 0) -> Outcome:
    """Lets the time pass."""
    rng = random.Random(seed)
    schedules = [Schedule(fleet.pace, rng) for _ in range(fleet.devices)]
    born = [rng.uniform(0, fleet.window_s) for _ in range(fleet.devices)]
    sent = [0] * fleet.devices
    # A number that random.Random gives is as good for all; the order of the events is fixed.
    queue = [(schedule.first(), i) for i, schedule in enumerate(schedules)]
    heapq.heapify(queue)
    end = fleet.days * 86400.0
    loads: dict[int, int] = {}
    refused = requests = backlog = 0
    behind = set(range(fleet.devices))
    caught_up: float | None = None
    start, stop = fleet.outage
    clock = [0.0]
    conditions = Conditions()
    while queue[0][0] < end:
        now, i = queue[0]
        clock[0] = now
        waiting = int((now - born[i]) / fleet.window_s) + 1 - sent[i] if now >= born[i] else 0
        if not waiting or not schedules[i].streams(conditions):
            heapq.heapreplace(queue, (now + schedules[i].idle(), i))
            continue
        requests += 1
        batch = min(waiting, fleet.per_request)
        span = int(now / fleet.span_s)
        if start <= now < stop:
            answer = Answer(None)
        elif loads.get(span, 0) + batch * fleet.points > fleet.cap:
            loads[span] = loads.get(span, 0) + batch * fleet.points
            refused += 1
            answer = Answer(429, retry_after="600")
        else:
            loads[span] = loads.get(span, 0) + batch * fleet.points
            answer = _OK
        verdict: Verdict = judge(answer, lambda: clock[0])
        if verdict.fate == "delivered":
            backlog = max(backlog, waiting)
            sent[i] += batch
            waiting -= batch
            if now >= stop and not waiting and i in behind:
                behind.discard(i)
                caught_up = now - stop
        heapq.heapreplace(queue, (now + schedules[i].after(verdict, more=waiting > 0), i))
    produced = sum(int((end - b) / fleet.window_s) + 1 for b in born)
    edges = int(start / fleet.span_s), int(stop / fleet.span_s)
    return Outcome(
        produced=produced,
        delivered=sum(sent),
        pending=sum(
            int((end - b) / fleet.window_s) + 1 - s for b, s in zip(born, sent, strict=True)
        ),
        peak=max((n for span, n in loads.items() if span >= edges[1]), default=0),
        steady=max((n for span, n in loads.items() if span < edges[0]), default=0),
        refused=refused,
        caught_up_s=None if behind else caught_up,
        backlog=backlog,
        requests=requests,
    )
