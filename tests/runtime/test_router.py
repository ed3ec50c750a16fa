"""The router: a real session on one side, a real server that may fail on the other. SRV-14."""

from __future__ import annotations

import collections
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import Abstained, BadData, UnsupportedError, UsageError
from edgekit.runtime.answers import REASONS, Answer, Event
from edgekit.runtime.bundle import Bundle
from edgekit.runtime.cloud import Cloud
from edgekit.runtime.conditions import Conditions, Limits, local_conditions, too_much
from edgekit.runtime.guards import Breaker
from edgekit.runtime.policy import Policy
from edgekit.runtime.router import Router
from edgekit.runtime.session import Session
from edgekit.signature import Signature, TensorSpec

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    from faulty_server import FaultyServer, serving, until
finally:
    sys.path.remove(str(HERE))

RNG = np.random.default_rng(5)
XS = RNG.standard_normal((40, 1, 2, 3)).astype(np.float32)
ASK = Policy(min_confidence=1.0, otherwise="cloud")  # no answer of the device is sure enough
SURE = Policy(min_confidence=0.0, otherwise="cloud")
QUIET = Conditions()


class Faulty:
    """A session whose calls can be made to fail, to wait or to answer NaN."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.target, self.signature = session.target, session.signature
        self.threads, self.runtime_version = session.threads, session.runtime_version
        self.fault: str = ""
        self.wait_s = 0.0
        self.hang = threading.Event()
        self.calls = 0
        self.closed = False
        self.users: set[int] = set()

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls += 1
        self.users.add(threading.get_ident())
        if self.fault == "hang":
            self.hang.wait(30)
        time.sleep(self.wait_s)
        if self.fault == "error":
            raise UnsupportedError("the runtime could not run the model")
        if self.fault == "crash":
            raise RuntimeError("boom")
        found = self._session.run(feeds)
        if self.fault == "nan":
            found["y"][0, 0] = np.nan
        return found

    def close(self) -> None:
        self.closed = True
        self._session.close()


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serving() as found:
        yield found


@pytest.fixture
def cloud(server: FaultyServer) -> Iterator[Cloud]:
    with Cloud(server.url) as found:
        yield found


@pytest.fixture
def session(null_bundle: Path) -> Iterator[Faulty]:
    with Bundle.open(null_bundle) as bundle:
        found = Faulty(bundle.session(bundle.artifact("null-fp32")))
        yield found
        found.hang.set()


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def make(session: Faulty, cloud: Cloud, events: list[Event]) -> Iterator[Callable[..., Router]]:
    """Makes routers that are closed in the end; by default with both sides, no sensors, and no
    hedging, which a machine that is busy may bring about by itself."""
    made: list[Router] = []

    def router(policy: Policy = SURE, device: Any = session, **more: Any) -> Router:
        given = {"cloud": cloud, "conditions": None, "observer": events.append}
        given |= {"hedge": False, "deadline_ms": 20_000} | more
        made.append(Router(device, given.pop("cloud"), policy, **given))
        return made[-1]

    yield router
    session.hang.set()
    for one in made:
        one.close()


def mine(session: Faulty, x: np.ndarray) -> np.ndarray:
    return session._session.run({"x": x})["y"]


def check(answer: Answer, event: Event, x: np.ndarray, session: Faulty) -> None:
    """The answer is its source's own, and the event tells the same."""
    right = FaultyServer.answer(x) if answer.source == "cloud" else mine(session, x)
    np.testing.assert_array_equal(answer.outputs["y"], right)
    assert (event.source, event.why, event.sure) == (answer.source, answer.why, answer.sure)
    assert event.why in REASONS
    assert set(event.to_json()) == set(Event.__dataclass_fields__)
    assert event.total_ms == answer.latencies["total"]


# -- who answers ----------------------------------------------------------------------------------


def test_what_the_device_is_sure_of_never_leaves_it(
    make: Callable[..., Router], session: Faulty, server: FaultyServer, events: list[Event]
) -> None:
    router = make()
    for x in XS:
        answer = router.answer({"x": x})
        assert (answer.source, answer.why, answer.sure) == ("device", "sure", True)
        assert answer.confidence is not None
        check(answer, events[-1], x, session)
        assert (events[-1].device, events[-1].cloud) == ("answered", "not asked")
    assert server.connections == 0
    assert len(session.users) == 1  # sessions are no business of several threads
    assert threading.get_ident() not in session.users


