"""The engine of recipes on small scripts: graph, cache, resumption, failures, what is told."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.artifact import Store
from edgekit.errors import (
    BadData,
    GateFailed,
    Locked,
    MissingDependency,
    StorageError,
    UsageError,
    WorkerCrashed,
)
from edgekit.recipe import Outcome, Planned, Runner, load_recipe, values
from edgekit.recipe.source import code_of
from edgekit.schemas import validate

HEAD = '''
"""A recipe for tests."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from edgekit.recipe import Settings, stage
'''

CHAIN = (
    HEAD
    + '''
class Train(Settings):
    epochs: int = 3


class Quantize(Settings):
    bits: int = 8


class Config(Settings):
    train: Train = Train()
    quantize: Quantize = Quantize()


FACTOR = 2


def scaled(x):
    """Doubles."""
    return x * FACTOR


@stage
def numbers():
    """Makes numbers."""
    return {"x": np.arange(5)}


@stage(threads=1)
def trained(numbers, cfg, run):
    x = numbers["x"]
    for i in range(cfg.train.epochs):
        run.step(i + 1, cfg.train.epochs, loss=1.0 / (i + 1))
        run.metric("loss", 1.0 / (i + 1), i + 1)
        x = scaled(x)
    return x


@stage(threads=1)
def notes(numbers, run):
    (run.out / "notes.txt").write_text(str(len(numbers["x"])))
    return run.out / "notes.txt"


@stage
def quantized(trained, notes, cfg, run):
    run.gate("small", cfg.quantize.bits <= 8, f"{cfg.quantize.bits} bits")
    return {"x": trained * cfg.quantize.bits, "text": notes.read_text()}
