"""Alerts: when they fire and resolve, what rules find, what the webhook gets, over a restart."""

from __future__ import annotations

import asyncio
import json
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("duckdb", reason="pip install 'edgekit[telemetry]'")

from hooks import Hook, hook
from receiving import (
    RESOURCE,
    crash,
    logs_request,
    metrics_record,
    proven_on,
    receiver,
    window,
)

from edgekit import schemas
from edgekit.cli.main import main
from edgekit.errors import BadData, StorageError
from edgekit.runtime import otlp
from edgekit.runtime.aggregate import Aggregate
from edgekit.runtime.bundle import Bundle
from edgekit.runtime.drift_reference import DriftReference
from edgekit.telemetry.alerts import Alerts, load, save
from edgekit.telemetry.intervals import Clusters, at_least
from edgekit.telemetry.judging import Finding, judge
from edgekit.telemetry.reading import read_logs, read_metrics
from edgekit.telemetry.rules import Rule, Rules, rules_of
from edgekit.telemetry.store import Reader, Store
from edgekit.telemetry.watch import Watch, Watched
from edgekit.telemetry.webhook import SIGNATURE, Webhook, sign, signed_by

NOW_S = time.time()
DAY_S = 86_400
SECRET = b"a-secret-of-the-webhook"
BEYOND = Finding(True, False, "worse", 0.3, 0.2, 0.1, 20, 900)
BETWEEN = Finding(False, False, "about the limit", 0.1, 0.05, 0.1, 20, 900)
CLEAR = Finding(False, True, "well", 0.01, 0.0, 0.1, 20, 900)
UNKNOWN = Finding(None, None, "too little")


def rule(kind: str = "error_rate", **more: Any) -> Rule:
    given = {"limit": 0.1} if kind.endswith("_rate") else {}
    (found,) = rules_of([{"name": "r", "kind": kind, **given, **more}], "test")
    return found


# -- when they fire -------------------------------------------------------------------------------


def run(one: Rule, *looks: Finding, step_s: float = 60.0) -> tuple[Alerts, list[tuple[str, int]]]:
    """The alerts after looks a minute apart, and what was told at which look."""
    alerts, told = Alerts(), []
    for i, finding in enumerate(looks):
        alerts.look(one, finding, i * step_s)
        told += [(waiting.document["state"], i) for waiting in alerts.waiting[len(told) :]]
    return alerts, told


def test_an_alert_fires_once_what_it_is_of_has_held() -> None:
    held = rule(for_minutes=3, clear_minutes=2)
    alerts, told = run(held, *[BEYOND] * 6)
    assert told == [("firing", 3)] and alerts.by_rule["r"].state == "firing"
    assert run(held, BEYOND, BEYOND, BETWEEN, BEYOND, BEYOND)[1] == []
    assert run(held, BEYOND, BEYOND, UNKNOWN, BEYOND, BEYOND)[1] == []
    assert run(rule(), BEYOND)[1] == [("firing", 0)]


def test_about_the_limit_it_is_told_once() -> None:
    flapping = [BEYOND, BETWEEN, CLEAR, BEYOND, BETWEEN, CLEAR] * 5
    assert run(rule(clear_minutes=2), *flapping)[1] == [("firing", 0)]
    alerts, told = run(rule(clear_minutes=2), *flapping, CLEAR, CLEAR, CLEAR)
    assert told == [("firing", 0), ("resolved", 31)]
    fired, resolved = (waiting.document for waiting in alerts.waiting)
    assert fired["alert"] == resolved["alert"] and fired["id"] != resolved["id"]
    assert (resolved["reason"], resolved["since_s"]) == ("clear", 0)
    for document in (fired, resolved):
        schemas.validate(document)


def test_a_look_that_cannot_tell_ends_no_alert() -> None:
    alerts, told = run(rule(clear_minutes=1), BEYOND, *[UNKNOWN] * 50)
    assert told == [("firing", 0)] and alerts.by_rule["r"].state == "firing"


def test_an_alert_of_a_rule_that_is_gone_is_resolved(tmp_path: Path) -> None:
    one = rule()
    alerts, _ = run(one, BEYOND)
    alerts.keep([one], 60)
    assert alerts.by_rule["r"].state == "firing"
    alerts.keep([replace(one, where={"app": "2.0"})], 60)
    assert alerts.by_rule == {}
    document = alerts.waiting[-1].document
    assert (document["state"], document["reason"], document["rule"]) == (
        "resolved",
        "removed",
        None,
    )
    schemas.validate(document)


