"""TEL-19: local differential privacy on the device, and what a report makes of it."""

from __future__ import annotations

import errno
import math
import os
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import FakeClock
from scipy import stats

from edgekit.errors import BadData, UsageError
from edgekit.runtime import _files, privacy
from edgekit.runtime._draws import Draws
from edgekit.runtime.aggregate import CONFIDENCE_BOUNDS
from edgekit.runtime.input_statistics import INPUT_BOUNDS
from edgekit.runtime.privacy import (
    Budget,
    LocalPrivacy,
    Noise,
    bernoulli_exp,
    clamped_bin,
    clamped_class,
    randomized,
)
from edgekit.runtime.recorder import Recorder

DAY = 86_400.0
NOON = 20_000 * DAY + DAY / 2


class Words:
    """Whole numbers as `secrets.randbelow` gives them, from a generator with a seed: a million
    trials want the same answer every day, and no system call each."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def __call__(self, n: int) -> int:
        return self._rng.randrange(n)


# -- the mechanism --------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", ["0", "1/1000", "1/2", "1", "7/3"])
def test_bernoulli_is_exactly_exp(gamma: str) -> None:
    below, n, p = Words(3), 20_000, math.exp(-Fraction(gamma))
    hits = sum(bernoulli_exp(Fraction(gamma), below) for _ in range(n))
    assert stats.binomtest(hits, n, p).pvalue > 1e-4


def outputs(truth: int, choices: int, thousandths: int, trials: int) -> np.ndarray:
    below, found = Words(truth), np.zeros(choices)
    for _ in range(trials):
        found[randomized(truth, choices, thousandths, below)] += 1
    return found / trials


def ratio_holds(choices: int, thousandths: int, trials: int) -> None:
    """Of any output, under any two inputs, within e^epsilon and what chance does to a rate."""
    most = math.exp(thousandths / 1000)
    rates = np.stack([outputs(truth, choices, thousandths, trials) for truth in range(choices)])
    for one in rates:
        for other in rates:
            tolerance = 5 * np.sqrt((1 - one) / one / trials + (1 - other) / other / trials)
            assert (one / other <= most * (1 + tolerance)).all()
    true, rest = Noise(thousandths, choices).rates
    wanted = np.where(np.eye(choices, dtype=bool), true, rest)
    assert np.abs(rates - wanted).max() < 5 * math.sqrt(0.25 / trials)
    assert true / rest == pytest.approx(most)


@pytest.mark.parametrize(("choices", "thousandths"), [(2, 500), (4, 1_000)])
def test_tel_19_outputs_are_no_more_than_e_to_epsilon_times_as_likely(
    choices: int, thousandths: int
) -> None:
    ratio_holds(choices, thousandths, 20_000)


@pytest.mark.slow
@pytest.mark.parametrize(("choices", "thousandths"), [(2, 250), (4, 1_000), (3, 2_500)])
def test_tel_19_over_a_million_trials(choices: int, thousandths: int) -> None:
    ratio_holds(choices, thousandths, 1_000_000)


def test_tel_19_a_devices_whole_window_is_protected_not_one_request() -> None:
    """Two devices that have nothing in common: all of class 0, all of class 3."""
    trials, counts = 20_000, np.zeros((2, 4))
    for side, index in enumerate((0, 3)):
        draws = _draws(Words(side), classes=4)
        for _ in range(trials):
            for _ in range(5):
                draws.prediction(None, index)
            held = draws._held
            draws._held = {}
            [(place, choices)] = [(p, c) for _, p, c in held.values()]
            counts[side, randomized(place, choices, 1_000, draws._below)] += 1
    rates = counts / trials
    assert (rates[0] / rates[1] <= math.e * 1.1).all()
    assert (rates[1] / rates[0] <= math.e * 1.1).all()


def test_tel_19_one_value_of_all_is_drawn_each_as_likely() -> None:
    found = np.zeros(10)
    below = Words(5)
    for _ in range(5_000):
        draws = _draws(below)
        for index in range(10):
            draws.prediction(None, index % 10)
        [(seen, place, _)] = draws._held.values()
        assert seen == 10
        found[place] += 1
    assert stats.chisquare(found).pvalue > 1e-4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_tel_19_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(BadData, match="finite"):
        clamped_bin(value, CONFIDENCE_BOUNDS)
    with pytest.raises(BadData, match="class"):
        clamped_class(value, 4)  # type: ignore[arg-type]
    draws = _draws(Words(0))
    draws.prediction(value, None)
    draws.prediction(None, value)  # type: ignore[arg-type]
    assert draws._held == {}


def test_tel_19_values_are_clamped_before_noise() -> None:
    assert [clamped_bin(v, (0.0, 1.0)) for v in (-1e308, 0.5, 1e308)] == [0, 1, 2]
    assert [clamped_class(i, 4) for i in (-5, 0, 3, 10**9)] == [0, 0, 3, 3]
    draws = _draws(Words(0))
    draws.prediction(7.5, 10**9)
    assert [place for _, place, _ in draws._held.values()] == [len(CONFIDENCE_BOUNDS), 9]


def test_tel_19_randomness_is_the_operating_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.Random.random", lambda _: pytest.fail("not a CSPRNG"))
    random.seed(0)
    first = [randomized(0, 1_000, 1) for _ in range(8)]
    random.seed(0)
    assert first != [randomized(0, 1_000, 1) for _ in range(8)]
    assert privacy.secrets.randbelow.__defaults__ is None
    for function in (randomized, bernoulli_exp, Draws.__init__):
        assert privacy.secrets.randbelow in (function.__defaults__ or ())


def test_what_makes_no_sense_is_refused() -> None:
    for wrong in (
        {"epsilon": 0}, {"epsilon": math.nan}, {"epsilon": 0.0005}, {"epsilon": 11.0},
        {"budget": math.inf}, {"period_s": 0.5}, {"classes": 1}, {"epsilon": 101, "budget": 1000},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            LocalPrivacy(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        randomized(4, 4, 1_000)


# -- the budget -----------------------------------------------------------------------------------


def test_tel_19_a_budget_that_is_used_up_refuses_until_the_next_period(tmp_path: Path) -> None:
    found = Budget(tmp_path, LocalPrivacy(epsilon=1.0, budget=3.0))
    assert [found.spend(NOON, 1_000) for _ in range(5)] == [True, True, True, False, False]
    assert found.left(NOON) == 0
    assert not found.due(NOON, 1)
    assert found.left(NOON + DAY) == 3_000
    assert found.spend(NOON + DAY, 3_000)
    assert not found.spend(NOON, 1)  # a clock that is set back is no new day
    assert not found.spend(NOON + DAY, -1)


def test_tel_19_a_budget_survives_a_restart_and_what_is_damaged_is_used_up(tmp_path: Path) -> None:
    settings = LocalPrivacy(epsilon=1.0, budget=3.0)
    assert Budget(tmp_path, settings).spend(NOON, 2_000)
    assert Budget(tmp_path, settings).left(NOON) == 1_000
    assert not Budget(tmp_path, settings).spend(NOON, 2_000)
    assert (tmp_path / "budget").stat().st_mode & 0o777 == 0o600
    whole = (tmp_path / "budget").read_bytes()
    for damage in (whole[:-1], b"", b"x" * 99, whole + whole, b"-1 -1\n", b"\xff" * 8):
        (tmp_path / "budget").write_bytes(damage)
        assert Budget(tmp_path, settings).left(NOON) == 0
        assert Budget(tmp_path, settings).left(NOON + DAY) == 0
    (tmp_path / "budget").unlink()
    (tmp_path / "elsewhere").write_bytes(b"0 0\n")
    (tmp_path / "budget").symlink_to("elsewhere")
    assert Budget(tmp_path, settings).left(NOON) == 0


SPENDER = """
import sys
from pathlib import Path
from edgekit.runtime.privacy import Budget, LocalPrivacy
budget = Budget(Path(sys.argv[1]), LocalPrivacy(budget=1000.0))
while budget.spend(float(sys.argv[2]), 1):
    print("released", flush=True)
