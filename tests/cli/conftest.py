"""A shop of small models, data and a board, and the command line run in this process."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import schemas
from edgekit.cli.main import main

MODELS = '''
import torch
from torch import nn


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 4)

    def forward(self, x):
        if x.sum() > 0:
            return self.linear(x.flatten(1))
        return -self.linear(x.flatten(1))


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x.flatten(1))


class Blunt(nn.Module):
    """What tells its classes apart is smaller than a step of the int8 input."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)
        self.linear.weight.data = torch.tensor([[0.0, 1.0], [1.0, 1.0]])

    def forward(self, x):
        return self.linear(x)


def example():
    return {"x": torch.zeros(1, 3, 4)}


def mlp():
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)
    return nn.Sequential(*layers), {"input": torch.zeros(1, 3, 4)}


def cnn():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32, 4)), {"input": torch.zeros(1, 1, 8, 8)}


def picture():
    from edgekit import ImagePreprocess, Model

    module, example = cnn()
    return Model.from_module(module, example, preprocess=ImagePreprocess(8, 8, 1, "GRAY"))


def branch():
    return Branch(), example()


def bessel():
    return Bessel(), example()


def blunt():
    return Blunt(), {"x": torch.zeros(1, 2)}


def chatty():
    print("loading the weights")
    return mlp()
'''

WAITING = """
import pathlib
import time

import numpy as np


def rows():
    here = pathlib.Path(__file__).parent
    (here / "started").touch()
    end = time.monotonic() + 60
    while not (here / "go").exists() and time.monotonic() < end:
        time.sleep(0.02)
    return {"input": np.ones((4, 3, 4), np.float32)}, np.zeros(4, np.int64)
"""

BOARD = """
schema = "edgekit.device/1"
id = "my-board"
name = "My board"
soc = "ABC1"
os = "Linux"

[cpu]
clusters = [{ cores = 2, core = "Cortex-A53", ghz = 1.5 }]

[isa]
arch = "arm64"
dotprod = false

[memory]
ram_gib = 1.0

[[targets]]
target = "null"
schemes = ["fp32"]
delegate = "cpu"

[[targets]]
target = "onnxruntime"
schemes = ["w8a8", "fp32"]
delegate = "cpu"

[sources]
soc = "data sheet"
cpu = "data sheet"
isa = "data sheet"
"memory.ram_gib" = "data sheet"
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one document on stdout, which is valid and all that is there."""
        found = json.loads(self.out)
        schemas.validate(found)
        return found  # type: ignore[no-any-return]


def run_here(*args: object) -> Done:
    """Runs the command in this process, off a terminal."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = main([str(arg) for arg in args])
    return Done(code, out.getvalue(), err.getvalue())


def contents(root: Path) -> dict[str, bytes]:
    """Every file under ``root``, by name."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def edgekit() -> Callable[..., Done]:
    """`run_here`."""
    return run_here


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes]]:
    """`contents`."""
    return contents


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models in ``m.py``, data, and ``board.toml``, a device that runs two targets."""
    root = tmp_path_factory.mktemp("shop")
    (root / "m.py").write_text(MODELS)
    (root / "waiting.py").write_text(WAITING)
    (root / "board.toml").write_text(BOARD)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((64, 3, 4)).astype(np.float32)
    np.savez(root / "rows.npz", input=rows, y=rng.integers(0, 4, 64))
    pictures = rng.standard_normal((80, 1, 8, 8)).astype(np.float32)
    np.savez(root / "pictures.npz", input=pictures, y=rng.integers(0, 4, 80))
    np.savez(root / "narrow.npz", input=pictures[:, :, :4])
    np.savez(root / "few.npz", input=pictures[:5])
    pictures[3, 0, 0, 0] = np.nan
    np.savez(root / "nan.npz", input=pictures)
    pairs = rng.uniform(-1, 1, (96, 2)).astype(np.float32)
    pairs = np.stack([pairs[:, 0] / 1000, np.abs(pairs[:, 1])], 1)
    np.savez(root / "pairs.npz", x=pairs, y=(pairs[:, 0] > 0).astype(np.int64))
    return root


@pytest.fixture(scope="session", autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store for these tests alone, which they share."""
    place = tmp_path_factory.mktemp("store")
    before = os.environ.get("EDGEKIT_STORE")
    os.environ["EDGEKIT_STORE"] = str(place)
    yield place
    if before is None:
        del os.environ["EDGEKIT_STORE"]
    else:
        os.environ["EDGEKIT_STORE"] = before


@pytest.fixture(scope="session")
def plain(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of ``mlp`` for the null target, as a directory."""
    out = tmp_path_factory.mktemp("plain") / "bundle"
    done = run_here(
        "export", f"{shop}/m.py:mlp", "--device", f"{shop}/board.toml", "--target", "null",
        "--eval", f"{shop}/rows.npz", "--no-bench", "-o", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="session")
def int8(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], Done]:
    """A bundle of ``cnn`` for ONNX Runtime in w8a8 and fp32: its place, request and result."""
    out = tmp_path_factory.mktemp("int8") / "bundle"
    request = [
        "export", f"{shop}/m.py:cnn", "--target", "onnxruntime", "--scheme", "w8a8",
        "--scheme", "fp32", "--calib", f"{shop}/pictures.npz", "--no-bench", "--json",
    ]  # fmt: skip
    done = run_here(*request, "-o", out)
    assert done.code == 0, done.err
    return out, request, done
