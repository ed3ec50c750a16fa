"""Bench: what is measured, how it is compared, and what happens when a runtime dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bench.facts import host_facts
from edgekit.bench.measure import BenchRequest, bench, random_feeds, stated_signature
from edgekit.bench.process import run_bounded
from edgekit.bench.subjects import bundle_requests, file_request
from edgekit.cli.main import main
from edgekit.errors import BadData, UsageError, WorkerCrashed
from edgekit.runtime.bundle import Bundle
from edgekit.schemas import validate
from edgekit.signature import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", (1, 4)),), (TensorSpec("y", (1, 3)),))


def chain(path: Path, *, width: int = 4) -> Path:
    """A null artifact 4 -> width -> 3."""
    rng = np.random.default_rng(1)
    shapes = {"w0": (4, width), "b0": (width,), "w1": (width, 3), "b1": (3,)}
    np.savez(path, **{k: rng.standard_normal(v).astype("f") for k, v in shapes.items()})
    return path


def request(path: Path, artifact: str = "a", scheme: str | None = "fp32") -> BenchRequest:
    """A request for a null artifact."""
    return BenchRequest(artifact, "null", path, SIGNATURE, scheme=scheme, delegate="cpu", bytes=9)


def python(code: str) -> list[str]:
    """A worker command that runs ``code`` with the request's file as ``sys.argv[1]``."""
    return [sys.executable, "-c", textwrap.dedent(code)]


# A worker that sleeps 1 ms a call, or 2 ms where the file is named slow, and logs its turns.
SLEEPER = """
    import sys, time
    from edgekit.bench import worker
    from edgekit.runtime import session_null
    plain, load = session_null.NullSession.run, session_null.open
    def run(self, feeds):
        time.sleep(0.002 if "slow" in self._what else 0.001)
        return plain(self, feeds)
    def open_(path, signature, threads):
        with (path.parent / "turns").open("a") as log:
            log.write(path.stem + " ")
        return load(path, signature, threads)
    session_null.NullSession.run, session_null.open = run, open_
    sys.exit(worker.main(sys.argv[1:]))
"""


# The document.


def test_a_measurement_keeps_every_sample_and_fits_the_schema(tmp_path: Path) -> None:
    path = chain(tmp_path / "a.npz")
    steps: list[int] = []
    document = bench([request(path)], runs=25, rounds=2, threads=2, progress=steps.append)
    validate(document)
    (result,) = document["results"]
    samples = sorted(result["samples_ms"])
    assert len(samples) == 25 == result["latency_ms"]["n"]
    assert result["latency_ms"]["p50"] == samples[12]
    assert result["latency_ms"]["p90"] == samples[22]  # nearest rank: ceil(0.9 * 25) = 23rd
    assert result["latency_ms"]["p99"] is None
    assert samples[0] > 0
    assert result["threads"] == 2
    assert 5 < result["peak_memory_mib"] < 500
    assert 0 <= result["added_memory_mib"] < result["peak_memory_mib"]
    assert result["load_ms"] > 0 and result["first_ms"] > 0
    assert document["comparisons"] == []
    assert steps == [1, 1]
    assert any(note.startswith("runtime: numpy") for note in result["notes"])


def test_seconds_bound_a_slow_artifact(tmp_path: Path) -> None:
    start = time.monotonic()
    document = bench(
        [request(chain(tmp_path / "slow.npz"))],
        runs=100_000,
        max_seconds=0.2,
        rounds=2,
        worker=python(SLEEPER),
    )
    assert time.monotonic() - start < 10
    n = document["results"][0]["latency_ms"]["n"]
    assert 2 <= n <= 100  # 0.2 s of calls that take 2 ms or more
    notes = document["results"][0]["notes"]
    assert any(note.startswith("waiting: ") for note in notes)  # a sleep needs no core


def test_facts_say_what_the_machine_is() -> None:
    facts = host_facts()
    assert facts["cores"] == os.cpu_count()
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["kernel"] == os.uname().release
    assert facts["memory_mib"] > 100
    json.dumps(facts, allow_nan=False)


# Memory.


