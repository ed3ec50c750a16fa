"""Every engine, on every target that it serves: its artifact loads, computes and is int8."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekit import engines

# Engines that one other pair of theirs stands for in every run.
SLOW = {("coremltools", "coreml"), ("coremltools", "openvino"), ("inc", "openvino")}
PAIRS = [
    pytest.param(n, t, id=f"{n}-{t}", marks=[pytest.mark.slow] if (n, t) in SLOW else [])
    for n in engines.available()
    for t in engines.find(n).targets
]

# Of the small network below. Measured on these pairs with the versions of constraints.txt: 41 to
# 54 dB; a network left in float gives over 100, one with a wrong scale somewhere under 20.
LOWEST_DB, HIGHEST_DB = 30.0, 80.0

# In a process of its own: converters leave globals behind, and two runtimes may clash.
_MAKE = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
from edgekit import engines, targets
from edgekit.compress.graph import canonical
from edgekit.signature import Signature, TensorSpec

name, target, folder = sys.argv[1:]
torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(),
    nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
).eval()
image = torch.randn(1, 3, 16, 16)
program = canonical(torch.export.export(net, (image,)))
feeds = [(torch.randn(1, 3, 16, 16),) for _ in range(16)]
signature = Signature((TensorSpec("image", (1, 3, 16, 16)),), (TensorSpec("scores", (1, 5)),))
made = targets.find(target)
out = Path(folder) / f"model{made.suffix}"
# Tuning by trial takes a minute and is the benchmark's business.
settings = {"autotune": False} if name == "inc" else {}
files = engines.quantize(name, program, feeds, signature, target, out, settings)
session = targets.open_session(made, out, signature, 1)
right, got = [], []
for _ in range(8):
    image = torch.randn(1, 3, 16, 16)
    right.append(net(image).detach().numpy())
    got.append(session.run({"image": image.numpy()})["scores"])
again = session.run({"image": image.numpy()})["scores"]
right, got = np.stack(right).astype(float), np.stack(got).astype(float)
answer = {
    "files": [str(f) for f in files],
    "sqnr_db": 10 * float(np.log10((right**2).sum() / ((got - right) ** 2).sum())),
    "repeats": bool((again == got[-1]).all()),
    "placement": made.inspect(out).to_json(),
}
Path(folder, "answer.json").write_text(json.dumps(answer))
"""


@pytest.mark.runtime
@pytest.mark.parametrize(("name", "target"), PAIRS)
def test_an_engine_makes_an_int8_artifact_that_runs(name: str, target: str, tmp_path: Path) -> None:
    missing = [p for p, v in engines.installed(engines.find(name)).items() if v is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed; the extra dev has it")
    command = [sys.executable, "-W", "ignore", "-c", _MAKE, name, target, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads((tmp_path / "answer.json").read_text())
    assert all(Path(f).exists() for f in answer["files"])
    assert answer["repeats"]
    assert LOWEST_DB < answer["sqnr_db"] < HIGHEST_DB
    # The weights of all three layers (24 + 9 + 5 filters' worth: 328 numbers) are stored as int8.
    assert answer["placement"]["bytes_by_dtype"]["int8"] >= 328
    # And computed with: a pooling and what stands at the border may be left in float.
    assert answer["placement"]["float_ops"] <= 2
    assert {p.name for p in tmp_path.iterdir()} == {
        *(Path(f).name for f in answer["files"]),
        "answer.json",
    }
