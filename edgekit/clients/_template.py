"""Templates: text files with fields ``@@NAME@@``, and the strictness that user's text calls for.

A template is filled in one pass, so what is inserted is never looked at again. A field without a
value and a value without a field are both errors: neither a hole nor a forgotten fact gets into a
client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources

__all__ = ["fill", "load"]

_FIELD = re.compile(r"@@([A-Z][A-Z0-9_]*)@@")


@cache
def load(name: str) -> str:
    """The text of a template of this package, e.g. ``python/client.py``."""
    return (resources.files(__package__) / "templates" / f"{name}.tmpl").read_text(encoding="utf-8")


def fill(template: str, fields: Mapping[str, str], *, what: str) -> str:
    """The template with every ``@@NAME@@`` replaced by its value.

    Args:
        template: the text.
        fields: the values, already written as the template's language wants them.
        what: names the template in the message.

    Raises:
        ValueError: a field of the template has no value, or a value is for no field.
    """
    wanted = set(_FIELD.findall(template))
    absent, unused = sorted(wanted - set(fields)), sorted(set(fields) - wanted)
    if absent or unused:
        raise ValueError(
            f"template {what}: no value for {', '.join(absent) or 'none'}; "
            f"no field for {', '.join(unused) or 'none'}"
        )
    return _FIELD.sub(lambda match: fields[match[1]], template)
