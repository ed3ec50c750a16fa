"""Distillation: a student learns from a teacher's answers, not from labels alone.

The loop is `edgekit.compress.train`'s with another loss: a mixture of what the labels say and of
what the teacher says (Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network",
2015, arXiv:1503.02531), and for each `Pair` of layers how far apart they are. Logits and a
`Pair` of the last hidden states by ``cosine`` are DistilBERT's triple loss (Sanh et al., 2019,
arXiv:1910.01108) with the task's own loss in the place of language modelling.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from edgekit.artifact import fingerprint
from edgekit.compress import train as training
from edgekit.compress._amp import device_of
from edgekit.compress._answers import Answers, Asked, Teacher, digest_of_network
from edgekit.compress._classes import inputs_of, mixed, seed_of
from edgekit.compress._matching import Matching, ask, captured
from edgekit.compress._pairing import (
    Matched,
    answering,
    check_apart,
    check_classes,
    classifier_logits,
    match_layers,
)
from edgekit.compress._teaching import Lesson, augments, judge, kept_answers, sample_answers
from edgekit.compress.train import Batch, Trained, TrainSet, TrainSettings
from edgekit.errors import BadData, UnsupportedError, UsageError
from edgekit.protocols import Unwatched, Watch
from edgekit.settings import Settings

__all__ = ["DistillSettings", "Match", "Pair", "distill"]

Match = Literal["hidden", "cosine", "attention", "relation", "hint", "transfer"]

PROBE = 8
"""Samples that tell the shapes of layers."""


class DistillSettings(Settings):
    """What a student learns from its teacher.

    Attributes:
        temperature: by which both networks' logits are divided before they are compared; what is
            learned from a comparison is multiplied by its square, so that it weighs the same at
            every temperature.
        alpha: the teacher's part of the loss of logits, 0 to 1; the labels' is what is left.
        cache: ``disk`` asks the teacher once for each sample as it is, without augmentation, and
            reads its answers in all epochs; ``off`` asks it for every batch, augmented as the
            student sees it (the "patient teacher" of Beyer et al., "Knowledge distillation: A good
            teacher is patient and consistent", 2021, arXiv:2106.05237); ``auto`` is ``off``
            where the data are augmented, or where the answers would not fit ``cache_limit``.
        cache_dtype: ``float32``, or ``float16`` at half the size.
        cache_limit: GiB that answers on the disk may take, earlier ones too.
        mask: name of the input, ``[n, tokens]``, that is 0 where a token is padding, which layers
            are not compared at.
    """

    temperature: Annotated[float, Field(gt=0)] = 4.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.9
    cache: Literal["auto", "disk", "off"] = "auto"
    cache_dtype: Literal["float32", "float16"] = "float32"
    cache_limit: Annotated[float, Field(gt=0)] = 4.0
    mask: str = "attention_mask"


@dataclass(frozen=True)
class Pair:
    """A layer of the student and one of the teacher, which are compared.

    Attributes:
        student: the module's name in the student, as `torch.nn.Module.named_modules` has it.
        teacher: the module's name in the teacher.
        match: how, by the name of

            - ``hidden``: TinyBERT's squared error of hidden states ``[n, ..., width]``, through a
              learned projection where widths differ (Jiao et al., 2019, arXiv:1909.10351);
            - ``cosine``: DistilBERT's angle of hidden states (Sanh et al., 2019, arXiv:1910.01108);
            - ``attention``: TinyBERT's squared error of attention scores; the modules are
              self-attentions with as many heads;
            - ``relation``: MiniLM's divergence of attention maps and value relations (Wang et al.,
              2020, arXiv:2002.10957); the modules are self-attentions;
            - ``hint``: FitNets' squared error of feature maps ``[n, channels, height, width]``,
              through a learned 1 x 1 convolution where channels differ (Romero et al., 2014,
              arXiv:1412.6550);
            - ``transfer``: attention transfer between feature maps (Zagoruyko and Komodakis, 2016,
              arXiv:1612.03928).
        weight: what the distance counts in the loss.
        heads: relation heads of ``relation``; None means as many as the student's attention has.
    """

    student: str
    teacher: str
    match: Match = "hidden"
    weight: float = 1.0
    heads: int | None = None


class _Learner(nn.Module):
    """The student with what is learned beside it; in training it also gives its compared layers."""

    def __init__(self, student: nn.Module, matched: Sequence[Matched]) -> None:
        super().__init__()
        self.student = student
        self.beside = nn.ModuleList(matching for matching, _, _ in matched)
        self._sites = [sites for _, sites, _ in matched]

    def forward(self, *values: torch.Tensor, **inputs: torch.Tensor) -> Any:
        """The logits; in train mode these and a list of tensors for each compared layer."""
        names = [site for sites in self._sites for site in sites]
        with captured(self.student, names) as found:
            logits = classifier_logits(self.student(*values, **inputs), "student")
        if not self.training:
            return logits
        compared: list[list[torch.Tensor]] = []
        for matching, sites in zip(self.beside, self._sites, strict=True):
            assert isinstance(matching, Matching)
            compared.append(matching.adapted([found[site] for site in sites]))
        return logits, compared


class _Loss:
    """What is made small; it can be pickled where the teacher can.

    Attributes:
        digest: another one for another loss, by which a checkpoint knows its own.
    """

    def __init__(
        self,
        settings: DistillSettings,
        train: TrainSettings,
        pairs: Sequence[tuple[Pair, Matching]],
        answers: Answers,
        digest: str,
    ) -> None:
        self._temperature, self._alpha = settings.temperature, settings.alpha
        self._mask = settings.mask
        self._smoothing, self._mixup, self._seed = train.smoothing, train.mixup, train.seed
        self._pairs = list(pairs)
        self._answers = answers
        self.digest = digest

    def __call__(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        if self._mixup:
            seed = seed_of(self._seed, "mixup", batch["row"].tolist())
            batch = mixed(dict(batch), self._mixup, seed)
        inputs = inputs_of(batch)
        theirs = [answer.float() for answer in self._answers(inputs, batch["row"])]
        logits, compared = ask(module, inputs)
        with torch.autocast(logits.device.type, enabled=False):
            total = self._of_logits(logits.float(), theirs[0], batch)
            at = 1
            for (pair, matching), ours in zip(self._pairs, compared, strict=True):
                its = theirs[at : at + len(matching.keeps)]
                at += len(matching.keeps)
                mine = [given.float() for given in ours]
                total = total + pair.weight * matching.distance(mine, its, inputs.get(self._mask))
        return total

    def _of_logits(self, ours: torch.Tensor, theirs: torch.Tensor, batch: Batch) -> torch.Tensor:
        total = ours.new_zeros(())
        if self._alpha > 0:
            total = total + self._alpha * soft_loss(ours, theirs, self._temperature)
        if self._alpha < 1:
            hard = self._hard(ours, batch["y"])
            if "y2" in batch:
                hard = batch["mix"] * hard + (1 - batch["mix"]) * self._hard(ours, batch["y2"])
            total = total + (1 - self._alpha) * hard
        return total

    def _hard(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self._smoothing)


class _Scored:
    """The score of the student within a learner."""

    def __init__(self, score: Callable[[nn.Module], float]) -> None:
        self._score = score

    def __call__(self, learner: nn.Module) -> float:
        return self._score(learner.get_submodule("student"))


def soft_loss(ours: torch.Tensor, theirs: torch.Tensor, temperature: float) -> torch.Tensor:
    """Divergence of the student's from the teacher's softened classes, times T squared.

    Hinton, Vinyals and Dean, 2015, arXiv:1503.02531, section 2.

    Args:
        ours, theirs: logits, float32 ``[n, classes]``.
        temperature: T.
    """
    logs = F.log_softmax(ours / temperature, dim=1)
    wanted = F.log_softmax(theirs / temperature, dim=1)
    return F.kl_div(logs, wanted, reduction="batchmean", log_target=True) * temperature**2


def distill(
    student: nn.Module,
    teacher: nn.Module,
    data: TrainSet,
    settings: DistillSettings,
    *,
    train: TrainSettings,
    layers: Sequence[Pair] = (),
    score: Callable[[nn.Module], float] | None = None,
    folder: Path | None = None,
    watch: Watch | None = None,
    cache: Path | None = None,
) -> Trained:
    """Trains ``student`` in place to answer as ``teacher`` does; the teacher stays as it is.

    Args:
        student: a classifier that takes the batch's inputs by name; it ends in eval mode.
        teacher: another one of the same classes.
        data: what is learned from. A set that augments says so by ``augmented = True``; where it
            has no such attribute, some samples are asked for with and without a generator.
        settings: what is learned from the teacher.
        train: how the student is trained; `freeze` names the student's parameters.
        layers: which of their layers are compared beside the logits.
        score: of the student in eval mode, more is better; it chooses the weights that are kept.
        folder: where a checkpoint is kept, and gone on from where one is there; None keeps none.
        watch: hears of the steps.
        cache: where the teacher's answers are kept for this call and later ones; ``answers`` in
            ``folder`` unless given, and without either a place that is removed in the end.

    Returns:
        The student's weights, and the curve of the whole loss.

    Raises:
        BadData: an answer of the teacher is not finite, or a label is no class of it.
        StorageError: no space for the answers, or more than ``cache_limit``.
        UnsupportedError: an output is no ``[n, classes]``, or the teacher changes when it is asked.
        UsageError: the two have other classes, share weights, a layer is not there or two cannot be
            compared, or nothing is learned from the teacher.
    """
    watch = watch or Unwatched()
    if settings.alpha == 0 and not layers:
        raise UsageError(
            "distill has alpha 0 and compares no layers, so nothing is learned from the teacher",
            hint="raise alpha, give layers=, or call train",
        )
    if not len(data):
        raise BadData("there are no samples to learn from")
    check_apart(student, teacher)
    with answering(teacher), contextlib.ExitStack() as stack:
        probe = data.batch(torch.arange(min(PROBE, len(data))), None)
        with answering(student):
            check_classes(student, teacher, probe)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(train.seed)
                matched = match_layers(student, teacher, layers, inputs_of(probe))
        digest = digest_of_network(teacher)
        place = cache or (folder / "answers" if folder else None)
        asked = Teacher(teacher, [(matching, theirs) for matching, _, theirs in matched])
        lesson = Lesson(asked, digest, data, layers, matched, settings.mask)
        answers = stack.enter_context(_answers(lesson, settings, train, place, watch))
        pairs = [(pair, matching) for pair, (matching, _, _) in zip(layers, matched, strict=True)]
        about = fingerprint(
            teacher=digest,
            layers=[asdict(pair) for pair in layers],
            settings=[settings.temperature, settings.alpha, settings.mask],
            train=[train.smoothing, train.mixup],
            answers=[type(answers).__name__, settings.cache_dtype],
        )
        trained = training.train(
            _Learner(student, matched),
            data,
            _of_learner(train),
            loss=_Loss(settings, train, pairs, answers, about),
            score=None if score is None else _Scored(score),
            folder=folder,
            watch=watch,
        )
        if digest_of_network(teacher) != digest:
            raise UnsupportedError(
                "the teacher changed while it was asked, though it was in eval mode and nothing "
                "was learned by it",
                hint="some module of it writes to its buffers; ask a copy: copy.deepcopy",
            )
    own = {n: v for n, v in trained.state.items() if n.startswith("student.")}
    state = {name.removeprefix("student."): value for name, value in own.items()}
    return replace(trained, state=state)


def _of_learner(train: TrainSettings) -> TrainSettings:
    """The settings for the module that holds the student; smoothing and mixup are in the loss."""
    freeze = tuple(f"student.{pattern}" for pattern in train.freeze)
    return train.model_copy(update={"freeze": freeze, "smoothing": 0.0, "mixup": 0.0})


@contextlib.contextmanager
def _answers(
    lesson: Lesson,
    settings: DistillSettings,
    train: TrainSettings,
    place: Path | None,
    watch: Watch,
) -> Iterator[Answers]:
    """The teacher's answers as the settings have them: kept, or asked for each time."""
    device = device_of(train)
    varied = train.mixup > 0 or augments(lesson.data)
    if settings.cache == "disk" and train.mixup > 0:
        raise UsageError(
            "cache='disk' keeps answers to samples as they are, and mixup mixes them",
            hint="set cache='off' or mixup=0",
        )
    if settings.cache == "disk" and varied:
        watch.note("the data are augmented; the teacher's answers are to samples as they are")
    if settings.cache == "disk" or (settings.cache == "auto" and not varied):
        kept = kept_answers(
            lesson,
            dtype=settings.cache_dtype,
            limit=settings.cache_limit,
            spill=settings.cache == "auto",
            device=device,
            root=place,
            watch=watch,
        )
        with kept as answers:
            if answers is not None:
                yield answers
                return
    logits, labels = sample_answers(lesson.teacher, lesson.data, device)
    judge(logits, labels, watch)
    yield Asked(lesson.teacher)
