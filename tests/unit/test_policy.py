"""Policies: how sure an answer is, and which documents are refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from edgekit import schemas
from edgekit.errors import BadData
from edgekit.runtime.policy import Policy, certainty
from edgekit.signature import Signature, TensorSpec


def test_the_signals_are_those_of_the_field() -> None:
    p = np.array([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    logits = np.log(p) + np.array([[5.0], [-7.0]])  # softmax does not mind what is added
    entropy = 1 + sum(v * math.log(v) for v in p[0]) / math.log(3)
    expected = {"confidence": (0.7, 1 / 3), "margin": (0.5, 0.0), "entropy": (entropy, 0.0)}
    for signal, values in expected.items():
        np.testing.assert_allclose(certainty(logits, 1.0, signal), values, atol=1e-12)
        np.testing.assert_allclose(certainty(p, 1.0, signal, "probabilities"), values, atol=1e-9)
    np.testing.assert_allclose(
        certainty(logits, 2.0, "confidence")[0], math.sqrt(0.7) / np.sqrt(p[0]).sum()
    )


def test_every_signal_stays_within_zero_and_one() -> None:
    scores = np.array([[1e5, -1e5], [0.0, 0.0], [3e38, 3e38]])
    for signal in ("confidence", "margin", "entropy"):
        found = certainty(scores, 0.01, signal)
        assert ((found >= 0) & (found <= 1)).all()
        assert found[0] == 1
    ones = np.array([[1.0, 0.0]])  # int8 softmax
    assert certainty(ones, 1.0, "confidence", "probabilities")[0] == pytest.approx(1)


@pytest.mark.parametrize("scores", [[[1.0, math.nan]], [[1.0]], [1.0, 2.0], np.empty((0, 2))])
def test_scores_that_tell_nothing_are_refused(scores: Any) -> None:
    with pytest.raises(BadData):
        certainty(scores, 1.0, "confidence")


def test_a_batch_is_as_sure_as_its_least_sure_row() -> None:
    policy = Policy(min_confidence=0.9)
    assert policy.certainty(np.array([[9.0, 0.0], [0.0, 0.0]])) == 0.5
    assert not policy.sure(0.5)
    assert policy.sure(0.9)
    assert Policy().sure(0.0)


def test_a_policy_goes_out_and_comes_back(policy_document: dict[str, Any]) -> None:
    schemas.validate(policy_document)
    assert Policy.from_json(policy_document).to_json() == policy_document
    least = {"schema": "edgekit.policy/1", "temperature": 2, "min_confidence": None,
             "otherwise": "abstain"}  # fmt: skip
    read = Policy.from_json(least)
    assert read == Policy(temperature=2, otherwise="abstain")
    schemas.validate(read.to_json())


@pytest.fixture
def policy_document() -> dict[str, Any]:
    """One with every field."""
    estimate = {"value": 20.0, "low": 18.0, "high": 22.0}
    data = {"source": "dev.jsonl", "digest": "0" * 64, "n": 400}
    return {
        "schema": "edgekit.policy/1",
        "temperature": 1.7,
        "min_confidence": 0.8,
        "otherwise": "cloud",
        "timeout_ms": 200.0,
        "signal": "margin",
        "scores": "logits",
        "output": "scores",
        "same_inputs": False,
        "chosen": {
            "rule": {"kind": "keep", "value": 99.0},
            "bundle": "0" * 64,
            "artifact": "tflite-w8a8",
            "teacher": {"name": "teacher", "version": "1", "digest": None},
            "tuned_on": data,
            "reported_on": data,
            "expected": {
                "cloud_share": estimate,
                "accuracy": estimate,
                "device": 85.0,
                "teacher": 90.0,
                "random": 86.0,
                "gain_over_random": estimate,
                "latency": {
                    "device_ms": 1.0, "cloud_ms": 30.0, "mean_ms": 7.0, "cloud_kind": "measured",
                },
            },
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "edgekit.policy/2"}, "schema is 'edgekit.policy/2'"),
        ({"temperature": 0}, "temperature is 0; allowed: a number over 0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": True}, "temperature is True"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"min_confidence": 1.01}, r"min_confidence is 1\.01; allowed: 0 to 1"),
        ({"min_confidence": math.nan}, "min_confidence is nan"),
        ({"otherwise": "guess"}, "otherwise is 'guess'; allowed: answer, abstain, cloud"),
        ({"otherwise": ["cloud"]}, "otherwise is"),
        ({"timeout_ms": -1}, "timeout_ms is -1"),
        ({"signal": "energy"}, "allowed: confidence, entropy, margin"),
        ({"scores": "odds"}, "scores is 'odds'"),
        ({"output": ""}, "output is ''"),
        ({"output": 3}, "output is 3"),
        ({"same_inputs": 1}, "same_inputs is 1"),
        ({"chosen": []}, "chosen is not an object"),
        ({"beware": 1}, "holds beware, unknown here"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_schema_refuses_the_device_refuses_too(
    change: dict[str, Any], said: str, policy_document: dict[str, Any]
) -> None:
    wrong = policy_document | change
    with pytest.raises(BadData, match=said):
        Policy.from_json(wrong)
    with pytest.raises(BadData):
        schemas.validate(wrong)


@pytest.mark.parametrize("key", ["temperature", "min_confidence", "otherwise"])
def test_what_must_be_there_is_missed(key: str, policy_document: dict[str, Any]) -> None:
    del policy_document[key]
    with pytest.raises(BadData, match=f"lacks {key}"):
        Policy.from_json(policy_document)
    with pytest.raises(BadData):
        schemas.validate(policy_document)


def test_the_scores_are_found_or_the_policy_does_not_fit() -> None:
    scores, box = TensorSpec("scores", (1, 5)), TensorSpec("box", (1, 3, 4))
    x = (TensorSpec("x", (1, 2)),)
    assert Policy().scored(Signature(x, (scores,))) == scores
    assert Policy(output="scores").scored(Signature(x, (box, scores))) == scores
    with pytest.raises(BadData, match="name the one with the scores"):
        Policy().scored(Signature(x, (box, scores)))
    with pytest.raises(BadData, match="no 'other'"):
        Policy(output="other").scored(Signature(x, (scores,)))
    with pytest.raises(BadData, match="how sure an answer is can be told of scores"):
        Policy().scored(Signature(x, (box,)))
