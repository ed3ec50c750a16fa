"""Extreme inputs, repeated runs, and the verifier's test of itself (NUM-02, NUM-03, NUM-09)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import BadData, UsageError
from edgekit.parity import (
    TOLERANCES,
    ParityAccumulator,
    ParityReport,
    Tolerance,
    check_repeatable,
    extreme_feeds,
    extreme_probes,
    known_bad_mutants,
    self_test,
)
from edgekit.signature import Signature, TensorSpec

Array = np.ndarray
IMAGE = Signature((TensorSpec("image", (1, 3, 8, 8), layout="NCHW"),), (TensorSpec("y", (1, 10)),))
TEXT = Signature(
    (
        TensorSpec("ids", (1, 16), "int64", high=999),
        TensorSpec("mask", (1, 16), "int64", high=1),
        TensorSpec("keep", (1, 16), "bool"),
        TensorSpec("pixels", (1, 4, 4, 3), "uint8"),
        TensorSpec("index", (1, 2), "int32"),
    )
)
quick = settings(deadline=None, derandomize=True, max_examples=30)


# NUM-02


@pytest.mark.parametrize("signature", [IMAGE, TEXT])
def test_num_02_probes_fit_the_signature(signature: Signature) -> None:
    probes = extreme_probes(signature, 3)
    assert len({probe.name for probe in probes}) == len(probes) >= 6
    for probe in probes:
        signature.check_inputs(probe.feeds, what=probe.name)


def test_num_02_probes_are_what_they_say() -> None:
    found = {p.name: p.feeds["image"] for p in extreme_probes(IMAGE, ranges={"image": (-2, 3)})}
    assert [float(found[n].flat[0]) for n in ("all-low", "all-high")] == [-2, 3]
    # On a level of the grid over the range, not halfway between two, where either is right.
    for levels in (255, 65535):
        level = (float(found["all-middle"].flat[0]) + 2) / 5 * levels
        assert abs(level - round(level)) < 0.02 and 0.5 <= level / levels < 0.51
    for name in ("all-low", "all-middle", "all-high", "negative-zero"):
        assert np.unique(found[name]).size == 1
    assert np.signbit(found["negative-zero"]).all()
    assert not found["negative-zero"].any()
    denormal = np.abs(found["denormal"])
    assert 0 < denormal.min() <= denormal.max() < np.finfo(np.float32).tiny
    assert 0 < np.abs(found["fp16-tiny"]).max() < 6.1e-5
    for name, value in (("dominant-high", 3), ("dominant-low", -2)):
        assert np.count_nonzero(found[name]) == 1
        assert found[name].sum() == value
    assert set(np.unique(found["alternating"])) == {-2, 3}
    assert np.unique(found["uniform"]).size > 100
    for values in found.values():
        assert -2 <= values.min() <= values.max() <= 3


@given(st.integers(0, 2**31), st.floats(-1e5, 1e5), st.floats(0, 1e5))
@quick
def test_num_02_probes_stay_in_the_range_and_are_seeded(
    seed: int, low: float, width: float
) -> None:
    ranges = {"image": (low, low + width)}
    one, two = (extreme_feeds(IMAGE, seed, ranges=ranges) for _ in range(2))
    for feeds, again in zip(one, two, strict=True):
        assert feeds["image"].tobytes() == again["image"].tobytes()
        assert np.float32(low) <= feeds["image"].min()
        assert feeds["image"].max() <= np.float32(low + width)


def test_num_02_a_mask_never_hides_everything() -> None:
    for feeds in extreme_feeds(TEXT, 5):
        assert feeds["mask"][0, 0] == 1
        assert feeds["keep"][0, 0]
        assert (np.diff(feeds["mask"]) <= 0).all()
        assert 0 <= feeds["ids"].min() <= feeds["ids"].max() <= 999
        assert set(np.unique(feeds["index"])) <= {0, 1}
    maxima = [feeds["ids"].max() for feeds in extreme_feeds(TEXT)]
    assert 999 in maxima
    assert 0 in maxima


def test_num_02_half_precision_and_awkward_shapes() -> None:
    signature = Signature((TensorSpec("a", (), "float16"), TensorSpec("b", (0, 3), "float32")))
    for probe in extreme_probes(signature, ranges={"a": (-1e9, 1e9)}):
        signature.check_inputs(probe.feeds, what=probe.name)


@pytest.mark.parametrize("ranges", [{"img": (0, 1)}, {"image": (1, 0)}, {"image": (0, np.nan)}])
def test_num_02_bad_ranges_are_refused(ranges: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(BadData):
        extreme_probes(IMAGE, ranges=ranges)


def network(x: Array) -> Array:
    weights = np.random.default_rng(0).normal(0, 1, (192, 10))
    return (np.tanh(x.reshape(1, -1) * 3) @ weights + 2).astype(np.float32)


def _only_if(condition: Callable[[Array], bool]) -> Callable[[Array], Array]:
    return lambda x: network(x) * (np.float32(0.5) if condition(x) else np.float32(1))


RARE_FAULTS: dict[str, Callable[[Array], Array]] = {
    "all-equal input": _only_if(lambda x: np.unique(x).size == 1 and bool(x.any())),
    "negative zero": _only_if(lambda x: bool((np.signbit(x) & (x == 0)).any())),
    "denormals": _only_if(lambda x: bool(((x != 0) & (np.abs(x) < 1e-38)).any())),
    "below 6e-5": _only_if(lambda x: bool(x.any() and 1e-38 < np.abs(x).max() < 6.1e-5)),
    "one dominant value": _only_if(lambda x: bool(np.count_nonzero(x) == 1)),
    "values at the range's end": _only_if(lambda x: bool(x.max() >= 1)),
}


@pytest.mark.parametrize("fault", RARE_FAULTS)
def test_num_02_a_fault_at_extreme_inputs_only_is_found(fault: str) -> None:
    candidate = RARE_FAULTS[fault]
    ordinary, extreme = (ParityAccumulator(IMAGE.outputs, TOLERANCES["fp32"]) for _ in range(2))
    rng = np.random.default_rng(1)
    for _ in range(50):
        x = rng.uniform(-0.9, 0.9, (1, 3, 8, 8)).astype(np.float32)
        ordinary.add({"y": network(x)}, {"y": candidate(x)})
    for feeds in extreme_feeds(IMAGE):
        x = feeds["image"]
        extreme.add({"y": network(x)}, {"y": candidate(x)})
    assert ordinary.report().passed
    assert not extreme.report().passed


# NUM-03


class Flaky:
    """Wrong in a band of 32 rows, in one run of ``period``."""

    def __init__(self, period: int) -> None:
        self.period, self.runs = period, 0
        self.memory = np.zeros((64, 8), np.float32)

    def __call__(self, feeds: dict[str, Array]) -> dict[str, Array]:
        self.runs += 1
        self.memory[:] = feeds["x"]
        if self.runs % self.period == 0:
            self.memory[16:48] += np.float32(1e-6) * self.runs
        return {"y": self.memory}  # The same buffer every time, as runtimes do.


FEEDS = {"x": np.ones((64, 8), np.float32)}


def test_num_03_one_wrong_run_in_five_is_found_and_counted() -> None:
    check = check_repeatable(Flaky(5), FEEDS)
    assert check.passed is False
    assert (check.value, check.limit) == (5, 1)
    assert "16, 1, 1, 1, 1 times" in check.detail


def test_num_03_equal_runs_pass() -> None:
    run = Flaky(10**9)
    check = check_repeatable(run, FEEDS)
    assert check.passed is True
    assert check.value == 1
    assert run.runs == 20


def test_num_03_few_runs_prove_too_little() -> None:
    assert check_repeatable(Flaky(10**9), FEEDS, repeats=19).passed is None
    assert check_repeatable(Flaky(2), FEEDS, repeats=3).passed is False
    with pytest.raises(UsageError):
        check_repeatable(Flaky(2), FEEDS, repeats=1)


@pytest.mark.parametrize(
    "second",
    [
        {"y": np.array([-0.0, 1.0])},
        {"y": np.array([0.0, 1.0], np.float32)},
        {"y": np.array([[0.0, 1.0]])},
        {"z": np.array([0.0, 1.0])},
        {"y": np.array([0.0, np.nextafter(1.0, 2.0)])},
    ],
)
def test_num_03_the_comparison_is_of_bits_names_shapes_and_dtypes(
    second: dict[str, Array],
) -> None:
    answers = [{"y": np.array([0.0, 1.0])}, second]
    check = check_repeatable(lambda _: answers[0] if len(answers) == 1 else answers.pop(), FEEDS)
    assert check.passed is False
    assert check.value == 2


def test_num_03_a_run_that_writes_into_its_input_fails() -> None:
    def run(feeds: dict[str, Array]) -> dict[str, Array]:
        feeds["x"][0] = 5
        return {"y": np.zeros(3)}

    check = check_repeatable(run, {"x": np.ones(4)})
    assert check.passed is False
    assert "input" in check.detail


# NUM-09


def scores(seed: int, shape: tuple[int, ...]) -> Array:
    return (np.rint(np.random.default_rng(seed).normal(0, 40, shape)) * 0.25).astype(np.float32)


def filled(
    outputs: tuple[TensorSpec, ...], tolerance: Tolerance, step: float | None, calls: int = 5
) -> ParityAccumulator:
    accumulator = ParityAccumulator(outputs, tolerance, step)
    for i in range(calls):
        outs = {s.name: scores(10 * i + j, s.shape) for j, s in enumerate(outputs)}
        accumulator.add(outs, outs)
    return accumulator


OUTPUT_SETS = {
    "classifier": (TensorSpec("logits", (1, 1000)),),
    "two alike": (TensorSpec("start", (1, 40)), TensorSpec("end", (1, 40))),
    "detector": (TensorSpec("boxes", (1, 20, 4)), TensorSpec("scores", (1, 20))),
    "map": (TensorSpec("mask", (1, 2, 48, 48), layout="NCHW"),),
    "regression": (TensorSpec("age", (1, 1)),),
    "vocabulary": (TensorSpec("tokens", (1, 4, 30_000)),),
}


@pytest.mark.parametrize("outputs", OUTPUT_SETS.values(), ids=OUTPUT_SETS)
@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dyn", "fp16", "fp32"])
def test_num_09_the_self_test_runs_in_every_report(
    scheme: str, outputs: tuple[TensorSpec, ...]
) -> None:
    step = 0.25 if scheme == "w8a8" else None
    report = filled(outputs, TOLERANCES[scheme], step).report()
    check = report.checks[-1]
    assert check.name == "self-test"
    assert check.passed, check.detail
    assert report.passed


def test_num_09_every_known_fault_is_among_the_mutants() -> None:
    outputs = OUTPUT_SETS["detector"]
    references = [{s.name: scores(i, s.shape) for s in outputs} for i in range(3)]
    names = [m.name for m in known_bad_mutants(references, outputs, {"boxes": 1.0, "scores": 1.0})]
    assert len(names) == len(set(names))
    for fault in (
        "too many",
        "another order",
        "swapped",
        "missing",
        "another dtype",
        "another shape",
        "off by many steps",
        "with one NaN",
        "NaN on both sides",
        "all zeros",
        "transposed in place",
        "doubled",
        "dead",
        "wrong in one call of 1000",
    ):
        assert any(fault in name for name in names), fault


def test_num_09_mutants_leave_the_references_alone() -> None:
    outputs = OUTPUT_SETS["detector"]
    references = [{s.name: scores(i, s.shape) for s in outputs} for i in range(3)]
    before = [{k: v.copy() for k, v in r.items()} for r in references]
    for mutant in known_bad_mutants(references, outputs, {"boxes": 1.0, "scores": 1.0}):
        assert any(
            list(a) != list(b)
            or any(a[k].dtype != b[k].dtype or not np.array_equal(a[k], b[k]) for k in a)
            for a, b in mutant.pairs()
        ), mutant.name
    for old, new in zip(before, references, strict=True):
        assert all(np.array_equal(old[k], new[k]) for k in old)


@pytest.mark.parametrize(
    ("weakened", "survivor"),
    [
        ({"sqnr_db": 10.0, "bias_steps": 9, "worst_sample_db": 5.0}, "off by many steps"),
        ({"far_steps": 1e9, "worst_sample_db": -9.0}, "wrong in one call"),
        ({"far_steps": 1e9, "worst_sample_db": -9.0}, "dead"),
    ],
)
def test_num_09_a_tolerance_that_lets_a_mutant_pass_voids_the_report(
    weakened: dict[str, float], survivor: str
) -> None:
    # As a runtime's own, wider figures might be: only the gates named above are gone.
    wider = replace(TOLERANCES["w8a8"], sqnr_db=20.0, within_fraction=0.0, agreement=0.99)
    tolerance = replace(wider, **weakened)
    assert filled(OUTPUT_SETS["classifier"], wider, 0.25, calls=3).report().passed
    report = filled(OUTPUT_SETS["classifier"], tolerance, 0.25, calls=3).report()
    assert not report.passed
    assert [c.name for c in report.failures] == ["self-test"]
    assert survivor in report.failures[0].detail


def test_num_09_a_step_that_is_far_too_large_voids_the_report() -> None:
    report = filled(
        OUTPUT_SETS["regression"], replace(TOLERANCES["w8a8"], sqnr_db=-9.0), 50.0
    ).report()
    assert [c.name for c in report.failures] == ["self-test"]


def honest(pairs: Iterable[tuple[dict[str, Array], dict[str, Array]]]) -> ParityReport:
    accumulator = ParityAccumulator(OUTPUT_SETS["two alike"], TOLERANCES["w8a8"], 0.25)
    return accumulator.judge(pairs)


def test_num_09_a_verifier_that_drops_nan_is_caught() -> None:
    def lenient(pairs: Iterable[tuple[dict[str, Array], dict[str, Array]]]) -> ParityReport:
        """Maps NaN to the reference's value, as some comparison tools do to a small number."""
        mended = []
        for reference, candidate in pairs:
            clean = {k: np.nan_to_num(v, nan=0.0) for k, v in reference.items()}
            mended.append(
                (
                    clean,
                    {k: np.where(np.isnan(v), clean.get(k, v), v) for k, v in candidate.items()},
                )
            )
        return honest(mended)

    outputs = OUTPUT_SETS["two alike"]
    references = [{s.name: scores(i + j, s.shape) for j, s in enumerate(outputs)} for i in range(4)]
    offsets = {"start": 4.0, "end": 4.0}
    assert self_test(honest, references, outputs, offsets).passed
    check = self_test(lenient, references, outputs, offsets)
    assert check.passed is False
    assert check.value == 4
    assert "passed: start with one NaN" in check.detail
    assert "passed: end with NaN on both sides" in check.detail


