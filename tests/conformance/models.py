"""Five small models of the kinds that teams bring, trained on the spot, and their data.

They are trained because random weights are no fair test: a residual network of random weights
amplifies float rounding until its own int8 evaluation moves by several steps. Training takes about
half a minute for all five on one core, with fixed seeds; the weights are kept in pytest's cache.
Three whole networks (`networks.py`) are for the slow suite alone, and take two minutes more.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgekit._torchvision import torchvision
from edgekit.model import Model

sys.path.insert(0, str(Path(__file__).parent))
try:
    import networks
finally:
    sys.path.pop(0)

Arrays = dict[str, np.ndarray[Any, Any]]
Data = tuple[dict[str, torch.Tensor], torch.Tensor]

CALIBRATION, EVALUATION = 48, 64
VOCABULARY, LENGTH = 200, 16
PAD, START = 0, 1


def _classified(outputs: Arrays, labels: np.ndarray[Any, Any]) -> float:
    """Share of samples whose largest logit [n, 1, classes] is their class's."""
    (logits,) = outputs.values()
    return float((logits[:, 0].argmax(-1) == labels).mean())


@dataclass(frozen=True)
class Kind:
    """How one model is made.

    Attributes:
        build: gives the module with random weights.
        data: gives inputs by their names in forward(), and labels; the last samples are held out.
        epochs: passes over the training data.
        rate: the highest learning rate (one cycle, AdamW).
        right: share of samples that outputs [n, 1, ...] by name have right, from the labels.
        batch: samples in a step of training.
    """

    build: Callable[[], nn.Module]
    data: Callable[[], Data]
    epochs: int
    rate: float
    right: Callable[[Arrays, np.ndarray[Any, Any]], float] = _classified
    batch: int = 64


@dataclass(frozen=True)
class Subject:
    """A trained model with the samples it is quantized and judged by.

    Attributes:
        name: one of `KINDS`.
        model: trained, in eval mode.
        calibration: arrays [n, 1, ...] by input name.
        evaluation: the same, of other samples.
        labels: of each evaluation sample, as ``right`` takes them.
        right: see `Kind`.
    """

    name: str
    model: Model
    calibration: Arrays
    evaluation: Arrays
    labels: np.ndarray[Any, Any]
    right: Callable[[Arrays, np.ndarray[Any, Any]], float]


class TextClassifier(nn.Module):
    """A DistilBERT of two layers whose forward takes ids and mask [n, 16] and gives logits."""

    def __init__(self) -> None:
        super().__init__()
        torchvision()  # transformers imports it, which may need help beside a CPU build of torch
        from transformers import DistilBertConfig, DistilBertForSequenceClassification

        config = DistilBertConfig(
            vocab_size=VOCABULARY,
            dim=64,
            hidden_dim=128,
            n_layers=2,
            n_heads=4,
            max_position_embeddings=32,
            num_labels=2,
        )
        self.body = DistilBertForSequenceClassification(config)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def _perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10)
    )


def _zoo(name: str, **options: Any) -> Callable[[], nn.Module]:
    return _quick(lambda: getattr(torchvision().models, name)(num_classes=10, **options))


