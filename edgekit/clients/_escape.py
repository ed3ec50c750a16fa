"""Texts and numbers as literals of the clients' languages.

Labels and names are a user's: they may hold quotes, line breaks, the ends of comments and the
marks of interpolation. Every text goes into a client through one of these functions; all of them
give ASCII, except for Markdown.
"""

from __future__ import annotations

import math
import re

from edgekit.errors import BadData

__all__ = [
    "camel",
    "code",
    "comment",
    "cpp",
    "identifier",
    "kotlin",
    "markdown",
    "number",
    "python",
    "swift",
]


def python(text: str) -> str:
    """A Python string literal."""
    body = "".join(
        c if 0x20 <= ord(c) < 0x7F and c not in '"\\' else f"\\U{ord(c):08x}" for c in text
    )
    return f'"{body}"'


def cpp(text: str) -> str:
    """A C++ string literal of the text's UTF-8 bytes."""
    # Three octal digits end by themselves, where \x goes on; \? keeps ??/ from being a trigraph.
    body = "".join(
        chr(b) if 0x20 <= b < 0x7F and chr(b) not in '"\\?' else f"\\{b:03o}"
        for b in text.encode("utf-8")
    )
    return f'"{body}"'


def kotlin(text: str) -> str:
    """A Kotlin string literal; ``$`` is escaped, as it would begin a template."""
    units = text.encode("utf-16-be")
    codes = (int.from_bytes(units[i : i + 2]) for i in range(0, len(units), 2))
    body = "".join(
        chr(c) if 0x20 <= c < 0x7F and chr(c) not in '"\\$' else f"\\u{c:04x}" for c in codes
    )
    return f'"{body}"'


def swift(text: str) -> str:
    """A Swift string literal; the backslash of an interpolation is escaped with all others."""
    body = "".join(
        c if 0x20 <= ord(c) < 0x7F and c not in '"\\' else f"\\u{{{ord(c):x}}}" for c in text
    )
    return f'"{body}"'


def comment(text: str) -> str:
    """One line of ASCII that neither ends a comment or a docstring nor begins an escape."""
    plain = "".join(c if 0x20 <= ord(c) < 0x7F else "?" for c in text)
    return re.sub(r"[\\\"*/$`@#{}<>]", "_", plain)[:200]


def markdown(text: str) -> str:
    """A text within a Markdown paragraph or table cell, without any meaning there."""
    flat = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&$-])", r"\\\1", flat)


def code(text: str) -> str:
    """A text in a Markdown code span within a paragraph or table cell."""
    flat = "".join(c if c.isprintable() and c not in "`|" else "?" for c in text)
    return f"`{flat}`"


def number(value: float) -> str:
    """A finite floating-point literal that all four languages read to the same bits.

    Raises:
        BadData: it is NaN or infinite.
    """
    if not math.isfinite(value):
        raise BadData(f"{value} cannot stand in a client's source")
    return repr(float(value))


def identifier(text: str) -> str:
    """A name in ``snake_case`` for a file or a module: ``tflite-w8a8`` gives ``tflite_w8a8``."""
    name = re.sub(r"[^0-9A-Za-z]+", "_", text).strip("_").lower() or "model"
    return name if name[0].isalpha() else f"model_{name}"


def camel(text: str) -> str:
    """A name in ``CamelCase`` for a class: ``tflite-w8a8`` gives ``TfliteW8a8``."""
    return "".join(part[:1].upper() + part[1:] for part in identifier(text).split("_"))
