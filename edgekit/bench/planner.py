"""Which scheme, how many threads and which runtime for a model on a device: a ranked table.

Most of what an estimate does not know, such as how fast the memory really is, two ways of running
one model on one device share. So ways are compared by the interval of their ratio, which is
narrower than their own intervals are: ranks whose ratio to the first may be one are ties.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgekit.bench.estimate import estimated, memory_of, shipped
from edgekit.bench.estimator import Estimate, Estimator, Probe
from edgekit.bench.features import WORK, Vector
from edgekit.bench.processors import KERNELS, thread_choices
from edgekit.bench.setting import GROUPS, Setting
from edgekit.bench.subject import Subject
from edgekit.device import Device, Job, plan_targets
from edgekit.errors import UnsupportedError

__all__ = ["ranked", "ratio_spread"]

_OWN = 0.8
_FLOOR = 0.05  # log latency, of a ratio of two runs on one device


@dataclass(frozen=True)
class _Way:
    job: Job
    threads: int
    found: Estimate
    x: Vector
    setting: Setting


def ratio_spread(known: Estimator, a: Setting, x: Vector, b: Setting, y: Vector) -> float:
    """Spread of the log of two latencies' ratio on one device: what they don't share is unknown.

    Args:
        known: coefficients.
        a, b: the two settings.
        x, y: features of the model in each.
    """
    s, t = known.shares(x, a), known.shares(y, b)
    apart, total = s - t, _FLOOR**2
    for (name, common, each), m, n in zip(GROUPS, a.groups(), b.groups(), strict=True):
        if m == n:
            total += each**2 * _norm(apart)
            continue
        for member, shares in ((m, s), (n, t)):
            if member not in known.groups.get(name, {}):
                total += common**2 + each**2 * _norm(shares)
    return math.sqrt(total)


def _norm(shares: Vector) -> float:
    work, memory = float((shares * WORK).sum()), float((shares * (1 - WORK)).sum())
    return work**2 + memory**2 + _OWN**2 * float((shares**2).sum())


def ranked(
    subject: Subject,
    device: Device,
    targets: Sequence[str] = (),
    *,
    probes: Sequence[Probe] = (),
) -> list[dict[str, Any]]:
    """All ways that can be estimated, fastest first, one row each with rank, tie and reason.

    Args:
        subject: the model.
        device: where.
        targets: ids; all that the device runs if empty.
        probes: runs on that device.

    Raises:
        UnsupportedError: none of them can be estimated.
    """
    ways, reasons = _ways(subject, device, targets, probes)
    if not ways:
        raise UnsupportedError(
            f"nothing that {device.id} runs can be estimated: {'; '.join(sorted(reasons))}"
        )
    ways.sort(key=lambda way: way.found.ms)
    best = ways[0]
    rows = []
    for number, way in enumerate(ways):
        ratio, low, high = _against(best, way)
        rows.append(
            {
                "rank": number + 1,
                "tied_with_first": number > 0 and low <= 1.0,
                "target": way.job.target,
                "delegate": way.job.delegate,
                "unit": "CPU",
                "scheme": way.job.scheme,
                "threads": way.threads,
                "latency_ms": {
                    "p50": _digits(way.found.ms),
                    "low": _digits(way.found.low),
                    "high": _digits(way.found.high),
                },
                "times_first": {
                    "ratio": round(ratio, 3),
                    "low": round(low, 3),
                    "high": round(high, 3),
                },
                "basis": way.found.basis,
                "peak_memory_mib": (memory_of(subject, way.job) or {}).get("value"),
                "reason": _reason(way, ways, device),
            }
        )
    return rows


def _digits(value: float) -> float:
    return float(f"{value:.4g}")


def _ways(
    subject: Subject, device: Device, targets: Sequence[str], probes: Sequence[Probe]
) -> tuple[list[_Way], set[str]]:
    ways: list[_Way] = []
    reasons: set[str] = set()
    wanted = targets or [entry.target for entry in device.targets if not entry.when_named]
    for target in dict.fromkeys(wanted):
        plan_targets([device], [target])  # an unknown one, or one that it does not run, is named
        schemes = dict.fromkeys(
            s for e in device.targets if e.target == target.partition(":")[0] for s in e.schemes
        )
        for scheme in schemes:
            try:
                jobs = plan_targets([device], [target], [scheme])
                for job in jobs:
                    for threads in thread_choices(device):
                        ways.append(_way(subject, device, job, threads, probes))
            except UnsupportedError as error:
                reasons.add(error.message)
    return ways, reasons


def _way(subject: Subject, device: Device, job: Job, threads: int, probes: Sequence[Probe]) -> _Way:
    found, x, setting, _ = estimated(subject, device, job, threads, probes)
    return _Way(job, threads, found, x, setting)


def _against(best: _Way, way: _Way) -> tuple[float, float, float]:
    """How many times the first's latency this takes, and the interval of that."""
    ratio = way.found.ms / best.found.ms
    if way is best:
        return 1.0, 1.0, 1.0
    known = shipped()
    spread = ratio_spread(known, best.setting, best.x, way.setting, way.x)
    widest = max(known.factor(w.found.basis, w.setting.precision) for w in (best, way))
    reach = math.exp(widest * spread)
    return ratio, ratio / reach, ratio * reach


_WHY: Final = {
    "int8": "int8 kernels",
    "fp32": "single-precision kernels",
}


def _reason(way: _Way, ways: Sequence[_Way], device: Device) -> str:
    """Why it stands where it stands, in a few words."""
    words = [_WHY[way.setting.precision]]
    isa = device.isa
    if way.setting.precision == "int8":
        fast = isa.i8mm or isa.dotprod or isa.avx512_vnni or isa.avx_vnni or isa.amx_int8
        words.append("with dot products" if fast else "without dot products: little gain")
    elif way.job.scheme != "fp32":
        words.append("on weights stored smaller: memory, not speed")
    if way.threads > device.cpu.big_cores:
        words.append("little cores hold the big ones up")
    elif way.threads > 1:
        one = next((w for w in ways if w.threads == 1 and w.job == way.job), None)
        if one is not None:
            words.append(f"{one.found.ms / way.found.ms:.1f} times one thread")
    if not KERNELS[way.job.target, way.job.delegate].measured:
        words.append("no table has this runtime")
    return ", ".join(words)
