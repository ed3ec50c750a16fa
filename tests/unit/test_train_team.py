"""Two processes that train together over gloo, for real."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgekit.compress.train import Batch, Trained, TrainSettings, train
from edgekit.data.training import ArraySet
from edgekit.errors import BadData, UsageError, WorkerCrashed

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

# A module of the user's, which no import finds by its name.
USERS = '''
import os, signal
import torch
from torch import nn

class Net(nn.Module):
    """Without batch normalization, whose statistics are each process's own."""

    def __init__(self):
        super().__init__()
        self.first, self.spare, self.last = nn.Linear(8, 16), nn.Linear(2, 2), nn.Linear(16, 3)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))

def loss(module, batch):
    return nn.functional.cross_entropy(module(batch["x"]), batch["y"])

def nan(module, batch):
    # In one process only: its own samples decide.
    return loss(module, batch) * (float("nan") if 7 in batch["row"] else 1)

def dies(module, batch):
    if torch.distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(module, batch)

def fails(module, batch):
    if torch.distributed.get_rank() == 1:
        raise ValueError("this loss is broken")
    return loss(module, batch)
'''


@pytest.fixture
def users(tmp_path: Path) -> Any:
    """The user's module, imported from a file under a name of ours."""
    file = tmp_path / "mine.py"
    file.write_text(USERS)
    spec = importlib.util.spec_from_file_location("_edgekit_user_mine", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def data() -> ArraySet:
    """Points around three centres."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (128,), generator=g)
    return ArraySet({"x": torch.eye(8)[labels] + torch.randn(128, 8, generator=g)}, labels.numpy())


def close(one: Trained, other: Trained) -> None:
    """Asserts that two trainings agree up to float error."""
    for name, value in one.state.items():
        torch.testing.assert_close(other.state[name], value, atol=1e-5, rtol=1e-4)
    for here, there in zip(one.curve, other.curve, strict=True):
        assert here["loss"] == pytest.approx(there["loss"], rel=1e-5)


def fresh(users: Any) -> nn.Module:
    """The user's network, always the same."""
    torch.manual_seed(0)
    module: nn.Module = users.Net()
    return module


def test_two_processes_are_one_with_the_doubled_batch(users: Any, tmp_path: Path) -> None:
    one = TrainSettings(epochs=3, batch=32, rate=1e-2, accumulate=2, validation=0.1, ema=0.9)
    two = one.model_copy(update={"batch": 16, "processes": 2})
    alone = train(fresh(users), data(), one, loss=users.loss)
    module = fresh(users)
    together = train(module, data(), two, loss=users.loss, folder=tmp_path)
    close(alone, together)
    assert together.best == alone.best
    assert torch.equal(together.state["spare.weight"], fresh(users).spare.weight)
    assert all(torch.equal(v, together.state[n]) for n, v in module.state_dict().items())
    assert not torch.distributed.is_initialized()


def test_together_they_go_on_where_they_stopped(users: Any, tmp_path: Path) -> None:
    settings = TrainSettings(epochs=3, batch=16, validation=0.1, processes=2, checkpoint_s=0.0)
    whole = train(fresh(users), data(), settings)

    class Stop(Exception):
        pass

    class Watch:
        notes: list[str] = []  # noqa: RUF012

        def step(self, done: int, total: int, **figures: float) -> None:
            pass

        def metric(self, name: str, value: float, step: int) -> None:
            if self.raises and step == 2:
                raise Stop

        def note(self, message: str) -> None:
            self.notes.append(message)

        raises = True

    watch = Watch()
    with pytest.raises(Stop):
        train(fresh(users), data(), settings, folder=tmp_path, watch=watch)
    watch.raises = False
    again = train(fresh(users), data(), settings, folder=tmp_path, watch=watch)
    assert watch.notes == ["goes on from step 6"]
    assert again.curve == whole.curve
    assert all(torch.equal(v, whole.state[n]) for n, v in again.state.items())


def test_what_happens_in_another_process_is_told(users: Any) -> None:
    settings = TrainSettings(epochs=1, batch=16, processes=2)
    with pytest.raises(BadData, match=r"became nan in epoch 1, step \d of 4"):
        train(fresh(users), data(), settings, loss=users.nan)
    with pytest.raises(WorkerCrashed, match=r"process 1 that trains along died \(exit code -9\)"):
        train(fresh(users), data(), settings, loss=users.dies)
    with pytest.raises(WorkerCrashed, match="failed: ValueError: this loss is broken"):
        train(fresh(users), data(), settings, loss=users.fails)
    module = fresh(users)
    before = {n: v.clone() for n, v in module.state_dict().items()}

    def local(module: nn.Module, batch: Batch) -> torch.Tensor:
        return users.loss(module, batch)  # type: ignore[no-any-return]

    with pytest.raises(UsageError, match="loss cannot be handed to another process"):
        train(module, data(), settings, loss=local)
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())


RANK = """
import json, os, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import mine
from test_train_team import data
from edgekit.compress.train import TrainSettings, train

torch.manual_seed(0)
folder = Path(sys.argv[2])
made = train(mine.Net(), data(), TrainSettings(epochs=2, batch=16, rate=1e-2), loss=mine.loss,
             folder=folder / os.environ["RANK"])
sums = {n: float(v.double().sum()) for n, v in made.state.items()}
(folder / f"{os.environ['RANK']}.json").write_text(json.dumps([sums, made.curve]))
"""


def test_torchrun_starts_them_too(users: Any, tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK.replace("sys.path.insert(0, sys.argv[1])",
                                   "sys.path[:0] = [sys.argv[1], sys.argv[2]]"))  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(script), str(Path(__file__).parent), str(tmp_path)],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    alone = train(
        fresh(users), data(), TrainSettings(epochs=2, batch=32, rate=1e-2), loss=users.loss
    )
    for name, value in alone.state.items():
        assert first[0][name] == pytest.approx(float(value.double().sum()), abs=1e-4)
    assert (tmp_path / "0" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "1").exists()