def test_alerts_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "alerts.json"
    assert load(path) == Alerts()
    alerts, _ = run(rule(), BEYOND)
    save(alerts, path)
    assert load(path) == alerts
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for wrong in ("", "[]", '{"version": 1}', '{"version": 2}', '{"version": 1, "alerts": 3}'):
        path.write_text(wrong)
        with pytest.raises(BadData, match="alerts"):
            load(path)


# -- what rules find ------------------------------------------------------------------------------


def send(store: Store, devices: int, of: Callable[[int], Aggregate], day: int = 0,
         **names: str) -> None:  # fmt: skip
    resource = {**RESOURCE, **{k.replace("_", "."): v for k, v in names.items()}}
    when = int((NOW_S - day * DAY_S) * 1e9)
    records = [metrics_record(of(i), resource=resource, time_ns=when) for i in range(devices)]
    store.write(read_metrics(otlp.request(records)).deliveries)


def failing(every: int, errors: int = 5) -> Callable[[int], Aggregate]:
    def of(i: int) -> Aggregate:
        aggregate = window(10)
        for _ in range(errors if i % every == 0 else 0):
            aggregate.add_error("device", "MemoryError")
        return aggregate

    return of


class Clock:
    def __init__(self) -> None:
        self.now = NOW_S

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(opened: Callable[..., Store], clock: Clock) -> Store:
    return opened(lambda: int(clock.now * 1e9))


def found(store: Store, one: Rule, k: int = 10, looks: float = 288) -> Finding:
    with store.reading() as reader:
        return judge(reader, one, now_s=NOW_S, k=k, looks=looks)


def test_errors_are_those_of_many_devices(store: Store) -> None:
    send(store, 40, failing(1))
    send(store, 40, failing(40, errors=200), edgekit_bundle_version="1.1")
    many = found(store, rule(where={"version": "1.0"}))
    assert (many.beyond, many.clear, many.value) == (True, False, 0.5)
    assert many.bound is not None and 0.35 < many.bound < 0.5
    # As many, of one device: it may be by chance that it is there, and is no more than one device.
    one = found(store, rule(where={"version": "1.1"}, limit=0.01))
    assert (one.beyond, one.value) == (False, 10 / 400)
    assert found(store, rule(where={"version": "1.0"}, limit=0.49)).beyond is False
    assert found(store, rule(where={"version": "1.0"}, limit=0.9)).clear is True
    few = found(store, rule(where={"version": "1.0"}, least_devices=41))
    assert few.beyond is None and "fewer than 41 devices" in few.said
    few = found(store, rule(where={"version": "1.0"}, least_requests=401))
    assert few.beyond is None and "400 requests, 401 are wanted" in few.said


def test_nothing_is_found_of_fewer_than_k(store: Store) -> None:
    send(store, 9, failing(1))
    for one in (rule(), rule("latency", percentile=50, limit_ms=1), rule("silence", hours=1)):
        assert found(store, one).beyond is None
    assert found(store, rule(least_devices=9), k=9).devices == 9


def test_crashes_and_fallbacks(store: Store) -> None:
    def elsewhere(_: int) -> Aggregate:
        aggregate = window(10)
        for _ in range(10):
            aggregate.add("cloud", "unsure", 0.2, 0.4, 3, None)
        return aggregate

    send(store, 30, elsewhere)
    for i in range(12):
        log = logs_request([crash(f"{i:032x}")], f"{i + 1:032x}")
        store.write(read_logs(log).deliveries)
    crashes = found(store, rule("crash_rate", limit=0.05))
    assert (crashes.beyond, crashes.value) == (True, pytest.approx(12 / 42))
    assert found(store, rule("crash_rate", limit=0.25)).beyond is False
    # Each of a day's looks has its part of the rate of false alarms.
    for looks in (1, 288):
        bound = found(store, rule("crash_rate", false_alarms=0.02), looks=looks).bound
        assert bound == at_least(12 / 42, 42, 0.02 / looks)
    fallbacks = found(store, rule("fallback_rate", limit=0.4))
    assert (fallbacks.beyond, fallbacks.value) == (True, 0.5)
    assert found(store, rule("fallback_rate", limit=0.5)).beyond is False


