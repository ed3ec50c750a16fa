"""What the rounds of a measurement come to: conditions, and figures that are no headline."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bench import document, layer_times, steady, sustained
from edgekit.bench.conditions import unlike
from edgekit.bench.measure import Settings, bench
from edgekit.bench.request import BenchRequest
from edgekit.errors import UsageError, WorkerCrashed
from edgekit.schemas import validate
from edgekit.signature import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", (1, 4)),), (TensorSpec("y", (1, 3)),))
FACTS: dict[str, Any] = {"usable_cores": 8, "load_average": 0.5, "cpu": "x"}
LOOK: dict[str, Any] = {
    "temperature_c": 40.0,
    "frequency_mhz": 2000,
    "load_average": 0.5,
    "running": 1,
    "throttling": [],
    "governors": ["schedutil"],
    "battery": {"percent": 80.0, "status": "discharging", "power_save": False, "screen_on": True},
    "throttle_marks": {"core_throttle_count": 5.0},
}
RNG = np.random.default_rng(0)


def answer(p50: float = 5.0, n: int = 40, **changes: Any) -> dict[str, Any]:
    """A worker's answer for one round, with changes; ``after`` may change single readings."""
    samples = [float(v) for v in p50 * (1 + 0.01 * np.abs(RNG.standard_normal(n)))]
    after = {**copy.deepcopy(LOOK), **changes.pop("after", {})}
    before = {**copy.deepcopy(LOOK), **changes.pop("before", {})}
    return {
        "nonce": "n",
        "load_ms": 9.0,
        "first_ms": 8.0,
        "warmup_ms": [p50] * 20,
        "samples_ms": samples,
        "peak_bytes": 90 << 20,
        "added_bytes": 9 << 20,
        "pss_bytes": 70 << 20,
        "reported": None,
        "runtime_version": "runtime 1.0",
        "cpu_share": 0.99,
        "memory_reset": True,
        "affinity": [4, 5],
        "gate": {"state": "ok", "waited_s": 0.0, "temperature_c": 40.0, "throttling": []},
        "before": before,
        "looks": [],
        "after": after,
        "energy": {"joules": 0.4, "source": "rapl", "seconds": 1.0, "reason": None},
        "clocks": {"timed_s": 0.0, "boottime_s": 0.0, "resolution_ns": 1.0},
        "timed_s": 1.0,
        **changes,
    }


class Scripted:
    """A device whose answers are given; for what no machine here does, such as throttling."""

    where = "fake:scripted"

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers, self.questions = list(answers), []

    def facts(self) -> dict[str, Any]:
        return dict(FACTS)

    def ask(self, question: Any, files: Any, **how: Any) -> dict[str, Any]:
        self.questions.append((question, how))
        return self.answers[(len(self.questions) - 1) % len(self.answers)]


def measured(*answers: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The document of one artifact with these answers, one a round."""
    request = BenchRequest("a", "null", Path("a.npz"), SIGNATURE)
    settings = {"rounds": len(answers), **settings}
    found = bench([request], worker=Scripted(*answers), **settings)
    validate(found)
    return found


def one(*answers: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The entry of one artifact."""
    result: dict[str, Any] = measured(*answers, **settings)["results"][0]
    return result


# Figures that are no headline.


def test_run_12_few_calls_are_insufficient_and_say_so() -> None:
    assert one(answer(n=64), answer(n=64))["insufficient"] == []
    assert one(answer(p50=900.0, n=12))["insufficient"] == []  # 10 s are enough too
    (reason,) = one(answer(n=60), answer(n=60))["insufficient"]
    assert reason.startswith("few: 120 calls of 0.6")


@pytest.mark.parametrize("wrong", [0.0, -3.0])
def test_run_12_a_clock_that_stands_still_or_goes_back_gives_no_figure(wrong: float) -> None:
    spoiled = answer(n=200)
    spoiled["samples_ms"][7] = wrong
    found = one(spoiled)
    assert found["latency_ms"] is None
    assert found["insufficient"] == ["clock: 1 calls took 0 ms or less"]
    assert len(found["samples_ms"]) == 200  # what was measured is kept


def test_run_12_sleep_and_coarse_clocks_are_seen() -> None:
    slept = answer(n=200, clocks={"timed_s": 0.0, "boottime_s": 3.5, "resolution_ns": 1.0})
    assert one(slept)["insufficient"] == ["asleep: the machine slept for 3.5 s meanwhile"]
    coarse = answer(p50=1.0, n=200, clocks={"resolution_ns": 1e6})
    assert one(coarse)["insufficient"] == ["clock: its step of 1000000 ns is over 1 % of a call"]


def test_run_12_a_clock_that_runs_too_fast_is_seen() -> None:
    fast = answer(n=200, clocks={"timed_s": 60.0, "resolution_ns": 1.0})
    (reason,) = one(fast)["insufficient"]
    assert reason.startswith("clock: the device counted 60 s where 0")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "5", None, True])
