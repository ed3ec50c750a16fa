"""TEL-08, 11, 16, 17: what the recorder counts, keeps, sends, and never does."""

from __future__ import annotations

import errno
import gzip
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
from faults import OK, FailingFiles, FakeClock, Scripted
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from edgekit import schemas
from edgekit.errors import BadData, Locked, UsageError
from edgekit.runtime import _upkeep, answers, cloud
from edgekit.runtime.attributes import ATTRIBUTES, DEVICES, KINDS, REASONS, allowed
from edgekit.runtime.bundle import Bundle
from edgekit.runtime.recorder import Recorder
from edgekit.runtime.schedule import Answer, Pace
from edgekit.runtime.spool import Spool


def recorder(folder: Path, *of: Any, **options: Any) -> Recorder:
    """One without threads, whose time is the test's."""
    settings: dict[str, Any] = {"background": False, "clock": FakeClock()}
    return Recorder(folder, *of, **(settings | options))


Made = Callable[..., Path]


@pytest.fixture
def made(
    tmp_path: Path,
    bundle_contents: tuple[dict[str, bytes], dict[str, Any]],
    write_directory: Callable[..., Path],
) -> Made:
    """Writes a bundle whose manifest is changed in some fields."""

    def write(**fields: Any) -> Path:
        files, manifest = bundle_contents
        return write_directory(tmp_path / "bundle", files, manifest | fields)

    return write


def upload_all(found: Recorder) -> None:
    while found.counts().pending:
        found.upload()


def metrics(transport: Scripted) -> dict[str, list[Any]]:
    """Data points by metric, of all that a server was sent."""
    points: dict[str, list[Any]] = {}
    for path, body, _ in transport.sent:
        if path != "/v1/metrics":
            continue
        message = ExportMetricsServiceRequest.FromString(gzip.decompress(body))
        for resource in message.resource_metrics:
            for metric in resource.scope_metrics[0].metrics:
                kind = metric.WhichOneof("data")
                points.setdefault(metric.name, []).extend(getattr(metric, kind).data_points)
    return points


def attributes(pairs: Any) -> dict[str, Any]:
    return {p.key: getattr(p.value, p.value.WhichOneof("value")) for p in pairs}


# -- counting -------------------------------------------------------------------------------------


def test_what_is_recorded_arrives_counted(tmp_path: Path) -> None:
    transport = Scripted(lambda path, body: OK)
    with recorder(tmp_path / "t", transport=lambda: transport) as found:
        found.give_consent()
        for i in range(100):
            # As numpy gives them, too.
            share, index = (np.float32(i / 100), np.int64(i % 3)) if i % 2 else (i / 100, i % 3)
            found.record(0.01 + i / 1e4, confidence=share, predicted=index, memory_bytes=5e7)
        found.record(0.5, source="cloud", reason="unsure")
        found.record(source="nonsense", reason="nonsense")
        found.record("text", confidence="text")  # type: ignore[arg-type]
        found.record_error(ValueError("secret"))
        found.record_error("timeout", source="cloud")
        assert found.flush()
        upload_all(found)
        assert found.counts().delivered == 1
    points = metrics(transport)
    durations = {
        attributes(p.attributes)["edgekit.source"]: p for p in points["edgekit.inference.duration"]
    }
    assert durations["device"].count == 100
    assert durations["cloud"].max == 0.5
    requests = {
        (a["edgekit.source"], a["edgekit.reason"]): p.as_int
        for p in points["edgekit.inference.requests"]
        for a in [attributes(p.attributes)]
    }
    assert requests[("device", "sure")] == 101
    assert requests[("none", "other")] == 1
    classes = [
        (attributes(p.attributes)["edgekit.class"], p.as_int)
        for p in points["edgekit.prediction.classes"]
    ]
    assert classes == [(0, 34), (1, 33), (2, 33)]
    errors = {
        attributes(p.attributes)["error.type"]: p.as_int for p in points["edgekit.inference.errors"]
    }
    assert errors == {"ValueError": 1, "timeout": 1}
    assert sum(points["edgekit.prediction.confidence"][0].bucket_counts) == 100


