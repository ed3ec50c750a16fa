"""Latency and peak memory of a model on a device that is not here: always an estimate.

The document says first what would not run where one might think it does, then the figures with
their intervals and what they rest on, and which layers take the time.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Final

from edgekit.bench.estimator import Estimate, Estimator, Probe
from edgekit.bench.features import BYTES, Vector, features, layer_features
from edgekit.bench.processors import COMPUTES, precision_of, setting_of
from edgekit.bench.setting import Setting
from edgekit.bench.subject import Subject
from edgekit.device import Device, Job

__all__ = ["FALL", "SCHEMA", "estimate", "estimated", "memory_of", "shipped"]

SCHEMA = "edgekit.estimate/1"

FALL: Final = {
    "median": 11.5,
    "p10": 3.2,
    "p90": 37.5,
    "n": 251,
    "source": "AI Hub: the same model, precision and device on the NPU and on the CPU",
}
"""How many times slower a model was on the CPU than on the accelerator that it fell off."""

_MIB = 2**20
_TOP = 10  # layers that are listed


@functools.cache
def shipped() -> Estimator:
    """The estimator that comes with edgekit."""
    return Estimator(_data("estimator.json"))


@functools.cache
def _data(name: str) -> dict[str, Any]:
    text = resources.files("edgekit.bench").joinpath(name).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def estimated(
    subject: Subject, device: Device, job: Job, threads: int, probes: Sequence[Probe] = ()
) -> tuple[Estimate, Vector, Setting, list[str]]:
    """The latency, the model's features, the setting, and what was assumed.

    Raises:
        UnsupportedError: nothing was measured that says how fast that is.
    """
    precision, stored = precision_of(job.scheme)
    setting, notes = setting_of(device, job.target, job.delegate, precision, threads)
    x = features(subject.layers, precision, stored)
    return shipped().estimate(x, setting, probes), x, setting, notes


def estimate(
    subject: Subject,
    device: Device,
    job: Job,
    *,
    threads: int | None = None,
    probes: Sequence[Probe] = (),
) -> dict[str, Any]:
    """A document ``edgekit.estimate/1``.

    Args:
        subject: the model, counted.
        device: where it would run.
        job: target, delegate and scheme, of `edgekit.device.plan_targets`.
        threads: of one call; the device's own if None.
        probes: runs on that device.

    Raises:
        UnsupportedError: nothing was measured that says how fast that is.
    """
    count = threads or device.threads
    found, _, setting, notes = estimated(subject, device, job, count, probes)
    precision, stored = precision_of(job.scheme)
    shares = [float(layer_features(a, precision, stored) @ found.rates) for a in subject.layers]
    order = sorted(range(len(shares)), key=lambda i: -shares[i])
    return {
        "schema": SCHEMA,
        "estimate": True,
        "model": subject.name,
        "device": device.id,
        "target": job.target,
        "delegate": job.delegate,
        "scheme": job.scheme,
        "threads": count,
        "precision": setting.precision,
        "falls_off": _falls_off(subject, device, job),
        "latency_ms": {
            "p50": _digits(found.ms),
            "low": _digits(found.low),
            "high": _digits(found.high),
        },
        "coverage": shipped().coverage,
        "basis": found.basis,
        "assumed": notes,
        "peak_memory_mib": memory_of(subject, job),
        "layers": [
            {
                "name": subject.layers[i].name,
                "kind": subject.layers[i].kind,
                "ms": _digits(shares[i]),
                "share": round(shares[i] / found.ms, 4),
            }
            for i in order[:_TOP]
        ],
        "by_kind": _by_kind(subject, shares, found.ms),
        "sources": [str(s["from"]) for s in _data("estimator.json")["sources"]],
    }  # fmt: skip


def _falls_off(subject: Subject, device: Device, job: Job) -> dict[str, Any]:
    """What would not run on an accelerator, or not even in the delegate."""
    placed = subject.placement.get(job.id)
    undelegated = None if placed is None else placed.get("undelegated_ops")
    known = isinstance(undelegated, int)
    why = "as its file in the bundle was seen to hold them"
    if placed is None:
        why = "known once the model is exported: estimate the bundle"
    elif not known:
        why = f"{job.target} does not say which operators {job.delegate} takes"
    return {
        "accelerators": [
            {"name": a.name, "kind": a.kind, "reason": a.reason, "advice": a.advice}
            for a in device.accelerators
        ],
        "delegate": {
            "name": job.delegate,
            "undelegated_ops": undelegated if known else None,
            "first": placed.get("first_undelegated") if placed and known else None,
            "why": why,
        },
        "slower": FALL,
    }


def _by_kind(subject: Subject, shares: Sequence[float], total: float) -> list[dict[str, Any]]:
    times: dict[str, float] = {}
    for layer, ms in zip(subject.layers, shares, strict=True):
        times[layer.kind] = times.get(layer.kind, 0.0) + ms
    order = sorted(times, key=lambda kind: -times[kind])
    return [
        {"kind": k, "ms": _digits(times[k]), "share": round(times[k] / total, 4)} for k in order
    ]


def memory_of(subject: Subject, job: Job) -> dict[str, Any] | None:
    """Peak memory of the process in MiB; None where nothing was measured of the runtime.

    What the runtime takes itself, the stored weights as often as it holds them, and the arena.
    """
    known: Mapping[str, Any] | None = _data("estimate_memory.json")["targets"].get(job.target)
    if known is None:
        return None
    integer = job.scheme == "w8a8"
    width = BYTES["int8" if integer else "fp32"]
    weights = subject.stored * COMPUTES[job.scheme][1] / _MIB
    arena = subject.live * width / _MIB
    row = known["int8" if integer else "float"]
    middle = known["base_mib"] + row["weights"] * weights + row["arena"] * arena
    return {
        "value": round(middle, 1),
        "low": round(middle * (1 - known["relative"]), 1),
        "high": round(middle * (1 + known["relative"]), 1),
        "runtime_mib": round(known["base_mib"], 1),
        "weights_mib": round(weights, 2),
        "arena_mib": round(arena, 2),
        "basis": known["basis"],
    }


def _digits(value: float) -> float:
    return float(f"{value:.4g}")
