"""When the device's answer is sure enough: a bundle's ``edgekit.policy/1``, read and applied.

How sure an answer is comes from the softmax of its scores at a temperature that was fitted on
evaluation data (Guo et al., "On Calibration of Modern Neural Networks", 2017, arXiv 1706.04599).
Three signals, each 0 (no idea) to 1 (certain), of the class probabilities p:

- ``confidence``: the largest p (Hendrycks and Gimpel, 2017, arXiv 1610.02136);
- ``margin``: the largest p less the second largest;
- ``entropy``: 1 - H(p) / ln C, where H is the entropy and C the number of classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.errors import BadData
from edgekit.signature import Signature, TensorSpec

__all__ = ["OTHERWISE", "SCHEMA", "SIGNALS", "Policy", "certainty", "log_probabilities"]

SCHEMA: Final = "edgekit.policy/1"
SIGNALS: Final = ("confidence", "entropy", "margin")
OTHERWISE: Final = ("answer", "abstain", "cloud")
_REQUIRED: Final = ("temperature", "min_confidence", "otherwise")
SCORES: Final = ("logits", "probabilities")

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_LEAST: Final = 1e-12
"""What a probability of zero counts as: int8 softmax rounds small ones away."""


@dataclass(frozen=True)
class Policy:
    """When the device answers by itself.

    Attributes:
        temperature: what the logits are divided by before softmax.
        min_confidence: how sure, by ``signal``, an answer has to be; None: any will do.
        otherwise: what happens to one that is less sure: ``answer`` all the same, ``abstain``, or
            ask the ``cloud``.
        timeout_ms: how long a whole answer may take where the caller does not say; None: the
            router's own default.
        signal: one of `SIGNALS`.
        scores: what the model's output holds, ``logits`` or ``probabilities``.
        output: the name of the output with the scores; None: the only one.
        same_inputs: whether the cloud's model takes the very tensors that the device's takes.
        chosen: how all this was chosen and what to expect of it, as the schema has it; or None.
    """

    temperature: float = 1.0
    min_confidence: float | None = None
    otherwise: str = "answer"
    timeout_ms: float | None = None
    signal: str = "confidence"
    scores: str = "logits"
    output: str | None = None
    same_inputs: bool = True
    chosen: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, above=0.0)
        if self.min_confidence is not None:
            _number("min_confidence", self.min_confidence, least=0.0, most=1.0)
        if self.timeout_ms is not None:
            _number("timeout_ms", self.timeout_ms, above=0.0)
        _one_of("otherwise", self.otherwise, OTHERWISE)
        _one_of("signal", self.signal, SIGNALS)
        _one_of("scores", self.scores, SCORES)
        # A policy comes out of a file: these may be anything.
        output, same, chosen = map(_any, (self.output, self.same_inputs, self.chosen))
        if output is not None and not (isinstance(output, str) and output):
            raise BadData(f"the policy's output is {output!r}; a tensor's name is wanted")
        if not isinstance(same, bool):
            raise BadData(f"the policy's same_inputs is {same!r}, not true or false")
        if chosen is not None and not isinstance(chosen, Mapping):
            raise BadData("the policy's account of how it was chosen is not an object")

    @classmethod
    def from_json(cls, document: object) -> Policy:
        """Reads a policy, by the rules of ``edgekit/schemas/policy.json``.

        Raises:
            BadData: it breaks one. A field that is not known here is refused too: it may change
                what the others mean.
        """
        if not isinstance(document, Mapping):
            raise BadData("the policy is not an object")
        if document.get("schema") != SCHEMA:
            raise BadData(
                f"the policy's schema is {str(document.get('schema'))[:80]!r}, not {SCHEMA}",
                hint="update edgekit if the bundle is newer",
            )
        given = {key: value for key, value in document.items() if key != "schema"}
        unknown = sorted(set(given) - {field.name for field in fields(cls)})
        missing = [
            key for key in ("temperature", "min_confidence", "otherwise") if key not in given
        ]
        if unknown or missing:
            parts = [f"holds {', '.join(map(str, unknown))[:80]}, unknown here"] * bool(unknown)
            parts += [f"lacks {', '.join(missing)}"] * bool(missing)
            raise BadData(
                f"the policy {' and '.join(parts)}",
                hint="update edgekit if the bundle is newer",
            )
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """The ``edgekit.policy/1`` document."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        found["chosen"] = None if self.chosen is None else dict(self.chosen)
        return {"schema": SCHEMA, **found}

    def scored(self, signature: Signature) -> TensorSpec:
        """The output that tells how sure an answer is.

        Raises:
            BadData: there is no such output, or it holds no scores of two classes or more.
        """
        names = ", ".join(spec.name for spec in signature.outputs)
        found = [s for s in signature.outputs if self.output in (None, s.name)]
        if len(found) != 1:
            what = "name the one with the scores" if self.output is None else f"no {self.output!r}"
            raise BadData(f"the policy does not fit the model's outputs ({names}): {what}")
        if len(found[0].shape) != 2 or found[0].shape[1] < 2:
            raise BadData(
                f"output {found[0].name!r} has shape {found[0].shape}; how sure an answer is can "
                "be told of scores [n, classes] only"
            )
        return found[0]

    def certainty(self, scores: Array) -> float:
        """How sure an answer is, 0 to 1; of a batch [n, C] its least sure row.

        Raises:
            BadData: as `certainty`.
        """
        return float(certainty(scores, self.temperature, self.signal, self.scores).min())

    def sure(self, value: float) -> bool:
        """Whether that is sure enough."""
        return self.min_confidence is None or value >= self.min_confidence


