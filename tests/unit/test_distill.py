"""Distillation: what the loss is, who stays as they are, which layers can be compared."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgekit.compress._checkpoint import digest_of
from edgekit.compress.distill import DistillSettings, Pair, distill, soft_loss
from edgekit.compress.train import TrainSettings, accuracy, train
from edgekit.errors import BadData, UnsupportedError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 3
FAST = TrainSettings(epochs=2, batch=16, rate=0.01)


class Points:
    """Pictures [n, 1, 6, 6] whose class is where they are brightest; a share is labelled wrongly.

    With ``shake`` they are augmented: a generator moves them by a pixel.
    """

    def __init__(self, count: int = 96, wrong: float = 0.0, shake: bool = False) -> None:
        generator = torch.Generator().manual_seed(7)
        self.truth = torch.arange(count) % CLASSES
        self.x = torch.rand(count, 1, 6, 6, generator=generator)
        for i, label in enumerate(self.truth.tolist()):
            self.x[i, :, 2 * label : 2 * label + 2] += 0.6
        self.labels = self.truth.clone()
        noisy = torch.randperm(count, generator=generator)[: int(wrong * count)]
        self.labels[noisy] = (self.labels[noisy] + 1) % CLASSES
        self.shake = shake

    def __len__(self) -> int:
        return len(self.x)

    def batch(
        self, rows: torch.Tensor, generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        x = self.x[rows]
        if self.shake and generator is not None:
            x = x.roll(int(torch.randint(-1, 2, (), generator=generator)), 3)
        return {"x": x, "y": self.labels[rows], "row": rows}


class Net(nn.Module):
    def __init__(self, width: int = 6, classes: int = CLASSES, stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, stride, 1), nn.BatchNorm2d(width))
        self.body = nn.Conv2d(width, width, 3, 1, 1)
        self.head = nn.Linear(width * (6 // stride) ** 2, classes)
        self.drop = nn.Dropout(0.3)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.body(F.relu(self.stem(picture))))
        logits: torch.Tensor = self.head(self.drop(hidden.flatten(1)))
        return logits


class Heard:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def step(self, done: int, total: int, **figures: float) -> None:
        pass

    def metric(self, name: str, value: float, step: int) -> None:
        pass

    def note(self, message: str) -> None:
        self.notes.append(message)


def made(seed: int = 0, **options: int) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(**options)


@pytest.fixture(scope="module")
def teacher() -> Net:
    net = made(width=12)
    train(net, Points(), TrainSettings(epochs=8, batch=16, rate=0.01))
    assert accuracy(net, Points()) > 95
    return net.eval()


# -- the loss -----------------------------------------------------------------------------------


def test_the_soft_loss_is_hintons() -> None:
    ours, theirs = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1)).unbind()
    wanted = torch.zeros(())
    for mine, its in zip(ours, theirs, strict=True):
        p, q = (its / 3).softmax(0), (mine / 3).softmax(0)
        wanted = wanted + (p * (p / q).log()).sum() * 9 / 5
    torch.testing.assert_close(soft_loss(ours, theirs, 3.0), wanted)
    assert float(soft_loss(theirs, theirs + 2, 3.0)) == pytest.approx(0, abs=1e-6)


def test_the_soft_losss_gradient_hardly_depends_on_the_temperature() -> None:
    theirs = torch.randn(64, 5, generator=torch.Generator().manual_seed(1))
    norms = []
    for temperature in (8.0, 16.0):
        ours = torch.zeros(64, 5, requires_grad=True)
        soft_loss(ours, theirs, temperature).backward()
        assert ours.grad is not None
        norms.append(float(ours.grad.norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


def test_without_the_teachers_part_it_is_plain_training(teacher: Net) -> None:
    # A pair of weight 0 asks the teacher and learns nothing from it.
    pair = Pair("stem", "stem", "transfer", weight=0.0)
    one, other = made(3), made(3)
    distill(one, teacher, Points(), DistillSettings(alpha=0.0), train=FAST, layers=[pair])
    train(other, Points(), FAST)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_a_student_learns_the_teachers_answers_where_labels_are_wrong(teacher: Net) -> None:
    noisy = Points(wrong=0.5)
    told = made(3)
    settings = TrainSettings(epochs=12, batch=16, rate=0.01)
    before = soft_loss(told.eval()(noisy.x), teacher(noisy.x), 1.0)
    distill(told, teacher, noisy, DistillSettings(alpha=1.0), train=settings)
    alone = made(3)
    train(alone, noisy, settings)
    truth = Points()
    assert accuracy(told, truth) > 95 > accuracy(alone, truth) + 5
    assert soft_loss(told(noisy.x), teacher(noisy.x), 1.0) < before / 10


# -- student and teacher --------------------------------------------------------------------------


def test_the_student_comes_out_trained_and_the_teacher_as_it_was(teacher: Net) -> None:
    subject = copy.deepcopy(teacher).train()
    subject.drop.eval()
    modes = [part.training for part in subject.modules()]
    student, before = made(3), digest_of(dict(subject.state_dict()))
    trained = distill(
        student,
        subject,
        Points(shake=True),
        DistillSettings(),
        train=FAST,
        layers=[Pair("body", "body", "hint")],
    )
    assert digest_of(dict(subject.state_dict())) == before
    assert [part.training for part in subject.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in subject.parameters())
    assert set(trained.state) == set(student.state_dict())
    assert not student.training
    for name, value in student.state_dict().items():
        assert torch.equal(value, trained.state[name])
    assert len(trained.curve) == 2


def test_the_same_call_gives_the_same_bytes(teacher: Net) -> None:
    pairs = [Pair("body", "body", "hint"), Pair("stem", "stem", "transfer")]
    digests = set()
    for noise in (1, 2):
        torch.manual_seed(noise)
        student = made(3)
        distill(student, teacher, Points(shake=True), DistillSettings(), train=FAST, layers=pairs)
        digests.add(digest_of(dict(student.state_dict())))
    assert len(digests) == 1


def test_a_score_sees_the_student_and_frozen_names_are_the_students(teacher: Net) -> None:
    student = made(3)
    stem = copy.deepcopy(student.stem[0].state_dict())
    seen: list[Any] = []

    def score(module: nn.Module) -> float:
        seen.append(type(module))
        return accuracy(module, Points())

    trained = distill(
        student,
        teacher,
        Points(),
        DistillSettings(),
        train=FAST.model_copy(update={"freeze": ("stem",)}),
        score=score,
    )
    assert set(seen) == {Net} and trained.best == max(p["score"] for p in trained.curve)
    assert all(torch.equal(v, student.stem[0].state_dict()[n]) for n, v in stem.items())
    assert all(p.requires_grad for p in student.parameters())


def test_held_out_samples_smoothing_mixup_and_averages_go_with_it(teacher: Net) -> None:
    settings = TrainSettings(
        epochs=2, batch=16, validation=0.2, smoothing=0.1, mixup=0.4, ema=0.9, accumulate=2
    )
    trained = distill(made(3), teacher, Points(), DistillSettings(), train=settings)
    assert trained.best is not None and "score_ema" in trained.curve[0]


def test_a_checkpoint_of_another_lesson_is_not_gone_on_from(teacher: Net, tmp_path: Path) -> None:
    for alpha in (0.2, 0.9):
        watch, student, alone = Heard(), made(3), made(3)
        settings = DistillSettings(alpha=alpha)
        distill(student, teacher, Points(), settings, train=FAST, folder=tmp_path, watch=watch)
        distill(alone, teacher, Points(), settings, train=FAST)
        assert digest_of(dict(student.state_dict())) == digest_of(dict(alone.state_dict()))
    assert any("belongs to other loss" in note for note in watch.notes)


# -- refusals -------------------------------------------------------------------------------------


def test_what_does_not_go_together_is_refused(teacher: Net) -> None:
    def refused(student: nn.Module, master: nn.Module = teacher, **options: Any) -> str:
        settings = options.pop("settings", DistillSettings())
        data = options.pop("data", Points())
        with pytest.raises((BadData, UsageError, UnsupportedError)) as caught:
            distill(student, master, data, settings, train=FAST, **options)
        return str(caught.value)

    assert "the student tells 4 classes apart, the teacher 3" in refused(made(classes=4))
    assert "alpha 0 and compares no layers" in refused(made(), settings=DistillSettings(alpha=0.0))
    sharing = made(width=12)
    sharing.head.weight = teacher.head.weight
    assert "the student's head.weight is the teacher's head.weight" in refused(sharing)
    assert "is the teacher's" in refused(teacher)
    assert "logits of a classifier" in refused(made(), nn.Flatten(1, 2))
    broken = copy.deepcopy(teacher)
    with torch.no_grad():
        broken.head.bias[1] = float("nan")
    assert "sample 0 are not finite" in refused(made(), broken)
    data = Points()
    data.labels[90] = 3
    assert "label 3 is no class" in refused(made(), data=data)
    mixing = DistillSettings(cache="disk")
    with pytest.raises(UsageError, match="mixup"):
        mixed = FAST.model_copy(update={"mixup": 0.2})
        distill(made(), teacher, Points(), mixing, train=mixed)


class Counting(Net):
    """A network that changes whenever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("asked", torch.zeros(()))

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        self.asked += 1
        return super().forward(picture)


