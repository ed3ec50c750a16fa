"""One seed of recipes/mobilenet.py on CIFAR-10: what its teacher and its pruning bring.

The recipe trains a teacher and a student of a third of the width; beside it the same student is
trained without a teacher, for as many epochs, with the same augmentation and seed. Then a student
of full width is pruned for measured latency, and held against the same student that is left whole
and trains for the epochs of the recovery in addition; the latencies of their int8 files are
measured in rounds beside each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from recipe_seed import run_recipe, side_by_side

from edgekit.compress.train import train
from edgekit.recipe import load_recipe
from edgekit.settings import with_overrides

__all__ = ["LENGTHS", "RUNTIMES", "seed"]

RECIPE: Final = Path(__file__).parents[2] / "recipes" / "mobilenet.py"

RUNTIMES: Final = ("tflite", "openvino", "onnxruntime", "executorch")
"""The first is the one that is pruned for."""

COMMON: Final[Mapping[str, Any]] = {
    "name": "cifar10-mobilenet",
    "devices": '["host"]',
    "augment.crop": 4,
    "augment.flip": 0.5,
    "augment.rotate": 0,
    "augment.shear": 0,
    "augment.scale": 0,
    "augment.shift": 0,
    "quantize.targets": json.dumps(RUNTIMES),
    "quantize.sensitivity": "false",
    "quantize.bench": "false",
    "qat.train.epochs": 0,
}

LENGTHS: Final[Mapping[str, Mapping[str, Any]]] = {
    # For a GPU.
    "full": {
        "teacher.kind": "resnet18",
        "teacher.train.epochs": 40,
        "student.train.epochs": 60,
        "prune.recover.epochs": 10,
        "prune.steps": 3,
    },
    # For an hour or two on a few cores: says which way things go, and holds no bar.
    "short": {
        "teacher.train.epochs": 6,
        "student.train.epochs": 6,
        "prune.recover.epochs": 2,
        "prune.steps": 1,
    },
}
"""Settings of each length, beside `COMMON`."""


def seed(data: Path, folder: Path, number: int, length: str) -> Mapping[str, Any]:
    """The figures of one seed; what of it is done in ``folder`` is not done again."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = dict(COMMON) | dict(LENGTHS[length])
    settings |= {f"{model}.train.seed": number for model in ("teacher", "student")}
    narrow = settings | {"student.width": 0.35}
    taught = run_recipe(RECIPE, data, folder / "taught", narrow, ["student"])
    alone = _alone(data, folder, narrow)
    with_teacher = _metric(taught, "student")

    recovery = int(settings["prune.recover.epochs"]) * int(settings["prune.steps"])
    longer = int(settings["student.train.epochs"]) + recovery
    wide = settings | {"student.width": 1.0, "prune.by": "latency", "prune.target": 0.5}
    runs = {
        name: run_recipe(RECIPE, data, folder / name, given, ["exported"])
        for name, given in (
            ("pruned", wide),
            ("whole", wide | {"prune.target": 1, "student.train.epochs": longer}),
        )
    }
    exports = {
        name: json.loads((folder / name / "exported" / "export.json").read_text()) for name in runs
    }
    values = {
        name: {row["target"]: row["value"] for row in export["artifacts"]}
        for name, export in exports.items()
    }
    bundles = {name: folder / name / "exported" / "bundle" for name in runs}
    speed = side_by_side(bundles, "whole", folder / "latency.json", runs=400)
    first = RUNTIMES[0]
    return {
        "seed": number,
        "length": length,
        "bars": {
            "alone": alone,
            "taught_gain": with_teacher - alone,
            "pruned_time": speed["ratio"]["pruned"][first],
            "pruned_lost": values["whole"][first] - values["pruned"][first],
        },
        "teacher": _metric(taught, "teacher"),
        "taught": with_teacher,
        "top1": values,
        "latency": speed,
        "settings": {name: str(value) for name, value in settings.items()},
        "wall_s": {name: run["wall_s"] for name, run in {"taught": taught, **runs}.items()},
    }


def _metric(run: Mapping[str, Any], stage: str) -> float:
    """A stage's top-1 on test, in percent."""
    (found,) = (s for s in run["stages"] if s["name"] == stage)
    _, value = found["metrics"]["test_top1"][-1]
    return float(value)


def _alone(data: Path, folder: Path, settings: Mapping[str, Any]) -> float:
    """The student's top-1 without a teacher: the recipe's own network, pictures and training."""
    kept = folder / "alone.json"
    if kept.is_file():
        return float(json.loads(kept.read_text())["test_top1"])
    script = load_recipe(RECIPE).module
    cfg = with_overrides(script.Config(), {name: str(value) for name, value in settings.items()})
    found = script.facts(cfg, data)
    preprocess = script.preprocess_of(cfg, found)
    module = script.network(cfg.student, cfg, len(found["classes"]))
    learn = script.picture_set(cfg, data, preprocess, "train", cfg.augment)
    train(module, learn, cfg.student.train, folder=folder / "alone")
    top1 = script.judged(module, script.picture_set(cfg, data, preprocess, "test", None))
    kept.write_text(json.dumps({"test_top1": top1}))
    return float(top1)
