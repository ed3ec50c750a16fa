"""A model under its name, without a server: what is refused, swapped, ended and cleaned up."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import BadData, StorageError
from edgekit.serve.call import Call
from edgekit.serve.engine import EngineSettings
from edgekit.serve.handler import Handler
from edgekit.serve.hosted import Hosted
from edgekit.serve.refusal import Refusal


def run(job: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(job, 60))


def _infer(body: bytes, **headers: str) -> Call:
    async def read() -> bytes:
        return body

    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Call("POST", "/v2/models/lookup/infer", names, read)


def _busy(n: int) -> Call:
    entry = {"name": "n", "shape": [1, 1], "datatype": "INT64", "data": [n]}
    body = json.dumps({"inputs": [entry]}).encode()

    async def read() -> bytes:
        return body

    return Call("POST", "/v2/models/busy/infer", {}, read)


def test_json_is_no_longer_than_the_models_tensors_can_be(bundles: Any) -> None:
    async def job() -> None:
        model = Hosted(bundles.lookup, None, EngineSettings())
        await model.load()
        handler = Handler([model])
        entry = {"name": "i", "shape": [1, 2], "datatype": "INT64"}
        body = json.dumps({"inputs": [{**entry, "data": [0, 1]}]}).encode()
        for size, status in ((2**20, 200), (2**20 + 1, 413)):
            reply = await handler.handle(_infer(body + b" " * (size - len(body))))
            assert reply.status == status, reply.body
            length = {"inference_header_content_length": str(size)}
            reply = await handler.handle(_infer(body + b" " * (size - len(body)), **length))
            assert reply.status == status, reply.body
        await model.close()

    run(job())


def test_a_version_that_finishes_in_peace_is_ended_with_the_server(
    bundles: Any, per_second: int
) -> None:
    async def job() -> None:
        model = Hosted(bundles.busy, None, EngineSettings())
        before = await model.load()
        handler = Handler([model])
        long = asyncio.create_task(handler.handle(_busy(20 * per_second)))
        while not before.engine.running:
            await asyncio.sleep(0.01)
        after = await model.load()
        pids = [*before.engine.pids, *after.engine.pids]
        assert model.measured().swaps == 1
        assert before.folder.exists() and after.folder.exists() and len(pids) == 2
        await model.close()
        assert (await long).status == 503
        assert not before.folder.exists() and not after.folder.exists()
        for pid in pids:
            await _ends(pid)

    run(job())


async def _ends(pid: int) -> None:
    for _ in range(500):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{pid} goes on")


def test_a_version_that_is_loaded_while_the_server_ends_is_not_put_in(bundles: Any) -> None:
    async def job() -> None:
        model = Hosted(bundles.lookup, None, EngineSettings())
        loading = asyncio.create_task(model.load())
        await asyncio.sleep(0.05)
        await model.close()
        with pytest.raises(Refusal) as caught:
            await loading
        assert caught.value.status == 503 and model.version is None

    run(job())
    assert not list(Path(tempfile.gettempdir()).glob(f"edgekit-serve-{os.getpid()}-*"))


def test_another_models_bundle_does_not_take_its_place(bundles: Any, tmp_path: Path) -> None:
    async def job() -> None:
        path = tmp_path / "served"
        shutil.copytree(bundles.lookup, path)
        model, renamed = (Hosted(path, None, EngineSettings(), name) for name in (None, "mine"))
        version = await model.load()
        shutil.rmtree(path)
        shutil.copytree(bundles.types, path)
        with pytest.raises(BadData, match="the bundle is now 'types', not 'lookup'"):
            await model.load()
        assert model.ready and model.version is version
        # Under a name that was given it may be any.
        assert (await renamed.load()).name == "mine"
        await model.close()
        await renamed.close()

    run(job())


def test_a_disk_that_is_full(bundles: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))

    async def job() -> None:
        model = Hosted(bundles.lookup, None, EngineSettings())
        with pytest.raises(StorageError):
            await model.load()
        assert model.state == "failed"

    run(job())
