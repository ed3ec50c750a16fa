"""ExecuTorch through Vulkan and Core ML: what files hold and mean, and what is claimed of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import Model
from edgekit.artifact import Store
from edgekit.cli.main import main
from edgekit.errors import BadData
from edgekit.export import ExportRequest, export_bundle
from edgekit.signature import Signature, TensorSpec
from edgekit.structure import only_by_structure
from edgekit.targets import find, worker

pytestmark = pytest.mark.runtime

# An operator that the delegate has none for, and the words of the gate that finds it outside.
PLANTED = {
    "vulkan": (lambda x: torch.cumsum(x, 1), "aten::cumsum.out runs outside of Vulkan"),
    "coreml": (torch.asinh, "aten::asinh.out runs outside of Core ML"),
}
PHONES = {"vulkan": "pixel-8", "coreml": "iphone-12"}


class Net(nn.Module):
    """Two layers that hold more than the 64 KiB of constants under which sizes are not judged."""

    def __init__(self, planted: Any = None) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 48, 3), nn.Conv2d(48, 48, 3)
        self.last, self.planted = nn.Linear(48, 4), planted

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3))
        y: torch.Tensor = self.last(x)
        return y if self.planted is None else self.planted(y)


def export(delegate: str, folder: Path, net: nn.Module, **asked: Any) -> Any:
    model = Model(
        net.eval(),
        Signature((TensorSpec("x", (1, 3, 16, 16)),), (TensorSpec("y", (1, 4)),)),
        name="net",
    )
    request = ExportRequest(
        devices=[PHONES[delegate]],
        targets=[f"executorch:{delegate}"],
        out=folder / "bundle",
        bench=False,
        **asked,
    )
    return export_bundle(model, request, store=Store(folder / "store"))


@pytest.mark.parametrize("delegate", ["vulkan", "coreml"])
def test_a_delegate_holds_half_precision_and_no_more_is_claimed_than_was_done(
    delegate: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if only_by_structure(f"executorch:{delegate}") is None:
        pytest.skip("the ExecuTorch of this machine runs it")
    torch.manual_seed(0)
    made = export(delegate, tmp_path, Net(), require_delegate=True)
    (row,) = made.document["artifacts"]
    assert row["id"] == f"executorch-fp16-{delegate}"
    gates = {g["name"]: g["passed"] for g in made.document["gates"]}
    assert (row["status"], gates["delegate"], gates["weights"]) == ("ok", True, True)
    if delegate == "coreml":  # evaluated as Core ML's own packages are
        assert (row["verification"], gates["parity"]) == ("emulated", True)
        assert row["parity"]["against"] == "plan" and row["parity"]["sqnr_db"] > 60
    else:
        assert (row["verification"], row["parity"], gates["parity"]) == ("structural", None, None)
    held = row["placement"]["bytes_by_dtype"]
    assert held["float16"] == 2 * sum(p.numel() for p in Net().parameters())
    assert "float32" not in held

    file = tmp_path / "bundle" / row["path"]
    signature = Signature((TensorSpec("x", (1, 3, 16, 16)),), (TensorSpec("y", (1, 4)),))
    target: Any = find(f"executorch:{delegate}")
    task = {"op": "structure", "artifact": str(file), "signature": signature.to_json()}
    answers = worker.run(
        f"executorch:{delegate}",
        [{**task, "scheme": scheme} for scheme in ("fp16", "fp32", "w8a8")],
    )
    assert all(holds for _, holds, _ in answers[0]["findings"])
    failed = {name for name, holds, _ in answers[1]["findings"] if not holds}
    assert failed == {"precision", "constants"}
    failed = {name for name, holds, _ in answers[2]["findings"] if not holds}
    assert failed >= {"scheme", "precision"}
    assert (answers[0]["unemulated"] is None) == (delegate == "coreml")
    # A bare file is read for what it is; read for another delegate, it is refused.
    assert find("executorch").inspect(file) == target.inspect(file)
    other = find("executorch:" + ("coreml" if delegate == "vulkan" else "vulkan"))
    with pytest.raises(BadData, match="it delegates to"):
        other.inspect(file)
    if delegate == "coreml":
        _answers_come_from_the_file(file, target, signature, tmp_path)
    damaged = tmp_path / "damaged.pte"
    damaged.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(BadData):
        target.inspect(damaged)
    (refused,) = worker.run(
        f"executorch:{delegate}", [{**task, "artifact": str(damaged), "scheme": "fp16"}]
    )
    assert isinstance(refused["error"], BadData)
    _verify_says_no_more(tmp_path / "bundle", row["verification"], capsys)


def _verify_says_no_more(bundle: Path, verification: str, capsys: Any) -> None:
    """`edgekit verify` comes to what the export said, and believes no manifest."""
    capsys.readouterr()
    assert main(["verify", str(bundle), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["artifacts"]
    assert found["verification"] == verification != "runtime"
    assert (found["parity"] is None) == (verification == "structural")
    manifest = bundle / "manifest.json"
    stated = manifest.read_text()
    delegate = json.loads(stated)["artifacts"][0]["delegate"]
    for was, said, code in (
        ('"scheme":"fp16"', '"scheme":"fp32"', 1),
        (f'"delegate":"{delegate}"', '"delegate":"gpu"', 6),
    ):
        assert was in stated
        manifest.write_text(stated.replace(was, said))
        assert main(["verify", str(bundle), "--json"]) == code
    manifest.write_text(stated)


def test_asking_for_a_delegate_loads_no_runtime() -> None:
    asked = "import sys; from edgekit.runtime.session import unavailable\n"
    asked += "assert unavailable('executorch:vulkan'); assert 'executorch' not in sys.modules"
    subprocess.run([sys.executable, "-c", asked], check=True)


def _answers_come_from_the_file(
    file: Path, target: Any, signature: Signature, folder: Path
) -> None:
    """Weights that are wrong in the package itself give wrong answers."""
    torch.manual_seed(0)
    net = Net().eval()
    x = torch.randn(1, 3, 16, 16)
    right = net(x).detach().numpy()
    weights = net.last.weight.detach().numpy().astype("float16").tobytes()
    data = file.read_bytes()
    assert data.count(weights) == 1
    wrong = folder / "wrong.pte"
    wrong.write_bytes(data.replace(weights, bytes(len(weights))))
    answers = []
    for one in (file, wrong):
        session = target.open_session(one, signature, 1)
        answers.append(session.run({"x": x.numpy()})["y"])
        session.close()
    np.testing.assert_allclose(answers[0], right, atol=2e-3)
    np.testing.assert_allclose(answers[1], net.last.bias.detach().numpy()[None], atol=2e-3)
    assert abs(answers[1] - right).max() > 0.02


@pytest.mark.parametrize("delegate", ["vulkan", pytest.param("coreml", marks=pytest.mark.slow)])
def test_an_operator_outside_of_the_delegate_fails_the_gate(delegate: str, tmp_path: Path) -> None:
    planted, words = PLANTED[delegate]
    net = Net(planted)
    made = export(delegate, tmp_path, net, require_delegate=True, require_verified=True)
    (row,) = made.document["artifacts"]
    assert made.exit_code == 1 and row["status"] == "failed"
    assert f"operators run outside of {delegate}, the first: {words}" in row["reason"]
    assert "gate verified: structural, limit runtime" in row["reason"]
    assert not (tmp_path / "bundle").exists()
