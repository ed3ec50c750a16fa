"""Apple's quantizer, as its guide calls it, and what is written of it is what it answered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekit import engines

# In a process of its own: coremltools warns of the versions beside it, and torch of this path.
_MAKE = """
import json, sys
from pathlib import Path
import torch
from torch import nn
from edgekit import engines
from edgekit.compress.graph import canonical
from edgekit.engines.coremltools import _decompose, _quantized
from edgekit.errors import UnsupportedError
from edgekit.signature import Signature, TensorSpec

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.gate, self.last = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)
    def forward(self, x):
        x = self.a(x).relu()
        y = nn.functional.silu(self.b(x))
        y = y * nn.functional.hardsigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        return self.last((x + y).mean((2, 3)))

torch.manual_seed(0)
image = torch.randn(1, 3, 16, 16)
program = canonical(torch.export.export(Net().eval(), (image,)))
rows = [(torch.randn(1, 3, 16, 16),) for _ in range(8)]
settings = engines.find("coremltools").defaults
answer = {"kinds": [], "steps": [], "wrong": 0.0}
with torch.no_grad():
    apples = _quantized(program, rows, settings)
    answer["kinds"] = sorted({type(m).__name__ for m in apples.children()})
    right = [apples(*row)[0] for row in rows]
    plain = program.module()
    answer["wrong"] = max(float((plain(*r) - y).abs().max()) for r, y in zip(rows, right))
    for signed in (False, True):
        again = _quantized(program, rows, settings)
        _decompose(again, signed=signed)
        flat = torch.export.export(again, (image,)).module()
        answer["steps"].append(max(
            float((flat(*row)[0] - y).abs().max()) for row, y in zip(rows, right)
        ))
        answer[f"points_{signed}"] = sorted({
            n.args[2] for n in flat.graph.nodes if "quantize_per_tensor" in str(n.target)
        })
norm = canonical(torch.export.export(nn.LayerNorm(4).eval(), (torch.zeros(1, 4),)))
one = Signature((TensorSpec("x", (1, 4)),), (TensorSpec("y", (1, 4)),))
try:
    engines.quantize("coremltools", norm, [(torch.ones(1, 4),)], one, "openvino", Path("no.xml"))
except UnsupportedError as error:
    answer["refused"] = error.message
Path(sys.argv[1], "answer.json").write_text(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    missing = [p for p, v in engines.installed(engines.find("coremltools")).items() if v is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed; the extra dev has it")
    folder: Path = tmp_path_factory.mktemp("apple")
    command = [sys.executable, "-W", "ignore", "-c", _MAKE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    return found


@pytest.mark.runtime
def test_apples_own_layers_hold_the_weights(answer: dict[str, Any]) -> None:
    assert answer["kinds"] == ["AdaptiveAvgPool2d", "ConvReLU2d", "Linear", "QuantizedConvAct2d"]
    assert 0 < answer["wrong"] < 0.1


@pytest.mark.runtime
def test_integers_in_place_of_quantized_tensors_change_no_answer(answer: dict[str, Any]) -> None:
    assert answer["steps"] == [0.0, 0.0]


@pytest.mark.runtime
def test_zero_points_are_those_of_the_symmetric_scheme(answer: dict[str, Any]) -> None:
    assert answer["points_False"] == [0, 128]
    assert answer["points_True"] == [-128, 0]


@pytest.mark.runtime
def test_a_model_without_a_layer_that_it_knows_is_refused(answer: dict[str, Any]) -> None:
    assert "'coremltools' found nothing to quantize" in answer["refused"]