def test_what_it_is_not_sure_of_goes_to_the_cloud(
    make: Callable[..., Router], session: Faulty, server: FaultyServer, events: list[Event]
) -> None:
    policy = Policy(temperature=3.0, min_confidence=0.6, otherwise="cloud", signal="margin")
    router, sources = make(policy), collections.Counter()
    for x in XS:
        answer = router.answer({"x": x})
        assert answer.confidence == policy.certainty(mine(session, x))
        assert answer.source == ("device" if answer.confidence >= 0.6 else "cloud")
        assert answer.version == ("3" if answer.source == "cloud" else None)
        check(answer, events[-1], x, session)
        sources[answer.source] += 1
    assert min(sources.values()) > 5  # both were tried
    assert len(server.seen) == sources["cloud"]


@pytest.mark.parametrize("otherwise", ["answer", "abstain"])
def test_a_policy_may_do_without_the_cloud(
    otherwise: str, make: Callable[..., Router], session: Faulty, events: list[Event]
) -> None:
    router = make(Policy(min_confidence=1.0, otherwise=otherwise), cloud=None)
    if otherwise == "answer":
        answer = router.answer({"x": XS[0]})
        assert (answer.source, answer.why, answer.sure) == ("device", "unsure", False)
    else:
        with pytest.raises(Abstained, match="not sure enough") as caught:
            router.answer({"x": XS[0]})
        answer = caught.value.best
        assert isinstance(answer, Answer)
        assert (events[-1].source, events[-1].why) == (None, "unsure")
        assert caught.value.exit_code == 1
    np.testing.assert_array_equal(answer.outputs["y"], mine(session, XS[0]))
    assert len(events) == 1


def test_without_a_model_the_cloud_answers(
    make: Callable[..., Router], session: Faulty, cloud: Cloud, events: list[Event]
) -> None:
    router = make(ASK, None, signature=cloud.metadata())
    answer = router.answer({"x": XS[0]})
    assert (answer.source, answer.why, answer.confidence) == ("cloud", "device-missing", None)
    check(answer, events[-1], XS[0], session)
    assert events[-1].device == "skipped: device-missing"


def test_a_bundle_brings_its_policy_and_its_version(
    tmp_path: Path, write_directory: Any, bundle_contents: Any, cloud: Cloud
) -> None:
    files, manifest = bundle_contents
    policy = Policy(min_confidence=1.0, otherwise="cloud", chosen={"artifact": "null-w8a8"})
    manifest["policy"] = policy.to_json()
    with Bundle.open(write_directory(tmp_path / "tuned", files, manifest)) as bundle:
        with Router(bundle, cloud) as router:
            assert router.answer({"x": XS[0]}).source == "cloud"
        with Router(bundle, cloud, SURE, artifact="null-w8a8") as router:
            answer = router.answer({"x": XS[0]})
            assert (answer.source, answer.version) == ("device", "1.0")
            session = bundle.session(bundle.artifact("null-w8a8"))
            np.testing.assert_array_equal(answer.outputs["y"], session.run({"x": XS[0]})["y"])
            session.close()


def test_the_cloud_may_take_other_inputs(
    make: Callable[..., Router], session: Faulty, server: FaultyServer
) -> None:
    policy = Policy(min_confidence=1.0, otherwise="cloud", same_inputs=False)
    router, made = make(policy), []

    def theirs() -> dict[str, np.ndarray]:
        made.append(threading.get_ident())
        return {"x": XS[1]}

    answer = router.answer({"x": XS[0]}, cloud_inputs=theirs)
    np.testing.assert_array_equal(answer.outputs["y"], server.answer(XS[1]))
    assert len(made) == 1
    assert made[0] != threading.get_ident()
    with pytest.raises(UsageError, match="takes other inputs"):
        router.answer({"x": XS[0]})


# -- SRV-14: the cloud fails ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("429", "busy"), ("503", "unavailable"), ("500", "server"), ("400", "refused"),
        ("reset", "reset"), ("half", "reset"), ("html", "garbage"), ("redirect", "redirect"),
        ("shape", "wrong-answer"), ("nan", "wrong-answer"), ("name", "wrong-answer"),
        ("huge", "garbage"), ("id", "wrong-answer"),
    ],
)  # fmt: skip
def test_srv_14_whatever_the_server_does_the_device_answers_within_the_budget(
    fault: str, kind: str, make: Callable[..., Router], session: Faulty, server: FaultyServer,
    events: list[Event],
) -> None:  # fmt: skip
    server.fault = fault
    router = make(ASK)
    answer = router.answer({"x": XS[0]}, deadline_ms=2000)
    assert (answer.source, answer.why, answer.sure) == ("device", "cloud-failed", False)
    check(answer, events[-1], XS[0], session)
    assert events[-1].cloud == f"failed: {kind}"
    assert answer.latencies["total"] < 2000


