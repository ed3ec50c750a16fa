"""The inputs of all samples and probes as a file, for the processes that artifacts run in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.data import Samples
from edgekit.export.reference import gather
from edgekit.model import Model

__all__ = ["Feeds"]


class Feeds:
    """The inputs of all samples and probes as a file, written when first asked for."""

    def __init__(self, model: Model, samples: Samples | None, path: Path) -> None:
        self._model, self._samples, self._path = model, samples, path

    def file(self) -> Path:
        """The file, an ``.npz`` of arrays [n, *shape] by input name."""
        if not self._path.exists():
            feeds, _ = gather(self._model, self._samples)
            aside = self._path.with_name(f"aside-{os.getpid()}-{id(feeds)}.npz")
            np.savez(aside, **feeds)  # type: ignore[arg-type]
            aside.replace(self._path)
        return self._path

    def first(self) -> dict[str, Any]:
        """The first sample, as one call takes it."""
        if self._samples is not None:
            return self._samples.feed(0)
        inputs = self._model.example_inputs()
        return {
            s.name: t.numpy() for s, t in zip(self._model.signature.inputs, inputs, strict=True)
        }
