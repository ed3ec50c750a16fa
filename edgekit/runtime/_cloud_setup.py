"""What a cloud client reads of its arguments and of a refusal: URLs, keys, certificates, times."""

from __future__ import annotations

import email.utils
import json
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from typing import Final

from edgekit.errors import BadData, UsageError

__all__ = ["header_fields", "is_here", "read_url", "retry_after_s", "tls_context", "told"]

LONGEST_HOLD_S: Final = 300.0
"""The longest that a server may ask to be left alone."""


def read_url(url: str) -> tuple[bool, str, int, str, tuple[str | None, str | None]]:
    """Whether it is TLS, host, port, the path before ``/v2``, and model and version if named."""
    allowed = "https://HOST[:PORT][/v2/models/NAME[/versions/VERSION]]"
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        raise UsageError("the server's URL cannot be read", hint=f"allowed: {allowed}") from None
    if parts.username is not None or parts.password is not None:
        raise UsageError("the server's URL holds a password", hint="give a key as api_key")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"{url[:200]!r} is no URL of a server", hint=f"allowed: {allowed}")
    prefix, _, rest = parts.path.partition("/v2/models/")
    words = rest.strip("/").split("/") if rest else []
    if len(words) not in (0, 1, 3) or (len(words) == 3 and words[1] != "versions"):
        raise UsageError(f"{url[:200]!r} names no model", hint=f"allowed: {allowed}")
    tls = parts.scheme == "https"
    names = (words[0] if words else None, words[2] if len(words) == 3 else None)
    return tls, parts.hostname, port or (443 if tls else 80), prefix.rstrip("/"), names


def is_here(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def header_fields(given: Mapping[str, str] | None, api_key: str | None) -> dict[str, str]:
    found = {"User-Agent": "edgekit", "Accept-Encoding": "identity", **(given or {})}
    if api_key is not None:
        found["Authorization"] = f"Bearer {api_key}"
    for name, value in found.items():
        if not (name + value).isascii() or any(c in name + value for c in "\r\n\0"):
            raise UsageError(f"header field {name[:40]!r} holds what none may hold")
    return found


def tls_context(ca: str | None, cert: str | None, key: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca is not None:
        # That authority and no other, so that a forged certificate of any of them is of no use.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if ca is not None:
            context.load_verify_locations(ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        reason = error.strerror if not isinstance(error, ssl.SSLError) else error.reason
        raise BadData(f"a certificate cannot be read: {reason}") from error
    return context


def retry_after_s(value: str | None) -> float | None:
    """Seconds, of a number of them or a date (RFC 9110); None where it is neither."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit() and len(value) < 10:
        return min(LONGEST_HOLD_S, float(value))
    try:
        when = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(LONGEST_HOLD_S, max(0.0, when - time.time()))


def told(body: bytes) -> str:
    """What the server says is wrong, cut short; nothing where it does not."""
    try:
        text = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f" ({''.join(c for c in str(text)[:200] if c.isprintable())})"
