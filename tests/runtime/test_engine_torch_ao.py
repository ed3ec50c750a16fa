"""torch's own quantizer for phones: what it writes is what it computes, clamps of pictures too."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import engines
from edgekit.compress.graph import canonical
from edgekit.engines._layers import layered
from edgekit.engines.torch_ao import _mapping
from edgekit.errors import UnsupportedError
from edgekit.runtime.session import open_session
from edgekit.signature import Signature, TensorSpec
from edgekit.targets import find

pytestmark = [pytest.mark.runtime, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SHAPE = (1, 3, 12, 12)
SIGNATURE = Signature((TensorSpec("x", SHAPE),), (TensorSpec("y", (1, 5)),))


class Net(nn.Module):
    """ReLU6, hard-swish, squeeze-and-excite, a sum, and a layer behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.gate, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self.stem(x))
        y = nn.functional.hardswish(self.deep(x))
        y = y * torch.sigmoid(self.gate(nn.functional.adaptive_avg_pool2d(y, 1)))
        result: torch.Tensor = self.head(nn.functional.adaptive_max_pool2d(x + y, 1).flatten(1))
        return result


@pytest.fixture(scope="module")
def given() -> tuple[nn.Module, Any, list[tuple[torch.Tensor]]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, feeds = Net().eval(), [(torch.randn(SHAPE),) for _ in range(16)]
    return net, canonical(torch.export.export(net, feeds[0], strict=False)), feeds


def answers(path: Path, feeds: list[tuple[torch.Tensor]]) -> np.ndarray[Any, Any]:
    session = open_session("torch-mobile", path, SIGNATURE)
    found = np.stack([session.run({"x": x.numpy()})["y"] for (x,) in feeds])
    session.close()
    return found


def test_the_file_computes_what_its_quantizer_means(given: Any, tmp_path: Path) -> None:
    """Against torch's reference of the same quantization: float layers between conversions."""
    from torch.ao.quantization.quantize_fx import convert_to_reference_fx, prepare_fx

    net, program, feeds = given
    settings = engines.find("torch-ao").defaults
    before = torch.backends.quantized.engine
    path = tmp_path / "a.ptl"
    engines.quantize("torch-ao", program, feeds, SIGNATURE, "torch-mobile", path)
    assert torch.backends.quantized.engine == before
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        prepared = prepare_fx(layered(program).eval(), _mapping(settings), feeds[0])
        for feed in feeds:
            prepared(*feed)
        reference = convert_to_reference_fx(prepared)
        right = np.stack([reference(*feed)[0].numpy() for feed in feeds])
        exact = np.stack([net(*feed).numpy() for feed in feeds])
    got = answers(path, feeds)
    steps = np.unique(np.round(got, 6))
    step = float(np.diff(steps).min())
    assert np.abs(got - right).max() < 2.5 * step  # 46 for pictures that are mixed up
    assert 10 * np.log10((exact**2).sum() / ((exact - got) ** 2).sum()) > 25
    again = tmp_path / "b.ptl"
    engines.quantize("torch-ao", program, feeds, SIGNATURE, "torch-mobile", again)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("by_channel", "scales"), [(True, {5, 8}), (False, {1})])
def test_weights_have_a_scale_for_every_channel_or_one(
    given: Any, tmp_path: Path, by_channel: bool, scales: set[int]
) -> None:
    _, program, feeds = given
    path, settings = tmp_path / "a.ptl", {"per_channel": by_channel}
    engines.quantize("torch-ao", program, feeds, SIGNATURE, "torch-mobile", path, settings)
    target = find("torch-mobile")
    stored = target.stored(path)
    assert {len(s.scale) for s in stored if s.kind == "weight"} == (scales if by_channel else set())
    assert len([s for s in stored if s.kind == "activation"]) >= 6
    placement = target.inspect(path)
    # 216 + 72 + 64 + 40 weights of the four layers.
    assert placement.bytes_by_dtype["int8"] == 392
    assert placement.ops["aten::permute"] == 2  # around the one clamp


def test_a_model_without_a_layer_that_it_knows_is_refused(tmp_path: Path) -> None:
    program = canonical(torch.export.export(nn.Softsign().eval(), (torch.zeros(1, 4),)))
    one = Signature((TensorSpec("x", (1, 4)),), (TensorSpec("y", (1, 4)),))
    feeds = [(torch.ones(1, 4),)]
    with pytest.raises(UnsupportedError, match="'torch-ao' found nothing to quantize"):
        engines.quantize("torch-ao", program, feeds, one, "torch-mobile", tmp_path / "a.ptl")