@pytest.mark.parametrize("fault", ["mute", "slow-bytes"])
def test_srv_14_a_stalled_network_makes_nobody_wait(
    fault: str, make: Callable[..., Router], session: Faulty, server: FaultyServer,
    events: list[Event],
) -> None:  # fmt: skip
    server.fault = fault
    router = make(ASK)
    for i in range(4):
        started = time.monotonic()
        answer = router.answer({"x": XS[i]}, deadline_ms=300)
        assert time.monotonic() - started < 2
        assert (answer.source, answer.why, answer.sure) == ("device", "deadline", False)
        check(answer, events[-1], XS[i], session)
        assert events[-1].cloud in ("pending", "failed: timeout")


@pytest.mark.parametrize("where", ["tls", "dns", "connect"])
def test_srv_14_no_connection_at_all(
    where: str, make: Callable[..., Router], session: Faulty, server: FaultyServer,
    events: list[Event],
) -> None:  # fmt: skip
    url = {
        "tls": server.url.replace("http:", "https:"),
        "dns": "http://nobody.invalid/v2/models/teacher",
        "connect": "http://127.0.0.1:1/v2/models/teacher",
    }[where]
    server.fault = "no-http"
    with Cloud(url) as cloud:
        answer = make(ASK, cloud=cloud).answer({"x": XS[0]}, deadline_ms=5000)
    check(answer, events[-1], XS[0], session)
    assert answer.why in ("cloud-failed", "deadline")
    assert events[-1].cloud.split(": ")[-1] in (where, "reset", "pending")


def test_srv_14_the_breaker_opens_half_opens_and_closes(
    make: Callable[..., Router], session: Faulty, server: FaultyServer, events: list[Event]
) -> None:
    server.fault = "503"
    with Cloud(server.url, breaker=Breaker(open_s=0.3)) as cloud:
        router = make(ASK, cloud=cloud)
        for x in XS:
            check(router.answer({"x": x}), events[-1], x, session)
        # Five failures, and at most a tenth of the requests again; then it is left alone.
        assert len(server.seen) <= 5 + len(XS) // 10
        assert events[-1].breaker == "open"
        assert events[-1].cloud == "skipped: breaker-open"
        assert events[-1].why == "cloud-unavailable"
        server.fault = ""
        until(lambda: cloud.breaker.state == "half-open")
        answer = router.answer({"x": XS[0]})
        assert (answer.source, events[-1].breaker) == ("cloud", "closed")


def test_srv_14_no_retry_storm(
    make: Callable[..., Router], server: FaultyServer, events: list[Event]
) -> None:
    server.fault = "503"
    with Cloud(server.url, attempts=5, breaker=Breaker(least=1000, window=1000)) as cloud:
        router = make(ASK, cloud=cloud)
        for _ in range(3):
            for x in XS:
                router.answer({"x": x})
    assert len(events) == 3 * len(XS)
    assert len(events) < len(server.seen) <= 1.1 * len(events)
    assert sum(event.attempts for event in events) == len(server.seen)


def test_srv_14_what_is_refused_is_not_tried_again(
    make: Callable[..., Router], server: FaultyServer, events: list[Event]
) -> None:
    server.fault = "400"
    router = make(ASK)
    for x in XS:
        router.answer({"x": x})
    assert len(server.seen) == len(XS)
    assert {event.attempts for event in events} == {1}


def test_a_server_that_asks_to_be_left_alone_is(
    make: Callable[..., Router], session: Faulty, server: FaultyServer, events: list[Event]
) -> None:
    server.fault, server.retry_after = "429", "60"
    router = make(ASK)
    for x in XS[:5]:
        check(router.answer({"x": x}), events[-1], x, session)
    assert len(server.seen) == 1
    assert events[-1].cloud == "skipped: told-to-wait"


def test_where_neither_side_answers_it_is_said(
    make: Callable[..., Router], session: Faulty, server: FaultyServer, events: list[Event]
) -> None:
    server.fault, session.fault = "503", "error"
    with pytest.raises(Abstained) as caught:
        make(ASK).answer({"x": XS[0]})
    assert (caught.value.why, caught.value.best) == ("failed", None)
    assert events[-1].device == "failed: UnsupportedError"
    assert events[-1].cloud == "failed: unavailable"
    assert (events[-1].source, events[-1].sure) == (None, False)


# -- the device fails -----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["error", "crash", "nan"])
def test_a_session_that_fails_is_stood_in_for_and_then_left_alone(
    fault: str, make: Callable[..., Router], session: Faulty, events: list[Event]
) -> None:
    session.fault = fault
    router = make()
    for x in XS[:10]:
        answer = router.answer({"x": x})
        assert answer.source == "cloud"
        check(answer, events[-1], x, session)
    assert session.calls == 3
    assert [e.why for e in events] == ["device-failed"] * 3 + ["device-failing"] * 7


