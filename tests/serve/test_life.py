"""How a server begins, swaps models, survives and ends."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.scratch import sweep

X = np.arange(192, dtype=np.float32).reshape(1, 3, 8, 8)


def _conftest(bundles: Any) -> Any:
    return sys.modules[type(bundles).__module__]


def _wait(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("workers", "shell"), [pytest.param(1, False, marks=pytest.mark.slow), (2, True)]
)
def test_srv_09_sigterm_drains(
    start: Any, bundles: Any, per_second: int, workers: int, shell: bool
) -> None:
    server = start(bundles.busy, "--workers", workers, "--linger-s", 0.5, shell=shell)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        busy = {"n": np.array([[per_second]])}
        running = pool.submit(server.infer, "busy", busy)
        _wait(lambda: server.metric("ovms_current_requests", model="busy") == 1)
        _terminate(server)
        _wait(lambda: server.ask("GET", "/v2/health/ready")[0] == 503, 2)
        assert server.ask("GET", "/v2/health/live")[0] == 200
        assert server.ask("GET", "/v2/models/busy/ready")[0] == 503
        assert server.infer("busy", {"n": np.array([[1]])})[0] == 503
        status, document = running.result()
        assert status == 200 and document["outputs"][0]["data"] == [per_second]
    assert server.process.wait(20) == 0


def _terminate(server: Any) -> None:
    """SIGTERM to the server itself; a shell in front of it may have made way."""
    import psutil

    process = psutil.Process(server.process.pid)
    inner = [child for child in process.children() if "edgekit.cli.main" in child.cmdline()]
    (inner or [process])[0].send_signal(signal.SIGTERM)


@pytest.mark.parametrize("how", ["second signal", pytest.param("grace", marks=pytest.mark.slow)])
def test_srv_09_a_second_signal_and_the_end_of_grace_refuse_what_is_left(
    start: Any, bundles: Any, per_second: int, how: str
) -> None:
    grace = 60 if how == "second signal" else 0.5
    server = start(bundles.busy, "--workers", 1, "--grace-s", grace)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(server.infer, "busy", {"n": np.array([[per_second * 60]])})
        _wait(lambda: server.metric("ovms_current_requests", model="busy") == 1)
        server.process.send_signal(signal.SIGTERM)
        if how == "second signal":
            _wait(lambda: server.ask("GET", "/v2/health/ready")[0] == 503, 2)
            server.process.send_signal(signal.SIGTERM)
        status, document = running.result(timeout=10)
        assert status == 503 and "ending" in document["error"]
    assert server.process.wait(20) == 130
    assert server.workers_gone()


def test_srv_11_kill_9_of_a_worker_and_of_the_server(
    start: Any, bundles: Any, per_second: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    server = start(bundles.busy, "--workers", 1)
    (copy,) = tmp_path.glob("edgekit-serve-*")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(server.infer, "busy", {"n": np.array([[per_second * 60]])})
        _wait(lambda: server.metric("ovms_current_requests", model="busy") == 1)
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        assert running.result(timeout=10)[0] == 500
        assert server.ask("GET", "/v2/health/live")[0] == 200
        _wait(lambda: server.ask("GET", "/v2/health/ready")[0] == 200)
        assert server.infer("busy", {"n": np.array([[1]])})[0] == 200
        running = pool.submit(server.infer, "busy", {"n": np.array([[per_second]])})
        _wait(lambda: server.metric("ovms_current_requests", model="busy") == 1)
        server.kill()
        with pytest.raises(OSError):
            running.result(timeout=10)
    # Its worker finishes what it is at, and follows. What it left on disk goes with the next.
    assert server.workers_gone()
    assert copy.exists()
    sweep(tmp_path)
    assert not copy.exists()


def test_srv_12_hot_swap_under_load(start: Any, bundles: Any, tmp_path: Path) -> None:
    conftest = _conftest(bundles)
    path = conftest.scores_bundle(tmp_path / "live")
    second = conftest.scores_bundle(tmp_path / "second", version="2", factor=2.0)
    broken = conftest.scores_bundle(tmp_path / "broken", version="3", factor=3.0, good=False)
    keys = tmp_path / "keys"
    keys.write_text("app aaaaaaaaaaaaaaaaaaaa\nops admin bbbbbbbbbbbbbbbbbbbb\n")
    keys.chmod(0o600)
    server = start(path, "--workers", 1, "--keys", keys, "--artifact", "onnxruntime-fp32")
    mine, admin = {"X-API-Key": "a" * 20}, {"Authorization": f"Bearer {'b' * 20}"}
    load = "/v2/repository/models/scores/load"

    def put(other: Path) -> None:
        shutil.rmtree(path)
        shutil.copytree(other, path)

    answers: list[tuple[int, str, float]] = []
    ending = threading.Event()

    def ask() -> None:
        while not ending.is_set():
            status, document = server.infer("scores", {"x": X}, mine)
            first = document["outputs"][0]["data"][0] if status == 200 else 0.0
            answers.append((status, document.get("model_version", ""), first))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        _wait(lambda: len(answers) > 5)
        assert server.ask("POST", load, headers=mine)[0] == 403
        body = json.dumps(_scores_request()).encode()
        slow = server.open()
        slow.sendall(
            b"POST /v2/models/scores/infer HTTP/1.1\r\nHost: a\r\nX-API-Key: %s\r\n"
            b"Content-Length: %d\r\n\r\n" % (b"a" * 20, len(body)) + body[:100]
        )
        put(second)
        status, _, reply = server.ask("POST", load, headers=admin)
        assert (status, json.loads(reply)) == (200, {"name": "scores", "version": "2"})
        swapped = len(answers)
        _wait(lambda: len(answers) > swapped + 5)
        # A request whose body came while the version was put in.
        time.sleep(0.3)
        slow.sendall(body[100:])
        assert slow.recv(100).startswith(b"HTTP/1.1 200")
        slow.close()
        put(broken)
        status, _, body = server.ask("POST", load, headers=admin)
        assert status == 400 and str(tmp_path).encode() not in body
        refused = len(answers)
        _wait(lambda: len(answers) > refused + 5)
        # SIGHUP reads it again too.
        put(bundles.scores)
        server.process.send_signal(signal.SIGHUP)
        _wait(lambda: answers[-1][1] == "1")
    finally:
        ending.set()
        for thread in threads:
            thread.join()
    assert {status for status, _, _ in answers} == {200}
    # Every answer is of the version that it names.
    by_version = {version: {v for _, n, v in answers if n == version} for _, version, _ in answers}
    assert set(by_version) == {"1", "2"}
    assert all(len(values) == 1 for values in by_version.values())
    (one,), (two,) = by_version["1"], by_version["2"]
    assert two == 2 * one != 0
    assert server.stop() == 0


def _scores_request() -> dict[str, Any]:
    data = X.reshape(-1).tolist()
    return {"inputs": [{"name": "x", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": data}]}


def test_keys_and_rates(start: Any, bundles: Any, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# of this test\napp aaaaaaaaaaaaaaaaaaaa\nother bbbbbbbbbbbbbbbbbbbb\n")
    keys.chmod(0o600)
    server = start(bundles.lookup, "--workers", 1, "--keys", keys, "--rate", 3, "--linger-s", 0)
    inputs = {"i": np.array([[1, 2]])}
    assert server.infer("lookup", inputs)[0] == 401
    assert server.infer("lookup", inputs, {"X-API-Key": "c" * 20})[0] == 401
    assert server.infer("lookup", inputs, {"Authorization": "Bearer"})[0] == 401
    assert server.ask("GET", "/metrics")[0] == 401
    assert (
        server.ask("GET", "/v2/health/live")[0] == server.ask("GET", "/v2/health/ready")[0] == 200
    )
    mine = {"Authorization": f"Bearer {'a' * 20}"}
    found = [server.infer("lookup", inputs, mine)[0] for _ in range(6)]
    assert found[:3] == [200] * 3 and 429 in found[3:]
    status, headers, _ = server.ask("POST", "/v2/models/lookup/infer", b"{}", mine)
    assert status == 429 and int(headers["retry-after"]) >= 1
    assert server.infer("lookup", inputs, {"X-API-Key": "b" * 20})[0] == 200
    assert server.stop() == 0


def test_srv_13_slow_clients_are_timed_out(start: Any, bundles: Any) -> None:
    server = start(
        bundles.lookup, "--workers", 1, "--header-timeout-s", 0.5, "--body-timeout-s", 0.5,
        "--connections", 40, "--linger-s", 0,
    )  # fmt: skip
    refused = server.open()
    # Refused at its headers; that its body never comes ends the connection, without another answer.
    refused.sendall(
        b"POST /v2/models/absent/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
    )
    silent, headers, body = server.open(), server.open(), server.open()
    headers.sendall(b"GET /v2 HTTP/1.1\r\nHost: a\r\n")
    path = b"POST /v2/models/lookup/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"
    body.sendall(path)
    begun = time.monotonic()
    while time.monotonic() - begun < 0.4:
        # A byte now and then is no excuse.
        headers.sendall(b"X")
        body.sendall(b" ")
        time.sleep(0.05)
    for link in (silent, headers, body):
        link.settimeout(5)
        assert link.recv(100).startswith(b"HTTP/1.1 408")
        link.close()
    assert time.monotonic() - begun < 4
    refused.settimeout(5)
    assert server.answer(refused) == 404
    assert refused.recv(1000) == b""
    refused.close()
    idle = [server.open() for _ in range(39)]
    assert server.ask("GET", "/v2/health/live")[0] == 200
    more = [server.open() for _ in range(3)]
    more[-1].settimeout(5)
    assert more[-1].recv(100).startswith(b"HTTP/1.1 503")
    for link in [*idle, *more]:
        link.close()
    assert server.stop() == 0


def test_tls_with_client_certificates(start: Any, bundles: Any, tmp_path: Path) -> None:
    import ssl

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=tmp_path, check=True, capture_output=True)

    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    for name in ("ca", "own", "client", "stranger"):
        openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out",
            f"{name}.pem", "-days", "2", "-subj", f"/CN={name}", "-addext",
            "subjectAltName=IP:127.0.0.1",
        )  # fmt: skip
    openssl("req", "-new", "-key", "client.key", "-subj", "/CN=client", "-out", "client.csr")
    openssl(
        "x509", "-req", "-in", "client.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-out",
        "client.pem", "-days", "2", "-CAcreateserial",
    )  # fmt: skip
    server = start(
        bundles.lookup, "--workers", 1, "--certificate", tmp_path / "own.pem",
        "--certificate-key", tmp_path / "own.key", "--client-ca", tmp_path / "ca.pem",
        "--linger-s", 0,
    )  # fmt: skip
    assert server.url.startswith("https://")

    def live(name: str | None) -> bytes:
        context = ssl.create_default_context(cafile=str(tmp_path / "own.pem"))
        if name is not None:
            context.load_cert_chain(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
        with (
            server.open() as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as link,
        ):
            link.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            return link.recv(100)

    assert live("client").startswith(b"HTTP/1.1 200")
    for name in (None, "stranger"):
        # TLS 1.3: the client believes itself connected until it reads.
        with contextlib.suppress(OSError):
            assert live(name) == b""
    assert server.stop() == 0


def test_a_model_that_cannot_be_served_ends_the_command(bundles: Any, tmp_path: Path) -> None:
    path = _conftest(bundles).scores_bundle(tmp_path / "bad", good=False)
    command = [sys.executable, "-m", "edgekit.cli.main", "serve", str(path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7 and done.stdout == ""
    assert "golden samples give" in done.stderr
