"""Input statistics: what a device counts of inputs, whatever its artifact takes."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.runtime.border import PictureBorder
from edgekit.runtime.drift_reference import counted_inputs
from edgekit.runtime.input_statistics import (
    INPUT_BOUNDS,
    ROUGHNESS_BOUNDS,
    InputStatistics,
    binned,
    measured,
)

REFERENCE = {"inputs": {"x": {"mean": 0.0, "std": 1.0}}}


def smooth(rng: np.random.Generator, size: int = 64) -> np.ndarray:
    """[1, 3, size, size] of low frequencies, float32."""
    low = rng.standard_normal((1, 3, size // 8, size // 8))
    return np.kron(low, np.ones((1, 1, 8, 8))).astype(np.float32)


def roughness(array: np.ndarray) -> float:
    sample = measured(array)
    assert sample is not None
    return float(np.log2(sample.difference / sample.deviation))


def test_roughness_is_that_of_white_noise_or_less_and_no_matter_of_contrast_or_layout() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((1, 3, 64, 64)).astype(np.float32)
    assert roughness(noise) == pytest.approx(0.5, abs=0.02)
    picture = smooth(rng)
    assert roughness(picture) < -0.5
    assert roughness(picture * 0.25 + 7) == pytest.approx(roughness(picture), abs=1e-4)
    last = np.moveaxis(picture, 1, -1)
    assert roughness(np.ascontiguousarray(last)) == pytest.approx(roughness(picture), abs=1e-6)
    assert roughness(picture + 0.3 * noise) > roughness(picture) + 0.1
    blurred = (picture + np.roll(picture, 1, -1) + np.roll(picture, 1, -2)) / 3
    assert roughness(blurred) < roughness(picture) - 0.25
    # Of a sequence the two longest axes are all there are; of one value there is no neighbour.
    assert roughness(np.array([[0.0, 1.0, 0.0, 1.0]])) == pytest.approx(1.0)
    single = measured(np.ones((1, 1)))
    assert single is not None
    assert binned(single, 1.0, 1.0) == (12, 0, 0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bins_are_those_of_the_values(dtype: type) -> None:
    array = np.array([[-1.0, -1.0, 3.0, 3.0]], dtype)
    # Mean 1, deviation 2, differences 0, 4 and 0: log2(sqrt(16 / 3) / 2) is 0.21.
    [(index, bins)] = InputStatistics(REFERENCE, ["x"]).bins({"x": array, "y": array})
    edges = [bounds.index(v) for bounds, v in zip(INPUT_BOUNDS.values(), (1, 1, 0.25), strict=True)]
    assert (index, list(bins)) == (0, edges)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_counted(value: float) -> None:
    array = np.zeros((1, 4, 4), np.float32)
    array[0, 2, 2] = value
    assert InputStatistics(REFERENCE, ["x"]).bins({"x": array}) == []
    huge = np.full((1, 4, 4), 3e38, np.float32)
    huge[0, ::2] *= -1
    assert InputStatistics(REFERENCE, ["x"]).bins({"x": huge}) == []
    assert measured(np.zeros((1, 0), np.float32)) is None
    assert measured(np.zeros((1, 4), np.int64)) is None


@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_pixels_are_counted_as_the_tensor_that_they_become(color: str) -> None:
    rng = np.random.default_rng(1)
    mean, std = np.array([0.48, 0.45, 0.4]), np.array([0.2, 0.3, 0.25])
    step = -1 if color == "BGR" else 1
    border = PictureBorder(
        input="x", height=32, width=32, channels=3, color=color, layout="NCHW",
        factor=tuple((1 / 255 / std)[::step]), offset=tuple((-mean / std)[::step]),
    )  # fmt: skip
    pixels = rng.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    tensor = ((pixels / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)[:, ::step]
    known = {"inputs": {"x": {"mean": 0.1, "std": 1.1}}}
    plain = InputStatistics(known, ["x"]).bins({"x": np.ascontiguousarray(tensor)})
    assert InputStatistics(known, ["x"], border).bins({"x": pixels}) == plain
    assert InputStatistics(known, ["x"]).bins({"x": pixels}) == []
    assert InputStatistics(known, ["x"], border).bins({"x": pixels[..., :2]}) == []


def test_a_reference_is_what_devices_count_of_the_same_samples() -> None:
    rng = np.random.default_rng(2)
    samples = [smooth(rng, 16) * scale for scale in (0.5, 1.0, 2.0, 1.5)]
    known = counted_inputs(samples)
    assert known is not None
    statistics = InputStatistics({"inputs": {"x": known}}, ["x"])
    counts = {name: [0] * (len(bounds) + 1) for name, bounds in INPUT_BOUNDS.items()}
    for sample in samples:
        [(_, bins)] = statistics.bins({"x": sample})
        for name, place in zip(counts, bins, strict=True):
            counts[name][place] += 1
    assert {name: h["counts"] for name, h in known["histograms"].items()} == counts
    assert len(counts["roughness"]) == len(ROUGHNESS_BOUNDS) + 1
    assert known["n"] == 4
    assert counted_inputs([]) is None
    flat = counted_inputs([np.ones((1, 4), np.float32)])
    assert flat is not None
    assert "histograms" not in flat
