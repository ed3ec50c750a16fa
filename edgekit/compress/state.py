"""The weights of a module as plain tensors, and modules rebuilt around weights that were narrowed.

state = state_of(pruned)                 # what a stage hands on, or a file keeps
module = fit_state(network(), state)     # in another process: no pickle, no second pruning
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import nn

from edgekit.compress._heads import Heads, heads_of, note_heads
from edgekit.errors import BadData, UnsupportedError

__all__ = ["fit_state", "state_of"]

_SHOWN = 5

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a layer's own tensors, by attribute."""

Sizes = Mapping[str, Any]
"""What a layer of other tensors calls its sizes, by attribute."""


class _Misfit(Exception):
    """Why a layer can't have tensors of these shapes."""


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and persistent buffers of a module, by name.

    Returns:
        Copies, contiguous and on the CPU, which share no memory with anything: ready for
        safetensors. A tensor that has several names (tied weights) is there once, under the first;
        `fit_state` ties it again.

    Raises:
        UnsupportedError: the module keeps state that is no tensor.
    """
    state: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, value in module.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor):
            raise UnsupportedError(f"{name} of the module's state is a {type(value).__name__}")
        if id(value) not in seen:
            seen.add(id(value))
            copied = torch.empty(value.shape, dtype=value.dtype)
            state[name] = copied.copy_(value.detach())
    return state


def fit_state(module: nn.Module, state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Loads a state into a module, whose layers are narrowed (or widened) to it where they differ.

    Convolutions (with the groups of depthwise ones), linear layers, embeddings, batch, group, layer
    and RMS norms and PReLU are resized with all that they note of their sizes; in attention
    modules, heads of a fixed size are counted anew (`torch.nn.MultiheadAttention`, and queries,
    keys and values of one linear layer each, as transformers writes them). Parameters that a
    module of the user's own holds itself are replaced, as long as they keep their rank.

    Args:
        module: as it is built before it is pruned. It is changed in place, once all is known to
            fit; parameters that change their shape are new objects, so optimizers come after.
        state: of `state_of`, or of ``state_dict``.

    Returns:
        ``module``.

    Raises:
        BadData: tensors are missing or left over, tied ones differ, or a layer can't have its
            tensors' shapes.
    """
    slots = dict(module.state_dict(keep_vars=True))
    values = _by_tensor(slots, state)
    resized: list[tuple[nn.Module, Sizes]] = []
    counted: list[Callable[[], None]] = []
    for path, layer in module.named_modules():
        shapes = _shapes(layer, path, slots, values)
        try:
            if any(shapes[n] != tuple(t.shape) for n, t in _own(layer).items() if n in shapes):
                resized.append((layer, _sizes(layer, shapes)))
            heads = heads_of(layer)
            if heads is not None:
                counted += _counting(layer, heads, path, slots, values)
        except _Misfit as error:
            raise BadData(
                f"the state doesn't fit layer {path or 'the module itself'} "
                f"({type(layer).__name__}): {error}",
                hint="build the module as it was before pruning, with the same settings",
            ) from None
    _put(module, slots, values)
    for layer, sizes in resized:
        for name, size in sizes.items():
            setattr(layer, name, size)
    for note in counted:
        note()
    return module


def _by_tensor(
    slots: Mapping[str, Any], state: Mapping[str, torch.Tensor]
) -> dict[int, torch.Tensor]:
    """What each of the module's tensors is to hold, by `id`, as one may have several names."""
    values: dict[int, torch.Tensor] = {}
    names: dict[int, str] = {}
    extra = [name for name in state if name not in slots]
    for name, slot in slots.items():
        if name not in state:
            continue
        value = state[name]
        if id(slot) in values and not _equal(values[id(slot)], value):
            raise BadData(f"{names[id(slot)]} and {name} are one tensor, and differ in the state")
        if value.is_floating_point() != slot.is_floating_point():
            raise BadData(f"{name} is {value.dtype} in the state, and {slot.dtype} in the module")
        values[id(slot)], names[id(slot)] = value, name
    missing = [name for name, slot in slots.items() if id(slot) not in values]
    if missing or extra:
        parts = [("has no", missing), ("has, and the module has not:", extra)]
        said = "; ".join(f"{what} {_listed(some)}" for what, some in parts if some)
        raise BadData(
            f"the state {said}", hint="build the same network that the state was taken of"
        )
    return values


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _own(layer: nn.Module) -> dict[str, torch.Tensor]:
    tensors = {**layer._parameters, **layer._buffers}
    return {name: t for name, t in tensors.items() if t is not None}


def _shapes(
    layer: nn.Module, path: str, slots: Mapping[str, Any], values: Mapping[int, torch.Tensor]
) -> dict[str, tuple[int, ...]]:
    """Shapes that a layer's own tensors are to have; those that no state keeps are left out."""
    prefix = f"{path}." if path else ""
    return {
        name: tuple(values[id(slots[prefix + name])].shape)
        for name in _own(layer)
        if prefix + name in slots
    }


def _counting(
    layer: nn.Module,
    heads: Heads,
    path: str,
    slots: Mapping[str, Any],
    values: Mapping[int, torch.Tensor],
) -> list[Callable[[], None]]:
    """What is left to do where an attention module gets another number of heads."""
    prefix = f"{path}." if path else ""
    widths = {
        name: values[id(slots[f"{prefix}{name}.weight"])].shape[0] for name in heads.projections
    }
    width = widths[heads.projections[0]]
    if len(set(widths.values())) > 1 or width % heads.size:
        found = ", ".join(f"{name} {size}" for name, size in widths.items())
        raise _Misfit(f"{found} features are no whole heads of {heads.size}")
    if width == heads.count * heads.size:
        return []
    return [lambda: note_heads(layer, heads, width)]


