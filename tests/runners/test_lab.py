"""The device lab: a matrix of measurements, resumed, in parallel, with budgets (RUN-05, 08, 11)."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgekit import device
from edgekit.bench import lab, subjects
from edgekit.bench.devices import budget_gates, check_profile
from edgekit.bench.lab import Outcome, run_matrix
from edgekit.bench.matrix import read_matrix, settings_for
from edgekit.bench.store import Store
from edgekit.bench.vendor import Tool
from edgekit.cli.main import main
from edgekit.errors import BadData, DeviceUnreachable, UsageError, WorkerCrashed
from edgekit.schemas import validate


def artifact(path: Path) -> Path:
    """A null artifact."""
    np.savez(path, w0=np.ones((4, 3), "f"), b0=np.zeros(3, "f"))
    return path


def write(folder: Path, *urls: str, settings: str = "", head: str = "") -> Path:
    """A matrix of one artifact on devices, at one or more settings."""
    artifact(folder / "a.npz")
    lines = [head, '[[subjects]]\npath = "a.npz"']
    lines += [f'[[devices]]\nurl = "{url}"' for url in urls]
    path = folder / "matrix.toml"
    path.write_text("\n".join([*lines, settings or "[[settings]]\nrounds = 1\nruns = 1"]))
    return path


TWICE = "[[settings]]\nrounds = 1\nruns = 1\n[[settings]]\nrounds = 1\nruns = 2"


def test_a_matrix_is_every_artifact_on_every_device_at_every_setting(tmp_path: Path) -> None:
    matrix = read_matrix(write(tmp_path, "fake:a", "local:", settings=TWICE))
    assert [(c.url, c.settings.runs) for c in matrix.cells] == [
        ("fake:a", 1), ("fake:a", 2), ("local:", 1), ("local:", 2),
    ]  # fmt: skip
    assert len({cell.key for cell in matrix.cells}) == 4
    assert read_matrix(tmp_path / "matrix.toml").digest == matrix.digest
    np.savez(tmp_path / "a.npz", w0=np.zeros((4, 3), "f"), b0=np.zeros(3, "f"))
    assert read_matrix(tmp_path / "matrix.toml").digest != matrix.digest  # it is another artifact


def test_a_device_may_have_programs_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path, "adb://X", settings="[[settings]]")
    (tmp_path / "tool").write_bytes(b"program")
    tools = '[devices.tools.benchmark_model]\npath = "tool"\nargs = ["--use_gpu=true"]'
    path.write_text(path.read_text().replace("[[settings]]", f"{tools}\n[[settings]]"))
    (cell,) = read_matrix(path).cells
    assert cell.tools == (Tool("benchmark_model", tmp_path / "tool", ("--use_gpu=true",)),)
    (tmp_path / "tool").write_bytes(b"another")
    assert read_matrix(path).cells[0].key != cell.key


def test_the_profile_says_what_the_settings_leave_out() -> None:
    profile = device.load("raspberry-pi-5")
    how = settings_for(profile, rounds=6)
    assert how.threads == profile.threads and how.runs == profile.bench.runs
    assert settings_for(profile, threads=1).threads == 1
    assert settings_for(None).threads == 1


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("x = [", BadData, "is not TOML"),
        ("[[devices]]\nurl = 'local:'", BadData, "subjects: Field required"),
        ("[[subjects]]\npath='a.npz'\n[[devices]]\nurl='local:'\nx=1", BadData, "devices.0.x"),
        ("[[subjects]]\npath='b'\n[[devices]]\nurl='local:'", UsageError, "no subject"),
        ("[[subjects]]\npath='a.npz'\n[[devices]]\nurl='ssh://-x'", UsageError, "no URL"),
        (
            "[[subjects]]\npath='a.npz'\n[[devices]]\nurl='local:'\ndevice='pi'",
            UsageError,
            "unknown device 'pi'",
        ),
        (
            "[[subjects]]\npath='a.npz'\n[[devices]]\nurl='local:'\n[[devices]]\nurl='local:'",
            UsageError,
            "the same measurement twice",
        ),
        (
            "[[subjects]]\npath='a.npz'\n[[devices]]\nurl='local:'\n[devices.tools.x]\npath='a'",
            UsageError,
            "unknown benchmark program",
        ),
    ],
)
def test_what_is_no_matrix_is_refused(
    tmp_path: Path, text: str, error: type[Exception], words: str
) -> None:
    artifact(tmp_path / "a.npz")
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(error, match=words):
        read_matrix(tmp_path / "m.toml")
    with pytest.raises(UsageError, match="there is no matrix"):
        read_matrix(tmp_path / "absent.toml")


# How a matrix is run; what measures is stood in for where only the order of things is asked about.


class Bench:
    """In place of `edgekit.bench.lab.bench_on`: notes what is measured when, and fails at will."""

    def __init__(self, fails: dict[str, list[Exception | None]] | None = None) -> None:
        self.fails = fails or {}
        self.calls: list[tuple[str, int]] = []
        self.running: set[str] = set()
        self.together: set[frozenset[str]] = set()
        self.lock = threading.Lock()

    def __call__(self, url: str, subject: Path, ids: Any, *, settings: Any, **_: Any) -> Any:
        with self.lock:
            assert url not in self.running, "two jobs on one device"
            self.running.add(url)
            self.together.add(frozenset(self.running))
            self.calls.append((url, settings.runs))
            error = self.fails[url].pop(0) if self.fails.get(url) else None
        time.sleep(0.05)
        with self.lock:
            self.running.remove(url)
        if error is not None:
            raise error
        return {"results": [], "where": url}


def test_run_08_devices_work_together_each_by_itself_and_this_machine_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    monkeypatch.setattr(lab, "bench_on", bench)
    matrix = read_matrix(write(tmp_path, "local:", "fake:a", "fake:b", settings=TWICE))
    document = run_matrix(matrix, Store(tmp_path / "s.sqlite"))
    validate(document)
    assert document["complete"] and len(bench.calls) == 6
    assert frozenset({"fake:a", "fake:b"}) in bench.together
    assert [url for url, _ in bench.calls[4:]] == ["local:", "local:"]
    assert all("local:" not in both or len(both) == 1 for both in bench.together)


def test_run_08_one_device_under_two_names_does_one_thing_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "client").write_text("Host a b\n HostName 192.0.2.1\n")
    urls = [f"ssh://{name}?config={tmp_path / 'client'}" for name in ("a", "b", "c")]
    bench = Bench()
    monkeypatch.setattr(lab, "bench_on", bench)
    run_matrix(read_matrix(write(tmp_path, *urls)), Store(tmp_path / "s.sqlite"))
    assert len(bench.calls) == 3 and not any({urls[0], urls[1]} <= both for both in bench.together)
    assert any(urls[2] in both and len(both) == 2 for both in bench.together)


def test_run_05_a_broken_link_is_tried_anew_as_a_whole_and_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = DeviceUnreachable("gone")
    bench = Bench({"fake:a": [gone], "fake:b": [gone] * 9, "fake:c": [WorkerCrashed("died")]})
    monkeypatch.setattr(lab, "bench_on", bench)
    three = TWICE + "\n[[settings]]\nrounds = 1\nruns = 3"
    matrix = read_matrix(write(tmp_path, "fake:a", "fake:b", "fake:c", settings=three))
    store = Store(tmp_path / "s.sqlite")
    told: list[Outcome] = []
    document = run_matrix(matrix, store, report=told.append)
    cells = {(c["url"], c["settings"]["runs"]): c for c in document["cells"]}
    assert cells["fake:a", 1]["attempts"] == 2 and cells["fake:a", 1]["status"] == "ok"
    assert [cells["fake:b", n]["status"] for n in (1, 2, 3)] == ["failed", "failed", "skipped"]
    assert "did not answer 2 times" in cells["fake:b", 3]["reason"]
    # A crash is no broken link: it is not tried again.
    assert cells["fake:c", 1]["attempts"] == 1 and cells["fake:c", 1]["exit_code"] == 5
    assert cells["fake:c", 2]["status"] == "ok"
    assert not document["complete"] and len(told) == 9
    kept = {(m.url, m.settings["runs"]): m for m in store.measurements()}
    assert kept["fake:b", 1].reason == "gone" and ("fake:b", 3) not in kept

    # The next run does only what is left.
    bench.fails, bench.calls = {}, []
    again = run_matrix(matrix, store)
    assert sorted(bench.calls) == [("fake:b", 1), ("fake:b", 2), ("fake:b", 3), ("fake:c", 1)]
    assert again["complete"] and again["session"] == document["session"]
    assert sum(cell["resumed"] for cell in again["cells"]) == 5
    # And one after a finished one begins anew.
    bench.calls = []
    assert run_matrix(matrix, store)["session"] != again["session"] and len(bench.calls) == 9


def test_a_bug_in_a_thread_is_no_finished_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab, "bench_on", Bench({"fake:a": [ZeroDivisionError()]}))
    with pytest.raises(ZeroDivisionError):
        run_matrix(read_matrix(write(tmp_path, "fake:a")), Store(tmp_path / "s.sqlite"))


def run_main(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `edgekit bench`."""
    code = main(["bench", *args])
    out, err = capsys.readouterr()
    return code, out, err


