"""Where a training computes, and in which type."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Final

import torch
from torch import nn

from edgekit.compress._train_types import TrainSettings
from edgekit.errors import UnsupportedError

__all__ = ["Precision", "device_of", "repeatable"]

_TYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


def device_of(settings: TrainSettings) -> torch.device:
    """The device that the settings ask for.

    Raises:
        UnsupportedError: it is ``cuda``, and there is none.
    """
    there = torch.cuda.is_available()
    if settings.device == "cuda" and not there:
        raise UnsupportedError(
            f"device is cuda, and torch {torch.__version__} finds no CUDA device",
            hint="device=auto takes one where there is one, else the CPU",
        )
    return torch.device("cuda" if there and settings.device != "cpu" else "cpu")


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Has cuDNN choose kernels that give the same bits every time; random numbers are put back."""
    devices = list(range(torch.cuda.device_count())) if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if device.type == "cpu":
            yield
            return
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            yield


class Precision:
    """The type that products are computed in, and the scale that keeps fp16 gradients from 0.

    Raises:
        UnsupportedError: torch or the device has no such type; says what torch said.
    """

    def __init__(self, settings: TrainSettings, device: torch.device) -> None:
        self._type = _TYPES.get(settings.amp)
        self._device = device.type
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "fp16")
        if self._type is not None:
            _try(settings.amp, self, device)

    def __call__(self) -> AbstractContextManager[object]:
        """Autocast, or nothing."""
        if self._type is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device, self._type)


def _try(kind: str, precision: Precision, device: torch.device) -> None:
    """A convolution and a linear layer, forward and backward: some builds refuse either."""
    layers = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 4)).to(device)
    try:
        with precision():
            value = layers(torch.ones(2, 4, 3, 3, device=device)).float().sum()
        value.backward()
    except RuntimeError as error:
        raise UnsupportedError(
            f"torch {torch.__version__} does not train in {kind} on this {device.type}: {error}",
            hint="amp=bf16 or amp=off may do",
        ) from error
