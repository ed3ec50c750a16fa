"""The rounding noise that a plan's floor is measured with."""

from __future__ import annotations

import torch

from edgekit.compress.evaluate import jitter


def test_noise_is_small_seeded_and_alike_for_equal_values() -> None:
    value = torch.linspace(-3, 3, 1001).repeat(2)
    noisy = jitter(value, 1e-3, 0)
    relative = (noisy / value - 1)[value != 0]
    assert 5e-4 < relative.abs().max() <= 1.001e-3 and relative.abs().median() > 2e-4
    assert torch.equal(noisy[:1001], noisy[1001:])
    assert torch.equal(jitter(value, 1e-3, 0), noisy)
    assert not torch.equal(jitter(value, 1e-3, 1), noisy)


def test_a_constant_tensor_tips_as_one() -> None:
    """On a tie some draws send every element up, the others none: no draw splits them."""
    tie = torch.full((1, 4, 8, 8), 2.5)
    ups = {float((jitter(tie, 1e-6, seed) > 2.5).float().mean()) for seed in range(16)}
    assert ups == {0.0, 1.0}