def test_a_teacher_that_changes_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="the teacher changed"):
        distill(made(), Counting(), Points(), DistillSettings(), train=FAST)


def test_a_poor_teacher_is_noted(teacher: Net) -> None:
    constant, mistaken = copy.deepcopy(teacher), copy.deepcopy(teacher)
    with torch.no_grad():
        constant.head.bias[1] += 1000
        mistaken.head.weight.copy_(teacher.head.weight.roll(1, 0))
        mistaken.head.bias.copy_(teacher.head.bias.roll(1, 0))
    for poor, told in ((constant, "answers class 1 to each of the 96"), (mistaken, "commonest")):
        for cache in ("disk", "off"):
            watch = Heard()
            settings = DistillSettings(cache=cache)
            distill(made(), poor, Points(), settings, train=FAST, watch=watch)
            assert any(told in note for note in watch.notes), watch.notes
    watch = Heard()
    distill(made(), teacher, Points(), DistillSettings(), train=FAST, watch=watch)
    assert not watch.notes


# -- layers ---------------------------------------------------------------------------------------


def test_layers_that_cannot_be_compared_say_what_can(teacher: Net) -> None:
    def refused(*pairs: Pair) -> str:
        with pytest.raises(UsageError) as caught:
            distill(made(), teacher, Points(), DistillSettings(), train=FAST, layers=pairs)
        return str(caught.value)

    told = refused(Pair("boddy", "body"))
    assert "unknown layer of the student 'boddy'" in told and "'body'" in told and "stem.0" in told
    assert "unknown layer of the teacher 'tail'" in refused(Pair("body", "tail"))
    told = refused(Pair("body", "head", "hint"))
    assert "cannot compare the student's body [6, 6, 6] with the teacher's head [3]" in told
    assert "stem [12, 6, 6]" in told and "body [12, 6, 6]" in told and "head" not in told[-90:]
    told = refused(Pair("body", "body", "attention"))
    assert "the student's layer 'body' is no self-attention" in told
    told = refused(Pair("head", "body", "cosine"))
    assert "match='hidden' learns a projection" in told and "head [3]" in told


