"""A training that is killed, at any moment, ends with the bits of one that was not."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgekit.compress.train import Trained, TrainSettings, train
from edgekit.data.training import ArraySet
from edgekit.errors import BadData, StorageError

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = TrainSettings(
    epochs=4, batch=32, rate=1e-2, ema=0.9, validation=0.2, clip=1.0, checkpoint_s=0.0
)
STEPS = 4 * (206 // 32)


class Stop(Exception):
    """Raised where a training is to end."""


class Notes:
    """A `Watch` that keeps notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.curves: dict[str, list[tuple[int, float]]] = {}

    def step(self, done: int, total: int, **figures: float) -> None:
        pass

    def metric(self, name: str, value: float, step: int) -> None:
        self.curves.setdefault(name, []).append((step, value))

    def note(self, message: str) -> None:
        self.notes.append(message)


def jittered(inputs: dict[str, torch.Tensor], g: torch.Generator) -> dict[str, torch.Tensor]:
    """Augmentation of vectors."""
    return {n: v + 0.1 * torch.randn(v.shape, generator=g) for n, v in inputs.items()}


def data(seed: int = 0) -> ArraySet:
    """Points around three centres, augmented."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(258) % 3
    x = torch.eye(8)[labels] * 2 + torch.randn(258, 8, generator=g)
    return ArraySet({"x": x}, labels.numpy(), how=jittered)


def network(seed: int = 0) -> nn.Sequential:
    """With buffers and dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
        )


def same(one: Trained, other: Trained) -> bool:
    """Whether two trainings gave the same bits."""
    return (
        one.curve == other.curve
        and one.best == other.best
        and all(torch.equal(one.state[n], other.state[n]) for n in one.state)
    )


