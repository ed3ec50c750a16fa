"""The rounding of a plan's evaluation: torch's own, bit by bit, in less time."""

from __future__ import annotations

import pytest
import torch

from edgekit.compress.fake import fake_quantize

LIMITS = [(-128, 127), (0, 255), (-127, 127), (-32768, 32767)]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("scale", [0.02, 1 / 3, 1.7e-5, 41.0])
def test_it_is_torchs_own_to_the_bit(scale: float, limits: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(3, 70_001, generator=generator) * scale * 200
    ties = (torch.randint(-300, 300, (3, 70_001), generator=generator) + 0.5) * scale
    ends = torch.tensor([0.0, -0.0, 1e30, -1e30, torch.inf, -torch.inf, -0.4 * scale])
    for zero in (limits[0], 0, limits[1], (limits[0] + limits[1]) // 2):
        for value in (spread, ties, ends, spread.t(), spread[:, ::2], ends[0]):
            right = torch.fake_quantize_per_tensor_affine(value, scale, zero, *limits)
            got = fake_quantize(value, scale, zero, *limits)
            assert torch.equal(got, right)
            assert torch.equal(torch.signbit(got), torch.signbit(right))


def test_memory_layout_is_kept() -> None:
    value = torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last)
    assert fake_quantize(value, 0.1, 0, -128, 127).stride() == value.stride()


def test_what_is_not_a_number_is_not_made_one() -> None:
    assert fake_quantize(torch.tensor([torch.nan]), 0.1, 3, -128, 127).isnan().all()