def test_a_routers_events_are_counted(tmp_path: Path) -> None:
    with recorder(tmp_path / "t") as found:
        found.give_consent()
        found.observe(
            SimpleNamespace(
                source="cloud",
                why="device-failed",
                confidence=None,
                total_ms=12.5,
                device="failed: MemoryError",
                cloud="answered",
            )
        )
        found.observe(
            SimpleNamespace(
                source=None,
                why="failed",
                confidence=0.2,
                total_ms=1.0,
                device="failed: com.example.Secret",
                cloud="failed: timeout",
            )
        )
        document = found.preview()
    values = {
        (metric["name"], *sorted(point["attributes"].values())): point.get("value")
        for metric in document["metrics"]
        for point in metric["points"]
    }
    assert values[("edgekit.inference.requests", "cloud", "device-failed")] == 1
    assert values[("edgekit.inference.requests", "failed", "none")] == 1
    assert values[("edgekit.inference.errors", "MemoryError", "device")] == 1
    assert values[("edgekit.inference.errors", "device", "other")] == 1
    assert values[("edgekit.inference.errors", "cloud", "timeout")] == 1


def test_a_routers_words_are_all_on_the_allow_list() -> None:
    assert {*answers.REASONS, "other"} == set(REASONS)
    assert set(cloud.KINDS) == set(KINDS)


def test_inputs_are_counted_against_the_bundles_reference(tmp_path: Path, made: Made) -> None:
    statistics: dict[str, Any] = {
        "inputs": {"x": {"n": 9, "mean": 1.0, "std": 2.0, "min": 0, "max": 3}}
    }
    path = made(reference_statistics=statistics)
    with Bundle.open(path) as bundle, recorder(tmp_path / "t", bundle, input_share=2) as found:
        found.give_consent()
        for _ in range(10):
            found.observe_inputs({"x": np.full((1, 2, 3), -5.0, np.float32)})  # every second
            found.observe_inputs({"x": np.full((1, 2, 3), 1.6, np.float32), "y": np.zeros(3)})
        for _ in range(4):
            found.observe_inputs({"x": np.full((1, 2, 3), np.nan, np.float32)})
        document = found.preview()
    assert document["resource"]["edgekit.bundle.digest"] == bundle.digest
    by_name = {metric["name"]: metric for metric in document["metrics"]}
    [mean] = by_name["edgekit.input.mean"]["points"]
    assert mean["attributes"] == {"edgekit.input": 0}
    # (1.6 - 1) / 2 = 0.3 lies in (0.25, 0.5]; a constant picture has no spread at all.
    assert {i: n for i, n in enumerate(mean["counts"]) if n} == {mean["edges"].index(0.5): 10}
    [spread] = by_name["edgekit.input.deviation"]["points"]
    assert spread["counts"][0] == 10


def test_a_preview_and_the_allow_list_say_the_same_as_the_schema(tmp_path: Path) -> None:
    written = schemas.load("telemetry")["$defs"]["attributes"]["properties"]
    assert written == {name: rule.to_schema() for name, rule in ATTRIBUTES.items()}
    root = Path(__file__).parents[2]
    assert set(DEVICES) == {path.stem for path in (root / "devices").glob("*.toml")} | {"other"}
    with recorder(tmp_path / "t", device_class="pixel-8", app_version="2.1") as found:
        found.give_consent()
        found.record(0.1, confidence=0.5, predicted=3, memory_bytes=1e8)
        document = found.preview()
    schemas.validate(document)
    assert document["resource"]["edgekit.device.class"] == "pixel-8"
    document["resource"]["user.email"] = "a@b.c"
    with pytest.raises(BadData):
        schemas.validate(document)
    for name, rule in ATTRIBUTES.items():  # both read a pattern in the same way
        for value in ("edgekit", "1.2.3", "1.2.3.4", "48.8566", "a" * 32, "linux\n", 5, -2, True):
            fits = jsonschema.Draft202012Validator(rule.to_schema()).is_valid(value)
            assert fits == rule.admits(value) or value in (True, "linux\n"), (name, value)


