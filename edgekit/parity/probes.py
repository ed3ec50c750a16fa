"""Inputs that no evaluation set holds, and the same input many times over."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.errors import BadData, UsageError
from edgekit.metrics import Floats
from edgekit.parity.gates import Check
from edgekit.signature import Signature, TensorSpec

__all__ = ["Probe", "check_repeatable", "extreme_feeds", "extreme_probes"]

Array = npt.NDArray[Any]
Feeds = dict[str, Array]

MIN_REPEATS: Final = 20
"""A fault in one run of five goes unseen 20 times with a chance of 0.8**20 = 1.2 %."""

FP16_TINY: Final = 6e-5
"""Just under half precision's smallest normal number, 2**-14."""

MIDDLE: Final = 128 / 255
"""How far up a range its middle probe lies: on a level of an 8-bit and of a 16-bit grid over the
range. Halfway would be between two levels, where the grid says nothing of which one is right."""


@dataclass(frozen=True)
class Probe:
    """One named input.

    Attributes:
        name: what is extreme about it.
        feeds: input name -> array, fitting the signature.
    """

    name: str
    feeds: Feeds


def check_repeatable(
    run: Callable[[Feeds], Mapping[str, Array]], feeds: Feeds, repeats: int = MIN_REPEATS
) -> Check:
    """Whether the same input gives the same bits every time.

    Args:
        run: the model; its outputs are digested at once, so it may reuse their memory.
        feeds: one input; handed over as it is, run after run.
        repeats: runs, 2 or more. Under `MIN_REPEATS` equal runs prove too little: not judged.

    Returns:
        a check whose value is the number of distinct outputs, its limit 1. It fails too if a run
        wrote into its input.

    Raises:
        UsageError: fewer than two repeats.
    """
    if repeats < 2:
        raise UsageError(f"{repeats} repeats can't differ", hint=f"ask for {MIN_REPEATS} or more")
    before = _digest(feeds)
    counts: dict[bytes, int] = {}
    for _ in range(repeats):
        digest = _digest(run(feeds))
        counts[digest] = counts.get(digest, 0) + 1
    detail = f"distinct outputs in {repeats} runs"
    passed: bool | None = len(counts) == 1
    if len(counts) > 1:
        detail += (
            f"; they came up {', '.join(map(str, sorted(counts.values(), reverse=True)))} times"
        )
    elif _digest(feeds) != before:
        passed, detail = False, f"{detail}; a run wrote into its input"
    elif repeats < MIN_REPEATS:
        passed, detail = None, f"{detail}; {MIN_REPEATS} are needed"
    return Check("repeatable", passed, len(counts), 1, detail)


