"""`edgekit serve --engine ray`: the same answers from replicas, and versions that take each other's
place under load without a failed request."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import schemas
from edgekit.cli.main import main
from edgekit.errors import UsageError

ROOT = str(Path(__file__).resolve().parents[2])
ENVIRONMENT = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
X = np.arange(192, dtype=np.float32).reshape(1, 3, 8, 8)


def _conftest(bundles: Any) -> Any:
    return sys.modules[type(bundles).__module__]


def test_without_ray_the_extra_is_named(
    bundles: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "edgekit.serve.ray_run", raising=False)
    assert main(["serve", str(bundles.scores), "--engine", "ray"]) == 3
    assert "pip install 'edgekit[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--replicas", "2"], "add --engine ray"),
        (["--engine", "ray", "--linger-s", "1"], "--linger-s has no meaning with --engine ray"),
    ],
)
def test_options_that_only_one_engine_has(
    bundles: Any, options: list[str], says: str, capsys: Any
) -> None:
    assert main(["serve", str(bundles.scores), *options]) == 2
    assert says in capsys.readouterr().err


def test_numbers_of_replicas() -> None:
    from edgekit.serve.ray_app import ModelArgs, RayArgs, autoscaling

    models = (ModelArgs(path="m"),)
    assert autoscaling(RayArgs(models=models, replicas=3)) is None
    scaled = autoscaling(RayArgs(models=models, max_replicas=4, workers=2))
    assert scaled is not None
    assert (scaled["min_replicas"], scaled["max_replicas"]) == (1, 4)
    # One more than are asked for, while a version takes another's place.
    assert RayArgs(models=models, max_replicas=4, workers=2).reserved_cores == 10
    with pytest.raises(UsageError, match="at least 3 replicas are more than at most 2"):
        autoscaling(RayArgs(models=models, min_replicas=3, max_replicas=2))
    with pytest.raises(UsageError, match="a fixed number"):
        autoscaling(RayArgs(models=models, replicas=2, max_replicas=3))


def test_keys_let_nobody_load_on_one_replica(tmp_path: Path, bundles: Any) -> None:
    from edgekit.serve.ray_app import ModelArgs, RayArgs

    keys = tmp_path / "keys"
    keys.touch(0o600)
    keys.write_text("root admin 0123456789abcdef\n")
    args = RayArgs(models=(ModelArgs(path=str(bundles.scores)),), keys=str(keys))
    caller = args.handler().keys.caller({"x-api-key": "0123456789abcdef"})
    assert caller.name == "root" and not caller.admin


@contextlib.contextmanager
def _load(server: Any, clients: int) -> Iterator[Counter[tuple[int, str]]]:
    """Clients that ask and ask: how often which status and version came back."""
    found: Counter[tuple[int, str]] = Counter()
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(0.02):
            try:
                status, document = server.infer("scores", {"x": X})
            except OSError as error:
                status, document = 0, {"model_version": repr(error)}
            found[status, document.get("model_version", "")] += 1

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _wait(condition: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_replicas_are_replaced_under_load(start: Any, bundles: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="pip install 'edgekit[ray]'")
    make = _conftest(bundles).scores_bundle
    served, second = tmp_path / "served", make(tmp_path / "second", version="2", factor=2.0)
    shutil.copytree(bundles.scores, served)
    server = start(served, "--engine", "ray", "--replicas", 2, "--max-body-mb", 0.05)
    schemas.validate(server.document)
    assert server.document["engine"] == "ray"
    _, first = server.infer("scores", {"x": X})
    direct = start(served, "--workers", 1, "--linger-s", 0)
    assert first == direct.infer("scores", {"x": X})[1]
    direct.stop()
    assert server.ask("GET", "/v2/health/ready")[0] == 200
    status, _, _ = server.ask("POST", "/v2/models/scores/infer", b"x" * 60_000)
    assert status == 413
    status, document = server.infer("scores", {"x": X[:, :1]})
    assert status == 400 and "shape" in document["error"]

    with _load(server, 4) as found:
        _wait(lambda: found[200, "1"] > 20, 60)
        served.rename(tmp_path / "first")
        shutil.copytree(second, served)
        server.process.send_signal(signal.SIGHUP)
        _wait(lambda: "another version is served" in server.log(), 300)
        before = found[200, "2"]
        _wait(lambda: found[200, "2"] > before + 20, 60)

        # What is no bundle any more changes nothing.
        (served / "manifest.json").write_bytes(b"{}")
        server.process.send_signal(signal.SIGHUP)
        _wait(lambda: "what is served stays as it was" in server.log(), 60)
        before = found[200, "2"]
        _wait(lambda: found[200, "2"] > before + 20, 60)

        # Neither does one whose answers are wrong, which a replica finds out.
        shutil.rmtree(served)
        make(served, version="3", good=False)
        server.process.send_signal(signal.SIGHUP)
        _wait(lambda: "no replica starts" in server.log(), 300)
        before = found[200, "2"]
        _wait(lambda: found[200, "2"] > before + 20, 60)
    assert set(found) == {(200, "1"), (200, "2")}, found
    _, answer = server.infer("scores", {"x": X})
    ours, theirs = (np.array(d["outputs"][0]["data"]) for d in (answer, first))
    np.testing.assert_array_equal(ours, 2 * theirs)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(120) == 0
    assert server.workers_gone()


@pytest.mark.slow
def test_serve_run_takes_the_exported_config(bundles: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="pip install 'edgekit[ray]'")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    out = tmp_path / "ray"
    command = ["serve", "export", str(bundles.scores), "--for", "ray", "-o", str(out)]
    assert main([*command, "--port", str(port)]) == 0
    script = "from ray.serve.scripts import cli; cli()"
    log = tmp_path / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", script, "run", str(out / "serve_config.yaml")],
            stdout=stream,
            stderr=stream,
            env={**ENVIRONMENT, "RAY_USAGE_STATS_ENABLED": "0"},
        )
    try:
        model = f"http://127.0.0.1:{port}/v2/models/scores"
        _wait(lambda: process.poll() is not None or _document(model) is not None, 200)
        document = _document(model)
        assert document is not None, log.read_text()
        assert document["versions"] == ["1"]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def _document(url: str) -> Any:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as reply:
        return json.loads(reply.read())
    return None


@pytest.mark.slow
def test_a_bundle_that_does_not_load_is_not_deployed(
    bundles: Any, tmp_path: Path, capsys: Any
) -> None:
    pytest.importorskip("ray", reason="pip install 'edgekit[ray]'")
    bad = _conftest(bundles).scores_bundle(tmp_path / "bad", good=False)
    command = [sys.executable, "-m", "edgekit.cli.main", "serve", str(bad), "--engine", "ray"]
    done = subprocess.run(
        [*command, "--port", "0", "--replicas", "1", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
    )
    assert done.returncode == 7, done.stderr
    assert json.loads(done.stdout)["schema"] == "edgekit.error/1"
    assert "no replica starts" in done.stderr
