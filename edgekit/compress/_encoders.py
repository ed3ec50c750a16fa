"""What Hugging Face's encoders with a classifier call their parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from edgekit.errors import UnsupportedError

__all__ = ["FAMILIES", "Family", "blank", "family_of"]


@dataclass(frozen=True)
class Family:
    """Names of modules in a classifier of one family.

    Attributes:
        embeddings: tables whose rows are as wide as the hidden states; that of words comes first.
        first_norm: the normalization of embeddings.
        layers: the list of layers.
        query, key, value, mixed: linear layers of self-attention within a layer, the last of which
            writes to the hidden states.
        attention: the module in a layer that holds the first three.
        mixed_norm: the normalization after it.
        inner, outer: linear layers of the feed-forward network.
        outer_norm: the normalization after it.
        pooled: the linear layer between the first token's hidden state and the classifier.
        classes: the classifier, whose input is ``pooled`` through a non-linearity.
        inner_size: the configuration's name for the feed-forward network's width.
    """

    embeddings: tuple[str, ...]
    first_norm: str
    layers: str
    query: str
    key: str
    value: str
    mixed: str
    attention: str
    mixed_norm: str
    inner: str
    outer: str
    outer_norm: str
    pooled: str
    classes: str
    inner_size: str = "intermediate_size"

    def layer(self, index: int, part: str) -> str:
        """The full name of a part of a layer, out of ``query``, ``inner_norm`` and so on."""
        return f"{self.layers}.{index}.{getattr(self, part)}"


def _bert(base: str, pooled: str, classes: str) -> Family:
    return Family(
        embeddings=tuple(
            f"{base}.embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")
        ),
        first_norm=f"{base}.embeddings.LayerNorm",
        layers=f"{base}.encoder.layer",
        query="attention.self.query",
        key="attention.self.key",
        value="attention.self.value",
        mixed="attention.output.dense",
        attention="attention.self",
        mixed_norm="attention.output.LayerNorm",
        inner="intermediate.dense",
        outer="output.dense",
        outer_norm="output.LayerNorm",
        pooled=pooled,
        classes=classes,
    )


_ROBERTA: Final = _bert("roberta", "classifier.dense", "classifier.out_proj")

FAMILIES: Final[Mapping[str, Family]] = {
    "bert": _bert("bert", "bert.pooler.dense", "classifier"),
    "distilbert": Family(
        embeddings=(
            "distilbert.embeddings.word_embeddings",
            "distilbert.embeddings.position_embeddings",
        ),
        first_norm="distilbert.embeddings.LayerNorm",
        layers="distilbert.transformer.layer",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        mixed="attention.out_lin",
        attention="attention",
        mixed_norm="sa_layer_norm",
        inner="ffn.lin1",
        outer="ffn.lin2",
        outer_norm="output_layer_norm",
        pooled="pre_classifier",
        classes="classifier",
        inner_size="hidden_dim",
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
}
"""By the configuration's ``model_type``."""


def family_of(model: nn.Module) -> tuple[Family, Any]:
    """The family of a classifier and its configuration.

    Raises:
        UnsupportedError: it is of none of the families, or has no classifier.
    """
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    family = FAMILIES.get(str(kind))
    if family is None:
        raise UnsupportedError(
            f"{type(model).__name__} is no encoder that is known here"
            + (f" (model_type {kind!r})" if kind else ""),
            hint=f"known: {', '.join(FAMILIES)}, each as ...ForSequenceClassification",
        )
    parts = dict(model.named_modules())
    wanted = [*family.embeddings, family.first_norm, family.layers, family.pooled, family.classes]
    missing = [name for name in wanted if name not in parts]
    if missing:
        raise UnsupportedError(
            f"{type(model).__name__} has no {', '.join(missing)}",
            hint="load it with AutoModelForSequenceClassification",
        )
    return family, config


def blank(model: nn.Module, config: object) -> nn.Module:
    """A model of the same class, type and device with another configuration; its weights are none.

    Weights are drawn from a seed of its own, so that nothing else's randomness is touched.
    """
    first = next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: nn.Module = type(model)(config)
    return made.to(first.device, first.dtype).eval()
