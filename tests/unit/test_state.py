"""States of modules, and modules rebuilt around narrowed ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgekit.compress.state import fit_state, state_of
from edgekit.errors import BadData, UnsupportedError


class Everything(nn.Module):
    """A layer of each kind, in widths that are told."""

    def __init__(self, wide: int = 16, inner: int = 24) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, wide, 3, padding=1)
        self.norm = nn.BatchNorm2d(wide)
        self.slope = nn.PReLU(wide)
        self.depthwise = nn.Conv2d(wide, wide * 2, 3, padding=1, groups=wide)
        self.grouped = nn.Conv2d(wide * 2, inner, 1, groups=4)
        self.groups = nn.GroupNorm(4, inner)
        self.up = nn.ConvTranspose2d(inner, inner, 2, stride=2, groups=inner)
        self.scale = nn.Parameter(torch.ones(inner, 1, 1))
        self.last = nn.Linear(inner, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.slope(self.norm(self.first(x)))
        x = self.up(self.groups(self.grouped(self.depthwise(x)))) * self.scale
        return self.last(x.mean((2, 3)))


class Tied(nn.Module):
    """A table that is also the last layer's weight."""

    def __init__(self, rows: int = 20, width: int = 8) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, width, padding_idx=0)
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, rows, bias=False)
        self.last.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.table(ids)))


class Attention(nn.Module):
    """Self-attention as transformers writes it."""

    def __init__(self, width: int = 24, heads: int = 6, size: int = 4) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, size
        self.all_head_size = heads * size
        self.query = nn.Linear(width, heads * size)
        self.key = nn.Linear(width, heads * size)
        self.value = nn.Linear(width, heads * size)
        self.dense = nn.Linear(heads * size, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (*x.shape[:2], self.num_attention_heads, self.attention_head_size)
        q, k, v = (f(x).view(shape).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.dense(mixed.reshape(*x.shape[:2], self.all_head_size))


def filled(module: nn.Module, seed: int = 3) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return module.eval()


def test_a_fresh_wide_module_becomes_the_narrow_one(tmp_path: Path) -> None:
    narrow = filled(Everything(wide=8, inner=12))
    save_file(state_of(narrow), tmp_path / "state.safetensors")
    module = fit_state(Everything().eval(), load_file(tmp_path / "state.safetensors"))
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(module(x), narrow(x))
    assert module.get_submodule("depthwise").groups == 8
    assert module.get_submodule("grouped").in_channels == 16
    assert repr(module) == repr(narrow)
    assert state_of(module).keys() == state_of(narrow).keys()
    # It trains, and batch norm keeps its statistics.
    module.train()(x).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_the_state_is_a_copy() -> None:
    module = nn.Linear(2, 2)
    state = state_of(module)
    before = state["weight"].clone()
    with torch.no_grad():
        module.weight.zero_()
    assert torch.equal(state["weight"], before)
    assert all(t.is_contiguous() and not t.requires_grad for t in state.values())


def test_tied_weights_are_kept_once_and_tied_again() -> None:
    narrow = filled(Tied(rows=12, width=4))
    state = state_of(narrow)
    assert set(state) == {"table.weight", "norm.weight", "norm.bias"}
    wide = Tied()
    module = fit_state(wide, state)
    assert wide.last.weight is wide.table.weight
    assert (wide.last.out_features, wide.table.num_embeddings) == (12, 12)
    ids = torch.tensor([[1, 5, 11]])
    assert torch.equal(module(ids), narrow(ids))
    both = state | {"last.weight": state["table.weight"]}
    fit_state(Tied(), both)
    with pytest.raises(BadData, match=r"table.weight and last.weight are one tensor"):
        fit_state(Tied(), both | {"last.weight": state["table.weight"] + 1})


def test_heads_are_counted_from_the_rows() -> None:
    narrow = filled(Attention(heads=2))
    module = fit_state(Attention().eval(), state_of(narrow))
    assert (module.num_attention_heads, module.all_head_size) == (2, 8)
    x = torch.randn(1, 5, 24)
    assert torch.equal(module(x), narrow(x))


def test_torchs_own_attention() -> None:
    narrow = filled(nn.MultiheadAttention(8, 2, batch_first=True))
    module = fit_state(nn.MultiheadAttention(16, 4, batch_first=True).eval(), state_of(narrow))
    x = torch.randn(1, 3, 8)
    assert torch.equal(module(x, x, x)[0], narrow(x, x, x)[0])


REFUSED: dict[str, tuple[Any, dict[str, tuple[int, ...]], str]] = {
    "half a head": (Attention(), {"query.weight": (22, 24)}, "no whole heads of 4"),
    "bias": (nn.Linear(4, 4), {"weight": (3, 4)}, r"bias is \(4,\)"),
    "kernel": (nn.Conv2d(4, 4, 3), {"weight": (4, 4, 1, 1)}, r"kernel is \(1, 1\)"),
    "groups": (nn.Conv2d(8, 8, 1, groups=4), {"weight": (6, 2, 1, 1)}, "4 groups"),
    "norm": (nn.BatchNorm1d(4), {"weight": (3,)}, "different sizes"),
    "group norm": (nn.GroupNorm(4, 8), {"weight": (6,), "bias": (6,)}, "4 groups"),
    "padding": (nn.Embedding(9, 4, padding_idx=8), {"weight": (8, 4)}, "pads with row 8"),
    "rank": (nn.Linear(4, 4), {"weight": (4, 4, 1)}, "3 dimensions, not 2"),
    "kind": (nn.LSTM(4, 4), {"weight_ih_l0": (16, 3)}, "can't be resized"),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), {"weight": (7, 1, 3, 3)}, "2 outputs of each"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_changes_nothing(case: str) -> None:
    layer, shapes, said = REFUSED[case]
    module = nn.Sequential(nn.Linear(2, 2), layer)
    before = state_of(module)
    changed = {f"1.{name}": torch.zeros(shape) for name, shape in shapes.items()}
    with pytest.raises(BadData, match=said) as caught:
        fit_state(module, before | {"0.weight": torch.ones(2, 2)} | changed)
    assert "1" in caught.value.message
    assert all(torch.equal(before[k], v) for k, v in state_of(module).items())


def test_missing_and_left_over_tensors_are_named() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(BadData, match=r"has no bias; has, and the module has not: other"):
        fit_state(module, {"weight": torch.ones(2, 2), "other": torch.ones(1)})
    with pytest.raises(BadData, match=r"weight is torch.int64"):
        fit_state(module, {"weight": torch.ones(2, 2).long(), "bias": torch.ones(2)})


def test_state_that_is_no_tensor_is_refused() -> None:
    class Odd(nn.Module):
        def get_extra_state(self) -> Any:
            return {"a": 1}

        def set_extra_state(self, state: Any) -> None:
            raise AssertionError

    with pytest.raises(UnsupportedError, match="_extra_state"):
        state_of(Odd())
