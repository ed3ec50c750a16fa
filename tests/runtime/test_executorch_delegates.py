"""ExecuTorch through Vulkan and Core ML: what the file holds, and that no more is claimed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgekit import Model
from edgekit.artifact import Store
from edgekit.errors import BadData
from edgekit.export import ExportRequest, export_bundle
from edgekit.signature import Signature, TensorSpec
from edgekit.structure import only_by_structure
from edgekit.targets import find, worker

pytestmark = pytest.mark.runtime

# An operator that the delegate has none for, and the words of the gate that finds it outside.
PLANTED = {"vulkan": (lambda x: torch.cumsum(x, 1), "aten::cumsum.out runs outside of Vulkan")}
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


@pytest.mark.parametrize("delegate", [pytest.param("vulkan", marks=pytest.mark.slow), "coreml"])
def test_a_delegate_holds_half_precision_and_nothing_claims_that_it_ran(
    delegate: str, tmp_path: Path
) -> None:
    if only_by_structure(f"executorch:{delegate}") is None:
        pytest.skip("the ExecuTorch of this machine runs it")
    torch.manual_seed(0)
    made = export(delegate, tmp_path, Net(), require_delegate=True)
    (row,) = made.document["artifacts"]
    assert row["id"] == f"executorch-fp16-{delegate}"
    assert (row["status"], row["verification"], row["parity"]) == ("ok", "structural", None)
    gates = {g["name"]: g["passed"] for g in made.document["gates"]}
    assert (gates["parity"], gates["delegate"], gates["weights"]) == (None, True, True)
    held = row["placement"]["bytes_by_dtype"]
    assert held["float16"] == 2 * sum(p.numel() for p in Net().parameters())
    assert "float32" not in held

    file = tmp_path / "bundle" / row["path"]
    signature = Signature((TensorSpec("x", (1, 3, 16, 16)),), (TensorSpec("y", (1, 4)),))
    target: Any = find(f"executorch:{delegate}")
    task = {"op": "structure", "artifact": str(file), "signature": signature.to_json()}
    answers = worker.run(
        f"executorch:{delegate}",
        [{**task, "scheme": "fp16"}, {**task, "scheme": "fp32"}],
    )
    assert all(holds for _, holds, _ in answers[0]["findings"])
    failed = {name for name, holds, _ in answers[1]["findings"] if not holds}
    assert failed == {"precision", "constants"}
    # A bare file is read for what it is; read for another delegate, it is refused.
    assert find("executorch").inspect(file) == target.inspect(file)
    other = find("executorch:" + ("coreml" if delegate == "vulkan" else "vulkan"))
    with pytest.raises(BadData, match="it delegates to"):
        other.inspect(file)
    damaged = tmp_path / "damaged.pte"
    damaged.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(BadData):
        target.inspect(damaged)


def test_an_operator_outside_of_the_delegate_fails_the_gate(tmp_path: Path) -> None:
    planted, words = PLANTED["vulkan"]
    made = export("vulkan", tmp_path, Net(planted), require_delegate=True, require_verified=True)
    (row,) = made.document["artifacts"]
    assert made.exit_code == 1 and row["status"] == "failed"
    assert f"1 of 7 operators run outside of vulkan, the first: {words}" in row["reason"]
    assert "gate verified: structural, limit runtime" in row["reason"]
    assert not (tmp_path / "bundle").exists()
