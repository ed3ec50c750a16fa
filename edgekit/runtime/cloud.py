"""Cloud: a client of a server that speaks the Open Inference Protocol v2; ours, or any other.

Standard library and numpy alone. Every call has one deadline, over looking up the name, connecting,
TLS, sending and receiving. Nothing that comes back is believed unchecked (`edgekit.runtime.oip`).

A server in trouble is left alone: what it says in ``Retry-After`` holds, a circuit breaker opens
where it fails, and no more than a tenth of the requests are tried again. A request that it refuses
(400 and its kind) is never tried again.
"""

from __future__ import annotations

import json
import random
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgekit.errors import BadData, CloudError, UsageError
from edgekit.runtime import oip
from edgekit.runtime._closing import Closing
from edgekit.runtime._cloud_setup import (
    header_fields,
    is_here,
    read_url,
    retry_after_s,
    tls_context,
    told,
)
from edgekit.runtime._pool import Pool, Trouble
from edgekit.runtime._wire import Deadline, Question, Reply
from edgekit.runtime.guards import Breaker, Latencies, RetryBudget
from edgekit.signature import Signature, TensorSpec

__all__ = ["KINDS", "Cloud", "CloudAnswer"]

KINDS: Final[Mapping[str, str]] = {
    "timeout": "the deadline passed",
    "dns": "the server's name is not known",
    "connect": "no connection",
    "tls": "the certificates do not agree",
    "reset": "the connection broke",
    "busy": "the server has too much to do (429)",
    "unavailable": "the server is not ready (502, 503)",
    "server": "the server failed (another 5xx)",
    "refused": "the server does not take the request (another 4xx)",
    "redirect": "the server sends elsewhere (3xx), as networks do that want a login first",
    "garbage": "no answer of the protocol",
    "wrong-answer": "an answer of another model, shape or dtype, or not finite",
    "told-to-wait": "not asked: the server said to come back later",
    "breaker-open": "not asked: the server failed too often of late",
    "closed": "not asked: this client is closed",
}
"""What `CloudError.kind` may be."""

_AGAIN: Final = frozenset({"connect", "reset", "busy", "unavailable"})
"""Worth another try: inference changes nothing, and another moment may do."""

_JSON_BYTES: Final = 32  # what one number may take in JSON
_SLACK: Final = 1 << 16  # what a JSON header may take
_BACKOFF_S: Final = 0.02


@dataclass(frozen=True)
class CloudAnswer:
    """What the server answered.

    Attributes:
        outputs: arrays by output name, as the specs demand.
        model, version: which model computed it; the version is None where the server has none.
        attempts: how often it was asked.
        seconds: for the whole call.
    """

    outputs: dict[str, np.ndarray[Any, Any]]
    model: str
    version: str | None
    attempts: int
    seconds: float


