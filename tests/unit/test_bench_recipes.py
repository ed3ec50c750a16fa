"""The recipes' benchmark: how bars are judged over seeds, and that settings are the recipe's."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekit.recipe import load_recipe
from edgekit.settings import with_overrides

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def recipes() -> Iterator[Any]:
    """The module ``recipes``; it imports its neighbours by name."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("recipes")
    finally:
        sys.path.remove(str(FOLDER))


def test_a_bar_is_held_by_the_mean_over_seeds(recipes: Any) -> None:
    least = recipes.Bar("a", "a", 88.5)
    found = recipes.judged(least, [88.0, 89.0, 90.0])
    assert found["held"] is True and found["mean"] == 89.0
    # Student's t of two degrees of freedom, times the standard error 1 / sqrt(3).
    assert found["interval"] == pytest.approx([89 - 2.4842, 89 + 2.4842], abs=1e-3)
    assert recipes.judged(least, [88.0, 88.9])["held"] is False
    most = recipes.Bar("b", "b", 0.5, least=False)
    assert recipes.judged(most, [0.5])["held"] is True
    assert recipes.judged(most, [0.5])["interval"] is None
    assert recipes.judged(most, [0.4, 0.7])["held"] is False


def test_a_bar_without_a_figure_is_not_held(recipes: Any) -> None:
    bar = recipes.Bar("a", "a", 1.0)
    assert recipes.judged(bar, [])["held"] is None
    assert recipes.judged(bar, [2.0, None])["held"] is None


def test_a_seed_that_is_done_is_not_run_again(
    recipes: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[int] = []

    def seed(data: Path, folder: Path, number: int, length: str) -> Mapping[str, Any]:
        asked.append(number)
        return {"seed": number, "bars": {"speed": 2.0 + number}}

    part = recipes.Part((recipes.Bar("speed", "speed", 2.5),), seed)
    monkeypatch.setattr(recipes, "PARTS", {"sst2": part})
    out = tmp_path / "out.json"
    command = ["--sst2", str(tmp_path), "--work", str(tmp_path / "w"), "--out", str(out)]
    assert recipes.main([*command, "--seeds", "1"]) == 1
    assert "| sst2 | speed | at least 2.5 | 2.00 | - | NOT HELD |" in capsys.readouterr().out
    assert recipes.main([*command, "--seeds", "2"]) == 0
    assert asked == [0, 1]
    [bar] = json.loads(out.read_text())["parts"]["sst2"]["bars"]
    assert bar["seeds"] == [2.0, 3.0] and bar["held"] is True


def test_a_short_training_holds_no_bar(
    recipes: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[str] = []

    def seed(data: Path, folder: Path, number: int, length: str) -> Mapping[str, Any]:
        asked.append(length)
        return {"seed": number, "bars": {"speed": 9.0}}

    part = recipes.Part((recipes.Bar("speed", "speed", 2.5),), seed, ("full", "short"))
    monkeypatch.setattr(recipes, "PARTS", {"cifar": part})
    command = ["--cifar", str(tmp_path), "--work", str(tmp_path / "w"), "--seeds", "1"]
    out = ["--out", str(tmp_path / "out.json")]
    assert recipes.main([*command, *out, "--length", "short"]) == 1
    assert "| 9.00 | - | not judged |" in capsys.readouterr().out
    assert recipes.main([*command, *out]) == 0
    assert asked == ["short", "full"]


@pytest.mark.parametrize("length", ["full", "short"])
def test_the_settings_for_pictures_are_settings_of_the_recipe(recipes: Any, length: str) -> None:
    steps = importlib.import_module("recipe_cifar")
    given = {**steps.COMMON, **steps.LENGTHS[length], "prune.by": "latency", "prune.target": 1}
    settings = with_overrides(
        load_recipe(steps.RECIPE).defaults(), {k: str(v) for k, v in given.items()}
    )
    assert settings.quantize.targets == steps.RUNTIMES  # type: ignore[attr-defined]
    assert settings.augment.crop == 4 and settings.augment.rotate == 0  # type: ignore[attr-defined]


def test_the_settings_are_settings_of_the_recipe(recipes: Any) -> None:
    steps = importlib.import_module("recipe_sst2")
    settings = with_overrides(
        load_recipe(steps.RECIPE).defaults(), {k: str(v) for k, v in steps.SETTINGS.items()}
    )
    assert settings.length == steps.LENGTH  # type: ignore[attr-defined]
    assert settings.devices == ("host",)  # type: ignore[attr-defined]
    assert settings.export.targets == steps.RUNTIMES  # type: ignore[attr-defined]
    assert {bar.name for bar in recipes.PARTS["sst2"].bars} >= {"teacher_test", "int8_lost"}
