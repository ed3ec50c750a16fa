"""Distils, prunes and quantizes a small MobileNet, and exports it for phones, boards and servers.

    edgekit run mobilenet
    edgekit run mobilenet --data flowers/ -s size=224 -s blocks=full -s name=flowers
    python recipes/mobilenet.py -s student.width=0.35

A teacher is trained; a narrower student learns from it; its channels go where they buy most for
least; it is quantized, by training too where that gains; and it is exported for every runtime of
the devices, each file run in its runtime, compared with the plan and with the float model, measured
and packed. Every stage is kept, and made again only when something that it reads has changed.

The pictures are scikit-learn's handwritten digits: 1797 of 8 x 8 pixels, which come with that
package. The last 360 are the test set and nothing else. ``--data`` takes a folder or .zip of
pictures by class, ``-s dataset=CIFAR10`` one of torchvision's.

References: Sandler et al., "MobileNetV2", 2018 (arXiv:1801.04381); Howard et al., "Searching for
MobileNetV3", 2019 (arXiv:1905.02244); He et al., "Deep Residual Learning", 2015
(arXiv:1512.03385); Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository, 1998.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from edgekit import Device, ExportRequest, ImagePreprocess, Model, Settings, stage
from edgekit._torchvision import torchvision
from edgekit.compress.distill import DistillSettings, distill
from edgekit.compress.folder import load_quantized, save_quantized
from edgekit.compress.prune import PruneSettings, PruneStep, prune
from edgekit.compress.qat import QatSettings, qat
from edgekit.compress.state import fit_state
from edgekit.compress.train import TrainSettings, accuracy, held_out, train
from edgekit.data import Samples
from edgekit.data.training import Augment, PictureSet, Subset, from_torchvision, pictures
from edgekit.export.cost import Latency, Macs
from edgekit.export.quantizing import quantize_model
from edgekit.recipe import Run, export
from edgekit.report import collect

TEST = 360
"""Digits that are the test set: the last ones."""

SHORT = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 1), (6, 64, 3, 2), (6, 96, 2, 1))
"""MobileNetV2's table of expansion, channels, repeats and stride, cut to what small pictures need:
eleven blocks in place of seventeen, and 4 x 4 pixels left at the end of 32 x 32."""


TRAIN = TrainSettings(
    epochs=16, rate=6e-3, schedule="one-cycle", smoothing=0.05, channels_last=True
)


class Network(Settings):
    """A network of torchvision's, and how it is trained.

    Attributes:
        kind: which.
        width: factor on its channels; not of resnet18.
        weights: a .safetensors file with its weights, in place of training it.
        train: how it is trained.
    """

    kind: Literal["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "resnet18"] = (
        "mobilenet_v2"
    )
    width: float = 1.0
    weights: Path | None = None
    train: TrainSettings = TRAIN


class Prune(PruneSettings):
    """How the student is pruned; a target of 1 leaves it as it is.

    Attributes:
        by: what is to come down: multiply-accumulates, or latency in the first device's runtime.
        recover: how the pruned network is trained after each step.
    """

    target: float = Field(default=0.6, gt=0, le=1)
    steps: int = 1
    by: Literal["macs", "latency"] = "macs"
    recover: TrainSettings = TRAIN.model_copy(update={"epochs": 6, "rate": 3e-3})


class Quantize(Settings):
    """How it is quantized and what is held to.

    Attributes:
        calibration: samples that tell the ranges.
        sensitivity: whether it is measured what each layer costs.
        held: the part of the training pictures that decides whether training the plan gained.
        max_drop: percentage points that an artifact may lose against the float model.
        targets, schemes: empty means all that the devices run, each in its usual scheme.
        bench: whether latency and memory are measured.
        rounds: in how many processes each artifact is; 6 are the fewest that compare it with float.
    """

    calibration: int = 256
    sensitivity: bool = True
    held: float = 0.2
    max_drop: float = 1.0
    targets: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ()
    bench: bool = True
    rounds: int = 10


class Config(Settings):
    """All settings of the recipe.

    Attributes:
        devices: ids of profiles (`edgekit devices`).
        dataset: one of torchvision's, in place of the digits.
        root: where its files are, or are fetched to.
        size: height and width of the model's input, in pixels.
        blocks: ``full`` networks, or ``short`` ones for small pictures.
    """

    name: str = "digits-mobilenet"
    devices: tuple[str, ...] = ("pixel-8", "iphone-15-pro", "raspberry-pi-5", "x86-server")
    dataset: str = ""
    root: Path = Path("data")
    size: int = 32
    blocks: Literal["short", "full"] = "short"
    augment: Augment = Augment(rotate=15, shear=11, scale=0.12, shift=0.07)
    teacher: Network = Network(width=1.0, train=TRAIN.model_copy(update={"epochs": 10}))
    student: Network = Network(width=0.5)
    distill: DistillSettings = DistillSettings(temperature=4.0, alpha=0.7)
    prune: Prune = Prune()
    quantize: Quantize = Quantize()
    qat: QatSettings = QatSettings(train=TrainSettings(epochs=2, rate=1e-4))


# -- data -----------------------------------------------------------------------------------------


def digits(part: str) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: pictures uint8 [n, 8, 8], grey, and classes [n]."""
    from sklearn.datasets import load_digits

    found = load_digits()
    # They are stored as counts of 0..16.
    x, y = np.rint(found.images * (255 / 16)).astype(np.uint8), found.target
    return (x[-TEST:], y[-TEST:]) if part == "test" else (x[:-TEST], y[:-TEST])


