"""Small bundles in real runtimes, made here in moments, and the real server as a process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.runtime.golden import pack_golden
from edgekit.runtime.manifest import canonical_json, directory_digest
from edgekit.signature import Signature, TensorSpec

ROOT = Path(__file__).resolve().parents[2]
Array = np.ndarray[Any, Any]

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="pip install 'edgekit[serve]'")


def write_bundle(
    root: Path,
    name: str,
    signature: Signature,
    artifacts: Mapping[str, Mapping[str, bytes]],
    golden: tuple[Mapping[str, Array], Mapping[str, Array]] | None,
    *,
    version: str = "1",
    scheme: str = "fp32",
    **more: Any,
) -> Path:
    """A bundle directory of artifacts: files by name for each target."""
    files: dict[str, bytes] = {}
    entries = []
    for target, parts in artifacts.items():
        listed = [_entry(f"{target}/{part}", data) for part, data in parts.items()]
        files |= {f"{target}/{part}": data for part, data in parts.items()}
        whole = directory_digest((entry["path"], entry["sha256"]) for entry in listed)
        entries.append(
            {
                "id": f"{target}-{scheme}",
                "target": target,
                "scheme": scheme,
                "path": listed[0]["path"],
                "bytes": sum(entry["bytes"] for entry in listed),
                "sha256": listed[0]["sha256"] if len(listed) == 1 else whole,
                "files": listed,
            }
        )
    manifest: dict[str, Any] = {
        "schema": "edgekit.bundle/1",
        "name": name,
        "version": version,
        "signature": signature.to_json(),
        "artifacts": entries,
        **more,
    }
    if golden is not None:
        data = pack_golden(*golden)
        files["golden.npz"] = data
        sha256 = hashlib.sha256(data).hexdigest()
        n = len(next(iter(golden[0].values())))
        manifest["golden"] = {"path": "golden.npz", "sha256": sha256, "n": n}
    manifest["files"] = [_entry(path, data) for path, data in files.items()]
    for path, data in {**files, "manifest.json": canonical_json(manifest)}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def graph(
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[Any, Sequence[Any]]],
    outputs: Mapping[str, tuple[Any, Sequence[Any]]],
    weights: Mapping[str, Array],
) -> bytes:
    """An ONNX file of nodes, with inputs and outputs of a numpy dtype and a shape each."""
    from onnx import helper, numpy_helper

    def infos(specs: Mapping[str, tuple[Any, Sequence[Any]]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape)
            )
            for name, (dtype, shape) in specs.items()
        ]

    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    made = helper.make_graph(list(nodes), "made", infos(inputs), infos(outputs), stored)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    return bytes(model.SerializeToString())


def _scores(batch: Any, factor: float) -> bytes:
    """x [n, 3, 8, 8] to y [n, 4]: a convolution, ReLU, the mean of each channel, times a factor."""
    from onnx import helper

    rng = np.random.default_rng(3)
    weights = {"w": rng.integers(-3, 4, (4, 3, 3, 3)).astype(np.float32)}
    weights["f"] = np.array([factor], np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("ReduceMean", ["r"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["m", "f"], ["y"]),
    ]
    shapes = ({"x": (np.float32, [batch, 3, 8, 8])}, {"y": (np.float32, [batch, 4])})
    return graph(nodes, *shapes, weights)


IMAGE = {
    "kind": "image", "height": 8, "width": 8, "channels": 3, "color": "RGB", "resize": "bilinear",
    "antialias": True, "resize_mode": "stretch", "resize_size": None, "scale": 1.0,
    "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "layout": "NCHW", "exif": True,
}  # fmt: skip


def scores_bundle(root: Path, version: str = "1", factor: float = 1.0, good: bool = True) -> Path:
    """``scores`` for OpenVINO and ONNX Runtime. Its golden answers are right if it is ``good``.

    Whole numbers in, and sums of them that float32 holds: the same bits in any order.
    """
    import onnxruntime

    content = _scores("n", factor)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(5).integers(0, 256, (4, 3, 8, 8)).astype(np.float32)
    (y,) = session.run(None, {"x": x})
    signature = Signature(
        (TensorSpec("x", (1, 3, 8, 8)),), (TensorSpec("y", (1, 4), labels=tuple("abcd")),)
    )
    return write_bundle(
        root,
        "scores",
        signature,
        {"openvino": _as_openvino(_scores(1, factor), root), "onnxruntime": {"net.onnx": content}},
        ({"x": x}, {"y": y if good else -y}),
        version=version,
        labels=list("abcd"),
        preprocess=IMAGE,
    )


def _as_openvino(content: bytes, root: Path) -> dict[str, bytes]:
    import openvino

    aside = root.with_name(f"{root.name}.aside")
    aside.mkdir(parents=True, exist_ok=True)
    (aside / "net.onnx").write_bytes(content)
    openvino.save_model(
        openvino.convert_model(aside / "net.onnx"), aside / "net.xml", compress_to_fp16=False
    )
    return {name: (aside / name).read_bytes() for name in ("net.xml", "net.bin")}


TYPES = ("float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


def types_bundle(root: Path) -> Path:
    """``types``: an input of each type, given back as it came."""
    from onnx import helper

    nodes = [helper.make_node("Identity", [f"in_{t}"], [f"out_{t}"]) for t in TYPES]
    inputs = {f"in_{t}": (t, [1, 3]) for t in TYPES}
    outputs = {f"out_{t}": (t, [1, 3]) for t in TYPES}
    signature = Signature(
        tuple(TensorSpec(f"in_{t}", (1, 3), t) for t in TYPES),
        tuple(TensorSpec(f"out_{t}", (1, 3), t) for t in TYPES),
    )
    content = graph(nodes, inputs, outputs, {})
    return write_bundle(root, "types", signature, {"onnxruntime": {"net.onnx": content}}, None)


def looked_up_bundle(root: Path) -> Path:
    """``lookup``: i [n, 2] to table[i]. The runtime fails where an index is not in the table."""
    from onnx import helper

    table = (np.arange(10, dtype=np.float32) * 3 + 1).reshape(10)
    nodes = [helper.make_node("Gather", ["table", "i"], ["v"])]
    content = graph(
        nodes, {"i": (np.int64, ["n", 2])}, {"v": (np.float32, ["n", 2])}, {"table": table}
    )
    signature = Signature((TensorSpec("i", (1, 2), "int64"),), (TensorSpec("v", (1, 2)),))
    i = np.array([[0, 1], [2, 3], [9, 8]], np.int64)
    golden = ({"i": i}, {"v": table[i]})
    return write_bundle(root, "lookup", signature, {"onnxruntime": {"net.onnx": content}}, golden)


def busy_bundle(root: Path) -> Path:
    """``busy``: counts up to n [1, 1], and so takes as long as is asked for."""
    from onnx import TensorProto, helper, numpy_helper

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Add", ["sum_in", "one"], ["sum_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_in", TensorProto.INT64, [1, 1]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_out", TensorProto.INT64, [1, 1]),
        ],
        [numpy_helper.from_array(np.array([[1]], np.int64), "one")],
    )
    nodes = [
        helper.make_node("Reshape", ["n", "scalar"], ["trips"]),
        helper.make_node("Loop", ["trips", "yes", "zero"], ["count"], body=body),
    ]
    weights = {
        "scalar": np.array([], np.int64), "yes": np.array(True), "zero": np.array([[0]], np.int64),
    }  # fmt: skip
    content = graph(nodes, {"n": (np.int64, [1, 1])}, {"count": (np.int64, [1, 1])}, weights)
    signature = Signature(
        (TensorSpec("n", (1, 1), "int64"),), (TensorSpec("count", (1, 1), "int64"),)
    )
    golden = ({"n": np.array([[3]])}, {"count": np.array([[3]])})
    return write_bundle(root, "busy", signature, {"onnxruntime": {"net.onnx": content}}, golden)


def words_bundle(root: Path) -> Path:
    """``words``: two labels by whether a text has more good than bad in it."""
    from onnx import helper

    from edgekit.runtime.preprocess import TextPreprocess

    rule = TextPreprocess(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad"), max_length=8)
    table = np.zeros((6, 2), np.float32)
    table[4], table[5] = (0, 1), (1, 0)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["each"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=1),
        helper.make_node("Unsqueeze", ["mask", "last"], ["weights"]),
        helper.make_node("Mul", ["each", "weights"], ["counted"]),
        helper.make_node("ReduceSum", ["counted", "middle"], ["sum"], keepdims=0),
    ]
    inputs = {name: (np.int64, [1, 8]) for name in ("input_ids", "attention_mask")}
    weights = {"table": table, "last": np.array([2]), "middle": np.array([1])}
    content = graph(nodes, inputs, {"sum": (np.float32, [1, 2])}, weights)
    labels = ("negative", "positive")
    signature = Signature(
        (
            TensorSpec("input_ids", (1, 8), "int64", high=5),
            TensorSpec("attention_mask", (1, 8), "int64", high=1),
        ),
        (TensorSpec("sum", (1, 2), labels=labels),),
    )
    feeds = rule.apply("good bad good")
    golden = (feeds, {"sum": np.array([[1, 2]], np.float32)})
    files = {"onnxruntime": {"net.onnx": content}}
    return write_bundle(
        root, "words", signature, files, golden, labels=list(labels), preprocess=rule.to_json()
    )


def sounds_bundle(root: Path) -> Path:
    """``sounds``: gives back the features of a recording."""
    from onnx import helper

    from edgekit.runtime.preprocess import AudioPreprocess

    rule = AudioPreprocess()
    nodes = [helper.make_node("Identity", ["sound"], ["features"])]
    content = graph(
        nodes, {"sound": (np.float32, rule.shape)}, {"features": (np.float32, rule.shape)}, {}
    )
    signature = Signature(
        (TensorSpec("sound", tuple(rule.shape)),), (TensorSpec("features", tuple(rule.shape)),)
    )
    files = {"onnxruntime": {"net.onnx": content}}
    return write_bundle(root, "sounds", signature, files, None, preprocess=rule.to_json())


@dataclass(frozen=True)
class Bundles:
    """One of each, made once."""

    scores: Path
    types: Path
    lookup: Path
    busy: Path
    words: Path
    sounds: Path


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """The bundles above."""
    root = tmp_path_factory.mktemp("bundles")
    return Bundles(
        scores_bundle(root / "scores"),
        types_bundle(root / "types"),
        looked_up_bundle(root / "lookup"),
        busy_bundle(root / "busy"),
        words_bundle(root / "words"),
        sounds_bundle(root / "sounds"),
    )


@pytest.fixture(scope="session")
def per_second(bundles: Bundles) -> int:
    """To what number ``busy`` counts in about a second on this machine."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = str(bundles.busy / "onnxruntime" / "net.onnx")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, {"n": np.array([[10]])})
    start = time.perf_counter()
    session.run(None, {"n": np.array([[20_000]])})
    return int(20_000 / (time.perf_counter() - start))


