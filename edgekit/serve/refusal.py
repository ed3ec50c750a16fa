"""Refusal: a request that is not answered with tensors, and the status that says so."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CODES", "Refusal"]

CODES = {
    400: "the request does not fit the protocol or the model",
    401: "a key is missing or wrong",
    403: "the key may not do this",
    404: "no such model, version or path",
    405: "the path takes another method",
    408: "the request came too slowly",
    413: "the body is larger than allowed",
    415: "the body has a type or an encoding that is not read",
    429: "more requests than can be answered in time, or than the key may send",
    431: "the headers are larger than allowed",
    499: "the client left before its answer",
    500: "the inference failed, or the process that ran it died",
    503: "the model is not ready, or the server is ending",
    504: "the deadline passed before there was an answer",
}
"""Every status other than 200 that the server gives, and what it means. 499 is never sent: it
counts requests whose client left."""


class Refusal(Exception):
    """A request is refused, or failed.

    Args:
        status: out of `CODES`.
        message: for the client: what is wrong and what is allowed; no paths, no values, no traces.
        headers: more of the answer's, such as ``Retry-After``.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = dict(headers or {})