def test_run_12_what_is_no_number_is_no_answer(value: object) -> None:
    spoiled = answer()
    spoiled["samples_ms"][3] = value
    with pytest.raises(WorkerCrashed, match="artifact 'a'"):
        one(spoiled)
    with pytest.raises(WorkerCrashed, match="timed no call"):
        one(answer() | {"samples_ms": []})


def test_run_12_a_wrong_clock_of_the_device_is_a_fact_and_no_latency() -> None:
    class Skewed(Scripted):
        def facts(self) -> dict[str, Any]:
            return {**FACTS, "clock": 1000.0}

    request = BenchRequest("a", "null", Path("a.npz"), SIGNATURE)
    found = bench([request], worker=Skewed(answer(n=200)), rounds=1)
    assert found["facts"]["clock_skew_s"] < -1e8
    assert found["results"][0]["latency_ms"]["p50"] > 0


# Heat.


def test_run_09_a_chip_that_gets_warm_and_slow_is_throttled() -> None:
    hot = {"temperature_c": 71.0}
    rounds = [*(answer(5.0) for _ in range(3)), *(answer(5.8, after=hot) for _ in range(3))]
    found = one(*rounds)
    assert found["conditions"]["thermal"] == "throttled"
    assert found["conditions"]["slowed"] == pytest.approx(1.16, abs=0.01)
    assert any(note.startswith("throttled: ") for note in found["notes"])
    assert len(found["samples_ms"]) == 240  # nothing is left out
    # As slow, and no warmer: somebody else's load, not heat.
    cool = one(*(answer(5.0) for _ in range(3)), *(answer(5.8) for _ in range(3)))
    assert cool["conditions"]["thermal"] == "ok"
    assert any(note.startswith("slowed: ") for note in cool["notes"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"after": {"throttling": ["under-voltage"]}}, "under-voltage"),
        ({"after": {"throttle_marks": {"core_throttle_count": 6.0}}}, "core_throttle_count rose"),
        (
            {"gate": {"state": "hot", "waited_s": 60.0, "throttling": []}},
            "still hot when the time to cool down was over",
        ),
    ],
)
def test_run_09_what_tells_of_throttling_is_believed(changes: dict[str, Any], reason: str) -> None:
    found = one(answer(), answer(**changes))["conditions"]
    assert (found["thermal"], found["throttling"]) == ("throttled", [reason])


def test_run_09_without_a_sensor_nobody_knows() -> None:
    blind = {"temperature_c": None, "throttling": None}
    gate = {"state": "unknown", "waited_s": 0.0, "throttling": None}
    found = one(answer(before=blind, after=blind, gate=gate))
    assert found["conditions"]["thermal"] == "unknown"
    assert any(note.startswith("thermal_unknown: ") for note in found["notes"])


def test_run_09_the_time_to_cool_down_is_one_for_all_rounds() -> None:
    waits = [{"state": "cooled", "waited_s": s, "throttling": []} for s in (20.0, 25.0, 0.0)]
    worker = Scripted(*(answer(gate=gate) for gate in waits))
    request = BenchRequest("a", "null", Path("a.npz"), SIGNATURE)
    found = bench([request], worker=worker, rounds=3, cool_down_s=40.0, max_temperature_c=55.0)
    budgets = [question["thermal"] for question, _ in worker.questions]
    assert budgets == [{"limit_c": 55.0, "budget_s": left} for left in (40.0, 20.0, 0.0)]
    assert found["results"][0]["conditions"]["waited_s"] == 45.0
    assert found["results"][0]["conditions"]["thermal"] == "cooled"


# Conditions, and comparing.


def test_run_10_unlike_conditions_are_named() -> None:
    base = one(*(answer() for _ in range(6)))
    assert unlike(base, copy.deepcopy(base)) == []

    def against(**changes: Any) -> list[str]:
        other = one(*(answer(**copy.deepcopy(changes)) for _ in range(6)))
        return unlike(base, other)

    battery = LOOK["battery"]
    for changes, reason in (
        ({"affinity": [0, 1]}, "affinity 4, 5 against 0, 1"),
        ({"before": {"load_average": 6.0}}, "the second was measured on a busy machine"),
        ({"after": {"frequency_mhz": 1500}}, "clocks of 2000 against 1500 MHz"),
        ({"after": {"throttling": ["x"]}}, "a was throttled and the other was not"),
    ):
        assert against(**changes) == [reason]
    for state, reason in (
        ({"power_save": True}, "power saving: False against True"),
        ({"screen_on": False}, "the screen on: True against False"),
        ({"percent": 11.0}, "battery at 80 % against 11 %"),
    ):
        both = {"battery": {**battery, **state}}
        assert against(before=both, after=both) == [reason]
    charging = {"battery": {**battery, "status": "charging"}}
    assert against(before=charging, after=charging) == ["battery discharging against charging"]
    governor = {"governors": ["performance"]}
    assert against(before=governor, after=governor) == ["governors schedutil against performance"]


