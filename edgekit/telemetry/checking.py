"""Checking: what rules would find now, without an alert being raised."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from edgekit.errors import BadData
from edgekit.runtime.drift_reference import DriftReference
from edgekit.serve.refusal import Refusal
from edgekit.telemetry.judging import Finding, judge
from edgekit.telemetry.rules import Rule, rules_of
from edgekit.telemetry.store import Reader

__all__ = ["asked_rules", "check", "unlooked"]


def check(
    store: Reader,
    rules: Sequence[Rule],
    *,
    now_s: float,
    k: int,
    interval_s: float,
    references: Sequence[DriftReference] = (),
) -> dict[str, Any]:
    """A document of the form ``edgekit.telemetry-check/1``.

    Args:
        now_s: since 1970.
        k: devices that anything in it is of, at least.
        interval_s: at which a receiver looks at the rules.
        references: of bundles, which rules of drift may ask for.
    """
    looks = 86_400 / interval_s
    asked = partial(judge, store, now_s=now_s, k=k, looks=looks, references=references)
    return _document((rule, asked(rule)) for rule in rules)


def unlooked(rules: Sequence[Rule]) -> dict[str, Any]:
    """The document of rules that were read, and not looked at."""
    return _document((rule, Finding(None, None, "not looked at")) for rule in rules)


def _document(found: Iterable[tuple[Rule, Finding]]) -> dict[str, Any]:
    rows = [
        {
            "name": rule.name,
            "kind": rule.kind,
            "where": dict(rule.where),
            "beyond": finding.beyond,
            **finding.to_json(),
        }
        for rule, finding in found
    ]
    return {"schema": "edgekit.telemetry-check/1", "rules": rows}


def asked_rules(body: bytes | memoryview) -> tuple[Rule, ...]:
    """Rules out of a request: ``{"rules": [...]}``, each as a rules file has it.

    Raises:
        Refusal: 400, it is none, or a rule is not allowed.
    """
    try:
        found = json.loads(bytes(body))
        if not isinstance(found, dict) or found.keys() != {"rules"}:
            raise Refusal(400, 'a body is {"rules": [...]}')
        return rules_of(found["rules"], "the request")
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "the body is no JSON") from error
    except BadData as error:
        raise Refusal(400, error.message) from error
