"""The server's description for OpenAPI, and its pages.

FastAPI writes it and draws the pages. Requests do not pass through it on their way to a model
(`edgekit.serve.asgi`), yet each route here answers by the same handler, for servers that want an
application of FastAPI.
"""

from __future__ import annotations

import copy
from typing import Any, Final

from fastapi import FastAPI, Request, Response

import edgekit
from edgekit.runtime.oip import HEADER_LENGTH
from edgekit.serve.call import Call
from edgekit.serve.handler import Handler
from edgekit.serve.oip import DATATYPES
from edgekit.serve.refusal import CODES

__all__ = ["description"]

_TENSOR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string", "enum": list(DATATYPES)},
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}},
    },
}
_INFER: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "inputs": {"type": "array", "minItems": 1, "items": _TENSOR},
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
            },
        },
    },
}
_INFERRED: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["model_name", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "outputs": {"type": "array", "items": _TENSOR},
    },
}
_PREDICTED: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["model_name", "model_version"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "labels": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["label", "index", "score"],
                "properties": {
                    "label": {"type": "string"},
                    "index": {"type": "integer"},
                    "score": {"type": "number"},
                },
            },
        },
        "outputs": {"type": "object"},
    },
}
_METADATA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["name", "platform", "inputs", "outputs"],
    "properties": {
        "name": {"type": "string"},
        "versions": {"type": "array", "items": {"type": "string"}},
        "platform": {"type": "string"},
        "inputs": {"type": "array"},
        "outputs": {"type": "array"},
    },
}
_OBJECT: Final[dict[str, Any]] = {"type": "object"}
_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}

_BASE: Final = "/v2/models/{model}"
_VERSION: Final = _BASE + "/versions/{version}"
_ANY: Final = (401, 405, 408, 429, 431)
_ASKED: Final = (*_ANY, 404)
_WORKED: Final = (*_ASKED, 400, 413, 415, 500, 503, 504)

# Method, path, what it does, answer, statuses besides 200.
_ROUTES: Final[tuple[tuple[str, str, str, dict[str, Any], tuple[int, ...]], ...]] = (
    ("GET", "/v2", "Name, version and extensions of the server.", _OBJECT, _ANY),
    ("GET", "/v2/health/live", "Whether the server is there.", _OBJECT, _ANY),
    ("GET", "/v2/health/ready", "Whether every model takes requests.", _OBJECT, (*_ANY, 503)),
    ("GET", _BASE, "A model's inputs and outputs.", _METADATA, (*_ASKED, 503)),
    ("GET", _VERSION, "The same, of a version.", _METADATA, (*_ASKED, 503)),
    ("GET", _BASE + "/ready", "Whether a model takes requests.", _OBJECT, (*_ASKED, 503)),
    ("GET", _VERSION + "/ready", "The same, of a version.", _OBJECT, (*_ASKED, 503)),
    ("GET", _BASE + "/config", "How a model is served.", _OBJECT, (*_ASKED, 503)),
    ("GET", _BASE + "/stats", "What a model has done.", _OBJECT, (*_ASKED, 503)),
    ("POST", _BASE + "/infer", "Runs a model on tensors.", _INFERRED, _WORKED),
    ("POST", _VERSION + "/infer", "The same, of a version.", _INFERRED, _WORKED),
    (
        "POST", "/v1/predict", "Runs a model on a picture, a text or a recording.", _PREDICTED,
        _WORKED,
    ),
    ("POST", "/v2/repository/index", "All models and their states.", {"type": "array"}, _ANY),
    (
        "POST", "/v2/repository/models/{model}/load", "Puts in the bundle that lies there now.",
        _OBJECT, (*_ASKED, 400, 403, 503),
    ),
    ("GET", "/metrics", "Counters for Prometheus.", {"type": "string"}, _ANY),
)  # fmt: skip

_TIMEOUT: Final[dict[str, Any]] = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "description": "Milliseconds that the client waits; later it gets 504 and nothing is run.",
    "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
}
_TENSORS_LENGTH: Final[dict[str, Any]] = {
    "name": HEADER_LENGTH,
    "in": "header",
    "description": "Bytes of JSON in front of binary tensors.",
    "schema": {"type": "integer", "minimum": 0},
}
_BYTES: Final[dict[str, Any]] = {"schema": {"type": "string", "format": "binary"}}


def description(handler: Handler) -> FastAPI:
    """An application of FastAPI with every route, and ``/docs`` and ``/openapi.json``."""
    application = FastAPI(
        title="edgekit",
        version=edgekit.__version__,
        summary="Open Inference Protocol v2, and raw pictures, texts and recordings.",
    )

    async def answer(request: Request) -> Response:
        call = Call(
            request.method,
            request.scope.get("raw_path", request.url.path.encode()).decode("latin-1"),
            {name.lower(): value for name, value in request.headers.items()},
            request.body,
            request.url.query,
            request.client.host if request.client else "",
        )
        reply = await handler.handle(call)
        return Response(reply.body, reply.status, dict(reply.headers))

    for method, path, summary, schema, codes in _ROUTES:
        media = "text/plain" if path == "/metrics" else "application/json"
        application.add_api_route(
            path,
            answer,
            methods=[method],
            summary=summary,
            name=f"{method} {path}",
            operation_id=_operation(method, path),
            response_class=Response,
            responses={
                200: {"description": "Done.", "content": {media: {"schema": schema}}},
                **{code: _failure(code) for code in codes},
            },
            openapi_extra=_extra(path),
        )
    return application


def _operation(method: str, path: str) -> str:
    words = path.replace("{", "").replace("}", "").strip("/").replace("/", "_")
    return f"{method.lower()}_{words}"


def _failure(code: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"anyOf": [_ERROR, _OBJECT]} if code == 503 else _ERROR
    content = {"application/json": {"schema": schema}}
    return {"description": f"{CODES[code].capitalize()}.", "content": content}


def _extra(path: str) -> dict[str, Any]:
    names = [name for name in ("model", "version") if f"{{{name}}}" in path]
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]
    extra: dict[str, Any] = {"parameters": parameters}
    if path.endswith("/infer"):
        parameters += [_TIMEOUT, _TENSORS_LENGTH]
        types = {"application/json": {"schema": _INFER}, "application/octet-stream": _BYTES}
        extra["requestBody"] = {"required": True, "content": types}
    elif path == "/v1/predict":
        parameters += [
            _TIMEOUT,
            {"name": "model", "in": "query", "schema": {"type": "string"}},
            {
                "name": "top", "in": "query",
                "schema": {"type": "integer", "minimum": 1, "maximum": 1000},
            },
        ]  # fmt: skip
        types = {kind: _BYTES for kind in ("application/octet-stream", "image/jpeg", "audio/wav")}
        types["text/plain"] = {"schema": {"type": "string"}}
        extra["requestBody"] = {"required": True, "content": types}
    return copy.deepcopy(extra)
