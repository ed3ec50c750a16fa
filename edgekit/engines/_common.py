"""What the engine files share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import BadData, EdgekitError, UnsupportedError
from edgekit.signature import Signature

if TYPE_CHECKING:
    import torch
    from torch import fx


def float_file(
    program: torch.export.ExportedProgram, signature: Signature, target: str, folder: Path
) -> Path:
    """The float artifact, made by edgekit's own target: what tools that take files start from."""
    from edgekit import targets
    from edgekit.compress.graph import program_digest
    from edgekit.compress.plan import QuantPlan

    made = targets.find(target)
    targets.require_installed(made)
    plan = QuantPlan("fp32", program_digest(program))
    return made.convert(program, plan, signature, folder / f"float{made.suffix}")[0]


def samples(
    feeds: Iterable[tuple[torch.Tensor, ...]],
) -> list[tuple[torch.Tensor, ...]]:
    """The calibration samples, all at once: vendors go over them several times.

    Raises:
        BadData: there are none.
    """
    found = list(feeds)
    if not found:
        raise BadData("calibration got no samples", hint="give --calib at least one sample")
    return found


def named(
    feeds: Iterable[tuple[torch.Tensor, ...]], signature: Signature
) -> list[dict[str, np.ndarray[Any, Any]]]:
    """The calibration samples as arrays by input name.

    Raises:
        BadData: there are none.
    """
    names = [spec.name for spec in signature.inputs]
    return [
        {name: np.ascontiguousarray(t.numpy()) for name, t in zip(names, feed, strict=True)}
        for feed in samples(feeds)
    ]


def calls(module: fx.GraphModule) -> set[str]:
    """Names of the operators that a graph calls, such as ``softmax`` for ``aten.softmax.int``."""
    return {
        str(node.target).split(".")[1]
        for node in module.graph.nodes
        if node.op == "call_function" and str(node.target).startswith("aten.")
    }


def engine_error(engine: str, target: str, error: Exception) -> EdgekitError:
    """A vendor tool's failure as a clear error that names engine and target."""
    if isinstance(error, EdgekitError):
        return error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return UnsupportedError(
        f"engine {engine!r} gave up on this model for {target}: "
        f"{type(error).__name__}: {lines[0][:400]}",
        hint="leave --engine out, or leave this target out with --target",
    )
