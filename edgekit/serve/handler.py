"""The answer to every request, free of any server framework.

`server` calls it from uvicorn; another server, such as a replica of Ray Serve, makes the same
`Call` and sends the same `Reply`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote

import edgekit
from edgekit.errors import EdgekitError
from edgekit.serve.arguments import check_json, check_outputs, inputs_of
from edgekit.serve.call import Call, Reply, json_reply, refused
from edgekit.serve.hosted import Hosted, Version
from edgekit.serve.metrics import render as render_metrics
from edgekit.serve.oip import EXTENSIONS, HEADER_LENGTH, parse, render
from edgekit.serve.predict import check_content_type, largest_raw, prediction
from edgekit.serve.refusal import Refusal
from edgekit.serve.security import ANYONE, Caller, Keys, Rates
from edgekit.serve.work import Work

__all__ = ["Handler"]

log = logging.getLogger("edgekit.serve")

_TIMEOUT = "x-request-timeout-ms"
_OPEN = {("v2", "health", "live"), ("v2", "health", "ready")}
_TENSOR_TYPES = ("", "application/json", "application/octet-stream")
_MAX_TOP = 1000


class Handler:
    """All models of one server.

    Args:
        models: none of them need be loaded yet.
        keys: who may ask; anyone where there are none.
        rates: how often.
        timeout_ms: the deadline of a request that names none, and the longest that one may name.

    Attributes:
        draining: the server ends: no request for an inference is let in any more.
        others: requests for anything else, by status.
    """

    def __init__(
        self,
        models: Sequence[Hosted],
        *,
        keys: Keys | None = None,
        rates: Rates | None = None,
        timeout_ms: float = 30_000,
    ) -> None:
        self.models = {model.name: model for model in models}
        self.keys = keys or Keys()
        self._rates = rates or Rates(0)
        self._timeout_ms = timeout_ms
        self.draining = False
        self.others: Counter[int] = Counter()

    @property
    def ready(self) -> bool:
        """Whether there are models and all take requests."""
        models = self.models.values()
        return not self.draining and bool(models) and all(model.ready for model in models)

    @property
    def current(self) -> int:
        """Inferences going on."""
        return sum(model.metrics.current for model in self.models.values())

    async def handle(self, call: Call) -> Reply:
        """Answers one request; never raises but for cancellation."""
        parts = tuple(unquote(part, errors="replace") for part in call.path.split("/")[1:])
        model = self._inference_of(call, parts)
        if model is not None:
            return await self._counted(call, parts, model)
        try:
            reply = await self._other(call, parts)
        except Refusal as refusal:
            reply = refused(refusal)
        except asyncio.CancelledError:
            self.others[499] += 1
            raise
        except Exception:
            log.exception("a request failed", extra={"path": call.path[:200]})
            reply = json_reply({"error": "internal error"}, 500)
        self.others[reply.status] += 1
        return reply

    # -- inference --------------------------------------------------------------------------------

    def _inference_of(self, call: Call, parts: tuple[str, ...]) -> Hosted | None:
        """The model that a request for an inference names, if there is one."""
        if call.method != "POST":
            return None
        if parts[:2] == ("v2", "models") and parts[-1] == "infer" and len(parts) in (4, 6):
            return self.models.get(parts[2])
        if parts == ("v1", "predict"):
            names = parse_qs(call.query).get("model") or list(self.models)[:1]
            return self.models.get(names[0]) if names else None
        return None

    async def _counted(self, call: Call, parts: tuple[str, ...], model: Hosted) -> Reply:
        """Counts a request as it comes and, whatever becomes of it, once as it ends."""
        model.metrics.begin()
        code = 500
        try:
            if parts[0] == "v1":
                reply = await self._predict(call, model)
            else:
                version = parts[4] if len(parts) == 6 and parts[3] == "versions" else None
                if len(parts) == 6 and version is None:
                    raise Refusal(404, "no such path")
                reply = await self._infer(call, model, version)
            code = reply.status
        except Refusal as refusal:
            code, reply = refusal.status, refused(refusal)
        except asyncio.CancelledError:
            code = 499
            raise
        except Exception:
            log.exception("an inference request failed", extra={"model": model.name})
            reply = json_reply({"error": "internal error"}, 500)
        finally:
            model.metrics.end(code)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("answered", extra={"model": model.name, "status": code})
        return reply

    def _let_in(self, call: Call, model: Hosted, version: str | None) -> Version:
        """Everything that can be refused before the body is read."""
        self._admit(call)
        if self.draining:
            raise Refusal(503, "the server is ending", {"Retry-After": "1"})
        now = model.current(version)
        wait = now.engine.sheds()
        if wait is not None:
            raise Refusal(429, "the model's queue is full", {"Retry-After": str(wait)})
        return now

    def _admit(self, call: Call) -> Caller:
        caller = self.keys.caller(call.headers)
        self._rates.take(caller.name or call.address)
        return caller

    async def _infer(self, call: Call, model: Hosted, version: str | None) -> Reply:
        arrived = time.monotonic_ns()
        self._let_in(call, model, version)
        content_type = call.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type not in _TENSOR_TYPES:
            raise Refusal(415, "a request is application/json or application/octet-stream")
        header_length = _length(call.headers.get(HEADER_LENGTH))
        body = await call.body()
        # Another version may have been put in while the body came.
        now = model.current(version)
        check_json(len(body) if header_length is None else header_length, now)
        request = parse(body, header_length)
        inputs, rows = inputs_of(request, now)
        check_outputs(request, now)
        deadline = arrived + self._timeout_ns(call, request.parameters)
        work = Work(inputs, rows, deadline, arrived)
        outcome = await self._run(call, now, work)
        names = (spec.name for spec in now.signature.outputs)
        content, length = render(
            list(zip(names, outcome.outputs, strict=True)),
            model=now.name,
            version=now.version,
            request=request,
        )
        took = (time.monotonic_ns() - arrived) // 1000
        model.metrics.succeed(rows, took, outcome.queue_us, outcome.exec_us)
        if length is None:
            return Reply(200, content, {"Content-Type": "application/json"})
        kind = {"Content-Type": "application/octet-stream"}
        return Reply(200, content, {**kind, "Inference-Header-Content-Length": str(length)})

    async def _predict(self, call: Call, model: Hosted) -> Reply:
        arrived = time.monotonic_ns()
        now = self._let_in(call, model, None)
        check_content_type(now.preprocess, call.headers.get("content-type", ""))
        top = _top(call.query)
        raw = bytes(await call.body())
        now = model.current()
        if not raw:
            raise Refusal(400, "the body is empty")
        if len(raw) > largest_raw(now):
            raise Refusal(413, f"at most {largest_raw(now)} bytes are preprocessed")
        work = Work((), 1, arrived + self._timeout_ns(call, {}), arrived, raw)
        outcome = await self._run(call, now, work)
        document = prediction(now, outcome, top)
        took = (time.monotonic_ns() - arrived) // 1000
        model.metrics.succeed(1, took, outcome.queue_us, outcome.exec_us)
        return json_reply(document)

    async def _run(self, call: Call, version: Version, work: Work) -> Any:
        # The body may have taken its time.
        wait = version.engine.sheds(work.rows)
        if wait is not None:
            raise Refusal(429, "the model's queue is full", {"Retry-After": str(wait)})
        call.gone(lambda: work.refuse(499, "the client left"))
        return await version.engine.run(work)

    def _timeout_ns(self, call: Call, parameters: Mapping[str, Any]) -> int:
        """Until when the client waits: the shorter of the header, in milliseconds, and Triton's
        parameter, in microseconds, where 0 means that there is none."""
        limit = int(self._timeout_ms * 1e6)
        text = call.headers.get(_TIMEOUT)
        if text is not None:
            if not re.fullmatch(r"[0-9]{1,9}", text):
                raise Refusal(400, f"{_TIMEOUT} is not a whole number of milliseconds")
            limit = min(limit, int(text) * 1_000_000)
        micros = parameters.get("timeout")
        if micros is None:
            return limit
        if type(micros) is not int or micros < 0:
            raise Refusal(400, "timeout is not a whole number of microseconds")
        return min(limit, micros * 1000) if micros else limit

    # -- everything else --------------------------------------------------------------------------

    async def _other(self, call: Call, parts: tuple[str, ...]) -> Reply:
        caller = ANYONE if parts in _OPEN else self._admit(call)
        match parts:
            case ("v2",):
                _only(call, "GET")
                return json_reply(self._server())
            case ("v2", "health", "live"):
                _only(call, "GET")
                return json_reply({"live": True})
            case ("v2", "health", "ready"):
                _only(call, "GET")
                return json_reply({"ready": self.ready}, 200 if self.ready else 503)
            case ("metrics",):
                _only(call, "GET")
                measured = [model.measured() for model in self.models.values()]
                text = render_metrics(measured, self.others)
                return Reply(200, text.encode(), {"Content-Type": "text/plain; version=0.0.4"})
            case ("v2", "repository", "index"):
                _only(call, "POST")
                return json_reply(self._index())
            case ("v2", "repository", "models", name, "load"):
                _only(call, "POST")
                return await self._load(self._model(name), caller)
            case ("v2", "models", name, *rest):
                return self._about(call, self._model(name), tuple(rest))
            case ("v1", "predict"):
                _only(call, "POST")
                raise Refusal(404, "no such model")
        raise Refusal(404, "no such path")

    def _model(self, name: str) -> Hosted:
        model = self.models.get(name)
        if model is None:
            raise Refusal(404, "no such model")
        return model

    def _about(self, call: Call, model: Hosted, rest: tuple[str, ...]) -> Reply:
        asked: str | None = None
        if rest[:1] == ("versions",) and len(rest) >= 2:
            asked, rest = rest[1], rest[2:]
        if rest == ("infer",):
            _only(call, "POST")
        if rest not in ((), ("ready",), ("stats",), ("config",)):
            raise Refusal(404, "no such path")
        _only(call, "GET")
        now = model.version
        if asked is not None and (now is None or now.version != asked):
            raise Refusal(404, "the model has no such version")
        if rest == ("ready",):
            ready = model.ready and not self.draining
            return json_reply({"name": model.name, "ready": ready}, 200 if ready else 503)
        if now is None:
            raise Refusal(503, f"the model is not ready ({model.state})", {"Retry-After": "1"})
        if rest == ("stats",):
            return json_reply({"model_stats": [_stats(model, now)]})
        if rest == ("config",):
            return json_reply({**now.metadata(), "serving": now.engine.describe()})
        return json_reply(now.metadata())

    def _server(self) -> dict[str, Any]:
        return {
            "name": "edgekit",
            "version": edgekit.__version__,
            "extensions": list(EXTENSIONS),
        }

    def _index(self) -> list[dict[str, str]]:
        """Triton's repository extension."""
        return [
            {
                "name": model.name,
                "version": "" if model.version is None else model.version.version,
                "state": _state(model),
                "reason": "it does not load" if model.state == "failed" else "",
            }
            for model in self.models.values()
        ]

    async def _load(self, model: Hosted, caller: Caller) -> Reply:
        if not caller.admin:
            raise Refusal(403, "loading a model needs an admin key")
        if self.draining:
            raise Refusal(503, "the server is ending")
        try:
            version = await model.load()
        except EdgekitError as error:
            # What exactly is wrong names files: that is for the log.
            kind = type(error).__name__
            raise Refusal(400, f"the bundle cannot be served ({kind}); see the log") from error
        return json_reply({"name": version.name, "version": version.version})


