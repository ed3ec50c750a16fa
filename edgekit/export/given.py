"""Plans that an export is given, instead of making its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import BadData, UsageError
from edgekit.export.request import ExportRequest

if TYPE_CHECKING:
    import torch

    from edgekit.compress.ptq import Quantized

__all__ = ["GivenPlan", "about_given", "given_plans"]


@dataclass(frozen=True)
class GivenPlan:
    """A finished plan.

    Attributes:
        what: how messages call it.
        quantized: program and plan.
    """

    what: str
    quantized: Quantized

    @property
    def scheme(self) -> str:
        """Of the plan."""
        return self.quantized.plan.scheme

    @property
    def digest(self) -> str:
        """Of the plan, which holds that of its program."""
        return self.quantized.plan.digest()

    def checked(self, program: torch.export.ExportedProgram, model: str) -> GivenPlan:
        """The plan, if it was made of a model, whose canonical program is given.

        Raises:
            UsageError: they were not.
        """
        from edgekit.compress.folder import check_origin, on_program

        check_origin(self.quantized, program, model, self.what)
        return replace(self, quantized=on_program(self.quantized, program))

    def with_variants(
        self, names: Sequence[str], feeds: Sequence[tuple[torch.Tensor, ...]]
    ) -> Quantized:
        """The same, with the plans of overrides that limit weights.

        Raises:
            BadData: there are too few samples to round weights anew by.
        """
        from edgekit.compress.variants import variants_of

        if not names:
            return self.quantized
        if len(feeds) < 2:
            raise BadData(
                f"{self.what} needs other weights for {', '.join(names)}, and there are no "
                "calibration samples to round them by",
                hint="give --calib DATA, or leave the devices out that lack VNNI",
            )
        return variants_of(self.quantized, feeds, names)


def given_plans(request: ExportRequest, schemes: Sequence[str]) -> dict[str, GivenPlan]:
    """The plans of a request, by scheme.

    Args:
        request: of the export.
        schemes: that it makes.

    Raises:
        BadData, TrustError: a folder holds no plan (`edgekit.compress.folder.load_quantized`).
        UsageError: a plan that this export has no use for, or two for one scheme.
    """
    found: dict[str, GivenPlan] = {}
    for place in request.plans:
        plan = _read(Path(place) if isinstance(place, str) else place)
        if request.engine is not None:
            raise UsageError(
                f"{plan.what} is edgekit's, and engine {request.engine!r} makes its own",
                hint="leave --plan or --engine out",
            )
        if plan.quantized.plan.variant is not None:
            raise UsageError(
                f"{plan.what} is an override of another plan ({plan.quantized.plan.variant})",
                hint="give that other plan; overrides are made of it where devices need them",
            )
        if plan.scheme in found:
            raise UsageError(f"{found[plan.scheme].what} and {plan.what} are of one scheme")
        if plan.scheme not in schemes:
            raise UsageError(
                f"{plan.what} is of no use: this export makes {', '.join(dict.fromkeys(schemes))}",
                hint=f"ask for it with --scheme {plan.scheme}, or leave the plan out",
            )
        found[plan.scheme] = plan
    return found


def about_given(given: Mapping[str, GivenPlan]) -> dict[str, Any]:
    """What the export's document says of them: nothing, or ``plans_given``."""
    if not given:
        return {}
    told = [
        {
            "scheme": scheme,
            "digest": plan.digest,
            "training": plan.quantized.plan.training.get("method"),
        }
        for scheme, plan in given.items()
    ]
    return {"plans_given": told}


def _read(place: Path | Quantized) -> GivenPlan:
    from edgekit.compress.folder import load_quantized

    if isinstance(place, str | Path):
        return GivenPlan(f"the plan in {place}", load_quantized(Path(place)))
    return GivenPlan(f"the plan given for {place.plan.scheme}", place)