def test_run_10_changes_between_start_and_end_are_noted() -> None:
    saving = {"percent": 12.0, "status": "discharging", "power_save": True, "screen_on": False}
    changed = {"frequency_mhz": 1500, "load_average": 9.0, "battery": saving}
    notes = one(answer(after=changed))["notes"]
    for word in ("clock: the CPUs ran at 2000", "load: others came", "battery: at 12 %"):
        assert any(note.startswith(word) for note in notes), (word, notes)
    assert "battery: power saving is on" in notes
    assert any(note.startswith("screen: it was off") for note in notes)
    assert one(answer(n=200))["notes"] == ["runtime: runtime 1.0"]


def test_run_10_unlike_conditions_are_compared_only_by_force() -> None:
    requests = [BenchRequest(n, "null", Path("a.npz"), SIGNATURE) for n in ("a", "b")]

    def compared(force: bool) -> dict[str, Any]:
        # Rounds alternate: a b, b a, ...; b is throttled and looks faster for it.
        hot = {"throttling": ["severe"]}
        turns = [answer(5.0), answer(4.0, after=hot), answer(4.0, after=hot), answer(5.0)]
        worker = Scripted(*turns)
        found = bench(requests, worker=worker, rounds=6, compare=[("a", "b")], force=force)
        validate(found)
        comparison: dict[str, Any] = found["comparisons"][0]
        return comparison

    refused = compared(force=False)
    assert refused["ratio"] is None and refused["verdict"] == "no difference shown"
    assert refused["unlike"] == ["b was throttled and the other was not"]
    forced = compared(force=True)
    assert forced["verdict"] == "faster" and forced["unlike"] == refused["unlike"]


def test_energy_is_a_calls_share_or_a_reason() -> None:
    found = one(answer(n=40), answer(n=40))["energy"]
    assert found["joules_per_call"] == pytest.approx(0.8 / 80)
    none = {"joules": None, "source": None, "seconds": 1.0, "reason": "no counter"}
    found = one(answer(), answer(energy=none))["energy"]
    assert found == {"joules_per_call": None, "source": None, "reason": "no counter"}


def test_late_warm_up_is_noted() -> None:
    late = answer(n=5) | {"samples_ms": [8.0] * 30 + [5.0] * 60, "warmup_ms": [8.0] * 5}
    found = one(*[late] * 3)
    assert found["steady"]["states"] == {"warmup": 3}
    assert found["steady"]["unsteady_rounds"] == 3
    assert any(note.startswith("unsteady: in 3 of 3 rounds") for note in found["notes"])
    in_time = answer() | {"samples_ms": [5.0] * 60, "warmup_ms": [8.0] * 30}
    assert one(in_time)["steady"] == {
        "method": steady.METHOD,
        "states": {"warmup": 1},
        "unsteady_rounds": 0,
    }


def test_settings_are_checked_and_kept() -> None:
    for wrong, words in (
        ({"cpus": "huge"}, "allowed are numbers, 'big' and 'little'"),
        ({"cool_down_s": -1.0}, "cool_down_s is -1.0"),
        ({"sustained_s": float("inf")}, "sustained_s is inf"),
    ):
        with pytest.raises(UsageError, match=words):
            Settings(**wrong)
    found = measured(answer(), cpus=(4, 5), threads=2)
    assert found["settings"]["cpus"] == [4, 5] and found["settings"]["threads"] == 2
    assert found["where"] == "fake:scripted"


# A long run.