def picture_set(
    cfg: Config, data: Path | None, preprocess: ImagePreprocess, part: Any, how: Augment | None
) -> PictureSet:
    """The pictures of one part, ``train`` or ``test``, from wherever they come."""
    if data is not None:
        return pictures(data, preprocess, part=part, how=how)
    if cfg.dataset:
        return from_torchvision(
            cfg.dataset, cfg.root, preprocess, part=part, download=True, how=how
        )
    x, y = digits(part)
    classes = tuple("0123456789")
    return pictures(x, preprocess, labels=y, classes=classes, part=part, how=how)


def preprocess_of(cfg: Config, facts: dict[str, Any]) -> ImagePreprocess:
    """How a picture becomes the model's input, in training and on every device."""
    return ImagePreprocess(
        height=cfg.size, width=cfg.size, resize="bilinear",
        mean=tuple(facts["mean"]), std=tuple(facts["std"]),
    )  # fmt: skip


@stage
def facts(cfg: Config, data: Path | None) -> dict[str, Any]:
    """Reads all pictures once: their classes, mean and deviation."""
    plain = ImagePreprocess(height=cfg.size, width=cfg.size, resize="bilinear")
    learn = picture_set(cfg, data, plain, "train", None)
    judge = picture_set(cfg, data, plain, "test", None)
    total, squares, count = torch.zeros(3), torch.zeros(3), 0
    for rows in torch.arange(len(learn)).split(256):
        x = learn.batch(rows, None)["x"]
        total, squares = total + x.sum((0, 2, 3)), squares + x.square().sum((0, 2, 3))
        count += x[:, 0].numel()
    mean = total / count
    std = (squares / count - mean.square()).sqrt()
    return {
        "classes": list(learn.classes),
        "pictures": {"train": len(learn), "test": len(judge)},
        "mean": [round(v, 4) for v in mean.tolist()],
        "std": [round(max(v, 1e-3), 4) for v in std.tolist()],
    }


# -- networks -------------------------------------------------------------------------------------


def network(settings: Network, cfg: Config, classes: int) -> torch.nn.Module:
    """An untrained network for pictures [N, 3, size, size]."""
    models = torchvision().models
    torch.manual_seed(settings.train.seed)
    if settings.kind == "resnet18":
        module: torch.nn.Module = models.resnet18(num_classes=classes)
        if cfg.blocks == "short":
            module.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
            module.maxpool = torch.nn.Identity()
    elif settings.kind == "mobilenet_v2":
        table = [list(row) for row in SHORT] if cfg.blocks == "short" else None
        module = models.MobileNetV2(
            num_classes=classes, width_mult=settings.width, inverted_residual_setting=table
        )
    else:
        build = getattr(models, settings.kind)
        module = build(num_classes=classes, width_mult=settings.width)
        if cfg.blocks == "short":
            module.features[0][0].stride = (1, 1)
    return module


