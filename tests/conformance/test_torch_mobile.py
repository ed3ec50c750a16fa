"""PyTorch Mobile's own: what its files hold, and that its loader is given none that ends it."""

from __future__ import annotations

import dataclasses
import io
import pickle
import random
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgekit.compress.graph import canonical, compute_nodes, graph_module
from edgekit.compress.plan import QuantPlan
from edgekit.compress.precision import find_units, keep_float
from edgekit.compress.quantize import quantize
from edgekit.compress.render import render
from edgekit.errors import BadData, UnsupportedError
from edgekit.runtime.session import open_session, read_signature
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import find
from edgekit.targets._stored import compare_stored

pytestmark = pytest.mark.runtime

TARGET = find("torch-mobile")
SHAPE = (1, 3, 9, 9)


class Net(nn.Module):
    """A pad on one side, clamps of all kinds, squeeze-excite, a sum and a head that pools."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.gate, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self.stem(functional.pad(x, (0, 1, 0, 1))))
        y = self.middle(x).clamp(0, 0.25)
        y = y * torch.sigmoid(self.gate(functional.adaptive_avg_pool2d(y, 1)))
        x = torch.relu(x + self.last(y))
        result: torch.Tensor = self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return result


@dataclasses.dataclass(frozen=True)
class Made:
    """A network with its plan, and the file made of it."""

    program: torch.export.ExportedProgram
    plan: QuantPlan
    feeds: list[tuple[torch.Tensor]]
    signature: Signature
    path: Path

    def convert(self, plan: QuantPlan, path: Path) -> Path:
        TARGET.convert(self.program, plan, self.signature, path)
        return path

    def off(self, plan: QuantPlan, path: Path) -> float:
        """The largest difference to the plan's own evaluation in float64."""
        module = render(self.program, plan, "fake").double()
        session = open_session("torch-mobile", path, self.signature)
        with torch.no_grad():
            found = [
                np.abs(session.run({"x": x.numpy()})["y"] - module(x.double()).numpy()).max()
                for (x,) in self.feeds
            ]
        session.close()
        return float(max(found))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, feeds = Net().eval(), [(2 * torch.randn(SHAPE),) for _ in range(16)]
    program = canonical(torch.export.export(net, feeds[0], strict=False))
    plan = quantize(program, feeds)
    signature = Signature((TensorSpec("x", SHAPE),), (TensorSpec("y", (1, 5)),))
    path = tmp_path_factory.mktemp("net") / "net.ptl"
    made = Made(program, plan, feeds, signature, path)
    made.convert(plan, path)
    return made


def test_answers_are_the_plans_to_the_bit(made: Made) -> None:
    assert made.off(made.plan, made.path) < 1e-6
    stored = [dataclasses.asdict(s) for s in TARGET.stored(made.path)]
    assert not compare_stored(made.program, made.plan, stored)


def test_clamps_go_into_kernels_and_only_gates_pool_in_float(made: Made) -> None:
    placement = TARGET.inspect(made.path)
    assert placement.ops == {
        "aten::avg_pool2d": 1,
        "aten::constant_pad_nd": 1,
        "aten::dequantize": 2,
        "aten::quantize_per_tensor": 2,
        "aten::reshape": placement.ops["aten::reshape"],
        "quantized::add": 1,
        "quantized::conv2d": 4,
        "quantized::linear": 2,
        "quantized::mul": 1,
        "quantized::sigmoid": 1,
    }
    assert placement.float_ops == 1
    why = {r.operator: r.why for r in placement.reasons if r.operator == "aten::avg_pool2d"}
    assert why == {"aten::avg_pool2d": "the kernel on integers gives no scale but its input's"}


