"""Writes YAML: mappings, lists, and scalars as JSON writes them, which YAML 1.2 reads alike."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["to_yaml"]

# What YAML has as escapes only; JSON escapes the rest itself.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
# Keys that YAML 1.1 takes for a truth value.
_NOT_PLAIN = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def to_yaml(*documents: Mapping[str, Any], comment: str = "") -> bytes:
    """One file of several documents, with a comment in front."""
    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    texts = ("\n".join(_lines(document, "")) + "\n" for document in documents)
    return (head + "---\n".join(texts)).encode()


def _lines(value: Any, indent: str) -> list[str]:
    lines: list[str] = []
    if isinstance(value, Mapping):
        for key, item in value.items():
            lines += _entry(f"{indent}{_key(key)}:", item, indent)
    else:
        for item in value:
            inner = _lines(item, f"{indent}  ") if _nested(item) else []
            if inner:
                # A list's item begins on the line of its dash.
                lines += [f"{indent}- {inner[0].lstrip()}", *inner[1:]]
            else:
                lines.append(f"{indent}- {_scalar(item)}")
    return lines


def _entry(head: str, item: Any, indent: str) -> list[str]:
    if _nested(item):
        return [head, *_lines(item, f"{indent}  ")]
    return [f"{head} {_scalar(item)}"]


def _nested(value: Any) -> bool:
    """Whether it has lines of its own; what is empty is written as JSON writes it."""
    return isinstance(value, Mapping | Sequence) and not isinstance(value, str) and bool(value)


def _key(key: str) -> str:
    plain = _PLAIN.fullmatch(key) and key.lower() not in _NOT_PLAIN
    return key if plain else _scalar(key)


def _scalar(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
