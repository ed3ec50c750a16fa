"""`edgekit export` through the real command line: what it writes, and how it refuses."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgekit import device, schemas
from edgekit.cli.export import Terminal
from edgekit.compress.ptq import PLAIN, Methods
from edgekit.names import METHODS, TARGETS
from edgekit.runtime.bundle import Bundle
from edgekit.runtime.drift_reference import DriftReference
from edgekit.runtime.input_statistics import INPUT_BOUNDS

Run = Callable[..., Any]
Tree = Callable[[Path], dict[str, bytes]]

COMMAND = [sys.executable, "-m", "edgekit.cli.main", "export"]


@pytest.fixture
def null(edgekit: Run, shop: Path) -> Run:
    """Exports one of the shop's models for the null target of its board, unmeasured."""

    def run(model: str, *args: object) -> Any:
        device = ["--device", shop / "board.toml", "--target", "null", "--no-bench"]
        return edgekit("export", f"{shop}/m.py:{model}", *device, *args)

    return run


# -- what would be made ---------------------------------------------------------------------------


def test_a_dry_run_tells_the_jobs_and_opens_and_writes_nothing(
    edgekit: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    args = ["export", tmp_path / "absent.pt2", "--device", "pixel-8", "--device", "x86-server"]
    done = edgekit(*args, "--dry-run", "-o", out, "--json")
    assert done.code == 0
    jobs = done.document["jobs"]
    runs = {e.target for name in ("pixel-8", "x86-server") for e in device.load(name).targets}
    expected = [f"{target}-w8a8" for target in TARGETS if target in runs]
    assert [job["artifact"] for job in jobs] == expected
    assert expected[:3] == ["tflite-w8a8", "openvino-w8a8", "onnxruntime-w8a8"]
    assert jobs[0]["devices"] == ["pixel-8", "x86-server"]
    assert jobs[1] == {
        "artifact": "openvino-w8a8", "target": "openvino", "scheme": "w8a8", "delegate": "cpu",
        "io": "float32", "devices": ["x86-server"], "threads": jobs[1]["threads"],
    }  # fmt: skip
    assert "--calib" in done.err
    assert list(tmp_path.iterdir()) == []
    text = edgekit(*args, "--dry-run", "--scheme", "fp32").out
    assert text.splitlines()[0].split() == [
        "artifact", "target", "scheme", "delegate", "threads", "devices",
    ]  # fmt: skip
    assert "tflite-fp32" in text


# -- requests that can't be met -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ([], 2, ["--device", "--target"]),
        (["--device", "pixle-8"], 2, ["'pixle-8'", "Did you mean 'pixel-8'?"]),
        (["--device", "no/such.toml"], 2, ["no/such.toml"]),
        (["--target", "tflit"], 2, ["'tflit'", "Did you mean 'tflite'?"]),
        (["--target", "tflite", "--scheme", "w9"], 2, ["'w9'", "w8a8"]),
        (["--device", "pixel-8", "--target", "openvino"], 5, ["openvino", "pixel-8 runs tflite"]),
        (["--target", "tflite", "--max-drop", "nan"], 2, ["--max-drop"]),
        (["--target", "tflite", "--max-drop", "-1"], 2, ["--max-drop"]),
        (["--target", "tflite", "--threads", "0"], 2, ["--threads"]),
        (["--target", "tflite", "--io", "int8"], 2, ["--io", "float32", "uint8"]),
        (
            ["--target", "tflite", "--without", "rounding", "--without", "mse-range"],
            2,
            ["'mse-range'", "Did you mean 'mse-ranges'?", "bias-correction"],
        ),
        (
            ["--target", "openvino", "--engine", "nncf", "--without", "rounding"],
            2,
            ["--without", "--engine"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_a_wrong_request_names_the_culprit_before_the_model_is_opened(
    args: list[str], code: int, said: list[str], edgekit: Run, tmp_path: Path
) -> None:
    done = edgekit("export", tmp_path / "absent.pt2", *args, "-o", tmp_path / "out", "--json")
    assert done.code == code
    assert done.document["error"]["exit_code"] == code
    assert all(part in done.err for part in said), done.err
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_needs_a_place(edgekit: Run) -> None:
    done = edgekit("export", "absent.pt2", "--target", "tflite")
    assert done.code == 2
    assert "give -o OUT" in done.err


@pytest.mark.parametrize(
    ("model", "target", "more", "code", "said"),
    [
        ("cnn", "onnxruntime", [], 5, "the preprocessing of pictures into the artifact"),
        ("picture", "null", [], 5, "target 'null' makes no artifacts of io 'uint8'"),
        ("picture", "openvino", ["--engine", "nncf"], 5, "engine 'nncf'"),
        (
            "picture",
            "onnxruntime",
            ["--io", "float32-nhwc"],
            5,
            "no artifacts of io 'float32-nhwc'",
        ),
        ("picture", "onnxruntime", [], 7, "pictures.npz holds the model's tensors alone"),
    ],
)
def test_what_takes_no_pixels_is_refused(
    model: str,
    target: str,
    more: list[str],
    code: int,
    said: str,
    edgekit: Run,
    shop: Path,
    tmp_path: Path,
) -> None:
    data = ["--calib", shop / "pictures.npz", "--eval", shop / "pictures.npz"]
    device = ["--device", shop / "board.toml"] if target == "null" else []
    out = tmp_path / "out"
    args = [*device, "--target", target, "--io", "uint8", *data, *more, "-o", out]
    done = edgekit("export", f"{shop}/m.py:{model}", *args)
    assert done.code == code, done.err
    assert said in done.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (None, 2, "--calib DATA"),
        ("narrow.npz", 7, "'input' is (80, 1, 4, 8), wanted (n, 1, 8, 8)"),
        ("nan.npz", 7, "sample 3 of 'input' holds NaN"),
        ("few.npz", 7, "at least 16 are needed"),
        ("absent.npz", 7, "there is no data at"),
        ("m.py:cnn", 7, "gives"),
    ],
    ids=str,
)
def test_calibration_data_that_do_not_fit(
    data: str | None, code: int, said: str, edgekit: Run, shop: Path, tmp_path: Path
) -> None:
    calib = [] if data is None else ["--calib", shop / data]
    out = tmp_path / "out"
    done = edgekit(
        "export", f"{shop}/m.py:cnn", "--target", "onnxruntime", *calib, "-o", out, "--json"
    )
    assert done.code == code
    assert said in done.err
    assert done.document["error"]["exit_code"] == code
    assert not out.exists()


def test_a_model_that_decides_by_its_data_is_refused_by_its_line(null: Run, tmp_path: Path) -> None:
    done = null("branch", "-o", tmp_path / "out")
    assert done.code == 5
    assert "if x.sum() > 0" in done.err
    assert "m.py" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.runtime
def test_an_operator_that_a_real_runtime_lacks_is_named(
    edgekit: Run, shop: Path, tmp_path: Path
) -> None:
    model = f"{shop}/m.py:bessel"
    done = edgekit(
        "export", model, "--target", "onnxruntime", "--scheme", "fp32", "-o", tmp_path / "out"
    )
    assert done.code == 5
    assert "onnxruntime: the converter refused this model" in done.err
    assert "bessel_j0" in done.err
    assert "worker process" not in done.err
    assert not (tmp_path / "out").exists()


# -- where the bundle goes ------------------------------------------------------------------------


def test_a_directory_that_is_no_bundle_is_left_alone(null: Run, tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    done = null("mlp", "-o", tmp_path)
    assert done.code == 2
    assert "holds files and is no bundle" in done.err
    assert tree(tmp_path) == {"thesis.txt": b"three years"}


def test_a_file_is_left_alone(null: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    assert null("mlp", "-o", tmp_path / "thesis.txt").code == 2
    below = null("mlp", "-o", tmp_path / "thesis.txt" / "out")
    assert below.code == 8
    assert "thesis.txt" in below.err
    assert (tmp_path / "thesis.txt").read_text() == "three years"


def test_a_store_that_cannot_be_written_is_8(
    null: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEKIT_STORE", str(tmp_path / "file" / "store"))
    done = null("mlp", "-o", tmp_path / "out", "--json")
    assert done.code == 8
    assert done.document["error"]["kind"] == "StorageError"
    assert not (tmp_path / "out").exists()


def test_a_bundle_is_replaced_as_a_whole(plain: Path, null: Run, tree: Tree, shop: Path) -> None:
    out = plain.parent / "again"
    shutil.copytree(plain, out)
    (out / "stale").touch()
    assert null("mlp", "--eval", shop / "rows.npz", "-o", out).code == 0
    assert tree(out) == tree(plain)
    assert {p.name for p in plain.parent.iterdir()} == {"bundle", "again"}


# -- what comes out -------------------------------------------------------------------------------


def test_the_result_is_one_document_whatever_the_model_prints(
    null: Run, shop: Path, tmp_path: Path
) -> None:
    done = null("chatty", "--eval", shop / "rows.npz", "-o", tmp_path / "out.zip", "--json")
    assert done.code == 0
    assert "loading the weights" in done.err
    assert "\x1b" not in done.err
    document = done.document
    assert document["bundle"] == str(tmp_path / "out.zip")
    (artifact,) = document["artifacts"]
    assert artifact["id"] == "null-fp32"
    assert artifact["verification"] == "runtime"
    assert document["reference"]["n"] == 64
    assert artifact["value"] == pytest.approx(document["reference"]["value"])
    with Bundle.open(tmp_path / "out.zip") as bundle:
        assert bundle.name == "chatty"
        assert [a.id for a in bundle.artifacts] == ["null-fp32"]


def test_the_text_is_a_table_and_the_place(null: Run, shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = null("mlp", "--eval", shop / "rows.npz", "--name", "other", "--max-drop", "1", "-o", out)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("mlp for my-board; float top1 ")
    assert lines[2].split()[:2] == ["target", "scheme"]
    cells = lines[3].split()
    assert cells[:2] == ["null", "fp32"]
    assert cells[-2:] == ["runtime", "ok"]
    assert "0.00 [" in lines[3]
    assert lines[-1] == f"bundle: {out}"
    with Bundle.open(out) as bundle:
        assert bundle.name == "other"


def test_without_evaluation_data_a_drop_cannot_be_judged(null: Run, tmp_path: Path) -> None:
    done = null("mlp", "--max-drop", "1", "-o", tmp_path / "one")
    assert done.code == 0
    assert "gate max-drop, limit 1.0, could not be judged here" in done.out
    strict = null("mlp", "--max-drop", "1", "--require-verified", "-o", tmp_path / "two")
    assert strict.code == 1
    assert "null-fp32 failed: gate max-drop: could not be judged, limit 1" in strict.out
    assert not (tmp_path / "two").exists()


def test_latency_is_measured_unless_told_otherwise(
    edgekit: Run, shop: Path, tmp_path: Path
) -> None:
    done = edgekit(
        "export", f"{shop}/m.py:mlp", "--device", shop / "board.toml", "--target", "null",
        "--threads", "1", "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.code == 0
    (artifact,) = done.document["artifacts"]
    assert artifact["latency_ms"]["p50"] > 0
    assert artifact["latency_ms"]["threads"] == 1
    assert artifact["float"]["latency_p50_ms"] == artifact["latency_ms"]["p50"]


def test_equal_requests_make_equal_bytes_in_another_store(
    null: Run, plain: Path, tree: Tree, shop: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEKIT_STORE", str(tmp_path / "store"))
    done = null("mlp", "--eval", shop / "rows.npz", "-o", tmp_path / "out")
    assert done.code == 0
    assert "null: converting fp32" in done.err
    assert tree(tmp_path / "out") == tree(plain)


# -- the real road --------------------------------------------------------------------------------


@pytest.mark.runtime
def test_int8_for_a_real_runtime(int8: tuple[Path, list[str], Any]) -> None:
    out, _, done = int8
    document = done.document
    assert document["bundle"] == str(out)
    assert [a["id"] for a in document["artifacts"]] == ["onnxruntime-w8a8", "onnxruntime-fp32"]
    for artifact in document["artifacts"]:
        assert (artifact["status"], artifact["verification"]) == ("ok", "runtime")
        assert artifact["drop_ci95"][0] <= artifact["drop_points"] <= artifact["drop_ci95"][1]
    quantized, float_ = document["artifacts"]
    assert quantized["placement"]["bytes_by_dtype"]["int8"] > 0
    assert "int8" not in float_["placement"]["bytes_by_dtype"]
    with Bundle.open(out) as bundle:
        assert bundle.manifest["plan"] == "plan.json"
        artifact = bundle.artifact(scheme="w8a8")
        assert bundle.check_golden(bundle.session(artifact)).passed
        assert artifact.evidence["steps"]["output"] > 0
        reference, n = DriftReference(bundle), bundle.manifest["lineage"]["evaluation"]["n"]
    for scheme in ("w8a8", "fp32"):
        for metric in ("edgekit.prediction.classes", "edgekit.prediction.confidence"):
            counts = reference.counts(metric, scheme=scheme)
            assert counts is not None
            assert sum(counts.values()) == n
    for name in INPUT_BOUNDS:
        counts = reference.counts(f"edgekit.input.{name}", "0")
        assert counts is not None
        assert sum(counts.values()) == n
    schemas.validate(json.loads((out / "manifest.json").read_text()))


@pytest.mark.runtime
def test_methods_that_are_left_out_make_another_plan(
    int8: tuple[Path, list[str], Any], edgekit: Run, tmp_path: Path
) -> None:
    out, request, whole = int8
    left_out = [word for name in METHODS for word in ("--without", name)]
    done = edgekit(*request, *left_out, "-o", tmp_path / "plain")
    assert done.code == 0, done.err
    assert "rounding" in whole.err and "rounding" not in done.err
    full, plain = (json.loads((o / "plan.json").read_text()) for o in (out, tmp_path / "plain"))
    assert full["calibration"]["methods"] == Methods().to_json()
    assert plain["calibration"]["methods"] == PLAIN.to_json()
    assert plain["program_digest"] != full["program_digest"]
    with Bundle.open(tmp_path / "plain") as bundle:
        assert bundle.check_golden(bundle.session(bundle.artifact(scheme="w8a8"))).passed


@pytest.mark.runtime
def test_a_second_export_converts_nothing_and_gives_the_same_bytes(
    int8: tuple[Path, list[str], Any], edgekit: Run, tree: Tree, tmp_path: Path
) -> None:
    out, request, _ = int8
    assert "nothing was converted anew" not in int8[2].err
    start = time.monotonic()
    gates = ["--require-verified", "--max-float-ops", "99"]
    done = edgekit(*request, *gates, "-o", tmp_path / "again")
    assert done.code == 0
    assert "nothing was converted anew" in done.err
    assert "converting w8a8" not in done.err
    assert tree(tmp_path / "again") == tree(out)
    assert time.monotonic() - start < 30
    judged = {(g["artifact"], g["name"]): g["passed"] for g in done.document["gates"]}
    assert judged["onnxruntime-w8a8", "max-float-ops"] is True
    assert judged["onnxruntime-w8a8", "verified"] is True


@pytest.mark.runtime
def test_a_drop_over_the_limit_fails_the_export(
    edgekit: Run, shop: Path, plain: Path, tree: Tree, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(plain, out)
    request = [
        "export", f"{shop}/m.py:blunt", "--target", "onnxruntime", "--scheme", "w8a8",
        "--calib", shop / "pairs.npz", "--no-bench", "--max-drop", "2.5", "-o", out,
    ]  # fmt: skip
    done = edgekit(*request, "--json")
    assert done.code == 1
    document = done.document
    assert document["bundle"] is None
    (artifact,) = document["artifacts"]
    assert artifact["status"] == "failed"
    assert artifact["path"] is None
    assert artifact["drop_points"] > 20
    assert artifact["verification"] == "runtime", "the runtime does what the plan says"
    (gate,) = [g for g in document["gates"] if g["name"] == "max-drop"]
    assert (gate["limit"], gate["passed"]) == (2.5, False)
    assert tree(out) == tree(plain)
    # With --keep-going too there is nothing that may be shipped.
    text = edgekit(*request, "--keep-going")
    assert text.code == 1
    assert "onnxruntime-w8a8 failed: gate max-drop: " in text.out
    assert f"no bundle was written; {out} is as it was" in text.out
    assert tree(out) == tree(plain)


@pytest.mark.runtime
def test_keep_going_packs_what_was_made(
    edgekit: Run, shop: Path, plain: Path, tree: Tree, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(plain, out)
    request = [
        "export", f"{shop}/m.py:cnn", "--device", shop / "board.toml", "--scheme", "w8a8",
        "--scheme", "fp32", "--calib", shop / "pictures.npz", "--no-bench", "-o", out, "--json",
    ]  # fmt: skip
    done = edgekit(*request)
    assert done.code == 5
    assert "null: no operator aten.conv2d" in done.err
    assert tree(out) == tree(plain)
    done = edgekit(*request, "--keep-going")
    assert done.code == 1
    by_id = {a["id"]: a for a in done.document["artifacts"]}
    assert by_id["null-fp32"]["status"] == "failed"
    assert "aten.conv2d" in by_id["null-fp32"]["reason"]
    assert by_id["onnxruntime-fp32"]["status"] == "ok"
    with Bundle.open(out) as bundle:
        assert [a.id for a in bundle.artifacts] == ["onnxruntime-w8a8", "onnxruntime-fp32"]


# -- other runs, interruptions, full disks --------------------------------------------------------


def test_two_exports_to_one_place(null: Run, shop: Path, tmp_path: Path) -> None:
    waiting = tmp_path / "waiting.py"
    shutil.copy(shop / "waiting.py", waiting)
    out = tmp_path / "out"
    first = subprocess.Popen(
        [
            *COMMAND, f"{shop}/m.py:mlp", "--device", f"{shop}/board.toml", "--target", "null",
            "--eval", f"{waiting}:rows", "--no-bench", "-o", str(out),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    _wait(lambda: (tmp_path / "started").exists(), first)
    (tmp_path / "link").symlink_to(tmp_path)
    for spelling in (out, tmp_path / "link" / "out"):
        done = null("mlp", "-o", spelling, "--json")
        assert done.code == 9
        assert done.document["error"]["kind"] == "Locked"
    assert null("mlp", "-o", tmp_path / "elsewhere").code == 0
    (tmp_path / "go").touch()
    _, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    with Bundle.open(out) as bundle:
        assert bundle.golden()[0]["input"].shape == (4, 3, 4)


@pytest.mark.runtime
def test_ctrl_c_amid_a_conversion(shop: Path, plain: Path, tree: Tree, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(plain, out)
    environment = {**os.environ, "EDGEKIT_STORE": str(tmp_path / "store")}
    process = subprocess.Popen(
        [
            *COMMAND, f"{shop}/m.py:cnn", "--target", "onnxruntime", "--scheme", "fp32",
            "--no-bench", "-o", str(out), "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # Tests that run in the background of a shell inherit a Ctrl-C that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    me = psutil.Process(process.pid)
    _wait(lambda: any("edgekit.targets.worker" in c.cmdline() for c in me.children()), process)
    children = me.children(recursive=True)
    process.send_signal(signal.SIGINT)
    stdout, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    document = json.loads(stdout)
    schemas.validate(document)
    assert document["error"]["kind"] == "Interrupted"
    assert "Traceback" not in err
    assert not [c for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]
    assert tree(out) == tree(plain)
    assert {p.name for p in tmp_path.iterdir()} == {"out", "store"}


def test_a_store_without_space(shop: Path, plain: Path, tree: Tree, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: writing fails half-way."""
    out = tmp_path / "out"
    shutil.copytree(plain, out)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    done = subprocess.run(
        [
            *COMMAND, f"{shop}/m.py:mlp", "--device", f"{shop}/board.toml", "--target", "null",
            "--no-bench", "-o", str(out), "--json",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "EDGEKIT_STORE": str(tmp_path / "store")},
        preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 8, done.stderr
    assert json.loads(done.stdout)["error"]["kind"] == "StorageError"
    assert "EDGEKIT_STORE" in done.stderr
    assert tree(out) == tree(plain)
    left = [p for p in (tmp_path / "store").rglob("*") if p.is_file() and "locks" not in p.parts]
    assert left == []


FULL = """
set -e
mount -t tmpfs -o size=$SIZE tmpfs "$PLACE"
cp -r "$PLAIN" "$PLACE/out"
code=0
"$@" -o "$PLACE/out" || code=$?
diff -r "$PLAIN" "$PLACE/out"
test "$(ls -A "$PLACE")" = out
exit $code
"""


def test_a_full_disk_under_the_bundle(shop: Path, plain: Path, tmp_path: Path) -> None:
    """On a disk of its own, with room for the bundle that is there and not for the new one."""
    shutil.copytree(plain, tmp_path / "plain")
    place = tmp_path / "disk"
    place.mkdir()
    spaces = ["unshare", "--user", "--map-root-user", "--mount"]
    probe = [*spaces, "mount", "-t", "tmpfs", "tmpfs", str(place)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a disk of his own")
    blocks = sum(-(-p.stat().st_size // 4096) for p in plain.rglob("*") if p.is_file())
    done = subprocess.run(
        [
            *spaces, "sh", "-c", FULL, "sh", *COMMAND, f"{shop}/m.py:mlp", "--no-bench",
            "--device", f"{shop}/board.toml", "--target", "null", "--eval", f"{shop}/rows.npz",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ, "PLAIN": str(tmp_path / "plain"), "PLACE": str(place),
            "SIZE": str((blocks + 3) * 4096),
        },
    )  # fmt: skip
    assert done.returncode == 8, done.stdout + done.stderr
    assert "No space left on device" in done.stderr


# -- progress -------------------------------------------------------------------------------------


def test_bars_of_several_threads_do_not_fight(capsys: pytest.CaptureFixture[str]) -> None:
    """Off a terminal every bar is one plain line; a second one at a time is so on any."""
    terminal = Terminal()
    inside = threading.Barrier(2)

    def work(name: str) -> None:
        with terminal.progress(name, 3) as advance:
            inside.wait(10)
            for _ in range(3):
                advance(1)
            terminal.note(f"{name} is through")

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with terminal.progress("three") as advance:
        advance(1)
    err = capsys.readouterr().err
    assert sorted(err.splitlines()) == [
        "one", "one is through", "three", "two", "two is through",
    ]  # fmt: skip


def _wait(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until ``ready``; a process that ends before is a failure."""
    end = time.monotonic() + 90
    while not ready():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)
