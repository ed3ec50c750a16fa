"""Quantization-aware training: a plan in, a plan with trained weights and scales out.

    start = post_training(canonical(model.program()), feeds)
    tuned = qat(model, start, pictures, QatSettings(), held=validation)
    tuned.quantized  # the better of the two

It falls in behind post-training and is used only where it gains. What is trained is the plan's own
graph, with every rounding of the plan in it (`edgekit.compress._aware`): no rule of placement is
made twice, and what comes out renders as any other plan does. Batch norm is folded into the layers
of that graph, so its statistics are frozen from the start, which Krishnamoorthi, "Quantizing deep
convolutional networks for efficient inference" (2018, arXiv:1806.08342), does only towards the end
of a training from scratch; this one starts from a trained network.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from edgekit.compress._aware import Aware
from edgekit.compress._many import Many
from edgekit.compress.evaluate import evaluate
from edgekit.compress.folder import check_origin
from edgekit.compress.graph import canonical, graph_module
from edgekit.compress.ptq import Quantized
from edgekit.compress.render import render
from edgekit.compress.train import Batch, Loss, TrainSet, TrainSettings, inputs_of, train
from edgekit.errors import BadData, UnsupportedError
from edgekit.metrics import top1_correct
from edgekit.model import Model
from edgekit.paired import PairedDifference, paired_difference
from edgekit.protocols import Watch
from edgekit.settings import Settings

__all__ = ["QatSettings", "Tuned", "qat"]

Part = Annotated[float, Field(ge=0, le=1)]
Floats = npt.NDArray[Any]

_AT_ONCE: Final = 256


class QatSettings(Settings):
    """How a plan is trained.

    Attributes:
        train: the loop; ``rate`` is a tenth to a hundredth of what the network was trained with.
        learn_scales: scales are learned by their gradient (LSQ). Else activations' ranges are
            moving averages of the batches' smallest and largest values, and weights' scales those
            of their largest values, as in Jacob et al.
        momentum: the part of a batch in these averages.
        freeze_ranges_after: the part of the epochs after which scales and zero points stay as they
            are and weights alone go on: 0 keeps post-training's, 1 never stops.
        soft: the part of the distillation loss, against the float model's logits; the rest is the
            labels' (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015,
            arXiv:1503.02531; for quantized students: Mishra and Marr, "Apprentice", 2017,
            arXiv:1711.05852).
        temperature: of both distributions in it.
        tables: whether embeddings' tables are trained too; they are large, and int8 with a scale
            for each row loses little.
        prove_gain: the trained plan is used only where the held-out samples prove that it is
            better (95 %); else where it has the higher mean.
    """

    train: TrainSettings = TrainSettings(epochs=4, rate=2e-4)
    learn_scales: bool = True
    momentum: Annotated[float, Field(gt=0, le=1)] = 0.01
    freeze_ranges_after: Part = 0.75
    soft: Part = 0.5
    temperature: Annotated[float, Field(gt=0)] = 2.0
    tables: bool = False
    prove_gain: bool = True


DEFAULTS: Final = QatSettings()


@dataclass(frozen=True)
class Tuned:
    """What quantization-aware training did.

    Attributes:
        quantized: the plan to use: the trained one where ``gained``, else post-training's.
        gained: whether the trained plan is used.
        trained: the trained plan, better or not.
        metric: what both were judged by: ``top1`` in parts of 1, or ``cosine`` to the float model.
        before: the mean of post-training's plan over the held-out samples.
        after: that of the trained plan.
        difference: of the two, paired, with its interval.
        curve: of the training, as `edgekit.compress.train.Trained` has it.
    """

    quantized: Quantized
    gained: bool
    trained: Quantized
    metric: str
    before: float
    after: float
    difference: PairedDifference
    curve: tuple[Mapping[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        """What it came to, without plans."""
        return {
            "gained": self.gained,
            "metric": self.metric,
            "before": self.before,
            "after": self.after,
            "difference": dataclasses.asdict(self.difference),
            "curve": [dict(point) for point in self.curve],
        }


def qat(
    model: Model,
    start: Quantized,
    data: TrainSet,
    settings: QatSettings = DEFAULTS,
    *,
    held: TrainSet,
    teacher: nn.Module | None = None,
    loss: Loss | None = None,
    folder: Path | None = None,
    watch: Watch | None = None,
) -> Tuned:
    """Trains weights and scales of a plan, and says whether that gained anything.

    The kept weights are the last, unless ``settings.train`` says otherwise, and ``held`` is looked
    at once, afterwards: so the comparison is fair. The weights start on post-training's grid; after
    no step the plan is post-training's.

    Args:
        model: what was quantized; the teacher, where none is given. Inputs are taken from batches
            by the names in its signature, ``[n, ...]``.
        start: its program and plan, of any scheme of integers.
        data: what is learned from. Its ``y`` is needed where labels have a part in the loss.
        settings: how.
        held: samples that decide which plan is used, neither learned from nor the test set.
        teacher: takes the model's inputs by position and gives its outputs.
        loss: made small in place of the settings' own, of a module that gives the model's outputs
            for its inputs. Without it and for a model whose first output is not ``[1, classes]``,
            it is the relative squared error against the teacher, and ``soft`` has no part in it.
        folder: for checkpoints; see `edgekit.compress.train.train`.
        watch: hears of the training.

    Raises:
        UsageError: the plan was not made of this model, or settings contradict each other.
        UnsupportedError: the plan holds no integers to train.
        BadData: batches lack an input or labels; no held-out samples; or what training refuses.
    """
    own, inputs = _checked(model, start, data, held)
    guide = _Teacher(teacher or Many(graph_module(own), inputs), inputs)
    aware = Aware(
        start,
        inputs,
        learned=settings.learn_scales,
        tables=settings.tables,
        share=settings.momentum,
    )
    last = round(settings.freeze_ranges_after * settings.train.epochs)
    made = train(
        aware,
        data,
        settings.train,
        loss=loss or _Loss(model, guide, settings),
        folder=folder,
        watch=watch,
        each_epoch=lambda module, epoch: aware.freeze_ranges(epoch > last),
    )
    return _judged(model, own, start, aware.finish(), held, settings, len(data), made.curve)


def _checked(
    model: Model, start: Quantized, data: TrainSet, held: TrainSet
) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The model's canonical program and its inputs' names, if `qat` can do anything with all."""
    if not any(e.kind == "weight" and e.dtype != "float16" for e in start.plan.edges):
        raise UnsupportedError(
            f"a plan of {start.plan.scheme} holds no integers to train",
            hint="quantize to w8a8, w8a16, w8a8-dyn, w8 or w4",
        )
    own = canonical(model.program())
    check_origin(start, own, model.name)
    inputs = [spec.name for spec in model.signature.inputs]
    _check_batch(data, inputs, "the training data")
    if len(held) < 2:
        raise BadData(f"two held-out samples or more decide; there are {len(held)}")
    _check_batch(held, inputs, "the held-out samples")
    return own, inputs


