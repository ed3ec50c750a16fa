"""Parity gates by the numerical test plan: what must fail and what not (NUM-01, 04 to 07)."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.errors import BadData
from edgekit.metrics import per_sample_sqnr_db
from edgekit.names import SCHEMES
from edgekit.parity import TOLERANCES, Check, ParityAccumulator, ParityReport, Tolerance
from edgekit.signature import TensorSpec

Array = np.ndarray
W8A8 = TOLERANCES["w8a8"]
STEP = 0.125
LOGITS = TensorSpec("logits", (1, 100))
quick = settings(deadline=None, derandomize=True, max_examples=40)


def quantized(seed: int, shape: tuple[int, ...] = (1, 100), rms: float = 40) -> Array:
    codes = np.random.default_rng(seed).normal(0, rms, shape)
    return (np.clip(np.rint(codes), -128, 127) * STEP).astype(np.float32)


def off_by_one(x: Array, seed: int, share: float = 0.2) -> Array:
    """What a correct integer kernel does: a step here and there."""
    rng = np.random.default_rng([seed, 1])
    return x + (rng.choice([-1, 1], x.shape) * (rng.random(x.shape) < share) * STEP).astype(x.dtype)


def judged(
    references: list[Array],
    candidates: list[Array],
    spec: TensorSpec = LOGITS,
    tolerance: Tolerance = W8A8,
    step: float | None = STEP,
    *,
    self_testing: bool = False,
) -> ParityReport:
    accumulator = ParityAccumulator([spec], tolerance, step)
    for reference, candidate in zip(references, candidates, strict=True):
        accumulator.add({spec.name: reference}, {spec.name: candidate})
    return accumulator.report(self_testing=self_testing)


def failed(report: ParityReport) -> set[str]:
    return {check.name.split(":")[0] for check in report.failures}


def test_the_figures_are_the_demanded_ones() -> None:
    assert TOLERANCES.keys() == SCHEMES.keys()
    assert (W8A8.within_steps, W8A8.within_fraction) == (2, 0.999)
    assert (W8A8.sqnr_db, W8A8.agreement, W8A8.repeats) == (35, 0.995, 20)
    assert TOLERANCES["fp16"].sqnr_db == 40
    fp32 = TOLERANCES["fp32"]
    assert (fp32.sqnr_db, fp32.atol, fp32.rtol) == (60, 1e-4, 1e-3)
    wide = TOLERANCES["w8a16"]
    assert (wide.sqnr_db, wide.grain, wide.within_steps) == (50, 8, 2)
    assert {t.grain for scheme, t in TOLERANCES.items() if scheme != "w8a16"} == {1}
    for tolerance in TOLERANCES.values():
        assert tolerance.sqnr_db >= W8A8.sqnr_db
        assert tolerance.worst_sample_db == tolerance.sqnr_db - 15


@pytest.mark.parametrize(("off", "passes"), [(16, True), (17, False)])
def test_eight_steps_of_16_bits_count_as_one(off: int, passes: bool) -> None:
    references = [200 * quantized(i) for i in range(5)]
    candidates = [x + off * STEP * (-1) ** np.arange(x.size).reshape(x.shape) for x in references]
    candidates = [x.astype(np.float32) for x in candidates]
    report = judged(references, candidates, tolerance=TOLERANCES["w8a16"], step=STEP)
    assert report.passed == passes and failed(report) <= {"within-steps"}
    assert "within-steps" in failed(judged(references, candidates))


def test_identical_outputs_pass_and_say_so() -> None:
    references = [quantized(i) for i in range(5)]
    report = judged(references, references, self_testing=True)
    assert report.passed, report.failures
    assert report.identical
    assert report.summary() == {
        "sqnr_db": None,
        "agreement": 1.0,
        "worst_sample_db": None,
        "n": 5,
        "identical": True,
    }


def test_a_correct_integer_kernel_passes() -> None:
    references = [quantized(i) for i in range(50)]
    report = judged(
        references, [off_by_one(x, i) for i, x in enumerate(references)], self_testing=True
    )
    assert report.passed, report.failures
    assert not report.identical
    stats = report.outputs[0]
    assert stats.sqnr_db == pytest.approx(20 * math.log10(40 / math.sqrt(0.2)), abs=0.5)
    assert stats.within_fraction == 1
    assert (stats.samples, stats.elements) == (50, 5000)
    assert stats.max_error == pytest.approx(STEP)
    assert stats.cosine == pytest.approx(1, abs=1e-3)
    assert stats.agreement == 1
    assert 0 < stats.n_decisive < 50


def test_a_low_energy_sample_that_is_a_step_off_is_not_bad() -> None:
    references = [quantized(i) for i in range(40)] + [quantized(99, rms=2)]
    report = judged(
        references, [off_by_one(x, i) for i, x in enumerate(references)], self_testing=True
    )
    assert report.passed, report.failures
    stats = report.outputs[0]
    assert stats.worst_sample == 40
    assert stats.worst_sample_db is not None
    assert stats.worst_sample_db < W8A8.worst_sample_db


def test_a_zero_sample_that_is_a_step_off_is_not_the_worst() -> None:
    references = [quantized(0), np.zeros((1, 100), np.float32), quantized(2, rms=20)]
    report = judged(references, [off_by_one(x, i) for i, x in enumerate(references)])
    assert report.passed, report.failures
    assert report.outputs[0].worst_sample == 2


@pytest.mark.parametrize("step", [1 / 3, 0.0123, 7e-3])
def test_two_dequantized_steps_are_two_steps_and_three_are_not(step: float) -> None:
    codes = np.random.default_rng(0).integers(-126, 126, (1, 5000))
    spec = TensorSpec("logits", (1, 5000))
    reference = codes.astype(np.float32) * np.float32(step)
    for moved, share in ((2, 1.0), (3, 0.0)):
        candidate = (codes + moved).astype(np.float32) * np.float32(step)
        stats = judged([reference], [candidate], spec, step=step).outputs[0]
        assert stats.within_fraction == share


# NUM-01, NUM-05: a small model with its faults injected.


def model(
    image: Array,
    *,
    mean: float = 0.5,
    bias: float = 1.0,
    roll: int = 0,
    factor: float = 1.0,
    zero_point: int = 0,
    change: Callable[[Array], Array] = lambda w: w,
    per_class: Callable[[Array], Array] = lambda s: s,
    limit: float = math.inf,
    rotate: bool = False,
) -> Array:
    """Per-pixel 3 x 3 mixing, one weight per pixel and class, int8 output; image [1, 8, 8, 3]."""
    rng = np.random.default_rng(0)
    mixing, weights = rng.normal(0, 1, (3, 3)), rng.normal(0, 1, (8, 8, 3, 50))
    scales, biases = rng.uniform(0.5, 2, 50), rng.normal(0, 3, 50)
    pixels = (image[0].swapaxes(0, 1) if rotate else image[0]) - mean
    hidden = np.maximum(pixels @ change(mixing), 0)
    sums = np.clip(np.einsum("hwc,hwck->k", hidden, weights), -limit, limit)
    logits = factor * (sums * per_class(scales) + bias * biases)
    codes = np.clip(np.rint(logits / STEP) + zero_point, -128, 127)
    return np.roll((codes * STEP).astype(np.float32), roll)[None]


def images(n: int) -> list[Array]:
    rng = np.random.default_rng(1)
    return [rng.uniform(0, 1, (1, 8, 8, 3)) for _ in range(n)]


def as_nchw(image: Array) -> Array:
    return image.transpose(0, 3, 1, 2).reshape(image.shape)


MODEL_FAULTS: dict[str, Callable[[Array], Array]] = {
    "transposed constant": partial(model, change=np.transpose),
    "constant in storage order": partial(model, change=lambda w: w.T.reshape(3, 3)[::-1]),
    "swapped height and width": partial(model, rotate=True),
    "NCHW fed as NHWC": lambda x: model(as_nchw(x)),
    "RGB fed as BGR": lambda x: model(x[..., ::-1]),
    "mean subtracted twice": partial(model, mean=1.0),
    "labels off by one": partial(model, roll=1),
    "per-channel scales permuted": partial(model, per_class=lambda s: np.roll(s, 1)),
    "one scale for all channels": partial(model, per_class=lambda s: np.full_like(s, s.mean())),
    "zero point off by one": partial(model, zero_point=1),
    "scale doubled": partial(model, factor=2.0),
    "bias dropped": partial(model, bias=0.0),
    "accumulator saturates": partial(model, limit=4.0),
    "clipped range": lambda x: np.clip(model(x), -3, 3),
    "calibrated on zeros": lambda x: np.zeros_like(model(x)),
}


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_num_01_and_05_a_faulty_conversion_fails(fault: str) -> None:
    spec = TensorSpec("logits", (1, 50))
    references = [model(image) for image in images(20)]
    candidates = [MODEL_FAULTS[fault](image) for image in images(20)]
    right = judged(references, [off_by_one(x, i, 0.02) for i, x in enumerate(references)], spec)
    assert right.passed, right.failures
    assert not judged(references, candidates, spec).passed


def test_num_05_a_zero_point_off_by_one_fails_at_any_energy() -> None:
    references = [quantized(i, rms=100) for i in range(20)]
    report = judged(references, [x + np.float32(STEP) for x in references])
    assert failed(report) == {"bias"}


# NUM-04


def one_element(value: float) -> Callable[[Array], Array]:
    def change(x: Array) -> Array:
        out = x.copy()
        out.flat[17] = value
        return out

    return change


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_num_04_one_non_finite_element_fails(value: float) -> None:
    references = [quantized(i) for i in range(10)]
    candidates = [*references[:9], one_element(value)(references[9])]
    report = judged(references, candidates)
    assert {"finite", "sqnr", "worst-sample"} <= failed(report)
    check = next(c for c in report.checks if c.name == "finite:logits")
    assert "call 9" in check.detail
    assert "candidate" in check.detail


def test_num_04_nan_on_both_sides_fails() -> None:
    both = [np.full((1, 100), np.nan, np.float32)] * 3
    assert math.isnan(judged(both, both).outputs[0].max_error)
    later = [quantized(0), both[0], quantized(1)]
    assert math.isnan(judged(later, later).outputs[0].max_error)
    assert {"finite", "sqnr", "within-steps", "worst-sample"} <= failed(judged(both, both))
    one = [one_element(math.nan)(quantized(0))]
    report = judged(one, one)
    assert "finite" in failed(report)
    assert "reference" in next(c.detail for c in report.failures if c.name == "finite:logits")
    assert not report.identical


@pytest.mark.parametrize("scheme", ["w8a8", "fp16", "fp32"])
def test_num_04_nan_against_a_near_zero_reference_fails(scheme: str) -> None:
    tiny = [np.full((1, 100), 1e-12, np.float32)] * 3
    nans = [np.full((1, 100), np.nan, np.float32)] * 3
    for step in (None, STEP):
        report = judged(tiny, nans, tolerance=TOLERANCES[scheme], step=step)
        assert {"finite", "sqnr", "worst-sample"} <= failed(report)


def test_num_04_half_wrong_with_a_fine_median_fails() -> None:
    references = [quantized(i) for i in range(10)]
    candidates = []
    for i, x in enumerate(references):
        wrong = np.random.default_rng(i).permutation(100) < 49
        candidates.append(np.where(wrong[None], x + 3 * STEP, x).astype(np.float32))
    errors = np.abs(np.concatenate(candidates) - np.concatenate(references))
    assert np.median(errors) == 0
    assert {"within-steps", "bias"} <= failed(judged(references, candidates))


def test_num_04_all_zero_reference() -> None:
    zeros = [np.zeros((1, 100), np.float32)] * 4
    assert judged(zeros, zeros).passed
    assert judged(zeros, [off_by_one(x, i) for i, x in enumerate(zeros)]).passed
    report = judged(zeros, [one_element(3 * STEP)(x) for x in zeros])
    assert "sqnr" in failed(report)
    check = next(c for c in report.checks if c.name == "sqnr:logits")
    assert (check.value, check.limit) == (pytest.approx(3 * STEP), pytest.approx(2 * STEP))
    # A float output has no step: its absolute tolerance takes over.
    for error, passes in [(9e-5, True), (2e-4, False)]:
        candidates = [one_element(error)(x) for x in zeros]
        report = judged(zeros, candidates, tolerance=TOLERANCES["fp32"], step=None)
        assert report.passed is passes
        report = judged(zeros, candidates, step=None)
        assert failed(report) == (set() if passes else {"sqnr"})


def test_num_04_zero_size_output() -> None:
    empty = TensorSpec("boxes", (0, 4))
    nothing = np.zeros((0, 4), np.float32)
    accumulator = ParityAccumulator([LOGITS, empty], W8A8, {"logits": STEP})
    accumulator.add(
        {"logits": quantized(0), "boxes": nothing}, {"logits": quantized(0), "boxes": nothing}
    )
    report = accumulator.report()
    assert report.passed, report.failures
    assert report.identical
    # Its shape and dtype are judged nevertheless, and alone it proves nothing.
    assert "shape" in failed(judged([nothing], [np.zeros((4, 0), np.float32)], empty))
    assert "dtype" in failed(judged([nothing], [np.zeros((0, 4), np.float16)], empty))
    assert "samples" in failed(judged([nothing], [nothing], empty))
    assert "shape" in failed(judged([quantized(0)], [np.zeros((1, 0), np.float32)]))


def test_num_04_dtype_and_shape_changed() -> None:
    x = quantized(0)
    assert "dtype" in failed(judged([x], [x.astype(np.float64)]))
    assert "dtype" in failed(judged([x], [np.array([["x"] * 100])]))
    for other in (x[0], x.reshape(100, 1), x[:, :99], x[None]):
        assert {"shape", "values"} <= failed(judged([x], [other]))


SQUARE = TensorSpec("map", (1, 12, 12))
TWO = (TensorSpec("left", (1, 30)), TensorSpec("right", (1, 30)))


def test_num_04_transposed_output_of_equal_size_fails() -> None:
    references = [quantized(i, (1, 12, 12)) for i in range(5)]
    report = judged(references, [x.swapaxes(1, 2) for x in references], SQUARE)
    assert {"within-steps", "sqnr", "worst-sample"} <= failed(report)


def test_num_04_outputs_missing_extra_reordered_zeroed_or_swapped() -> None:
    def report(change: Callable[[dict[str, Array]], dict[str, Array]]) -> ParityReport:
        accumulator = ParityAccumulator(TWO, W8A8, STEP)
        for i in range(5):
            outs = {"left": quantized(i, (1, 30)), "right": quantized(50 + i, (1, 30))}
            accumulator.add(outs, change(outs))
        return accumulator.report(self_testing=False)

    assert report(dict).passed
    missing = report(lambda o: {"left": o["left"]})
    assert {"outputs", "values"} <= failed(missing)
    assert "got left; the signature has left, right" in missing.failures[0].detail
    assert failed(report(lambda o: {**o, "more": o["left"]})) == {"outputs"}
    assert failed(report(lambda o: {"right": o["right"], "left": o["left"]})) == {"outputs"}
    swapped = report(lambda o: {"left": o["right"], "right": o["left"]})
    assert {c.name for c in swapped.failures} >= {"sqnr:left", "sqnr:right"}
    zeroed = report(lambda o: {**o, "right": np.zeros_like(o["right"])})
    assert all(c.name.endswith(":right") for c in zeroed.failures)
    assert {"sqnr", "within-steps", "worst-sample"} <= failed(zeroed)
    assert report(lambda o: {}).passed is False


@pytest.mark.parametrize(("classes", "samples"), [(10, 20), (1000, 20), (20_000, 6)])
@pytest.mark.parametrize("step", [STEP, None])
def test_num_04_the_last_channel_zeroed_fails(
    classes: int, samples: int, step: float | None
) -> None:
    spec = TensorSpec("scores", (1, classes))
    references = [quantized(i, (1, classes)) for i in range(samples)]
    candidates = [x * (np.arange(classes) < classes - 1) for x in references]
    report = judged(references, [c.astype(np.float32) for c in candidates], spec, step=step)
    assert "worst-channel" in failed(report)
    assert report.outputs[0].worst_channel == classes - 1
    assert report.outputs[0].worst_channel_db == pytest.approx(0)


def test_num_04_a_dead_channel_of_a_convolution_layout_is_named() -> None:
    spec = TensorSpec("features", (1, 16, 6, 6), layout="NCHW")
    references = [quantized(i, spec.shape) for i in range(4)]
    candidates = [x.copy() for x in references]
    for x in candidates:
        x[:, 15] = 0
    assert judged(references, candidates, spec).outputs[0].worst_channel == 15


def test_integer_and_bool_outputs_are_compared_for_equality() -> None:
    ids = TensorSpec("class_ids", (1, 1), "int64")
    references = [np.array([[i % 7]]) for i in range(1000)]
    candidates = [x.copy() for x in references]
    for i in range(5):
        candidates[i] = candidates[i] + 1
    assert judged(references, candidates, ids, step=None).passed
    candidates[5] = candidates[5] + 1
    assert failed(judged(references, candidates, ids, step=None)) == {"equal"}
    mask = TensorSpec("mask", (1, 8, 8), "bool")
    rng = np.random.default_rng(0)
    masks = [rng.random((1, 8, 8)) < 0.5 for _ in range(1000)]
    assert judged(masks, masks, mask, step=None).passed
    report = judged(masks, [*masks[:-1], ~masks[-1]], mask, step=None)
    assert failed(report) == {"worst-sample"}


def test_a_quantized_integer_output_is_judged_in_steps() -> None:
    spec = TensorSpec("codes", (1, 100), "int8")
    rng = np.random.default_rng(0)
    references = [rng.integers(-100, 100, (1, 100)).astype(np.int8) for _ in range(20)]
    near = [x + rng.integers(-1, 2, x.shape).astype(np.int8) for x in references]
    assert judged(references, near, spec, step=1.0).passed
    assert not judged(references, [x + np.int8(3) for x in references], spec, step=1.0).passed


# NUM-06


def test_num_06_a_branch_frozen_by_the_trace_fails_on_the_input_that_takes_the_other() -> None:
    inputs = [
        np.random.default_rng(i).normal(0.2, 1, (1, 100)).astype(np.float32) for i in range(20)
    ]
    branching = [x * 2 if x.mean() > 0 else x - 4 for x in inputs]
    frozen = [x * 2 for x in inputs]
    taken = [i for i, x in enumerate(inputs) if x.mean() > 0]
    assert 0 < len(taken) < 20
    fp32 = TOLERANCES["fp32"]
    same = judged(
        [branching[i] for i in taken], [frozen[i] for i in taken], tolerance=fp32, step=None
    )
    assert same.passed
    assert "worst-sample" in failed(judged(branching, frozen, tolerance=fp32, step=None))


# NUM-07


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dyn", "fp16", "fp32"])
def test_num_07_one_sample_in_a_thousand_fails_though_the_mean_is_fine(scheme: str) -> None:
    step = STEP if scheme == "w8a8" else None
    share = 0.05 if scheme == "w8a8" else 0.0
    references = [quantized(i) for i in range(1000)]
    # The bad sample is of low energy, so that it costs the pooled SQNR next to nothing.
    references[500] = quantized(500, rms=4)
    candidates = [off_by_one(x, i, share) for i, x in enumerate(references)]
    candidates[500] = -references[500]
    report = judged(references, candidates, tolerance=TOLERANCES[scheme], step=step)
    assert "worst-sample" in failed(report)
    assert report.outputs[0].worst_sample == 500
    if scheme != "fp32":
        assert failed(report) == {"worst-sample"}
        mean = np.mean(per_sample_sqnr_db(references[1:500], candidates[1:500]))
        assert mean > W8A8.sqnr_db


def test_num_07_one_element_far_off_fails_though_its_sample_has_a_fine_sqnr() -> None:
    references = [quantized(i, (1, 1000)) for i in range(100)]
    candidates = [x.copy() for x in references]
    candidates[7][0, 3] += np.float32(17 * STEP)
    report = judged(references, candidates, TensorSpec("logits", (1, 1000)))
    assert failed(report) == {"worst-sample"}
    assert report.outputs[0].worst_sample_db is not None
    assert report.outputs[0].worst_sample_db > 35


@pytest.mark.parametrize(
    ("scheme", "noise", "step"),
    [("fp16", 1e-3, None), ("fp32", 3e-5, None), ("w8a8", 1e-3, 0.02), ("w8", 1e-3, None)],
)
def test_num_07_relative_error_near_zero_passes(
    scheme: str, noise: float, step: float | None
) -> None:
    """coremltools issue 1809: absolute error 1e-3, relative error 13821 at one near-zero value."""
    spec = TensorSpec("features", (1, 16, 8, 8), layout="NCHW")
    references, candidates = [], []
    for i in range(20):
        rng = np.random.default_rng(i)
        x = rng.normal(0, 1, spec.shape).astype(np.float32)
        x[0, 3, 4, 5] = 7e-9
        references.append(x)
        candidates.append((x + rng.uniform(-noise, noise, x.shape)).astype(np.float32))
    relative = np.abs((candidates[0] - references[0]) / references[0]).max()
    assert relative > 100
    report = judged(references, candidates, spec, TOLERANCES[scheme], step)
    assert report.passed, report.failures


def test_num_07_heavy_tailed_float_outputs_pass_half_precision() -> None:
    references = [
        np.random.default_rng(i).standard_t(2, (1, 100)).astype(np.float32) for i in range(50)
    ]
    candidates = [x.astype(np.float16).astype(np.float32) for x in references]
    report = judged(references, candidates, tolerance=TOLERANCES["fp16"], step=None)
    assert report.passed, report.failures


def test_num_07_a_float_error_may_grow_with_the_value() -> None:
    spec = TensorSpec("density", (1, 10_000))
    references = [np.random.default_rng(i).normal(0, 1, spec.shape) for i in range(20)]
    for x in references:
        x[0, 7] = 20
    references = [x.astype(np.float32) for x in references]
    for error, fine in ((0.04, True), (0.1, False)):
        candidates = [x.copy() for x in references]
        candidates[3][0, 7] *= np.float32(1 + error)
        report = judged(references, candidates, spec, TOLERANCES["fp16"], None)
        assert failed(report) == (set() if fine else {"worst-sample"})


# Decisions


def test_a_flip_without_a_margin_is_no_disagreement_and_one_with_a_margin_is() -> None:
    base = np.full((1, 100), -100 * STEP, np.float32)
    close, clear = base.copy(), base.copy()
    close[0, :2] = [100 * STEP, 99 * STEP]
    clear[0, :2] = [100 * STEP, 90 * STEP]
    flipped = close.copy()
    flipped[0, :2] = [99 * STEP, 100 * STEP]
    report = judged([close, clear], [flipped, clear])
    assert report.passed, report.failures
    assert (report.outputs[0].agreement, report.outputs[0].n_decisive) == (1.0, 1)
    wrong = clear.copy()
    wrong[0, :2] = [90 * STEP, 100 * STEP]
    assert "agreement" in failed(judged([close, clear], [close, wrong]))


def test_without_a_decisive_decision_agreement_is_not_judged() -> None:
    flat = [np.full((1, 100), 100 * STEP, np.float32)] * 3
    report = judged(flat, flat)
    assert report.passed
    assert [check.name for check in report.unjudged] == ["agreement:logits"]
    assert report.summary()["agreement"] is None


def test_decisions_follow_the_class_axis() -> None:
    spec = TensorSpec("mask_logits", (1, 3, 4, 4), layout="NCHW")
    references = [quantized(i, spec.shape) for i in range(5)]
    stats = judged(references, references, spec).outputs[0]
    tops = np.sort(np.concatenate(references), axis=1)
    assert stats.n_decisive == int((tops[:, 2] - tops[:, 1] > 4 * STEP).sum())


# The accumulator itself


def test_a_batch_is_judged_row_by_row() -> None:
    spec = TensorSpec("logits", (8, 100))
    accumulator = ParityAccumulator([spec], W8A8, STEP, batch=8)
    for i in range(20):
        x = quantized(i, spec.shape)
        bad = x.copy()
        if i == 11:
            bad[3] = 0
        accumulator.add({"logits": x}, {"logits": bad})
    report = accumulator.report()
    assert report.samples == 160
    assert report.outputs[0].worst_sample == 11 * 8 + 3
    assert "worst-sample" in failed(report)


def test_no_sample_fails() -> None:
    report = ParityAccumulator([LOGITS], W8A8, STEP).report()
    assert {"samples", "self-test"} <= failed(report)
    assert not report.identical
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ParityAccumulator([], W8A8),
        lambda: ParityAccumulator([LOGITS], W8A8, 0.0),
        lambda: ParityAccumulator([LOGITS], W8A8, math.nan),
        lambda: ParityAccumulator([LOGITS], W8A8, {"other": 1.0}),
        lambda: ParityAccumulator([LOGITS], W8A8, batch=0),
        lambda: ParityAccumulator([LOGITS], W8A8).add({}, {}),
        lambda: ParityAccumulator([LOGITS], W8A8).add({"logits": np.zeros(100)}, {}),
    ],
)
def test_the_callers_own_faults_are_errors(make: Callable[[], object]) -> None:
    with pytest.raises(BadData):
        make()


def test_the_report_is_json_without_nan() -> None:
    x = quantized(0)
    for candidate in (x, one_element(math.nan)(x), one_element(math.inf)(x), np.zeros_like(x)):
        document = json.loads(json.dumps(judged([x], [candidate]).to_json(), allow_nan=False))
        assert document["passed"] is (candidate is x)
    assert Check("c", False, math.nan).to_json()["flag"] == "nan"
    assert Check("c", True, math.inf).to_json()["value"] is None


def test_ten_thousand_samples_are_not_held() -> None:
    spec = TensorSpec("logits", (1, 1000))
    accumulator = ParityAccumulator([spec], W8A8, STEP)
    x = quantized(0, (1, 1000))
    y = off_by_one(x, 0)
    tracemalloc.start()
    for _ in range(10_000):
        accumulator.add({"logits": x}, {"logits": y})
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 2_000_000  # Ten thousand tensors would be 40 MB.
    assert accumulator.report().samples == 10_000


@given(hnp.arrays(np.int16, (6, 1, 20), elements=st.integers(-128, 127)), st.integers(0, 2**31))
@quick
def test_the_order_of_the_samples_does_not_matter(codes: Array, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec = TensorSpec("logits", (1, 20))
    references = [(c * STEP).astype(np.float32) for c in codes]
    candidates = [off_by_one(x, seed + i, 0.5) for i, x in enumerate(references)]
    candidates[0] = candidates[0] + np.float32(3 * STEP)
    order = rng.permutation(6)
    one = judged(references, candidates, spec)
    two = judged([references[i] for i in order], [candidates[i] for i in order], spec)
    assert failed(one) == failed(two)
    assert one.outputs[0].sqnr_db == pytest.approx(two.outputs[0].sqnr_db)


@given(st.integers(0, 2**31), st.floats(3, 200), st.integers(0, 99))
@quick
def test_a_worse_candidate_never_does_better(seed: int, off: float, where: int) -> None:
    references = [quantized(seed + i) for i in range(3)]
    candidates = [off_by_one(x, i) for i, x in enumerate(references)]
    worse = [x.copy() for x in candidates]
    sign = 1 if candidates[1][0, where] >= references[1][0, where] else -1
    worse[1][0, where] += np.float32(sign * off * STEP)
    before, after = judged(references, candidates).outputs[0], judged(references, worse).outputs[0]
    assert (after.sqnr_db or 0) < (before.sqnr_db or 0)
    assert (after.within_fraction or 0) < (before.within_fraction or 0)
    assert after.max_error > before.max_error


def test_looser_figures_are_another_tolerance() -> None:
    references = [quantized(i) for i in range(30)]
    candidates = [off_by_one(x, i, 1.0) for i, x in enumerate(references)]
    assert failed(judged(references, candidates)) == {"sqnr"}
    looser = replace(W8A8, sqnr_db=28.0, worst_sample_db=13.0)
    assert judged(references, candidates, tolerance=looser).passed
