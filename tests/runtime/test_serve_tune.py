"""`edgekit serve tune`: from two bundles, or a bundle and a server, to a bundle that routes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import schemas
from edgekit.cli.main import main
from edgekit.runtime.bundle import Bundle
from edgekit.runtime.cloud import Cloud
from edgekit.runtime.drift_reference import DriftReference
from edgekit.runtime.manifest import canonical_json
from edgekit.runtime.policy import SIGNALS
from edgekit.runtime.router import Router, policy_of
from edgekit.signature import Signature, TensorSpec

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    from faulty_server import FaultyServer, serving
finally:
    sys.path.remove(str(HERE))

N = 600


def weights(noise: float, scale: float) -> dict[str, np.ndarray]:
    """The teacher of `FaultyServer`, or a worse one that is too sure of itself."""
    w = 10 * np.eye(6, 4) + noise * np.random.default_rng(3).standard_normal((6, 4))
    return {"w0": (scale * w).astype(np.float32), "b0": np.zeros(4, np.float32)}


def write_bundle(path: Path, name: str, layers: dict[str, np.ndarray]) -> Path:
    sink = io.BytesIO()
    np.savez(sink, **layers)
    data = sink.getvalue()
    entry = {"path": "m.npz", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    artifact = {"id": "null-fp32", "target": "null", "scheme": "fp32", "files": [entry], **entry}
    outputs = (TensorSpec("y", (1, 4), labels=tuple("abcd")),)
    manifest = {
        "schema": "edgekit.bundle/1", "name": name, "version": "7", "labels": list("abcd"),
        "signature": Signature((TensorSpec("x", (1, 2, 3)),), outputs).to_json(),
        "artifacts": [artifact], "files": [entry], "lineage": {"parent": None}, "policy": None,
    }  # fmt: skip
    path.mkdir()
    (path / "m.npz").write_bytes(data)
    (path / "manifest.json").write_bytes(canonical_json(manifest))
    return path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, a teacher, and data whose labels are the teacher's but for one in twenty."""
    root = tmp_path_factory.mktemp("tune")
    write_bundle(root / "student", "student", weights(3.0, 4.0))
    write_bundle(root / "teacher", "teacher", weights(0.0, 1.0))
    rng = np.random.default_rng(11)
    for split in ("dev", "test"):
        x = rng.standard_normal((N, 2, 3)).astype(np.float32)
        y = np.concatenate([FaultyServer.answer(row[None]).argmax(axis=1) for row in x])
        y = np.where(rng.random(N) < 0.05, rng.integers(0, 4, N), y)
        np.savez(root / f"{split}.npz", x=x, y=y)
    return root


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with serving() as found:
        yield found


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `edgekit serve tune`."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = main(["serve", "tune", *map(str, arguments)])
    return code, out.getvalue(), err.getvalue()


def tuned(*arguments: object) -> dict[str, Any]:
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    document: dict[str, Any] = json.loads(out)
    schemas.validate(document)
    schemas.validate(document["policy"])
    return document


def test_a_bundle_is_tuned_and_routes_as_it_was_told(
    shop: Path, tmp_path: Path, server: FaultyServer
) -> None:
    before = {p.name: p.read_bytes() for p in (shop / "student").iterdir()}
    out = tmp_path / "tuned.zip"
    document = tuned(
        shop / "student", "--teacher", shop / "teacher", "--teacher-artifact", "null-fp32",
        "--eval", shop / "dev.npz", "--report", shop / "test.npz", "--network-ms", 20, "-o", out,
    )  # fmt: skip
    policy, chosen = document["policy"], document["policy"]["chosen"]
    assert (chosen["rule"], chosen["teacher"]["name"]) == ({"kind": "keep", "value": 99}, "teacher")
    assert (chosen["tuned_on"]["n"], chosen["reported_on"]["n"]) == (N, N)
    assert policy["temperature"] > 1.5  # it was too sure of itself
    shares = {
        signal: tuned(
            shop / "student", "--teacher", shop / "teacher", "--teacher-artifact", "null-fp32",
            "--eval", shop / "dev.npz", "--report", shop / "dev.npz", "--signal", signal,
            "-o", tmp_path / signal,
        )["curve"]
        for signal in SIGNALS
    }  # fmt: skip
    areas = {s: sum(point["accuracy"] for point in found) for s, found in shares.items()}
    assert areas[policy["signal"]] == pytest.approx(max(areas.values()), rel=0.002)
    assert document["calibration"]["nll_after"] < document["calibration"]["nll_before"]
    hoped = chosen["expected"]
    assert hoped["gain_over_random"]["low"] > 0
    assert hoped["device"] < hoped["accuracy"]["value"] <= hoped["teacher"] + 1
    assert hoped["latency"]["cloud_kind"] == "estimate"
    assert hoped["latency"]["cloud_ms"] >= 20
    with Bundle.open(shop / "student") as old, Bundle.open(out) as new:
        assert chosen["bundle"] == old.digest != new.digest == document["bundle"]["digest"]
        assert new.read("m.npz") == before["m.npz"]
        rest = {k: v for k, v in new.manifest.items() if k != "reference_statistics"}
        assert {**rest, "policy": None} == dict(old.manifest)
        # The fleet's confidences are held against those of this policy.
        sure = DriftReference(new).counts("edgekit.prediction.confidence")
        assert sure is not None
        assert sum(sure.values()) == N
        assert policy_of(new).to_json() == policy
        # The router with that bundle does what was told, sample by sample.
        with np.load(shop / "test.npz") as data:
            x, y = data["x"], data["y"]
        with Cloud(server.url) as cloud, Router(new, cloud, conditions=None) as router:
            answers = [router.answer({"x": row[None]}, deadline_ms=20_000) for row in x]
    sent = np.array([answer.source == "cloud" for answer in answers])
    right = np.array([answer.outputs["y"].argmax() for answer in answers]) == y
    assert 100 * sent.mean() == pytest.approx(hoped["cloud_share"]["value"])
    assert 100 * right.mean() == pytest.approx(hoped["accuracy"]["value"])
    assert {p.name: p.read_bytes() for p in (shop / "student").iterdir()} == before