'''
)


class Heard:
    """A view that keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def planned(self, stages: Any) -> None:
        self.events.append(("planned", [s.stage for s in stages]))

    def started(self, stage: str, attempt: int) -> None:
        self.events.append((stage, f"started {attempt}"))

    def told(self, stage: str, event: Mapping[str, Any]) -> None:
        self.events.append((stage, dict(event)))

    def ended(self, stage: str, outcome: Outcome) -> None:
        self.events.append((stage, outcome))


class Place:
    """A script with a store and a folder for its runs."""

    def __init__(self, root: Path) -> None:
        self.root, self.script, self.out = root, root / "toy.py", root / "out"
        self.store = Store(root / "store")
        self.heard = Heard()

    def write(self, text: str) -> None:
        self.script.write_text(text)

    def runner(self, overrides: Mapping[str, str] | None = None, **options: Any) -> Runner:
        self.heard = Heard()
        given = {"out": self.out, **options}
        return Runner(
            load_recipe(self.script), overrides or {}, store=self.store, view=self.heard, **given
        )

    def run(
        self, overrides: Mapping[str, str] | None = None, **options: Any
    ) -> Mapping[str, Outcome]:
        runner = self.runner(overrides, **options)
        outcomes = runner.run()
        validate(runner.result)
        return outcomes

    def states(self, overrides: Mapping[str, str] | None = None) -> dict[str, str]:
        return {p.stage: p.state for p in self.runner(overrides).plan()}

    def value(self, outcome: Outcome) -> Any:
        assert outcome.hit is not None
        return values.read(outcome.hit.folder, script=load_recipe(self.script).module)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The chain, run once."""
    place = Place(tmp_path_factory.mktemp("chain"))
    place.write(CHAIN)
    assert all(o.status == "ok" and not o.cached for o in place.run().values())
    return place


def copied(ran: Place, to: Path) -> Place:
    """The same script and store, to be changed."""
    import shutil

    shutil.copytree(ran.root, to, dirs_exist_ok=True)
    place = Place(to)
    # What was last run is remembered by the script's path.
    last = place.store.root / "recipes" / "last"
    [folder] = last.iterdir()
    from hashlib import sha256

    folder.rename(last / sha256(str(place.script.resolve()).encode()).hexdigest()[:16])
    return place


# -- graph ----------------------------------------------------------------------------------------


def test_parameters_make_the_graph(ran: Place) -> None:
    recipe = load_recipe(ran.script)
    assert list(recipe.stages) == ["numbers", "trained", "notes", "quantized"]
    assert recipe.stages["quantized"].inputs == ("trained", "notes")
    assert recipe.stages["numbers"].doc == "Makes numbers."
    assert recipe.doc == "A recipe for tests."
    assert recipe.needed_for(["trained"]) == ["numbers", "trained"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def plain(): ...", "has no stages"),
        ("@stage\ndef one(tow): ...\n@stage\ndef two(): ...", "Did you mean 'two'"),
        ("@stage\ndef one(two): ...\n@stage\ndef two(one): ...", "circle"),
        ("@stage\ndef run(): ...", "can't be called 'run'"),
        ("@stage\ndef one(*all): ...", "name each parameter"),
        ("@stage\ndef one(cfg): ...", "has no Config"),
        (
            "class Config(Settings):\n    n: int\n@stage\ndef one(cfg): ...",
            "Config.n has no default",
        ),
        ("@stage(threads=0)\ndef one(): ...", "threads of 1 or more"),
        ("1 / 0", "toy.py:14 failed as it was imported: ZeroDivisionError"),
        ("def (", "toy.py:14: invalid syntax"),
    ],
)
def test_a_script_that_is_no_recipe_is_refused(place: Place, text: str, words: str) -> None:
    place.write(f"{HEAD}{text}\n")
    with pytest.raises(UsageError) as caught:
        place.runner()
    assert words in str(caught.value)


# -- cache ----------------------------------------------------------------------------------------


def test_a_second_run_runs_nothing(ran: Place) -> None:
    before = (ran.out / "run.json").read_text()
    outcomes = ran.run()
    assert all(o.cached for o in outcomes.values())
    first, second = json.loads(before), json.loads((ran.out / "run.json").read_text())
    for old, new in zip(first["stages"], second["stages"], strict=True):
        assert {k: old[k] for k in ("fingerprint", "result", "files", "metrics")} == {
            k: new[k] for k in ("fingerprint", "result", "files", "metrics")
        }


def test_results_come_back_as_they_were_returned(ran: Place) -> None:
    outcomes = ran.run()
    found = ran.value(outcomes["quantized"])
    assert found["text"] == "5"
    assert np.array_equal(found["x"], np.arange(5) * 64)


def test_a_changed_setting_runs_what_read_it_and_what_follows(ran: Place, tmp_path: Path) -> None:
    place = copied(ran, tmp_path)
    plan = {p.stage: p for p in place.runner({"quantize.bits": "4"}).plan()}
    assert {n: p.state for n, p in plan.items()} == {
        "numbers": "cached", "trained": "cached", "notes": "cached", "quantized": "run",
    }  # fmt: skip
    assert plan["quantized"].why == "quantize.bits is 4, was 8"
    assert place.states({"train.epochs": "5"}) == {
        "numbers": "cached", "trained": "run", "notes": "cached", "quantized": "waits",
    }  # fmt: skip
    outcomes = place.run({"quantize.bits": "4"})
    assert [n for n, o in outcomes.items() if not o.cached] == ["quantized"]
    # And back again: both results are kept.
    assert set(place.states().values()) == {"cached"}


@pytest.mark.parametrize(
    ("old", "new", "state"),
    [
        ("FACTOR = 2", "FACTOR = 3", "run"),
        ("return x * FACTOR", "return FACTOR * x", "run"),
        ("FACTOR = 2", "FACTOR = 2  # twice", "cached"),
        ('"""Doubles."""', '"""Twice."""', "cached"),
        ("def scaled(x):", "def scaled(x: np.ndarray) -> np.ndarray:", "cached"),
        ("bits: int = 8", "bits: int = 8\n    other: int = 1", "cached"),
    ],
)
def test_code_counts_and_its_looks_do_not(
    ran: Place, tmp_path: Path, old: str, new: str, state: str
) -> None:
    place = copied(ran, tmp_path)
    assert old in CHAIN
    place.write(CHAIN.replace(old, new))
    plan = {p.stage: p for p in place.runner().plan()}
    assert plan["trained"].state == state
    assert plan["numbers"].state == plan["notes"].state == "cached"
    if state == "run":
        assert plan["trained"].why == "its code changed"


def test_modules_beside_the_script_count(place: Place) -> None:
    (place.root / "helper_of_toy.py").write_text("import deeper_of_toy\nN = 1\n")
    (place.root / "deeper_of_toy.py").write_text("N = 1\n")
    place.write(
        HEAD
        + "from helper_of_toy import N\n@stage\ndef one():\n    return N\n"
        + "@stage\ndef two():\n    return 2\n"
    )
    recipe = load_recipe(place.script)
    before = code_of(recipe, "one"), code_of(recipe, "two")
    (place.root / "deeper_of_toy.py").write_text("N = 2\n")
    after = code_of(recipe, "one"), code_of(recipe, "two")
    assert before[0].text != after[0].text
    assert before[1] == after[1]


@pytest.mark.parametrize(
    "line",
    ["TABLE['b'] = 2", "TABLE.update(b=2)", "if True:\n    TABLE = {'b': 2}", "TABLE |= {'b': 2}"],
)
def test_statements_that_may_change_a_constant_count(place: Place, line: str) -> None:
    text = HEAD + "TABLE = {'a': 1}\n{line}\n@stage\ndef one():\n    return TABLE\n"
    place.write(text.replace("{line}", ""))
    before = code_of(load_recipe(place.script), "one")
    place.write(text.replace("{line}", line))
    assert code_of(load_recipe(place.script), "one").text != before.text


def test_versions_of_what_a_stage_imports_count(place: Place) -> None:
    place.write(
        HEAD
        + "import torch\nfrom sklearn import datasets\n"
        + "@stage\ndef one():\n    return torch.zeros(1)\n"
        + "@stage\ndef two():\n    return len(datasets.load_digits().target)\n"
        + "@stage\ndef three():\n    import safetensors\n    return safetensors.__version__\n"
    )
    recipe = load_recipe(place.script)
    assert set(code_of(recipe, "one").versions) == {"python", "edgekit", "numpy", "torch"}
    assert "scikit-learn" in code_of(recipe, "two").versions
    assert "torch" not in code_of(recipe, "two").versions
    assert "safetensors" in code_of(recipe, "three").versions


def test_a_damaged_result_is_made_again(ran: Place, tmp_path: Path) -> None:
    place = copied(ran, tmp_path)
    hit = place.run()["notes"].hit
    assert hit is not None
    (hit.folder / "files" / "notes.txt").write_text("6")
    outcomes = place.run()
    assert not outcomes["notes"].cached
    assert outcomes["notes"].why == "its result is gone from the store"
    # It gave what it gave before, so that what follows is still cached.
    assert outcomes["quantized"].cached
    assert (place.out / "notes" / "notes.txt").read_text() == "5"


def test_data_counts_for_stages_that_take_it(place: Place) -> None:
    place.write(
        HEAD
        + "@stage\ndef one(data):\n    return data.read_text()\n@stage\ndef two():\n    return 2\n"
    )
    data = place.root / "data.txt"
    data.write_text("a")
    assert place.value(place.run(data=data)["one"]) == "a"
    data.write_text("b")
    outcomes = place.run(data=data)
    assert (outcomes["one"].cached, outcomes["two"].cached) == (False, True)
    assert outcomes["one"].why == "data changed"
    data.write_text("a")
    assert place.run(data=data)["one"].cached
    with pytest.raises(BadData, match="no data at"):
        place.runner(data=place.root / "absent")


def test_a_file_that_a_setting_names_counts_by_its_content(place: Place) -> None:
    place.write(
        HEAD
        + "class Config(Settings):\n    weights: Path | None = None\n    other: int = 1\n"
        + "@stage\ndef one(cfg):\n    return cfg.weights.read_text()\n"
        + "@stage\ndef two(cfg):\n    return cfg.other\n"
    )
    weights = place.root / "w.txt"
    weights.write_text("a")
    chosen = {"weights": str(weights)}
    runner = place.runner(chosen)
    runner.run()
    assert runner.result["settings"]["weights"] == str(weights)
    assert str(weights) in runner.result["stages"][0]["reads"]["weights"]
    weights.write_text("b")
    outcomes = place.run(chosen)
    assert (outcomes["one"].cached, outcomes["two"].cached) == (False, True)
    assert place.value(outcomes["one"]) == "b"
    weights.write_text("a")
    assert place.run(chosen)["one"].cached


def test_only_and_again(ran: Place, tmp_path: Path) -> None:
    place = copied(ran, tmp_path)
    assert list(place.run(only=("trained",))) == ["numbers", "trained"]
    outcomes = place.run(again=("trained",))
    assert [n for n, o in outcomes.items() if not o.cached] == ["trained"]
    with pytest.raises(UsageError, match="Did you mean 'trained'"):
        place.runner(only=("traned",))


# -- what a stage may return ----------------------------------------------------------------------


def test_every_kind_of_result_survives(tmp_path: Path) -> None:
    from edgekit.compress.train import Trained

    script = ModuleType("script")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.bin").write_bytes(b"\0\1")
    shared = torch.arange(3.0)
    value = {
        "json": [None, True, 3, 2.5, "x", {"$": "kept"}],
        "tuple": (1, (2,)),
        "array": np.arange(6, dtype=np.int16).reshape(2, 3).T,
        "scalar": np.float32(0.5),
        "zero": np.zeros((), dtype=np.uint8),
        "tensors": {"a": shared, "b": shared, "half": torch.ones(2, dtype=torch.bfloat16)},
        "trained": Trained({"w": torch.ones(1)}, ({"epoch": 1, "loss": 0.5},), None),
        "path": tmp_path / "files" / "a.bin",
    }
    values.write(value, tmp_path, script=script)
    found = values.read(tmp_path, script=script)
    assert found["json"] == value["json"]
    assert found["tuple"] == (1, (2,))
    assert np.array_equal(found["array"], value["array"]) and found["array"].dtype == np.int16
    assert found["scalar"] == 0.5
    assert found["zero"].shape == ()
    assert torch.equal(found["tensors"]["a"], shared) and torch.equal(found["tensors"]["b"], shared)
    assert found["tensors"]["half"].dtype == torch.bfloat16
    assert isinstance(found["trained"], Trained) and found["trained"].curve[0]["loss"] == 0.5
    assert found["path"].read_bytes() == b"\0\1"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"a": [float("nan")]}, "result['a'][0] is nan"),
        ({1: 2}, "keys of a result are strings"),
        ([torch.nn.Linear(1, 1)], "result[0] is a module (Linear)"),
        (object(), "result is a builtins.object"),
        (np.array(["a"]), "array of <U1"),
        (Path("/etc/hosts"), "not in the stage's folder"),
    ],
)
def test_what_cannot_be_kept_is_named(tmp_path: Path, value: Any, words: str) -> None:
    with pytest.raises(BadData) as caught:
        values.write(value, tmp_path, script=ModuleType("script"))
    assert words in str(caught.value)


def test_equal_results_have_equal_digests(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        (tmp_path / name / "files").mkdir(parents=True)
        result = {"b": torch.arange(4), "a": np.ones(3)}
        values.write(result, tmp_path / name, script=ModuleType("script"))
        digests.append(values.digest(tmp_path / name))
    assert digests[0] == digests[1]


# -- failures -------------------------------------------------------------------------------------

FAILS = (
    HEAD
    + """
from edgekit.errors import BadData


@stage
def good(run):
    run.note("fine")
    return 1


@stage
def bad(good):
    {what}


@stage
def after(bad):
    return bad


@stage
def aside(good):
    return good + 1
"""
)


@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("raise BadData('picture x.png is torn', hint='mend it')", BadData, "x.png is torn"),
        ("raise ValueError('no such thing')", GateFailed, "ValueError: no such thing (toy.py:26)"),
        ("os.kill(os.getpid(), 9)", WorkerCrashed, "ended by signal 9"),
    ],
)
def test_a_failure_names_its_stage_and_spares_the_others(
    place: Place, what: str, kind: type[Exception], words: str
) -> None:
    place.write(FAILS.replace("{what}", what))
    outcomes = place.run()
    assert {n: o.status for n, o in outcomes.items()} == {
        "good": "ok", "bad": "failed", "after": "skipped", "aside": "ok",
    }  # fmt: skip
    error = outcomes["bad"].error
    assert type(error) is kind
    assert str(error).startswith("stage 'bad': ") and words in str(error)
    assert outcomes["after"].reason == "needs bad"
    document = json.loads((place.out / "run.json").read_text())
    assert [s["status"] for s in document["stages"]] == ["ok", "failed", "skipped", "ok"]
    # Mended, the finished ones are taken.
    place.write(FAILS.replace("{what}", "return 5"))
    again = place.run()
    assert {n: o.cached for n, o in again.items()} == {
        "good": True, "bad": False, "after": False, "aside": True,
    }  # fmt: skip


def test_each_kind_of_failure_is_its_kind_of_error(place: Place) -> None:
    kinds: dict[str, tuple[str, type[Exception], str]] = {
        "torn": ("raise OSError(28, 'No space left')", StorageError, "no space is left"),
        "lacking": ("import no_such_module", MissingDependency, "no_such_module is not installed"),
        "gone": ("os._exit(3)", WorkerCrashed, "its process ended with exit code 3"),
        "odd": ("return object()", BadData, "which can't be kept"),
    }
    body = "".join(f"@stage\ndef {n}():\n    {what}\n" for n, (what, _, _) in kinds.items())
    place.write(HEAD + body)
    outcomes = place.run()
    for name, (_, kind, words) in kinds.items():
        error = outcomes[name].error
        assert type(error) is kind
        assert str(error).startswith(f"stage {name!r}: ") and words in str(error)


def test_a_stage_is_tried_again_where_it_asks(place: Place) -> None:
    place.write(
        HEAD
        + textwrap.dedent(
            """
            @stage(retries=2, retry_on=ConnectionError)
            def fetched(run):
                tries = run.folder / "tries"
                count = int(tries.read_text()) if tries.exists() else 0
                tries.write_text(str(count + 1))
                if count == 0:
                    raise ConnectionResetError("reset")
                if count == 1:
                    os._exit(1)
                return count
            """
        )
    )
    outcome = place.run()["fetched"]
    assert (outcome.status, outcome.attempts, place.value(outcome)) == ("ok", 3, 2)
    assert [e for s, e in place.heard.events if isinstance(e, str)] == [
        "started 1", "started 2", "started 3",
    ]  # fmt: skip


def test_other_errors_are_not_tried_again(place: Place) -> None:
    place.write(
        HEAD + "@stage(retries=3, retry_on=ConnectionError)\ndef one():\n    raise KeyError('k')\n"
    )
    outcome = place.run()["one"]
    assert (outcome.status, outcome.attempts) == ("failed", 1)


# -- processes ------------------------------------------------------------------------------------


def test_independent_stages_run_at_the_same_time(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each waits for the other's file: one after the other, they would wait for ever.
    meet = """
        @stage(threads=1)
        def {me}(run):
            place = Path(os.environ["MEET"])
            (place / "{me}").touch()
            limit = time.monotonic() + 60
            while not (place / "{other}").exists():
                assert time.monotonic() < limit
                time.sleep(0.01)
            return int(os.environ["OMP_NUM_THREADS"])
    """
    place.write(
        HEAD
        + textwrap.dedent(meet.format(me="one", other="two"))
        + textwrap.dedent(meet.format(me="two", other="one"))
    )
    monkeypatch.setenv("MEET", str(place.root))
    monkeypatch.setattr("edgekit.cores.usable", lambda: 2)
    outcomes = place.run()
    assert [place.value(o) for o in outcomes.values()] == [1, 1]


def test_stages_are_told_of_as_they_go(place: Place) -> None:
    place.write(CHAIN)
    outcomes = place.run(only=("trained",))
    assert place.heard.events[0] == ("planned", ["numbers", "trained"])
    told = [e for s, e in place.heard.events if s == "trained" and isinstance(e, dict)]
    assert {"event": "step", "done": 3, "total": 3, "figures": {"loss": 1 / 3}} in told
    hit = outcomes["trained"].hit
    assert hit is not None
    assert hit.record["metrics"] == {"loss": [[1, 1.0], [2, 0.5], [3, 1 / 3]]}


def test_a_gate_that_failed_is_kept_and_told_again(place: Place) -> None:
    place.write(CHAIN)
    for _ in range(2):
        runner = place.runner({"quantize.bits": "16"})
        runner.run()
        gates = [g for s in runner.result["stages"] for g in s["gates"]]
        assert gates == [{"name": "small", "passed": False, "text": "16 bits"}]


def test_two_runs_do_not_write_to_one_place(place: Place) -> None:
    import fcntl

    place.write(CHAIN)
    place.out.mkdir()
    with (place.out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Locked, match="another run writes to"):
            place.run()


def test_a_folder_of_something_else_is_left_alone(place: Place) -> None:
    place.write(CHAIN)
    place.out.mkdir()
    (place.out / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is no run; it is left alone"):
        place.runner()
    assert [p.name for p in place.out.iterdir()] == ["thesis.txt"]


SLOWLY = (
    HEAD
    + '''
