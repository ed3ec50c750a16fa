"""The worker on a device, from the command line to its document (RUN-05, 06, 08, 11)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bench.measure import BenchRequest, bench
from edgekit.bench.remote import Pushed, RemoteWorker, python_of
from edgekit.bench.runners import open_runner
from edgekit.bench.runners.shell import ShellRunner
from edgekit.cli.main import main
from edgekit.errors import DeviceUnreachable, MissingDependency, WorkerCrashed
from edgekit.schemas import validate
from edgekit.signature import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", (1, 4)),), (TensorSpec("y", (1, 3)),))


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A null artifact whose name would hurt if a shell read it."""
    rng = np.random.default_rng(1)
    path = tmp_path / "it's $(touch pwned).npz"
    weights = {"w0": (4, 3), "b0": (3,)}
    np.savez(path, **{k: rng.standard_normal(v).astype("f") for k, v in weights.items()})
    return path


@pytest.fixture
def runner() -> Iterator[ShellRunner]:
    """This machine under another name."""
    with open_runner("fake:phone") as opened:
        yield opened


def ask(worker: RemoteWorker, **files: Any) -> dict[str, Any]:
    """One question of a worker."""
    return worker.ask({"op": "signature", "target": "null"}, files, what="a", timeout=60)


@pytest.mark.slow
def test_a_device_measures_and_the_document_says_which(runner: ShellRunner, artifact: Path) -> None:
    request = BenchRequest("a", "null", artifact, SIGNATURE, "fp32", "cpu", 9)
    document = bench([request], rounds=2, runs=4, worker=RemoteWorker(runner, sys.executable))
    validate(document)
    assert document["where"] == "fake:phone"
    assert document["facts"]["packages"]["numpy"] == np.__version__
    assert len(document["results"][0]["samples_ms"]) == 4


def test_files_lie_on_the_device_once(
    runner: ShellRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    push = runner.push

    def counted(local: Path, name: str, *, executable: bool = False) -> None:
        sent.append(name)
        push(local, name, executable=executable)

    monkeypatch.setattr(runner, "push", counted)
    package = tmp_path / "model.mlpackage"
    (package / "Data").mkdir(parents=True)
    (package / "Data" / "weights.bin").write_bytes(b"1")
    (package / "Manifest.json").write_bytes(b"{}")
    (tmp_path / "net.xml").write_text("<net/>")
    (tmp_path / "net.bin").write_bytes(b"2")
    pushed = Pushed(runner)
    place = pushed.place([package])
    there = Path(runner.workspace) / place
    assert there.name == "model.mlpackage" and (there / "Data/weights.bin").read_bytes() == b"1"
    net = Path(runner.workspace) / pushed.place([tmp_path / "net.xml", tmp_path / "net.bin"])
    assert net.with_suffix(".bin").read_bytes() == b"2"
    assert pushed.place([package]) == place and len(sent) == 4
    (package / "Manifest.json").write_bytes(b"{ }")
    assert pushed.place([package]) != place and len(sent) == 6


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ('{"nonce": "of the last run", "signature": {}}', "does not carry its request's nonce"),
        ('{"nonce": "', "is not JSON"),
        ("Segmentation fault", "is not JSON"),
        ("", "is not JSON"),
        ("[1]", "does not carry"),
    ],
)
def test_run_06_what_is_no_answer_to_this_request_is_none(
    runner: ShellRunner, artifact: Path, tmp_path: Path, answer: str, words: str
) -> None:
    program = tmp_path / "python3"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
    program.chmod(0o755)
    with pytest.raises(WorkerCrashed, match=words):
        ask(RemoteWorker(runner, str(program)), path=[artifact])


def test_a_device_without_python_is_said(runner: ShellRunner, artifact: Path) -> None:
    with pytest.raises(MissingDependency, match="no program 'python4'") as caught:
        ask(RemoteWorker(runner, "python4"), path=[artifact])
    assert "?python=" in caught.value.hint


def test_whose_python_it_is_stands_in_the_url() -> None:
    assert python_of("local:") == python_of("fake:a") == sys.executable
    assert python_of("ssh://a") == python_of("adb://a") == "python3"
    assert python_of("ssh://a?python=/opt/my%20venv/bin/python") == "/opt/my venv/bin/python"