# -- TEL-17: consent ------------------------------------------------------------------------------


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    opened: list[str] = []

    def refuse(*args: object, **kwargs: object) -> None:
        opened.append("socket")
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield opened


def everything(found: Recorder) -> None:
    found.record(0.1, confidence=0.5, predicted=1)
    found.observe_inputs({"x": np.zeros((1, 2), np.float32)})
    found.record_error(ValueError())
    found.crash(ValueError())
    found.ota_result("installed")
    found.flush()


def test_tel_17_without_consent_nothing_is_kept_written_or_sent(
    tmp_path: Path, no_sockets: list[str]
) -> None:
    folder = tmp_path / "t"
    with Recorder(folder, endpoint="http://127.0.0.1:9", interval_s=0.01) as found:
        assert not found.consented
        everything(found)
        time.sleep(0.1)
        assert found.preview()["metrics"] == []
        assert found.counts().produced == 0
        with pytest.raises(UsageError):
            found.upload()
    assert not folder.exists()
    assert no_sockets == []


def test_tel_17_an_opt_out_erases_stops_and_outlives_a_restart(
    tmp_path: Path, no_sockets: list[str]
) -> None:
    folder = tmp_path / "t"
    with Recorder(folder, endpoint="http://127.0.0.1:9", interval_s=3600) as found:
        found.give_consent()
        everything(found)
        assert found.counts().pending == 3
        assert list((folder / "edgekit-spool").glob("*.seg"))
        found.withdraw()
        everything(found)
        assert found.counts().produced == 0
        assert found.preview()["metrics"] == []
        assert [path.name for path in (folder / "edgekit-spool").iterdir()] == ["lock"]
        names = [thread.name for thread in threading.enumerate()]
        assert not [name for name in names if name.startswith("edgekit-telemetry")]
    with Recorder(folder, endpoint="http://127.0.0.1:9", interval_s=0.01) as found:
        assert not found.consented
        everything(found)
        assert found.counts().produced == 0
    assert no_sockets == []
    with recorder(folder) as found:  # a new yes starts from nothing
        found.give_consent()
        assert found.counts().produced == 0
        everything(found)
        assert found.counts().pending == 3
    with recorder(folder) as found:
        assert found.consented
        assert found.counts().pending == 3


