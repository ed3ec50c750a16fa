"""TEL-01, 02, 03, 09, 10: what an uploader makes of answers, and when it speaks."""

from __future__ import annotations

import email.utils
import gzip
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from faults import OK, FakeClock, Scripted
from fleet import Fleet, simulate

from edgekit.errors import UsageError
from edgekit.runtime import otlp
from edgekit.runtime.schedule import Answer, Conditions, Pace, Schedule, Verdict, judge, retry_after
from edgekit.runtime.spool import Spool
from edgekit.runtime.uploader import HttpTransport, Uploader


def response(count: int, message: str = "") -> bytes:
    partial = {"rejected": count, "error_message": message}
    return otlp.encode("ExportMetricsServiceResponse", {"partial_success": partial})


def filled(folder: Path, n: int = 8, stream: str = "metric", *, clock: FakeClock) -> Spool:
    spool = Spool(folder, clock=clock)
    for i in range(n):
        spool.append(stream, b"record %d" % i)
    return spool


# -- TEL-01: answers ------------------------------------------------------------------------------

PROTOBUF = "application/x-protobuf"
MATRIX = [
    # answer, delivered, dropped, pending of 8 records after one request
    (Answer(200, content_type=PROTOBUF), 8, {}, 0),
    (Answer(200), 8, {}, 0),
    (Answer(202, content_type=PROTOBUF), 8, {}, 0),
    (Answer(200, content_type=PROTOBUF, body=response(3, "bad")), 5, {"rejected": 3}, 0),
    (Answer(200, content_type=PROTOBUF, body=response(99)), 0, {"rejected": 8}, 0),
    (Answer(200, content_type=PROTOBUF, body=response(0, "slow down")), 8, {}, 0),
    (Answer(200, content_type="text/html", body=b"<html>Log in"), 0, {}, 8),
    (Answer(200, content_type=PROTOBUF, body=b"\xff"), 0, {}, 8),
    (Answer(302), 0, {}, 8),
    (Answer(400), 0, {}, 8),  # split: tried again in halves
    (Answer(413), 0, {}, 8),
    *((Answer(status), 0, {"refused": 8}, 0) for status in (401, 403, 404, 405, 408, 415, 422)),
    *((Answer(status), 0, {"refused": 8}, 0) for status in (500, 501, 505)),
    *((Answer(status), 0, {}, 8) for status in (429, 502, 503, 504)),
    (Answer(None), 0, {}, 8),
]


@pytest.mark.parametrize(
    ("answer", "delivered", "dropped", "pending"), MATRIX, ids=lambda x: getattr(x, "status", "")
)
def test_tel_01_each_answer_has_the_fate_that_otlp_gives_it(
    tmp_path: Path, answer: Answer, delivered: int, dropped: dict[str, int], pending: int
) -> None:
    clock = FakeClock()
    with filled(tmp_path / "spool", clock=clock) as spool:
        transport = Scripted(lambda path, body: answer)
        uploader = Uploader(spool, transport, clock=clock)
        assert uploader.step() > 0
        counts = spool.counts()
        assert (counts.delivered, counts.dropped, counts.pending) == (delivered, dropped, pending)
        assert counts.conserved
        assert sum(uploader.fates.values()) == len(transport.sent) == 1


def test_tel_01_a_batch_is_gzip_of_the_records_in_their_order(tmp_path: Path) -> None:
    clock = FakeClock()
    with filled(tmp_path / "spool", 3, clock=clock) as spool:
        spool.append("event", b"event")
        transport = Scripted(lambda path, body: OK)
        uploader = Uploader(spool, transport, clock=clock)
        uploader.step()
        uploader.step()
        (first, _, headers), (second, body, _) = transport.sent
        assert (first, second) == ("/v1/logs", "/v1/metrics")
        assert headers["Content-Type"] == PROTOBUF
        assert headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(body) == b"".join(b"\x0a\x08record %d" % i for i in range(3))


@pytest.mark.parametrize("status", [401, 403])
def test_tel_01_only_a_flag_keeps_what_is_refused_for_its_credentials(
    tmp_path: Path, status: int
) -> None:
    clock = FakeClock()
    with filled(tmp_path / "spool", clock=clock) as spool:
        answers = [Answer(status), Answer(status), OK]
        transport = Scripted(lambda path, body: answers[len(transport.sent) - 1])
        uploader = Uploader(spool, transport, clock=clock, hold_on_auth=True)
        for _ in range(2):
            uploader.step()
            assert spool.counts().pending == 8
        uploader.step()
        assert spool.counts().delivered == 8