"""


def test_tel_19_a_kill_costs_budget_and_never_gives_any(tmp_path: Path) -> None:
    released = 0
    for lines in (1, 7, 40):
        command = [sys.executable, "-c", SPENDER, str(tmp_path), str(NOON)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(lines):
                assert process.stdout.readline() == "released\n"
            process.kill()
            released += lines + process.stdout.read().count("released")
        # The last may have been paid for and not released.
        left = Budget(tmp_path, LocalPrivacy(budget=1000.0)).left(NOON)
        assert left <= 1_000_000 - released
        assert left >= 1_000_000 - released - 3


@pytest.mark.parametrize("at", ["open", "write", "fsync", "replace"])
def test_tel_19_what_cannot_be_written_down_is_not_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    settings = LocalPrivacy(epsilon=1.0, budget=3.0)
    assert Budget(tmp_path, settings).spend(NOON, 1_000)
    found = Budget(tmp_path, settings)

    def refuse(*args: object, **kwargs: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(_files.os, at, refuse)
        assert not found.spend(NOON, 1_000)
    # Whatever of it came to the disk, it never says less than what was released.
    assert found.left(NOON) <= 2_000
    assert Budget(tmp_path, settings).left(NOON) <= 2_000


def test_reports_come_evenly_over_the_period(tmp_path: Path) -> None:
    found = Budget(tmp_path, LocalPrivacy(epsilon=1.0, budget=8.0))
    midnight, hours = 20_000 * DAY, []
    for minute in range(24 * 60):
        now = midnight + minute * 60
        if found.due(now, 2_000):
            assert found.spend(now, 2_000)
            hours.append(minute / 60)
    assert hours == [0, 6, 12, 18]


# -- the recorder ---------------------------------------------------------------------------------


def _draws(below: Words, classes: int = 10) -> Draws:
    settings = LocalPrivacy()
    budget, seed = Budget(Path("nowhere"), settings), below(2**32)
    return Draws(settings, budget, classes, CONFIDENCE_BOUNDS, below, seed)


def _private(folder: Path, clock: FakeClock, **more: Any) -> Recorder:
    found = Recorder(
        folder, background=False, clock=clock,
        privacy=LocalPrivacy(**({"epsilon": 1.0, "budget": 4.0, "classes": 5} | more)),
    )  # fmt: skip
    found.give_consent()
    return found


def _metrics(recorder: Recorder) -> dict[str, list[dict[str, Any]]]:
    return {metric["name"]: metric["points"] for metric in recorder.preview()["metrics"]}


def test_tel_19_a_recorder_reports_noised_values_only_and_within_its_budget(
    tmp_path: Path,
) -> None:
    clock = FakeClock(wall=NOON - DAY / 2)
    sent: dict[str, list[dict[str, Any]]] = {}
    released = []
    with _private(tmp_path / "t", clock) as recorder:
        for _ in range(48):
            for _ in range(20):
                recorder.record(0.01, confidence=0.91, predicted=3)
                recorder.record(0.01, confidence=math.nan, predicted=None)
            # What is open tells nothing of answers, noised or not.
            assert not [name for name in _metrics(recorder) if "prediction" in name]
            window = recorder._swap()
            assert window is not None
            released.append(len(window.reports))
            for metric in window.to_metrics(1, 2):
                for kind in ("sum", "histogram", "exponential_histogram"):
                    sent.setdefault(metric["name"], []).extend(
                        metric.get(kind, {}).get("data_points", [])
                    )
            clock.advance(1800.0)
    # Two features of epsilon 1 out of a budget of 4: twice a day.
    assert [i / 2 for i, n in enumerate(released) if n] == [0, 12]
    assert set(released) == {0, 2}
    for name in ("edgekit.prediction.confidence", "edgekit.prediction.classes"):
        for point in sent[name]:
            about = {a["key"]: a["value"].get("int_value") for a in point["attributes"]}
            assert about["edgekit.noise.epsilon"] == 1_000
            assert about["edgekit.noise.choices"] == (5 if name.endswith("classes") else 20)
            assert point.get("as_int", point.get("count")) == 1
    requests = sum(point["as_int"] for point in sent["edgekit.inference.requests"])
    assert requests == 48 * 40


def test_tel_19_a_restart_or_a_new_consent_is_no_new_budget(tmp_path: Path) -> None:
    clock, released = FakeClock(), 0
    for i in range(12):
        with _private(tmp_path / "t", clock, period_s=1e9) as recorder:
            recorder.record(0.01, confidence=0.91, predicted=3)
            window = recorder._swap()
            assert window is not None
            released += len(window.reports)
            if i % 4 == 3:
                recorder.withdraw()
                assert (tmp_path / "t" / "budget").exists()
    assert released <= 4


def test_without_privacy_nothing_is_noised(tmp_path: Path) -> None:
    with Recorder(tmp_path / "t", background=False, clock=FakeClock()) as recorder:
        recorder.give_consent()
        recorder.record(0.01, confidence=0.91, predicted=3)
        points = _metrics(recorder)["edgekit.prediction.classes"]
    assert points == [{"attributes": {"edgekit.class": 3}, "value": 1}]
    assert not (tmp_path / "t" / "budget").exists()


def test_inputs_are_noised_too() -> None:
    draws = _draws(Words(0))
    draws.inputs([(2, (3, 4, 5))])
    assert {feature: place for feature, (_, place, _) in draws._held.items()} == {
        (f"edgekit.input.{name}", 2): place
        for name, place in zip(INPUT_BOUNDS, (3, 4, 5), strict=True)
    }


def test_a_budget_too_small_for_all_pays_for_some_by_lot(tmp_path: Path) -> None:
    settings, seen = LocalPrivacy(epsilon=1.0, budget=2.0, period_s=60.0), set()
    draws = Draws(settings, Budget(tmp_path, settings), 10, CONFIDENCE_BOUNDS, Words(1))
    for minute in range(20):
        now = NOON + minute * 60.0
        draws.prediction(0.5, 3)
        draws.inputs([(0, (3, 4, 5))])
        reports = draws.reports(draws.take(now), now)
        assert len(reports) == 2
        seen |= {report.metric for report in reports}
    assert len(seen) == 5