def test_tel_17_a_withdrawal_that_was_cut_short_is_completed_at_the_next_start(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "t"
    with recorder(folder) as found:
        found.give_consent()
        everything(found)
    for word in ("withdrawn\n", "given", "", "given\ngiven\n"):
        with Spool(folder / "edgekit-spool") as spool:
            spool.append("metric", b"left")
        (folder / "consent").write_text(word)
        with recorder(folder) as found:
            assert not found.consented
        assert not list((folder / "edgekit-spool").glob("*.seg"))


def test_tel_17_an_opt_out_of_a_recorder_that_was_closed_erases_too(tmp_path: Path) -> None:
    with recorder(tmp_path) as found:
        found.give_consent()
        everything(found)
        assert found.counts().pending == 3
    found.withdraw()
    assert not found.consented
    assert [path.name for path in (tmp_path / "edgekit-spool").iterdir()] == ["lock"]


def test_tel_17_an_opt_out_that_another_process_does_not_see_is_no_silent_one(
    tmp_path: Path,
) -> None:
    with recorder(tmp_path) as found:
        found.give_consent()
        child = os.fork()
        if child == 0:
            try:
                found.withdraw()
            except Locked:
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert not found.consented


def test_tel_17_what_is_being_sent_at_an_opt_out_is_broken_off(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with recorder(tmp_path / "t", endpoint=f"http://127.0.0.1:{port}", clock=None) as found:
            found.give_consent()
            everything(found)
            thread = threading.Thread(target=lambda: _ignoring(found.upload), daemon=True)
            thread.start()
            accepted, _ = server.accept()
            found.withdraw()
            thread.join(5)
            assert not thread.is_alive()
            accepted.close()


def _ignoring(call: Callable[[], object]) -> None:
    try:
        call()
    except Locked:
        return


# -- TEL-16: what never leaves --------------------------------------------------------------------

CANARIES = (
    "jane.doe@example.com", "192.168.17.23", "2001:db8::8a2e:370:7334", "48.85837,2.294481",
    "356938035643809", "FRITZ!Box 7590 XY", "/".join(("", "home", "jane", "holiday.jpg")),
    "Write a letter to my doctor about", "\x89PNG-canary-pixels",
)  # fmt: skip


@pytest.mark.parametrize("canary", CANARIES)
def test_tel_16_nothing_personal_is_in_the_spool_or_on_the_wire(
    tmp_path: Path, canary: str, made: Made
) -> None:
    class_ = type(canary.replace("\x00", ""), (Exception,), {"__module__": canary})
    path = made(
        name=canary,
        version=canary,
        labels=[canary] * 4,
        reference_statistics={"inputs": {"x": {"mean": 0.0, "std": 1.0}}, canary: canary},
    )
    transport = Scripted(lambda path, body: OK)
    bytes_ = np.frombuffer(canary.encode() * 10, np.uint8)
    folder = tmp_path / "t"
    with Bundle.open(path) as bundle:
        found = recorder(
            folder, bundle, bundle.artifacts[0], transport=lambda: transport,
            app_version=canary, device_class=canary, input_share=1,
        )  # fmt: skip
        with found:
            found.give_consent()
            found.record(0.1, source=canary, reason=canary)
            found.record(0.1, predicted=canary, confidence=canary)  # type: ignore[arg-type]
            found.observe_inputs({"x": bytes_.astype(np.float32), canary: bytes_})
            found.record_error(class_(canary), source=canary)
            found.record_error(canary)
            found.observe(
                SimpleNamespace(
                    source=canary,
                    why=canary,
                    confidence=None,
                    total_ms=1.0,
                    device=f"failed: {canary}",
                    cloud=f"failed: {canary}",
                )
            )
            found.ota_result(canary, reason=canary, from_version=canary, to_version=canary)
            with pytest.raises(class_), found.catching():
                raise class_(canary)
            assert found.flush()
            assert canary not in repr(found.preview())
            written = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
            upload_all(found)
    assert len(written) > 1000
    wire = b"".join(
        path.encode() + gzip.decompress(body) + repr(headers).encode()
        for path, body, headers in transport.sent
    )
    assert len(transport.sent) == 2
    forms = {canary.encode(), canary.encode("utf-16-le"), canary.encode().hex().encode()}
    for form in forms:
        assert form not in written
        assert form not in wire


def test_tel_16_attributes_that_are_not_on_the_list_are_dropped() -> None:
    given = {
        "service.name": "edgekit", "user.id": "jane", "host.name": "janes-phone",
        "edgekit.class": 3.5, "edgekit.device.class": "janes-phone", "error.type": None,
    }  # fmt: skip
    assert allowed(given) == {"service.name": "edgekit", "edgekit.device.class": "other"}


def test_tel_16_a_hash_of_the_stack_tells_places_apart_and_not_data(tmp_path: Path) -> None:
    def fail(where: int, what: str) -> None:
        if where:
            raise ValueError(what)
        raise ValueError(what)

    transport = Scripted(lambda path, body: OK)
    with recorder(tmp_path / "t", transport=lambda: transport) as found:
        found.give_consent()
        for where, what in ((0, "a"), (0, "b"), (1, "a")):
            with pytest.raises(ValueError, match=what), found.catching():
                fail(where, what)
        upload_all(found)
    message = ExportLogsServiceRequest.FromString(gzip.decompress(transport.sent[0][1]))
    records = [r.scope_logs[0].log_records[0] for r in message.resource_logs]
    about = [attributes(record.attributes) for record in records]
    hashes = [each["edgekit.stack.hash"] for each in about]
    assert hashes[0] == hashes[1] != hashes[2]
    assert {each["error.type"] for each in about} == {"ValueError"}
    assert [each["edgekit.sequence"] for each in about] == [1, 2, 3]
    assert len({each["event.id"] for each in about}) == 3
    assert {record.event_name for record in records} == {"edgekit.crash"}


# -- TEL-08: disks that fail ----------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_tel_08_while_the_disk_fails_counting_goes_on_in_bounded_memory_and_nothing_is_lost(
    tmp_path: Path, code: int
) -> None:
    broken = True

    def hook(name: str, _: str) -> None:
        if broken and name in ("append", "overwrite", "sync", "truncate"):
            raise OSError(code, os.strerror(code))

    transport = Scripted(lambda path, body: OK)
    with recorder(tmp_path / "t", transport=lambda: transport) as found:
        found.give_consent()
        assert found._station is not None
        spool = found._station.spool
        spool._shelf.files = spool._files = FailingFiles(spool._files, hook)
        for _ in range(30):
            for _ in range(10):
                found.record(0.1)
            found.crash(ValueError())
            assert not found.flush()
        for _ in range(70):
            found.crash(ValueError())
        assert found.counts().pending == 0
        assert found.counts().dropped == {"disk": 36}
        broken = False
        assert found.flush()
        assert found.flush()
        assert found.counts().conserved
        upload_all(found)
        assert found.counts().conserved
    total = sum(p.as_int for p in metrics(transport)["edgekit.inference.requests"])
    assert total == 300
    [told] = metrics(transport)["edgekit.telemetry.dropped"]
    assert told.as_int == 36
    assert attributes(told.attributes)["edgekit.drop.reason"] == "disk"


def test_drops_are_told_once_also_after_a_restart(tmp_path: Path) -> None:
    transport = Scripted(lambda path, body: Answer(500))
    with recorder(tmp_path / "t", transport=lambda: transport) as found:
        found.give_consent()
        found.record(0.1)
        found.flush()
        upload_all(found)  # dropped as refused
    transport = Scripted(lambda path, body: OK)
    for _ in range(3):
        with recorder(tmp_path / "t", transport=lambda: transport) as found:
            found.flush()
            upload_all(found)
            assert found.counts().conserved
    told = metrics(transport)["edgekit.telemetry.dropped"]
    assert [point.as_int for point in told] == [1]


# -- TEL-11: the end ------------------------------------------------------------------------------

PROCESS = """
import signal, sys, time
from edgekit.runtime.recorder import Recorder
from edgekit.runtime.schedule import Pace

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
pace = Pace(upload_s=0.01, first_s=0.01, longest_s=0.05)
with Recorder(sys.argv[1], endpoint=sys.argv[2], pace=pace, interval_s=0.05) as recorder:
    recorder.give_consent()
    for i in range(500):
        recorder.ota_result("installed", release=i)
    recorder.record(0.1)
    print("ready", flush=True)
    while True:
        recorder.record(0.1)
        time.sleep(0.001)
"""


def test_tel_11_sigterm_with_a_full_queue_and_a_silent_server_ends_in_time_and_loses_nothing(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path / "t"), endpoint], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.3)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert time.monotonic() - start <= 5
        process.stdout.close()
    transport = Scripted(lambda path, body: OK)
    with recorder(tmp_path / "t", transport=lambda: transport) as found:
        before = found.counts()
        assert before.dropped == {}
        assert before.delivered == 0
        assert before.pending > 500
        upload_all(found)
        assert found.counts().delivered == before.pending
        assert found.counts().conserved