def _judged(
    model: Model,
    own: torch.export.ExportedProgram,
    start: Quantized,
    trained: Quantized,
    held: TrainSet,
    settings: QatSettings,
    samples: int,
    curve: tuple[Mapping[str, float], ...],
) -> Tuned:
    """Both plans on the held-out samples, each by its own evaluation."""
    feeds, labels = _gathered(model, held)
    inputs, outputs = (
        [s.name for s in specs] for specs in (model.signature.inputs, model.signature.outputs)
    )

    def answers(quantized: Quantized) -> Floats:
        module = render(quantized.program, quantized.plan, "fake")
        made = evaluate(module, feeds, inputs, outputs)[outputs[0]]
        return made.reshape(len(made), -1)

    rows = [answers(start), answers(trained)]
    if labels is not None and _classifies(model):
        metric = "top1"
        scores: list[Floats] = [top1_correct(made, labels) for made in rows]
    else:
        metric = "cosine"
        exact = evaluate(graph_module(own), feeds, inputs, outputs)[outputs[0]]
        scores = [_cosines(made, exact.reshape(len(exact), -1)) for made in rows]
    before, after = scores
    found = paired_difference(before, after)
    gained = found.verdict == "better" if settings.prove_gain else found.difference > 0
    means = float(before.mean()), float(after.mean())
    about = {
        "method": "qat",
        "settings": _flat(settings.model_dump(mode="json")),
        "samples": samples,
        "held": found.n,
        "metric": metric,
        "before": means[0],
        "after": means[1],
        "gain_ci95": [found.low, found.high],
    }
    trained = dataclasses.replace(trained, plan=dataclasses.replace(trained.plan, training=about))
    return Tuned(
        quantized=trained if gained else start,
        gained=gained,
        trained=trained,
        metric=metric,
        before=means[0],
        after=means[1],
        difference=found,
        curve=curve,
    )


