"""The server as its clients meet it: Triton's own client, and requests that are wrong."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from typing import Any

import numpy as np
import pytest

triton = pytest.importorskip("tritonclient.http")

MODELS = {"scores", "types", "lookup", "busy", "words", "sounds"}

VALUES = {
    "float32": [[0.5, -1e30, 3.0]],
    "float16": [[0.5, -2.0, 65504.0]],
    "int64": [[2**53 + 1, -(2**63), 2**63 - 1]],
    "int32": [[-(2**31), 0, 2**31 - 1]],
    "int16": [[-32768, 5, 32767]],
    "int8": [[-128, 0, 127]],
    "uint8": [[0, 128, 255]],
    "bool": [[True, False, True]],
}


def _typed(binary: bool, module: Any) -> tuple[list[Any], list[Any]]:
    from edgekit.serve.oip import datatype_of

    inputs, outputs = [], []
    for name, value in VALUES.items():
        kind = datatype_of(name)
        tensor = module.InferInput(f"in_{name}", [1, 3], kind)
        # FP16 has no form in JSON there.
        tensor.set_data_from_numpy(np.array(value, name), binary_data=binary or kind == "FP16")
        inputs.append(tensor)
        outputs.append(module.InferRequestedOutput(f"out_{name}", binary_data=binary))
    return inputs, outputs


@pytest.mark.parametrize("binary", [True, False])
def test_srv_01_tritonclient_sends_and_gets_every_type(server: Any, binary: bool) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        assert client.is_server_live() and client.is_server_ready()
        assert client.is_model_ready("types") and client.is_model_ready("types", "1")
        assert not client.is_model_ready("absent")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        described = client.get_model_metadata("types")
        assert described["versions"] == ["1"] and len(described["inputs"]) == 8
        inputs, outputs = _typed(binary, triton)
        answer = client.infer("types", inputs, outputs=outputs, request_id="a-1")
        assert answer.get_response()["id"] == "a-1"
        assert answer.get_response()["model_version"] == "1"
        for name, value in VALUES.items():
            got = answer.as_numpy(f"out_{name}")
            assert got.dtype == np.dtype(name)
            np.testing.assert_array_equal(got, np.array(value, name))


@pytest.mark.parametrize("binary", [True, False])
def test_srv_01_tritonclient_aio(server: Any, binary: bool) -> None:
    import tritonclient.http.aio as aio

    async def talk() -> None:
        client = aio.InferenceServerClient(f"127.0.0.1:{server.port}")
        try:
            assert await client.is_server_ready()
            inputs, outputs = _typed(binary, aio)
            answer = await client.infer("types", inputs, outputs=outputs)
            for name, value in VALUES.items():
                np.testing.assert_array_equal(answer.as_numpy(f"out_{name}"), np.array(value, name))
            index = await client.get_model_repository_index()
            assert {entry["name"] for entry in index} == MODELS
            assert {entry["state"] for entry in index} == {"READY"}
            stats = await client.get_inference_statistics("types")
            assert stats["model_stats"][0]["inference_stats"]["success"]["count"] >= 1
        finally:
            await client.close()

    asyncio.run(talk())


def test_srv_01_compressed_requests_and_all_outputs_by_default(server: Any) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        for algorithm in ("gzip", "deflate"):
            tensor = triton.InferInput("i", [2, 2], "INT64")
            tensor.set_data_from_numpy(np.array([[0, 1], [9, 2]], np.int64))
            answer = client.infer("lookup", [tensor], request_compression_algorithm=algorithm)
            np.testing.assert_array_equal(answer.as_numpy("v"), [[1, 4], [28, 7]])


X = np.arange(192, dtype=np.float32).reshape(1, 3, 8, 8)


def _request(**changes: Any) -> dict[str, Any]:
    entry = {"name": "i", "shape": [1, 2], "datatype": "INT64", "data": [0, 1]}
    return {"inputs": [{**entry, **changes}]}


WRONG: dict[str, bytes] = {
    "count": json.dumps(_request(data=[1])).encode(),
    "negative": json.dumps(_request(shape=[-1, 2])).encode(),
    "zero": json.dumps(_request(shape=[0, 2], data=[])).encode(),
    "float dimension": json.dumps(_request(shape=[1.0, 2])).encode(),
    "bool dimension": json.dumps(_request(shape=[True, 2])).encode(),
    "huge": json.dumps(_request(shape=[2**63, 2])).encode(),
    "overflow": json.dumps(_request(shape=[2**62, 2**62])).encode(),
    "ragged": json.dumps(_request(shape=[2, 2], data=[[1, 2], [3]])).encode(),
    "nan": json.dumps(_request()).replace("[0, 1]", "[NaN, 1]").encode(),
    "infinity": json.dumps(_request()).replace("[0, 1]", "[Infinity, 1]").encode(),
    "beyond": json.dumps(_request(data=[2**63, 1])).encode(),
    "float": json.dumps(_request(data=[0.5, 1])).encode(),
    "bool": json.dumps(_request(data=[True, 1])).encode(),
    "text": json.dumps(_request(data=["0", 1])).encode(),
    "datatype": json.dumps(_request(datatype="INT32")).encode(),
    "no datatype": json.dumps(_request(datatype="BF16")).encode(),
    "datatypes": json.dumps(_request(datatype=["INT64"])).encode(),
    "none of too many": json.dumps(_request(shape=[0, 2**62, 2**62], data=[])).encode(),
    "unknown input": json.dumps(_request(name="j")).encode(),
    "missing input": json.dumps({"inputs": []}).encode(),
    "twice": json.dumps({"inputs": _request()["inputs"] * 2}).encode(),
    "output": json.dumps({**_request(), "outputs": [{"name": "w"}]}).encode(),
    "shape": json.dumps(_request(shape=[2], data=[0, 1])).encode(),
    "samples": json.dumps(_request(shape=[1000, 2], data=[0] * 2000)).encode(),
    "utf-8": b'{"inputs": "\xff"}',
    "deep": b"[" * 10_000 + b"]" * 10_000,
    "keys": b'{"inputs": [], "inputs": []}',
    "shared memory": json.dumps(_request(parameters={"shared_memory_region": "r"})).encode(),
    "timeout": json.dumps({**_request(), "parameters": {"timeout": -1}}).encode(),
    "empty": b"",
    "index": json.dumps(_request(data=[0, 1]) | {"id": 7}).encode(),
}


@pytest.mark.parametrize("what", WRONG)
def test_srv_02_wrong_requests(server: Any, what: str) -> None:
    status, headers, body = server.ask("POST", "/v2/models/lookup/infer", WRONG[what])
    assert status == 400, body
    assert headers["content-type"] == "application/json"
    assert set(json.loads(body)) == {"error"}


def test_srv_02_wrong_binary(server: Any) -> None:
    def send(size: Any, tail: bytes, length: int | None = None) -> int:
        entry = {"name": "i", "shape": [1, 2], "datatype": "INT64"}
        head = json.dumps(
            {"inputs": [{**entry, "parameters": {"binary_data_size": size}}]}
        ).encode()
        stated = {"Inference-Header-Content-Length": str(len(head) if length is None else length)}
        return int(server.ask("POST", "/v2/models/lookup/infer", head + tail, stated)[0])

    good = np.array([0, 1], np.int64).tobytes()
    assert send(16, good) == 200
    for size in (15, 17, -1, 16.0, True, "16", 2**70):
        assert send(size, good) == 400
    assert send(16, good + b"x") == 400
    assert send(16, good, 10**6) == 400
    assert send(16, good, -1) == 400
    # The server and its worker are none the worse for it.
    assert server.infer("lookup", {"i": np.array([[2, 3]])})[0] == 200


def test_srv_02_what_the_runtime_or_the_model_refuses(server: Any) -> None:
    status, document = server.infer("lookup", {"i": np.array([[0, 10]])})
    assert status == 500 and "runtime could not run" in document["error"]
    x = X.copy()
    x[0, 0, 0, 0] = np.nan
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        tensor = triton.InferInput("x", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        with pytest.raises(triton.InferenceServerException, match="NaN") as caught:
            client.infer("scores", [tensor])
        assert caught.value.status() == "400"


def test_srv_03_names_and_paths(server: Any) -> None:
    names = ["absent", "..%2f..%2fetc", "%2e%2e%2f", "../types", "x" * 4096, "types%00"]
    for name in names:
        assert server.ask("GET", f"/v2/models/{name}")[0] == 404
        assert server.ask("POST", f"/v2/models/{name}/infer", b"{}")[0] == 404
    assert server.ask("GET", "/v2/models/types/versions/9")[0] == 404
    assert server.ask("POST", "/v2/models/types/versions/9/infer", b"{}")[0] == 404
    assert server.ask("GET", "/v2/models/types/versions/1")[0] == 200
    assert server.ask("GET", "/etc/passwd")[0] == 404
    status, headers, _ = server.ask("GET", "/v2/models/types/infer")
    assert status == 405 and headers["allow"] == "POST"
    assert server.ask("DELETE", "/v2")[0] == 405


def test_srv_03_content_types_and_sizes(server: Any) -> None:
    path = "/v2/models/lookup/infer"
    body = json.dumps(_request()).encode()
    for kind in ("application/json; charset=utf-8", "application/octet-stream"):
        assert server.ask("POST", path, body, {"Content-Type": kind})[0] == 200
    assert server.ask("POST", path, body, {"Content-Type": "text/xml"})[0] == 415
    assert server.ask("POST", path, body, {"Content-Encoding": "br"})[0] == 415
    assert server.ask("POST", path, b"not gzip", {"Content-Encoding": "gzip"})[0] == 400
    assert server.ask("POST", path, body + b" " * 1_000_000)[0] == 200
    packed = gzip.compress(body)
    assert server.ask("POST", path, packed, {"Content-Encoding": "gzip"})[0] == 200
    for wrong in (packed + b"x", packed * 2, packed[:-9]):
        assert server.ask("POST", path, wrong, {"Content-Encoding": "gzip"})[0] == 400
    bomb = gzip.compress(b" " * (64 * 2**20))
    assert len(bomb) < 100_000
    assert server.ask("POST", path, bomb, {"Content-Encoding": "gzip"})[0] == 413
    assert server.ask("GET", "/v2", headers={"X-Long": "a" * 40_000})[0] == 431
    assert server.ask("GET", "/v2", headers={f"X-{i}": "a" for i in range(200)})[0] == 431


def test_srv_03_a_body_is_refused_before_it_is_sent_or_buffered(server: Any) -> None:
    with server.open() as link:
        link.sendall(
            b"POST /v2/models/lookup/infer HTTP/1.1\r\nHost: a\r\n"
            b"Content-Length: 9999999999\r\n\r\n"
        )
        assert link.recv(100).startswith(b"HTTP/1.1 413")
    with server.open() as link:
        link.sendall(
            b"POST /v2/models/lookup/infer HTTP/1.1\r\nHost: a\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        sent, refused = 0, b""
        link.settimeout(0.01)
        while sent < 8 * 2**20 and not refused:
            try:
                link.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
                sent += 65536
                refused = link.recv(100)
            except TimeoutError:
                continue
            except (ConnectionError, BrokenPipeError):
                break
        assert refused.startswith(b"HTTP/1.1 413") and sent < 8 * 2**20


def test_srv_03_chunked_and_expect_continue(server: Any) -> None:
    body = json.dumps(_request()).encode()
    head = b"POST /v2/models/lookup/infer HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    with server.open() as link:
        link.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(body), 10):
            part = body[at : at + 10]
            link.sendall(b"%x\r\n%s\r\n" % (len(part), part))
        link.sendall(b"0\r\n\r\n")
        assert link.recv(100).startswith(b"HTTP/1.1 200")
    with server.open() as link:
        link.sendall(head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert server.answer(link) == 100
        link.sendall(body)
        assert server.answer(link) == 200


def test_large_bodies_on_one_connection(server: Any) -> None:
    """They pass the parser by: what comes before, behind and instead of them is still right."""
    tail = np.array([[3, 4]], np.int64).tobytes()
    entry = {"name": "i", "shape": [1, 2], "datatype": "INT64"}
    head = json.dumps({"inputs": [{**entry, "parameters": {"binary_data_size": 16}}]}).encode()

    def request(size: int, model: str = "lookup") -> bytes:
        padded = head + b" " * (size - len(head))
        lines = (
            f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {size + 16}\r\n"
        )
        lines += f"Inference-Header-Content-Length: {size}\r\n\r\n"
        return lines.encode() + padded + tail

    def status(file: Any) -> tuple[int, Any]:
        line, length = file.readline(), 0
        while (header := file.readline().strip()) != b"":
            name, _, value = header.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return int(line.split()[1]), json.loads(file.read(length))

    good = (200, [10.0, 13.0])
    with server.open() as link, link.makefile("rb") as file:

        def answer() -> tuple[int, Any]:
            code, document = status(file)
            return code, document["outputs"][0]["data"] if code == 200 else None

        whole = request(700_000)
        for at in range(0, len(whole), 99_991):
            link.sendall(whole[at : at + 99_991])
            time.sleep(0.002)
        assert answer() == good
        link.sendall(request(500) + request(300_000) + request(200_000) + request(400))
        assert [answer() for _ in range(4)] == [good] * 4
        # Refused at its headers; the rest of it is read over, and the connection goes on.
        link.sendall(request(600_000, "absent") + request(100_000))
        assert [answer() for _ in range(2)] == [(404, None), good]
    with server.open() as link:
        link.sendall(request(600_000)[:100_000])
    assert server.infer("lookup", {"i": np.array([[1, 2]])})[0] == 200


def test_srv_05_a_deadline_that_has_passed_is_504_and_nothing_is_run(
    server: Any, per_second: int
) -> None:
    before = server.metric("nv_inference_exec_count", model="busy")
    late = {"X-Request-Timeout-Ms": "0"}
    status, _ = server.infer("busy", {"n": np.array([[1]])}, late)
    assert status == 504
    assert server.metric("nv_inference_exec_count", model="busy") == before
    start = time.perf_counter()
    status, _ = server.infer(
        "busy", {"n": np.array([[per_second]])}, {"X-Request-Timeout-Ms": "50"}
    )
    assert status == 504 and time.perf_counter() - start < 0.8
    assert server.infer("busy", {"n": np.array([[1]])}, {"X-Request-Timeout-Ms": "soon"})[0] == 400


def test_srv_06_clients_that_hang_up_are_not_worked_for(server: Any, per_second: int) -> None:
    def request(n: int) -> bytes:
        entry = {"name": "n", "shape": [1, 1], "datatype": "INT64", "data": [n]}
        body = json.dumps({"inputs": [entry]}).encode()
        head = (
            f"POST /v2/models/busy/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def current() -> float:
        return float(server.metric("ovms_current_requests", model="busy"))

    before = server.metric("nv_inference_exec_count", model="busy")
    gone = server.metric("nv_inference_request_failure", model="busy", code="499")
    with server.open() as first:
        first.sendall(request(per_second))
        _until(lambda: current() == 1)
        links = [server.open() for _ in range(20)]
        for link in links:
            link.sendall(request(per_second // 50))
        _until(lambda: current() == 21)
        for link in links:
            link.close()
        _until(lambda: current() <= 1)
        assert server.infer("busy", {"n": np.array([[3]])})[0] == 200
        assert first.recv(100).startswith(b"HTTP/1.1 200")
    assert server.metric("nv_inference_request_failure", model="busy", code="499") == gone + 20
    # The first, the last, and at most what a worker had been handed before they left.
    assert server.metric("nv_inference_exec_count", model="busy") - before <= 4


def _until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_is_no_http_is_told_so(server: Any) -> None:
    with server.open() as link:
        link.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert link.recv(100).startswith(b"HTTP/1.1 400")


def test_predict_takes_a_picture_and_gives_labels(server: Any) -> None:
    import io

    from PIL import Image

    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    path = "/v1/predict?model=scores&top=2"
    status, _, body = server.ask("POST", path, file.getvalue(), {"Content-Type": "image/png"})
    assert status == 200, body
    found = json.loads(body)
    x = pixels.transpose(2, 0, 1)[None].astype(np.float32)
    _, tensors = server.infer("scores", {"x": x})
    y = np.array(tensors["outputs"][0]["data"])
    best = int(y.argmax())
    assert found["labels"][0]["label"] == "abcd"[best] and len(found["labels"]) == 2
    shares = np.exp(y - y.max())
    assert found["labels"][0]["score"] == pytest.approx(shares[best] / shares.sum(), rel=1e-6)

    def ask(body: bytes, kind: str, model: str = "scores") -> int:
        path = f"/v1/predict?model={model}"
        return int(server.ask("POST", path, body, {"Content-Type": kind})[0])

    assert ask(b"no picture", "image/jpeg") == 400
    assert ask(file.getvalue()[:60], "image/png") == 400
    assert ask(b"", "image/png") == 400
    assert ask(b"hello", "text/plain") == 415
    assert ask(b"hello", "text/plain", "lookup") == 400
    assert ask(file.getvalue(), "image/png", "absent") == 404


def test_predict_takes_a_text(server: Any) -> None:
    def ask(body: bytes, kind: str = "text/plain") -> tuple[int, dict[str, Any]]:
        path = "/v1/predict?model=words&top=1"
        status, _, answer = server.ask("POST", path, body, {"Content-Type": kind})
        return status, json.loads(answer)

    status, found = ask(b"Good, good and bad!", "text/plain; charset=utf-8")
    assert status == 200 and found["labels"][0]["label"] == "positive"
    assert found["labels"][0]["score"] == pytest.approx(1 / (1 + np.exp(-1)), rel=1e-6)
    assert ask(b"bad")[1]["labels"][0]["label"] == "negative"
    assert ask(b"\xff")[0] == 400
    assert ask(b"good " * 50_000)[0] == 200
    assert ask(b"good " * 60_000)[0] == 413
    assert ask(b"good", "image/png")[0] == 415
    late = {"X-Request-Timeout-Ms": "0"}
    assert server.ask("POST", "/v1/predict?model=words", b"good", late)[0] == 504
    # Ids of words that are not there are refused, though the runtime would take them.
    ids = {"input_ids": np.full((1, 8), 6), "attention_mask": np.ones((1, 8), np.int64)}
    status, document = server.infer("words", ids)
    assert status == 400 and "outside 0 to 5" in document["error"]


def test_predict_takes_a_recording(server: Any, tmp_path: Any) -> None:
    import wave

    from edgekit.runtime.preprocess import AudioPreprocess

    rule = AudioPreprocess()
    samples = np.random.default_rng(4).integers(-9000, 9000, rule.sample_rate).astype(np.int16)
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rule.sample_rate)
        file.writeframes(samples.tobytes())
    body = (tmp_path / "a.wav").read_bytes()
    path = "/v1/predict?model=sounds"
    status, _, answer = server.ask("POST", path, body, {"Content-Type": "audio/wav"})
    assert status == 200, answer
    got = np.array(json.loads(answer)["outputs"]["features"], np.float32)
    np.testing.assert_array_equal(got, rule.apply(samples))
    assert server.ask("POST", path, body[:100], {"Content-Type": "audio/wav"})[0] == 400


def test_srv_15_errors_tell_nothing_and_counters_add_up(server: Any) -> None:
    answers = [server.ask("POST", "/v2/models/lookup/infer", body)[2] for body in WRONG.values()]
    _, document = server.infer("lookup", {"i": np.array([[0, 10]])})
    answers.append(json.dumps(document).encode())
    for answer in answers:
        for leak in (b"/root", b"/tmp", b"/home", b"Traceback", b".py", b".onnx", b"File "):
            assert leak not in answer
    for model in MODELS:
        received = server.metric("edgekit_requests_received_total", model=model)
        ok = server.metric("nv_inference_request_success", model=model)
        failed = server.metric("nv_inference_request_failure", model=model)
        assert received == ok + failed + server.metric("ovms_current_requests", model=model)
    assert server.metric("nv_inference_request_failure", model="lookup", code="500") >= 1
