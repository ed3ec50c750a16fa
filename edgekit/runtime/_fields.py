"""Checks of the fields that say how data are preprocessed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from edgekit.errors import BadData

__all__ = ["fields_of", "require_finite", "require_int", "require_one_of", "tuple_of"]


def fields_of(cls: type[Any], kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    given = {name: value for name, value in data.items() if name != "kind"}
    wrong = sorted(names ^ set(given))
    if data.get("kind") != kind or wrong:
        raise BadData(
            f"{kind} preprocessing of kind {data.get('kind')!r} "
            f"lacks or does not know these fields: {', '.join(wrong) or 'none'}"
        )
    return given


def tuple_of(values: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    if not isinstance(values[name], list | tuple):
        raise BadData(f"preprocess {name} must be a list, not {type(values[name]).__name__}")
    return tuple(values[name])


def require_int(what: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadData(f"{what} is {value!r}; a whole number from {low} to {high} is wanted")


def require_one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    # By identity of type too: 1 == True, and JSON tells them apart.
    if not any(value == a and type(value) is type(a) for a in allowed):
        raise BadData(f"preprocess {name} is {value!r}; allowed: {', '.join(map(str, allowed))}")


def require_finite(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise BadData(f"preprocess {name} holds {value!r}; finite numbers are wanted")
