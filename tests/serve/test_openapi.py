"""What the server says of itself holds: schemathesis against its own description."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

schemathesis = pytest.importorskip("schemathesis")
positive_data_acceptance = pytest.importorskip(
    "schemathesis.specs.openapi.checks"
).positive_data_acceptance


OPERATIONS = (
    *("GET /v2", "GET /v2/health/live", "GET /v2/health/ready", "GET /metrics"),
    *("GET /v2/models/{model}", "GET /v2/models/{model}/versions/{version}"),
    *("GET /v2/models/{model}/ready", "GET /v2/models/{model}/versions/{version}/ready"),
    *("GET /v2/models/{model}/config", "GET /v2/models/{model}/stats"),
    *("POST /v2/models/{model}/infer", "POST /v2/models/{model}/versions/{version}/infer"),
    *("POST /v1/predict", "POST /v2/repository/index"),
    "POST /v2/repository/models/{model}/load",
)


@pytest.fixture(scope="session")
def operations(server: Any) -> dict[str, Any]:
    """Every operation that the running server describes, as schemathesis reads it."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    found = [result.ok() for result in schema.get_all_operations()]
    return {f"{operation.method.upper()} {operation.path}": operation for operation in found}


def test_every_operation_is_tried(operations: dict[str, Any]) -> None:
    assert set(operations) == set(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_every_answer_is_one_that_is_described(
    operations: dict[str, Any], name: str, mode: str
) -> None:
    operation = operations[name]
    tried = []

    # Not by schemathesis's plug-in for pytest, which does not know pytest 9.2.
    @settings(
        max_examples=4,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode]))
    def run(case: Any) -> None:
        for place, value in (("model", "lookup"), ("version", "1")):
            if place in (case.path_parameters or {}) and len(tried) % 2:
                case.path_parameters[place] = value
        # What fits the description need not fit the model, whose inputs it does not hold.
        left_out = [positive_data_acceptance] if name.startswith("POST /v") else []
        tried.append(case.call_and_validate(excluded_checks=left_out).status_code)

    try:
        run()
    except Unsatisfiable:
        # An operation without anything that could be wrong.
        assert mode == "NEGATIVE" and not tried
    else:
        assert tried


def test_the_description_has_every_route_and_the_pages(server: Any) -> None:
    status, _, body = server.ask("GET", "/openapi.json")
    assert status == 200
    paths = json.loads(body)["paths"]
    assert set(paths) >= {
        "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/{model}", "/metrics",
        "/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer", "/v1/predict",
    }  # fmt: skip
    status, headers, _ = server.ask("GET", "/docs")
    assert status == 200 and headers["content-type"].startswith("text/html")


def test_answers_with_content_fit_their_schemas(server: Any) -> None:
    described = json.loads(server.ask("GET", "/openapi.json")[2])["paths"]

    def check(path: str, method: str, status: int, document: Any) -> None:
        answers = described[path][method]["responses"]
        schema = answers[str(status)]["content"]["application/json"]["schema"]
        jsonschema.validate(document, schema)

    status, document = server.infer("lookup", {"i": np.array([[1, 2]])})
    assert status == 200
    check("/v2/models/{model}/infer", "post", status, document)
    status, document = server.infer("lookup", {"i": np.array([[1, 2, 3]])})
    assert status == 400
    check("/v2/models/{model}/infer", "post", status, document)
    for path in ("", "/versions/1"):
        status, _, body = server.ask("GET", f"/v2/models/lookup{path}")
        assert status == 200
        check("/v2/models/{model}", "get", status, json.loads(body))