def _quick(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Lets a network settle in a few dozen steps."""

    def build() -> nn.Module:
        module = make()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 0.2
            if getattr(part, "use_res_connect", False):
                # Branches that start at zero train faster (Goyal et al., arXiv:1706.02677).
                last = [p for p in part.modules() if isinstance(p, nn.BatchNorm2d)][-1]
                nn.init.zeros_(last.weight)
        return module

    return build


def _digits(name: str, side: int, channels: int) -> Data:
    """scikit-learn's digits as pictures [n, channels, side, side] of mean 0 and deviation 1."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pictures = (torch.from_numpy(found.images).float()[:, None] - 4.88) / 6.02
    if side != pictures.shape[-1]:
        pictures = nn.functional.interpolate(pictures, size=(side, side), mode="bilinear")
    pictures = pictures.repeat(1, channels, 1, 1)
    if channels == 3:  # three channels that differ, so that a swapped order would show
        pictures = pictures * torch.tensor([1.0, 0.7, -0.5])[:, None, None]
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    return {name: pictures[order]}, torch.from_numpy(found.target)[order]


def _tokens() -> Data:
    """Sentences of 4 to 16 tokens after a start token: are most of them from the upper half?"""
    generator = torch.Generator().manual_seed(0)
    count = 2048
    ids = torch.randint(2, VOCABULARY, (count, LENGTH), generator=generator)
    lengths = torch.randint(4, LENGTH + 1, (count,), generator=generator)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    ids[:, 0] = START
    ids = torch.where(mask.bool(), ids, PAD)
    words = mask.clone()
    words[:, 0] = 0
    upper = ((ids >= VOCABULARY // 2) & words.bool()).sum(1)
    labels = (2 * upper > words.sum(1)).long()
    return {"input_ids": ids, "attention_mask": mask}, labels


KINDS = {
    "mlp": Kind(_perceptron, lambda: _digits("input", 8, 1), 12, 1e-2),
    "mobilenet_v2": Kind(
        _zoo("mobilenet_v2", width_mult=0.5), lambda: _digits("x", 32, 3), 4, 1e-2
    ),
    "mobilenet_v3_small": Kind(
        _zoo("mobilenet_v3_small", width_mult=0.5), lambda: _digits("x", 32, 3), 5, 5e-3
    ),
    "resnet18": Kind(_zoo("resnet18"), lambda: _digits("x", 32, 3), 2, 2e-3),
    "distilbert": Kind(TextClassifier, _tokens, 5, 3e-3),
    "efficientnet_b0": Kind(_zoo("efficientnet_b0"), lambda: _digits("x", 32, 3), 3, 5e-3),
    "ssdlite": Kind(
        _quick(networks.Detector), networks.shapes, 3, 5e-3, networks.detected, batch=32
    ),
    "lraspp": Kind(
        _quick(networks.Segmenter), networks.shapes, 3, 5e-3, networks.segmented, batch=32
    ),
}

NETWORKS = ("efficientnet_b0", "ssdlite", "lraspp")
"""Whole networks among them, which every target carries as `w8a8` and `fp32`."""


def subject(name: str, cache: Path) -> Subject:
    """The trained model called ``name``; its weights come out of ``cache`` where they are there."""
    kind = KINDS[name]
    inputs, labels = kind.data()
    module = _seeded(kind.build)
    weights = cache / f"{name}-{_fingerprint()}.safetensors"
    if weights.is_file():
        module.load_state_dict(load_file(weights))
    else:
        _train(module, {k: v[: -CALIBRATION - EVALUATION] for k, v in inputs.items()}, labels, kind)
        save_file(module.state_dict(), weights)
    module.eval()
    held_out = {k: v[-CALIBRATION - EVALUATION :, None].numpy() for k, v in inputs.items()}
    examples = {k: torch.from_numpy(v[0]) for k, v in held_out.items()}
    return Subject(
        name=name,
        model=Model.from_module(module, examples, name=name),
        calibration={k: v[:CALIBRATION] for k, v in held_out.items()},
        evaluation={k: v[CALIBRATION:] for k, v in held_out.items()},
        labels=labels[-EVALUATION:].numpy(),
        right=kind.right,
    )


def _fingerprint() -> str:
    versions = [metadata.version(p) for p in ("torch", "torchvision", "transformers")]
    source = Path(__file__).read_bytes() + Path(networks.__file__).read_bytes()
    return hashlib.sha256(source + "".join(versions).encode()).hexdigest()[:16]


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def _train(
    module: nn.Module, inputs: dict[str, torch.Tensor], labels: torch.Tensor, kind: Kind
) -> None:
    """Trains; on one thread the result doesn't depend on the number of cores."""
    count = len(next(iter(inputs.values())))
    steps = kind.epochs * (count // kind.batch)
    optimizer = torch.optim.AdamW(module.parameters(), lr=kind.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, kind.rate, total_steps=steps)
    module.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(kind.epochs):
            order = torch.randperm(count)[: count // kind.batch * kind.batch]
            for rows in order.reshape(-1, kind.batch):
                optimizer.zero_grad()
                given = tuple(v[rows] for v in inputs.values())
                if hasattr(module, "loss"):  # a network of `networks.py` knows its own
                    loss = module.loss(*given, labels[rows])
                else:
                    loss = nn.functional.cross_entropy(
                        module(*given), labels[rows], label_smoothing=0.1
                    )
                loss.backward()
                optimizer.step()
                schedule.step()