def test_names_of_two_days_have_nothing_that_tells_they_are_one_device(tmp_path: Path) -> None:
    clock = FakeClock(wall=20_000 * 86_400 - 150.123456789)
    transport = Scripted(lambda path, body: OK)
    with recorder(tmp_path / "t", transport=lambda: transport, clock=clock) as found:
        found.give_consent()
        for _ in range(5):
            found.record(0.1)
            found.crash(ValueError())
            assert found.flush()
            clock.advance(60)
        upload_all(found)
    seen: dict[str, list[tuple[str, int]]] = {}
    for path, body, _ in transport.sent:
        logs = path == "/v1/logs"
        message: Any = ExportLogsServiceRequest() if logs else ExportMetricsServiceRequest()
        message.ParseFromString(gzip.decompress(body))
        for resource in message.resource_logs if logs else message.resource_metrics:
            name = attributes(resource.resource.attributes)["service.instance.id"]
            if logs:
                (record,) = resource.scope_logs[0].log_records
                marks, times = record.attributes, [record.time_unix_nano]
            else:
                metric = resource.scope_metrics[0].metrics[0]
                (point,) = getattr(metric, metric.WhichOneof("data")).data_points
                marks, times = metric.metadata, [point.start_time_unix_nano, point.time_unix_nano]
            assert not any(time % 10**9 for time in times)
            seen.setdefault(name, []).append((path, attributes(marks)["edgekit.sequence"]))
    assert len(seen) == 2
    for path in ("/v1/metrics", "/v1/logs"):
        counted = [[n for at, n in found if at == path] for found in seen.values()]
        assert sorted(counted) == [[1, 2], [1, 2, 3]]


