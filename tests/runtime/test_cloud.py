"""The cloud client against a real server on loopback that does everything wrong in turn."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import BadData, CloudError, UsageError
from edgekit.runtime.cloud import KINDS, Cloud
from edgekit.runtime.guards import Breaker, RetryBudget
from edgekit.signature import TensorSpec

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    from faulty_server import FaultyServer, certificate, serving, until
finally:
    sys.path.remove(str(HERE))

X = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
OUTPUTS = (TensorSpec("y", (1, 4)),)


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serving() as found:
        yield found


def never_open() -> Breaker:
    return Breaker(least=1000, window=1000)


def ask(cloud: Cloud, timeout_ms: float = 1000.0) -> np.ndarray:
    return cloud.infer({"x": X}, OUTPUTS, timeout_ms=timeout_ms).outputs["y"]


# -- right answers --------------------------------------------------------------------------------


def test_an_answer_comes_back_over_one_connection(server: FaultyServer) -> None:
    with Cloud(server.url, api_key="key-of-ours", headers={"X-Team": "a"}) as cloud:
        for i in range(5):
            answer = cloud.infer({"x": X + i}, OUTPUTS)
            np.testing.assert_array_equal(answer.outputs["y"], server.answer(X + i))
            assert (answer.model, answer.version, answer.attempts) == ("teacher", "3", 1)
        answer.outputs["y"][:] = 0  # the caller's own
        assert cloud.latencies.median is not None
    assert server.connections == 1
    headers, document = server.seen[0]
    assert headers["authorization"] == "Bearer key-of-ours"
    assert headers["x-team"] == "a"
    assert 0 < document["parameters"]["timeout"] <= 1_000_000
    assert len({asked["id"] for _, asked in server.seen}) == 5


@pytest.mark.parametrize("binary", [True, False])
def test_a_server_without_the_binary_extension_is_understood(
    binary: bool, server: FaultyServer
) -> None:
    server.fault = "json"
    with Cloud(server.url, binary=binary) as cloud:
        np.testing.assert_array_equal(ask(cloud), server.answer(X))


def test_every_type_goes_out_as_the_protocol_has_it(server: FaultyServer) -> None:
    from edgekit.runtime import oip

    for dtype, name in oip.DATATYPES.items():
        value = np.array([[0, 1]], dtype)
        request = oip.build("7", {"a": value}, OUTPUTS, binary=True, timeout_us=5)
        length = int(request.headers[oip.HEADER_LENGTH])
        assert f'"datatype":"{name}"'.encode() in request.body[:length]
        assert request.body[length:] == value.tobytes()
        text = oip.build("7", {"a": value}, OUTPUTS, binary=False, timeout_us=5)
        assert f'"datatype":"{name}"'.encode() in text.body
    with pytest.raises(BadData, match="input 'a' is complex64; allowed: float32"):
        oip.build("7", {"a": np.zeros(1, np.complex64)}, OUTPUTS, binary=True, timeout_us=5)


def test_the_servers_own_account_of_its_model_is_read(server: FaultyServer) -> None:
    with Cloud(server.url) as cloud:
        signature = cloud.metadata()
    assert signature.inputs == (TensorSpec("x", (1, 2, 3)),)
    assert signature.outputs == OUTPUTS


def test_a_connection_that_was_closed_meanwhile_is_no_failure(server: FaultyServer) -> None:
    server.fault = "close-after"
    with Cloud(server.url, breaker=Breaker(least=1)) as cloud:
        for _ in range(4):
            assert cloud.infer({"x": X}, OUTPUTS).attempts == 1
            time.sleep(0.01)
    assert server.connections == 4


def test_many_threads_may_ask_at_once(server: FaultyServer) -> None:
    found: dict[int, np.ndarray] = {}
    with Cloud(server.url) as cloud:

        def work(i: int) -> None:
            found[i] = cloud.infer({"x": X * i}, OUTPUTS).outputs["y"]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i in range(16):
        np.testing.assert_array_equal(found[i], server.answer(X * i))


# -- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind", "requests"),
    [
        ("400", "refused", 1),
        ("401", "refused", 1),
        ("404", "refused", 1),
        ("413", "refused", 1),
        ("500", "server", 1),
        ("504", "timeout", 1),
        ("429", "busy", 2),
        ("502", "unavailable", 2),
        ("503", "unavailable", 2),
        ("reset", "reset", 2),
        ("half", "reset", 2),
        ("html", "garbage", 1),
        ("no-http", "garbage", 1),
        ("huge", "garbage", 1),
        ("endless", "garbage", 1),
        ("header-length", "wrong-answer", 1),
        ("redirect", "redirect", 1),
        ("204", "garbage", 1),
        ("shape", "wrong-answer", 1),
        ("dtype", "wrong-answer", 1),
        ("nan", "wrong-answer", 1),
        ("short", "wrong-answer", 1),
        ("name", "wrong-answer", 1),
        ("id", "wrong-answer", 1),
        ("output", "wrong-answer", 1),
        ("no-output", "wrong-answer", 1),
    ],
)
def test_a_fault_is_told_by_its_kind_and_only_some_are_tried_again(
    fault: str, kind: str, requests: int, server: FaultyServer
) -> None:
    server.fault = fault
    budget = RetryBudget(ratio=1.0)
    with Cloud(server.url, api_key="key-of-ours", budget=budget) as cloud:
        with pytest.raises(CloudError) as caught:
            ask(cloud)
        assert caught.value.kind == kind
        assert kind in KINDS
        assert caught.value.attempts == requests == len(server.seen)
        assert "key-of-ours" not in str(caught.value) + repr(cloud)
        assert pickle.loads(pickle.dumps(caught.value)).kind == kind
        server.fault = ""
        np.testing.assert_array_equal(ask(cloud), server.answer(X))  # and goes on


def test_the_version_that_is_asked_for_is_the_only_one_taken(server: FaultyServer) -> None:
    with Cloud(server.url, version="3") as cloud:
        assert cloud.infer({"x": X}, OUTPUTS).version == "3"
        server.fault = "version"
        with pytest.raises(CloudError, match="version '4' answered, '3' was asked"):
            ask(cloud)
    with Cloud(server.url) as cloud:
        assert cloud.infer({"x": X}, OUTPUTS).version == "4"


@pytest.mark.parametrize("fault", ["mute", "slow-bytes"])
def test_the_deadline_holds_whatever_the_server_does(fault: str, server: FaultyServer) -> None:
    server.fault = fault
    with Cloud(server.url) as cloud:
        started = time.monotonic()
        with pytest.raises(CloudError) as caught:
            ask(cloud, timeout_ms=150)
        assert caught.value.kind == "timeout"
        assert 0.14 < time.monotonic() - started < 2


def test_a_port_where_nobody_listens_and_a_name_that_nobody_has() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with Cloud(f"http://127.0.0.1:{port}", "m") as cloud:
        with pytest.raises(CloudError, match="Connection refused") as caught:
            ask(cloud)
        assert caught.value.kind == "connect"
    with Cloud("http://nobody.invalid", "m") as cloud:
        with pytest.raises(CloudError) as caught:
            ask(cloud, timeout_ms=5000)
        assert caught.value.kind == "dns"


def test_a_name_that_is_not_resolved_in_time_ends_with_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The C library's resolver may hang for half a minute: there is none here to be had that does.
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: release.wait(30) and [])
    with Cloud("http://stuck.example", "m") as cloud:
        started = time.monotonic()
        with pytest.raises(CloudError) as caught:
            ask(cloud, timeout_ms=100)
        assert caught.value.kind == "timeout"
        assert time.monotonic() - started < 2
    release.set()


def test_no_answer_however_broken_is_anything_but_refused() -> None:
    from edgekit.runtime import oip

    rng = np.random.default_rng(1)
    specs = (TensorSpec("y", (1, 4)), TensorSpec("n", (2,), "int64"), TensorSpec("b", (2,), "bool"))
    values = (np.ones((1, 4), "<f4"), np.array([1, 2], "<i8"), np.array([True, False]))
    listed = [
        {"name": s.name, "shape": list(s.shape), "datatype": oip.DATATYPES[s.dtype],
         "parameters": {"binary_data_size": v.nbytes}}
        for s, v in zip(specs, values, strict=True)
    ]  # fmt: skip
    head = {"id": "7", "model_name": "m", "model_version": "1", "outputs": listed}
    tail = b"".join(v.tobytes() for v in values)
    asked: dict[str, Any] = {"id": "7", "model": "m", "version": None, "outputs": specs}

    def parsed(head: object, tail: bytes) -> Any:
        text = json.dumps(head).encode()
        return oip.parse(text + tail, str(len(text)), **asked)

    good = parsed(head, tail)
    for spec, value in zip(specs, values, strict=True):
        np.testing.assert_array_equal(good.outputs[spec.name], value)
    odd: list[Any] = [None, [], {}, "x", -1, 2**70, 1e400, True, [[]], {"binary_data_size": -4}]
    allowed = [("id", None), ("model_version", None), ("model_version", "x")]
    for key in head:
        for value in odd:
            if (key, value) not in allowed:
                with pytest.raises(BadData):
                    parsed(head | {key: value}, tail)
    for i in range(3):
        for key in listed[0]:
            for value in odd:
                with pytest.raises(BadData):
                    changed = [e | {key: value} if i == j else e for j, e in enumerate(listed)]
                    parsed(head | {"outputs": changed}, tail)
    with pytest.raises(BadData, match="no bool"):
        parsed(head, tail[:-1] + b"\x02")
    for data in ([1, 2, 3], [1e300, 0, 0, 0], ["1", 2, 3, 4], [10**400, 0, 0, 0], 5, [[1, 2], [3]]):
        one = {"name": "y", "shape": [1, 4], "datatype": "FP32", "data": data}
        with pytest.raises(BadData):
            parsed(head | {"outputs": [one]}, b"")
    whole = json.dumps(head).encode() + tail
    for _ in range(300):
        broken = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            broken[at] = rng.integers(0, 256)
        try:
            oip.parse(bytes(broken[: rng.integers(1, len(whole) + 1)]), "260", **asked)
        except BadData:
            continue


# -- leaving it alone -----------------------------------------------------------------------------


def test_retry_after_is_kept_to_and_the_server_is_left_alone(server: FaultyServer) -> None:
    server.fault, server.retry_after = "503", "1"
    with Cloud(server.url, budget=RetryBudget(ratio=1.0)) as cloud:
        with pytest.raises(CloudError) as caught:
            ask(cloud, timeout_ms=500)  # a second is too long to wait within it
        assert caught.value.retry_after_s == 1
        assert (caught.value.attempts, cloud.unavailable()) == (1, "told-to-wait")
        server.fault = ""
        for _ in range(5):
            with pytest.raises(CloudError) as caught:
                ask(cloud)
            assert (caught.value.kind, caught.value.attempts) == ("told-to-wait", 0)
        assert len(server.seen) == 1
        until(lambda: cloud.unavailable() is None)
        np.testing.assert_array_equal(ask(cloud), server.answer(X))


def test_a_short_retry_after_is_waited_for_within_the_call(server: FaultyServer) -> None:
    server.fault, server.retry_after = "429", "1"
    with Cloud(server.url, budget=RetryBudget(ratio=1.0)) as cloud:
        threading.Timer(0.3, setattr, (server, "fault", "")).start()
        started = time.monotonic()
        answer = cloud.infer({"x": X}, OUTPUTS, timeout_ms=5000)
        assert answer.attempts == 2
        assert time.monotonic() - started >= 1


@pytest.mark.parametrize("value", ["-1", "soon", "1e3", "99999999999999", ""])
def test_a_retry_after_that_is_none_is_not_heard(value: str, server: FaultyServer) -> None:
    server.fault, server.retry_after = "429", value
    with Cloud(server.url) as cloud:
        with pytest.raises(CloudError) as caught:
            ask(cloud)
        assert caught.value.retry_after_s is None
        assert cloud.unavailable() is None


def test_a_date_is_heard_too_and_five_minutes_are_the_most(server: FaultyServer) -> None:
    server.fault, server.retry_after = "429", "Fri, 01 Jan 2100 00:00:00 GMT"
    with Cloud(server.url) as cloud:
        with pytest.raises(CloudError) as caught:
            ask(cloud)
        assert caught.value.retry_after_s == 300


def test_a_server_that_fails_everybody_is_not_asked_twice_by_everybody(
    server: FaultyServer,
) -> None:
    server.fault = "503"
    with Cloud(server.url, attempts=3, breaker=never_open()) as cloud:
        for _ in range(100):
            with pytest.raises(CloudError):
                ask(cloud)
    assert len(server.seen) == 110  # the budget is a tenth


def test_the_breaker_opens_asks_once_and_closes(server: FaultyServer) -> None:
    server.fault = "500"
    with Cloud(server.url, breaker=Breaker(open_s=0.2)) as cloud:
        for _ in range(20):
            with pytest.raises(CloudError):
                ask(cloud)
        assert len(server.seen) == 5
        assert (cloud.breaker.state, cloud.unavailable()) == ("open", "breaker-open")
        time.sleep(0.21)
        with pytest.raises(CloudError):
            ask(cloud)
        assert len(server.seen) == 6  # one probe, and it failed
        assert cloud.breaker.state == "open"
        server.fault = ""
        time.sleep(0.41)
        ask(cloud)
        assert cloud.breaker.state == "closed"


def test_requests_that_are_refused_do_not_open_the_breaker(server: FaultyServer) -> None:
    server.fault = "400"
    with Cloud(server.url, breaker=Breaker(least=2)) as cloud:
        for _ in range(20):
            with pytest.raises(CloudError):
                ask(cloud)
        assert cloud.breaker.state == "closed"
    assert len(server.seen) == 20


def test_a_closed_client_asks_nobody(server: FaultyServer) -> None:
    cloud = Cloud(server.url)
    cloud.close()
    with pytest.raises(CloudError) as caught:
        ask(cloud)
    assert caught.value.kind == "closed"
    assert server.seen == []


# -- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server's and a device's certificate by it, and a stranger's."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("keys")
    authority, _ = certificate(folder, "authority", "authority.test")
    certificate(folder, "server", "localhost", authority)
    certificate(folder, "device", "device.test", authority)
    certificate(folder, "elsewhere", "elsewhere.test", authority)
    certificate(folder, "stranger", "localhost")
    return folder


def server_context(keys: Path, name: str, *, demand: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / f"{name}.pem", keys / f"{name}.key")
    if demand:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(keys / "authority.pem")
    return context


def test_tls_holds_the_server_to_its_certificate(keys: Path) -> None:
    ca = str(keys / "authority.pem")
    with serving(server_context(keys, "server")) as server:
        with Cloud(server.url, ca=ca) as cloud:
            for _ in range(3):
                np.testing.assert_array_equal(ask(cloud), server.answer(X))
        assert server.connections == 1  # session tickets do not pass for stray bytes
        with Cloud(server.url) as cloud, pytest.raises(CloudError, match="tls") as caught:
            ask(cloud)
        assert caught.value.kind == "tls"
    for name in ("stranger", "elsewhere"):
        with serving(server_context(keys, name)) as server, Cloud(server.url, ca=ca) as cloud:
            with pytest.raises(CloudError) as caught:
                ask(cloud)
            assert (caught.value.kind, server.seen) == ("tls", [])


def test_the_server_may_demand_a_certificate_of_the_device(keys: Path) -> None:
    ca = str(keys / "authority.pem")
    with serving(server_context(keys, "server", demand=True)) as server:
        device = {"client_cert": str(keys / "device.pem"), "client_key": str(keys / "device.key")}
        with Cloud(server.url, ca=ca, **device) as cloud:
            np.testing.assert_array_equal(ask(cloud), server.answer(X))
        with Cloud(server.url, ca=ca) as cloud, pytest.raises(CloudError) as caught:
            ask(cloud)
        assert caught.value.kind in ("tls", "reset")
        assert len(server.seen) == 1


def test_a_server_that_speaks_no_tls_and_one_that_says_nothing(
    keys: Path, server: FaultyServer
) -> None:
    url = server.url.replace("http:", "https:")
    server.fault = "no-http"
    with Cloud(url, ca=str(keys / "authority.pem")) as cloud:
        with pytest.raises(CloudError) as caught:
            ask(cloud, timeout_ms=500)
        assert caught.value.kind in ("tls", "reset", "timeout")
        server.fault = "mute"
        started = time.monotonic()
        with pytest.raises(CloudError) as caught:
            ask(cloud, timeout_ms=150)
        assert caught.value.kind == "timeout"
        assert time.monotonic() - started < 2


# -- what is refused before anything is sent ------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ftp://host", "m"), "no URL of a server"),
        (("https://", "m"), "no URL of a server"),
        (("https://host:99999", "m"), "cannot be read"),
        (("https://user:secret@host", "m"), "holds a password"),
        (("https://host?key=secret", "m"), "no URL of a server"),
        (("https://host",), "no model is named"),
        (("https://host/v2/models/a/b",), "names no model"),
        (("https://host", "../x"), "cannot stand in a path"),
        (("https://host", "a/b"), "cannot stand in a path"),
        (("https://host", "m" * 300), "cannot stand in a path"),
    ],
)
def test_what_names_no_server_is_refused(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        Cloud(*arguments)
    assert "user:secret" not in str(caught.value)


def test_a_key_does_not_go_over_the_network_in_clear_text() -> None:
    with pytest.raises(UsageError, match="in clear text"):
        Cloud("http://models.example.com", "m", api_key="key-of-ours")
    with pytest.raises(UsageError, match="holds what none may hold") as caught:
        Cloud("https://models.example.com", "m", api_key="key\r\nX-Evil: 1")
    assert "Evil" not in str(caught.value)
    with pytest.raises(BadData, match="certificate cannot be read"):
        Cloud("https://models.example.com", "m", ca=__file__)