def test_added_memory_is_the_models(tmp_path: Path) -> None:
    small, large = chain(tmp_path / "s.npz"), chain(tmp_path / "l.npz", width=1_200_000)
    document = bench([request(small, "s"), request(large, "l")], runs=3, rounds=1)
    s, m = (result["added_memory_mib"] for result in document["results"])
    weights = 1_200_000 * 8 * 4 / 2**20  # 36.6 MiB
    assert s < 8
    assert weights < m < 5 * weights


def test_the_peak_covers_what_was_freed_and_nothing_from_before() -> None:
    # In a process of its own, as the worker is: here a library may have set malloc to keep what is
    # freed, and then a second array takes no more memory.
    script = """
        import numpy as np
        from edgekit.bench.worker import PeakMemory
        block = 64 * 2**20
        np.ones(2 * block, np.uint8).sum()  # a peak from before, larger than the one measured
        peak = PeakMemory()
        peak.sample()
        assert peak.peak - peak.start < block / 2
        np.ones(block, np.uint8).sum()
        peak.sample()
        if peak.reset:
            assert 0.9 * block < peak.peak - peak.start < 1.5 * block
        assert peak.process_peak >= peak.peak
    """
    subprocess.run(python(script), check=True, timeout=60)


# Comparing.


def test_blocks_take_turns_and_the_slower_is_called_slower(tmp_path: Path) -> None:
    fast, slow = chain(tmp_path / "fast.npz"), chain(tmp_path / "slow.npz")
    requests = [request(fast, "float", "fp32"), request(slow, "int8", "w8a8")]
    limits = {"runs": 48, "rounds": 6, "max_seconds": 0.6}
    document = bench(requests, worker=python(SLEEPER), **limits)
    turns = (tmp_path / "turns").read_text().split()
    assert turns == ["fast", "slow", "slow", "fast"] * 3
    (comparison,) = document["comparisons"]
    assert (comparison["a"], comparison["b"]) == ("float", "int8")
    assert comparison["verdict"] == "slower"
    assert 1.2 < comparison["ratio"] < 2.2
    low, high = comparison["ci95"]
    assert 1.0 < low <= comparison["ratio"] <= high
    validate(document)
    turned = bench(requests, worker=python(SLEEPER), compare=[("int8", "float")], **limits)
    assert turned["comparisons"][0]["verdict"] == "faster"


def test_too_few_rounds_show_no_difference(tmp_path: Path) -> None:
    fast, slow = chain(tmp_path / "fast.npz"), chain(tmp_path / "slow.npz")
    requests = [request(fast, "float", "fp32"), request(slow, "int8", "w8a8")]
    document = bench(requests, runs=6, rounds=2, max_seconds=0.2, worker=python(SLEEPER))
    (comparison,) = document["comparisons"]
    assert comparison["ratio"] is None and comparison["ci95"] is None
    assert comparison["verdict"] == "no difference shown"
    validate(document)


def test_only_artifacts_of_one_target_are_compared_unasked(tmp_path: Path) -> None:
    path = chain(tmp_path / "a.npz")
    requests = [request(path, "f"), request(path, "q", "w8a8"), request(path, "bare", None)]
    document = bench(requests, runs=3, rounds=1)
    assert [(c["a"], c["b"]) for c in document["comparisons"]] == [("f", "q")]
    with pytest.raises(UsageError, match="'nobody'"):
        bench(requests, runs=1, rounds=1, compare=[("f", "nobody")])


# Requests that cannot be measured.


def test_bad_requests_are_usage_errors(tmp_path: Path) -> None:
    path = chain(tmp_path / "a.npz")
    for requests, options, words in (
        ([], {}, "no artifact"),
        ([request(path), request(path)], {}, "not unique"),
        ([request(path)], {"runs": 0}, "runs is 0"),
        ([request(path)], {"rounds": 0}, "rounds is 0"),
        ([request(path)], {"threads": 0}, "threads is 0"),
        ([request(path)], {"max_seconds": 0.0}, "max_seconds"),
        ([request(path)], {"max_seconds": float("nan")}, "max_seconds"),
    ):
        with pytest.raises(UsageError, match=words):
            bench(requests, **options)


