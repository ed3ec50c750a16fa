"""Makes an encoder narrower, so that it starts near the wide one's answers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import torch
from torch import nn

from edgekit.compress._classes import inputs_of
from edgekit.compress._encoders import Family, blank
from edgekit.compress._matching import ask
from edgekit.errors import UsageError

__all__ = ["Narrow", "narrowed"]

PULL: Final = 1e-3
"""How strongly a fitted layer is held to the projected one, as a part of its inputs' variance."""

AT_ONCE: Final = 32
"""Samples of one forward pass."""


@dataclass(frozen=True)
class Narrow:
    """The sizes of a narrower encoder.

    Attributes:
        hidden: width of hidden states.
        heads: attention heads.
        inner: width of feed-forward networks.
    """

    hidden: int
    heads: int
    inner: int

    @classmethod
    def of(
        cls,
        config: Any,
        family: Family,
        hidden: int | None,
        heads: int | None,
        inner: int | None,
    ) -> Self:
        """The sizes that were asked for, and the others by the wide model's proportions.

        Raises:
            UsageError: one is not smaller, or heads do not divide the hidden states.
        """
        wide, wide_heads = int(config.hidden_size), int(config.num_attention_heads)
        wide_inner = int(getattr(config, family.inner_size))
        size = wide // wide_heads
        hidden = wide if hidden is None else hidden
        if heads is None:
            heads = wide_heads if hidden == wide else hidden // size
            if hidden % size:
                raise UsageError(
                    f"hidden_size {hidden} is no multiple of the teacher's heads of {size}",
                    hint=f"take {max(size, hidden - hidden % size)}, or give heads=",
                )
        inner = max(1, wide_inner * hidden // wide) if inner is None else inner
        for name, value, top in (
            ("hidden_size", hidden, wide),
            ("heads", heads, wide_heads),
            ("intermediate_size", inner, wide_inner),
        ):
            if not 1 <= value <= top:
                raise UsageError(f"{name} {value}: the teacher's is {top}; allowed: 1 to {top}")
        if hidden % heads or hidden // heads > size:
            raise UsageError(
                f"hidden_size {hidden} and {heads} heads: heads must divide it, and none may be "
                f"larger than the teacher's, of {size}"
            )
        return cls(hidden, heads, inner)


@dataclass(frozen=True)
class _Bases:
    """Where the narrow model's coordinates lie in the wide one's: matrices [wide, narrow]."""

    hidden: torch.Tensor
    pooled: torch.Tensor


def narrowed(
    wide: nn.Module, family: Family, sizes: Narrow, samples: Mapping[str, torch.Tensor] | None
) -> nn.Module:
    """A narrower model of the same class; see `edgekit.compress.student.student_of`.

    Args:
        wide: in eval mode.
        family: of it.
        sizes: of the narrow one.
        samples: inputs by name, or None.
    """
    config = copy.deepcopy(wide.config)
    config.hidden_size = sizes.hidden  # type: ignore[union-attr]
    config.num_attention_heads = sizes.heads  # type: ignore[union-attr]
    setattr(config, family.inner_size, sizes.inner)
    narrow = blank(wide, config)
    given = None if samples is None else inputs_of(samples)
    hidden = _hidden_basis(wide, family, sizes, given)
    pooled = _picked(_part(wide, family.classes).weight.norm(dim=0), sizes.hidden)
    projections = _projections(wide, family, sizes, _Bases(hidden, pooled))
    with torch.no_grad():
        for name, (read, write) in projections.items():
            _project(_part(wide, name), _part(narrow, name), read, write)
        if given is not None:
            _fit(wide, narrow, projections, given)
    return narrow


def _part(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name)


# -- coordinates ----------------------------------------------------------------------------------


def _picked(importance: torch.Tensor, count: int) -> torch.Tensor:
    """The matrix that keeps the ``count`` most important coordinates, in their order."""
    rows = importance.argsort(descending=True, stable=True)[:count].sort().values
    return torch.eye(len(importance), dtype=torch.float64, device=importance.device)[:, rows]


def _hidden_basis(
    wide: nn.Module, family: Family, sizes: Narrow, samples: Mapping[str, torch.Tensor] | None
) -> torch.Tensor:
    width = _part(wide, family.first_norm).weight.shape[0]
    if sizes.hidden == width:
        return torch.eye(width, dtype=torch.float64, device=next(wide.parameters()).device)
    count = len(_part(wide, family.layers))
    norms = [family.layer(i, part) for i in range(count) for part in ("mixed_norm", "outer_norm")]
    if samples is None:
        total = torch.zeros(width, dtype=torch.float64, device=next(wide.parameters()).device)
        for i in range(count):
            for part in ("query", "key", "value", "inner"):
                total += _part(wide, family.layer(i, part)).weight.double().square().sum(0)
            for part in ("mixed", "outer"):
                total += _part(wide, family.layer(i, part)).weight.double().square().sum(1)
        return _picked(total, sizes.hidden)
    second = torch.zeros(width, width, dtype=torch.float64)
    for _, outputs in _seen(wide, [family.first_norm, *norms], samples):
        for output in outputs.values():
            # Hidden states of every depth count alike, and so does their mean: it is written too.
            second += output.T @ output / output.square().mean()
    _, vectors = torch.linalg.eigh(second)
    basis: torch.Tensor = vectors[:, -sizes.hidden :].flip(1)
    # The sign of a component is the solver's choice; its largest part is positive here.
    signs = basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()
    return basis * signs


def _heads_basis(
    wide: nn.Module, family: Family, sizes: Narrow, layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """For queries and keys, and for values: the matrices that keep heads, and parts of each."""
    q, k, v = (_part(wide, family.layer(layer, p)).weight for p in ("query", "key", "value"))
    mixed = _part(wide, family.layer(layer, "mixed")).weight
    width = q.shape[0]
    heads = int(wide.config.num_attention_heads)  # type: ignore[union-attr, arg-type]
    size, wanted = width // heads, sizes.hidden // sizes.heads
    written = v.double().norm(dim=1) * mixed.double().norm(dim=0)
    compared = q.double().norm(dim=1) * k.double().norm(dim=1)
    chosen = _picked(written.reshape(heads, size).sum(1), sizes.heads).argmax(0)
    bases = []
    for importance in (compared, written):
        columns = []
        for head in chosen.tolist():
            within = _picked(importance.reshape(heads, size)[head], wanted).argmax(0)
            columns.append(within + head * size)
        identity = torch.eye(width, dtype=torch.float64, device=q.device)
        bases.append(identity[:, torch.cat(columns)])
    # Scores are divided by the root of a head's size, which is another one now.
    return bases[0] * (wanted / size) ** 0.25, bases[1]


_Projection = tuple[torch.Tensor | None, torch.Tensor | None]
"""The coordinates that a module reads and those that it writes; None for all."""


def _projections(
    wide: nn.Module, family: Family, sizes: Narrow, bases: _Bases
) -> dict[str, _Projection]:
    """By name, in the order of the data's way."""
    hidden = bases.hidden
    found: dict[str, _Projection] = {name: (None, hidden) for name in family.embeddings}
    found[family.first_norm] = (hidden, hidden)
    for i in range(len(_part(wide, family.layers))):
        compared, written = _heads_basis(wide, family, sizes, i)
        before = _part(wide, family.layer(i, "inner")).weight.double().norm(dim=1)
        after = _part(wide, family.layer(i, "outer")).weight.double().norm(dim=0)
        inner = _picked(before * after, sizes.inner)
        found |= {
            family.layer(i, part): projection
            for part, projection in {
                "query": (hidden, compared),
                "key": (hidden, compared),
                "value": (hidden, written),
                "mixed": (written, hidden),
                "mixed_norm": (hidden, hidden),
                "inner": (hidden, inner),
                "outer": (inner, hidden),
                "outer_norm": (hidden, hidden),
            }.items()
        }
    found[family.pooled] = (hidden, bases.pooled)
    found[family.classes] = (bases.pooled, None)
    return found


def _project(wide: Any, narrow: Any, read: torch.Tensor | None, write: torch.Tensor | None) -> None:
    weight = wide.weight.double()
    if isinstance(wide, nn.Embedding):
        assert write is not None
        narrow.weight.copy_(weight @ write)
        return
    if isinstance(wide, nn.LayerNorm):
        assert write is not None
        # Exact where the basis keeps coordinates; a start for the fit where it turns them.
        narrow.weight.copy_(write.square().T @ weight)
        narrow.bias.copy_(write.T @ wide.bias.double())
        return
    weight = weight if write is None else write.T @ weight
    narrow.weight.copy_(weight if read is None else weight @ read)
    narrow.bias.copy_(wide.bias.double() if write is None else write.T @ wide.bias.double())


# -- fitting --------------------------------------------------------------------------------------


def _seen(
    model: nn.Module, names: list[str], samples: Mapping[str, torch.Tensor]
) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """What the named modules take and give, float64 ``[tokens, width]`` on the CPU.

    Tokens that are padding are left out. Samples come a few at a time.
    """
    device = next(model.parameters()).device
    taken: dict[str, torch.Tensor] = {}
    given: dict[str, torch.Tensor] = {}
    count = len(next(iter(samples.values())))
    handles = [
        model.get_submodule(name).register_forward_hook(_keeper(name, taken, given))
        for name in names
    ]
    try:
        for start in range(0, count, AT_ONCE):
            part = {n: v[start : start + AT_ONCE].to(device) for n, v in samples.items()}
            with torch.no_grad():
                ask(model, part)
            mask = part.get("attention_mask")
            yield (
                {name: _tokens(taken[name], mask) for name in names},
                {name: _tokens(given[name], mask) for name in names},
            )
    finally:
        for handle in handles:
            handle.remove()


def _keeper(name: str, taken: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> Any:
    def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        taken[name], given[name] = inputs[0], output

    return keep


def _tokens(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if values.ndim == 3 and mask is not None and values.shape[:2] == mask.shape:
        values = values[mask != 0]
    return values.flatten(0, -2).double().cpu()


def _fit(
    wide: nn.Module,
    narrow: nn.Module,
    projections: Mapping[str, _Projection],
    samples: Mapping[str, torch.Tensor],
) -> None:
    """Fits each layer, in order, to what the wide one gives in the narrow one's coordinates."""
    names = [n for n in projections if not isinstance(_part(narrow, n), nn.Embedding)]
    pieces: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for _, outputs in _seen(wide, names, samples):
        for name, output in outputs.items():
            write = projections[name][1]
            pieces[name].append(output if write is None else output @ write.cpu())
    for name in names:
        layer = _part(narrow, name)
        taken = torch.cat([inputs[name] for inputs, _ in _seen(narrow, [name], samples)])
        wanted = torch.cat(pieces.pop(name))
        fit = _fit_norm if isinstance(layer, nn.LayerNorm) else _fit_linear
        fit(layer, taken, wanted)


def _fit_norm(layer: Any, taken: torch.Tensor, wanted: torch.Tensor) -> None:
    """Scale and shift of each coordinate, by a straight line through what it should give."""
    normal = nn.functional.layer_norm(taken, taken.shape[1:], eps=layer.eps)
    about, mean = normal.mean(0), wanted.mean(0)
    spread = (normal - about).square().mean(0)
    scale = ((normal - about) * (wanted - mean)).mean(0) / spread.clamp(min=1e-9)
    layer.weight.copy_(scale)
    layer.bias.copy_(mean - scale * about)


def _fit_linear(layer: Any, taken: torch.Tensor, wanted: torch.Tensor) -> None:
    """Least squares, held to the weights that it has where the samples say little."""
    start = torch.cat([layer.weight.T, layer.bias[None]]).double().cpu()
    inputs = torch.cat([taken, taken.new_ones(len(taken), 1)], 1)
    square = inputs.T @ inputs
    pull = PULL * square.diagonal().mean()
    held = square + pull * torch.eye(len(square), dtype=torch.float64)
    solved = torch.linalg.solve(held, inputs.T @ wanted + pull * start)
    layer.weight.copy_(solved[:-1].T)
    layer.bias.copy_(solved[-1])
