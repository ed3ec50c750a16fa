"""Known-bad copies of a reference, by which the verifier is tested on every run.

Every mutant is a fault that some converter or runtime has really shown: constants in storage order,
outputs in another order, a dead channel, one NaN, one wrong sample in a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.parity.gates import MIN_DISCRETE
from edgekit.parity.tally import class_axis
from edgekit.signature import TensorSpec

__all__ = ["Mutant", "Outputs", "Pair", "known_bad_mutants"]

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]
Pair = tuple[Outputs, Outputs]
Change = Callable[[Array], Array]

MATERIAL: Final = 0.3
"""A mutant whose change is under this share of the reference's norm proves nothing: left out."""

MATERIAL_COUNT: Final = 0.05
"""The same for the share of elements that differ, of integer and bool outputs."""

RARE: Final = 1000
"""The rare fault is in one call of this many, or of as many as `_RARE_ELEMENTS` allows."""
_RARE_ELEMENTS: Final = 2_000_000


@dataclass(frozen=True)
class Mutant:
    """A known-bad candidate.

    Attributes:
        name: the fault, and the output it is in.
        pairs: gives (reference, candidate) call by call.
    """

    name: str
    pairs: Callable[[], Iterator[Pair]]


def known_bad_mutants(
    references: Sequence[Outputs], outputs: Sequence[TensorSpec], offsets: Mapping[str, float]
) -> Iterator[Mutant]:
    """The mutants that differ materially from these references.

    Args:
        references: outputs of one call or more.
        outputs: the signature's outputs.
        offsets: by output, an offset that is far too large for every element, in its units.
    """
    yield from _order_mutants(references, outputs)
    for spec in outputs:
        values = [np.asarray(outs[spec.name]) for outs in references]
        if not sum(v.size for v in values):
            continue
        changed = partial(_changed, references, spec.name)
        yield Mutant(f"{spec.name} missing", partial(_dropped, references, spec.name))
        yield Mutant(f"{spec.name} of another dtype", partial(changed, _other_dtype))
        yield Mutant(f"{spec.name} of another shape", partial(changed, _other_shape))
        if spec.dtype != "bool":
            offset = partial(_shift, offsets[spec.name])
            yield Mutant(f"{spec.name} off by many steps", partial(changed, offset))
        if spec.dtype.startswith("float"):
            yield Mutant(f"{spec.name} with one NaN", partial(changed, _one_nan))
            yield Mutant(
                f"{spec.name} with NaN on both sides", partial(_nan_twice, references, spec.name)
            )
        for fault, change in _value_faults(spec, values).items():
            if _material(values, [change(v) for v in values]):
                yield Mutant(f"{spec.name} {fault}", partial(changed, change))
        axis = class_axis(spec)
        if spec.dtype.startswith("float") and axis is not None and spec.shape[axis] >= 2:
            channel = _last_strong_channel(values, axis)
            dead = partial(_dead_channel, axis, channel)
            if any(v.any() for v in values):
                yield Mutant(f"{spec.name} with channel {channel} dead", partial(changed, dead))
        yield from _rare_mutant(spec, references, values)


def _order_mutants(
    references: Sequence[Outputs], outputs: Sequence[TensorSpec]
) -> Iterator[Mutant]:
    surplus = "_".join(spec.name for spec in outputs) + "_"
    yield Mutant("an output too many", partial(_surplus, references, surplus))
    if len(outputs) < 2:
        return
    yield Mutant("outputs in another order", partial(_reordered, references))
    for a, b in pairwise(outputs):
        firsts, seconds = [r[a.name] for r in references], [r[b.name] for r in references]
        alike = (a.shape, a.dtype) == (b.shape, b.dtype)
        if not alike or (_material(firsts, seconds) and _material(seconds, firsts)):
            yield Mutant(f"{a.name} and {b.name} swapped", partial(_swapped, references, a, b))


def _value_faults(spec: TensorSpec, values: Sequence[Array]) -> dict[str, Change]:
    """Faults that keep dtype and shape, by name."""
    faults: dict[str, Change] = {"all zeros": np.zeros_like}
    long_axes = [i for i, n in enumerate(spec.shape) if n > 1]
    if len(long_axes) >= 2:
        faults["transposed in place"] = partial(_storage_order, long_axes[-2], long_axes[-1])
    if spec.dtype.startswith("float"):
        faults["doubled"] = partial(np.multiply, 2)
    return faults