def test_feeds_that_do_not_fit_are_refused_before_a_worker_starts(tmp_path: Path) -> None:
    bad = BenchRequest("a", "null", tmp_path / "x", SIGNATURE, feeds={"x": np.zeros((1, 5))})
    with pytest.raises(BadData, match=r"\(1, 5\)"):
        bench([bad])


def test_a_damaged_artifact_is_the_same_error_as_without_a_worker(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(BadData, match=r"artifact 'broken' on null: .*not readable"):
        bench([request(path, "broken")], rounds=1)


# Workers that die, hang or lie.


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import ctypes; ctypes.string_at(0)", "died from SIGSEGV"),
        ("import os; os.abort()", "died from SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)", "died from SIGKILL"),
        ("raise RuntimeError('the plug-in is broken')", "status 1: RuntimeError: the plug-in"),
        ("pass", "not JSON"),
        ("print('hello')", "not JSON"),
        ("print('[' * 100000)", "not JSON"),
        ("print('[1]')", "nonce"),
        ("print('{\"samples_ms\": [1.0]}')", "nonce"),
        ('print(\'{"nonce": "0123456789abcdef0123456789abcdef"}\')', "nonce"),
        (
            "import json, sys; q = json.load(open(sys.argv[1]));"
            "print(json.dumps({'nonce': q['nonce'], 'error': {'kind': 'os', 'message': 'no'}}))",
            "no",
        ),
    ],
)
def test_run_06_a_worker_that_dies_or_does_not_answer_is_named(
    tmp_path: Path, code: str, words: str
) -> None:
    path = chain(tmp_path / "a.npz")
    with pytest.raises(WorkerCrashed, match="artifact 'tflite-w8a8' on null.*" + words) as caught:
        bench([request(path, "tflite-w8a8")], rounds=1, worker=[sys.executable, "-c", code])
    assert caught.value.exit_code == 5
    assert ("memory runs out" in caught.value.hint) == ("SIGKILL" in words)


def test_run_04_a_hanging_worker_is_stopped_with_its_children(tmp_path: Path) -> None:
    path = chain(tmp_path / "a.npz")
    code = f"""
        import os, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
        time.sleep(60)
    """
    start = time.monotonic()
    with pytest.raises(WorkerCrashed, match="did not finish within 2 s"):
        bench([request(path)], rounds=1, timeout=2.0, worker=python(code))
    assert time.monotonic() - start < 10
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().rsplit(")")[-1].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the worker's child outlived it")


def test_run_04_a_flood_of_output_is_cut_off() -> None:
    flood = "import sys\nwhile True: sys.stdout.write('x' * 65536)"
    with pytest.raises(WorkerCrashed, match="flooder wrote more than 1000000 bytes"):
        run_bounded([sys.executable, "-c", flood], timeout=30, what="flooder", max_output=1_000_000)
    noisy = "import sys\nfor _ in range(99): sys.stderr.write('e' * 65536)\nprint('end')"
    done = run_bounded([sys.executable, "-c", noisy], timeout=30, what="noisy")
    assert (done.code, done.stdout, set(done.stderr)) == (0, b"end\n", {"e"})


def test_what_a_runtime_prints_does_not_spoil_the_answer(tmp_path: Path) -> None:
    code = """
        import os, sys
        from edgekit.bench import worker
        from edgekit.runtime import session_null
        load = session_null.open
        def noisy(*arguments):
            os.write(1, b"INFO: created a delegate")
            return load(*arguments)
        session_null.open = noisy
        sys.exit(worker.main(sys.argv[1:]))
    """
    path = chain(tmp_path / "a.npz")
    document = bench([request(path)], runs=2, rounds=1, worker=python(code))
    assert document["results"][0]["latency_ms"]["n"] == 2


# What to feed, and from where.