def test_a_clamp_of_pictures_by_itself(tmp_path: Path) -> None:
    """Integers that go beyond the lower limit. torch's kernel mixes up pictures here by itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardtanh(0.05, 0.4), nn.Conv2d(8, 5, 3)).eval()
        feeds = [(torch.randn(1, 3, 9, 9),) for _ in range(8)]
    program = canonical(torch.export.export(net, feeds[0], strict=False))
    plan = quantize(program, feeds)
    signature = Signature((TensorSpec("x", (1, 3, 9, 9)),), (TensorSpec("y", (1, 5, 5, 5)),))
    made = Made(program, plan, feeds, signature, tmp_path / "net.ptl")
    made.convert(plan, made.path)
    assert "aten::hardtanh" in TARGET.inspect(made.path).ops
    assert made.off(plan, made.path) < 1e-6


def test_a_process_writes_the_same_bytes_again(made: Made, tmp_path: Path) -> None:
    again = made.convert(made.plan, tmp_path / "other.ptl")
    assert again.read_bytes() == made.path.read_bytes()
    names = zipfile.ZipFile(made.path).namelist()
    assert not [n for n in names if "/code/" in n or "debug" in n or "traced" in n]
    assert b"mangle" not in made.path.read_bytes()


def test_a_pad_before_a_layer_in_float_stays(made: Made, tmp_path: Path) -> None:
    module = graph_module(made.program)
    stem = next(compute_nodes(module)).name
    units = [u for u in find_units(module, made.plan) if stem in u.nodes]
    kept = keep_float(module, made.plan, units)
    path = made.convert(kept, tmp_path / "kept.ptl")
    assert made.off(kept, path) < 1e-5
    assert TARGET.inspect(path).ops["aten::_convolution"] >= 1


def test_the_process_keeps_its_engine(made: Made) -> None:
    before = torch.backends.quantized.engine
    session = open_session("torch-mobile", made.path, made.signature)
    session.run({"x": np.zeros(SHAPE, np.float32)})
    session.close()
    assert torch.backends.quantized.engine == before != "qnnpack"


# -- files that torch's loader should not see -----------------------------------------------------


def _rewritten(path: Path, out: Path, change: Callable[[str, bytes], bytes]) -> Path:
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return out


def _edited(part: str, old: bytes, new: bytes) -> Callable[[str, bytes], bytes]:
    def change(name: str, data: bytes) -> bytes:
        if not name.endswith(part):
            return data
        assert old in data
        return data.replace(old, new, 1)

    return change


def _huge_memo(name: str, data: bytes) -> bytes:
    return data[:-1] + b"r\xff\xff\xff\x7f." if name.endswith("data.pkl") else data


class _Command:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def _command(name: str, data: bytes) -> bytes:
    return pickle.dumps(_Command(), 2) if name.endswith("data.pkl") else data


CODE = "bytecode.pkl"
HOSTILE: dict[str, tuple[Callable[[str, bytes], bytes], type[Exception], str]] = {
    # Each of the first two ended the process in torch 2.13's own loader.
    "another-self": (_edited(CODE, b"module.Modelq", b"module.Mode1q"), BadData, "takes"),
    "not-a-tensor": (
        _edited(CODE, b"X\x04\x00\x00\x00type", b"X\x04\x00\x00\x00tipe"),
        BadData,
        "type",
    ),
    "an-operator": (_edited(CODE, b"::reshape", b"::reshapf"), UnsupportedError, "reshapf"),
    "a-family": (_edited(CODE, b"aten::resh", b"prim::resh"), UnsupportedError, "no model needs"),
    "memory": (_huge_memo, BadData, "remembers"),
    "command": (_command, BadData, "print"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(made: Made, tmp_path: Path, name: str) -> None:
    change, error, said = HOSTILE[name]
    path = _rewritten(made.path, tmp_path / "bad.ptl", change)
    with pytest.raises(error, match=said):
        open_session("torch-mobile", path, made.signature)


def test_other_torchscript_is_refused(made: Made, tmp_path: Path) -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if bool(x.sum() > 0):
                return x + 1
            return x - 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        branch = torch.jit.script(Branch())
        branch.save(str(tmp_path / "full.pt"))
        branch._save_for_lite_interpreter(str(tmp_path / "branch.ptl"))
    with pytest.raises(BadData, match="no bytecode"):
        open_session("torch-mobile", tmp_path / "full.pt", made.signature)
    with pytest.raises(UnsupportedError, match="only straight code"):
        open_session("torch-mobile", tmp_path / "branch.ptl", made.signature)


def test_a_file_of_another_states_no_shapes_and_runs_by_order(tmp_path: Path) -> None:
    path = tmp_path / "other.ptl"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3))
        traced._save_for_lite_interpreter(str(path))
    with pytest.raises(UnsupportedError, match="shapes"):
        read_signature("torch-mobile", path)
    one, two = TensorSpec("a", (1, 3)), TensorSpec("b", (1, 2))
    session = open_session("torch-mobile", path, Signature((one,), (two,)))
    assert session.run({"a": np.ones((1, 3), np.float32)})["b"].shape == (1, 2)
    session.close()
    with pytest.raises(BadData):
        open_session("torch-mobile", path, Signature((one, one), (two,)))


FUZZ = """
import sys, warnings
from pathlib import Path
import numpy as np
from edgekit.errors import BadData, UnsupportedError
from edgekit.runtime.session import open_session, read_signature
warnings.simplefilter("ignore")
whole, *others = sorted(Path(sys.argv[1]).glob("*.ptl"))
signature = read_signature("torch-mobile", whole)
refused = 0
for path in others:
    try:
        session = open_session("torch-mobile", path, signature)
        session.run({"x": np.ones((1, 3, 9, 9), np.float32)})
    except (BadData, UnsupportedError):
        refused += 1
print(refused)
"""


@pytest.mark.slow
def test_sec_08_damage_never_ends_the_process(made: Made, tmp_path: Path) -> None:
    """Bytes of the pickles changed under a right checksum, files cut, bytes changed anywhere."""
    (tmp_path / "0.ptl").write_bytes(made.path.read_bytes())
    rng = random.Random(0)
    whole = made.path.read_bytes()
    for i in range(1, 41):
        path = tmp_path / f"{i}.ptl"

        def change(name: str, data: bytes) -> bytes:
            if not name.endswith(("bytecode.pkl", "data.pkl")):
                return data
            edited = bytearray(data)
            edited[rng.randrange(len(edited))] = rng.randrange(256)
            return bytes(edited)

        if i % 4:
            _rewritten(made.path, path, change)
        else:
            edited = bytearray(whole)
            edited[rng.randrange(len(edited))] ^= 1 << rng.randrange(8)
            path.write_bytes(edited if i % 8 else whole[: rng.randrange(len(whole))])
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 20


def test_an_archive_entry_is_no_way_out(made: Made, tmp_path: Path) -> None:
    """A tensor that refers to bytes outside of its own folder."""
    data = io.BytesIO()
    with zipfile.ZipFile(made.path) as source, zipfile.ZipFile(data, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                content = content.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x00.", 1)
            target.writestr(name, content)
    (tmp_path / "out.ptl").write_bytes(data.getvalue())
    with pytest.raises(BadData, match="no tensor's bytes"):
        open_session("torch-mobile", tmp_path / "out.ptl", made.signature)