def profile(folder: Path, **budgets: float) -> Path:
    """The host's profile with budgets."""
    text = Path(__file__).parents[2].joinpath("devices/host.toml").read_text()
    lines = [f"{name} = {value}" for name, value in budgets.items()]
    path = folder / "mine.toml"
    path.write_text("\n".join([text, "[budgets]", *lines]))
    return path


def test_a_matrix_from_the_command_line_to_its_store(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write(tmp_path, "fake:a", "fake:b?fault=unplug@open", head="retries = 0")
    store = str(tmp_path / "s.sqlite")
    code, out, err = run_main(capsys, "--matrix", str(path), "--store", store, "--json")
    document = json.loads(out)
    validate(document)
    assert code == 4  # of the device that did not answer
    assert [cell["status"] for cell in document["cells"]] == ["ok", "failed"]
    assert document["cells"][0]["results"][0]["artifact"] == "a.npz"
    assert "on fake:a, 1 threads: measured" in err and "the link broke" in err
    kept = Store(Path(store)).measurement(document["cells"][0]["measurement"]).document
    assert kept is not None
    validate(kept)
    code, out, err = run_main(capsys, "--matrix", str(path), "--store", store)
    assert code == 4 and "already measured" in err and "not complete" in out
    code, _, err = run_main(capsys, "--matrix", str(path), "--threads", "2")
    assert code == 2 and "--threads is said by the matrix's file" in err


def test_a_broken_budget_is_exit_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    mine = profile(tmp_path, max_bytes=10, latency_p90_ms=1e6, peak_memory_mib=1e6)
    options = ["--on", "fake:a", "--device", str(mine), "--rounds", "1", "--runs", "12"]
    code, out, _ = run_main(capsys, str(artifact(tmp_path / "a.npz")), *options)
    assert code == 1
    assert "budget max-bytes@host of a.npz: BROKEN" in out
    assert "budget peak-memory-mib@host of a.npz: held" in out
    assert "budget latency-p90-ms@host of a.npz: not judged" in out  # 12 calls are too few


def test_budgets_are_held_broken_or_not_judged() -> None:
    pi = device.load("raspberry-pi-5")
    budgets = pi.budgets.model_copy(update={"latency_p90_ms": 10.0, "peak_memory_mib": 50.0})
    pi = pi.model_copy(update={"budgets": budgets})

    def gates(p90: float | None, memory: float | None, *insufficient: str) -> list[Any]:
        result = {
            "artifact": "a", "bytes": None, "peak_memory_mib": memory,
            "latency_ms": {"p90": p90}, "insufficient": list(insufficient),
        }  # fmt: skip
        return [g["passed"] for g in budget_gates({"results": [result]}, pi) if g["limit"] >= 10]

    assert gates(9.0, 49.0) == [True, True]
    assert gates(11.0, 51.0) == [False, False]
    assert gates(None, None) == [None, None]
    assert gates(9.0, 49.0, "few calls") == [None, True]
    assert gates(11.0, 49.0, "few calls") == [False, True]


def test_without_a_say_a_bundle_is_measured_as_far_as_the_device_runs_it(
    null_bundle: Path,
) -> None:
    pi = device.load("raspberry-pi-5")
    assert subjects.chosen(null_bundle, (), pi) == (("null-fp32", "null-w8a8"), {"null"})
    assert subjects.chosen(null_bundle, ("null-w8a8",), None) == (("null-w8a8",), {"null"})
    assert subjects.chosen(Path("a.tflite"), (), pi) == ((), {"tflite"})

    def runs(target: str, delegate: str) -> bool:
        made = SimpleNamespace(target=target, delegate=delegate)
        return subjects.runs(pi, made)  # type: ignore[arg-type]

    assert runs("tflite", "xnnpack") and runs("onnxruntime", "cpu")
    assert runs("executorch", "xnnpack") and not runs("executorch", "vulkan")
    assert not runs("coreml", "coreml")


def test_a_profile_of_another_architecture_is_refused() -> None:
    pi = device.load("raspberry-pi-5")
    check_profile(pi, {"machine": "aarch64"}, "ssh://pi")
    check_profile(pi, {"machine": None}, "ssh://pi")
    with pytest.raises(UsageError, match="ssh://pi is x86_64, and no raspberry-pi-5"):
        check_profile(pi, {"machine": "x86_64"}, "ssh://pi")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_11_an_ended_matrix_leaves_nothing_and_goes_on(
    tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "[[settings]]\nrounds = 1\nruns = 1\n[[settings]]\nrounds = 20\nruns = 20"
    path = write(tmp_path, "fake:a", "fake:b", settings=long)
    store = tmp_path / "s.sqlite"
    command = [sys.executable, "-m", "edgekit.cli.main", "bench", "--matrix", str(path)]
    before = {p for p in Path("/tmp").glob("edgekit-??????")}
    process = subprocess.Popen([*command, "--store", str(store)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process, process.stderr:
        for _ in range(2):  # both devices have measured their first cell
            assert ": measured" in process.stderr.readline()
        time.sleep(0.5)
        process.send_signal(number)
        assert process.wait(60) == 130
    assert {p for p in Path("/tmp").glob("edgekit-??????")} <= before
    kept = Store(store).measurements()
    assert [m.status for m in kept] == ["ok", "ok"]
    code, _, err = run_main(capsys, "--matrix", str(path), "--store", str(store))
    assert code == 0 and err.count("already measured") == 2 and err.count(": measured") == 2