def test_what_is_no_word_at_all_is_counted_as_none_or_not_at_all(tmp_path: Path) -> None:
    odd: Any = ["a list"]
    with recorder(tmp_path) as found:
        found.give_consent()
        found.record(odd, source=odd, reason=odd, confidence=odd, predicted=odd, memory_bytes=odd)
        found.record(0.1, source="elsewhere", reason="no idea")
        names = {metric["name"]: metric for metric in found.preview()["metrics"]}
        (point,) = names["edgekit.inference.requests"]["points"]
        assert (point["attributes"]["edgekit.source"], point["value"]) == ("none", 1)


@pytest.mark.parametrize("rotate_s", [0.0, -1.0, float("nan")])
def test_a_name_that_would_never_change_is_refused(tmp_path: Path, rotate_s: float) -> None:
    with pytest.raises(UsageError, match="rotate_s"):
        recorder(tmp_path, rotate_s=rotate_s)


def test_a_transport_of_the_apps_that_fails_does_not_end_all_sending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_upkeep, "_AGAIN_S", 0.01)
    failures = iter([ValueError(), KeyError()])

    def answer(path: str, body: bytes) -> Answer:
        for error in failures:
            raise error
        return OK

    server, pace = Scripted(answer), Pace(upload_s=0.02)
    with Recorder(tmp_path, transport=lambda: server, interval_s=3600, pace=pace) as found:
        found.give_consent()
        found.crash(ValueError())
        end = time.monotonic() + 30
        while not found.counts().delivered and time.monotonic() < end:
            time.sleep(0.01)
        assert found.counts().delivered == 1
    assert len(server.sent) == 3


def test_threads_record_together_and_every_call_is_counted(tmp_path: Path) -> None:
    transport = Scripted(lambda path, body: OK)
    with recorder(tmp_path / "t", transport=lambda: transport) as found:
        found.give_consent()

        def work() -> None:
            for _ in range(2000):
                found.record(0.1, predicted=1)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            found.flush()
        for thread in threads:
            thread.join()
        found.flush()
        upload_all(found)
    assert sum(p.as_int for p in metrics(transport)["edgekit.prediction.classes"]) == 8000


def test_a_recorder_in_a_forked_child_is_off(tmp_path: Path) -> None:
    with recorder(tmp_path / "t") as found:
        found.give_consent()
        child = os.fork()
        if child == 0:
            found.record(0.1)
            found.crash(ValueError())
            os._exit(0 if found.preview()["metrics"] == [] and not found.flush() else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert found.counts().produced == 0
