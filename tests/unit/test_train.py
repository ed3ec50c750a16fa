"""Training, on small networks: that it learns, its parts by their formulas, and what it refuses."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress._optimize import Average, Schedule, rule_of
from edgekit.compress.train import (
    Batch,
    TrainSettings,
    accuracy,
    cross_entropy,
    held_out,
    train,
)
from edgekit.data.training import ArraySet
from edgekit.errors import BadData, UnsupportedError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(n: int = 256, classes: int = 3, seed: int = 0) -> ArraySet:
    """Points around as many centres as there are classes."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    x = torch.eye(8)[labels] * 4 + torch.randn(n, 8, generator=g)
    return ArraySet({"x": x}, labels.numpy())


def network(classes: int = 3) -> nn.Sequential:
    """A small network, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(8, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(16, classes),
        )


class Heard:
    """A `Watch` that keeps everything."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, dict[str, float]]] = []
        self.metrics: list[tuple[str, float, int]] = []
        self.notes: list[str] = []

    def step(self, done: int, total: int, **figures: float) -> None:
        self.steps.append((done, total, figures))

    def metric(self, name: str, value: float, step: int) -> None:
        self.metrics.append((name, value, step))

    def note(self, message: str) -> None:
        self.notes.append(message)


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal, bit for bit."""
    return set(one) == set(other) and all(torch.equal(one[n], other[n]) for n in one)


# -- learning -------------------------------------------------------------------------------------


def test_learns_digits_by_heart_and_scores_what_it_held_out() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    data = ArraySet({"x": digits.data / 16}, digits.target)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    made = train(module, data, TrainSettings(epochs=8, rate=1e-2, validation=0.2, ema=0.95))
    _, out = held_out(data, 0.2)
    assert made.best is not None and made.best > 96
    assert accuracy(module, data, out) == made.best
    assert same(module.state_dict(), made.state) and not module.training
    train(module, data, TrainSettings(epochs=15, rate=1e-2))
    assert accuracy(module, data) > 99.5


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": "sgd", "rate": 0.1, "schedule": "one-cycle"},
        {"mixup": 0.2, "smoothing": 0.1, "clip": 1.0, "accumulate": 2},
        {"amp": "bf16", "ema": 0.9},
        {"amp": "fp16", "clip": 1.0, "device": "cpu"},
        {"schedule": "constant", "warm_up": 0.2, "keep": "last"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_way_learns_and_is_the_same_twice(changes: dict[str, Any]) -> None:
    settings = TrainSettings(**{"epochs": 8, "batch": 32, "rate": 1e-2} | changes)
    first, second = network(), network()
    made, again = train(first, blobs(), settings), train(second, blobs(), settings)
    assert accuracy(first, blobs()) > 95
    assert same(made.state, again.state) and made.curve == again.curve
    assert not same(made.state, network().state_dict())
    assert all(v.is_contiguous() and v.device.type == "cpu" for v in made.state.values())


def test_the_seed_is_all_the_chance_there_is() -> None:
    settings = TrainSettings(epochs=1, batch=32)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    made = train(network(), blobs(), settings)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(train(network(), blobs(), settings).state, made.state)
    other = train(network(), blobs(), settings.model_copy(update={"seed": 1}))
    assert not same(other.state, made.state)


def test_accumulated_batches_are_one_larger_batch() -> None:
    def plain() -> nn.Sequential:
        layers = list(network())
        return nn.Sequential(layers[0], nn.ReLU(), layers[4])

    whole = train(plain(), blobs(), TrainSettings(epochs=2, batch=64))
    parts = train(plain(), blobs(), TrainSettings(epochs=2, batch=16, accumulate=4))
    for name, value in whole.state.items():
        torch.testing.assert_close(parts.state[name], value, atol=1e-5, rtol=1e-4)
    assert whole.curve[-1]["loss"] == pytest.approx(parts.curve[-1]["loss"], rel=1e-5)


def test_pictures_in_channels_last_learn_as_in_channels_first() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    x = torch.randn(64, 3, 8, 8, generator=g) + labels[:, None, None, None]

    def trained(last: bool) -> nn.Module:
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        )
        seen = []
        hook = module[0].register_forward_pre_hook(
            lambda _, inputs: seen.append(
                inputs[0].is_contiguous(memory_format=torch.channels_last)
            )
        )
        settings = TrainSettings(epochs=4, batch=16, rate=1e-2, channels_last=last)
        train(module, ArraySet({"x": x}, labels.numpy()), settings)
        hook.remove()
        assert all(seen) == last
        return module

    one, other = trained(False).state_dict(), trained(True).state_dict()
    for name, value in one.items():
        assert other[name].is_contiguous()
        torch.testing.assert_close(other[name], value, atol=1e-4, rtol=1e-3)


# -- parts ----------------------------------------------------------------------------------------


def test_cosine_warms_up_and_ends_at_its_lowest() -> None:
    plan = Schedule(TrainSettings(rate=2.0, warm_up=0.1, final=0.25), 100)
    assert [plan.rate(i) for i in range(10)] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert plan.rate(10) == 2.0
    for i in (10, 40, 99):
        part = (i - 10) / 90
        assert plan.rate(i) == pytest.approx(0.5 + 1.5 * (1 + math.cos(math.pi * part)) / 2)
    assert plan.rate(100) == pytest.approx(0.5)


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_one_cycle_is_torchs(rule: str) -> None:
    settings = TrainSettings(rate=0.4, schedule="one-cycle", rule=rule)
    ours, theirs = rule_of(nn.Linear(2, 2), settings), rule_of(nn.Linear(2, 2), settings)
    cycle = torch.optim.lr_scheduler.OneCycleLR(theirs, 0.4, total_steps=50)
    plan = Schedule(settings, 50)
    for step in range(50):
        plan.set(ours, step)
        for one, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert one["lr"] == pytest.approx(other["lr"])
            key = "betas" if rule == "adamw" else "momentum"
            assert one[key] == pytest.approx(other[key])
        theirs.step()
        if step < 49:
            cycle.step()


def test_the_average_follows_its_formula_and_takes_in_buffers() -> None:
    module = nn.BatchNorm1d(2)
    average = Average(module, 0.5)
    expected = {n: v.clone() for n, v in module.state_dict().items()}
    for step in range(12):
        with torch.no_grad():
            module.weight += 1.0
        module.running_mean += step
        module.num_batches_tracked += 1
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name in ("weight", "running_mean"):
            expected[name] = decay * expected[name] + (1 - decay) * module.state_dict()[name]
    for name in ("weight", "running_mean"):
        torch.testing.assert_close(average.state[name], expected[name])
    assert int(average.state["num_batches_tracked"]) == 12


def test_only_matrices_decay() -> None:
    groups = rule_of(network(), TrainSettings(decay=0.3)).param_groups
    found = {p.dim(): group["weight_decay"] for group in groups for p in group["params"]}
    assert found == {2: 0.3, 1: 0.0}


def test_frozen_parts_stay_and_thaw() -> None:
    module = network()
    before = copy.deepcopy(module.state_dict())
    train(module, blobs(), TrainSettings(epochs=2, freeze=("0", "1.*")))
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]) == (name[0] in "01")
    assert all(p.requires_grad for p in module.parameters())


def test_gradients_are_clipped_together() -> None:
    module = nn.Linear(8, 3)

    def watched(limit: float | None) -> float:
        before = copy.deepcopy(module.state_dict())
        settings = TrainSettings(
            epochs=1, batch=256, rate=1.0, rule="sgd", momentum=0.0, decay=0.0, clip=limit,
            schedule="constant",
        )  # fmt: skip
        train(module, blobs(), settings)
        moved = [module.state_dict()[n] - before[n] for n in before]
        module.load_state_dict(before)
        return float(torch.cat([m.flatten() for m in moved]).norm())

    free = watched(None)
    assert free > 0.1
    assert watched(0.05) == pytest.approx(0.05, rel=1e-3)
    assert watched(2 * free) == pytest.approx(free)


def test_smoothing_is_torchs_and_mixup_mixes_both_classes() -> None:
    from edgekit.compress._classes import ClassLoss, mixed

    module, data = network().eval(), blobs()
    batch = data.batch(torch.arange(32), None)
    logits = module(batch["x"])
    expected = nn.functional.cross_entropy(logits, batch["y"], label_smoothing=0.2)
    torch.testing.assert_close(ClassLoss(0.2)(module, batch), expected)
    mix = mixed(batch, 0.4, seed=3)
    part = float(mix["mix"])
    for i, x in enumerate(mix["x"]):
        # (x - part * own) / (1 - part) is another sample, and its class is the second one.
        other = (x - part * batch["x"][i]) / (1 - part)
        found = int((batch["x"] - other).abs().sum(1).argmin())
        torch.testing.assert_close(batch["x"][found], other, atol=1e-3, rtol=1e-3)
        assert mix["y2"][i] == batch["y"][found] and mix["y"][i] == batch["y"][i]
    logits = module(mix["x"])
    first = nn.functional.cross_entropy(logits, batch["y"])
    second = nn.functional.cross_entropy(logits, mix["y2"])
    torch.testing.assert_close(ClassLoss()(module, mix), part * first + (1 - part) * second)


# -- stopping and keeping -------------------------------------------------------------------------


def scripted(values: list[float]) -> Callable[[nn.Module], float]:
    """A score that takes its values from a list."""
    left = iter(values)
    return lambda module: next(left)


def test_the_best_weights_are_kept_and_training_stops_early() -> None:
    states: list[dict[str, torch.Tensor]] = []
    values = iter([1.0, 3.0, 2.0, 3.0, 2.5, 9.0])

    def score(module: nn.Module) -> float:
        assert not module.training and not torch.is_grad_enabled()
        states.append(copy.deepcopy(module.state_dict()))
        return next(values)

    heard, module = Heard(), network()
    settings = TrainSettings(epochs=6, patience=3)
    made = train(module, blobs(), settings, score=score, watch=heard)
    assert len(made.curve) == 5 and made.best == 3.0
    assert same(made.state, states[1]) and same(module.state_dict(), states[1])
    assert "stopped after epoch 5 of 6" in heard.notes[-1]
    assert [p["score"] for p in made.curve] == [1.0, 3.0, 2.0, 3.0, 2.5]


def test_the_last_weights_are_kept_where_that_is_asked_for() -> None:
    made = train(
        network(), blobs(), TrainSettings(epochs=3, keep="last"), score=scripted([3.0, 2.0, 1.0])
    )
    assert made.best == 1.0
    assert same(made.state, train(network(), blobs(), TrainSettings(epochs=3)).state)


def test_averaged_weights_are_scored_beside_the_others() -> None:
    settings = TrainSettings(epochs=2, ema=0.9)
    average = train(network(), blobs(), settings).state  # without a score it is what is kept
    plain = train(network(), blobs(), TrainSettings(epochs=2)).state
    first = train(network(), blobs(), settings, score=scripted([0.0, 0.0, 1.0, 2.0]))
    other = train(network(), blobs(), settings, score=scripted([0.0, 0.0, 2.0, 1.0]))
    assert same(first.state, average) and same(other.state, plain)
    assert first.curve[-1]["score_ema"] == 2.0 and not same(plain, average)


def test_progress_is_told_seldom_and_every_epoch_has_its_figures() -> None:
    heard = Heard()
    made = train(network(), blobs(), TrainSettings(epochs=3, batch=4), watch=heard)
    assert heard.steps[-1][:2] == (192, 192)
    assert set(heard.steps[-1][2]) == {"loss", "rate", "samples_s"}
    assert len(heard.steps) < 100
    assert heard.metrics == [
        (name, point[name], point["epoch"]) for point in made.curve for name in ("loss", "rate")
    ]


def test_each_epoch_is_told_to_the_caller_in_train_mode() -> None:
    seen: list[tuple[int, bool]] = []
    train(
        network(), blobs(), TrainSettings(epochs=3),
        each_epoch=lambda module, epoch: seen.append((epoch, module.training)),
    )  # fmt: skip
    assert seen == [(1, True), (2, True), (3, True)]


def test_no_epochs_leave_the_module_as_it_is() -> None:
    made = train(network(), blobs(), TrainSettings(epochs=0))
    assert same(made.state, network().state_dict()) and made.curve == () and made.best is None


# -- held-out samples -----------------------------------------------------------------------------


def test_held_out_samples_come_from_every_class_and_are_never_learned_from() -> None:
    labels = np.repeat([0, 1, 2], [100, 30, 2])
    data = ArraySet({"x": np.zeros((132, 8), np.float32)}, labels)
    kept, out = held_out(data, 0.1)
    assert sorted([*kept.tolist(), *out.tolist()]) == list(range(132))
    assert np.bincount(labels[out.numpy()]).tolist() == [10, 3, 1]
    seen: set[int] = set()

    def loss(module: nn.Module, batch: Batch) -> torch.Tensor:
        seen.update(batch["row"].tolist())
        return cross_entropy(module, batch)

    train(network(), data, TrainSettings(epochs=8, batch=16, validation=0.1), loss=loss)
    assert seen and not seen & set(out.tolist())


# -- refusals -------------------------------------------------------------------------------------


def test_one_class_is_refused() -> None:
    data = ArraySet({"x": np.zeros((9, 8))}, np.full(9, 2), classes="abc", source="set.npz")
    with pytest.raises(BadData, match=r"set.npz: all 9 samples are of class 2 \(c\)"):
        train(network(), data, TrainSettings(batch=2))


def test_a_class_too_small_to_hold_out_is_refused() -> None:
    data = ArraySet({"x": np.zeros((5, 8))}, [0, 0, 1, 0, 0], classes=("cat", "dog"))
    with pytest.raises(BadData, match=r"1 sample of class 1 \(dog\)"):
        train(network(), data, TrainSettings(batch=2, validation=0.1))


def test_a_class_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(BadData, match=r"classes up to 4; the model answers \(32, 3\)"):
        train(network(), blobs(classes=5), TrainSettings(batch=32))


def test_too_few_samples_for_a_step_are_refused() -> None:
    with pytest.raises(BadData, match="16 samples to learn from; one step takes 128"):
        train(network(), blobs(16), TrainSettings(batch=64, accumulate=2))


def test_nan_says_where_and_leaves_the_weights() -> None:
    def loss(module: nn.Module, batch: Batch) -> torch.Tensor:
        steps.append(1)
        value = cross_entropy(module, batch)
        return value * float("nan") if len(steps) == 7 else value

    steps: list[int] = []
    module = network()
    with pytest.raises(BadData, match=r"became nan in epoch 2, step 3 of 4") as caught:
        train(module, blobs(), TrainSettings(epochs=3), loss=loss)
    assert "rate" in caught.value.hint and "clip" in caught.value.hint
    assert same(module.state_dict(), network().state_dict())
    assert all(p.grad is None for p in module.parameters())


def test_weights_that_became_nan_in_the_last_step_are_not_returned() -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * float("nan")

    def loss(module: nn.Module, batch: Batch) -> torch.Tensor:
        value: torch.Tensor = Broken.apply(cross_entropy(module, batch))
        return value

    with pytest.raises(BadData, match=r"0.weight became NaN or infinite in epoch 1, step 1 of 1"):
        train(network(), blobs(), TrainSettings(epochs=1, batch=256), loss=loss)


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"smoothing": 0.1}, {"loss": True}, "smoothing is of the classifier's own loss"),
        ({"mixup": 0.1}, {"loss": True}, "mixup is of the classifier's own loss"),
        ({"validation": 0.1}, {"score": True}, "a score was given"),
        ({"patience": 2}, {}, "patience waits for a better score"),
        ({"freeze": ("layers.*",)}, {}, "unknown parameter 'layers.*'"),
        ({"freeze": ("*",)}, {}, "no parameter of the module is left"),
    ],
)
def test_what_contradicts_itself_is_refused(
    changes: dict[str, Any], given: dict[str, bool], message: str
) -> None:
    made: dict[str, Any] = {}
    if "loss" in given:
        made["loss"] = lambda module, batch: cross_entropy(module, batch)
    if "score" in given:
        made["score"] = lambda module: 0.0
    module = network()
    with pytest.raises(UsageError) as caught:
        train(module, blobs(), TrainSettings(**changes), **made)
    assert message in caught.value.message
    assert all(p.requires_grad for p in module.parameters())


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UnsupportedError, match="finds no CUDA device"):
        train(network(), blobs(), TrainSettings(device="cuda"))


def test_a_type_that_torch_cannot_train_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise RuntimeError("mkldnn_fp16_gemm is not supported")

    monkeypatch.setattr(nn.Linear, "forward", refuse)
    with pytest.raises(UnsupportedError, match="in fp16 on this cpu: mkldnn_fp16_gemm"):
        train(network(), blobs(), TrainSettings(amp="fp16", device="cpu"))