def _flat(settings: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Settings by dotted path; dumped, so that a recipe knows that all of them were read."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, Mapping)
        found |= _flat(value, f"{place}{name}.") if inner else {f"{place}{name}": value}
    return found


class _Teacher:
    """A float model that answers batches, without gradients."""

    def __init__(self, module: nn.Module, inputs: list[str]) -> None:
        self._module, self._inputs = module, inputs

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        columns = [batch[name] for name in self._inputs]
        self._module.to(columns[0].device).eval()
        with torch.no_grad():
            return _tuple(self._module(*columns))

    def digest(self) -> str:
        sha = hashlib.sha256()
        for name, value in self._module.state_dict().items():
            if isinstance(value, torch.Tensor):
                data = value.detach().cpu().contiguous().reshape(-1)
                sha.update(name.encode() + data.view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()


class _Loss:
    """The settings' own loss."""

    def __init__(self, model: Model, teacher: _Teacher, settings: QatSettings) -> None:
        self._teacher, self._classifies = teacher, _classifies(model)
        self._soft, self._temperature = settings.soft, settings.temperature
        about = [self._soft, self._temperature, teacher.digest()]
        self.digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def __call__(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        answers = _tuple(module(**inputs_of(batch)))
        if not self._classifies:
            return _relative_error(answers, self._teacher(batch))
        logits, loss = answers[0].float(), torch.zeros((), device=answers[0].device)
        if self._soft < 1:
            if "y" not in batch:
                raise BadData(
                    "the training data have no labels, which a part of the loss is of",
                    hint="set soft=1: the float model's answers alone",
                )
            loss = loss + (1 - self._soft) * functional.cross_entropy(logits, batch["y"])
        if self._soft:
            t = self._temperature
            expected = functional.log_softmax(self._teacher(batch)[0].float() / t, 1)
            found = functional.log_softmax(logits / t, 1)
            apart = functional.kl_div(found, expected, reduction="batchmean", log_target=True)
            loss = loss + self._soft * t * t * apart
        return loss


def _relative_error(
    answers: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """The mean over all float outputs of squared error over the power of what was expected."""
    parts = [
        (a.float() - e.float()).square().sum() / e.float().square().sum().clamp_min(1e-12)
        for a, e in zip(answers, expected, strict=True)
        if a.is_floating_point()
    ]
    return torch.stack(parts).mean()


def _cosines(answers: Floats, expected: Floats) -> Floats:
    """[n], of rows."""
    a, b = answers.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    made: Floats = (a * b).sum(1) / np.maximum(lengths, 1e-30)
    return made


def _classifies(model: Model) -> bool:
    """Whether the first output is ``[1, classes]``."""
    first = model.signature.outputs[0]
    return len(first.shape) == 2 and first.shape[1] > 1 and first.dtype.startswith("float")


def _tuple(answer: Any) -> tuple[torch.Tensor, ...]:
    if isinstance(answer, Mapping):
        return tuple(answer.values())
    return tuple(answer) if isinstance(answer, tuple | list) else (answer,)


def _check_batch(data: TrainSet, inputs: list[str], what: str) -> None:
    """Refuses data whose batches lack an input.

    Raises:
        BadData: they do.
    """
    found = data.batch(torch.arange(min(1, len(data))), None)
    missing = [name for name in inputs if name not in found]
    if missing:
        raise BadData(
            f"{what} have no {', '.join(map(repr, missing))}; batches hold "
            f"{', '.join(map(repr, found)) or 'nothing'}",
            hint=f"name the tensors after the model's inputs: {', '.join(inputs)}",
        )


def _gathered(model: Model, held: TrainSet) -> tuple[dict[str, Floats], Floats | None]:
    """The held-out samples as `evaluate` takes them, and their labels where there are some."""
    parts: list[dict[str, torch.Tensor]] = [
        held.batch(rows, None) for rows in torch.arange(len(held)).split(_AT_ONCE)
    ]
    feeds = {}
    for spec in model.signature.inputs:
        whole = torch.cat([part[spec.name] for part in parts])
        feeds[spec.name] = whole.numpy().astype(spec.dtype)[:, None]
    labels = None
    if all("y" in part for part in parts):
        labels = torch.cat([part["y"] for part in parts]).numpy()
    return feeds, labels