def extreme_feeds(
    signature: Signature,
    seed: int = 0,
    *,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> list[Feeds]:
    """The feeds of `extreme_probes`."""
    return [probe.feeds for probe in extreme_probes(signature, seed, ranges=ranges)]


def extreme_probes(
    signature: Signature,
    seed: int = 0,
    *,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> list[Probe]:
    """Inputs beyond the evaluation set, each finite and within the plausible range.

    They are where converters and kernels are known to go wrong: all elements equal, negative zero,
    denormals, values that half precision flushes, one dominant value among zeros, alternating
    extremes, and seeded noise. Integer inputs get their lowest, highest and middle value and seeded
    noise; those with only two values (bool, or ``high`` of 1) are taken for masks, of which a
    stretch from the start is set, as a model has no right answer where a mask hides everything.

    Args:
        signature: of the model.
        seed: of the noise.
        ranges: lowest and highest plausible value by input name, such as calibration saw. Without:
            -1 to 1 for floats; 0 to ``high`` for integers that have it; all of uint8 and int8;
            0 to 1 for wider integers, as a larger one may index beyond a table.

    Returns:
        the probes, in a fixed order; those about float values only if there is a float input.

    Raises:
        BadData: a range of an unknown input, or that isn't lowest <= highest, both finite.
    """
    limits = {spec.name: _range(spec, (ranges or {}).get(spec.name)) for spec in signature.inputs}
    strange = [name for name in ranges or {} if name not in limits]
    if strange:
        raise BadData(f"range for unknown input {strange[0]!r}; inputs: {', '.join(limits)}")
    has_float = any(spec.dtype.startswith("float") for spec in signature.inputs)
    probes = []
    for index, name in enumerate(_FILLS):
        if name in _FLOAT_ONLY and not has_float:
            continue
        rng = np.random.default_rng([seed, index])
        feeds = {spec.name: _fill(name, spec, *limits[spec.name], rng) for spec in signature.inputs}
        probes.append(Probe(name, feeds))
    return probes


def _alternating(n: int, low: float, high: float) -> Floats:
    return np.where(np.arange(n) % 2 == 0, low, high)


def _dominant(n: int, high: float, rng: np.random.Generator) -> Floats:
    values = np.zeros(n)
    if n:
        values[rng.integers(n)] = high
    return values


_Fill = Callable[[int, float, float, np.random.Generator], Floats]
_FILLS: Final[dict[str, _Fill]] = {
    "all-low": lambda n, low, high, rng: np.full(n, low),
    "all-high": lambda n, low, high, rng: np.full(n, high),
    "all-middle": lambda n, low, high, rng: np.full(n, low + (high - low) * MIDDLE),
    "negative-zero": lambda n, low, high, rng: np.full(n, -0.0),
    "denormal": lambda n, low, high, rng: rng.choice([-1.0, 1.0], n),
    "fp16-tiny": lambda n, low, high, rng: rng.uniform(-FP16_TINY, FP16_TINY, n),
    "dominant-high": lambda n, low, high, rng: _dominant(n, high, rng),
    "dominant-low": lambda n, low, high, rng: _dominant(n, low, rng),
    "alternating": lambda n, low, high, rng: _alternating(n, low, high),
    "uniform": lambda n, low, high, rng: rng.uniform(low, high, n),
    "normal": lambda n, low, high, rng: rng.normal((low + high) / 2, (high - low) / 6, n),
}
_FLOAT_ONLY: Final = ("negative-zero", "denormal", "fp16-tiny", "dominant-high", "dominant-low")


def _fill(name: str, spec: TensorSpec, low: float, high: float, rng: np.random.Generator) -> Array:
    n = math.prod(spec.shape)
    if not spec.dtype.startswith("float"):
        return _fill_integer(name, spec, int(low), int(high), rng)
    values = _FILLS[name](n, low, high, rng)
    if name == "denormal":
        # Some tens of the dtype's smallest number, 100 being a denormal in every float dtype.
        values *= float(np.finfo(spec.dtype).smallest_subnormal) * rng.integers(1, 100, n)
        values = np.abs(values) if low >= 0 else values
    if name != "negative-zero" or not low <= 0 <= high:
        values = np.clip(values, low, high)
    return values.astype(spec.dtype).reshape(spec.shape)


def _fill_integer(
    name: str, spec: TensorSpec, low: int, high: int, rng: np.random.Generator
) -> Array:
    n = math.prod(spec.shape)
    random = name in (*_FLOAT_ONLY, "uniform", "normal")
    if (low, high) == (0, 1):
        length = spec.shape[-1] if spec.shape else 1
        kept = int(rng.integers(1, length + 1)) if random and length else length
        mask = np.broadcast_to(np.arange(length) < kept, spec.shape or (1,))
        return mask.astype(spec.dtype).reshape(spec.shape)
    if random:
        return rng.integers(low, high + 1, n).astype(spec.dtype).reshape(spec.shape)
    return np.rint(_FILLS[name](n, low, high, rng)).astype(spec.dtype).reshape(spec.shape)


def _range(spec: TensorSpec, given: tuple[float, float] | None) -> tuple[float, float]:
    if spec.dtype == "bool":
        return 0, 1
    floating = spec.dtype.startswith("float")
    info: np.finfo[Any] | np.iinfo[Any]
    info = np.finfo(spec.dtype) if floating else np.iinfo(spec.dtype)
    if given is not None:
        low, high = given
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise BadData(f"input {spec.name!r}: {given} isn't a lowest and a highest finite value")
        return max(low, float(info.min)), min(high, float(info.max))
    if floating:
        return -1.0, 1.0
    if spec.high is not None:
        return 0, spec.high
    return (float(info.min), float(info.max)) if spec.dtype in ("int8", "uint8") else (0, 1)


def _digest(tensors: Mapping[str, Array]) -> bytes:
    """A digest of names, order, dtypes, shapes and bits."""
    found = hashlib.sha256()
    for name, value in tensors.items():
        data = np.ascontiguousarray(value)
        found.update(f"{name}|{data.dtype.str}|{data.shape}|".encode())
        found.update(data.tobytes())
    return found.digest()