def test_a_model_that_does_not_load_is_as_one_that_fails(
    make: Callable[..., Router], tmp_path: Path, write_directory: Any, bundle_contents: Any
) -> None:
    files, manifest = bundle_contents
    manifest["artifacts"][0]["requires"]["min_version"] = "99.1"
    with Bundle.open(write_directory(tmp_path / "newer", files, manifest)) as bundle:
        answer = make(SURE, bundle, artifact="null-fp32").answer({"x": XS[0]})
    assert (answer.source, answer.why) == ("cloud", "device-failed")


def test_a_session_that_hangs_makes_nobody_wait(
    make: Callable[..., Router], session: Faulty, server: FaultyServer, events: list[Event]
) -> None:
    router = make(hedge=True)
    session.fault = "hang"
    started = time.monotonic()
    answer = router.answer({"x": XS[0]}, deadline_ms=1500)
    assert time.monotonic() - started < 3
    assert (answer.source, answer.why) == ("cloud", "device-late")
    assert events[-1].hedged
    server.fault = "503"
    with pytest.raises(Abstained) as caught:
        router.answer({"x": XS[1]}, deadline_ms=200)
    assert caught.value.why == "deadline"
    assert time.monotonic() - started < 5
    session.fault = ""
    session.hang.set()
    server.fault = ""
    until(lambda: router.answer({"x": XS[2]}).source == "device")


def test_a_late_device_is_helped_by_the_cloud_and_the_first_answer_is_taken(
    make: Callable[..., Router], session: Faulty, server: FaultyServer, events: list[Event]
) -> None:
    router = make(hedge=True)
    for x in XS[:10]:  # from then on it is known how late is late
        assert router.answer({"x": x}, deadline_ms=60_000).source == "device"
    session.wait_s = 1.0
    answer = router.answer({"x": XS[0]}, deadline_ms=60_000)
    assert (answer.source, answer.why) == ("cloud", "device-late")
    assert answer.latencies["total"] < 1000
    check(answer, events[-1], XS[0], session)


def test_a_late_cloud_is_helped_by_a_device_that_was_spared(
    make: Callable[..., Router], session: Faulty, server: FaultyServer, events: list[Event]
) -> None:
    limits = Limits(max_temperature_c=60)
    router = make(SURE, limits=limits, conditions=lambda: Conditions(temperature_c=80), hedge=True)
    for x in XS[:10]:
        answer = router.answer({"x": x}, deadline_ms=60_000)
        assert (answer.source, answer.why) == ("cloud", "hot")
    assert session.calls == 0
    server.wait_s = 1.0
    answer = router.answer({"x": XS[0]}, deadline_ms=60_000)
    assert (answer.source, answer.why) == ("device", "sure")
    assert events[-1].hedged
    assert events[-1].cloud == "pending"
    assert answer.latencies["total"] < 1000


def test_a_device_that_is_too_slow_for_what_is_left_is_not_asked(
    make: Callable[..., Router], session: Faulty, events: list[Event]
) -> None:
    session.wait_s = 1.0
    router = make()
    assert router.answer({"x": XS[0]}, deadline_ms=20_000).source == "device"
    answer = router.answer({"x": XS[1]}, deadline_ms=900)
    assert (answer.source, answer.why) == ("cloud", "device-slow")
    assert session.calls == 1


# -- conditions and hooks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "limits", "why"),
    [
        (Conditions(memory_mib=50), Limits(min_memory_mib=64), "memory"),
        (Conditions(temperature_c=91), Limits(max_temperature_c=90), "hot"),
        (Conditions(throttled=True), Limits(spare_throttled=True), "hot"),
    ],
)
def test_a_device_without_memory_or_too_hot_is_spared(
    conditions: Conditions, limits: Limits, why: str, make: Callable[..., Router],
    session: Faulty, server: FaultyServer, events: list[Event],
) -> None:  # fmt: skip
    router = make(SURE, limits=limits, conditions=lambda: conditions)
    assert router.answer({"x": XS[0]}).why == why
    assert session.calls == 0
    server.fault = "503"  # and used all the same where nobody else answers
    answer = router.answer({"x": XS[0]})
    assert (answer.source, answer.why) == ("device", "sure")
    assert too_much(QUIET, limits) is None
    assert too_much(conditions, Limits()) is None


