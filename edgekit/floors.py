"""The floor of what may be asked of a runtime: how far a plan's own evaluation moves under noise.

Kernels sum in other orders. Where that alone moves a plan's answers by more than a scheme's figures
allow, these can't tell a right runtime from a wrong one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.parity import TOLERANCES, Check, OutputStats, ParityAccumulator, Tolerance
from edgekit.signature import Signature

Arrays = Mapping[str, npt.NDArray[Any]]

FLOOR_MARGIN_DB = 3.0
"""Runtimes round differently from torch by more than noise: integer pooling, fixed-point scales."""

FLOOR_FACTOR = 4.0
"""For the same reason, so many times more elements may be off by over two steps."""

LOWEST_DB = 20.0
"""A plan whose own evaluation moves by more than this is refused: nothing can be proven of it."""

__all__ = ["FLOOR_FACTOR", "FLOOR_MARGIN_DB", "LOWEST_DB", "limits", "lowers", "rounding_floor"]


def rounding_floor(
    signature: Signature,
    reference: Arrays,
    disturbed: Arrays,
    steps: Mapping[str, float | None],
    scheme: str,
) -> dict[str, Any]:
    """How far the plan's own evaluation moves under rounding noise.

    Args:
        signature: of the model.
        reference: the plan's outputs, [n, *shape] by name.
        disturbed: the same with `edgekit.compress.evaluate.with_rounding_noise`.
        steps: quantization step of each output.
        scheme: of the plan.

    Returns:
        ``{"sqnr_db", "within_fraction", "within_with_margin"}``: the lowest over the outputs, None
        where nothing moved. The last is the fraction under noise that is `FLOOR_MARGIN_DB` larger.
    """

    def stats(disturbed: Arrays) -> list[OutputStats]:
        accumulator = ParityAccumulator(signature.outputs, TOLERANCES[scheme], dict(steps))
        for i in range(len(next(iter(disturbed.values())))):
            accumulator.add(
                {k: v[i] for k, v in reference.items()}, {k: v[i] for k, v in disturbed.items()}
            )
        return list(accumulator.report(self_testing=False).outputs)

    def within(found: Sequence[OutputStats]) -> float | None:
        fractions = [s.within_fraction for s in found if s.within_fraction is not None]
        return min(fractions, default=None)

    def amplified(right: npt.NDArray[Any], moved: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if right.dtype.kind != "f":
            return moved
        larger: npt.NDArray[Any] = right + (moved - right) * 10 ** (FLOOR_MARGIN_DB / 20)
        return larger.astype(right.dtype)

    plain = stats(disturbed)
    ratios = [s.sqnr_db for s in plain if s.sqnr_db is not None and np.isfinite(s.sqnr_db)]
    larger = stats({k: amplified(reference[k], v) for k, v in disturbed.items()})
    return {
        "sqnr_db": min(ratios, default=None),
        "within_fraction": within(plain),
        "within_with_margin": within(larger),
    }


def limits(scheme: str, floor: Mapping[str, Any] | None) -> tuple[Tolerance, list[Check]]:
    """The scheme's figures, or the plan's own floor where the figures lie beyond it.

    In a deep graph a rounding that falls the other way in an early layer moves many elements later
    on, and on an even picture one tie moves a whole map. Where the plan's evaluation itself moves
    by more than a figure of the scheme allows, that figure can't tell a right runtime from a wrong
    one. Its limit is then taken from what the plan itself reaches: `FLOOR_MARGIN_DB` less, never
    under `LOWEST_DB`; `FLOOR_FACTOR` times as many elements off. A check of its own says so.

    What such limits let pass by themselves: one channel's bias many steps off, one channel's scale
    a tenth off, cutting off instead of rounding in one layer. The scheme's own 35 dB let these pass
    too in a third to a half of the layers of a mobile CNN (zero points off by one in none). So:

    - Where a limit was lowered, `edgekit.verify.look_closer` judges every layer by itself, which
      finds them all.
    - Everywhere, scales, zero points and weights are compared as stored, and so are biases where
      the format has them as integers.
    - What remains unseen, while the answers move by less than the scheme allows: a wrong bias in
      an OpenVINO file, and kernels that round wrongly in a single layer.
    """
    tolerance = TOLERANCES[scheme]
    floor = floor or {}
    sqnr, within = floor.get("sqnr_db"), floor.get("within_fraction")
    if sqnr is None:
        return tolerance, []
    limit = min(tolerance.sqnr_db, max(sqnr - FLOOR_MARGIN_DB, LOWEST_DB))
    wrong = 0.0 if within is None else 1 - within
    fraction = min(tolerance.within_fraction, 1 - FLOOR_FACTOR * wrong)
    if limit == tolerance.sqnr_db and fraction == tolerance.within_fraction:
        return tolerance, []
    adapted = dataclasses.replace(
        tolerance,
        sqnr_db=limit,
        worst_sample_db=limit - (tolerance.sqnr_db - tolerance.worst_sample_db),
        within_fraction=fraction,
    )
    detail = (
        f"dB: under rounding noise of 1e-6 the plan's own evaluation moves that far and "
        f"{wrong:.2%} of its elements by over 2 steps; so the limits here are {limit:.1f} dB "
        f"(not {tolerance.sqnr_db:g}) and {fraction:.2%} (not {tolerance.within_fraction:.1%})"
    )
    return adapted, [Check("plan-floor", sqnr >= LOWEST_DB, sqnr, LOWEST_DB, detail)]


def lowers(scheme: str, floor: Mapping[str, Any] | None) -> bool:
    """Whether limits of a scheme lie beyond what a plan with this floor reaches itself."""
    return bool(limits(scheme, floor)[1])
