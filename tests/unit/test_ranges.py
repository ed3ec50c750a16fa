"""Ranges by squared error: narrower where that loses less, and whole where it must be."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.compress.graph import canonical
from edgekit.compress.plan import Edge, QuantPlan
from edgekit.compress.quantize import Ranges, quantize
from edgekit.compress.ranges import RangeObserver, least_error_range

pytestmark = pytest.mark.usefixtures("one_thread")


def heavy(count: int, seed: int = 0) -> torch.Tensor:
    """Values most of which are small and a few far away."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, generator=generator) ** 3


def loss(values: torch.Tensor, low: float, high: float, steps: int = 255) -> float:
    """Mean squared error of values quantized over a range."""
    scale = (high - low) / steps
    zero = round(-low / scale)
    stored = torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, steps)
    return float((stored - values).square().mean())


@pytest.mark.parametrize(("steps", "narrower", "gain"), [(255, 0.99, 0.97), (15, 0.6, 0.5)])
def test_heavy_tails_are_cut_and_that_loses_less(steps: int, narrower: float, gain: float) -> None:
    values, fresh = heavy(20000), heavy(20000, seed=1)
    whole = float(values.min()), float(values.max())
    low, high = least_error_range(values, *whole, steps=steps)
    assert whole[0] < low < 0 < high < whole[1]
    assert high - low < narrower * (whole[1] - whole[0])
    assert loss(values, low, high, steps) < gain * loss(values, *whole, steps)
    assert loss(fresh, low, high, steps) < loss(fresh, *whole, steps)


def test_even_values_keep_their_range() -> None:
    values = torch.linspace(-1, 1, 5001)
    low, high = least_error_range(values, -1.0, 1.0)
    assert low <= -0.97 and high >= 0.97


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_sided_values_keep_their_side(sign: float) -> None:
    values = sign * heavy(5000).abs()
    low, high = least_error_range(values, float(values.min()), float(values.max()), steps=15)
    ends = (low, high) if sign > 0 else (-high, -low)
    assert ends[0] == 0 < ends[1] < float(values.abs().max())


def test_a_range_always_holds_zero() -> None:
    values = torch.linspace(2, 3, 100)
    low, high = least_error_range(values, 2.0, 3.0)
    assert low == 0 and high > 2.5


@pytest.mark.parametrize("value", [0.0, 2.5, -2.5, 1e-45, 3e38])
def test_one_value_throughout_keeps_its_range(value: float) -> None:
    low, high = least_error_range(torch.full((10,), value), value, value)
    assert (low, high) == (min(value, 0.0), max(value, 0.0))


def test_without_values_the_range_stays() -> None:
    assert least_error_range(torch.empty(0), -1.0, 3.0) == (-1.0, 3.0)


def test_many_values_are_searched_by_a_part_of_them() -> None:
    values = heavy(1 << 17)
    whole = float(values.min()), float(values.max())
    assert least_error_range(values, *whole) == least_error_range(values[::2], *whole)


def test_an_observer_keeps_a_part_of_each_sample_and_all_of_the_ends() -> None:
    first, second = (RangeObserver() for _ in range(2))
    big, small = torch.linspace(-5, 5, 10001), torch.tensor([[7.0, -9.0]])
    for observer in (first, second):
        assert observer(big) is big
        observer(small)
    values = first.values()
    assert len(values) < 5000 and values.dtype == torch.float32
    assert bool(torch.isin(values[:-2], big).all()) and values[-2:].tolist() == [7, -9]
    assert (float(first.min_val), float(first.max_val)) == (-9, 7)
    assert torch.equal(values, second.values()), "the same choice every time"
    assert RangeObserver().values().numel() == 0


def test_what_an_observer_keeps_does_not_change_with_the_tensor() -> None:
    observer, value = RangeObserver(), torch.ones(4)
    observer(value)
    value.zero_()
    assert observer.values().tolist() == [1] * 4


def test_inputs_and_outputs_keep_all_that_was_seen() -> None:
    class Tails(nn.Module):
        """Identities, so that every tensor has the input's tails."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
            for layer in (self.first, self.second):
                nn.init.ones_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.second(self.first(x))
            return result

    feeds = [(v[None],) for v in heavy(32 * 45 * 45).reshape(32, 1, 45, 45)]
    program = canonical(torch.export.export(Tails().eval(), feeds[0], strict=False))

    def activations(ranges: Ranges) -> tuple[QuantPlan, list[Edge]]:
        plan = quantize(program, feeds, ranges=ranges)
        return plan, [e for e in plan.edges if e.kind == "activation"]

    (_, whole), (plan, cut) = activations("minmax"), activations("mse")
    assert [e.node for e in whole] == [e.node for e in cut] and len(cut) == 3
    assert cut[0] == whole[0] and cut[2] == whole[2]
    assert cut[1].scale[0] < 0.99 * whole[1].scale[0]
    assert plan.calibration["observer"] == "mse"
