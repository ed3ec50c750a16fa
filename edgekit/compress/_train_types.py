"""What training is told, what it takes and what it gives; see `edgekit.compress.train`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Protocol

import torch
from pydantic import Field
from torch import nn

from edgekit.settings import Settings

__all__ = ["NOT_INPUTS", "Batch", "Loss", "TrainSet", "TrainSettings", "Trained"]

Batch = Mapping[str, torch.Tensor]
"""The model's inputs by name, ``[n, ...]``; ``y``, int64 ``[n]``, the classes; ``row``, int64
``[n]``, which samples of the set these are."""

Loss = Callable[[nn.Module, Batch], torch.Tensor]
"""A scalar to be made small, out of a module in train mode and a batch on the module's device.
A mean over the batch, so that batches can be accumulated and spread over processes."""

NOT_INPUTS: Final = ("y", "row", "y2", "mix")
"""What a batch holds beside the model's inputs; ``y2`` and ``mix`` where mixup mixed it."""

Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]


class TrainSet(Protocol):
    """What is learned from.

    A set may also have ``labels``, int64 ``[n]``: then classes are checked and held-out samples are
    drawn from every class; ``classes``, their names, for messages; ``digest``, a string that is
    another one for other samples, by which a checkpoint knows its data; and ``threaded``, true
    where `batch` may be called from another thread while the step before is computed.
    """

    def __len__(self) -> int: ...

    def batch(
        self, rows: torch.Tensor, generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        """The samples of ``rows``, int64 ``[n]``, as a `Batch` on the CPU.

        Args:
            rows: which samples.
            generator: what augmentation draws from; None for the samples as they are.
        """


class TrainSettings(Settings):
    """How a module is trained.

    Attributes:
        epochs: how often the data are gone through; 0 leaves the module as it is.
        batch: samples of one forward pass of one process. A step takes ``batch * accumulate`` of
            every process; samples left over at the end of an epoch wait for another epoch.
        rate: the highest learning rate.
        seed: of the order of samples, of augmentation and of dropout.
        rule: ``adamw`` (Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2017,
            arXiv:1711.05101) or ``sgd`` with Nesterov's momentum.
        decay: weight decay, of parameters of two dimensions and more only: neither biases nor the
            scales of normalizations.
        momentum: of ``sgd``, and the first beta of ``adamw``; ``one-cycle`` has its own.
        schedule: of the rate, step by step. ``cosine`` falls to ``final`` (Loshchilov and Hutter,
            "SGDR", 2016, arXiv:1608.03983); ``one-cycle`` climbs from a 25th of the rate and falls
            to a 250,000th, and momentum goes the other way, 0.95 to 0.85 and back (Smith and
            Topin, "Super-Convergence", 2017, arXiv:1708.07120); ``constant``.
        warm_up: the part of all steps in which the rate climbs, linearly but for ``one-cycle``
            (Goyal et al., "Accurate, Large Minibatch SGD", 2017, arXiv:1706.02677). None is 0.05,
            0.3 for ``one-cycle`` and 0 for ``constant``.
        final: the lowest rate of ``cosine``, as a part of ``rate``.
        smoothing: label smoothing of the classifier's own loss (Szegedy et al., "Rethinking the
            Inception Architecture", 2015, arXiv:1512.00567).
        mixup: alpha of mixup, 0 for none (Zhang et al., "mixup: Beyond Empirical Risk
            Minimization", 2017, arXiv:1710.09412); for the classifier's own loss.
        clip: the largest norm of all gradients together, or None.
        accumulate: batches whose gradients are averaged for a step.
        ema: decay of an exponential moving average of weights and of float buffers, per step; 0
            for none. Early in training it is ``(1 + step) / (10 + step)`` where that is less.
        freeze: patterns of names of parameters that stay as they are, such as ``features.[0-5].*``;
            batch normalizations without any other parameter keep their statistics too.
        channels_last: weights and pictures in memory with the channels last, which the CPU's
            depthwise convolutions and GPUs are faster with.
        amp: ``bf16`` or ``fp16`` computes matrix products and convolutions in that type, weights
            stay float32 (Micikevicius et al., "Mixed Precision Training", 2017,
            arXiv:1710.03740); ``fp16`` scales the loss. It may cost time on a CPU: with AVX-512
            BF16, bf16 made a transformer faster and MobileNetV2 slower
            (tests/benchmarks/train_amp.py), and fp16 was far slower.
        device: ``auto`` is a CUDA device where there is one.
        processes: how many processes train together, each on its own batches: ``gloo`` on CPUs,
            ``nccl`` on CUDA, a device each. 1 also stands for what ``torchrun`` started.
        validation: the part of the training data that is held out and scored (top-1, in percent),
            as many of each class; only where `train` is given no score.
        patience: stop after so many epochs without a better score; 0 never stops early.
        keep: which weights are kept where there is a score: the ``best`` or the ``last``. Without
            one it is the last. Averaged weights (``ema``) are scored beside the others for
            ``best``, and go before them for ``last``.
        checkpoint_s: seconds between checkpoints within an epoch; there is always one at its end.
    """

    epochs: Annotated[int, Field(ge=0)] = 10
    batch: Count = 64
    rate: Annotated[float, Field(gt=0)] = 1e-3
    seed: int = 0
    rule: Literal["adamw", "sgd"] = "adamw"
    decay: NotNegative = 0.01
    momentum: Share = 0.9
    schedule: Literal["cosine", "one-cycle", "constant"] = "cosine"
    warm_up: Share | None = None
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    smoothing: Share = 0.0
    mixup: NotNegative = 0.0
    clip: Annotated[float, Field(gt=0)] | None = None
    accumulate: Count = 1
    ema: Share = 0.0
    freeze: tuple[str, ...] = ()
    channels_last: bool = False
    amp: Literal["off", "bf16", "fp16"] = "off"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: Count = 1
    validation: Share = 0.0
    patience: Annotated[int, Field(ge=0)] = 0
    keep: Literal["best", "last"] = "best"
    checkpoint_s: NotNegative = 30.0


@dataclass(frozen=True)
class Trained:
    """What training did.

    Attributes:
        state: the weights that are kept, contiguous and on the CPU: ``module.load_state_dict``'s.
        curve: one mapping per epoch: ``epoch``, ``loss``, ``rate`` and, where there was a score,
            ``score``, and ``score_ema`` where weights are averaged.
        best: the score of the kept weights, or None.
    """

    state: Mapping[str, torch.Tensor]
    curve: tuple[Mapping[str, float], ...]
    best: float | None
