"""The request that a load test sends: tensors that fit the model, or a file."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from edgekit.errors import BadData, CloudError, UsageError
from edgekit.runtime import Cloud
from edgekit.runtime._cloud_setup import is_here
from edgekit.runtime.oip import build
from edgekit.serve.load import Address
from edgekit.signature import TensorSpec

__all__ = ["Request", "tensors", "whole"]

_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Request:
    """What is sent where.

    Attributes:
        address: of the server.
        content: the bytes of one HTTP/1.1 request.
        what: it asks, for a report: the model's name, or the path.
    """

    address: Address
    content: bytes
    what: str


def tensors(
    url: str,
    model: str | None,
    feeds: Mapping[str, np.ndarray[Any, Any]] | None,
    *,
    binary: bool = True,
    key: str | None = None,
    ca: Path | None = None,
) -> Request:
    """An inference of the Open Inference Protocol v2.

    Args:
        url: ``http[s]://HOST[:PORT]``.
        model: its name; None for the first that the server lists.
        feeds: inputs by name; None draws some that fit the model, always the same.
        binary: tensors as raw bytes, not as JSON.
        key: an API key.
        ca: the certificates that are trusted, or None for the system's.

    Raises:
        CloudError: the server does not answer, or not by that protocol.
        UsageError: the URL is none, or a key would go over the network in clear text.
        BadData: the inputs cannot be sent.
    """
    address, prefix = _address(url, ca)
    _keep(key, address)
    name = model or _first_model(url, key, address.tls)
    with Cloud(
        url, name, api_key=key, ca=None if ca is None else str(ca), timeout_ms=_TIMEOUT_S * 1000
    ) as cloud:
        signature = cloud.metadata()
    if feeds is None:
        rng = np.random.default_rng(0)
        feeds = {spec.name: _drawn(spec, rng) for spec in signature.inputs}
    made = build("load", feeds, signature.outputs, binary=binary, timeout_us=30_000_000)
    path = f"{prefix}/v2/models/{name}/infer"
    return Request(address, _post(address, path, made.body, dict(made.headers), key), name)


def whole(
    url: str, body: bytes, content_type: str, *, key: str | None = None, ca: Path | None = None
) -> Request:
    """A body as it is, to the path that the URL names; nothing is asked of the server before.

    Raises:
        UsageError: the URL is none or has no path, or a key would go in clear text.
    """
    address, path = _address(url, ca)
    _keep(key, address)
    if not path:
        raise UsageError("a body goes to a path", hint=f"{url}/v1/predict")
    query = urlsplit(url).query
    path = f"{path}?{query}" if query else path
    headers = {"Content-Type": content_type}
    return Request(address, _post(address, path, body, headers, key), path)


def _address(url: str, ca: Path | None) -> tuple[Address, str]:
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise UsageError(f"{url!r} is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise UsageError(f"{url!r} is no URL of a server", hint="http://127.0.0.1:8000")
    if any(c <= " " or c > "~" for c in url):
        raise UsageError(f"{url!r} holds a character that no URL has")
    if parts.scheme == "http":
        return Address(host, port or 80), parts.path.rstrip("/")
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise BadData(f"the certificates in {ca} cannot be read: {error}") from error
    return Address(host, port or 443, context), parts.path.rstrip("/")


def _keep(key: str | None, address: Address) -> None:
    if key is not None and address.tls is None and not is_here(address.host):
        raise UsageError(f"the key would go to {address.host} in clear text", hint="use https://")


def _first_model(url: str, key: str | None, tls: ssl.SSLContext | None) -> str:
    request = urllib.request.Request(f"{url.rstrip('/')}/v2/repository/index", b"{}", method="POST")
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=tls) as reply:
            found = [entry["name"] for entry in json.loads(reply.read(1 << 20))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        refused = isinstance(error, urllib.error.HTTPError)
        hint = "name the model with --model" if refused else ""
        raise CloudError(f"{url} lists no models: {error}", hint=hint) from error
    if not found:
        raise CloudError(f"{url} has no model")
    return str(found[0])


def _drawn(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return rng.random(spec.shape).astype(dtype)
    # Pixels, or else small numbers, which vocabularies and flags have too.
    high = 256 if dtype == np.uint8 else 2
    return rng.integers(0, high, spec.shape).astype(dtype)


def _post(
    address: Address, path: str, body: bytes, headers: Mapping[str, str], key: str | None
) -> bytes:
    host = f"[{address.host}]" if ":" in address.host else address.host
    fields = {"Host": f"{host}:{address.port}", **headers, "Content-Length": str(len(body))}
    if key is not None:
        fields["Authorization"] = f"Bearer {key}"
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    if any(c in line for line in lines for c in "\r\n"):
        raise UsageError("a header field holds a line break")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