def stopped(folder: Path, at: int, settings: TrainSettings = SETTINGS) -> None:
    """Trains until a step of that number begins."""
    begun = []

    def loss(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        begun.append(1)
        if len(begun) == at:
            raise Stop
        return nn.functional.cross_entropy(module(batch["x"]), batch["y"])

    loss.__qualname__ = "loss"
    with pytest.raises(Stop):
        train(network(), data(), settings, loss=loss, folder=folder)


def plain_loss(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss of `stopped`."""
    return nn.functional.cross_entropy(module(batch["x"]), batch["y"])


plain_loss.__qualname__ = "loss"


@pytest.mark.parametrize(
    ("changes", "moments"),
    [
        ({}, (2, 6, 7, 8, STEPS)),
        ({"rule": "sgd", "schedule": "one-cycle"}, (7, 8)),
        ({"amp": "fp16", "device": "cpu", "ema": 0.0}, (8,)),
    ],
    ids=["adamw", "sgd", "fp16"],
)
def test_goes_on_from_any_step(
    tmp_path: Path, changes: dict[str, Any], moments: tuple[int, ...]
) -> None:
    settings = SETTINGS.model_copy(update=changes)
    whole = train(network(), data(), settings, loss=plain_loss)
    for at in moments:
        folder = tmp_path / str(at)
        stopped(folder, at, settings)
        heard = Notes()
        again = train(network(), data(), settings, loss=plain_loss, folder=folder, watch=heard)
        assert heard.notes == [f"goes on from step {at - 1}"]
        assert same(again, whole), at
        # What was heard before it was stopped is told again.
        assert heard.curves["loss"] == [(int(p["epoch"]), p["loss"]) for p in whole.curve]


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    whole = train(network(), data(), SETTINGS, loss=plain_loss, folder=tmp_path)

    def never(module: nn.Module, batch: object) -> torch.Tensor:
        raise AssertionError

    never.__qualname__ = "loss"
    module = network()
    again = train(module, data(), SETTINGS, loss=never, folder=tmp_path)
    assert same(again, whole)
    assert all(torch.equal(v, whole.state[n]) for n, v in module.state_dict().items())


def test_a_training_that_stopped_early_stays_stopped(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"validation": 0.0, "patience": 1, "ema": 0.0})
    falls = iter([2.0, 1.0, 5.0, 6.0])
    first = train(network(), data(), settings, score=lambda m: next(falls), folder=tmp_path)
    again = train(network(), data(), settings, score=lambda m: next(falls), folder=tmp_path)
    assert same(first, again) and len(again.curve) == 2


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("settings", "settings (rate 0.01, now 0.02)"),
        ("data", "data"),
        ("weights", "initial weights"),
        ("architecture", "initial weights"),
        ("loss", "loss"),
    ],
)
def test_another_trainings_checkpoint_is_not_used(tmp_path: Path, changed: str, named: str) -> None:
    stopped(tmp_path, 9)
    settings = SETTINGS.model_copy(update={"rate": 0.02}) if changed == "settings" else SETTINGS
    module = network(1 if changed == "weights" else 0)
    if changed == "architecture":
        module.append(nn.Identity())
        module.insert(0, nn.Linear(8, 8))
    learn = data(1 if changed == "data" else 0)
    heard = Notes()
    more = {} if changed == "loss" else {"loss": plain_loss}
    alone = train(copy.deepcopy(module), learn, settings, **more)  # type: ignore[arg-type]
    made = train(module, learn, settings, folder=tmp_path, watch=heard, **more)  # type: ignore[arg-type]
    assert heard.notes[0] == (
        f"the checkpoint in {tmp_path} belongs to other {named}: training begins anew"
    )
    assert same(made, alone)


def test_more_frequent_checkpoints_are_no_other_training(tmp_path: Path) -> None:
    stopped(tmp_path, 9)
    heard = Notes()
    seldom = SETTINGS.model_copy(update={"checkpoint_s": 60.0})
    train(network(), data(), seldom, loss=plain_loss, folder=tmp_path, watch=heard)
    assert heard.notes == ["goes on from step 8"]


def test_a_damaged_checkpoint_is_told_and_not_used(tmp_path: Path) -> None:
    stopped(tmp_path, 9)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    heard = Notes()
    made = train(network(), data(), SETTINGS, loss=plain_loss, folder=tmp_path, watch=heard)
    assert "is no readable checkpoint" in heard.notes[0]
    assert same(made, train(network(), data(), SETTINGS, loss=plain_loss))


def test_nan_never_reaches_the_checkpoint(tmp_path: Path) -> None:
    def loss(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        begun.append(1)
        return plain_loss(module, batch) * (float("nan") if len(begun) == 9 else 1)

    begun: list[int] = []
    with pytest.raises(BadData, match="epoch 2, step 3 of 6"):
        train(network(), data(), SETTINGS, loss=loss, folder=tmp_path)
    kept = load_file(tmp_path / "checkpoint.safetensors")
    assert all(bool(torch.isfinite(v).all()) for v in kept.values())
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"]


# -- processes that are killed --------------------------------------------------------------------

CHILD = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path

    sys.path.insert(0, sys.argv[1])
    import torch
    torch.set_num_threads(1)
    from test_train_resume import SETTINGS, data, network
    from edgekit.compress.train import train

    folder, how, at = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    count = 0

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    class Watch:
        def step(self, done, total, **figures): pass
        def metric(self, *a): pass
        def note(self, message): print(message)

    if how == "write":        # after the first half of a checkpoint's bytes
        real = Path.open
        class Half:
            def __init__(self, file): self.file = file
            def write(self, content):
                self.file.write(content[: len(content) // 2]); self.file.flush(); die()
            def __enter__(self): return self
            def __exit__(self, *a): self.file.close()
        def opened(self, mode="r", *a, **k):
            global count
            file = real(self, mode, *a, **k)
            if mode == "wb" and self.parent == folder:
                count += 1
                if count == at: return Half(file)
            return file
        Path.open = opened
    elif how in ("before", "after"):  # the rename
        real = Path.replace
        def replace(self, target):
            global count
            count += 1
            if how == "before" and count == at: die()
            made = real(self, target)
            if how == "after" and count == at: die()
            return made
        Path.replace = replace
    elif how == "step":
        real = torch.optim.AdamW.step
        def step(self, *a, **k):
            global count
            count += 1
            if count == at: die()
            return real(self, *a, **k)
        torch.optim.AdamW.step = step
    made = train(network(), data(), SETTINGS, folder=folder, watch=Watch())
    from safetensors.torch import save_file
    save_file(dict(made.state), sys.argv[5])
    """
)


def child(folder: Path, how: str, at: int, out: Path) -> subprocess.CompletedProcess[str]:
    """A training in a process of its own, which ends as ``how`` and ``at`` say."""
    here = str(Path(__file__).parent)
    return subprocess.run(
        [sys.executable, "-c", CHILD, here, str(folder), how, str(at), str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_the_same(tmp_path: Path) -> None:
    whole = train(network(), data(), SETTINGS).state
    folder, out = tmp_path / "run", tmp_path / "out.safetensors"
    # One training, killed nine times on its way.
    for how, at in [
        ("step", 1), ("step", 3), ("write", 1), ("write", 3), ("before", 2), ("after", 2),
        ("write", 4), ("step", 5), ("after", 3),
    ]:  # fmt: skip
        ended = child(folder, how, at, out)
        assert ended.returncode == -signal.SIGKILL, (how, at, ended.stdout, ended.stderr)
    ended = child(folder, "never", 0, out)
    assert ended.returncode == 0, ended.stderr
    assert "goes on from step" in ended.stdout
    found = load_file(out)
    assert set(found) == set(whole)
    assert all(np.array_equal(found[n].numpy(), whole[n].numpy()) for n in whole)
    assert [p.name for p in folder.iterdir()] == ["checkpoint.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
def test_a_full_disk_is_told_and_the_earlier_checkpoint_stays(tmp_path: Path) -> None:
    import resource

    stopped(tmp_path, 9, SETTINGS)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As a full disk does, this ends a write halfway.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(StorageError) as caught:
            train(network(), data(), SETTINGS, loss=plain_loss, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.message == f"cannot write under {tmp_path}: File too large"
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    whole = train(network(), data(), SETTINGS, loss=plain_loss)
    assert same(train(network(), data(), SETTINGS, loss=plain_loss, folder=tmp_path), whole)
