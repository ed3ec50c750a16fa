"""Overload, thousands of connections, and hundreds of clients at once (make test-full)."""

from __future__ import annotations

import concurrent.futures
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgekit.runtime.bundle import Bundle

LOAD = Path(__file__).resolve().parents[1] / "benchmarks" / "serve_load.py"

pytestmark = pytest.mark.slow


def _load(server: Any, request: Path, *how: object, seconds: float) -> dict[str, Any]:
    command = [sys.executable, LOAD, server.port, request, "--seconds", seconds, *how]
    done = subprocess.run([str(w) for w in command], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _rss(server: Any) -> int:
    pids = [server.process.pid, *server.workers()]
    return sum(psutil.Process(pid).memory_info().rss for pid in pids)


def test_srv_04_overload_is_shed_and_everything_is_accounted_for(
    start: Any, bundles: Any, per_second: int, tmp_path: Path
) -> None:
    """Five times what it can do; how fast that is, is for the benchmark."""
    server = start(bundles.busy, "--workers", 1, "--objective-ms", 300, "--linger-s", 0)
    entry = {"name": "n", "shape": [1, 1], "datatype": "INT64", "data": [per_second // 50]}
    body = json.dumps({"inputs": [entry]}).encode()
    request = tmp_path / "request"
    request.write_bytes(
        b"POST /v2/models/busy/infer HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body
    )
    peak = len(_load(server, request, "--closed", 8, seconds=3)["latency_ms"]["200"]) / 3
    _load(server, request, "--open", 5 * peak, seconds=1)
    before = _rss(server)
    found = _load(server, request, "--open", 5 * peak, seconds=6)
    answers = found["latency_ms"]
    assert set(answers) == {"200", "429"} and found["unanswered"] == 0
    assert len(answers["429"]) > len(answers["200"])
    # What was let in waited for the objective and a batch, with the noise of a shared machine.
    assert np.percentile(answers["200"], 50) < 2 * 300
    assert _rss(server) - before < 32 * 2**20
    # It comes back by itself.
    end = time.monotonic() + 10
    while server.infer("busy", {"n": np.array([[1]])})[0] != 200:
        assert time.monotonic() < end
    received = server.metric("edgekit_requests_received_total", model="busy")
    ok = server.metric("nv_inference_request_success", model="busy")
    failed = server.metric("nv_inference_request_failure", model="busy")
    assert received == ok + failed
    assert server.metric("nv_inference_exec_count", model="busy") == ok
    status, headers, _ = server.ask("GET", "/v2/health/ready")
    assert status == 200 and "retry-after" not in headers
    assert server.stop() == 0


def test_srv_07_two_hundred_clients_get_their_own_answers(start: Any, bundles: Any) -> None:
    server = start(
        *(bundles.scores, bundles.lookup, "--workers", 2, "--linger-s", 0, "--queue", 5000)
    )
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 9, 1000)
    inputs = [rng.integers(0, 256, (n, 3, 8, 8)).astype(np.float32) for n in sizes]
    with Bundle.open(bundles.scores) as bundle:
        session = bundle.session(bundle.artifact("openvino-fp32"))
        serial = [np.concatenate([session.run({"x": r[None]})["y"] for r in x]) for x in inputs]

    def ask(i: int) -> bool:
        import tritonclient.http as triton

        if i % 10 == 3:
            status, _ = server.infer("lookup", {"i": np.array([[0, 99]])})
            return bool(status == 500)
        with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            tensor = triton.InferInput("x", list(inputs[i].shape), "FP32")
            tensor.set_data_from_numpy(inputs[i])
            answer = client.infer("scores", [tensor], request_id=str(i))
            assert answer.get_response()["id"] == str(i)
            return bool(answer.as_numpy("y").tobytes() == serial[i].tobytes())

    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        assert all(pool.map(ask, range(1000)))
    assert server.metric("nv_inference_count", model="scores") == sum(
        n for i, n in enumerate(sizes) if i % 10 != 3
    )
    assert server.stop() == 0


def test_srv_13_ten_thousand_idle_connections(start: Any, bundles: Any) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 11_000:
        pytest.skip(f"only {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 12_000), hard))
    server = start(bundles.lookup, "--workers", 1, "--header-timeout-s", 60, "--linger-s", 0)
    links: list[socket.socket] = []
    try:
        for _ in range(10_000):
            links.append(server.open())
        took = []
        for _ in range(50):
            begun = time.perf_counter()
            assert server.ask("GET", "/v2/health/live")[0] == 200
            took.append(time.perf_counter() - begun)
        assert np.median(took) < 0.1
        assert server.infer("lookup", {"i": np.array([[1, 2]])})[0] == 200
    finally:
        for link in links:
            link.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert server.stop() == 0
