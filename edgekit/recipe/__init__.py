"""Recipes: scripts whose stages are plain functions, cached, resumed, retried and told of.

    from edgekit.recipe import Settings, stage

    class Config(Settings):
        epochs: int = 3

    @stage
    def digits(): ...

    @stage
    def trained(digits, cfg, run): ...

``edgekit run script.py -s epochs=5`` runs what is not cached; see `stage`. The names below are
imported on their first use: a stage's process needs few of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.recipe.context import Run as Run
    from edgekit.recipe.engine import Outcome as Outcome
    from edgekit.recipe.engine import Planned as Planned
    from edgekit.recipe.engine import Runner as Runner
    from edgekit.recipe.engine import Silent as Silent
    from edgekit.recipe.engine import View as View
    from edgekit.recipe.exporting import export as export
    from edgekit.recipe.stages import Recipe as Recipe
    from edgekit.recipe.stages import Stage as Stage
    from edgekit.recipe.stages import load_recipe as load_recipe
    from edgekit.recipe.stages import stage as stage
    from edgekit.settings import Settings as Settings

_HOMES = {
    "Outcome": "engine",
    "Planned": "engine",
    "Recipe": "stages",
    "Run": "context",
    "Runner": "engine",
    "Settings": "stages",
    "Silent": "engine",
    "Stage": "stages",
    "View": "engine",
    "export": "exporting",
    "load_recipe": "stages",
    "stage": "stages",
}

__all__ = [
    "Outcome",
    "Planned",
    "Recipe",
    "Run",
    "Runner",
    "Settings",
    "Silent",
    "Stage",
    "View",
    "export",
    "load_recipe",
    "stage",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