def rebuilt(
    settings: Network, cfg: Config, facts: dict[str, Any], state: dict[str, torch.Tensor]
) -> torch.nn.Module:
    """The network with its weights, as narrow as they are, in eval mode."""
    return fit_state(network(settings, cfg, len(facts["classes"])), state).eval()


def fixed(settings: Network) -> dict[str, torch.Tensor] | None:
    """Weights that are given and not trained."""
    if settings.weights is None:
        return None
    from safetensors.torch import load_file

    return load_file(settings.weights)


def judged(module: torch.nn.Module, judge: PictureSet) -> float:
    """Top-1 in percent."""
    return accuracy(module, judge, torch.arange(len(judge)))


@stage
def teacher(facts: dict[str, Any], cfg: Config, data: Path | None, run: Run) -> Any:
    """Trains the teacher."""
    given = fixed(cfg.teacher)
    if given is not None:
        return given
    module = network(cfg.teacher, cfg, len(facts["classes"]))
    preprocess = preprocess_of(cfg, facts)
    learn = picture_set(cfg, data, preprocess, "train", cfg.augment)
    made = train(module, learn, cfg.teacher.train, folder=run.folder, watch=run)
    top1 = judged(module, picture_set(cfg, data, preprocess, "test", None))
    run.metric("test_top1", top1, len(made.curve))
    return made.state


@stage
def student(facts: dict[str, Any], teacher: Any, cfg: Config, data: Path | None, run: Run) -> Any:
    """Trains the student to answer as the teacher does."""
    given = fixed(cfg.student)
    if given is not None:
        return given
    module = network(cfg.student, cfg, len(facts["classes"]))
    preprocess = preprocess_of(cfg, facts)
    made = distill(
        module,
        rebuilt(cfg.teacher, cfg, facts, teacher),
        picture_set(cfg, data, preprocess, "train", cfg.augment),
        cfg.distill,
        train=cfg.student.train,
        folder=run.folder,
        watch=run,
    )
    top1 = judged(module, picture_set(cfg, data, preprocess, "test", None))
    run.metric("test_top1", top1, len(made.curve))
    return made.state


# -- compression ----------------------------------------------------------------------------------


@stage
def pruned(
    facts: dict[str, Any], teacher: Any, student: Any, cfg: Config, data: Path | None,
    device: Device, run: Run,
) -> dict[str, Any]:  # fmt: skip
    """Cuts channels out of the student, which recovers by its teacher."""
    module = rebuilt(cfg.student, cfg, facts, student)
    if cfg.prune.target >= 1:
        return {"state": student, "history": []}
    preprocess = preprocess_of(cfg, facts)
    learn = picture_set(cfg, data, preprocess, "train", cfg.augment)
    judge = picture_set(cfg, data, preprocess, "test", None)
    master = rebuilt(cfg.teacher, cfg, facts, teacher)

    def recover(cut: torch.nn.Module, step: PruneStep) -> None:
        distill(
            cut, master, learn, cfg.distill, train=cfg.prune.recover, folder=step.folder, watch=run
        )

    rows = torch.arange(min(cfg.quantize.calibration, len(learn)))
    examples = {"x": learn.batch(rows, None)["x"]}
    cost: Any = Macs(examples)
    if cfg.prune.by == "latency":
        target = (*cfg.quantize.targets, *(t.target for t in device.targets))[0]
        cost = Latency(device.id, target, "w8a8", examples=examples)
        run.note(f"pruned for {cost.name}")
    found = prune(
        module,
        {"x": examples["x"][:2]},
        cfg.prune,
        cost=cost,
        recover=recover,
        folder=run.folder,
        watch=run,
    )
    run.metric("test_top1", judged(found.module, judge), len(found.history) - 1)
    for step in found.history:
        run.metric("cost", step["cost"], int(step["step"]))
    return {"state": dict(found.state), "history": [dict(step) for step in found.history]}


