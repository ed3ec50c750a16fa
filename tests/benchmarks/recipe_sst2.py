"""One seed of recipes/distilbert.py on SST-2, with the times that the recipe does not take.

The recipe trains the teacher and its students, and exports the narrow one; here follow the float
files of the teacher and of the student, the latency of all three in every runtime, in rounds beside
each other, and the answers of the int8 files on dev and test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from recipe_seed import run_recipe, side_by_side

from edgekit import Bundle, ExportRequest, export_bundle
from edgekit.data.corpus import read_corpus
from edgekit.paired import paired_difference
from edgekit.recipe import load_recipe
from edgekit.sources import hugging_face

__all__ = ["RUNTIMES", "SETTINGS", "seed"]

RECIPE: Final = Path(__file__).parents[2] / "recipes" / "distilbert.py"

RUNTIMES: Final = ("openvino", "onnxruntime", "tflite", "executorch")

LENGTH: Final = 64

SETTINGS: Final[Mapping[str, Any]] = {
    "devices": '["host"]',
    "length": LENGTH,
    "teacher.train.epochs": 3,
    "teacher.train.rate": 1e-4,
    "teacher.train.amp": "bf16",
    "student.augment.mask": 0.1,
    "student.augment.cut": 0.5,
    "student.train.epochs": 10,
    "student.train.rate": 2e-4,
    "student.train.amp": "bf16",
    "student.distill.alpha": 1.0,
    "narrow.width": 256,
    "narrow.heads": 8,
    "narrow.inner": 768,
    "narrow.augment.mask": 0.1,
    "narrow.augment.cut": 0.5,
    "narrow.train.epochs": 16,
    "narrow.train.rate": 4e-4,
    "narrow.train.amp": "bf16",
    "narrow.distill.alpha": 1.0,
    "export.targets": json.dumps(RUNTIMES),
    "export.max_drop": 0.5,
    "export.bench": "false",
}
"""What differs from the recipe's own settings; chosen on dev."""


def seed(data: Path, folder: Path, number: int, length: str) -> Mapping[str, Any]:
    """The figures of one seed; what of it is done in ``folder`` is not done again."""
    assert length == "full"
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / "run"
    seeds = {f"{model}.train.seed": number for model in ("teacher", "student", "narrow")}
    recipe = run_recipe(RECIPE, data, run, dict(SETTINGS) | seeds)
    found = next(s for s in recipe["stages"] if s["name"] == "figures")["value"]
    floats = {name: _float_bundle(run, name, folder) for name in ("teacher", "student")}
    bundles = {**floats, "narrow": run / "bundle" / "bundle"}
    speed = side_by_side(bundles, "teacher", folder / "latency.json", runs=200)
    ratio = speed["ratio"]
    models = found["models"]
    int8 = _int8(run, folder)
    narrow_test = min(row["test"] for row in found["artifacts"].values() if row["test"] is not None)
    sizes = {name: _bytes(bundles[name]) for name in ("teacher", "narrow")}
    smaller = {t: sizes["teacher"][t] / sizes["narrow"][t] for t in RUNTIMES}
    fastest = {name: min(speed["ms"][name], key=speed["ms"][name].get) for name in bundles}
    best = fastest["narrow"]
    return {
        "seed": number,
        "bars": {
            "teacher_test": models["teacher"]["test"],
            "student_share": 100 * models["student"]["test"] / models["teacher"]["test"],
            # Each in the runtime in which the small one is fastest.
            "student_speed": 1 / ratio["student"][fastest["student"]],
            "narrow_share": 100 * narrow_test / models["teacher"]["test"],
            "narrow_smaller": smaller[best],
            "narrow_speed": 1 / ratio["narrow"][best],
            "int8_lost": max(row["lost"] for row in int8.values()),
        },
        "fastest": fastest,
        "smaller": smaller,
        "bytes": sizes,
        "latency": speed,
        "models": models,
        "artifacts": found["artifacts"],
        "int8": int8,
        "settings": {name: str(value) for name, value in SETTINGS.items()},
        "wall_s": recipe["wall_s"],
    }


def _float_bundle(run: Path, name: str, folder: Path) -> Path:
    """The float files of a model for every runtime, proven on dev."""
    out = folder / f"{name}-fp32"
    if not out.exists():
        result = export_bundle(
            hugging_face.load_hugging_face(run / name),
            ExportRequest(
                targets=RUNTIMES,
                schemes=("fp32",),
                evaluation=run / "texts" / "dev.jsonl",
                eval_limit=200,
                bench=False,
                name=name,
                out=out,
            ),
        )
        if result.failed:
            raise SystemExit(f"{name}: {', '.join(result.failed)}")
    return out


def _int8(run: Path, folder: Path) -> Mapping[str, Any]:
    """By int8 file, points lost against the float narrow model on dev and test together."""
    kept = folder / "int8.json"
    if kept.is_file():
        found: Mapping[str, Any] = json.loads(kept.read_text())
        return found
    script = load_recipe(RECIPE).module
    corpus = read_corpus(run / "texts")
    module = hugging_face.load_classifier(run / "narrow")
    tokenizer = hugging_face.tokenizer_of(run / "narrow", LENGTH)
    exact, answers = [], []
    for split in ("dev", "test"):
        exact.append(script.right(module, script.tokenized(corpus, split, tokenizer, trim=True)))
        answers.append(script.answered(run / "bundle" / "bundle", corpus, split))
    made: dict[str, Any] = {}
    for name in answers[0]:
        parts = [found[name] for found in answers]
        if any(isinstance(part, str) for part in parts):
            continue
        gained = paired_difference(np.concatenate(exact), np.concatenate(parts))
        made[name] = {
            "lost": -100 * gained.difference,
            "interval": [-100 * gained.high, -100 * gained.low],
            "n": gained.n,
        }
    kept.write_text(json.dumps(made, allow_nan=False))
    return made


def _bytes(path: Path) -> Mapping[str, int]:
    with Bundle.open(path) as opened:
        return {artifact.target: artifact.bytes for artifact in opened.artifacts}