def test_a_device_that_is_offline_asks_nobody(
    make: Callable[..., Router], server: FaultyServer, events: list[Event]
) -> None:
    for more in ({"online": lambda: False}, {"conditions": lambda: Conditions(online=False)}):
        answer = make(ASK, **more).answer({"x": XS[0]})
        assert (answer.source, answer.why) == ("device", "cloud-unavailable")
        assert events[-1].cloud == "skipped: offline"
    assert server.connections == 0


def test_hooks_that_fail_cost_no_answer(make: Callable[..., Router], server: FaultyServer) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("boom")

    router = make(ASK, online=broken, conditions=broken, observer=broken)
    assert router.answer({"x": XS[0]}).source == "cloud"


def test_the_kernel_is_read_and_what_it_does_not_tell_is_none(tmp_path: Path) -> None:
    assert local_conditions(tmp_path) == Conditions()
    thermal = tmp_path / "sys/class/thermal"
    zone, battery = thermal / "thermal_zone0", thermal / "thermal_zone1"
    device = thermal / "cooling_device0"
    for folder in (zone, device, battery, tmp_path / "proc"):
        folder.mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 900000 kB\nMemAvailable:  524288 kB\n")
    for place, kind, value in ((zone, "cpu-thermal", "71500"), (battery, "battery", "99000")):
        (place / "type").write_text(kind)
        (place / "temp").write_text(value)
    (device / "type").write_text("cpufreq-cpu0")
    (device / "cur_state").write_text("2")
    assert local_conditions(tmp_path) == Conditions(512.0, 71.5, True, None)
    assert local_conditions().memory_mib is not None


# -- every request --------------------------------------------------------------------------------


def test_every_request_is_accounted_for_and_none_gets_anothers_answer(
    make: Callable[..., Router], session: Faulty, server: FaultyServer, events: list[Event]
) -> None:
    policy = Policy(temperature=3.0, min_confidence=0.6, otherwise="cloud")
    router, wrong = make(policy, hedge=True), []
    faults = ["", "503", "", "reset", "shape", "", "400", ""]

    def work(k: int) -> None:
        for i in range(30):
            x = XS[(7 * k + i) % len(XS)] + np.float32(k)
            if k == 0:
                server.fault = faults[i % len(faults)]
                session.fault = "error" if i % 11 == 10 else ""
            try:
                answer = router.answer({"x": x}, deadline_ms=10_000)
            except Abstained:
                continue
            right = FaultyServer.answer(x) if answer.source == "cloud" else mine(session, x)
            if not np.array_equal(answer.outputs["y"], right):
                wrong.append((k, i))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(events) == 4 * 30
    assert {event.source for event in events} >= {"device", "cloud"}


def test_inputs_that_do_not_fit_go_nowhere(
    make: Callable[..., Router], session: Faulty, server: FaultyServer, events: list[Event]
) -> None:
    router = make(ASK)
    for wrong in ({"x": XS[0][0]}, {"z": XS[0]}, {"x": XS[0] * np.float32("nan")}):
        with pytest.raises(BadData):
            router.answer(wrong)
    assert [event.why for event in events] == ["bad-input"] * 3
    assert (session.calls, server.connections) == (0, 0)
    with pytest.raises(UsageError, match="deadline_ms is nan"):
        router.answer({"x": XS[0]}, deadline_ms=float("nan"))


def test_a_deadline_that_has_passed_is_an_answer_too(
    make: Callable[..., Router], events: list[Event]
) -> None:
    with pytest.raises(Abstained) as caught:
        make().answer({"x": XS[0]}, deadline_ms=0)
    assert caught.value.why == "deadline"
    assert len(events) == 1


def test_a_router_that_is_closed_closes_its_session(
    make: Callable[..., Router], session: Faulty
) -> None:
    router = make(SURE, cloud=None)
    router.answer({"x": XS[0]})
    router.close()
    assert session.closed
    with pytest.raises(Abstained):
        router.answer({"x": XS[0]})


def test_what_cannot_route_is_refused(null_bundle: Path, cloud: Cloud) -> None:
    with pytest.raises(UsageError, match="a model on the device, a cloud, or both"):
        Router(None)
    with pytest.raises(UsageError, match="nothing tells the inputs"):
        Router(None, cloud)
    with Bundle.open(null_bundle) as bundle, pytest.raises(UsageError, match="2 artifacts"):
        Router(bundle, cloud)
    boxes = Signature((TensorSpec("x", (1, 2)),), (TensorSpec("box", (1, 3, 4)),))
    with pytest.raises(BadData, match="how sure an answer is"):
        Router(None, cloud, ASK, signature=boxes)
    Router(None, cloud, signature=boxes).close()