def _rare_mutant(
    spec: TensorSpec, references: Sequence[Outputs], values: Sequence[Array]
) -> Iterator[Mutant]:
    """One call of many with its values turned upside down; the others are right."""
    if not spec.dtype.startswith("float") and values[0].size < MIN_DISCRETE:
        return  # A single class index may fall either way.
    each = sum(np.asarray(v).size for v in references[0].values())
    calls = min(RARE, max(len(references), _RARE_ELEMENTS // max(each, 1), 2))
    energies = [float(np.square(v, dtype=np.float64).sum()) for v in values]
    worst = int(np.argmax(energies))
    turned = _turned(values[worst])
    if _material([values[worst]], [turned]):
        bad = (references[worst], {**references[worst], spec.name: turned})
        name = f"{spec.name} wrong in one call of {calls}"
        yield Mutant(name, partial(_rarely, references, bad, calls))


def _changed(references: Sequence[Outputs], name: str, change: Change) -> Iterator[Pair]:
    return ((r, {**r, name: change(np.asarray(r[name]))}) for r in references)


def _dropped(references: Sequence[Outputs], name: str) -> Iterator[Pair]:
    return ((r, {k: v for k, v in r.items() if k != name}) for r in references)


def _surplus(references: Sequence[Outputs], name: str) -> Iterator[Pair]:
    return ((r, {**r, name: np.zeros(1, np.float32)}) for r in references)


def _reordered(references: Sequence[Outputs]) -> Iterator[Pair]:
    return ((r, dict(reversed(list(r.items())))) for r in references)


def _swapped(references: Sequence[Outputs], a: TensorSpec, b: TensorSpec) -> Iterator[Pair]:
    return ((r, {**r, a.name: r[b.name], b.name: r[a.name]}) for r in references)


def _nan_twice(references: Sequence[Outputs], name: str) -> Iterator[Pair]:
    for outs in references:
        bad = {**outs, name: _one_nan(np.asarray(outs[name]))}
        yield bad, bad


def _rarely(references: Sequence[Outputs], bad: Pair, calls: int) -> Iterator[Pair]:
    for i in range(calls - 1):
        outs = references[i % len(references)]
        yield outs, outs
    yield bad


def _other_dtype(x: Array) -> Array:
    return x.astype(np.float32 if x.dtype == np.float64 or x.dtype.kind != "f" else np.float64)


def _other_shape(x: Array) -> Array:
    return x[None]


def _shift(offset: float, x: Array) -> Array:
    # A one-element array: integers then wrap around in silence.
    amount = np.array([offset if x.dtype.kind == "f" else math.ceil(offset)]).astype(x.dtype)
    shifted: Array = np.add(x, amount).reshape(x.shape)
    return shifted


def _one_nan(x: Array) -> Array:
    out = x.copy()
    out.reshape(-1)[-1:] = np.nan
    return out


def _storage_order(a: int, b: int, x: Array) -> Array:
    return np.ascontiguousarray(np.swapaxes(x, a, b)).reshape(x.shape)


def _dead_channel(axis: int, channel: int, x: Array) -> Array:
    out = x.copy()
    np.moveaxis(out, axis, 0)[channel] = 0
    return out


def _turned(x: Array) -> Array:
    if x.dtype.kind == "b":
        return ~x
    return -x if x.dtype.kind == "f" else x.max(keepdims=True) + x.min(keepdims=True) - x


def _last_strong_channel(values: Sequence[Array], axis: int) -> int:
    """The last channel with at least half of the strongest one's energy."""
    others = tuple(i for i in range(values[0].ndim) if i != axis)
    energy = np.sum([np.square(v, dtype=np.float64).sum(axis=others) for v in values], axis=0)
    return int(np.flatnonzero(~(energy < energy.max() / 2))[-1])


def _material(values: Sequence[Array], mutated: Sequence[Array]) -> bool:
    """Whether the change is no trifle: `MATERIAL` of the norm, `MATERIAL_COUNT` of the integers."""
    change = norm = 0.0
    for before, after in zip(values, mutated, strict=True):
        change += float(np.square(after.astype(np.float64) - before).sum())
        norm += float(np.square(before, dtype=np.float64).sum())
    if values[0].dtype.kind != "f":
        differing = np.mean([np.mean(a != b) for a, b in zip(values, mutated, strict=True)])
        if differing < MATERIAL_COUNT:
            return False
    return change > 0 and change >= MATERIAL**2 * norm