import json


class Config(Settings):
    steps: int = 12


def walk(run, steps, seed):
    """Steps whose state is kept, so that a new process goes on from it."""
    kept = run.folder / "state.json"
    state = json.loads(kept.read_text()) if kept.exists() else {"i": 0, "x": seed}
    while state["i"] < steps:
        state = {"i": state["i"] + 1, "x": (state["x"] * 48271) % 2147483647}
        aside = run.folder / "aside"
        aside.write_text(json.dumps(state))
        aside.replace(kept)
        time.sleep(0.05)
    return state["x"]


@stage(threads=1)
def left(cfg, run):
    return walk(run, cfg.steps, 11)


@stage(threads=1)
def right(cfg, run):
    return walk(run, cfg.steps, 13)


@stage
def both(left, right, cfg, run):
    (run.out / "model.bin").write_bytes(str((left, right, walk(run, cfg.steps, 17))).encode())
    return run.out / "model.bin"
'''
)


def start(place: Place, out: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgekit.cli.main", "run", str(place.script), "-q",
         "-o", str(place.root / out)],
        env={**os.environ, "EDGEKIT_STORE": str(place.root / f"store-{out}"), "NO_COLOR": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def kills(place: Place, moments: list[float]) -> None:
    """Kills a run at each of the moments, then lets it end; holds it to an undisturbed one."""
    place.write(SLOWLY)
    assert start(place, "calm").wait() == 0
    for moment in moments:
        process = start(place, "killed")
        time.sleep(moment)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert start(place, "killed").wait() == 0
    calm, killed = (
        json.loads((place.root / out / "run.json").read_text()) for out in ("calm", "killed")
    )
    for one, other in zip(calm["stages"], killed["stages"], strict=True):
        assert (one["result"], one["files"]) == (other["result"], other["files"])


def test_a_killed_run_goes_on(place: Place) -> None:
    kills(place, [1.2])


@pytest.mark.slow
def test_twenty_kills_at_random_moments(place: Place) -> None:
    import random

    draw = random.Random(7)
    kills(place, [draw.uniform(0.1, 3.0) for _ in range(20)])


def test_interrupted_no_process_is_left(place: Place) -> None:
    place.write(SLOWLY.replace("steps: int = 12", "steps: int = 4000"))
    # Where the tests run in a shell's background, SIGINT is ignored, and their children inherit it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start(place, "out")
    signal.signal(signal.SIGINT, before)
    limit = time.monotonic() + 60
    work = place.root / "store-out" / "recipes" / "work"
    while not list(work.glob("*/folder/state.json")) and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert children(place.script) == []


def children(script: Path) -> list[str]:
    """Processes that have a stage of ``script`` in hand."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "edgekit.recipe.worker" in line and str(script.parent) in line:
            found.append(line)
    return found


def test_the_table_goes_on_while_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    from edgekit.cli import _live

    now = 100.0
    monkeypatch.setattr(_live.time, "monotonic", lambda: now)
    view = _live.View()

    def shown() -> str:
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(view.table())
        return " ".join(console.export_text().split())

    view.planned([Planned("train", "run", "never run", ""), Planned("after", "waits", "", "")])
    view.started("train", 1)
    view.told("train", {"event": "step", "done": 1, "total": 4, "figures": {"loss": 0.5}})
    now = 110.0
    view.told("train", {"event": "step", "done": 2, "total": 4, "figures": {"loss": 0.25}})
    assert "2/4 loss 0.25 10 s 10 s left" in shown()
    now = 117.0
    assert "2/4 loss 0.25 17 s" in shown()
    view.ended("train", Outcome("ok", wall_s=17.0))
    assert "train ok" in shown() and "after waits" in shown()


def test_off_a_terminal_a_long_stage_says_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgekit.cli import _live

    now = 100.0
    monkeypatch.setattr(_live.time, "monotonic", lambda: now)
    view = _live.View()
    view.planned([Planned("train", "run", "never run", "")])
    view.started("train", 1)
    for step in range(1, 9):
        now += 10
        view.told(
            "train", {"event": "step", "done": step, "total": 8, "figures": {"loss": 1 / step}}
        )
    assert capsys.readouterr().err.splitlines() == [
        "train: begins",
        "train: 3/8 loss 0.3333 50 s left",
        "train: 6/8 loss 0.1667 20 s left",
    ]


# -- the command line -----------------------------------------------------------------------------


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    from edgekit.cli.main import main

    monkeypatch.setenv("EDGEKIT_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)

    def call(*args: str) -> tuple[int, str, str]:
        code = main(args)
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return call


def test_run_from_the_command_line(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "toy.py").write_text(CHAIN)
    code, out, _ = cli("run", "toy.py", "--dry-run", "--json")
    plan = json.loads(out)
    validate(plan)
    assert (code, [s["state"] for s in plan["stages"]]) == (0, ["run", "waits", "waits", "waits"])
    assert not (tmp_path / "out").exists()
    code, out, err = cli("run", "toy.py")
    assert code == 0
    assert "run: out/toy/run.json" in out and "notes: out/toy/notes" in out
    assert "trained: ok in" in err
    code, out, err = cli("run", "toy.py", "-s", "quantize.bits=9", "--json")
    document = json.loads(out)
    validate(document)
    assert code == 1
    assert "gates that failed: quantized: small" in err
    assert cli("run", "toy.py", "-s", "quantize.bit=9")[0] == 2
    assert cli("run", "toy.py", "-s", "bits")[0] == 2
    assert cli("run", "nothing.py")[0] == 2
    assert cli("run", "toy.py", "--track", "mlruns")[0] == 2


def test_a_failed_stage_is_the_exit_code(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "toy.py").write_text(FAILS.replace("{what}", "raise BadData('torn')"))
    code, out, err = cli("run", "toy.py", "--json")
    assert code == 7
    assert "edgekit: error: stage 'bad': torn" in err
    assert json.loads(out)["stages"][1]["reason"] == "stage 'bad': torn"


def test_recipes_are_listed_shown_and_copied(
    cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, _ = cli("recipes", "--json")
    listed = json.loads(out)
    validate(listed)
    assert code == 0 and "mobilenet" in {r["name"] for r in listed["recipes"]}
    code, out, _ = cli("recipes", "cp", "mobilenet", ".")
    assert code == 0 and (tmp_path / "mobilenet.py").is_file()
    code, _, err = cli("recipes", "cp", "mobilenet", ".")
    assert code == 2 and "exists; it is left alone" in err
    (tmp_path / "toy.py").write_text(CHAIN)
    code, out, _ = cli("recipes", "show", "toy.py", "--json")
    shown = json.loads(out)
    validate(shown)
    assert shown["recipes"][0]["settings"] == {"train.epochs": 3, "quantize.bits": 8}
    assert cli("recipes", "cp", "moblienet", ".")[0] == 2
