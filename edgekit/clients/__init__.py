"""Clients: for each artifact of a bundle, source that loads *this* file with *this* preprocessing.

A client needs nothing of edgekit. Everything in it comes from the bundle's manifest, so that the
same bundle gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgekit.clients import cpp, kotlin, python, readme, swift
from edgekit.clients._facts import Facts, facts_of
from edgekit.errors import UsageError
from edgekit.names import unknown

__all__ = ["FOLDER", "LANGUAGES", "render"]

FOLDER = "client"
"""Where the clients lie in a bundle."""

_WRITERS: Mapping[str, Callable[[Facts], dict[str, str]]] = {
    "python": python.files,
    "cpp": cpp.files,
    "kotlin": kotlin.files,
    "swift": swift.files,
}
LANGUAGES = tuple(_WRITERS)
"""The languages that there are clients in."""


def render(manifest: Mapping[str, Any], languages: Sequence[str] = LANGUAGES) -> dict[str, bytes]:
    """The clients of a bundle and their README.

    Args:
        manifest: the bundle's, as JSON gives it.
        languages: of `LANGUAGES`.

    Returns:
        Contents by path within the client folder (`FOLDER`), e.g. ``python/tflite_w8a8.py``.

    Raises:
        UsageError: there is no such language.
        BadData: the manifest's preprocessing or signature is none.
    """
    for language in languages:
        if language not in _WRITERS:
            raise UsageError(unknown("language", language, LANGUAGES))
    facts = facts_of(manifest)
    chosen = list(dict.fromkeys(languages))
    found = {"README.md": readme.file(facts, chosen)}
    for language in chosen:
        texts = _WRITERS[language](facts)
        found |= {f"{language}/{name}": text for name, text in texts.items()}
    return {name: found[name].encode("utf-8") for name in sorted(found)}
