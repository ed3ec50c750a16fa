"""The gates on what was made, one by one: what holds, what fails and with which words, what can't
be judged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekit import device
from edgekit.artifact import Artifact
from edgekit.device import Budgets, Job
from edgekit.export.counting import Source, placed
from edgekit.export.document import Row, broken, judged
from edgekit.export.gates import SMALL, Context, truth
from edgekit.export.request import ExportRequest

WEIGHT = {"name": "0.weight", "dtype": "int8", "bytes": 1000, "digest": "d0"}
OTHER = {"name": "2.weight", "dtype": "int8", "bytes": 500, "digest": "d2"}
LAYERS = [
    {"name": "0 (conv2d)", "macs": 900, "integer": True},
    {"name": "2 (linear)", "macs": 100, "integer": False},
]
COUNTED = {
    "planned": True, "layers": LAYERS, "products": 0, "weights": [WEIGHT, OTHER], "stored": 1600,
}  # fmt: skip
PLACEMENT = {
    "ops": {"CONV_2D": 1, "FULLY_CONNECTED": 1, "QUANTIZE": 1},
    "float_ops": 1,
    "undelegated_ops": 0,
    "first_undelegated": None,
    "first_fallback": "FULLY_CONNECTED gives float32 (y)",
    "reasons": [{"operator": "FULLY_CONNECTED", "count": 1, "why": "the plan keeps it in float"}],
    "bytes_by_dtype": {"int8": 1500, "float32": 40},
    "ops_by_dtype": {"integer": 1, "float": 1, "convert": 1},
    "layers": {"integer": 1, "float": 1},
}

Make = Callable[..., Row]


@pytest.fixture
def row(tmp_path: Path) -> Make:
    """A row with an artifact and its float twin on disk, as a conversion leaves them."""

    def artifact(name: str, scheme: str, size: int, facts: Mapping[str, Any]) -> Artifact:
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "model.tflite").write_bytes(b"x" * size)
        (folder / "convert.json").write_text(json.dumps(facts))
        made = [folder / "model.tflite"]
        return Artifact.from_files(made, target="tflite", delegate="xnnpack", scheme=scheme)

    def make(
        scheme: str = "w8a8",
        *,
        size: int = 40_000,
        twin: int | None = 100_000,
        constants: int = 4 * 24_000,
        stored: list[dict[str, Any]] | None = None,
        devices: tuple[str, ...] = ("host",),
        **placement: Any,
    ) -> Row:
        facts = {"placement": {**PLACEMENT, **placement}, "stored": stored or []}
        beside = {"placement": {**PLACEMENT, "bytes_by_dtype": {"float32": constants}}}
        return Row(
            Job("tflite", scheme, "xnnpack", devices, 1),
            artifact("made", scheme, size, facts),
            None if twin is None else artifact("twin", "fp32", twin, beside),
            placement=facts["placement"],
        )

    return make


def context(
    request: ExportRequest | None = None,
    *,
    counted: Mapping[str, Any] = COUNTED,
    source: Source | None = None,
    parameters: int = 1600,
    budgets: Budgets | None = None,
    devices: tuple[str, ...] = ("host", "pixel-8"),
) -> Context:
    profiles = {name: device.load(name) for name in devices}
    if budgets is not None:
        profiles = {n: d.model_copy(update={"budgets": budgets}) for n, d in profiles.items()}
    ids = [f"tflite-{scheme}" for scheme in ("w8a8", "w8", "fp32")]
    request = request or ExportRequest()
    return Context(request, profiles, dict.fromkeys(ids, counted), source, parameters)


def find(gates: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = [gate for gate in gates if gate["name"] == name]
    return found


def bench(ratio: float | None, ci95: list[float] | None, verdict: str) -> dict[str, Any]:
    pair = {"a": "tflite-fp32", "b": "tflite-w8a8", "metric": "latency_p50"}
    result = {
        "artifact": "tflite-w8a8", "latency_ms": {"p50": 1.0, "p90": 2.0, "p99": None, "n": 20},
        "peak_memory_mib": 40.0,
    }  # fmt: skip
    comparison = {**pair, "ratio": ratio, "ci95": ci95, "verdict": verdict}
    return {"results": [result], "comparisons": [comparison]}


# -- smaller and faster ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "constants", "passed"),
    [(99_999, SMALL, True), (100_000, SMALL, False), (100_000, SMALL - 1, None), (9, 9, True)],
)
def test_a_quantized_file_is_smaller_than_the_float_one(
    size: int, constants: int, passed: bool | None, row: Make
) -> None:
    gate = find(truth([row(size=size, constants=constants)], context()), "smaller")
    assert (gate["limit"], gate["value"], gate["passed"]) == (100_000, size, passed)
    assert f"{size:,} bytes, 100,000 in float" in gate["detail"]


def test_without_a_float_file_nothing_is_said_of_size(row: Make) -> None:
    assert find(truth([row(twin=None)], context()), "smaller")["passed"] is None


@pytest.mark.parametrize(("least", "passed"), [(40_001, True), (40_000, None), (None, None)])
def test_without_a_float_file_the_float_models_numbers_are_what_it_must_stay_under(
    row: Make, least: int | None, passed: bool | None
) -> None:
    made = dataclasses.replace(row(twin=None), least_float=least)
    gate = find(truth([made], context()), "smaller")
    assert gate["passed"] is passed and gate["limit"] == (least if passed else None)
    assert not passed or "alone take 40,001" in gate["detail"]


def test_a_float_artifact_claims_neither(row: Make) -> None:
    assert truth([row("fp32")], context()) == []


@pytest.mark.parametrize(
    ("ratio", "ci95", "verdict", "passed"),
    [
        (0.6, [0.5, 0.7], "faster", True),
        (1.2, [1.1, 1.3], "slower", False),
        (1.05, [0.9, 1.2], "no difference shown", None),
        (None, None, "no difference shown", None),
    ],
)
def test_only_what_the_interval_shows_slower_fails(
    ratio: float | None, ci95: list[float] | None, verdict: str, passed: bool | None, row: Make
) -> None:
    made = dataclasses.replace(row(), bench=bench(ratio, ci95, verdict))
    gate = find(truth([made], context()), "faster")
    assert (gate["limit"], gate["value"], gate["passed"]) == (1, ratio, passed)
    if ci95:
        assert f"95 % interval {ci95[0]:.2f} to {ci95[1]:.2f}" in gate["detail"]


def test_speed_is_judged_on_a_machine_of_the_devices_kind(
    row: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    made = dataclasses.replace(row(devices=("pixel-8",)), bench=bench(1.2, [1.1, 1.3], "slower"))
    gate = find(truth([made], context(devices=("pixel-8",))), "faster")
    assert gate["passed"] is None
    assert "this machine is x86_64 and its devices are arm64" in gate["detail"]
    assert (
        find(truth([dataclasses.replace(made, bench=None)], context()), "faster")["value"] is None
    )


def test_schemes_for_size_are_not_asked_for_speed(row: Make) -> None:
    made = dataclasses.replace(row("w8"), bench=bench(1.2, [1.1, 1.3], "slower"))
    assert "faster" not in [gate["name"] for gate in truth([made], context())]


def test_a_waived_gate_is_told_and_fails_nothing(row: Make) -> None:
    made = dataclasses.replace(row(size=100_000), bench=bench(1.2, [1.1, 1.3], "slower"))
    gates = truth([made], context(ExportRequest(waive=("smaller", "faster"))))
    assert [find(gates, n)["passed"] for n in ("smaller", "faster")] == [False, False]
    assert not any(map(broken, gates))
    assert judged(made, gates).status == "ok"
    assert judged(made, truth([made], context())).status == "failed"


# -- weights --------------------------------------------------------------------------------------


def test_weights_in_as_few_bits_as_the_plan_says(row: Make) -> None:
    gate = find(truth([row()], context()), "weights")
    assert (gate["limit"], gate["value"], gate["passed"]) == (1500, 1500, True)
    unsigned = row_of(row(), bytes_by_dtype={"int8": 500, "uint8": 1000})
    assert find(truth([unsigned], context()), "weights")["passed"] is True


def row_of(made: Row, **placement: Any) -> Row:
    return dataclasses.replace(made, placement={**(made.placement or {}), **placement})


def test_an_int8_file_with_a_float_weight_names_it(row: Make) -> None:
    kept = [{"kind": "weight", "digest": "d0"}]
    made = row(stored=kept, bytes_by_dtype={"int8": 1000, "float32": 2000})
    gates = truth([made], context())
    gate = find(gates, "weights")
    assert (gate["limit"], gate["value"], gate["passed"]) == (1500, 1000, False)
    said = "not stored as int8: 2.weight; 2,000 of 3,000 bytes of its constants are float32"
    assert gate["detail"] == said
    failed = judged(made, gates)
    assert failed.status == "failed" and said in str(failed.reason)


def test_an_int8_file_with_nothing_but_floats_names_them_all(row: Make) -> None:
    gate = find(truth([row(bytes_by_dtype={"float32": 6000})], context()), "weights")
    assert gate["passed"] is False
    assert "not stored as int8: 0.weight, 2.weight; 6,000 of 6,000 bytes" in gate["detail"]


def test_a_target_that_tells_no_bytes_cannot_be_judged(row: Make) -> None:
    assert find(truth([row(bytes_by_dtype={})], context()), "weights")["passed"] is None


@pytest.mark.parametrize(("held", "passed"), [({"int8": 7}, True), ({"float32": 700}, False)])
def test_an_engines_file_has_to_have_some_integers(
    held: dict[str, int], passed: bool, row: Make
) -> None:
    unplanned = context(counted={**COUNTED, "planned": False, "weights": []})
    gate = find(truth([row(bytes_by_dtype=held)], unplanned), "weights")
    assert gate["passed"] is passed
    assert passed or "none of its weights is stored as int8: 700 bytes" in gate["detail"]


# -- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "mine", "constants", "passed"),
    [
        (Source("big", 30_000, 29_000, "s"), 25_000, 4 * 24_000, True),
        (Source("big", 30_000, 24_000, "s"), 25_000, 4 * 24_000, False),  # stored all the same
        (Source("big", 25_000, 29_000, "s"), 25_000, 4 * 24_000, False),  # none fewer in the model
        (Source("the source", 25_001), 25_000, 4 * 24_000, True),
        (Source("the source", 25_000), 25_000, 4 * 24_000, False),
        (Source("the source", 25_001), 25_000, 4 * 26_000, False),  # the file holds more again
    ],
)
def test_a_pruned_model_stores_fewer_parameters(
    source: Source, mine: int, constants: int, passed: bool, row: Make
) -> None:
    made = row(constants=constants)
    gate = find(truth([made], context(source=source, parameters=mine)), "parameters")
    assert gate["passed"] is passed
    words = "parameters of" if passed else "no parameter was removed: it stores"
    assert words in gate["detail"] and source.name in gate["detail"]


# -- delegate and operators -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outside", "first", "said"),
    [
        (0, None, None),
        (2, "CUMSUM giving float32 (y)", "2 of 3 operators run outside of xnnpack, the first: CUM"),
        (None, None, "tflite does not tell which operators run outside of xnnpack"),
    ],
)
def test_what_runs_outside_of_the_delegate_fails_with_the_first_of_it(
    outside: int | None, first: str | None, said: str | None, row: Make
) -> None:
    made = row(undelegated_ops=outside, first_undelegated=first)
    gate = find(truth([made], context(ExportRequest(require_delegate=True))), "delegate")
    assert (gate["limit"], gate["value"], gate["passed"]) == (0, outside, outside == 0)
    assert said is None or said in gate["detail"]
    assert "delegate" not in [g["name"] for g in truth([made], context())]


# -- budgets --------------------------------------------------------------------------------------

ALL = Budgets(max_bytes=39_999, latency_p90_ms=2.0, peak_memory_mib=39.5, max_drop_points=0.5)


def test_budgets_that_only_the_device_can_judge_are_null_elsewhere(row: Make) -> None:
    made = dataclasses.replace(
        row(devices=("host", "pixel-8")), bench=bench(1.0, [0.9, 1.1], "-"), drop=0.25
    )
    verdicts = {
        g["name"]: g["passed"] for g in truth([made], context(budgets=ALL)) if "@" in g["name"]
    }
    assert verdicts == {
        "max-bytes@host": False,
        "latency-p90-ms@host": True,
        "peak-memory-mib@host": False,
        "max-drop-points@host": True,
        "max-bytes@pixel-8": False,
        "latency-p90-ms@pixel-8": None,
        "peak-memory-mib@pixel-8": None,
        "max-drop-points@pixel-8": True,
    }
    strict = truth([made], context(ExportRequest(require_verified=True), budgets=ALL))
    assert find(strict, "latency-p90-ms@pixel-8")["passed"] is False
    assert find(strict, "latency-p90-ms@pixel-8")["detail"] == "it can only be measured on pixel-8"
    assert find(strict, "faster")["passed"] is None, "nobody asked for it"


def test_a_budget_of_what_was_not_measured_is_null(row: Make) -> None:
    gates = truth([row()], context(budgets=ALL, devices=("host",)))
    assert find(gates, "latency-p90-ms@host")["passed"] is None
    assert find(gates, "max-drop-points@host")["passed"] is None


# -- by dtype and by delegate ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "by_dtype"),
    [
        ({"integer": 1, "float": 1}, {"integer": 900, "float": 107}),  # as the plan has it
        ({"integer": 2}, {"integer": 1000, "float": 7}),
        ({"float": 2}, {"integer": 0, "float": 1007}),
        ({"integer": 1}, None),  # layers were joined: which ones?
        ({}, None),
    ],
)
def test_work_is_told_by_dtype_where_the_artifact_bears_the_plan_out(
    seen: dict[str, int], by_dtype: dict[str, int] | None, row: Make
) -> None:
    told = placed(row(layers=seen), {**COUNTED, "products": 7})
    assert told["macs"] == {
        "total": 1007,
        "by_dtype": by_dtype,
        "by_delegate": {"xnnpack": 1007, "outside": 0},
    }
    assert told["ops_by_delegate"] == {"xnnpack": 3, "outside": 0}
    assert told["bytes_by_delegate"] == {"xnnpack": 1540, "outside": 0}


def test_what_runs_outside_has_no_share_of_the_work_that_could_be_told(row: Make) -> None:
    told = placed(row(undelegated_ops=1), COUNTED)
    assert told["ops_by_delegate"] == {"xnnpack": 2, "outside": 1}
    assert (told["macs"]["by_delegate"], told["bytes_by_delegate"]) == (None, None)
    unknown = placed(row(undelegated_ops=None), COUNTED)
    assert unknown["ops_by_delegate"] is None


def test_without_a_plan_a_mixture_of_layers_cannot_be_told_apart(row: Make) -> None:
    layers = [{**layer, "integer": None} for layer in LAYERS]
    told = placed(row(), {**COUNTED, "planned": False, "layers": layers})
    assert told["macs"]["by_dtype"] is None
