"""`edgekit serve load`: against the real server, and against one that stalls or breaks off."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import schemas
from edgekit.cli.main import main
from edgekit.errors import UsageError
from edgekit.serve.load import Address, Plan, run, summary
from edgekit.serve.load_request import whole

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def _loaded(capsys: Any, *args: object) -> dict[str, Any]:
    assert main(["serve", "load", *map(str, args), "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    schemas.validate(document)
    return document


def test_tensors_are_drawn_and_answers_counted(server: Any, capsys: Any) -> None:
    before = server.metric("nv_inference_request_success", model="scores")
    found = _loaded(capsys, server.url, "--model", "scores", "--rate", 60, "--for", "1s")
    sent = found["sent"]
    assert found["statuses"] == {"200": sent} and 20 < sent < 120
    assert found["unanswered"] == 0
    after = server.metric("nv_inference_request_success", model="scores")
    assert after - before == sent
    assert 0 < found["generator"]["cpu_s"] < 5


def test_first_model_json_tensors_and_a_closed_loop(server: Any, capsys: Any) -> None:
    found = _loaded(
        capsys, server.url, "--text-tensors", "--concurrency", 2, "--for", 0.5,
        "--objective-ms", 0.001,
    )  # fmt: skip
    assert found["request"] == "scores"
    assert set(found["statuses"]) == {"200"}
    assert found["good_per_s"] == 0 < found["answered_per_s"]


def test_inputs_and_bodies_of_ones_own(server: Any, tmp_path: Path, capsys: Any) -> None:
    feeds = tmp_path / "x.npz"
    np.savez(feeds, n=np.array([[3]]))
    found = _loaded(
        capsys, server.url, "--model", "busy", "--inputs", feeds, "--concurrency", 1, "--for", 0.2
    )
    assert set(found["statuses"]) == {"200"}
    text = tmp_path / "text"
    text.write_text("good bad")
    url = f"{server.url}/v1/predict?model=words"
    found = _loaded(
        capsys, url, "--body", text, "--content-type", "text/plain", "--concurrency", 1,
        "--for", 0.2,
    )  # fmt: skip
    assert set(found["statuses"]) == {"200"}
    assert found["request"] == "/v1/predict?model=words"


def test_exit_codes(server: Any, tmp_path: Path, capsys: Any) -> None:
    load = ["serve", "load"]
    assert main([*load, server.url]) == 2
    assert main([*load, "ftp://x", "--rate", "1"]) == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert main([*load, closed, "--rate", "1"]) == 4
    wrong = tmp_path / "body"
    wrong.write_bytes(b"{")
    args = [f"{server.url}/v2/models/scores/infer", "--body", str(wrong), "--concurrency", "1"]
    assert main([*load, *args, "--for", "0.2"]) == 1
    assert "nothing was answered with 200" in capsys.readouterr().err


def test_a_key_is_not_sent_in_clear_text() -> None:
    with pytest.raises(UsageError, match="in clear text"):
        whole("http://models.example.com/v1/predict", b"x", "text/plain", key="0123456789abcdef")


@contextlib.contextmanager
def _server(answer: Callable[[socket.socket, int], None]) -> Iterator[Address]:
    """Calls ``answer`` with each connection and its number, in a thread of its own."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:

        def serve() -> None:
            number = 0
            while True:
                try:
                    link, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=quietly, args=(link, number), daemon=True).start()
                number += 1

        def quietly(link: socket.socket, number: int) -> None:
            with contextlib.suppress(OSError), link:
                answer(link, number)

        threading.Thread(target=serve, daemon=True).start()
        yield Address("127.0.0.1", listening.getsockname()[1])
        # accept() does not see that its socket is closed by another thread.
        listening.shutdown(socket.SHUT_RDWR)


def test_a_stall_shows_in_an_open_loop() -> None:
    begun = time.monotonic()

    def answer(link: socket.socket, _number: int) -> None:
        while link.recv(1000):
            # Nothing for the first 0.6 seconds.
            time.sleep(max(0.0, begun + 0.6 - time.monotonic()))
            link.sendall(OK)

    with _server(answer) as address:
        found = run(address, REQUEST, Plan(1.0, 100, concurrency=4))
    took = np.array(found.latency_ms["200"])
    assert took.size == found.sent and found.unanswered == 0
    # Whoever was due in the stall waited for its end, a connection or none.
    assert (took > 100).sum() > found.sent / 4
    assert summary(found, 50.0)["good_per_s"] < summary(found)["good_per_s"]


def test_broken_and_closed_connections_are_told_and_replaced() -> None:
    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    def answer(link: socket.socket, number: int) -> None:
        link.recv(1000)
        if number % 2:
            link.sendall(closing)

    with _server(answer) as address:
        found = run(address, REQUEST, Plan(0.5, None, concurrency=2))
    assert set(found.latency_ms) == {"0", "200"}
    broken, ok = (len(found.latency_ms[status]) for status in ("0", "200"))
    assert broken > 2 and ok > 2
    assert found.sent == broken + ok + found.unanswered
