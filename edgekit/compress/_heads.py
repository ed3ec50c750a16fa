"""Multi-head attention whose heads can be counted: what makes them, and where that is noted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import nn

__all__ = ["Heads", "heads_of", "note_heads"]

_COUNTS: Final = ("num_attention_heads", "num_heads", "n_heads")
_SIZES: Final = ("attention_head_size", "head_dim", "head_size")
_TOTALS: Final = ("all_head_size", "inner_dim")
_PROJECTIONS: Final = (
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("q_proj", "k_proj", "v_proj"),
    ("to_q", "to_k", "to_v"),
    ("q", "k", "v"),
)


@dataclass(frozen=True)
class Heads:
    """The heads of one attention module.

    Attributes:
        count: how many.
        size: features of each.
        noted: the attribute that holds the count.
        projections: names of the linear layers that make queries, keys and values, heads in rows.
    """

    count: int
    size: int
    noted: str
    projections: tuple[str, str, str]


def heads_of(module: nn.Module) -> Heads | None:
    """The heads of an attention module as transformers and its like write them; None for others.

    Queries, keys and values have linear layers of their own and as many heads each.
    `torch.nn.MultiheadAttention`, which has them in one tensor, is none of these.
    """
    noted = next((n for n in _COUNTS if type(getattr(module, n, None)) is int), None)
    if noted is None:
        return None
    for names in _PROJECTIONS:
        layers = [getattr(module, name, None) for name in names]
        if not all(isinstance(layer, nn.Linear) for layer in layers):
            continue
        count = int(getattr(module, noted))
        widths = {int(layer.out_features) for layer in layers if layer is not None}
        width = widths.pop()
        size = next((s for n in _SIZES if type(s := getattr(module, n, None)) is int), None)
        size = size if size is not None else width // max(1, count)
        fits = not widths and size > 0 and count * size == width
        return Heads(count, size, noted, names) if fits else None
    return None


def note_heads(module: nn.Module, heads: Heads, width: int) -> None:
    """Has a module, whose heads were ``heads``, count as many as ``width`` features hold."""
    setattr(module, heads.noted, width // heads.size)
    for name in _TOTALS:
        if getattr(module, name, None) == heads.count * heads.size:
            setattr(module, name, width)
