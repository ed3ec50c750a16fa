"""ExecuTorch: what runs outside of XNNPACK is told, curves are integers, damaged files refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.compress.dynamic import NO_OTHERS, as_computed
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


def test_what_runs_outside_of_xnnpack_is_named(made: dict[str, Any]) -> None:
    _, _, inspected, _ = made["summed"]
    placement = inspected["placement"]
    assert placement["undelegated_ops"] == 1
    assert placement["first_fallback"] == "aten::cumsum.out runs outside of XNNPACK"


def test_depthwise_weights_stay_float_where_inputs_do(made: dict[str, Any]) -> None:
    _, _, inspected, stored = made["depthwise"]
    assert [s["kind"] for s in stored["stored"]] == ["weight"]
    assert inspected["placement"]["bytes_by_dtype"]["int8"] == 24
    module = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 6, 1)).eval()
    program = canonical(torch.export.export(module, (torch.randn(1, 4, 8, 8),), strict=False))
    plan = quantize_weights(program, "w8a8-dyn")
    computed = as_computed(graph_module(program), plan, TARGET)
    assert [d.per for d in computed.dynamic] == ["sample"]
    assert [reason for _, reason in computed.kept_float][-1:] == [NO_OTHERS]
    assert len(computed.edges) == len(plan.edges) - 1


def test_damaged_programs_are_refused_in_words(made: dict[str, Any], tmp_path: Path) -> None:
    """In a process of its own: what the native reader does to one is no promise of ours."""
    [converted, *_] = made["curved"]
    whole = Path(converted["files"][0]).read_bytes()
    graph = whole.index(b"XH00")
    cases = {
        "empty": b"",
        "text": b"not a program at all",
        "cut": whole[: len(whole) // 2],
        "half": whole[: graph + 40],
        "magic": whole[:graph] + b"XX00" + whole[graph + 4 :],
    }
    for name, data in cases.items():
        path = tmp_path / f"{name}.pte"
        path.write_bytes(data)
        with pytest.raises(BadData, match=name):
            TARGET.inspect(path)
        if name not in ("cut", "magic"):
            continue
        code = (
            "import sys; from pathlib import Path\n"
            "from edgekit.errors import EdgekitError\n"
            "from edgekit.runtime.session import read_signature\n"
            "try: read_signature('executorch', Path(sys.argv[1]))\n"
            "except EdgekitError as error: print(error.exit_code, error.message)\n"
        )
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{name}: {done.stderr[-500:]}"
        assert f"{name}.pte" in done.stdout, name