def test_a_teacher_may_be_a_server_and_one_set_is_halved(
    shop: Path, tmp_path: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_API_KEY", "key-of-ours")
    document = tuned(
        shop / "student", "--teacher", server.url, "--eval", shop / "dev.npz",
        "--max-cloud-share", 25, "--signal", "margin", "--timeout-ms", 300, "-o", tmp_path / "t",
    )  # fmt: skip
    policy, chosen = document["policy"], document["policy"]["chosen"]
    assert chosen["teacher"] == {"name": "teacher", "version": "3", "digest": None}
    assert chosen["expected"]["latency"]["cloud_kind"] == "measured"
    assert chosen["tuned_on"]["n"] + chosen["reported_on"]["n"] == N
    assert min(chosen["tuned_on"]["n"], chosen["reported_on"]["n"]) > N / 3
    assert (policy["signal"], policy["timeout_ms"]) == ("margin", 300)
    assert chosen["expected"]["cloud_share"]["value"] == pytest.approx(25, abs=8)
    assert server.seen[-1][0]["authorization"] == "Bearer key-of-ours"
    assert b"key-of-ours" not in (tmp_path / "t" / "manifest.json").read_bytes()


def test_the_table_is_for_people(shop: Path, tmp_path: Path) -> None:
    code, out, err = run(
        shop / "student", "--teacher", shop / "teacher", "--teacher-artifact", "null-fp32",
        "--eval", shop / "dev.npz", "--target-accuracy", 90, "--signal", "confidence",
        "-o", tmp_path / "t",
    )  # fmt: skip
    assert code == 0, err
    assert "sent %" in out.splitlines()[0]
    assert "by lot %" in out.splitlines()[0]
    assert "target-accuracy 90 %: ask the cloud where confidence is below" in out
    assert "its latency is an estimate" in err


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--keep", "99", "--max-cloud-share", "3"], 2, "one rule is wanted"),
        (["--keep", "101"], 2, "keep"),
        (["--target-accuracy", "99.9"], 1, "no threshold reaches 99.90 %"),
        (["--limit", "50"], 7, "at least 100 are needed"),
        (["--teacher", "http://127.0.0.1:1/v2/models/m"], 4, "Connection refused"),
        (["--teacher", "http://127.0.0.1:1/"], 2, "no model is named"),
        (["--artifact", "tflite-w8a8"], 2, "0 artifacts"),
        (["--output", "z"], 7, "no 'z'"),
    ],
)
def test_what_cannot_be_tuned_is_refused_and_nothing_is_written(
    more: list[str], code: int, said: str, shop: Path, tmp_path: Path
) -> None:
    given = ["--teacher", str(shop / "teacher"), "--teacher-artifact", "null-fp32"]
    found, out, err = run(
        shop / "student", *given, "--eval", shop / "dev.npz", *more, "-o", tmp_path / "t"
    )
    assert (found, out) == (code, ""), err
    assert said in err
    assert not (tmp_path / "t").exists()


def test_a_bundle_is_not_written_over_itself_or_tuned_without_labels(
    shop: Path, tmp_path: Path
) -> None:
    teacher = ["--teacher", str(shop / "teacher"), "--teacher-artifact", "null-fp32"]
    code, _, err = run(
        shop / "student", *teacher, "--eval", shop / "dev.npz", "-o", shop / "student"
    )
    assert (code, "is the bundle itself" in err) == (2, True), err
    np.savez(tmp_path / "bare.npz", x=np.zeros((200, 2, 3), np.float32))
    code, _, err = run(
        shop / "student", *teacher, "--eval", tmp_path / "bare.npz", "-o", tmp_path / "t"
    )
    assert (code, "has no label" in err) == (7, True), err


def test_a_rule_that_is_missed_on_other_samples_writes_nothing(shop: Path, tmp_path: Path) -> None:
    # On dev the labels are the student's own, so that nothing seems to need sending.
    with np.load(shop / "dev.npz") as data:
        x = data["x"]
    own = (x.reshape(N, 6) @ weights(3.0, 4.0)["w0"]).argmax(axis=1)
    np.savez(tmp_path / "flattering.npz", x=x, y=own)
    code, out, err = run(
        shop / "student", "--teacher", shop / "teacher", "--teacher-artifact", "null-fp32",
        "--eval", tmp_path / "flattering.npz", "--report", shop / "test.npz",
        "--target-accuracy", 94, "-o", tmp_path / "t",
    )  # fmt: skip
    assert (code, out) == (1, "")
    assert "is missed on the 600 samples that nothing was chosen on" in err
    assert not (tmp_path / "t").exists()