def _state(model: Hosted) -> str:
    if model.ready:
        return "READY"
    return "LOADING" if model.state == "loading" else "UNAVAILABLE"


def _only(call: Call, method: str) -> None:
    if call.method != method and not (method == "GET" and call.method == "HEAD"):
        raise Refusal(405, f"this path takes {method}", {"Allow": method})


def _length(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise Refusal(400, f"{HEADER_LENGTH} is not a number of bytes")
    return int(text)


def _top(query: str) -> int:
    text = (parse_qs(query).get("top") or ["5"])[0]
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= _MAX_TOP:
        raise Refusal(400, f"top is not a number from 1 to {_MAX_TOP}")
    return int(text)


def _stats(model: Hosted, version: Version) -> dict[str, Any]:
    """Triton's statistics extension."""
    m = model.measured()
    failed = sum(n for code, n in m.codes.items() if code != 200)
    ok = m.codes[200]
    return {
        "name": model.name,
        "version": version.version,
        "inference_count": m.rows,
        "execution_count": m.executions,
        "inference_stats": {
            "success": {"count": ok, "ns": m.duration_us * 1000},
            "fail": {"count": failed, "ns": 0},
            "queue": {"count": ok, "ns": m.queue_us * 1000},
            "compute_infer": {"count": ok, "ns": m.exec_us * 1000},
        },
    }
