"""ExecuTorch: what runs outside of XNNPACK is told, curves are integers, damaged files refused."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.arithmetic import NO_OTHERS
from edgekit.compress.dynamic import as_computed
from edgekit.compress.graph import canonical, graph_module, program_digest, save_program
from edgekit.compress.plan import QuantPlan
from edgekit.compress.quantize import quantize
from edgekit.compress.weights import quantize_weights
from edgekit.errors import BadData
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import find, worker

pytestmark = pytest.mark.runtime

TARGET = find("executorch")
CURVES = {
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "hard-swish": nn.Hardswish(),
    "gelu": nn.GELU(),
    "leaky-relu": nn.LeakyReLU(0.1),
}


class Curved(nn.Module):
    """Every curve between two convolutions, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(len(CURVES) + 1))
        self.curves = nn.ModuleList(CURVES.values())
        with torch.no_grad():
            for layer in self.layers:
                layer.weight *= 4  # type: ignore[operator]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer, curve in zip(self.layers, self.curves, strict=False):
            x = curve(layer(x))
        y: torch.Tensor = self.layers[-1](x)
        return y


class Summed(nn.Module):
    """A layer and a running sum, for which XNNPACK has no operator."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(self.layer(x), 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Three models converted, run and asked, in one worker process."""
    torch.manual_seed(0)
    tasks: list[dict[str, Any]] = []
    names = []
    for name, module, shape, scheme in (
        ("curved", Curved(), (1, 4, 8, 8), "w8a8"),
        ("summed", Summed(), (1, 8), "fp32"),
        (
            "depthwise",
            nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1)),
            (1, 4, 8, 8),
            "w8a8-dyn",
        ),
    ):
        folder = tmp_path_factory.mktemp(name)
        tasks += _tasks(folder, module.eval(), shape, scheme)
        names.append(name)
    results = worker.run("executorch", tasks)
    each = len(results) // len(names)
    return {name: results[each * i : each * (i + 1)] for i, name in enumerate(names)}


def _tasks(
    folder: Path, module: nn.Module, shape: tuple[int, ...], scheme: str
) -> list[dict[str, Any]]:
    feeds = [(torch.randn(*shape),) for _ in range(8)]
    program = canonical(torch.export.export(module, feeds[0], strict=False))
    plans: dict[str, Callable[[], QuantPlan]] = {
        "w8a8": lambda: quantize(program, feeds),
        "w8a8-dyn": lambda: quantize_weights(program, scheme),
        "fp32": lambda: QuantPlan("fp32", program_digest(program)),
    }
    with torch.no_grad():
        result = tuple(module(*feeds[0]).shape)
    save_program(program, folder / "program.pt2")
    (folder / "plan.json").write_text(json.dumps(plans[scheme]().to_json()))
    np.savez(folder / "feeds.npz", x=np.stack([f[0].numpy() for f in feeds]))
    signature = Signature((TensorSpec("x", shape),), (TensorSpec("y", result),)).to_json()
    out = str(folder / "model.pte")
    return [
        {
            "op": "convert",
            "program": str(folder / "program.pt2"),
            "plan": str(folder / "plan.json"),
            "signature": signature,
            "out": out,
        },
        {
            "op": "infer",
            "artifact": out,
            "signature": signature,
            "feeds": str(folder / "feeds.npz"),
            "outputs": str(folder / "answers.npz"),
        },
        {"op": "inspect", "artifact": out},
        {"op": "stored", "artifact": out},
    ]


def test_functions_of_one_value_compute_on_integers(made: dict[str, Any]) -> None:
    _, ran, inspected, _ = made["curved"]
    assert ran["n"] == 8
    placement = inspected["placement"]
    assert placement["float_ops"] == 0, placement["first_fallback"]
    assert placement["undelegated_ops"] == 0
    kinds = {"Sigmoid", "Tanh", "Hardswish", "Gelu", "LeakyReLU"}
    assert kinds <= set(placement["ops"])
    assert placement["ops"]["Convert"] == 2  # the border alone
    assert placement["layers"] == {"integer": len(CURVES) + 1}
    assert placement["ops_by_dtype"]["convert"] == 2


def test_what_runs_outside_of_xnnpack_is_named(made: dict[str, Any]) -> None:
    _, _, inspected, _ = made["summed"]
    placement = inspected["placement"]
    assert placement["undelegated_ops"] == 1
    assert placement["undelegated"] == {"aten::cumsum.out": 1}
    assert placement["first_undelegated"] == "aten::cumsum.out runs outside of XNNPACK"
    assert placement["first_fallback"] == placement["first_undelegated"]
    assert placement["layers"] == {"float": 1}