def test_sustained_tells_the_first_minute_from_the_last() -> None:
    samples = [10.0] * 9000 + [15.0] * 6000  # 90 s, then 90 s at two thirds of the clock
    looks = [
        {"at_s": t, "n": n, "temperature_c": c, "frequency_mhz": f}
        for t, n, c, f in ((60.0, 6000, 45.0, 2000), (120.0, 11000, 80.0, 1300))
    ]
    found = sustained.summary(answer() | {"samples_ms": samples, "looks": looks}, 8)
    assert found["seconds"] == pytest.approx(180.0)
    assert found["window_s"] == 60.0
    assert (found["first"]["p50"], found["last"]["p50"]) == (10.0, 15.0)
    assert found["ratio"] == 1.5
    assert found["energy"]["joules_per_call"] == pytest.approx(0.4 / 15000)
    thinned = answer() | {"samples_ms": samples[::10], "kept_every": 10, "looks": []}
    again = sustained.summary(thinned, 8)
    assert again["seconds"] == pytest.approx(180.0) and again["ratio"] == 1.5
    assert [p["n"] for p in found["series"]] == [6000, 5000, 4000]
    assert [p["temperature_c"] for p in found["series"]] == [45.0, 80.0, None]
    assert [p["p50"] for p in found["series"]] == [10.0, 10.0, 15.0]


def test_a_sustained_run_is_one_process_after_the_rounds(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    width = 40_000  # so that a call takes its time
    shapes = {"w0": (4, width), "b0": (width,), "w1": (width, 3), "b1": (3,)}
    path = tmp_path / "a.npz"
    np.savez(path, **{k: rng.standard_normal(v).astype("f") for k, v in shapes.items()})
    request = BenchRequest("a", "null", path, SIGNATURE)
    found = bench([request], runs=4, rounds=2, sustained_s=1.2, profile=True)
    validate(found)
    (result,) = found["results"]
    assert len(result["samples_ms"]) == 4  # apart from the long run's
    long = result["sustained"]
    assert 0.5 < long["seconds"] < 1.4
    assert len(long["series"]) >= 2 and sum(p["n"] for p in long["series"]) == len(
        long["samples_ms"]
    )
    profile = result["profile"]
    assert [layer["layer"] for layer in profile["layers"]] == ["linear0", "linear1"]
    assert profile["sum_ms"] == pytest.approx(sum(layer["ms"] for layer in profile["layers"]))
    assert sum(layer["share"] for layer in profile["layers"]) == pytest.approx(1.0)
    assert 0 < profile["sum_ms"] < profile["profiled_ms"] * 2
    assert profile["calls"] == 50


# Names of layers.


def test_layers_get_the_models_names_where_they_can_be_told(tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(b"TFL3")
    told = {
        "how": "x",
        "resolution_us": 1.0,
        "runtime_version": "x",
        "plain_ms": 1.0,
        "profiled_ms": 1.3,
        "inside_ms": None,
        "sum_ms": 0.5,
        "calls": 9,
        "nonce": "n",
    }

    def named(target: str, *names: str) -> list[str | None]:
        entries = [{"name": n, "kind": "k", "kernel": None, "ms": 0.25} for n in names]
        found = layer_times.summary({**told, "layers": entries}, target, tmp_path / "damaged")
        assert found["covered"] == 0.5 and found["overhead"] == 1.3
        assert any("account for 50%" in note for note in found["notes"])
        assert any("1.30 times as long" in note for note in found["notes"])
        return [layer["layer"] for layer in found["layers"]]

    assert named("onnxruntime", "node_conv2d_1_token_4", "Transpose_token_27") == ["conv2d_1", None]
    long = "convolution_3/aten.convolution.default/GroupConvolution"
    assert named("openvino", long, "Result_138") == ["convolution_3", None]
    assert named("tflite", "2: Convolution (NHWC, QC8) IGEMM", "x") == [None, None]


@pytest.mark.parametrize(
    ("tensor", "path"),
    [
        (
            "m.Net/torch.nn.modules.container.Sequential_net/torch.nn.modules.conv.Conv2d_0;1",
            "net.0",
        ),
        ("m.Net/a.ReLU_act;;m.Net/b.Sequential_body/c.Block_3/d.Conv2d_conv1;1", "body.3.conv1"),
        ("m.Net/a.Layer_1/b.Attention_self;;m.Net/a.Layer_0/b.Attention_self;3", "1.self"),
        ("m.Net/a.Output_out;;m.Net/a.Output_out/b.Linear_dense;", "out"),
        ("StatefulPartitionedCall:0", "StatefulPartitionedCall:0"),
    ],
)
def test_module_paths_are_read_from_litert_names(tensor: str, path: str) -> None:
    assert layer_times.module_path(tensor) == path


def test_a_device_that_tells_less_is_measured_all_the_same() -> None:
    """As a vendor's own binary does, which tells latencies and nothing else."""
    found = one({"samples_ms": [5.0] * 150}, {"samples_ms": [5.1] * 150})
    assert found["latency_ms"]["n"] == 300
    assert found["peak_memory_mib"] is None and found["load_ms"] is None
    assert found["energy"] is None and found["conditions"]["thermal"] == "unknown"
    assert document.ENOUGH_CALLS == 128