def certainty(
    scores: npt.ArrayLike, temperature: float, signal: str, kind: str = "logits"
) -> Floats:
    """How sure each row is by one of `SIGNALS`, [N] float64 from 0 to 1.

    Args:
        scores: [N, C], C at least 2.
        temperature: over 0.
        signal: one of `SIGNALS`.
        kind: ``logits`` or ``probabilities``.

    Raises:
        BadData: other shapes, or a score that is not finite.
    """
    logs = log_probabilities(scores, temperature, kind)
    p: Floats = np.exp(logs)
    if signal == "confidence":
        found: Floats = p.max(axis=1)
    elif signal == "margin":
        top = np.partition(p, -2, axis=1)
        found = top[:, -1] - top[:, -2]
    else:
        found = 1 + (p * logs).sum(axis=1) / math.log(p.shape[1])
    return np.asarray(np.clip(found, 0.0, 1.0), np.float64)


def log_probabilities(scores: npt.ArrayLike, temperature: float, kind: str = "logits") -> Floats:
    """Log-softmax of scores over a temperature, [N, C] float64; the other arguments and errors are
    those of `certainty`."""
    values = np.asarray(scores, np.float64)
    if values.ndim != 2 or values.shape[0] == 0 or values.shape[1] < 2:
        raise BadData(f"scores [n, classes] are wanted, got shape {values.shape}")
    if not np.isfinite(values).all():
        raise BadData("the scores hold NaN or infinity")
    if kind == "probabilities":
        values = np.log(np.maximum(values, _LEAST))
    values = values / temperature
    values -= values.max(axis=1, keepdims=True)
    found: Floats = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return found


def _any(value: object) -> object:
    return value


def _number(
    name: str, value: object, *, above: float = -math.inf, least: float = -math.inf,
    most: float = math.inf,
) -> None:  # fmt: skip
    fine = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value > above
        and least <= value <= most
    )
    if not fine:
        allowed = f"a number over {above:g}" if above > -math.inf else f"{least:g} to {most:g}"
        raise BadData(f"the policy's {name} is {value!r}; allowed: {allowed}")


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise BadData(f"the policy's {name} is {value!r}; allowed: {', '.join(allowed)}")