# -- TEL-01 over real sockets ---------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    daemon_threads = True
    mode = "ok"
    bodies: list[bytes]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(gzip.decompress(body))
        mode = self.server.mode
        if mode == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            self.connection.close()
            return
        if mode == "silent":
            threading.Event().wait(3)
            return
        if mode == "dripping":
            for _ in range(40):
                self.wfile.write(b"H")
                self.wfile.flush()
                if threading.Event().wait(0.1):
                    return
        if mode == "endless":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
            for _ in range(64):
                self.wfile.write(bytes(1 << 16))
            return
        self.send_response(302 if mode == "redirect" else 200)
        if mode == "redirect":
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Type", PROTOBUF)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            return


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as found:
        found.bodies = []
        found.handle_error = lambda *_: None  # type: ignore[method-assign,assignment]
        thread = threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "mode", ["ok", "reset", "silent", "dripping", "endless", "redirect", "nobody", "tls"]
)
def test_tel_01_over_a_real_socket(tmp_path: Path, server: Server, mode: str) -> None:
    server.mode = mode
    clock = FakeClock()
    port = server.server_port
    if mode == "nobody":
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
    scheme = "https" if mode == "tls" else "http"
    context = ssl.create_default_context() if mode == "tls" else None
    transport = HttpTransport(f"{scheme}://127.0.0.1:{port}/in/", timeout_s=0.5, context=context)
    with filled(tmp_path / "spool", clock=clock) as spool:
        Uploader(spool, transport, clock=clock).step()
        counts = spool.counts()
        assert counts.conserved
        assert (counts.delivered, counts.pending) == ((8, 0) if mode == "ok" else (0, 8))
    assert len(server.bodies) == (0 if mode in ("nobody", "tls") else 1)


@pytest.mark.parametrize(
    ("endpoint", "what"),
    [
        ("ftp://x", "no http or https"),
        ("collector:4318", "no http or https"),
        ("http://collector.example:4318", "without TLS"),
        ("https://user:secret@x", "more than a host"),
        ("https://x?a=b", "more than a host"),
        ("https://x:0", "can't be"),
        ("https://x:port", "no number"),
        ("https://x/a b", "can't be"),
        ("https://x/v1/metrics", "a signal's path"),
        ("https://x/in/v1/logs/", "a signal's path"),
        ("https://x:port?key=secret", "no number"),
    ],
)
def test_endpoints_that_cannot_be_are_refused(endpoint: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as refused:
        HttpTransport(endpoint)
    assert "secret" not in str(refused.value)


def test_headers_that_would_split_a_request_are_refused() -> None:
    for headers in ({"A": "x\r\nB: y"}, {"A: b": "x"}, {"A": "naïve"}):
        with pytest.raises(UsageError, match="can't be sent"):
            HttpTransport("https://x", headers)


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"metered": "wifi"}, "allowed: all, events, none"),
        ({"least_battery": float("nan")}, "least_battery"),
        ({"least_battery": 20}, "least_battery"),
        ({"longest_retry_after_s": 0}, "longest_retry_after_s"),
        ({"factor": 50}, "factor is 50; 1 to 10"),
        ({"factor": float("nan")}, "factor is nan"),
        ({"upload_s": 0}, "times of a pace"),
    ],
)
def test_a_pace_that_cannot_be_is_refused(wrong: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        Pace(**wrong)


# -- TEL-02: Retry-After --------------------------------------------------------------------------

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        (email.utils.formatdate(NOW + 90, usegmt=True), 90.0),
        (email.utils.formatdate(NOW - 90, usegmt=True), None),
        ("0", None),
        ("-5", None),
        ("banana", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("1e400", None),
        ("Fri, 99 Foo 99999999999 00:00:00 GMT", None),
    ],
)
def test_tel_02_retry_after_is_read_or_left(text: str, seconds: float | None) -> None:
    assert retry_after(text, lambda: NOW) == seconds


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("120", 120.0, 150.0),
        ("1e9", 86_400.0, 108_000.0),
        ("0", 2.5, 5.0),
        ("-5", 2.5, 5.0),
        ("banana", 2.5, 5.0),
    ],
)
def test_tel_02_waits_are_neither_nothing_nor_for_ever(
    text: str, least: float, most: float
) -> None:
    for seed in range(50):
        schedule = Schedule(random=random.Random(seed))
        verdict = judge(Answer(503, retry_after=text), lambda: NOW)
        assert least <= schedule.after(verdict, more=True) <= most


