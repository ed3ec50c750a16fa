"""What is asked to be measured, and what it is fed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.artifact import files_of
from edgekit.runtime.session import Array
from edgekit.signature import Signature

__all__ = ["BenchRequest", "parts", "random_feeds"]


@dataclass(frozen=True)
class BenchRequest:
    """One artifact to measure.

    Attributes:
        artifact: its id, unique among the requests.
        target: whose runtime executes it.
        path: its main file.
        signature: the model's inputs and outputs.
        scheme: its scheme, None if unknown (a bare file).
        delegate: its delegate, None if unknown.
        bytes: its size, None if unknown.
        feeds: one array per input; `random_feeds` if None.
    """

    artifact: str
    target: str
    path: Path
    signature: Signature
    scheme: str | None = None
    delegate: str | None = None
    bytes: int | None = None
    feeds: Mapping[str, Array] | None = None


def parts(target: str, path: Path) -> list[Path]:
    """The files that an artifact consists of, as far as they are there."""
    found = [path, path.with_suffix(".bin")] if target == "openvino" else files_of(path)
    return [part for part in found if part.is_file()]


def random_feeds(signature: Signature, *, seed: int = 0) -> dict[str, Array]:
    """Inputs that fit a signature: standard normal floats, integers in 0..high (1 if unknown)."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in signature.inputs:
        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f":
            feeds[spec.name] = rng.standard_normal(spec.shape).astype(dtype)
        elif dtype.itemsize == 1 and dtype.kind in "iu" and spec.high is None:
            limits = np.iinfo(dtype)  # a quantized picture rather than a flag
            feeds[spec.name] = rng.integers(limits.min, limits.max, spec.shape, dtype, True)
        else:
            high = 1 if spec.high is None else spec.high
            feeds[spec.name] = rng.integers(0, high, spec.shape, endpoint=True).astype(dtype)
    return feeds
