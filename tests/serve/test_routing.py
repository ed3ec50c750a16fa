"""The device's router and client against the real server: a stall, kill -9, a full queue."""

from __future__ import annotations

import collections
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import CloudError
from edgekit.runtime.answers import Event
from edgekit.runtime.bundle import Bundle
from edgekit.runtime.cloud import Cloud
from edgekit.runtime.guards import Breaker
from edgekit.runtime.policy import Policy
from edgekit.runtime.router import Router
from edgekit.signature import TensorSpec

XS = np.random.default_rng(9).integers(0, 256, (50, 1, 3, 8, 8)).astype(np.float32)
COUNT = (TensorSpec("count", (1, 1), "int64"),)


def expected(bundle: Bundle) -> list[np.ndarray]:
    """What the artifact on the device answers to each of `XS`; the cloud's is twice that."""
    session = bundle.session(bundle.artifact("onnxruntime-fp32"))
    found = [session.run({"x": x})["y"] for x in XS]
    session.close()
    return found


def test_a_server_that_stalls_or_is_killed_costs_no_answer(
    start: Any, bundles: Any, tmp_path: Path
) -> None:
    conftest = sys.modules[type(bundles).__module__]
    twice = conftest.scores_bundle(tmp_path / "twice", version="2", factor=2.0)
    server = start(twice, "--workers", 1)
    events: list[Event] = []
    policy = Policy(temperature=50.0, min_confidence=1.0, otherwise="cloud")
    with (
        Bundle.open(bundles.scores) as bundle,
        Cloud(f"{server.url}/v2/models/scores", breaker=Breaker(open_s=0.3)) as cloud,
        Router(
            bundle, cloud, policy, artifact="onnxruntime-fp32", conditions=None,
            observer=events.append, hedge=False,
        ) as router,
    ):  # fmt: skip
        right = expected(bundle)

        def ask(i: int, deadline_ms: float) -> str:
            started = time.monotonic()
            answer = router.answer({"x": XS[i]}, deadline_ms=deadline_ms)
            assert 1000 * (time.monotonic() - started) < deadline_ms + 1000
            factor = 2 if answer.source == "cloud" else 1
            np.testing.assert_array_equal(answer.outputs["y"], factor * right[i])
            assert answer.version == ("2" if answer.source == "cloud" else "1")
            return f"{answer.source} {answer.why}"

        assert {ask(i, 20_000) for i in range(20)} == {"cloud unsure"}
        # A network that stalls: nobody closes anything, nothing comes.
        stalled = [server.process.pid, *server.workers()]
        for pid in stalled:
            os.kill(pid, signal.SIGSTOP)
        found = collections.Counter(ask(i, 300) for i in range(20))
        assert set(found) <= {"device deadline", "device cloud-unavailable"}
        assert found["device cloud-unavailable"] > 5  # the breaker opened
        for pid in stalled:
            os.kill(pid, signal.SIGCONT)
        end = time.monotonic() + 20
        while ask(0, 20_000) != "cloud unsure":
            assert time.monotonic() < end
            time.sleep(0.05)
        # kill -9, while requests are under way.
        killer = threading.Timer(0.1, server.kill)
        killer.start()
        found = collections.Counter()
        while killer.is_alive() or not found["device cloud-unavailable"]:
            found[ask(len(events) % len(XS), 2000)] += 1
            assert sum(found.values()) < 100_000
        killer.join()
    assert all(event.source is not None for event in events)


def test_keys_a_full_queue_and_a_deadline_in_the_queue(
    start: Any, bundles: Any, per_second: int, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("phone key-of-the-phone-0123456789\n")
    keys.chmod(0o600)
    server = start(bundles.busy, "--workers", 1, "--queue", 1, "--keys", keys)
    url = f"{server.url}/v2/models/busy"
    one = {"n": np.array([[1]])}
    with Cloud(url, api_key="another-key-0123456789-0123") as cloud:
        with pytest.raises(CloudError) as caught:
            cloud.infer(one, COUNT, timeout_ms=10_000)
        assert (caught.value.kind, caught.value.attempts) == ("refused", 1)
        assert "another-key" not in str(caught.value)
    with Cloud(url, api_key="key-of-the-phone-0123456789", attempts=1) as cloud:
        assert cloud.metadata(timeout_ms=10_000).outputs == COUNT
        assert cloud.infer(one, COUNT, timeout_ms=10_000).outputs["count"] == 1
        kinds: list[str] = []

        def flood() -> None:
            with Cloud(url, api_key="key-of-the-phone-0123456789", attempts=1) as mine:
                try:
                    long = {"n": np.array([[per_second]])}
                    answer = mine.infer(long, COUNT, timeout_ms=20_000)
                    assert answer.outputs["count"] == per_second
                    kinds.append("answered")
                except CloudError as error:
                    kinds.append(error.kind)
                    if error.kind == "busy":
                        kinds.append(f"wait {error.retry_after_s is not None}")
                        assert mine.unavailable() == "told-to-wait"

        threads = [threading.Thread(target=flood) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = collections.Counter(kinds)
        assert set(found) == {"answered", "busy", "wait True"}
        assert found["answered"] + found["busy"] == 6
        # Its deadline passes in the queue, or while it runs; either way the client is told in time.
        started = time.monotonic()
        with pytest.raises(CloudError) as caught:
            cloud.infer({"n": np.array([[20 * per_second]])}, COUNT, timeout_ms=300)
        assert caught.value.kind == "timeout"
        assert time.monotonic() - started < 3