class Server:
    """A server in a process of its own.

    Attributes:
        process: the process.
        port: where it listens.
        document: what it said of itself.
    """

    def __init__(self, args: Sequence[str], log: Path, *, shell: bool = False) -> None:
        command = [
            sys.executable,
            "-m",
            "edgekit.cli.main",
            "serve",
            *args,
            "--port",
            "0",
            "--json",
        ]
        if shell:
            import shlex

            command = ["sh", "-c", shlex.join(command)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, env=environment
            )
        self.document = self._read()
        self.url = self.document["url"]
        self.port = int(self.url.rpartition(":")[2])
        self._seen: set[int] = set()
        self.workers()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        text = b""
        for line in self.process.stdout:
            text += line
            if line == b"}\n":
                found: dict[str, Any] = json.loads(text)
                return found
        raise AssertionError(f"the server ended with {self.process.wait()}: {self.log()}")

    def log(self) -> str:
        """What it wrote to stderr."""
        return self._log.read_text()

    def workers(self) -> list[int]:
        """Its worker processes."""
        import psutil

        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "edgekit.serve.worker" in child.cmdline():
                    found.append(child.pid)
        self._seen |= set(found)
        return found

    def workers_gone(self, seconds: float = 20.0) -> bool:
        """Whether every worker that `workers` has named, or that it has now, ends."""
        import psutil

        end = time.monotonic() + seconds
        while any(psutil.pid_exists(pid) and _runs(pid) for pid in self._seen):
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, headers in lower case, body."""
        import http.client

        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            link.request(method, path, body or None, dict(headers or {}))
            reply = link.getresponse()
            names = {name.lower(): value for name, value in reply.getheaders()}
            return reply.status, names, reply.read()
        finally:
            link.close()

    def infer(
        self, model: str, inputs: Mapping[str, Array], headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """One inference in JSON: status and document."""
        from edgekit.serve.oip import datatype_of

        entries = [
            {
                "name": name,
                "shape": list(value.shape),
                "datatype": datatype_of(value.dtype.name),
                "data": value.reshape(-1).tolist(),
            }
            for name, value in inputs.items()
        ]
        body = json.dumps({"inputs": entries}).encode()
        status, _, answer = self.ask("POST", f"/v2/models/{model}/infer", body, headers)
        return status, json.loads(answer)

    def metric(self, name: str, **labels: str) -> float:
        """One counter's value; 0 where it is not there."""
        from prometheus_client.parser import text_string_to_metric_families

        _, _, text = self.ask("GET", "/metrics")
        total, wanted = 0.0, name.removesuffix("_total")
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                # The parser gives every counter the ending that OpenMetrics asks for.
                if (
                    sample.name.removesuffix("_total") == wanted
                    and labels.items() <= sample.labels.items()
                ):
                    total += sample.value
        return total

    def open(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    @staticmethod
    def answer(link: socket.socket) -> int:
        """Status of the one answer that comes next; it is read whole, in however many parts."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = link.recv(1)
            assert byte, f"the connection ended within {head!r}"
            head += byte
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)\r\n", head)
        left = int(length[1]) if length else 0
        while left:
            part = link.recv(left)
            assert part, f"the connection ended within the body after {head!r}"
            left -= len(part)
        return int(head.split(b" ", 2)[1])

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        finally:
            self.kill()

    def kill(self) -> None:
        """kill -9."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(10)
        if self.process.stdout is not None:
            self.process.stdout.close()


def _runs(pid: int) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


Starter = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Starts servers that end with the test."""
    running: list[Server] = []

    def begin(*args: Any, shell: bool = False) -> Server:
        log = tmp_path / f"server-{len(running)}.log"
        running.append(Server([str(arg) for arg in args], log, shell=shell))
        return running[-1]

    yield begin
    for server in running:
        server.kill()


@pytest.fixture(scope="session")
def server(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with all the models, for every test that leaves it as it was."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    paths = [getattr(bundles, field.name) for field in fields(bundles)]
    options = ["--workers", "1", "--linger-s", "0", "--max-body-mb", "1"]
    running = Server([*map(str, paths), *options], log)
    yield running
    running.kill()