@pytest.mark.parametrize("match", ["hint", "transfer"])
def test_feature_maps_come_nearer_though_they_differ_in_channels_and_size(
    teacher: Net, match: Any
) -> None:
    data = Points()
    student = made(3, stride=2)
    pair = Pair("body", "body", match, weight=20.0)
    trained = distill(
        student,
        teacher,
        data,
        DistillSettings(alpha=0.0),
        train=TrainSettings(epochs=12, batch=16, rate=0.01),
        layers=[pair],
    )
    first, last = trained.curve[0]["loss"], trained.curve[-1]["loss"]
    assert last < first / 2
    assert not any("beside" in name for name in trained.state)


@pytest.mark.slow
def test_two_processes_learn_what_one_does_with_both_batches(teacher: Net, tmp_path: Path) -> None:
    # Kept answers and a projection go to the other process too.
    losses = []
    for processes, batch in ((1, 16), (2, 8)):
        student = made(3)
        student.drop.p = 0.0
        student.stem[1].eval()
        settings = TrainSettings(
            epochs=2, batch=batch, processes=processes, rule="sgd", freeze=("stem.1",)
        )
        trained = distill(
            student,
            teacher,
            Points(),
            DistillSettings(),
            train=settings,
            layers=[Pair("body", "body", "hint")],
            cache=tmp_path,
        )
        losses.append([point["loss"] for point in trained.curve])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
