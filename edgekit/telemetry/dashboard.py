"""Dashboard: the page that the receiver serves. It asks `/v1/report` for all that it shows.

One file without anything from elsewhere. Its policy lets a browser run its own script and no other,
by the script's hash, and reach its own receiver and nothing else; names that devices sent become
text of elements, and Trusted Types have a browser refuse markup that is made of a string.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Final

from edgekit.serve.call import Reply

__all__ = ["page"]

_SCRIPTS: Final = ("figures", "charts", "sections", "main")


@cache
def page() -> Reply:
    """The page, with the headers that guard it."""
    style = _read("edgekit.report", "page.css") + _own("page.css")
    parts = "\n".join(_own(f"{name}.js") for name in _SCRIPTS)
    script = f'(() => {{\n"use strict";\n{parts}}})();\n'
    html = _own("page.html").replace("{style}", style).replace("{script}", script)
    policy = {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    return Reply(200, html.encode(), headers)


def _own(name: str) -> str:
    return _read("edgekit.telemetry", f"page/{name}")


def _read(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