def test_num_09_a_verifier_that_refuses_everything_is_caught_too() -> None:
    outputs = OUTPUT_SETS["two alike"]
    references = [{s.name: scores(0, s.shape) for s in outputs}]
    check = self_test(lambda pairs: honest([]), references, outputs, {"start": 4.0, "end": 4.0})
    assert check.passed is False
    assert check.detail == "refused: the reference itself"


def test_num_09_a_fault_that_changes_next_to_nothing_proves_nothing() -> None:
    """A symmetric map is its own transpose; a class that is always near zero may as well be."""
    square, classes = TensorSpec("map", (1, 30, 30)), TensorSpec("classes", (1, 1000))
    accumulator = ParityAccumulator((square, classes), TOLERANCES["w8a8"], 0.25)
    for i in range(5):
        half = scores(i, square.shape)
        outs = {"map": half + half.swapaxes(1, 2), "classes": scores(i, classes.shape)}
        outs["map"][0, 3, 4] += np.float32(0.25)
        outs["classes"][0, 999] = 0.25
        accumulator.add(outs, outs)
    report = accumulator.report()
    assert report.passed, report.failures


@pytest.mark.parametrize("dtype", ["int64", "bool", "int8"])
def test_num_09_integer_outputs_have_mutants(dtype: str) -> None:
    spec = TensorSpec("classes", (1, 6, 6), dtype)
    rng = np.random.default_rng(0)
    accumulator = ParityAccumulator([spec], TOLERANCES["w8a8"])
    for _ in range(4):
        values = rng.integers(0, 2 if dtype == "bool" else 20, spec.shape).astype(dtype)
        accumulator.add({"classes": values}, {"classes": values})
    report = accumulator.report()
    assert report.passed, report.failures
    assert "known-bad mutants fail" in report.checks[-1].detail


def test_num_09_an_all_zero_reference_is_tested_with_what_can_be_told_apart() -> None:
    zeros = {"y": np.zeros((1, 10), np.float32)}
    accumulator = ParityAccumulator(IMAGE.outputs, TOLERANCES["w8a8"], 0.25)
    accumulator.add(zeros, zeros)
    report = accumulator.report()
    assert report.passed, report.failures
