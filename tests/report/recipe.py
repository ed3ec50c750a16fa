"""A small recipe with everything that a report shows: curves, a plan, an export, and answers.

Digits of scikit-learn, of which two classes have names that would be markup if they were not text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from edgekit import ExportRequest, ImagePreprocess, Model
from edgekit.compress.state import state_of
from edgekit.compress.train import TrainSettings, train
from edgekit.data import ArraySamples
from edgekit.data.training import ArraySet
from edgekit.export.quantizing import quantize_model
from edgekit.recipe import Run, Settings, export, stage
from edgekit.report import collect

LABELS = ("zero", "<script>alert(1)</script>", 'two & "a half"', *"3456789")
PREPROCESS = ImagePreprocess(height=8, width=8, channels=1, color="GRAY")


class Config(Settings):
    train: TrainSettings = TrainSettings(epochs=3, batch=64, rate=2e-2, validation=0.1)
    scheme: str = "w8a8"
    targets: tuple[str, ...] = ("onnxruntime",)
    devices: tuple[str, ...] = ("host",)
    samples: int = 200
    bench: bool = False


def network() -> nn.Module:
    convolutions = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2)]
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*convolutions, *head)


def model(state: Mapping[str, torch.Tensor]) -> Model:
    module = network()
    module.load_state_dict(dict(state))
    example = {"input": torch.zeros(PREPROCESS.shape)}
    return Model.from_module(
        module.eval(), example, name="digits", preprocess=PREPROCESS, labels=LABELS
    )


def samples(of: Model, start: int, stop: int) -> ArraySamples:
    digits = load_digits()
    pictures = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return ArraySamples(
        {"input": pictures[start:stop]},
        digits.target[start:stop],
        signature=of.signature,
        preprocess=of.preprocess,
        source="digits",
    )


@stage
def trained(cfg: Config, run: Run) -> dict[str, torch.Tensor]:
    digits = load_digits()
    pixels = (digits.images[:1200, None] / 16).astype(np.float32)
    torch.manual_seed(0)
    module = network()
    train(module, ArraySet({"input": pixels}, digits.target[:1200]), cfg.train,
          folder=run.folder, watch=run)  # fmt: skip
    return state_of(module)


@stage
def plan(trained: Mapping[str, torch.Tensor], cfg: Config, run: Run) -> Path:
    of = model(trained)
    request = ExportRequest(
        schemes=(cfg.scheme,), calib=samples(of, 0, 64), out=run.out / "plan", listener=run
    )
    document = {**quantize_model(of, request, sensitivity=True), "folder": "plan", "wall_s": 0.0}
    path = run.out / "quantize.json"
    path.write_text(json.dumps(document))
    return path


@stage
def exported(trained: Mapping[str, torch.Tensor], cfg: Config, run: Run) -> Path:
    of = model(trained)
    stop = 1300 + cfg.samples
    export(
        of,
        ExportRequest(
            devices=cfg.devices,
            targets=cfg.targets,
            schemes=(cfg.scheme,),
            calib=samples(of, 0, 64),
            evaluation=samples(of, 1300, stop),
            max_drop=2.0,
            bench=cfg.bench,
            clients=(),
            waive=("faster", "smaller"),
        ),
        run,
    )
    return run.out / "bundle"


@stage
def answers(
    trained: Mapping[str, torch.Tensor], exported: Path, cfg: Config, run: Run
) -> dict[str, float]:
    of = model(trained)
    chosen = samples(of, 1300, 1300 + cfg.samples)
    found = {}
    for name, subject in (("float", of), ("artifact", exported)):
        one = None if name == "float" else f"{cfg.targets[0]}-{cfg.scheme}"
        path = collect(subject, chosen, run.out / name, artifact=one, worst=12, watch=run)
        found[name] = json.loads(path.read_text())["top1"]
    run.gate("artifact-top1", found["artifact"] > 50, f"{found['artifact']:.1f} of 50")
    return found
