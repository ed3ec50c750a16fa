"""Webhook: one signed POST for each alert that fires or resolves.

The body is a document of the form ``edgekit.telemetry-alert/1``. Where there is a secret, the field
``X-Edgekit-Signature`` has ``t=SECONDS,v1=HEX``: HMAC-SHA256 (RFC 2104) of the seconds since 1970,
a full stop and the body, so that nobody else can send one, nor the same again later; `signed_by`
checks it. Redirects are not followed, and plain HTTP goes to this machine only, unless allowed.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import ssl
import stat
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edgekit.errors import BadData, TrustError
from edgekit.names import unknown
from edgekit.runtime._cloud_setup import is_here, retry_after_s, tls_context
from edgekit.runtime._files import read_file
from edgekit.runtime._wire import Connection, Deadline, Question, TooLarge

__all__ = ["Outcome", "Webhook", "read_webhook", "sign", "signed_by"]

SIGNATURE: Final = "X-Edgekit-Signature"
_KEYS: Final = ("url", "secret_env", "secret_file", "timeout_s", "allow_http")
_LEAST_SECRET: Final = 16
_MOST_SECRET: Final = 4_096
_MOST_ANSWER: Final = 2**16
_PASSING: Final = (408, 425, 429)


@dataclass(frozen=True)
class Webhook:
    """Where alerts go to.

    Attributes:
        tls, host, port, target: of the URL; ``target`` is path and query.
        secret: that requests are signed with; empty: they are not.
        timeout_s: of one attempt, all of it.
    """

    tls: bool
    host: str
    port: int
    target: str
    secret: bytes = field(default=b"", repr=False)
    timeout_s: float = 10.0

    def post(self, document: Mapping[str, Any]) -> Outcome:
        """Sends a document once; never raises."""
        body = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "edgekit",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        if self.secret:
            headers[SIGNATURE] = sign(self.secret, body, int(time.time()))
        deadline = Deadline(self.timeout_s)
        try:
            context = tls_context(None, None, None) if self.tls else None
            connection = Connection.connect(self.host, self.port, context, deadline)
            try:
                question = Question("POST", self.target, body, headers, _MOST_ANSWER)
                reply, _ = connection.exchange(question, deadline)
            finally:
                connection.close()
        except ssl.SSLCertVerificationError as error:
            return Outcome(False, True, f"the certificate: {error.verify_message}")
        except (OSError, http.client.HTTPException, TooLarge) as error:
            return Outcome(False, True, type(error).__name__)
        status = reply.status
        if 200 <= status < 300:
            return Outcome(True, False, str(status))
        said = (
            f"{status}, a redirect, which is not followed" if 300 <= status < 400 else str(status)
        )
        again = status >= 500 or status in _PASSING
        return Outcome(False, again, said, retry_after_s(reply.headers.get("retry-after")))


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt.

    Attributes:
        delivered: it was answered with 2xx.
        again: it was not, but may be another time.
        said: status, or what went wrong; no address and no secret.
        after_s: how long the other side asked to be left alone.
    """

    delivered: bool
    again: bool
    said: str
    after_s: float | None = None


def sign(secret: bytes, body: bytes, at_s: int) -> str:
    """The value of ``X-Edgekit-Signature``."""
    digest = hmac.new(secret, f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"


def signed_by(
    secret: bytes, body: bytes, signature: str, now_s: float, tolerance_s: float = 300.0
) -> bool:
    """Whether a body was signed with a secret, not longer ago than ``tolerance_s``."""
    seconds, _, digest = signature.removeprefix("t=").partition(",v1=")
    if not (seconds.isascii() and seconds.isdigit() and len(seconds) < 16):
        return False
    fresh = abs(now_s - int(seconds)) <= tolerance_s
    wanted = sign(secret, body, int(seconds)).partition(",v1=")[2]
    return hmac.compare_digest(wanted.encode(), digest.encode("utf-8", "replace")) and fresh


def read_webhook(table: object, path: Path) -> Webhook:
    """The table ``[webhook]`` of a rules file; a relative ``secret_file`` lies beside that.

    Raises:
        BadData: a key is not known, missing or no such value; the secret is not there or short.
        TrustError: others may read the secret.
    """
    place = f"{path}, webhook"
    if not isinstance(table, dict):
        raise BadData(f"{place} is {table!r}; allowed: a table of {', '.join(_KEYS)}")
    for key in table:
        if key not in _KEYS:
            raise BadData(f"{place}: {unknown('key', key, _KEYS)}")
    allow_http = table.get("allow_http", False)
    if not isinstance(allow_http, bool):
        raise BadData(f"{place}: allow_http is {allow_http!r}; allowed: true, false")
    timeout_s = table.get("timeout_s", 10.0)
    if type(timeout_s) not in (int, float) or not 0 < timeout_s <= 60:
        raise BadData(f"{place}: timeout_s is {timeout_s!r}; allowed: a number up to 60")
    where = _read_url(table.get("url"), allow_http, place)
    return Webhook(*where, _secret(table, path, place), float(timeout_s))


def _read_url(url: object, allow_http: bool, place: str) -> tuple[bool, str, int, str]:
    allowed = "allowed: https://HOST[:PORT][/PATH][?QUERY]"
    try:
        parts = urllib.parse.urlsplit(url if isinstance(url, str) else "")
        port = parts.port
    except ValueError:
        raise BadData(f"{place}: url cannot be read; {allowed}") from None
    if parts.username is not None or parts.password is not None:
        raise BadData(f"{place}: url holds a password", hint="sign with secret_env or secret_file")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadData(f"{place}: url is no URL of a server; {allowed}")
    target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    if not target.isascii() or any(c <= " " or c == "\x7f" for c in target):
        raise BadData(f"{place}: url has characters that are to be percent-encoded")
    tls = parts.scheme == "https"
    if not tls and not allow_http and not is_here(parts.hostname):
        raise BadData(
            f"{place}: url would send alerts to {parts.hostname} in clear text; {allowed}",
            hint="use https://, or say allow_http = true",
        )
    return tls, parts.hostname, port or (443 if tls else 80), target


def _secret(table: Mapping[str, Any], path: Path, place: str) -> bytes:
    given = [key for key in ("secret_env", "secret_file") if key in table]
    if not given:
        return b""
    if len(given) == 2:
        raise BadData(f"{place}: secret_env and secret_file are given; allowed: one of them")
    key = given[0]
    name = table[key]
    if not isinstance(name, str) or not name:
        raise BadData(f"{place}: {key} is {name!r}; allowed: a name")
    if key == "secret_env":
        if name not in os.environ:
            raise BadData(f"{place}: secret_env: there is no {name} in the environment")
        secret = os.environ[name].encode("utf-8", "surrogateescape")
    else:
        file = path.parent / name
        secret = read_file(file, _MOST_SECRET, "secret").strip()
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            raise TrustError(f"others may read the secret in {file}", hint=f"chmod 600 {file}")
    if not _LEAST_SECRET <= len(secret) <= _MOST_SECRET:
        raise BadData(
            f"{place}: {key}: a secret has {_LEAST_SECRET} to {_MOST_SECRET} bytes",
            hint="python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return secret