def test_latency_is_a_share_that_took_longer(store: Store) -> None:
    for hour in range(8):
        when = int((NOW_S // DAY_S * DAY_S - DAY_S + hour * 3600) * 1e9)
        aggregates = [window(95, 0.02) for _ in range(12)]
        for aggregate in aggregates:
            for _ in range(5):
                aggregate.add("device", "sure", 0.2, 0.9, 3, 1e8)
        names = (f"{i + 1:032x}" for i in range(12))
        records = [
            metrics_record(one, device=name, time_ns=when)
            for one, name in zip(aggregates, names, strict=True)
        ]
        store.write(read_metrics(otlp.request(records)).deliveries)
    slow = found(store, rule("latency", percentile=99, limit_ms=100, days=2))
    assert slow.beyond is True and slow.value == pytest.approx(200, rel=0.011)
    assert slow.bound is not None and 0.03 < slow.bound < 0.05
    fine = found(store, rule("latency", percentile=90, limit_ms=100, days=2))
    assert (fine.beyond, fine.clear) == (False, True)
    # A limit within the error of the histogram is not passed.
    assert found(store, rule("latency", percentile=99, limit_ms=199.5, days=2)).beyond is False
    assert found(store, rule("latency", percentile=99, limit_ms=100, source="cloud")).beyond is None


def test_drift_canary_and_silence(store: Store) -> None:
    rng = np.random.default_rng(2)

    def sure(a: float) -> Callable[[int], Aggregate]:
        def of(_: int) -> Aggregate:
            aggregate = Aggregate()
            for value in rng.beta(a, 2, 60):
                aggregate.add("device", "sure", 0.01, float(value), 3, None)
            return aggregate

        return of

    for back in range(1, 6):
        send(store, 15, sure(6), back)
    send(store, 15, sure(6))
    drift = rule("drift", where={"model": "net"}, baseline_days=5)
    calm = found(store, drift)
    assert (calm.beyond, calm.clear) == (False, True)
    send(store, 25, sure(2))
    assert found(store, drift).beyond is True
    canary = rule("canary", control="1.0", canary="1.1")
    assert found(store, canary).beyond is None
    send(store, 20, failing(1), edgekit_bundle_version="1.1")
    worse = found(store, canary)
    assert worse.beyond is True and "1.1: 20 of 20" in worse.said
    silence = rule("silence", hours=3)
    assert found(store, silence).beyond is False
    with store.reading() as reader:
        later = judge(reader, silence, now_s=NOW_S + 5 * 3600, k=10, looks=288)
    assert later.beyond is True and later.value is not None and 3.9 < later.value < 5.1


def test_drift_from_what_a_bundle_was_proven_on(
    store: Store,
    tmp_path: Path,
    bundle_contents: tuple[dict[str, bytes], dict[str, Any]],
    write_directory: Callable[..., Path],
) -> None:
    rng = np.random.default_rng(4)
    files, manifest = bundle_contents
    known = proven_on(0.3 + 0.7 * rng.beta(6, 2, 2_000))
    path = write_directory(tmp_path / "b", files, manifest | {"reference_statistics": known})
    with Bundle.open(path) as bundle:
        reference = DriftReference(bundle)

    def sure(a: float) -> Callable[[int], Aggregate]:
        def of(_: int) -> Aggregate:
            aggregate = Aggregate()
            for value in 0.3 + 0.7 * rng.beta(a, 2, 80):
                aggregate.add("device", "sure", 0.01, float(value), 3, None)
            return aggregate

        return of

    def beyond(one: Rule, *references: DriftReference) -> bool | None:
        with store.reading() as reader:
            return judge(reader, one, now_s=NOW_S, k=10, looks=288, references=references).beyond

    has_it = {"edgekit_bundle_digest": reference.digest}
    drift = rule("drift", where={"model": "net", "app": "2.1"}, against="bundle")
    send(store, 20, sure(6), service_version="2.0")
    assert beyond(replace(drift, where={"model": "net", "app": "2.0"}), reference) is None
    send(store, 20, sure(6), **has_it, service_version="2.1")
    assert beyond(drift) is None
    assert beyond(drift, reference) is False
    send(store, 20, sure(3), **has_it, service_version="2.2")
    assert beyond(replace(drift, where={"model": "net", "app": "2.2"}), reference) is True


def test_false_alarms_of_a_day_are_as_few_as_said() -> None:
    """A day of looks at counts that grow, of fleets whose true rate is the limit: what is said for
    the day holds for all its looks together, and wouldn't were each at that rate by itself."""
    rng = np.random.default_rng(9)
    said, limit, days, looks, devices = 0.1, 0.03, 120, 8, 30
    alarms = naive = 0
    for _ in range(days):
        rates = rng.beta(0.6, 0.6 * (1 - limit) / limit, devices)
        trials = rng.poisson(15, (looks, devices)).cumsum(axis=0)
        hits = rng.binomial(np.diff(trials, axis=0, prepend=0), rates).cumsum(axis=0)
        bounds = []
        for r, e in zip(trials, hits, strict=True):
            sums = Clusters(devices, r.sum(), e.sum(), r @ r, e @ e, e @ r)
            rate = e.sum() / r.sum()
            bounds.append(
                [
                    at_least(rate, sums.effective(tail), tail) > limit
                    for tail in (said / looks, said)
                ]
            )
        alarms += any(one for one, _ in bounds)
        naive += any(one for _, one in bounds)
    assert alarms / days <= said
    assert naive / days > said


# -- the webhook ----------------------------------------------------------------------------------


def posted(other: Hook, **more: Any) -> Any:
    return Webhook(False, "127.0.0.1", other.port, "/hook", **more).post({"a": 1})


def test_a_request_is_signed() -> None:
    with hook() as other:
        assert posted(other, secret=SECRET).delivered
        assert posted(other).delivered
    (path, fields, body), (_, plain, _) = other.requests
    assert (path, fields["Content-Type"]) == ("/hook", "application/json")
    signature = fields[SIGNATURE]
    assert signed_by(SECRET, body, signature, time.time())
    assert not signed_by(SECRET, body + b" ", signature, time.time())
    assert not signed_by(b"another-secret-of-it", body, signature, time.time())
    assert not signed_by(SECRET, body, signature, time.time() + 301)
    for wrong in ("", "t=1", "t=x,v1=00", "v1=00", f"{sign(SECRET, body, 1)}é"):
        assert not signed_by(SECRET, body, wrong, 1)
    assert SIGNATURE not in plain


def test_what_an_answer_means() -> None:
    with hook() as other:
        other.answers = [(500, {}), (429, {"Retry-After": "7"}), (404, {}), None,
                         (302, {"Location": f"{other.url}/elsewhere"})]  # fmt: skip
        failed, busy, gone = (posted(other) for _ in range(3))
        assert (failed.again, busy.again, busy.after_s, gone.again) == (True, True, 7, False)
        hung = posted(other, timeout_s=0.3)
        assert (hung.delivered, hung.again) == (False, True)
        moved = posted(other)
        assert (moved.delivered, moved.again) == (False, False) and "redirect" in moved.said
    assert len(other.requests) == 5
    gone = posted(other, timeout_s=2.0)
    assert (gone.delivered, gone.again) == (False, True)


# -- the watch ------------------------------------------------------------------------------------


def watching(store: Store, state: Path, other: Hook, clock: Clock, *rules: Rule) -> Watch:
    async def read(function: Callable[[Reader], Any]) -> Any:
        with store.reading() as reader:
            return function(reader)

    webhook = Webhook(False, "127.0.0.1", other.port, "/hook", SECRET, 5.0)
    return Watch(read, Rules(rules, webhook), state, Watched(600), clock=clock)


def turn(watch: Watch) -> None:
    async def both() -> None:
        await watch.look()
        await watch.tell()

    asyncio.run(both())


def test_an_alert_fires_is_told_again_until_it_is_taken_and_resolves(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    one, state = rule(for_minutes=10, clear_minutes=10), tmp_path / "alerts.json"
    with hook() as other:
        other.answers = [(503, {})]
        watch = watching(store, state, other, clock, one)
        turn(watch)
        assert watch.to_json()["rules"][0]["state"] == "unknown"
        send(store, 40, failing(1))
        turn(watch)
        assert watch.to_json()["rules"][0]["state"] == "pending" and other.requests == []
        clock.now += 600
        turn(watch)
        assert len(other.requests) == 1 and watch.delivered == {"failed": 1}
        turn(watch)
        assert len(other.requests) == 1, "it is not asked again at once"
        schemas.validate(watch.to_json())
        # A restart knows what fires, and what is still to be told.
        again = watching(store, state, other, clock, one)
        clock.now += 60
        turn(again)
        assert [d["state"] for d in other.documents] == ["firing", "firing"]
        assert other.documents[0]["id"] == other.documents[1]["id"]
        assert again.to_json()["rules"][0]["state"] == "firing"
        text = state.read_text()
        assert SECRET.decode() not in text
        # The next day is a good one.
        clock.now += 2 * DAY_S
        send(store, 40, failing(50), day=-2)
        for _ in range(2):
            turn(again)
            clock.now += 600
        turn(again)
        assert [d["state"] for d in other.documents] == ["firing", "firing", "resolved"]
        for document in other.documents:
            schemas.validate(document)
        for _, fields, body in other.requests:
            assert signed_by(SECRET, body, fields[SIGNATURE], time.time())


def test_a_store_that_cannot_be_read_raises_no_alert_and_ends_none(
    store: Store, tmp_path: Path
) -> None:
    send(store, 40, failing(1))
    with hook() as other:
        watch = watching(store, tmp_path / "alerts", other, Clock(), rule())
        turn(watch)
        assert watch.to_json()["rules"][0]["state"] == "firing"

        async def cut(function: Callable[[Reader], Any]) -> Any:
            raise StorageError("the store is gone")

        watch._read = cut
        with pytest.raises(StorageError):
            turn(watch)
        assert watch.to_json()["rules"][0]["state"] == "firing"
        assert [d["state"] for d in other.documents] == ["firing"]


# -- all of it ------------------------------------------------------------------------------------


def test_a_receiver_raises_an_alert_by_its_rules(tmp_path: Path) -> None:
    path = tmp_path / "fleet.duckdb"
    rules = tmp_path / "rules.toml"
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "secret").chmod(0o600)
    with hook() as other:
        text = (
            f"[webhook]\nurl = '{other.url}'\nsecret_file = 'secret'\n"
            "[[rule]]\nname = 'errors'\nkind = 'error_rate'\nlimit = 0.1\n"
        )
        rules.write_text(text)
        with receiver(path, "--rules", rules, "--watch-s", 0.5) as running:
            records = [metrics_record(failing(1)(i)) for i in range(30)]
            assert running.post("/v1/metrics", otlp.request(records))[0] == 200
            (fired,) = other.wait(1)
            assert (fired["name"], fired["state"], fired["value"]) == ("errors", "firing", 0.5)
            assert fired["rule"]["limit"] == 0.1
            schemas.validate(fired)
            status, body = running.get("/v1/alerts")
            document = json.loads(body)
            schemas.validate(document)
            assert status == 200 and document["rules"][0]["state"] == "firing"
            assert 'edgekit_alert{rule="errors"} 1' in running.get("/metrics")[1].decode()
            body = json.dumps({"rules": [{"name": "x", "kind": "error_rate", "limit": 0.6}]})
            status, answer, _ = running.post("/v1/check", body.encode())
            checked = json.loads(answer)
            schemas.validate(checked)
            assert (status, checked["rules"][0]["beyond"]) == (200, False)
            assert main(["telemetry", "check", str(rules), f"http://127.0.0.1:{running.port}"]) == 1
            for wrong in (b"", b"[]", b'{"rules": [{}]}', b'{"rules": [], "more": 1}'):
                assert running.post("/v1/check", wrong)[0] == 400
            running.process.kill()
            running.process.wait()
        # It knows that it fires; a rule that is gone then resolves it, at SIGHUP.
        with receiver(path, "--rules", rules, "--watch-s", 0.5) as running:
            rules.write_text("[[rule]]\n")
            running.process.send_signal(1)
            time.sleep(2)
            assert json.loads(running.get("/v1/alerts")[1])["rules"][0]["state"] == "firing"
            rules.write_text(
                text.replace("'errors'", "'others'").replace("limit = 0.1", "limit = 0.9")
            )
            running.process.send_signal(1)
            documents = other.wait(2)
            assert running.end() == 0
    assert [(d["state"], d["reason"]) for d in documents] == [
        ("firing", ""),
        ("resolved", "removed"),
    ]
    assert signed_by(SECRET, other.requests[0][2], other.requests[0][1][SIGNATURE], time.time())
    log = (tmp_path / "receiver.log").read_text()
    assert "the rules stay as they were" in log and SECRET.decode() not in log
    # What the command says of the same store.
    assert main(["telemetry", "check", str(rules), str(path)]) == 0
    rules.write_text(text)
    assert main(["telemetry", "check", str(rules), str(path)]) == 1


def test_a_webhook_that_hangs_holds_up_neither_looks_nor_the_end(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    with hook() as other:
        other.answers = [None]
        rules.write_text(
            f"[webhook]\nurl = '{other.url}'\ntimeout_s = 60\n"
            "[[rule]]\nname = 'errors'\nkind = 'error_rate'\nlimit = 0.1\n"
        )
        with receiver(tmp_path / "f.duckdb", "--rules", rules, "--watch-s", 0.3) as running:
            records = [metrics_record(failing(1)(i)) for i in range(30)]
            assert running.post("/v1/metrics", otlp.request(records))[0] == 200
            other.wait(1)
            looked = json.loads(running.get("/v1/alerts")[1])["looked_s"]
            end = time.monotonic() + 30
            while json.loads(running.get("/v1/alerts")[1])["looked_s"] <= looked:
                assert time.monotonic() < end
                time.sleep(0.2)
            begun = time.monotonic()
            assert running.end() == 0
            assert time.monotonic() - begun < 20
    # What was not delivered is there for the next one.
    kept = load(tmp_path / "f.duckdb.alerts.json")
    assert [one.document["state"] for one in kept.waiting] == ["firing"]
