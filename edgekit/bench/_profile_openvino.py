"""OpenVINO's performance counters: ``PERF_COUNT`` when it compiles.

They are no times of a call: each is the mean over all calls since the model was compiled, in whole
microseconds, and the first calls take several times as long. So they are read twice, after a few
calls and after all, and what lies between is told apart. One call that had to wait for a core moves
such a mean, hence several rounds, each with the model compiled anew. What the plug-in folded into
another layer, or left out, it lists as not executed; a layer under half a microsecond, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.bench import _timing
from edgekit.bench._profile import Layer, Layers, Task
from edgekit.runtime.session import Array
from edgekit.runtime.session_openvino import OpenVinoSession

_FIRST = 3
_ROUNDS = 5


def profile(task: Task) -> Layers:
    """See `edgekit.bench._profile`."""
    found = Layers(how="OpenVINO's PERF_COUNT", resolution_us=1.0)
    rounds = []
    for number in range(_ROUNDS):
        session = OpenVinoSession(task.path, task.signature, task.threads, {"PERF_COUNT": True})
        most = max(1, task.runs // _ROUNDS + (number < task.runs % _ROUNDS))
        rounds.append(_round(session, task.feeds, most, task.seconds / _ROUNDS, found))
        session.close()
    found.add(rounds)
    return found


def _round(
    session: OpenVinoSession,
    feeds: Mapping[str, Array],
    runs: int,
    seconds: float,
    found: Layers,
) -> list[Layer]:
    """The mean of each layer over some calls."""
    call = session.prepare(feeds)
    for _ in range(_FIRST):
        call()
    before = session.profiling_info()
    timed = _timing.repeat(call, runs, seconds)
    found.profiled_ns.extend(timed)
    calls = len(timed)
    means = {info.node_name: _us(info) for info in session.profiling_info()}
    layers: list[Layer] = []
    for info in (i for i in before if i.status == i.EXECUTED):
        total = means.get(info.node_name, 0.0) * (_FIRST + calls) - _us(info) * _FIRST
        took = max(0, round(1000 * total / calls))
        layers.append((info.node_name, info.node_type, info.exec_type, took))
    return layers


def _us(info: Any) -> float:
    return float(info.real_time.total_seconds() * 1e6)