def _put(module: nn.Module, slots: Mapping[str, Any], values: Mapping[int, torch.Tensor]) -> None:
    """Gives every tensor its value; one object that is replaced is replaced wherever it is held."""
    made: dict[int, torch.Tensor] = {}
    for slot in {id(slot): slot for slot in slots.values()}.values():
        value = values[id(slot)].detach()
        if slot.shape == value.shape:
            with torch.no_grad():
                slot.copy_(value)
            continue
        fresh = value.to(device=slot.device, dtype=slot.dtype, copy=True).contiguous()
        if isinstance(slot, nn.Parameter):
            fresh = nn.Parameter(fresh, requires_grad=slot.requires_grad)
        made[id(slot)] = fresh
    for layer in module.modules():
        for held in (layer._parameters, layer._buffers):
            for name, tensor in held.items():
                if tensor is not None and id(tensor) in made:
                    held[name] = made[id(tensor)]  # type: ignore[assignment]


def _sizes(layer: nn.Module, shapes: Shapes) -> Sizes:
    """What a layer notes of its sizes, for tensors of these shapes."""
    for name, tensor in _own(layer).items():
        if name in shapes and len(shapes[name]) != tensor.ndim:
            raise _Misfit(f"{name} has {len(shapes[name])} dimensions, not {tensor.ndim}")
    for kinds, rule in _RULES:
        if isinstance(layer, kinds):
            return rule(layer, shapes)
    if type(layer).__module__.split(".")[0] == "torch":
        raise _Misfit("this kind of layer can't be resized")
    return {}


def _convolution(layer: Any, shapes: Shapes) -> Sizes:
    weight = shapes["weight"]
    if weight[2:] != tuple(layer.weight.shape[2:]):
        raise _Misfit(f"its kernel is {weight[2:]}, not {tuple(layer.weight.shape[2:])}")
    first, second, groups = weight[0], weight[1], layer.groups
    if groups > 1 and groups == layer.in_channels:
        # Depthwise: a group per input channel, whatever comes of each.
        each = layer.out_channels // groups
        if (second != each) if layer.transposed else (second != 1 or first % each):
            raise _Misfit(f"a weight of {weight} makes no {each} outputs of each input channel")
        groups = first if layer.transposed else first // each
    elif first % groups:
        raise _Misfit(f"{first} channels are no multiple of its {groups} groups")
    taken, given = (first, second * groups) if layer.transposed else (second * groups, first)
    _want(shapes, "bias", (given,))
    return {"in_channels": taken, "out_channels": given, "groups": groups}


def _linear(layer: Any, shapes: Shapes) -> Sizes:
    out, taken = shapes["weight"]
    _want(shapes, "bias", (out,))
    return {"in_features": taken, "out_features": out}


def _embedding(layer: Any, shapes: Shapes) -> Sizes:
    rows, width = shapes["weight"]
    if layer.padding_idx is not None and layer.padding_idx >= rows:
        raise _Misfit(f"it pads with row {layer.padding_idx}, and {rows} rows are left")
    return {"num_embeddings": rows, "embedding_dim": width}


def _per_channel(name: str) -> Callable[[Any, Shapes], Sizes]:
    def rule(layer: Any, shapes: Shapes) -> Sizes:
        sizes = {shape for shape in shapes.values() if shape}
        if len(sizes) > 1:
            raise _Misfit(f"its tensors have different sizes: {sorted(sizes)}")
        size = sizes.pop()[0]
        groups = getattr(layer, "num_groups", 1)
        if size % groups:
            raise _Misfit(f"{size} channels are no multiple of its {groups} groups")
        return {name: size}

    return rule


def _layer_norm(layer: Any, shapes: Shapes) -> Sizes:
    shape = shapes["weight"]
    _want(shapes, "bias", shape)
    return {"normalized_shape": shape}


def _attention(layer: Any, shapes: Shapes) -> Sizes:
    if "in_proj_weight" not in shapes:
        raise _Misfit("queries, keys and values of different widths can't be resized")
    rows, width = shapes["in_proj_weight"]
    _want(shapes, "in_proj_bias", (rows,))
    if rows != 3 * width or width % layer.head_dim:
        raise _Misfit(f"in_proj_weight {rows} x {width} holds no whole heads of {layer.head_dim}")
    heads = width // layer.head_dim
    return {"embed_dim": width, "kdim": width, "vdim": width, "num_heads": heads}


def _want(shapes: Shapes, name: str, shape: tuple[int, ...]) -> None:
    if name in shapes and shapes[name] != shape:
        raise _Misfit(f"{name} is {shapes[name]} where its weight wants {shape}")


_CONVOLUTIONS: Final = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

_RULES: Final[tuple[tuple[Any, Callable[[Any, Shapes], Sizes]], ...]] = (
    (_CONVOLUTIONS, _convolution),
    (nn.Linear, _linear),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (nn.modules.batchnorm._NormBase, _per_channel("num_features")),
    (nn.GroupNorm, _per_channel("num_channels")),
    (nn.PReLU, _per_channel("num_parameters")),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    (nn.MultiheadAttention, _attention),
)
