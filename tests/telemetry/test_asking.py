"""`edgekit telemetry report` and `canary` by the URL of a receiver that runs."""

from __future__ import annotations

import http.server
import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("duckdb", reason="pip install 'edgekit[telemetry]'")

from receiving import RESOURCE, Receiving, metrics_record, receiver, window, zipped

from edgekit import schemas
from edgekit.cli.main import main
from edgekit.errors import CloudError, UsageError
from edgekit.runtime import otlp
from edgekit.telemetry.asking import ask

ADMIN = "fedcba9876543210"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiving]:
    folder = tmp_path_factory.mktemp("fleet")
    keys = folder / "keys"
    keys.write_text(f"fleet 0123456789abcdef\nops admin {ADMIN}\n")
    keys.chmod(0o600)
    with receiver(folder / "fleet.duckdb", "--keys", keys) as running:
        for version, n, failing in (("1.0", 40, 1), ("1.1", 20, 12)):
            records = []
            for i in range(n):
                aggregate = window()
                if i < failing:
                    aggregate.add_error("device", "MemoryError")
                resource = {**RESOURCE, "edgekit.bundle.version": version}
                event = uuid.uuid4().hex
                records.append(metrics_record(aggregate, event=event, resource=resource))
            body, headers = zipped(otlp.request(records))
            bearer = {**headers, "Authorization": "Bearer 0123456789abcdef"}
            assert running.post("/v1/metrics", body, bearer)[0] == 200
        yield running


@pytest.fixture
def url(running: Receiving) -> str:
    return f"http://127.0.0.1:{running.port}"


def shown(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    schemas.validate(document)
    return document


def test_a_receiver_is_asked_for_its_report(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEKIT_API_KEY", ADMIN)
    assert main(["telemetry", "report", url, "--by", "version", "--json"]) == 0
    entries = shown(capsys)["cohorts"]
    assert [(e["version"], e["devices"], e["requests"]) for e in entries] == [
        ("1.0", 40, 400), ("1.1", 20, 200),
    ]  # fmt: skip
    options = ["--by", "all", "--where", "version=1.1", "-k", "15", "--baseline-days", "3"]
    assert main(["telemetry", "report", url, *options, "--json"]) == 0
    document = shown(capsys)
    assert [entry["requests"] for entry in document["cohorts"]] == [200]
    assert (document["k"], document["where"]) == (15, {"version": "1.1"})
    assert document["baseline"][1] - document["baseline"][0] == 2
    assert main(["telemetry", "report", url]) == 0
    assert "pixel-8" in capsys.readouterr().out


def test_a_receiver_is_asked_to_compare_two_versions(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEKIT_API_KEY", ADMIN)
    options = ["--days", "2", "--model", "net", "--alpha", "0.05"]
    assert main(["telemetry", "canary", url, "1.0", "1.1", *options, "--json"]) == 1
    document = shown(capsys)
    assert document["canary"] == {"version": "1.1", "device_days": 20, "failed": 12}
    assert (document["worse"], document["alpha"]) == (True, 0.05)
    assert main(["telemetry", "canary", url, "1.1", "1.0"]) == 0
    assert "not worse" in capsys.readouterr().out
    assert main(["telemetry", "canary", url, "1.0", "1.1", "--model", "other", "--json"]) == 0
    assert shown(capsys)["worse"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "-k", "9"], "k is 10 here, or more"),
        (["report", "--by", "os"], "knows: model, version, device, app"),
        (["report", "--where", "days=3"], "each once"),
        (["canary", "1.0", "1.0"], "one version against another"),
    ],
)
def test_what_it_cannot_be_asked_is_wrong_usage(
    url: str,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EDGEKIT_API_KEY", ADMIN)
    verb, *rest = arguments
    assert main(["telemetry", verb, url, *rest]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("key", ["", "0123456789abcdef", "not-known-at-all"])
def test_a_key_that_may_not_ask_is_told(
    url: str, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEKIT_API_KEY", key)
    assert main(["telemetry", "report", url]) == 4
    told = capsys.readouterr().err
    assert "EDGEKIT_API_KEY" in told
    assert not key or key not in told


def test_a_file_that_a_receiver_has_open_names_the_way(
    running: Receiving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_files = (file.resolve() for file in Path(f"/proc/{running.process.pid}/fd").iterdir())
    store = next(file for file in open_files if file.suffix == ".duckdb")
    for verb in (["report"], ["canary", "1.0", "1.1"]):
        assert main(["telemetry", verb[0], str(store), *verb[1:]]) == 9
        assert "edgekit telemetry report http://" in capsys.readouterr().err
    assert main(["telemetry", "report", str(tmp_path / "none.duckdb")]) == 2
    assert "URL of a receiver" in capsys.readouterr().err


def test_no_key_goes_in_clear_text() -> None:
    with pytest.raises(UsageError, match="in clear text"):
        ask("http://telemetry.example.com", "/v1/report", [], key=ADMIN)
    with pytest.raises(UsageError, match="password") as raised:
        ask(f"http://ops:{ADMIN}@127.0.0.1", "/v1/report", [])
    assert ADMIN not in str(raised.value)


class _Other(http.server.BaseHTTPRequestHandler):
    answers: ClassVar[dict[str, tuple[int, bytes]]] = {
        "/a": (200, b"<html>"),
        "/b": (200, b'{"schema": "edgekit.serve/1"}'),
        "/c": (200, b"[]"),
        "/d": (404, b"none"),
        "/e": (503, b'{"error": "the store cannot be read now"}'),
        "/f": (200, b"[" * 100_000),
    }

    def do_GET(self) -> None:
        status, body = self.answers[self.path[:2]]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_what_is_no_receiver_is_told() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Other) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        for path in _Other.answers:
            with pytest.raises(CloudError) as raised:
                ask(url + path, "/v1/report", [])
            busy = path == "/e"
            assert raised.value.kind == ("unavailable" if busy else "wrong-answer"), path
        server.shutdown()
        thread.join()
    with pytest.raises(CloudError, match="does not answer: connect"):
        ask(url, "/v1/report", [])
