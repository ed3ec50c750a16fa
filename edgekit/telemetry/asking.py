"""Asking a receiver that runs, over HTTP: its store is open to no other process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlencode

from edgekit.errors import CloudError, UsageError
from edgekit.runtime._cloud_setup import header_fields, is_here, read_url, tls_context, told
from edgekit.runtime._pool import Pool, Trouble
from edgekit.runtime._wire import Deadline, Question, Reply

__all__ = ["ask"]

_MOST: Final = 64 * 2**20
_KEY_HINT: Final = "an admin's key is taken from EDGEKIT_API_KEY"


def ask(
    url: str,
    path: str,
    fields: Sequence[tuple[str, object]],
    *,
    key: str | None = None,
    ca: str | None = None,
    body: object = None,
    timeout_s: float = 120.0,
) -> dict[str, Any]:
    """What a receiver answers to a question.

    Args:
        url: of the receiver, ``https://HOST[:PORT]``.
        path: ``/v1/report``, ``/v1/canary`` or ``/v1/check``, which takes a body.
        fields: of the query, by name; see `edgekit.telemetry.question`.
        key: an admin's; goes over TLS, or to this machine.
        ca: a file with the certificates that are trusted, in place of the system's.
        body: is sent as JSON; None: nothing is.
        timeout_s: for all of it.

    Raises:
        UsageError: the URL is none, a key would go in clear text, or it cannot be asked that.
        BadData: the certificates cannot be read.
        CloudError: there is no receiver, it knows no such key, or it cannot answer now.
    """
    try:
        tls, host, port, prefix, model = read_url(url)
    except UsageError as error:
        raise UsageError(error.message, hint=f"http://127.0.0.1:4318; {_KEY_HINT}") from error
    if model != (None, None):
        raise UsageError(f"{url} is no URL of a receiver", hint="http://127.0.0.1:4318")
    if key is not None and not tls and not is_here(host):
        raise UsageError(f"the key would go to {host} in clear text", hint="use https://")
    pool = Pool(host, port, tls_context(ca, None, None) if tls else None, 0)
    query = urlencode([(name, str(value)) for name, value in fields])
    headers = header_fields(None, key)
    target = f"{prefix}{path}?{query}" if query else f"{prefix}{path}"
    question = Question("GET", target, None, headers, _MOST)
    if body is not None:
        headers = {**headers, "Content-Type": "application/json"}
        question = Question("POST", target, json.dumps(body).encode(), headers, _MOST)
    try:
        reply = pool.exchange(question, Deadline(timeout_s))
    except Trouble as trouble:
        said = f"{trouble.kind}: {trouble.text}" if trouble.text else trouble.kind
        raise CloudError(f"{url} does not answer: {said}", kind=trouble.kind) from None
    return _document(url, reply)


def _document(url: str, reply: Reply) -> dict[str, Any]:
    status, why = reply.status, told(reply.body)
    if status == 400:
        raise UsageError(f"{url} cannot be asked that{why}")
    if status in (401, 403):
        raise CloudError(f"{url} does not let ask{why}", hint=_KEY_HINT, kind="refused")
    if status in (429, 503):
        raise CloudError(f"{url} cannot answer now{why}", hint="ask again", kind="unavailable")
    try:
        document: dict[str, Any] = json.loads(reply.body)
        ours = status == 200 and document["schema"].startswith("edgekit.telemetry-")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        ours = False
    if not ours:
        raise CloudError(
            f"{url} is no receiver of telemetry: status {status}{why}", kind="wrong-answer"
        )
    return document
