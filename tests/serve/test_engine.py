"""The engine without HTTP: deadlines, clients that leave, batches, dying workers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import EdgekitError
from edgekit.runtime.bundle import Bundle
from edgekit.serve.choice import choose
from edgekit.serve.engine import Engine, EngineSettings
from edgekit.serve.handler import Handler
from edgekit.serve.hosted import Hosted
from edgekit.serve.refusal import Refusal
from edgekit.serve.work import Outcome, Work
from edgekit.serve.workforce import back_off_s

SECOND = 1_000_000_000


def run(job: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(job, 60))


@contextlib.asynccontextmanager
async def engine(path: Path, id: str | None = None, **settings: Any) -> AsyncIterator[Engine]:
    with Bundle.open(path) as bundle:
        made = Engine(path, bundle.digest, choose(bundle, id), EngineSettings(**settings))
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def work(*inputs: Any, seconds: float = 30.0) -> Work:
    arrays = [np.asarray(value) for value in inputs]
    now = time.monotonic_ns()
    return Work(arrays, len(arrays[0]), now + int(seconds * SECOND), now)


async def status(engine: Engine, work: Work) -> int:
    try:
        await engine.run(work)
    except Refusal as refusal:
        return refusal.status
    return 200


async def until(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


# -- deadlines and clients that leave -------------------------------------------------------------


def test_srv_05_a_deadline_in_the_queue_is_504_and_never_executed(
    bundles: Any, per_second: int
) -> None:
    async def job() -> None:
        async with engine(bundles.busy) as busy:
            long = asyncio.create_task(busy.run(work([[per_second // 2]])))
            await until(lambda: busy.running == 1)
            late = [work([[1]], seconds=0.1) for _ in range(5)]
            begun = time.monotonic()
            assert await asyncio.gather(*(status(busy, w) for w in late)) == [504] * 5
            assert time.monotonic() - begun < 0.4
            await long
            assert await status(busy, work([[1]])) == 200
            assert busy.executions == 2
            assert await status(busy, work([[1]], seconds=-1)) == 504
            assert busy.executions == 2 and busy.queued == 0

    run(job())


def test_srv_06_clients_that_leave_free_their_place(bundles: Any, per_second: int) -> None:
    async def job() -> None:
        async with engine(bundles.busy) as busy:
            long = asyncio.create_task(busy.run(work([[per_second // 4]])))
            await until(lambda: busy.running >= 1)
            waiting = [work([[i + 1]]) for i in range(50)]
            tasks = [asyncio.create_task(busy.run(w)) for w in waiting]
            await asyncio.sleep(0.02)
            kept = [
                (w, t) for i, (w, t) in enumerate(zip(waiting, tasks, strict=True)) if i % 5 == 0
            ]
            for i, task in enumerate(tasks):
                if i % 5:
                    task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            await long
            found = [a for a in answers if isinstance(a, Outcome)]
            assert [int(a.outputs[0][0, 0]) for a in found] == [i + 1 for i in range(0, 50, 5)]
            assert len(kept) == len(found) and busy.queued == 0
            # What had not begun was not run: the first, the kept, and few that were on the way.
            assert busy.executions <= 1 + len(kept) + 4
            assert (
                await asyncio.gather(*(status(busy, work([[2]])) for _ in range(20))) == [200] * 20
            )

    run(job())


# -- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["openvino-fp32", "onnxruntime-fp32"])
def test_srv_07_batched_answers_are_the_serial_ones(bundles: Any, id: str) -> None:
    async def job() -> None:
        rng = np.random.default_rng(0)
        sizes = rng.integers(1, 6, 60)
        inputs = [rng.integers(0, 256, (n, 3, 8, 8)).astype(np.float32) for n in sizes]
        with Bundle.open(bundles.scores) as bundle:
            session = bundle.session(bundle.artifact(id))
            serial = [
                np.concatenate([session.run({"x": row[None]})["y"] for row in x]) for x in inputs
            ]
        async with engine(bundles.scores, id, batch=8, delay_ms=5) as scores:
            assert scores.found.batches == (2, 4, 8), scores.found.notes
            answers = await asyncio.gather(*(scores.run(work(x)) for x in inputs))
            for answer, expected in zip(answers, serial, strict=True):
                assert answer.outputs[0].tobytes() == expected.tobytes()
            assert scores.executions < sum(sizes) / 2

    run(job())


def test_srv_07_a_poison_item_fails_alone(bundles: Any) -> None:
    async def job() -> None:
        async with engine(bundles.lookup, batch=8, delay_ms=50) as lookup:
            assert lookup.found.batches == (2, 4, 8)
            rows = [[[i, 9 - i]] for i in range(7)]
            rows.insert(3, [[0, 10]])
            works = [work(row) for row in rows]
            answers = await asyncio.gather(*map(lookup.run, works), return_exceptions=True)
            for i, answer in enumerate(answers):
                if i == 3:
                    assert isinstance(answer, Refusal) and answer.status == 500
                else:
                    assert isinstance(answer, Outcome)
                    np.testing.assert_array_equal(answer.outputs[0], np.array(rows[i]) * 3 + 1)
            assert await status(lookup, work([[1, 1]])) == 200

    run(job())


def test_srv_07_a_batch_that_gives_other_bits_is_not_used(tmp_path: Path, bundles: Any) -> None:
    """A graph whose answer depends on what else is in the batch."""
    from onnx import helper

    conftest = _conftest(bundles)
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    content = conftest.graph(
        nodes, {"x": (np.float32, ["n", 2])}, {"y": (np.float32, ["n", 2])}, {}
    )
    x = np.array([[1, 2], [5, 3], [4, 4]], np.float32)
    from edgekit.signature import Signature, TensorSpec

    path = conftest.write_bundle(
        tmp_path / "mixed",
        "mixed",
        Signature((TensorSpec("x", (1, 2)),), (TensorSpec("y", (1, 2)),)),
        {"onnxruntime": {"net.onnx": content}},
        ({"x": x}, {"y": x - x.max(axis=1, keepdims=True)}),
    )

    async def job() -> None:
        async with engine(path, batch=4) as mixed:
            assert mixed.found.batches == ()
            assert any("other bits" in note for note in mixed.found.notes)
            answer = await mixed.run(work(x))
            np.testing.assert_array_equal(answer.outputs[0], [[-1, 0], [0, -2], [0, 0]])
            assert mixed.executions == 3

    run(job())


def _conftest(bundles: Any) -> Any:
    import sys

    return sys.modules[type(bundles).__module__]


def test_srv_08_a_lone_request_waits_no_longer_than_it_should(bundles: Any) -> None:
    async def job() -> None:
        async with engine(bundles.scores, "onnxruntime-fp32", batch=8, delay_ms=100) as scores:
            x = np.ones((1, 3, 8, 8), np.float32)
            begun = time.monotonic()
            answer = await scores.run(work(x))
            assert 0.09 <= time.monotonic() - begun < 0.5 and answer.queue_us >= 90_000
        async with engine(bundles.scores, "onnxruntime-fp32") as scores:
            answer = await scores.run(work(x))
            assert answer.queue_us < 50_000

    run(job())


def test_srv_08_one_and_eight_are_two_requests_nine_inferences_one_execution(bundles: Any) -> None:
    async def job() -> None:
        settings = {"batch": 9, "delay_ms": 200.0}
        async with engine(bundles.scores, "onnxruntime-fp32", **settings) as scores:
            assert scores.found.batches == (2, 4, 8, 9)
            x = np.ones((9, 3, 8, 8), np.float32)
            await asyncio.gather(scores.run(work(x[:1])), scores.run(work(x[1:])))
            assert scores.executions == 1
            # Never more than nine at once.
            await asyncio.gather(*(scores.run(work(x[:4])) for _ in range(4)))
            assert scores.executions == 3

    run(job())


# -- death ----------------------------------------------------------------------------------------


def test_srv_11_a_killed_worker_fails_its_own_requests_and_comes_back(
    bundles: Any, per_second: int
) -> None:
    async def job() -> None:
        async with engine(bundles.busy) as busy:
            running = asyncio.create_task(status(busy, work([[per_second]])))
            await until(lambda: busy.running == 1)
            waiting = asyncio.create_task(status(busy, work([[1]])))
            await asyncio.sleep(0.05)
            os.kill(busy.pids[0], signal.SIGKILL)
            assert await running == 500
            assert busy.alive == 0
            # It waits for the next worker, as its deadline allows.
            assert await waiting == 200
            assert busy.alive == 1 and not busy.looping

    run(job())


def test_srv_11_a_crash_loop_ends_in_not_ready_and_nothing_hangs(bundles: Any) -> None:
    async def job() -> None:
        hosted = Hosted(bundles.busy, None, EngineSettings())
        await hosted.load()
        assert hosted.version is not None and hosted.ready
        engine = hosted.version.engine
        for _ in range(4):
            await until(lambda: engine.alive == 1)
            os.kill(engine.pids[0], signal.SIGKILL)
            await until(lambda: engine.alive == 0)
            assert not hosted.ready
        assert engine.looping and not hosted.ready
        with pytest.raises(Refusal) as caught:
            hosted.current()
        assert caught.value.status == 503
        await hosted.close()

    run(job())


def test_srv_11_a_worker_that_hangs_is_replaced(bundles: Any) -> None:
    async def job() -> None:
        async with engine(bundles.busy, hang_s=0.5) as busy:
            os.kill(busy.pids[0], signal.SIGSTOP)
            assert await status(busy, work([[1]])) == 500
            assert await status(busy, work([[1]])) in (200, 503)
            await until(lambda: busy.alive == 1)
            assert await status(busy, work([[1]])) == 200

    run(job())


# -- readiness ------------------------------------------------------------------------------------


def test_srv_10_ready_only_after_a_warm_up_that_passed(bundles: Any, tmp_path: Path) -> None:
    conftest = _conftest(bundles)

    async def job() -> None:
        assert not Handler([]).ready
        hosted = Hosted(bundles.lookup, None, EngineSettings())
        handler = Handler([hosted])
        assert hosted.state == "loading" and not handler.ready
        loading = asyncio.create_task(hosted.load())
        await asyncio.sleep(0.05)
        assert not handler.ready
        with pytest.raises(Refusal) as caught:
            hosted.current()
        assert caught.value.status == 503
        await loading
        assert handler.ready
        handler.draining = True
        assert not handler.ready
        await hosted.close()
        assert not hosted.ready

        bad = Hosted(conftest.scores_bundle(tmp_path / "bad", good=False), None, EngineSettings())
        with pytest.raises(EdgekitError, match="golden samples give"):
            await bad.load()
        assert bad.state == "failed" and not bad.ready and "golden" in bad.reason

    run(job())


def test_srv_11_what_a_dead_worker_never_got_is_run_by_the_next(bundles: Any) -> None:
    async def job() -> None:
        async with engine(bundles.lookup) as lookup:
            os.kill(lookup.pids[0], signal.SIGKILL)
            # Nothing else runs meanwhile: the engine has not seen the death yet.
            os.waitid(os.P_PID, lookup.pids[0], os.WEXITED | os.WNOWAIT)
            assert await status(lookup, work([[0, 1]])) == 200
            assert lookup.executions == 1

    run(job())


def test_srv_11_a_server_out_of_files_gets_its_workers_back(bundles: Any) -> None:
    async def job() -> None:
        async with engine(bundles.lookup) as lookup:
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            os.kill(lookup.pids[0], signal.SIGKILL)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
            try:
                await until(lambda: not lookup.alive)
                await asyncio.sleep(0.3)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
            await until(lambda: lookup.alive)
            assert await status(lookup, work([[0, 1]])) == 200

    run(job())


def test_srv_11_a_worker_that_died_comes_back_soon_though_others_answer() -> None:
    assert [back_off_s(deaths) for deaths in (0, 1, 2, 100)] == [0.1, 0.1, 0.2, 5.0]
