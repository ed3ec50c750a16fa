"""Recipes that were written to break the engine: each test failed once."""

from __future__ import annotations

import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.artifact import Store
from edgekit.errors import BadData, StorageError, UsageError
from edgekit.recipe import Outcome, Runner, inputs, load_recipe, values
from edgekit.recipe.source import code_of

HEAD = "from edgekit.recipe import Settings, stage\n"


class Place:
    """A script, its store and its folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.script, self.out = root, root / "broken.py", root / "out"
        self.store = Store(root / "store")

    def write(self, text: str) -> None:
        self.script.write_text(HEAD + textwrap.dedent(text))

    def runner(self, overrides: dict[str, str] | None = None, **options: Any) -> Runner:
        given = {"out": self.out, "store": self.store, **options}
        return Runner(load_recipe(self.script), overrides or {}, **given)

    def run(self, overrides: dict[str, str] | None = None, **options: Any) -> dict[str, Outcome]:
        return dict(self.runner(overrides, **options).run())

    def value(self, outcome: Outcome) -> Any:
        assert outcome.hit is not None, outcome.reason
        return values.read(outcome.hit.folder, script=load_recipe(self.script).module)

    def code(self, stage: str = "one") -> Any:
        # The script's neighbours are imported anew.
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", "")).startswith(str(self.root)):
                del sys.modules[name]
        return code_of(load_recipe(self.script), stage)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(sys, "path", [*sys.path])
    return Place(tmp_path)


# -- a change that has to count -------------------------------------------------------------------

CHANGES = {
    "registered by a decorator": (
        """
        ALL = {}
        def kept(f):
            ALL[f.__name__] = f
            return f
        @kept
        def relu():
            return 1
        @stage
        def one():
            return ALL["relu"]()
        """,
        ("return 1", "return 2"),
    ),
    "registered by a method": (
        """
        class Kept:
            def __init__(self):
                self.all = {}
            def add(self, f):
                self.all[f.__name__] = f
        ALL = Kept()
        @ALL.add
        def relu():
            return 1
        @stage
        def one():
            return ALL.all["relu"]()
        """,
        ("return 1", "return 2"),
    ),
    "registered by a class's subclasses": (
        """
        class Base:
            all = {}
            def __init_subclass__(cls):
                Base.all[cls.__name__] = cls
        class Net(Base):
            width = 1
        @stage
        def one():
            return Base.all["Net"].width
        """,
        ("width = 1", "width = 2"),
    ),
    "global": (
        """
        N = 1
        def change():
            global N
            N = 5
        change()
        @stage
        def one():
            return N
        """,
        ("N = 5", "N = 6"),
    ),
    "in an assignment to another name": (
        """
        ALL = {}
        _ = ALL.update(x=1)
        @stage
        def one():
            return ALL["x"]
        """,
        ("x=1", "x=2"),
    ),
    "beside another target": (
        """
        ALL = {}
        a, ALL["x"] = 1, 2
        @stage
        def one():
            return ALL["x"]
        """,
        ("1, 2", "1, 3"),
    ),
    "a property of Config": (
        """
        class Config(Settings):
            n: int = 1
            @property
            def more(self):
                return self.n * 2
        @stage
        def one(cfg):
            return cfg.more
        """,
        ("n * 2", "n * 3"),
    ),
    "a method of a section": (
        """
        FACTOR = 2
        class Part(Settings):
            n: int = 1
            def more(self):
                return self.n * FACTOR
        class Config(Settings):
            part: Part = Part()
        @stage
        def one(cfg):
            return cfg.part.more()
        """,
        ("FACTOR = 2", "FACTOR = 3"),
    ),
    "a default of Config that is looked at past cfg": (
        """
        class Config(Settings):
            n: int = 1
        DEFAULTS = Config()
        @stage
        def one():
            return DEFAULTS.n
        """,
        ("n: int = 1", "n: int = 2"),
    ),
    "what is found by its name": (
        """
        N = 1
        @stage
        def one():
            return globals()["N"]
        """,
        ("N = 1", "N = 2"),
    ),
    "a docstring that is looked at": (
        """
        def helper():
            "words"
        @stage
        def one():
            return helper.__doc__
        """,
        ("words", "other words"),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_stage_reaches_in_its_script_counts(place: Place, name: str) -> None:
    text, (old, new) = CHANGES[name]
    assert old in text
    place.write(text)
    before = place.code()
    place.write(text.replace(old, new))
    assert place.code().text != before.text


MODULES = {
    "all of a module": ("from near import *", {"near.py": "def f(): return {}"}),
    "a neighbour within a package": (
        "from pack.a import f",
        {
            "pack/__init__.py": "",
            "pack/a.py": "from .b import f",
            "pack/b.py": "def f(): return {}",
        },
    ),
    "a folder that is no package": (
        "from near import f",
        {"near.py": "from folder import m\ndef f(): return m.X", "folder/m.py": "X = {}"},
    ),
    "a neighbour in such a folder": (
        "from folder.a import f",
        {"folder/a.py": "from .b import f", "folder/b.py": "def f(): return {}"},
    ),
    "imported by its name": (
        "import importlib\nf = importlib.import_module('near').f",
        {"near.py": "def f(): return {}"},
    ),
    "imported for what it does": (
        "import near\ndef f(): return 1",
        {"near.py": "import json\njson.indent = {}"},
    ),
    "elsewhere on the path": ("from far import f", {"../far/far.py": "def f(): return {}"}),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_modules_of_ones_own_count(tmp_path: Path, place: Place, name: str) -> None:
    line, files = MODULES[name]
    place = Place(tmp_path / "script")
    place.root.mkdir()
    sys.path.append(str(tmp_path / "far"))
    place.write(f"{line}\n@stage\ndef one():\n    return f()\n")
    found = []
    for value in (1, 2):
        for file, text in files.items():
            (place.root / file).parent.mkdir(parents=True, exist_ok=True)
            (place.root / file).write_text(text.format(value) + "\n")
        found.append(place.code().text)
    assert found[0] != found[1]


def test_other_code_that_gives_the_same_does_not_run_what_follows(place: Place) -> None:
    text = "@stage\ndef one():\n    return 4\n@stage\ndef two(one):\n    return one + 1\n"
    place.write(text)
    place.run()
    place.write(text.replace("return 4", "return 2 * 2"))
    outcomes = place.run()
    assert (outcomes["one"].cached, outcomes["two"].cached) == (False, True)


def test_methods_of_what_a_stage_is_handed_count(place: Place) -> None:
    text = """
    from dataclasses import dataclass
    @dataclass(frozen=True)
    class Point:
        x: int
        def scaled(self):
            return self.x * 2
    @stage
    def one():
        return Point(1)
    @stage
    def two(one):
        return one.scaled()
    """
    place.write(text)
    assert place.value(place.run()["two"]) == 2
    place.write(text.replace("x * 2", "x * 3"))
    assert place.value(place.run()["two"]) == 3


# -- results --------------------------------------------------------------------------------------


def test_what_a_stage_gave_last_is_its_result(place: Place) -> None:
    source = place.root / "source.txt"
    place.write(f"""
    from pathlib import Path
    @stage
    def one(run):
        text = Path({str(source)!r}).read_text()
        run.gate("right", text == "new")
        return text
    """)
    source.write_text("old")
    place.run()
    source.write_text("new")
    again = place.runner(again=("one",))
    assert place.value(again.run()["one"]) == "new"
    assert again.result["stages"][0]["gates"][0]["passed"] is True
    assert place.runner().plan()[0].state == "cached"
    assert place.value(place.run()["one"]) == "new"


def test_results_keep_their_order_and_numpys_answers_are_taken(place: Place) -> None:
    place.write("""
    import numpy as np
    @stage
    def one(run):
        run.gate("numpy", np.float32(1) > 0.5, np.float32(1))
        run.step(np.int64(1), np.int64(1))
        run.note(np.float32(1))
        return {"b": 1, "a": 2}
    """)
    runner = place.runner()
    assert list(place.value(runner.run()["one"])) == ["b", "a"]
    assert runner.result["stages"][0]["gates"] == [{"name": "numpy", "passed": True, "text": "1.0"}]


def test_links_are_kept_as_what_they_name(place: Place) -> None:
    (place.root / "far").mkdir()
    (place.root / "far" / "x.txt").write_text("x")
    place.write(f"""
    @stage
    def one(run):
        (run.out / "a.txt").write_text("a")
        (run.out / "last.txt").symlink_to(run.out / "a.txt")
        (run.out / "far").symlink_to({str(place.root / "far")!r})
        return run.out / "a.txt"
    """)
    place.run()
    assert (place.out / "one" / "last.txt").read_text() == "a"
    (place.root / "far" / "x.txt").write_text("y")
    place.run()
    assert (place.out / "one" / "far" / "x.txt").read_text() == "x"


def test_what_would_lose_a_part_is_refused(tmp_path: Path) -> None:
    from collections import namedtuple
    from types import ModuleType

    pair = namedtuple("pair", "a b")(1, 2)
    for value, words in ((pair, "named tuple"), (np.ma.masked_equal([1, 2], 1), "masked array")):
        with pytest.raises(BadData, match=words):
            values.write(value, tmp_path, script=ModuleType("script"))


def test_records_that_were_damaged_count_as_none(place: Place) -> None:
    place.write("@stage\ndef one():\n    return 1\n")
    place.run()
    for path in (place.store.root / "recipes").rglob("*.json"):
        path.write_text("{}")
    assert place.runner().plan()[0].state == "run"


# -- settings -------------------------------------------------------------------------------------


def test_what_a_forked_process_reads_is_recorded(place: Place) -> None:
    place.write("""
    import multiprocessing
    class Config(Settings):
        n: int = 1
    @stage
    def one(cfg):
        ends, begins = multiprocessing.get_context("fork").Pipe()
        def child():
            begins.send(cfg.n)
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
        return ends.recv()
    """)
    assert place.value(place.run()["one"]) == 1
    assert place.value(place.run({"n": "2"})["one"]) == 2


def test_whether_a_section_is_there_is_read(place: Place) -> None:
    text = """
    class Part(Settings):
        n: int = 1
    class Config(Settings):
        part: Part | None = Part()
    @stage
    def one(cfg):
        return cfg.part is None
    """
    place.write(text)
    assert place.value(place.run()["one"]) is False
    place.write(text.replace("= Part()", "= None"))
    assert place.value(place.run()["one"]) is True


def test_settings_of_every_kind(place: Place) -> None:
    place.write("""
    import enum
    class Kind(enum.Enum):
        A = "a"
        B = "b"
    class Part(Settings):
        n: int = 1
    class Config(Settings):
        kind: Kind = Kind.A
        parts: tuple[Part, ...] = (Part(), Part(n=2))
        rate: float = 0.5
    @stage
    def one(cfg):
        return [cfg.kind.name, *(p.n for p in cfg.parts)]
    """)
    runner = place.runner({"kind": "b"})
    assert place.value(runner.run()["one"]) == ["B", 1, 2]
    assert runner.result["stages"][0]["reads"] == {"kind": "b", "parts": [{"n": 1}, {"n": 2}]}
    for text in ("NaN", "1e999"):
        with pytest.raises(UsageError, match="setting rate can't be"):
            place.runner({"rate": text})


@pytest.mark.parametrize("line", ["from . import near", "import sys; sys.exit(3)"])
def test_a_script_that_cannot_be_imported_is_the_users(place: Place, line: str) -> None:
    place.write(line)
    with pytest.raises(UsageError, match="failed as it was imported"):
        load_recipe(place.script)


# -- at the same time -----------------------------------------------------------------------------


def test_two_runs_of_one_stage_run_it_once(place: Place) -> None:
    log = place.root / "log.txt"
    place.write(f"""
    import time
    from pathlib import Path
    @stage
    def one(run):
        with Path({str(log)!r}).open("a") as file:
            file.write("x")
        for i in range(50):
            (run.out / f"{{i}}.txt").write_text(str(i))
        time.sleep(0.1)
        return [p.name for p in sorted(run.out.iterdir())]
    """)
    runners = [place.runner(out=place.root / f"out{i}") for i in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = [outcomes["one"] for outcomes in pool.map(lambda r: r.run(), runners)]
    assert log.read_text() == "x"
    assert [len(place.value(outcome)) for outcome in found] == [50] * 3
    assert sorted(outcome.cached for outcome in found) == [False, True, True]


def test_a_script_that_is_edited_meanwhile_makes_nothing_under_the_old_name(place: Place) -> None:
    text = """
    from pathlib import Path
    @stage
    def one():
        {edit}
        return 1
    @stage
    def two(one):
        return "old"
    @stage
    def three(one):
        return "same"
    """
    edit = "p = Path(__file__); p.write_text(p.read_text().replace('\"ol' 'd\"', '\"new\"'))"
    place.write(text.format(edit=edit))
    outcomes = place.run()
    assert "changed since this run began" in str(outcomes["two"].reason)
    assert isinstance(outcomes["two"].error, UsageError)
    assert place.value(outcomes["three"]) == "same"
    assert place.value(place.run()["two"]) == "new"


def test_data_that_changes_meanwhile_is_not_taken_for_what_it_was(place: Place) -> None:
    data = place.root / "data"
    data.mkdir()
    (data / "a.txt").write_text("a")
    place.write("""
    @stage
    def one(data):
        (data / "b.txt").write_text("b")
        return len(list(data.iterdir()))
    """)
    assert "was changed while it was read" in str(place.run(data=data)["one"].reason)


def test_data_behind_a_link_counts(place: Place) -> None:
    data, far = place.root / "data", place.root / "far"
    data.mkdir()
    far.mkdir()
    (data / "far").symlink_to(far)
    (data / "round").symlink_to(data)
    digests = set()
    for text in ("1", "22"):
        (far / "a.txt").write_text(text)
        digests.add(inputs.data(data, place.store).digest)
    assert len(digests) == 2


def test_what_a_stage_starts_ends_with_it_and_nothing_waits_for_input(place: Place) -> None:
    pids = place.root / "pids"
    place.write(f"""
    import os, subprocess, time
    from pathlib import Path
    @stage
    def one():
        other = subprocess.Popen(["sleep", "60"])
        forked = os.fork()
        if not forked:
            time.sleep(60)
        Path({str(pids)!r}).write_text(f"{{other.pid}} {{forked}}")
        try:
            return input()
        except EOFError:
            return "no input"
    """)
    start = time.monotonic()
    assert place.value(place.run()["one"]) == "no input"
    assert time.monotonic() - start < 30
    for pid in pids.read_text().split():
        assert _ended(int(pid))


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_full_disk_is_told_as_that_where_the_log_is_on_it(place: Place) -> None:
    place.write("""
    import sys
    @stage
    def one():
        sys.stderr = open("/dev/full", "w", buffering=1)
        raise OSError(28, "No space left on device")
    """)
    assert "no space is left" in str(place.run()["one"].reason)


def test_results_that_are_removed_meanwhile_are_named(place: Place) -> None:
    place.write(f"""
    import shutil
    @stage
    def one():
        return 1
    @stage
    def two(one):
        for path in {str(place.store.root)!r}, :
            shutil.rmtree(path + "/recipes/records")
            for entry in __import__("pathlib").Path(path).glob("??"):
                shutil.rmtree(entry)
        return 2
    """)
    with pytest.raises(StorageError, match="removed while this run went on"):
        place.run()
    assert place.value(place.run(only=("one",))["one"]) == 1
