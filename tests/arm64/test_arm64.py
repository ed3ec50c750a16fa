"""An emulated ARM64 machine with Debian's own kernel, reached as any device: ``make test-arm64``.

The runtimes' ARM kernels run there, and have to answer as the x86 ones do. Its speed says nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from edgekit.bench.archive import worker_archive
from edgekit.bench.measure import bench
from edgekit.bench.remote import RemoteWorker
from edgekit.bench.runners import open_runner
from edgekit.bench.runners.shell import ShellRunner
from edgekit.bench.subjects import bundle_requests
from edgekit.cli.main import main
from edgekit.runtime.bundle import Bundle
from edgekit.runtime.session import open_session
from edgekit.schemas import validate

IMAGE = os.environ.get("EDGEKIT_ARM64")
SECONDS = 600.0
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(IMAGE is None, reason="make test-arm64 makes the machine and runs these"),
]

MODEL = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU6(),
        nn.Conv2d(16, 32, 1), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )
    return nn.Sequential(*layers).eval(), {"input": torch.zeros(1, 3, 32, 32)}
"""

# What runs there: the device side of edgekit out of the worker's archive, on what came along.
ANSWER = """
import json, sys
from pathlib import Path
sys.path.insert(0, "worker.pyz")
import numpy as np
from edgekit.runtime.session import open_session
from edgekit.signature import Signature
target, path, signature = sys.argv[1:]
session = open_session(target, Path(path), Signature.from_json(json.loads(signature)))
feeds = np.load("feeds.npz")
answers = [session.run({k: feeds[k][i : i + 1] for k in feeds}) for i in range(8)]
np.savez("answers.npz", **{k: np.concatenate([a[k] for a in answers]) for k in answers[0]})
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The machine's URL, while it runs."""
    assert IMAGE is not None
    program = shutil.which("qemu-system-aarch64")
    if program is None:
        pytest.fail("qemu-system-aarch64 is not installed: apt-get install -y qemu-system-arm")
    image, folder = Path(IMAGE).absolute(), tmp_path_factory.mktemp("arm64")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(image / 'host.pub').read_text()}")
    (folder / "client").write_text(
        f"Host arm\n HostName 127.0.0.1\n Port {port}\n User root\n IdentityFile {image}/user\n"
        f" IdentitiesOnly yes\n UserKnownHostsFile {folder}/known\n"
    )
    command = [
        program, "-M", "virt", "-cpu", "max", "-smp", "2", "-m", "2048", "-nographic",
        "-no-reboot", "-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initramfs"),
        "-append", "console=ttyAMA0 quiet panic=-1",
        "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22",
        "-device", "virtio-net-device,netdev=net",
    ]  # fmt: skip
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            end = time.monotonic() + SECONDS
            while b"edgekit-ready" not in log.read_bytes():
                if process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"the machine did not start: {log.read_text(errors='replace')}")
                time.sleep(1)
            yield f"ssh://arm?config={folder / 'client'}"
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def runner(url: str) -> Iterator[ShellRunner]:
    """An open runner on it."""
    with open_runner(url, timeout=SECONDS) as opened:
        yield opened


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network for LiteRT and ONNX Runtime, in float and in int8."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "net.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    np.savez(folder / "calib.npz", input=rng.standard_normal((128, 3, 32, 32)).astype("f"))
    options = ["--target", "tflite", "--target", "onnxruntime", "--scheme", "fp32"]
    options += ["--scheme", "w8a8", "--calib", str(folder / "calib.npz"), "-o", str(folder / "out")]
    options += ["--waive", "smaller", "--waive", "faster", "--json"]
    code = main(["export", f"{folder / 'net.py'}:net", *options])
    assert code == 0
    found = folder / "out" / "bundle"
    return found if found.is_dir() else folder / "out"


def test_it_is_an_arm_machine(runner: ShellRunner) -> None:
    facts = RemoteWorker(runner).facts()
    assert facts["machine"] == "aarch64" and "asimddp" in facts["isa"]
    assert {"numpy", "onnxruntime", "ai-edge-litert"} <= set(facts["packages"])


@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
@pytest.mark.parametrize("target", ["tflite", "onnxruntime"])
def test_an_artifact_answers_there_as_it_does_here(
    runner: ShellRunner, bundle: Path, tmp_path: Path, target: str, scheme: str
) -> None:
    rng = np.random.default_rng(1)
    feeds = {"input": rng.standard_normal((8, 3, 32, 32)).astype("f")}
    np.savez(tmp_path / "feeds.npz", **feeds)
    with Bundle.open(bundle) as opened:
        (request,) = bundle_requests(opened, (f"{target}-{scheme}",))
        with closing(open_session(target, request.path, request.signature)) as session:
            one = [session.run({"input": feeds["input"][i : i + 1]}) for i in range(8)]
        here = {name: np.concatenate([a[name] for a in one]) for name in one[0]}
        for name, path in {
            "worker.pyz": worker_archive(tmp_path / "worker.pyz"),
            "feeds.npz": tmp_path / "feeds.npz",
            request.path.name: request.path,
        }.items():
            runner.push(path, name)
        signature = json.dumps(request.signature.to_json())
        words = ["python3", "-c", ANSWER, target, request.path.name, signature]
        done = runner.run(words, timeout=SECONDS)
    assert done.code == 0, done.death()
    runner.pull("answers.npz", tmp_path / "answers.npz")
    there = np.load(tmp_path / "answers.npz")
    assert set(there) == set(here)
    for name, expected in here.items():
        assert there[name].std() > 0.01
        if scheme == "fp32":
            np.testing.assert_allclose(there[name], expected, rtol=1e-3, atol=1e-4)
        else:  # an output step, if rounding goes the other way somewhere
            step = np.diff(np.unique(np.concatenate([there[name].ravel(), expected.ravel()])))
            width = step[step > 1e-6].min()
            assert np.abs(there[name] - expected).max() <= 1.01 * width
            assert np.mean(np.abs(there[name] - expected) < width / 2) > 0.9


def test_it_is_measured_as_any_device_is(runner: ShellRunner, bundle: Path) -> None:
    with Bundle.open(bundle) as opened:
        requests = bundle_requests(opened, ("tflite-w8a8", "onnxruntime-w8a8"))
        worker = RemoteWorker(runner)
        document = bench(requests, rounds=1, runs=5, max_seconds=30, worker=worker, timeout=SECONDS)
    validate(document)
    assert document["facts"]["machine"] == "aarch64"
    assert all(len(result["samples_ms"]) == 5 for result in document["results"])
