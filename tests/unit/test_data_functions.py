"""Samples that a user's own function makes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.data import Samples, load, load_pair
from edgekit.errors import BadData
from edgekit.signature import Signature, TensorSpec

Array = np.ndarray[Any, Any]

VECTOR = Signature((TensorSpec("x", (1, 4)),), (TensorSpec("logits", (1, 3)),))


def take(spec: str | Path, signature: Signature = VECTOR, **options: Any) -> Samples:
    options = {"preprocess": None, "split": "eval", **options}
    return load(spec, signature=signature, **options)


def contents(samples: Samples) -> set[bytes]:
    return {b"".join(a.tobytes() for a in samples.feed(i).values()) for i in range(len(samples))}


def labels(samples: Samples) -> list[int | None]:
    return [samples.label(i) for i in range(len(samples))]


SCRIPT = """
import sys
import numpy as np
import neighbour_of_the_script
from edgekit.data import ArraySamples

def pair():
    return {"x": np.arange(40.0).reshape(10, 4)}, np.arange(10) % 3

def feeds_only():
    return {"x": [[1, 2, 3, 4.5]]}

def by_split(split):
    n = {"calib": 3, "eval": 5}[split]
    return {"x": np.full((n, 4), float(n))}, None

def samples():
    return ArraySamples({"x": np.eye(4, dtype=np.float32)}, [0, 1, 2, 0])

def wrong_samples():
    return ArraySamples({"x": np.eye(4)}, [0, 1, 2, 7])

def nothing():
    return None

def failing():
    raise ValueError("the disk is on fire")

def leaving():
    sys.exit(3)

def ragged():
    return {"x": [[1, 2], [3]]}

constant = 5
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "neighbour_of_the_script.py").write_text("VALUE = 1\n")
    path = tmp_path / "my data.py"
    path.write_text(SCRIPT)
    return path


def test_functions_give_samples(script: Path) -> None:
    path_before = list(sys.path)
    got = take(f"{script}:pair")
    assert len(got) == 10
    assert labels(got)[:4] == [0, 1, 2, 0]
    assert got.feed(9)["x"].dtype == np.float32
    assert got.source == f"{script}:pair"
    assert labels(take(f"{script}:feeds_only")) == [None]
    own = take(f"{script}:samples")
    assert labels(own) == [0, 1, 2, 0]
    np.testing.assert_array_equal(own.feed(1)["x"], [[0, 1, 0, 0]])
    assert own.digest == take(f"{script}:samples").digest
    assert len(take(f"{script}:samples", limit=2)) == 2
    assert sys.path == path_before


def test_a_function_that_takes_split_chooses_itself(script: Path) -> None:
    calib, evaluation = load_pair(f"{script}:by_split", None, signature=VECTOR, preprocess=None)
    assert (len(calib), len(evaluation)) == (3, 5)


@pytest.mark.parametrize("name", ["pair", "samples"])
def test_a_function_that_does_not_is_divided(script: Path, name: str) -> None:
    calib, evaluation = load_pair(f"{script}:{name}", None, signature=VECTOR, preprocess=None)
    assert len(calib) + len(evaluation) == (10 if name == "pair" else 4)
    assert not contents(calib) & contents(evaluation)


def test_functions_of_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_this_test.py").write_text("def f():\n    return {'x': [[1.5] * 4]}\n")
    monkeypatch.chdir(tmp_path)
    assert len(take("module_of_this_test:f")) == 1
    with pytest.raises(BadData, match="importing absent_module_of_this_test failed"):
        take("absent_module_of_this_test:f")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("par", "unknown function 'par'. Did you mean 'pair'"),
        ("constant", "unknown function 'constant'"),
        ("nothing", "gives NoneType; wanted"),
        ("failing", "raised ValueError: the disk is on fire"),
        ("leaving", "raised SystemExit: 3"),
        ("ragged", "no array"),
    ],
)
def test_functions_that_fail_are_named(script: Path, name: str, complaint: str) -> None:
    with pytest.raises(BadData, match=complaint):
        take(f"{script}:{name}")


def test_a_users_samples_are_checked_as_they_come(script: Path) -> None:
    got = take(f"{script}:wrong_samples")
    with pytest.raises(BadData, match="sample 0: 'x' is float64"):
        got.feed(0)
    with pytest.raises(BadData, match="label 7 of sample 3 is no class"):
        got.label(3)


def test_scripts_that_cannot_be_imported(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("def f(:\n")
    with pytest.raises(BadData, match="SyntaxError"):
        take(f"{path}:f")
    with pytest.raises(BadData, match="no file"):
        take(f"{tmp_path}/absent.py:f")
