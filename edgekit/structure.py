"""Artifacts that nothing on this machine can run: what is told of them from their files alone.

That is ``structural``, and no proof of what they answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit.parity import Check
from edgekit.runtime.session import unavailable
from edgekit.targets import find

__all__ = ["AGAINST", "checks_of", "only_by_structure"]

AGAINST = "its own structure"


def only_by_structure(through: str) -> str | None:
    """Why no runtime here runs artifacts of a target (``TARGET`` or ``TARGET:DELEGATE``) whose
    structure can be checked; None where one does, or where the target is emulated as a whole."""
    if ":" not in through or not hasattr(find(through), "structure"):
        return None
    return unavailable(through)


def checks_of(findings: Sequence[Any], mutant: Sequence[Any]) -> tuple[Check, ...]:
    """The checks of what a worker's ``structure`` found.

    Args:
        findings: of the artifact: name, whether it holds, what was seen.
        mutant: of the artifact with another signature; without a fault there, the rest is void.
    """
    made = [Check(name, bool(holds), None, None, seen) for name, holds, seen in findings]
    caught = any(not holds for _, holds, _ in mutant)
    said = "a signature that it does not have is " + ("refused" if caught else "accepted")
    return (*made, Check("self-test", caught, None, None, said))
