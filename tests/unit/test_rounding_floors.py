"""The floor of what verification may ask for: as sure on few samples as on many."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import layerwise, verify
from edgekit.compress import evaluate as evaluation
from edgekit.compress.graph import canonical
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.errors import UnsupportedError
from edgekit.export.reference import FLOOR_SAMPLES, PROBE_DRAWS, rounding_floors
from edgekit.layerwise import LayerError
from edgekit.parity import Check
from edgekit.signature import Signature, TensorSpec
from edgekit.verify import output_steps

SIGNATURE = Signature((TensorSpec("x", (1, 4)),), (TensorSpec("y", (1, 4)),))


def given(n: int) -> tuple[Any, Any, dict[str, Any], Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
        rows = [(torch.randn(1, 4),) for _ in range(n + 2)]
    program = canonical(torch.export.export(net, rows[0]))
    plan = quantize(program, rows)
    feeds = {"x": np.stack([row[0].numpy() for row in rows])}
    return render(program, plan, "fake"), plan, feeds, program


@pytest.mark.parametrize(
    ("n", "times", "draws"),
    [(4, 1, 8), (50, 1, 3), (128, 1, 1), (200, 1, 1), (4, 2, 16), (50, 2, 6), (200, 2, 2)],
)
def test_few_samples_are_disturbed_more_often(
    n: int, times: int, draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, plan, feeds, program = given(n)
    answers = evaluation.evaluate(module, feeds, ["x"], ["y"])
    seen: list[int] = []
    own = evaluation.with_rounding_noise

    def noisy(given: Any, relative: float = 1e-6, *, draw: int = 0) -> Any:
        seen.append(draw)
        return own(given, 0.02, draw=draw)  # so that something moves

    monkeypatch.setattr(evaluation, "with_rounding_noise", noisy)
    steps = output_steps(program, plan, ["y"])
    floors = rounding_floors(SIGNATURE, module, feeds, answers, steps, n, "w8a8", times=times)
    assert seen == [*range(draws), *range(PROBE_DRAWS)]
    # All draws count: what moved is the mean over them, in dB about each.
    count, noise, signal = min(n, times * FLOOR_SAMPLES), 0.0, 0.0
    few = {"x": feeds["x"][:count]}
    for draw in range(draws):
        moved = evaluation.evaluate(own(module, 0.02, draw=draw), few, ["x"], ["y"])["y"]
        noise += float(np.square(moved - answers["y"][:count], dtype=np.float64).sum())
        signal += float(np.square(answers["y"][:count], dtype=np.float64).sum())
    assert floors["floor"]["sqnr_db"] == pytest.approx(10 * np.log10(signal / noise), abs=1e-6)
    assert floors["probe_floor"]["sqnr_db"] is not None


def held(off: int, floor: dict[str, Any] | None, elements: int = 640) -> verify.Verdict:
    """The verdict on answers with some elements off by two and a half steps."""
    signature = Signature((TensorSpec("x", (1, 1)),), (TensorSpec("y", (1, 10)),))
    right = np.random.default_rng(0).normal(0, 3, (elements // 10, 1, 10)).astype(np.float32)
    answers = right.copy()
    answers.reshape(-1)[np.arange(off) * 7] += 2.5 * 0.02
    feeds = {"x": np.zeros((len(right), 1, 1), np.float32)}
    reference = verify.Reference("w8a8", feeds, {"y": right}, {"y": 0.02}, floor=floor)
    return verify.judge(
        reference, signature, {"y": answers}, ["y"], 1, stored_faults=None, runtime="none 1"
    )


def step_check(checks: Sequence[Check]) -> tuple[bool | None, float]:
    [check] = [c for c in checks if c.name == "within-steps:y"]
    return check.passed, round(float(check.limit), 4)


FLOOR = {"sqnr_db": 41.0, "within_fraction": 1.0, "within_with_margin": 1 - 2 / 640}


def test_a_few_elements_that_larger_noise_moves_too_may_be_excused() -> None:
    found = held(3, FLOOR)
    assert not found.passed and step_check(found.checks) == (False, 0.999)
    assert found.excused is not None
    assert step_check(found.excused) == (True, round(1 - 4 * 2 / 640, 4))
    assert all(c.passed is not False for c in found.excused)


@pytest.mark.parametrize(
    ("off", "floor"),
    [
        (3, None),
        (3, {**FLOOR, "within_with_margin": 1.0}),
        (3, {"sqnr_db": 41.0, "within_fraction": 1.0}),  # of a bundle made before
        (9, FLOOR),
        (0, FLOOR),
    ],
)
def test_nothing_else_is_excused(off: int, floor: dict[str, Any] | None) -> None:
    found = held(off, floor)
    assert found.excused is None and step_check(found.checks) == (off == 0, 0.999)


def test_how_rare_it_is_is_asked_of_more_noise() -> None:
    """A distilled encoder carried two of 872 samples on; 128 under noise had met none."""
    few, many = {**FLOOR, "within_with_margin": 1.0}, {**FLOOR, "within_fraction": 1 - 2 / 640}
    found = held(3, few)
    asked = verify.excuse_rare(found, lambda: held(3, many), unasked)
    assert not asked.passed and asked.checks == found.checks and asked.excused is not None
    assert step_check(asked.excused) == (True, round(1 - 4 * 2 / 640, 4))
    # More noise does not move as many either.
    assert verify.excuse_rare(found, lambda: held(3, few), unasked).excused is None
    assert verify.excuse_rare(held(9, few), lambda: held(9, many), unasked).excused is None


@pytest.mark.parametrize("off", [0, 3, 64])
def test_more_noise_is_not_evaluated_for_what_passed_was_excused_or_is_wrong_otherwise(
    off: int,
) -> None:
    found = held(off, FLOOR)
    if off == 64:
        found = dataclasses.replace(found, checks=(*found.checks, Check("sqnr:y", False, 20, 35)))

    assert verify.excuse_rare(found, unasked, unasked) is found


def astray(
    steps: Sequence[float], floor: dict[str, Any] | None = None, probes: int = 0
) -> verify.Verdict:
    """The verdict on 640 answers, the first of them off by so many steps each, the probes last."""
    signature = Signature((TensorSpec("x", (1, 1)),), (TensorSpec("y", (1, 2)),))
    right = np.random.default_rng(0).normal(0, 3, (640, 1, 2)).astype(np.float32)
    answers = right.copy()
    answers[: len(steps)] += 0.02 * np.multiply.outer(steps, [[1.0, -1.0]]).astype(np.float32)
    order = np.r_[probes:640, 0:probes] if probes else np.arange(640)
    feeds = {"x": np.zeros((640, 1, 1), np.float32)}
    reference = verify.Reference(
        "w8a8", feeds, {"y": right[order]}, {"y": 0.02}, probes, floor, probe_floor=floor
    )
    return verify.judge(
        reference, signature, {"y": answers[order]}, ["y"], 1, stored_faults=None, runtime="none 1"
    )


def by(*distances: float) -> Any:
    """Noise that takes samples so far, in steps of each of both elements."""

    def moved(samples: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
        assert len(samples) == len(distances)
        return {"y": 0.02 * np.sqrt(2) * np.array(distances)}

    return moved


def failed(checks: Sequence[Check]) -> set[str]:
    return {c.name for c in checks if c.passed is False}


def test_a_sample_that_noise_takes_as_far_may_be_excused() -> None:
    found = astray([22], {**FLOOR, "within_fraction": 0.99})
    assert failed(found.checks) == {"worst-sample:y"}
    assert [b.sample for b in found.bad] == [0] and 0 in found.suspects
    asked = verify.excuse_rare(found, unasked, by(18))
    assert not asked.passed and asked.checks == found.checks and asked.excused is not None
    assert not failed(asked.excused)
    [check] = [c for c in asked.excused if c.name == "worst-sample:y"]
    assert "but for 0," in check.detail
    # Half as far is no excuse, and neither is noise that is none.
    for distance in (11.0, 0.0, float("nan")):
        assert verify.excuse_rare(found, unasked, by(distance)).excused is None


def test_every_bad_sample_needs_its_excuse() -> None:
    floor = {**FLOOR, "within_fraction": 0.99}
    two = astray([22, 30], floor)
    assert failed(two.checks) == {"worst-sample:y"}
    assert verify.excuse_rare(two, unasked, by(22, 30)).excused is not None
    assert verify.excuse_rare(two, unasked, by(22, 10)).excused is None
    # So many are no rare event.
    many = astray([22] * 9, {**FLOOR, "within_fraction": 0.98})
    assert failed(many.checks) == {"worst-sample:y"} and len(many.bad) == 9
    assert verify.excuse_rare(many, unasked, unasked).excused is None


def test_a_bad_sample_among_elements_that_more_noise_moves_too() -> None:
    few = {**FLOOR, "within_with_margin": 1.0}
    many = {**few, "within_fraction": 0.99}
    found = astray([22, 3, 3], few)
    assert failed(found.checks) == {"worst-sample:y", "within-steps:y"}
    asked = verify.excuse_rare(found, lambda: astray([22, 3, 3], many), by(22))
    assert asked.excused is not None and not failed(asked.excused)
    assert verify.excuse_rare(found, lambda: astray([22, 3, 3], few), by(22)).excused is None
    assert verify.excuse_rare(found, lambda: astray([22, 3, 3], many), by(2)).excused is None


def test_a_bad_probe_is_asked_about_by_its_place_behind_the_samples() -> None:
    found = astray([22], {**FLOOR, "within_fraction": 0.99}, probes=320)
    assert failed(found.checks) == {"probes/worst-sample:y"}
    assert [b.sample for b in found.bad] == [320]
    assert verify.excuse_rare(found, unasked, by(20)).excused is not None


def unasked(*_: object) -> Any:
    raise AssertionError("it was asked")


@pytest.mark.parametrize(("worst", "right"), [((0.5,), True), ((3.0, 1.0, 1.0, 3.0), False)])
def test_an_excuse_counts_where_every_layer_is_right(
    worst: tuple[float, ...], right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [LayerError("first", 0.1, 0.5), LayerError("second", 0.1, *worst)]
    monkeypatch.setattr(layerwise, "examine", lambda *_: layers)
    program: Any = None
    closer = verify.look_closer(held(3, FLOOR), "tflite", program, program, SIGNATURE, {})
    assert closer.passed is right
    assert step_check(closer.checks)[0] is right
    assert closer.checks[-1].name == "layers"


def test_an_excuse_does_not_count_where_layers_cannot_be_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> Any:
        raise UnsupportedError("no taps here")

    for answer in (refuse, lambda *_: []):
        monkeypatch.setattr(layerwise, "examine", answer)
        program: Any = None
        closer = verify.look_closer(held(3, FLOOR), "tflite", program, program, SIGNATURE, {})
        assert not closer.passed and step_check(closer.checks)[0] is False


def test_the_margin_is_one_on_the_size_of_the_noise() -> None:
    signature = Signature((TensorSpec("x", (1, 1)),), (TensorSpec("y", (1, 10)),))
    right = np.zeros((8, 1, 10), np.float32)
    right[:] = np.arange(10)
    moved = right.copy()
    moved[0, 0, 0] += 1.9 * 0.02
    moved[1, 0, 0] += 1.3 * 0.02
    found = verify.rounding_floor(signature, {"y": right}, {"y": moved}, {"y": 0.02}, "w8a8")
    assert (found["within_fraction"], found["within_with_margin"]) == (1.0, 1 - 1 / 80)
