"""Rules without a server: admission, the size of groups, keys, rates, counters, choice."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import BadData, TrustError, UnsupportedError
from edgekit.runtime.bundle import Bundle
from edgekit.serve.choice import choose
from edgekit.serve.metrics import ModelMetrics, render
from edgekit.serve.policy import Admission, GroupLimit, ServiceTime
from edgekit.serve.refusal import Refusal
from edgekit.serve.security import ANYONE, Caller, Keys, Rates, network, read_keys


def test_srv_04_shedding_begins_at_the_high_mark_and_ends_below_the_low_one() -> None:
    admission = Admission(objective_ms=100, fixed=100)
    assert admission.low == 75
    assert admission.admits(99, 1)
    assert not admission.admits(100, 1)
    assert [admission.admits(n, 1) for n in (99, 80, 75)] == [False] * 3
    assert admission.admits(74, 1) and admission.admits(99, 1)
    # A request that is larger than the whole queue is let in where nobody waits.
    assert Admission(objective_ms=100, fixed=4).admits(0, 32)


def test_srv_04_the_queue_holds_what_can_be_answered_in_time() -> None:
    admission = Admission(objective_ms=100, workers=2, row_us=5000)
    assert admission.high == 32
    admission.row_us = 50
    assert admission.high == 3200
    admission.row_us = 1e6
    assert admission.high == 8
    assert admission.retry_after_s(8) == 1 and admission.retry_after_s(26) == 10


def test_srv_04_the_queue_shrinks_while_answers_are_late_and_grows_again() -> None:
    admission = Admission(objective_ms=100, workers=2, row_us=1000)
    assert admission.high == 160
    for _ in range(35):
        admission.observe(90_000)
    assert admission.high == 78
    for _ in range(500):
        admission.observe(90_000)
    assert admission.high == 20
    for _ in range(1000):
        admission.observe(80_000)
    assert admission.high == 160
    # One in ten may be a little late.
    for i in range(10_000):
        admission.observe(90_000 if i % 12 == 0 else 80_000)
    assert admission.high > 150
    fixed = Admission(objective_ms=100, fixed=64)
    fixed.observe(1e9)
    assert fixed.high == 64


def test_groups_grow_by_one_and_shrink_by_a_share_under_the_objective() -> None:
    limit = GroupLimit(objective_ms=100, largest=32, best_batch=4)
    assert limit.limit == 4
    for expected in (5, 6, 7):
        limit.observe(10_000, limit.limit)
        assert limit.limit == expected
    limit.observe(10_000, 2)
    assert limit.limit == 7
    limit.observe(60_000, 7)
    assert limit.limit == 6
    for _ in range(40):
        limit.observe(60_000, limit.limit)
    assert limit.limit == 1
    # Rows that are run one by one go together only where a message costs about as much.
    assert GroupLimit(100, 32, 1).rows(5000) == 1
    lone = GroupLimit(100, 32, 1)
    for _ in range(40):
        lone.observe(1000, lone.limit)
    assert lone.rows(100) == 20 and lone.rows(1) == 32


def test_the_service_time_follows() -> None:
    service = ServiceTime(1000)
    for _ in range(100):
        service.observe(40_000, 20)
    assert service.row_us == pytest.approx(2000, rel=0.01)


def _keys(tmp_path: Path, text: str, mode: int = 0o600) -> Keys:
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(mode)
    return read_keys(path)


def test_keys(tmp_path: Path) -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    keys = _keys(tmp_path, f"# all\n\nops admin {'k' * 16}  # mine\napp sha256:{digest}\n")
    ops, app = Caller("ops", True), Caller("app", False)
    assert keys.caller({"x-api-key": "k" * 16}) == ops
    assert keys.caller({"authorization": "Bearer secret"}) == app
    assert keys.caller({"authorization": "bearer secret"}) == app
    for headers in ({}, {"x-api-key": ""}, {"x-api-key": "k" * 15}, {"authorization": "Basic x"}):
        with pytest.raises(Refusal) as caught:
            keys.caller(headers)
        assert caught.value.status == 401 and "k" * 15 not in caught.value.message
    assert Keys().caller({}) == ANYONE


@pytest.mark.parametrize(
    "text",
    ["", "# nothing\n", "app\n", "app key\n", f"app root {'k' * 16}\n", "app sha256:12\n",
     f"a {'k' * 16}\nb admin {'k' * 16}\n", "app " + "\u00e9" * 16, "app sha256:" + "g" * 64,
     f"a {'k' * 16}\na {'l' * 16}\n"],
)  # fmt: skip
def test_files_of_keys_that_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadData):
        _keys(tmp_path, text)


def test_a_file_of_keys_that_others_may_read(tmp_path: Path) -> None:
    with pytest.raises(TrustError):
        _keys(tmp_path, f"app {'k' * 16}\n", 0o644)
    with pytest.raises(BadData):
        read_keys(tmp_path / "absent")


def test_rates_are_each_ones_own() -> None:
    now = [0.0]
    rates = Rates(2, lambda: now[0])

    def taken(who: str) -> bool:
        try:
            rates.take(who)
        except Refusal as refusal:
            assert refusal.status == 429 and refusal.headers == {"Retry-After": "1"}
            return False
        return True

    assert [taken("a") for _ in range(3)] == [True, True, False]
    assert taken("b")
    now[0] += 0.5
    assert [taken("a") for _ in range(2)] == [True, False]
    now[0] += 100
    assert [taken("a") for _ in range(3)] == [True, True, False]
    # Many callers take no more and more memory.
    for i in range(30_000):
        assert taken(f"caller-{i}")
    assert len(rates._buckets) <= 10_001


@pytest.mark.parametrize(
    ("address", "who"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("", ""),
        ("a:b", "a:b"),
    ],
)
def test_rates_count_a_network_of_ipv6_as_one(address: str, who: str) -> None:
    assert network(address) == who


def test_metrics_say_what_prometheus_reads() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    model = ModelMetrics('a "b"\\\n')
    for code in (200, 200, 429, 500, 499):
        model.begin()
        model.end(code)
    model.succeed(8, 1500, 300, 900)
    model.succeed(1, 20_000_000, 300, 900)
    model.begin()
    text = render([model], Counter({200: 3, 404: 1}))
    families = {f.name: f for f in text_string_to_metric_families(text)}
    samples = {
        (s.name.removesuffix("_total"), s.labels.get("code")): s.value
        for f in families.values()
        for s in f.samples
    }
    assert samples["edgekit_requests_received", None] == 6
    assert samples["nv_inference_request_success", None] == 2
    assert samples["nv_inference_count", None] == 9
    assert samples["ovms_current_requests", None] == 1
    failures = families["nv_inference_request_failure"].samples
    reasons = {s.labels["code"]: s.labels["reason"] for s in failures}
    assert reasons == {"429": "REJECTED", "499": "CANCELED", "500": "BACKEND"}
    assert failures[0].labels["model"] == model.name
    buckets = families["edgekit_request_seconds"].samples
    assert [s.value for s in buckets if s.labels.get("le") in ("0.001", "0.0025", "10.0")] == [
        0, 1, 1,
    ]  # fmt: skip
    assert samples["edgekit_request_seconds_count", None] == 2


def test_the_artifact_of_a_server(bundles: Any, null_bundle: Path) -> None:
    with Bundle.open(bundles.scores) as bundle:
        assert choose(bundle).id == "openvino-fp32"
        assert choose(bundle, "onnxruntime-fp32").id == "onnxruntime-fp32"
    with Bundle.open(null_bundle) as bundle:
        with pytest.raises(UnsupportedError, match="null-fp32, null-w8a8"):
            choose(bundle)
        assert choose(bundle, "null-fp32").target == "null"