def run_main(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `edgekit bench`."""
    code = main(["bench", *args])
    out, err = capsys.readouterr()
    return code, out, err


def test_run_05_a_broken_link_is_exit_4_with_no_figure(
    capsys: pytest.CaptureFixture[str], artifact: Path
) -> None:
    code, out, _ = run_main(capsys, str(artifact), "--on", "fake:a?fault=unplug@run", "--json")
    assert code == 4
    assert json.loads(out)["error"]["kind"] == "DeviceUnreachable"


def test_run_08_a_device_in_use_is_exit_9(
    capsys: pytest.CaptureFixture[str],
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open_runner("fake:a"):
        code, _, err = run_main(capsys, str(artifact), "--on", "fake:a", "--wait", "0")
    assert code == 9 and "in use by process" in err
    few = ("--rounds", "1", "--runs", "1")
    with open_runner("local:"):  # as is this machine, with or without a URL
        code, _, err = run_main(capsys, str(artifact), *few, "--wait", "0")
    assert code == 9 and "this machine is in use by process" in err
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEKIT_STATE", str(tmp_path / "file"))
    code, _, err = run_main(capsys, str(artifact), *few, "-v")
    assert code == 0 and "another measurement may run beside this one" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--on", "telnet://a"], "allowed are local:, ssh://"),
        (["--on", "ssh://-oProxyCommand=x"], "no URL of a device"),
        (["--on", "fake:a", "--tool", "benchmark_model"], "is not NAME=PATH"),
        (["--on", "fake:a", "--tool", "benchmark_model=absent"], "there is no program"),
        (["--on", "fake:a", "--device", "pixel"], "unknown device 'pixel'"),
        (["--on", "fake:a", "--artifact", "x"], "is one artifact"),
    ],
)
def test_what_makes_no_sense_is_exit_2_and_says_what_would(
    capsys: pytest.CaptureFixture[str], artifact: Path, options: list[str], words: str
) -> None:
    code, out, err = run_main(capsys, str(artifact), *options)
    assert (code, out) == (2, "") and words in err
    code, out, err = run_main(capsys)
    assert code == 2 and "BUNDLE_OR_ARTIFACT" in err


def test_a_device_is_not_called_by_the_name_of_another(
    capsys: pytest.CaptureFixture[str], artifact: Path
) -> None:
    other = "raspberry-pi-5" if sys.platform != "darwin" else "x86-server"
    machine = __import__("platform").machine()
    if machine in ("aarch64", "arm64"):
        other = "x86-server"
    code, _, err = run_main(capsys, str(artifact), "--on", "fake:a", "--device", other)
    assert code == 2 and f"and no {other}" in err


@pytest.mark.slow
def test_a_bundle_is_measured_through_ssh(
    capsys: pytest.CaptureFixture[str], null_bundle: Path, sshd: Any, tmp_path: Path
) -> None:
    url = sshd.url(query=f"&python={sys.executable}")
    options = ["--on", url, "--device", "host", "--runs", "120", "--rounds", "6"]
    store = tmp_path / "bench.sqlite"
    code, out, err = run_main(capsys, str(null_bundle), *options, "--store", str(store), "--json")
    document = json.loads(out)
    validate(document)
    assert code == 0 and document["where"] == url and document["device"] == "host"
    assert [r["artifact"] for r in document["results"]] == ["null-fp32", "null-w8a8"]
    assert document["comparisons"][0]["ratio"] is not None
    assert "kept as measurement 1" in err


@pytest.mark.slow
def test_run_05_a_bare_file_asks_the_device_for_its_signature(
    capsys: pytest.CaptureFixture[str], artifact: Path, sshd: Any
) -> None:
    url = sshd.url(query=f"&python={sys.executable}")
    code, out, _ = run_main(capsys, str(artifact), "--on", url, "--runs", "2", "--rounds", "1")
    assert code == 0 and out.startswith("ssh://bench-1: ") and "it's $(touch pwned).npz" in out
    assert not (Path.home() / "pwned").exists()
    sshd_gone = f"ssh://127.0.0.1:1?config={sshd.config}"
    with pytest.raises(DeviceUnreachable), open_runner(sshd_gone):
        pass