def test_the_back_off_grows_to_its_limit_and_starts_anew_after_an_answer() -> None:
    schedule = Schedule(Pace(first_s=5, factor=2, longest_s=60), random.Random(1))
    waits = [schedule.after(Verdict("retry"), more=True) for _ in range(1000)]
    assert all(
        low / 2 <= wait <= low for low, wait in zip((5, 10, 20, 40, 60), waits, strict=False)
    )
    assert all(30 <= wait <= 60 for wait in waits[4:])
    schedule.after(Verdict("delivered"), more=False)
    assert schedule.after(Verdict("retry"), more=True) <= 5


def test_metered_networks_and_low_batteries_hold_back_what_they_should() -> None:
    both, events = ("event", "metric"), ("event",)
    for conditions, pace, wanted in [
        (Conditions(), Pace(), both),
        (Conditions(online=False), Pace(), ()),
        (Conditions(metered=True), Pace(), events),
        (Conditions(metered=True), Pace(metered="all"), both),
        (Conditions(metered=True), Pace(metered="none"), ()),
        (Conditions(battery=0.1), Pace(), ()),
        (Conditions(battery=0.1, charging=True), Pace(), both),
        (Conditions(battery=0.5), Pace(), both),
    ]:
        assert Schedule(pace).streams(conditions) == wanted
    with pytest.raises(UsageError):
        Pace(upload_s=0)


# -- TEL-03: lost acknowledgements ----------------------------------------------------------------


def test_tel_03_what_is_sent_again_has_the_same_ids(tmp_path: Path) -> None:
    clock = FakeClock()
    with filled(tmp_path / "spool", clock=clock) as spool:
        first = [record.id for record in spool.take("metric")]
        answers = [Answer(None), OK]
        transport = Scripted(lambda path, body: answers[len(transport.sent) - 1])
        uploader = Uploader(spool, transport, clock=clock)
        uploader.step()
        again = [record.id for record in spool.take("metric")]
        uploader.step()
        assert first == again
        assert transport.sent[0][1] == transport.sent[1][1]
        assert spool.counts().delivered == 8


# -- TEL-09: poison -------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 413])
@pytest.mark.parametrize("poison", [{0}, {7}, {3, 4, 31}, set(range(32))])
def test_tel_09_poison_is_isolated_and_the_rest_goes_on(
    tmp_path: Path, status: int, poison: set[int]
) -> None:
    clock = FakeClock()

    def answer(path: str, body: bytes) -> Answer:
        data = gzip.decompress(body)
        bad = any(b"\x0a" + bytes([len(t)]) + t in data for t in (b"record %d" % i for i in poison))
        return Answer(status) if bad else OK

    with filled(tmp_path / "spool", 32, clock=clock) as spool:
        transport = Scripted(answer)
        uploader = Uploader(spool, transport, clock=clock)
        while spool.counts().pending:
            uploader.step()
            assert len(transport.sent) < 120
        assert spool.counts().delivered == 32 - len(poison)
        assert spool.counts().dropped == {"poison": len(poison)}
        assert spool.counts().conserved


# -- TEL-10: a fleet comes back -------------------------------------------------------------------


DAY = 86400.0
LARGE = Pace(upload_s=6 * 3600, between_s=1800, longest_s=12 * 3600)
THOUSAND = Fleet(
    devices=1000, days=6, outage=(DAY, 4 * DAY), window_s=900, per_request=256, points=25,
    pace=LARGE, span_s=10, cap=10 * 256 * 25,
)  # fmt: skip


def test_tel_10_a_thousand_devices_come_back_from_72_hours_spread_out() -> None:
    """Virtual time, the real policy; the benchmark does it for 100,000 devices over 30 days."""
    outcome = simulate(THOUSAND)
    assert outcome.backlog >= 288  # three days of windows
    assert outcome.peak <= THOUSAND.cap
    assert outcome.refused == 0
    assert outcome.produced == outcome.delivered + outcome.pending
    assert outcome.caught_up_s is not None
    assert outcome.caught_up_s < DAY
    assert outcome.pending < 1000 * 2 * 6 * 4  # what a day of uploads leaves, not the backlog


def test_tel_10_a_server_at_its_cap_sheds_and_loses_nothing() -> None:
    """The same with a tenth of the server: 429 and Retry-After, until all have come."""
    outcome = simulate(replace(THOUSAND, span_s=100, cap=2 * 288 * 25, days=8))
    assert outcome.refused > 100
    assert outcome.produced == outcome.delivered + outcome.pending
    assert outcome.caught_up_s is not None


def test_tel_10_without_jitter_the_same_fleet_would_be_over_its_cap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(random.Random, "uniform", lambda self, low, high: high)
    assert simulate(THOUSAND).refused > 500