class Cloud(Closing):
    """One model on a server. Safe to use from several threads; close it, or use it in a ``with``.

    ```python
    cloud = Cloud("https://models.example.com/v2/models/teacher", api_key=key)
    answer = cloud.infer({"image": picture}, outputs=signature.outputs, timeout_ms=300)
    ```

    Args:
        url: ``https://HOST[:PORT]``, with or without ``/v2/models/NAME[/versions/VERSION]``.
        model: the model's name, where the URL does not say it.
        version: the one version whose answers are taken; None: any.
        api_key: sent as ``Authorization: Bearer KEY``, over TLS or to this machine only.
        ca: a file with the certificates that are trusted, in place of the system's.
        client_cert, client_key: files with a certificate and its key that tell who we are.
        headers: further header fields of every request.
        timeout_ms: how long a call may take that does not say.
        attempts: how often one call may ask, within the budget.
        binary: whether tensors go as raw bytes; False for a server without that extension.
        connections: how many idle ones are kept open.
        budget, breaker: others than the usual ones; several clients may share a budget.

    Raises:
        UsageError: the URL or a name is no good, or a key would go over the network in clear text.
        BadData: a certificate cannot be read.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        version: str | None = None,
        api_key: str | None = None,
        ca: str | None = None,
        client_cert: str | None = None,
        client_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_ms: float = 1000.0,
        attempts: int = 2,
        binary: bool = True,
        connections: int = 4,
        budget: RetryBudget | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        self._tls, self._host, self._port, prefix, named = read_url(url)
        self.model = model or named[0]
        self.version = version or named[1]
        if not self.model:
            raise UsageError(
                "no model is named", hint="Cloud(url, 'NAME'), or a URL with /v2/models/NAME"
            )
        try:
            self._path = prefix + oip.model_path(self.model, self.version)
        except BadData as error:
            raise UsageError(error.message, hint=error.hint) from None
        self._secret = api_key
        if api_key is not None and not self._tls and not is_here(self._host):
            raise UsageError(
                f"the API key would go to {self._host} in clear text", hint="use https://"
            )
        self._headers = header_fields(headers, api_key)
        context = tls_context(ca, client_cert, client_key) if self._tls else None
        self._pool = Pool(self._host, self._port, context, connections)
        self.timeout_ms = timeout_ms
        self._attempts = attempts
        self._binary = binary
        self._budget = budget or RetryBudget()
        self.breaker = breaker or Breaker()
        self.latencies = Latencies()
        self._closed = threading.Event()

    def __repr__(self) -> str:
        # No header fields: they may hold keys.
        return f"Cloud({self.address!r}, {self.model!r}, version={self.version!r})"

    @property
    def address(self) -> str:
        """``https://HOST:PORT``."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self._port}"

    def unavailable(self) -> str | None:
        """Why a call made now would not be sent, out of `KINDS`; None where it would."""
        if self._closed.is_set():
            return "closed"
        if self.breaker.wait_s > 0:
            return "told-to-wait" if self.breaker.held else "breaker-open"
        return None

    def infer(
        self,
        feeds: Mapping[str, np.ndarray[Any, Any]],
        outputs: Sequence[TensorSpec],
        *,
        timeout_ms: float | None = None,
    ) -> CloudAnswer:
        """Asks the model.

        Args:
            feeds: arrays by input name.
            outputs: what it has to answer; anything else is refused.
            timeout_ms: for the whole call, further attempts included; None: the client's.

        Raises:
            CloudError: see `KINDS`; ``attempts`` tells how often the server was asked.
            BadData: the inputs cannot be sent.
        """
        started = time.monotonic()
        deadline = Deadline((self.timeout_ms if timeout_ms is None else timeout_ms) / 1000)
        attempts = 0
        while True:
            ticket = self._admit(attempts)
            if not attempts:
                self._budget.deposit()  # a request that is not sent earns no retry
            attempts += 1
            found = self._attempt(ticket, feeds, outputs, deadline)
            if isinstance(found, oip.Parsed):
                seconds = time.monotonic() - started
                self.latencies.add(seconds)
                return CloudAnswer(found.outputs, found.model, found.version, attempts, seconds)
            found.attempts = attempts
            pause = self._pause(found, attempts, deadline)
            if pause is None or self._closed.wait(pause):
                raise found

    def metadata(self, *, timeout_ms: float | None = None) -> Signature:
        """The model's inputs and outputs as the server states them; a free dimension becomes 1.

        Raises:
            CloudError: as `infer`; it is asked once.
        """
        deadline = Deadline((self.timeout_ms if timeout_ms is None else timeout_ms) / 1000)
        reply = self._exchange(Question("GET", self._path, None, self._headers, 1 << 20), deadline)
        self._check_status(reply)
        try:
            document = json.loads(reply.body)
            inputs, outputs = oip.input_specs(document if isinstance(document, dict) else {})
            return Signature(inputs, outputs)
        except (ValueError, RecursionError, BadData) as error:
            raise self._error("garbage", "its model metadata is not that of OIP v2") from error

    def close(self) -> None:
        """Closes the idle connections, and lets nobody ask any more."""
        self._closed.set()
        self._pool.close()

    # -- one call -----------------------------------------------------------------------------

    def _admit(self, attempts: int) -> int:
        ticket = None if self._closed.is_set() else self.breaker.admit()
        if ticket is None:
            kind = self.unavailable() or "breaker-open"
            wait = self.breaker.wait_s
            raise self._error(
                kind, f"for another {wait:.1f} s" if wait else KINDS[kind], attempts=attempts
            )
        return ticket

    def _attempt(
        self,
        ticket: int,
        feeds: Mapping[str, np.ndarray[Any, Any]],
        outputs: Sequence[TensorSpec],
        deadline: Deadline,
    ) -> oip.Parsed | CloudError:
        """Asks once, and tells the breaker how that went."""
        ok: bool | None = None
        given, usual = deadline.left, self.latencies.median
        try:
            found = self._ask(feeds, outputs, deadline)
            ok = True
            return found
        except CloudError as error:
            # A server that refuses one request is well.
            ok = error.kind == "refused"
            if error.kind == "timeout" and usual is not None and given < usual:
                ok = None  # it could not have been in time
            if error.retry_after_s is not None:
                self.breaker.hold(error.retry_after_s)
            return error
        finally:
            self.breaker.settle(ticket, ok)

    def _pause(self, error: CloudError, attempts: int, deadline: Deadline) -> float | None:
        """Seconds until the next try; None where there is to be none."""
        if error.kind not in _AGAIN or attempts >= self._attempts:
            return None
        # Full jitter: those who failed together must not come back together.
        pause = random.uniform(0, _BACKOFF_S * 2**attempts)
        if error.retry_after_s is not None:
            pause += error.retry_after_s
        if pause >= deadline.left or self.breaker.wait_s > pause or not self._budget.withdraw():
            return None
        return pause

    def _ask(
        self,
        feeds: Mapping[str, np.ndarray[Any, Any]],
        outputs: Sequence[TensorSpec],
        deadline: Deadline,
    ) -> oip.Parsed:
        timeout_us = max(1, int(deadline.left * 1e6))
        id = secrets.token_hex(8)
        request = oip.build(id, feeds, outputs, binary=self._binary, timeout_us=timeout_us)
        values = sum(int(np.prod(spec.shape, dtype=np.int64)) for spec in outputs)
        most = _SLACK + _JSON_BYTES * values
        headers = {**self._headers, **request.headers}
        question = Question("POST", f"{self._path}/infer", request.body, headers, most)
        reply = self._exchange(question, deadline)
        self._check_status(reply)
        try:
            return oip.parse(
                reply.body,
                reply.headers.get(oip.HEADER_LENGTH.lower()),
                id=id,
                model=str(self.model),
                version=self.version,
                outputs=outputs,
            )
        except BadData as error:
            text = error.message
            kind = "garbage" if text.startswith("it is not JSON") else "wrong-answer"
            raise self._error(kind, text) from None

    def _exchange(self, question: Question, deadline: Deadline) -> Reply:
        try:
            return self._pool.exchange(question, deadline)
        except Trouble as trouble:
            raise self._error(trouble.kind, trouble.text or KINDS[trouble.kind]) from None

    def _check_status(self, reply: Reply) -> None:
        status = reply.status
        if status == 200:
            return
        kind = {429: "busy", 502: "unavailable", 503: "unavailable", 504: "timeout"}.get(status)
        if kind is None:
            kind = {2: "garbage", 3: "redirect", 4: "refused"}.get(status // 100, "server")
        wait = retry_after_s(reply.headers.get("retry-after")) if status in (429, 503) else None
        raise self._error(kind, f"status {status}{told(reply.body)}", retry_after_s=wait)

    def _error(
        self, kind: str, text: str, *, retry_after_s: float | None = None, attempts: int = 0
    ) -> CloudError:
        said = f"{self.address}, model {self.model!r}: {kind}: {text}"
        if self._secret:
            said = said.replace(self._secret, "***")
        hints = {
            "tls": "name the certificate of its authority with ca=",
            "refused": "compare the inputs with the server's model metadata",
            "wrong-answer": "the server has to serve a model with the same outputs",
        }
        return CloudError(
            said, hint=hints.get(kind, ""), kind=kind, retry_after_s=retry_after_s,
            attempts=attempts,
        )  # fmt: skip