def model_of(cfg: Config, facts: dict[str, Any], pruned: dict[str, Any]) -> Model:
    """The pruned network with its preprocessing and labels."""
    preprocess = preprocess_of(cfg, facts)
    return Model.from_module(
        rebuilt(cfg.student, cfg, facts, pruned["state"]),
        {"x": torch.zeros(preprocess.shape)},
        name=cfg.name,
        preprocess=preprocess,
        labels=facts["classes"],
    )


def samples(cfg: Config, data: Path | None, model: Model, part: str, count: int = 0) -> Samples:
    """Pictures of one part as an export takes them; the first ``count`` where it is given."""
    assert isinstance(model.preprocess, ImagePreprocess)
    found = picture_set(cfg, data, model.preprocess, part, None).samples
    if not count or count >= len(found):
        return found
    # Spread over all of them: folders are read class by class.
    rows = np.linspace(0, len(found) - 1, count).astype(int)
    return found.take(rows.tolist())


@stage
def plan(
    facts: dict[str, Any], pruned: dict[str, Any], cfg: Config, data: Path | None, run: Run
) -> dict[str, Any]:
    """Makes the one int8 plan, and trains it further where that gains."""
    model = model_of(cfg, facts, pruned)
    request = ExportRequest(
        calib=samples(cfg, data, model, "train", cfg.quantize.calibration),
        out=run.out / "plan",
        listener=run,
    )
    document = quantize_model(model, request, sensitivity=cfg.quantize.sensitivity)
    (run.out / "quantize.json").write_text(json.dumps(document))
    made = {"plan": run.out / "plan", "training": None}
    if cfg.qat.train.epochs:
        assert isinstance(model.preprocess, ImagePreprocess)
        learn = picture_set(cfg, data, model.preprocess, "train", cfg.augment)
        rows, held = held_out(learn, cfg.quantize.held, seed=1)
        tuned = qat(
            model,
            load_quantized(run.out / "plan"),
            Subset(learn, rows),
            cfg.qat,
            held=Subset(learn, held),
            folder=run.folder,
            watch=run,
        )
        made["training"] = tuned.to_json()
        run.note(
            f"training the plan {'gained' if tuned.gained else 'did not gain, and is left out'}: "
            f"{100 * tuned.before:.2f} % before, {100 * tuned.after:.2f} % after"
        )
        if tuned.gained:
            made["plan"] = save_quantized(tuned.quantized, run.out / "trained")
    return made


@stage
def exported(
    facts: dict[str, Any], student: Any, pruned: dict[str, Any], plan: dict[str, Any],
    cfg: Config, data: Path | None, devices: tuple[Device, ...], run: Run,
) -> Path:  # fmt: skip
    """Converts the plan for every runtime, proves, measures and packs."""
    model = model_of(cfg, facts, pruned)
    whole = sum(tensor.numel() for tensor in student.values())
    export(
        model,
        ExportRequest(
            devices=tuple(device.id for device in devices),
            targets=cfg.quantize.targets,
            schemes=cfg.quantize.schemes,
            plans=(plan["plan"],),
            calib=samples(cfg, data, model, "train", cfg.quantize.calibration),
            evaluation=samples(cfg, data, model, "test"),
            max_drop=cfg.quantize.max_drop,
            pruned_from=whole if pruned["history"] else None,
            bench=cfg.quantize.bench,
            bench_rounds=cfg.quantize.rounds,
        ),
        run,
    )
    return run.out


@stage
def answers(
    facts: dict[str, Any], pruned: dict[str, Any], cfg: Config, data: Path | None, run: Run
) -> Path:
    """What the model confuses, and the pictures that it is most wrong about."""
    model = model_of(cfg, facts, pruned)
    return collect(model, samples(cfg, data, model, "test"), run.out, watch=run)


if __name__ == "__main__":
    from edgekit.cli.main import main

    sys.exit(main(["run", __file__, *sys.argv[1:]]))
