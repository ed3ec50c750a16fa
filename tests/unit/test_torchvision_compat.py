"""torchvision imports and its models run, whichever build of torch is beside it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from edgekit import _torchvision
from edgekit.errors import MissingDependency

SCRIPT = """
import json, sys
import torch
from edgekit._torchvision import _kept, ensure_importable, torchvision

ensure_importable()
imported_early = "torchvision" in sys.modules
ensure_importable()
tv = torchvision()
torch.manual_seed(0)
picture = torch.rand(2, 3, 64, 64)
shapes = {}
with torch.no_grad():
    for name in ("mobilenet_v2", "resnet18"):
        shapes[name] = list(getattr(tv.models, name)(weights=None).eval()(picture).shape)
resized = tv.transforms.functional.resize(picture, [32, 32], antialias=True)
boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
try:
    kept = tv.ops.nms(boxes, torch.tensor([0.5, 0.9]), 0.5).tolist()
except (NotImplementedError, RuntimeError):
    kept = None
print(json.dumps({
    "imported_early": imported_early,
    "defined": len(_kept),
    "has_ops": tv.extension._has_ops(),
    "shapes": shapes,
    "resized": list(resized.shape),
    "nms": kept,
}))
"""


def test_models_and_transforms_run_in_a_fresh_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["shapes"] == {"mobilenet_v2": [2, 1000], "resnet18": [2, 1000]}
    assert facts["resized"] == [2, 3, 32, 32]
    assert not facts["imported_early"]
    # The schemas stand in for the extension exactly where it is missing, and give no answers.
    assert facts["defined"] == (0 if facts["has_ops"] else 1)
    assert facts["nms"] == ([1] if facts["has_ops"] else None)


def test_a_missing_torchvision_names_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingDependency, match="torchvision is not installed") as caught:
        _torchvision.torchvision()
    assert caught.value.hint == "pip install 'edgekit[all]'"