def test_depthwise_weights_stay_float_where_inputs_do(made: dict[str, Any]) -> None:
    _, _, inspected, stored = made["depthwise"]
    assert [s["kind"] for s in stored["stored"]] == ["weight"]
    assert inspected["placement"]["bytes_by_dtype"]["int8"] == 24
    module = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1)).eval()
    program = canonical(torch.export.export(module, (torch.randn(1, 4, 8, 8),), strict=False))
    plan = quantize_weights(program, "w8a8-dyn")
    computed = as_computed(graph_module(program), plan, TARGET)
    assert [d.per for d in computed.dynamic] == ["pixel"]
    assert [reason for _, reason in computed.kept_float][-1:] == [NO_OTHERS]
    assert len(computed.edges) == len(plan.edges) - 1


OPEN = """
import sys
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.runtime.session import read_signature

for path in map(Path, sys.argv[1:]):
    try:
        print(path.stem, 0, read_signature("executorch", path).inputs[0].shape)
    except EdgekitError as error:
        print(path.stem, error.exit_code, path.name in error.message)
"""


def test_what_the_runtime_cannot_load_is_refused_in_words(
    made: dict[str, Any], tmp_path: Path
) -> None:
    """In a process of its own: what the native reader does to a file is no promise of ours."""
    whole = Path(made["curved"][0]["files"][0]).read_bytes()
    summed = Path(made["summed"][0]["files"][0]).read_bytes()
    graph = whole.index(b"XH00")
    damaged = {
        "empty": b"",
        "text": b"not a program at all",
        "cut": whole[: len(whole) // 2],
        "half": whole[: graph + 40],
        "magic": whole[:graph] + b"XX00" + whole[graph + 4 :],
    }
    others = {
        "whole": whole,
        "operator": summed.replace(b"aten::cumsum", b"aten::cumsuq"),
        "delegate": whole.replace(b"XnnpackBackend", b"XnnpackBackenq"),
    }
    paths = []
    for name, data in (damaged | others).items():
        paths.append(tmp_path / f"{name}.pte")
        paths[-1].write_bytes(data)
    for path in paths[: len(damaged)]:
        with pytest.raises(BadData, match=path.stem):
            TARGET.inspect(path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OPEN, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.splitlines() == [
        *(f"{name} 7 True" for name in damaged),
        "whole 0 (1, 4, 8, 8)",
        "operator 5 True",
        "delegate 5 True",
    ]


SPEAK = """
import sys
from pathlib import Path

import numpy as np

from edgekit.runtime.session import open_session
from edgekit.signature import Signature, TensorSpec

spec = Signature((TensorSpec("x", (1, 4, 8, 8)),), (TensorSpec("y", (1, 4, 8, 8)),))
session = open_session("executorch", Path(sys.argv[1]), spec)
session.run({"x": np.zeros((1, 4, 8, 8), np.float32)})
"""


def test_a_session_says_nothing_on_the_terminal(made: dict[str, Any]) -> None:
    path = made["curved"][0]["files"][0]
    done = subprocess.run(
        [sys.executable, "-c", SPEAK, path], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.slow
def test_leaving_passes_out_changes_no_byte(tmp_path: Path) -> None:
    """`needed_passes` against all of the vendor's passes, each in a process of its own."""
    code = """
        import contextlib, hashlib, sys
        from pathlib import Path

        import torch

        from edgekit._torchvision import torchvision
        from edgekit.compress.graph import canonical
        from edgekit.compress.quantize import quantize
        from edgekit.signature import Signature, TensorSpec
        from edgekit.targets import _executorch_partition, find

        if sys.argv[1] == "all":
            _executorch_partition.needed_passes = contextlib.nullcontext
        torch.manual_seed(0)
        module = torchvision().models.mobilenet_v3_small(width_mult=0.5).eval()
        x = torch.randn(1, 3, 32, 32)
        program = canonical(torch.export.export(module, (x,), strict=False))
        plan = quantize(program, [(x,)])
        ends = TensorSpec("x", (1, 3, 32, 32)), TensorSpec("y", (1, 1000))
        find("executorch").convert(program, plan, Signature(ends[:1], ends[1:]), Path(sys.argv[2]))
    """
    files = []
    for passes in ("needed", "all"):
        files.append(tmp_path / f"{passes}.pte")
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
        subprocess.run([*command, passes, str(files[-1])], check=True, capture_output=True)
    assert files[0].read_bytes() == files[1].read_bytes()