def test_random_feeds_fit_any_signature() -> None:
    signature = Signature(
        (
            TensorSpec("ids", (2, 500), "int64", high=7),
            TensorSpec("mask", (2, 500), "int32"),
            TensorSpec("picture", (1, 64, 64), "uint8"),
            TensorSpec("steps", (1, 4096), "int8"),
            TensorSpec("flag", (8,), "bool"),
            TensorSpec("half", (3,), "float16"),
            TensorSpec("scalar", ()),
        )
    )
    feeds = random_feeds(signature)
    signature.check_inputs(feeds, what="test")
    assert set(feeds["ids"].ravel()) == set(range(8))
    assert set(feeds["mask"].ravel()) == {0, 1}
    assert (feeds["picture"].min(), feeds["picture"].max()) == (0, 255)
    assert (feeds["steps"].min(), feeds["steps"].max()) == (-128, 127)
    again = random_feeds(signature)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)


def test_a_bundle_is_fed_with_its_golden_vectors(null_bundle: Path) -> None:
    with Bundle.open(null_bundle) as bundle:
        requests = bundle_requests(bundle)
        assert [r.artifact for r in requests] == ["null-fp32", "null-w8a8"]
        assert requests[0].bytes == (null_bundle / "null/fp32.npz").stat().st_size
        feeds = requests[0].feeds
        assert feeds is not None
        np.testing.assert_array_equal(feeds["x"], bundle.golden()[0]["x"][:1])
        (one,) = bundle_requests(bundle, ("null-w8a8",))
        assert one.scheme == "w8a8"
        with pytest.raises(UsageError, match="Did you mean 'null-w8a8'"):
            bundle_requests(bundle, ("null-w8a",))


def test_a_bare_file_tells_its_signature_to_a_worker(tmp_path: Path) -> None:
    path = chain(tmp_path / "a.npz")
    assert stated_signature("null", path).inputs[0].shape == (1, 4)
    found = file_request(path)
    assert (found.artifact, found.target, found.scheme) == ("a.npz", "null", None)
    with pytest.raises(UsageError, match=r"artifacts end in \.tflite"):
        file_request(tmp_path / "a.pt")
    with pytest.raises(BadData, match="not a file"):
        file_request(tmp_path / "absent.onnx")
    with pytest.raises(WorkerCrashed, match=r"artifact 'a\.npz' on null: the worker died"):
        stated_signature("null", path, worker=python("import os; os.abort()"))


# The verb.


def run_main(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `edgekit bench`."""
    code = main(["bench", *args])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_verb_measures_a_bundle(capsys: pytest.CaptureFixture[str], null_bundle: Path) -> None:
    options = ["--runs", "12", "--rounds", "6", "--json"]
    code, out, err = run_main(capsys, str(null_bundle), *options)
    document: dict[str, Any] = json.loads(out)
    validate(document)
    assert code == 0
    assert [r["artifact"] for r in document["results"]] == ["null-fp32", "null-w8a8"]
    assert document["comparisons"][0]["a"] == "null-fp32"
    assert "measuring 2 artifacts" in err


def test_the_verb_prints_a_table_for_one_artifact(
    capsys: pytest.CaptureFixture[str], null_bundle: Path
) -> None:
    options = ["--artifact", "null-w8a8", "--runs", "2", "--rounds", "1"]
    code, out, _ = run_main(capsys, str(null_bundle), *options)
    assert code == 0
    assert "null-w8a8" in out and "p50 ms" in out and "null-fp32" not in out


def test_the_verb_measures_a_bare_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = chain(tmp_path / "a.npz")
    code, out, _ = run_main(capsys, str(path), "--runs", "2", "--rounds", "1", "--json")
    assert code == 0
    assert json.loads(out)["results"][0]["scheme"] is None
    code, out, err = run_main(capsys, str(path), "--artifact", "x", "--json")
    assert code == 2
    assert json.loads(out)["error"]["kind"] == "UsageError"
    assert "is one artifact" in err


def test_the_verb_refuses_a_spoiled_bundle(
    capsys: pytest.CaptureFixture[str], null_bundle: Path
) -> None:
    path = null_bundle / "null/fp32.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    code, out, err = run_main(capsys, str(null_bundle))
    assert (code, out) == (6, "")
    assert "does not have the hash" in err
