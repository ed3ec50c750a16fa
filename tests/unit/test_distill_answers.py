"""The teacher's answers on the disk: asked for once, whole or not there, bounded."""

from __future__ import annotations

import copy
import errno
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgekit.artifact import files_of, sha256_of
from edgekit.compress import _answers
from edgekit.compress._answers import CHUNK, GIB, Kept, Layout, keep
from edgekit.compress._checkpoint import digest_of
from edgekit.compress.distill import DistillSettings, Pair, distill
from edgekit.compress.train import TrainSettings
from edgekit.errors import BadData, StorageError
from edgekit.protocols import Unwatched

pytestmark = pytest.mark.usefixtures("one_thread")

FAST = TrainSettings(epochs=2, batch=32, rate=0.01)


class Rows:
    """Vectors [n, 4] of two classes; ``shake`` adds noise where a generator is given."""

    def __init__(self, count: int = 100, shake: bool = False) -> None:
        self.x = torch.randn(count, 4, generator=torch.Generator().manual_seed(3))
        self.y = (self.x[:, 0] > 0).long()
        self.shake = shake

    def __len__(self) -> int:
        return len(self.x)

    def batch(
        self, rows: torch.Tensor, generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        x = self.x[rows]
        if self.shake and generator is not None:
            x = x + 0.1 * torch.randn(x.shape, generator=generator)
        return {"x": x, "y": self.y[rows], "row": rows}


class Master(nn.Module):
    """A teacher that counts what it is asked, in a list that is no part of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.outer = nn.Linear(6, 2)
        self.asked: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(x))
        answer: torch.Tensor = self.outer(torch.tanh(self.inner(x)))
        return answer


class Heard(Unwatched):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def net(kind: type[nn.Module], seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind()


def learned(master: Master, data: Rows, root: Path | None, **options: Any) -> tuple[str, int]:
    """The digest of a student, and how many samples the teacher was asked."""
    student: nn.Module = net(Master, 2)
    master.asked.clear()
    watch = options.pop("watch", None)
    train = options.pop("train", FAST)
    distill(
        student,
        master,
        data,
        DistillSettings(**options),
        train=train,
        layers=[Pair("inner", "inner", "hidden")],
        cache=root,
        watch=watch,
    )
    return digest_of(dict(student.state_dict())), sum(master.asked)


@pytest.fixture
def master() -> Master:
    made = net(Master, 1)
    with torch.no_grad():
        made.inner.weight[0] = torch.tensor([3.0, 0, 0, 0])
        made.outer.weight[:, 0] = torch.tensor([-3.0, 3.0])
    return made  # type: ignore[no-any-return]


def sets(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir())


def test_later_epochs_and_later_calls_do_not_ask(master: Master, tmp_path: Path) -> None:
    long = FAST.model_copy(update={"epochs": 6})
    _, live = learned(master, Rows(), None, cache="off", train=long)
    _, first = learned(master, Rows(), tmp_path, train=long)
    _, again = learned(master, Rows(), tmp_path, train=long)
    # Beside its 100 answers it is asked for shapes, and for a first chunk to compare with.
    assert live > 6 * 96 and first < 100 + CHUNK + 40 and again < CHUNK + 40
    assert len(sets(tmp_path)) == 1


def test_kept_answers_are_those_of_a_teacher_that_is_asked(master: Master, tmp_path: Path) -> None:
    states = []
    for cache in ("disk", "off"):
        student: nn.Module = net(Master, 2)
        settings = DistillSettings(cache=cache)
        distill(student, master, Rows(), settings, train=FAST, cache=tmp_path)
        states.append(student.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-4, atol=1e-5)


def test_augmented_data_are_answered_as_the_student_sees_them(
    master: Master, tmp_path: Path
) -> None:
    root = tmp_path / "answers"
    _, asked = learned(master, Rows(shake=True), root)
    assert asked > 2 * 96 and not root.exists()
    watch = Heard()
    learned(master, Rows(shake=True), root, cache="disk", watch=watch)
    assert watch.notes == [
        "the data are augmented; the teacher's answers are to samples as they are"
    ]
    assert len(sets(root)) == 1


def test_another_teacher_data_layer_or_type_has_answers_of_its_own(
    master: Master, tmp_path: Path
) -> None:
    learned(master, Rows(), tmp_path)
    learned(master, Rows(99), tmp_path)
    learned(master, Rows(), tmp_path, cache_dtype="float16")
    other = copy.deepcopy(master)
    with torch.no_grad():
        other.outer.bias += 0.01
    learned(other, Rows(), tmp_path)
    distill(net(Master, 2), master, Rows(), DistillSettings(), train=FAST, cache=tmp_path)
    assert len(sets(tmp_path)) == 5
    halves = [p for p in sets(tmp_path) if '"float16"' in (p / "answers.json").read_text()]
    assert [(halves[0] / f"{i}.bin").stat().st_size for i in (0, 1)] == [100 * 2 * 2, 100 * 6 * 2]


def test_damaged_answers_are_made_again(master: Master, tmp_path: Path) -> None:
    digest, _ = learned(master, Rows(), tmp_path)
    place = sets(tmp_path)[0]
    whole = sha256_of(place / "1.bin")
    data = bytearray((place / "1.bin").read_bytes())
    data[7] ^= 64
    (place / "1.bin").write_bytes(data)
    watch = Heard()
    assert learned(master, Rows(), tmp_path, watch=watch)[0] == digest
    assert "are damaged; made again" in watch.notes[0]
    assert sha256_of(place / "1.bin") == whole


def test_answers_of_a_teacher_whose_code_changed_are_refused(
    master: Master, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned(master, Rows(), tmp_path)
    forward = Master.forward
    monkeypatch.setattr(Master, "forward", lambda self, x: forward(self, x) * 2)
    with pytest.raises(StorageError, match="not what the teacher answers now"):
        learned(master, Rows(), tmp_path)


def test_without_a_place_answers_are_gone_in_the_end(
    master: Master, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    _, asked = learned(master, Rows(), None, train=FAST.model_copy(update={"epochs": 6}))
    assert asked < 100 + CHUNK + 40 and not list(tmp_path.iterdir())


# -- bounds -------------------------------------------------------------------------------


def filled(root: Path, key: str, layout: Layout, limit: int, watch: Heard | None = None) -> None:
    def ask(start: int, stop: int) -> list[torch.Tensor]:
        return [torch.full((stop - start, *shape), 1.5) for shape in layout.shapes.values()]

    with keep(root, key, layout, ask, limit=limit, watch=watch or Heard()):
        pass


def test_the_oldest_answers_that_nobody_uses_make_room(tmp_path: Path) -> None:
    layout = Layout(100, {"logits": (10,)}, "float32")
    watch = Heard()
    for i, key in enumerate("abc"):
        filled(tmp_path, key, layout, 3 * layout.bytes + 4096)
        os.utime(tmp_path / key, (i, i))
    held = keep(tmp_path, "a", layout, lambda a, b: [], limit=0, watch=watch)
    with held:  # used now, and not to be removed
        os.utime(tmp_path / "a", (0, 0))
        filled(tmp_path, "d", layout, 3 * layout.bytes + 4096, watch)
        assert [p.name for p in sets(tmp_path)] == ["a", "c", "d"]
        assert [note.rpartition("/")[2] for note in watch.notes] == ["b"]
        with pytest.raises(StorageError, match=r"others that are in use 3\.\d+e-06; the limit"):
            filled(tmp_path, "e", layout, layout.bytes, watch)


def test_more_than_the_limit_is_refused_or_asked_for_each_time(
    master: Master, tmp_path: Path
) -> None:
    small = 1000 / GIB
    with pytest.raises(StorageError) as caught:
        learned(master, Rows(), tmp_path, cache="disk", cache_limit=small)
    assert "raise cache_limit, set cache_dtype='float16', compare fewer layers" in str(caught.value)
    assert not sets(tmp_path)
    watch = Heard()
    learned(master, Rows(), tmp_path, cache_limit=small, watch=watch)
    assert "it is asked for every batch instead" in watch.notes[0] and not sets(tmp_path)


def test_a_full_disk_shows_before_the_teacher_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    layout = Layout(10, {"logits": (2,)}, "float32")

    def never(start: int, stop: int) -> list[torch.Tensor]:
        raise AssertionError

    with (
        pytest.raises(StorageError, match="No space left"),
        keep(tmp_path, "k", layout, never, limit=GIB, watch=Heard()),
    ):
        pass


def test_answers_that_cannot_be_kept_name_the_sample(tmp_path: Path) -> None:
    layout = Layout(100, {"logits": (2,), "pair 0 body": (3,)}, "float16")

    def run(spoil: Any) -> str:
        def ask(start: int, stop: int) -> list[torch.Tensor]:
            answers = [torch.ones(stop - start, 2), torch.ones(stop - start, 3)]
            if start:
                spoil(answers)
            return answers

        root = tmp_path / str(spoil.__name__)
        with (
            pytest.raises(BadData) as caught,
            keep(root, "k", layout, ask, limit=GIB, watch=Heard()),
        ):
            pass
        return str(caught.value)

    def infinite(answers: list[torch.Tensor]) -> None:
        answers[0][6, 1] = float("inf")

    def large(answers: list[torch.Tensor]) -> None:
        answers[1][6, 1] = 1e5

    def wide(answers: list[torch.Tensor]) -> None:
        answers[1] = torch.ones(len(answers[1]), 4)

    assert f"the teacher's logits of sample {CHUNK + 6} is not finite" in run(infinite)
    assert "pair 0 body reaches 100000, which float16 cannot hold" in run(large)
    assert "pad all samples to one length" in run(wide)


def test_kept_answers_are_pickled_as_their_place(tmp_path: Path) -> None:
    layout = Layout(CHUNK, {"logits": (10_000,)}, "float16")
    filled(tmp_path, "k", layout, GIB)
    kept = Kept(tmp_path / "k", layout)
    kept({}, torch.tensor([1]))
    packed = pickle.dumps(kept)
    assert len(packed) < 2000
    (answers,) = pickle.loads(packed)({}, torch.tensor([3, 1]))
    assert answers.dtype == torch.float32 and torch.equal(answers, torch.full((2, 10_000), 1.5))


# -- killed -------------------------------------------------------------------------------

# Of a server, since this process may hold threads by now, and then a fork of it may hang.
APART = multiprocessing.get_context("forkserver")
APART.set_forkserver_preload(["torch", "edgekit.compress.distill"])

ROWS = 1000
TABLE = torch.randn(ROWS, 50, generator=torch.Generator().manual_seed(5))
LAYOUT = Layout(ROWS, {"logits": (50,), "other": (7,)}, "float16")


def answering(root: Path, told: Any, die: str = "", at: int = 0) -> None:
    """Keeps answers, tells how many were asked for; kills itself when ``die`` comes to ``at``."""
    counts: dict[str, int] = {}
    asked = 0

    def passed(what: str) -> None:
        counts[what] = counts.get(what, 0) + 1
        if what == die and counts[what] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def ask(start: int, stop: int) -> list[torch.Tensor]:
        nonlocal asked
        passed("ask")
        asked += stop - start
        time.sleep(0.002)
        return [TABLE[start:stop], TABLE[start:stop, :7].square()]

    def mortal(name: str) -> None:
        real = getattr(Path, name)

        def method(self: Path, to: Path) -> Any:
            passed(name)
            return real(self, to)

        setattr(Path, name, method)

    mortal("replace")
    mortal("rename")
    _answers.PROGRESS_S = 0.0  # type: ignore[misc]
    with keep(root, "key", LAYOUT, ask, limit=GIB, watch=Unwatched()):
        told.put(asked)


def apart(does: Callable[..., None], *arguments: Any) -> multiprocessing.process.BaseProcess:
    process = APART.Process(target=does, args=arguments)
    process.start()
    return process


def ended(*processes: multiprocessing.process.BaseProcess) -> list[int | None]:
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def contents(root: Path) -> dict[str, str]:
    return {p.name: sha256_of(p) for p in files_of(root / "key")}


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    told = APART.SimpleQueue()
    assert ended(apart(answering, tmp_path / "whole", told)) == [0] and told.get() == ROWS
    wanted = contents(tmp_path / "whole")
    assert set(wanted) == {"answers.json", "0.bin", "1.bin"}
    # In the first chunk, in a later one, in writing how far it is, in the last record, at the end.
    for die, at, least in (("ask", 1, 0), ("ask", 7, 6), ("replace", 7, 6), ("rename", 1, 15)):
        place = tmp_path / f"{die}{at}"
        assert ended(apart(answering, place, told, die, at)) == [-signal.SIGKILL]
        assert not (place / "key").exists()
        assert ended(apart(answering, place, told)) == [0]
        asked = told.get()
        assert asked <= ROWS - least * CHUNK, (die, at)
        assert contents(place) == wanted, (die, at)


def test_of_two_that_want_the_same_answers_one_waits(tmp_path: Path) -> None:
    told = APART.SimpleQueue()
    assert ended(apart(answering, tmp_path, told), apart(answering, tmp_path, told)) == [0, 0]
    assert sorted([told.get(), told.get()]) == [0, ROWS]


class Mortal(Master):
    """A network that kills its process when it has been asked often enough."""

    lives = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.lives -= 1
        if self.lives == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)


def lesson(master: Master, lives: tuple[int, int], folder: Path, out: Path) -> None:
    """Distils in ``folder`` unless teacher or student have no more lives, and writes the digest."""
    torch.set_num_threads(1)
    teacher, student = net(Mortal, 1), net(Mortal, 2)
    teacher.load_state_dict(master.state_dict())
    teacher.lives, student.lives = lives
    distill(
        student,
        teacher,
        Rows(),
        DistillSettings(),
        train=FAST.model_copy(update={"epochs": 4, "checkpoint_s": 0.0, "ema": 0.9}),
        layers=[Pair("inner", "outer", "hidden")],
        folder=folder,
    )
    out.write_text(digest_of(dict(student.state_dict())))


def test_a_killed_distillation_ends_with_the_same_bytes(master: Master, tmp_path: Path) -> None:
    def run(lives: tuple[int, int], folder: Path, out: Path) -> int | None:
        return ended(apart(lesson, master, lives, folder, out))[0]

    whole = tmp_path / "whole"
    assert run((0, 0), tmp_path / "undisturbed", whole) == 0
    # The teacher in its answers, then the student in the first, the second and the last epoch.
    folder, out = tmp_path / "killed", tmp_path / "out"
    for lives in ((6, 0), (0, 6), (0, 9), (0, 8)):
        assert run(lives, folder, out) == -signal.SIGKILL
    assert run((0, 0), folder, out) == 0
    assert out.read_text() == whole.read_text()
