"""Rounding a layer's weights together: never a loss, and what must stay as it is."""

from __future__ import annotations

import itertools

import pytest
import torch

from edgekit.compress.rounding import Moments, Rounded, mean_moments, round_layer

pytestmark = pytest.mark.usefixtures("one_thread")


def correlated(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """Inputs [rows, width] that mostly follow one direction, about zero."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    own = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return common + 0.3 * own


def moments(x: torch.Tensor, y: torch.Tensor | None = None) -> Moments:
    """Second moments of one group's inputs [rows, d]."""
    y = x if y is None else y
    return Moments((y.T @ y / len(y))[None], (x.T @ y / len(y))[None])


def weights(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rounded(
    weight: torch.Tensor,
    fit: Moments,
    held_out: Moments | None = None,
    *,
    limit: int = 127,
    search_scales: bool = True,
    least: float = 1e-30,
) -> Rounded:
    """`round_layer`, with the fit as its own held-out samples where none are given."""
    least_scale = torch.full((*weight.shape[:2], 1), least, dtype=torch.float64)
    held_out = held_out or fit
    return round_layer(
        weight, least_scale, fit, held_out, fit, limit=limit, search_scales=search_scales
    )


def plain(weight: torch.Tensor, limit: int = 127) -> torch.Tensor:
    """Each weight rounded by itself, at the scale that the largest of its channel needs."""
    scale = (weight.abs().amax(2, keepdim=True) / limit).float().double().clamp_min(1e-30)
    return torch.round(weight / scale) * scale


def loss(real: torch.Tensor, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Mean squared error of every output channel [o], one group, the same inputs for both."""
    return ((real - weight)[0] @ x.T).square().mean(1)


def real(found: Rounded) -> torch.Tensor:
    return found.integers * found.scale


@pytest.mark.parametrize("width", [9, 70])
@pytest.mark.parametrize("limit", [127, 7])
def test_correlated_inputs_gain_on_samples_never_seen(width: int, limit: int) -> None:
    weight, fresh = weights(1, 6, width), correlated(2000, width, seed=9)
    fit, held_out = moments(correlated(2000, width)), moments(correlated(500, width, seed=5))
    found = rounded(weight, fit, held_out, limit=limit)
    assert found.shrink < 1
    gained = (
        loss(real(found), weight, fresh).sum() / loss(plain(weight, limit), weight, fresh).sum()
    )
    assert gained < 0.5


def test_a_fit_that_does_not_carry_over_is_not_trusted() -> None:
    """Few rows of noise look correlated; other samples say that they are not."""
    weight = weights(1, 8, 40)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(4000, 40, generator=generator, dtype=torch.float64)
    fit, held_out = moments(noise[:12]), moments(noise[12:])
    found = rounded(weight, fit, held_out, search_scales=False)
    assert found.shrink >= 0.3
    mine, theirs = (loss(r, weight, noise[12:]).sum() for r in (real(found), plain(weight)))
    assert mine < 1.2 * theirs


@pytest.mark.parametrize("seed", range(6))
def test_few_weights_come_close_to_the_best_integers_there_are(seed: int) -> None:
    """Against every choice of integers at the scale that was chosen."""
    width, limit = 3, 3
    weight, x = weights(1, 2, width, seed=seed), correlated(200, width, seed=seed)
    found = rounded(weight, moments(x), limit=limit)
    grid = torch.tensor(list(itertools.product(range(-limit, limit + 1), repeat=width))).double()
    for channel in range(2):
        every = ((grid * found.scale[0, channel] - weight[0, channel]) @ x.T).square().mean(1)
        mine = loss(real(found), weight, x)[channel]
        chosen = int((grid == found.integers[0, channel]).all(1).nonzero())
        assert torch.isclose(every[chosen], mine)
        assert mine <= 1.5 * every.min() + 1e-12
        assert mine <= loss(plain(weight, limit), weight, x)[channel] * (1 + 1e-9)


def test_a_layer_makes_up_for_what_its_input_lost() -> None:
    """Where the quantized input is 10 % short, the weights are 10 % larger."""
    weight, x = weights(1, 4, 6), correlated(500, 6)
    found = rounded(weight, moments(x, 0.9 * x))
    exact, mine = weight[0] @ x.T, real(found)[0] @ (0.9 * x).T
    assert (mine - exact).square().mean() < 1e-3 * exact.square().mean()


@pytest.mark.parametrize("width", [6, 40])
def test_silent_inputs_keep_their_rounded_weights(width: int) -> None:
    weight, x = weights(1, 4, width), correlated(500, width)
    x[:, 2] = 0
    found = rounded(weight, moments(x), search_scales=False)
    expected = torch.round(weight[:, :, 2] / found.scale[:, :, 0]).clamp(-127, 127)
    assert torch.equal(found.integers[:, :, 2], expected)
    assert found.shrink < 1, "the others were fitted"


def test_inputs_that_are_all_silent_give_plain_rounding() -> None:
    weight = weights(1, 4, 6)
    found = rounded(weight, moments(torch.zeros(8, 6, dtype=torch.float64)), search_scales=False)
    assert torch.allclose(real(found), plain(weight), rtol=1e-6)


def test_a_channel_without_weights_stays_one() -> None:
    weight, x = weights(1, 3, 5), correlated(100, 5)
    weight[0, 1] = 0
    found = rounded(weight, moments(x))
    assert not found.integers[0, 1].any() and found.integers[0, 0].any()
    assert torch.isfinite(found.scale).all() and (found.scale > 0).all()


def test_moments_of_float_rounding_alone_give_plain_rounding() -> None:
    """What one row leaves about its mean is noise, and no matrix to divide by."""
    generator = torch.Generator().manual_seed(0)
    noise = 1e-9 * torch.randn(1, 12, 12, generator=generator, dtype=torch.float64)
    weight = weights(1, 4, 12)
    found = rounded(weight, Moments(noise + noise.mT - 1e-8, noise), search_scales=False)
    assert torch.allclose(real(found), plain(weight), rtol=1e-6)


@pytest.mark.parametrize("limit", [127, 7, 1])
def test_integers_keep_their_limit_and_scales_are_float32(limit: int) -> None:
    found = rounded(weights(1, 8, 33), moments(correlated(300, 33)), limit=limit)
    assert found.integers.abs().max() == limit
    assert torch.equal(found.integers, found.integers.round())
    assert torch.equal(found.scale, found.scale.float().double())


def test_a_scale_is_no_smaller_than_asked() -> None:
    weight, x = weights(1, 4, 5), correlated(100, 5)
    least = 3 * float(weight.abs().max()) / 127
    found = rounded(weight, moments(x), least=least)
    assert torch.allclose(found.scale, torch.full_like(found.scale, least), rtol=1e-6)


def test_groups_are_rounded_apart() -> None:
    """The second group is the first with the signs of some inputs turned."""
    weight, x = weights(1, 3, 5), correlated(300, 5)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0]).double()
    one, two = moments(x), moments(x * signs)
    both = Moments(torch.cat([one.gram, two.gram]), torch.cat([one.cross, two.cross]))
    found, alone = rounded(torch.cat([weight, weight * signs]), both), rounded(weight, one)
    assert alone.shrink == found.shrink < 1
    assert torch.equal(found.integers, torch.cat([alone.integers, alone.integers * signs]))
    assert torch.equal(found.scale, torch.cat([alone.scale, alone.scale]))


def test_the_same_moments_give_the_same_integers() -> None:
    weight, fit = weights(1, 8, 64), moments(correlated(300, 64))
    before = weight.clone()
    first, second = rounded(weight, fit), rounded(weight, fit)
    assert torch.equal(first.integers, second.integers) and torch.equal(first.scale, second.scale)
    assert torch.equal(weight, before)


def test_the_mean_of_moments_is_that_of_the_samples() -> None:
    x = correlated(20, 4)
    mean, whole = mean_moments([moments(x[:10]), moments(x[10:])]), moments(x)
    assert torch.allclose(mean.gram, whole.gram) and torch.allclose(mean.cross, whole.cross)
