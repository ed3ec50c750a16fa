"""What a student is held against inside: one kind of comparison per class, named in `KINDS`."""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import nn
from torch.nn import functional as F

from edgekit.errors import UsageError

__all__ = [
    "KINDS",
    "Matching",
    "Sides",
    "ask",
    "captured",
    "first_tensor",
    "output_shapes",
]

_ATTENTION: Final = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))
"""What families of encoders call the three layers of self-attention."""

_HEADS: Final = ("num_attention_heads", "n_heads")


def ask(network: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    """What a network gives; a single input by position, several by name, as in training."""
    return network(*inputs.values()) if len(inputs) == 1 else network(**inputs)


def first_tensor(output: Any) -> torch.Tensor | None:
    """The tensor that a module gave: itself, or the first of a tuple or of a model's output."""
    if isinstance(output, torch.Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output
    if not isinstance(values, Iterable):
        return None
    return next((v for v in values if isinstance(v, torch.Tensor)), None)


@contextlib.contextmanager
def captured(module: nn.Module, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """Collects what the named modules give while it lasts; of several calls, the last.

    Hooks live for one call only, so that a module that is copied or pickled carries none.
    """
    found: dict[str, torch.Tensor] = {}
    parts = dict(module.named_modules())

    def keeper(name: str) -> Any:
        def keep(part: nn.Module, args: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                found[name] = tensor

        return keep

    handles = [parts[name].register_forward_hook(keeper(name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def output_shapes(module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    """The shape of what each module in ``module`` gives for these inputs, by name."""
    names = [name for name, _ in module.named_modules() if name]
    with torch.no_grad(), captured(module, names) as found:
        ask(module, inputs)
    return {name: list(found[name].shape) for name in names if name in found}


@dataclass(frozen=True)
class Sides:
    """Two layers that are to be compared.

    Attributes:
        student, teacher: the networks.
        ours, theirs: names of the modules in them.
        found: what both gave for a few samples: the student's and the teacher's, by `sites`.
        heads: see `edgekit.compress.distill.Pair`.
    """

    student: nn.Module
    teacher: nn.Module
    ours: str
    theirs: str
    found: tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]
    heads: int | None = None


class Matching(nn.Module, abc.ABC):
    """How far apart two layers are; what it learns is trained along with the student.

    Raises:
        UsageError: the two cannot be compared in this way.
    """

    keeps: ClassVar[tuple[str, ...]] = ("",)
    """What `kept` holds, in order."""

    def __init__(self, sides: Sides) -> None:
        super().__init__()

    @classmethod
    def sites(cls, network: nn.Module, name: str) -> tuple[str, ...]:
        """The modules whose outputs are compared when ``name`` is named."""
        return (name,)

    def kept(self, found: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What of the teacher's outputs is compared with, ``[n, ...]`` each."""
        return list(found)

    def adapted(self, found: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The student's outputs in the form of `kept`."""
        return list(found)

    @abc.abstractmethod
    def distance(
        self,
        ours: Sequence[torch.Tensor],
        theirs: Sequence[torch.Tensor],
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """A scalar, 0 where the student gives what the teacher gave.

        Args:
            ours: out of `adapted`, float32.
            theirs: out of `kept`, float32.
            mask: ``[n, t]``, 1 where a token counts, or None.
        """


def _mean(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The mean of ``[n, t, ...]`` over tokens that count, and over all that follows."""
    if mask is None or values.ndim < 2 or values.shape[:2] != mask.shape:
        return values.mean()
    per_token = values.flatten(2).mean(2) if values.ndim > 2 else values
    weights = mask.to(per_token.dtype)
    return (per_token * weights).sum() / weights.sum().clamp(min=1)


class Hidden(Matching):
    """Mean squared error of hidden states, the student's through a learned projection if narrower.

    Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2019,
    arXiv:1909.10351, equation 8.
    """

    def __init__(self, sides: Sides) -> None:
        super().__init__(sides)
        (s,), (t,) = sides.found
        if s.ndim != t.ndim or s.shape[:-1] != t.shape[:-1] or s.ndim < 2:
            raise UsageError("they differ in more than the last dimension")
        self.project: nn.Module = nn.Identity()
        if s.shape[-1] != t.shape[-1]:
            self.project = nn.Linear(s.shape[-1], t.shape[-1])

    def adapted(self, found: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Through the projection."""
        return [self.project(found[0])]

    def distance(
        self,
        ours: Sequence[torch.Tensor],
        theirs: Sequence[torch.Tensor],
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """See `Matching.distance`."""
        return _mean((ours[0] - theirs[0]).square(), mask)


class Cosine(Matching):
    """One less the cosine of the angle between hidden states of the same width.

    The third part of the loss of Sanh et al., "DistilBERT, a distilled version of BERT", 2019,
    arXiv:1910.01108.
    """

    def __init__(self, sides: Sides) -> None:
        super().__init__(sides)
        if sides.found[0][0].shape != sides.found[1][0].shape or sides.found[0][0].ndim < 2:
            raise UsageError("an angle needs two of one shape; match='hidden' learns a projection")

    def distance(
        self,
        ours: Sequence[torch.Tensor],
        theirs: Sequence[torch.Tensor],
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """See `Matching.distance`."""
        return _mean(1 - F.cosine_similarity(ours[0], theirs[0], dim=-1), mask)


class _SelfAttention(Matching):
    """What both comparisons of self-attention share: they look at its three linear layers.

    Maps are made of these here, since fused attention gives none.
    """

    keeps: ClassVar[tuple[str, ...]] = ("query", "key")

    @classmethod
    def sites(cls, network: nn.Module, name: str) -> tuple[str, ...]:
        """The layers for queries, keys and values within the self-attention ``name``."""
        part = network.get_submodule(name)
        children = {child for child, _ in part.named_children()}
        for names in _ATTENTION:
            if children >= set(names):
                return tuple(f"{name}.{n}" for n in names[: len(cls.keeps)])
        raise UsageError(
            f"layer {name!r} is no self-attention: it has no layers "
            f"{' or '.join(', '.join(names) for names in _ATTENTION)}"
        )


def _head_count(network: nn.Module, name: str) -> int:
    part = network.get_submodule(name)
    for attribute in _HEADS:
        count = getattr(part, attribute, None)
        if isinstance(count, int):
            return count
    raise UsageError(f"layer {name!r} does not say how many heads it has ({' or '.join(_HEADS)})")


def _heads_of(values: torch.Tensor, heads: int) -> torch.Tensor:
    """``[n, t, width]`` as ``[n, heads, t, width / heads]``."""
    return values.reshape(*values.shape[:-1], heads, -1).transpose(1, 2)


def _scores(a: torch.Tensor, b: torch.Tensor, heads: int) -> torch.Tensor:
    """Scaled products of every token with every token: ``[n, heads, t, t]``."""
    a, b = _heads_of(a, heads), _heads_of(b, heads)
    scores: torch.Tensor = a @ b.transpose(-1, -2) / math.sqrt(a.shape[-1])
    return scores


class Attention(_SelfAttention):
    """Mean squared error of attention scores before the softmax, head by head.

    Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2019,
    arXiv:1909.10351, equation 7.
    """

    def __init__(self, sides: Sides) -> None:
        super().__init__(sides)
        mine, its = _head_count(sides.student, sides.ours), _head_count(sides.teacher, sides.theirs)
        if mine != its:
            raise UsageError(
                f"the student's has {mine} heads and the teacher's {its}; match='relation' "
                "compares any two"
            )
        self.heads = mine

    def distance(
        self,
        ours: Sequence[torch.Tensor],
        theirs: Sequence[torch.Tensor],
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """See `Matching.distance`; only of tokens that count with tokens that count."""
        mine, its = (_scores(q, k, self.heads) for q, k in (ours, theirs))
        apart = (mine - its).square().mean(1)
        if mask is None:
            return apart.mean()
        both = (mask[:, :, None] * mask[:, None, :]).to(apart.dtype)
        return (apart * both).sum() / both.sum().clamp(min=1)


class Relation(_SelfAttention):
    """Divergence of the maps of queries with keys and of values with values.

    Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of
    Pre-Trained Transformers", 2020, arXiv:2002.10957; relation heads that need not be the
    networks' own are of Wang et al., "MiniLMv2", 2020, arXiv:2012.15828.
    """

    keeps: ClassVar[tuple[str, ...]] = ("query", "key", "value")

    def __init__(self, sides: Sides) -> None:
        super().__init__(sides)
        self.heads = sides.heads or _head_count(sides.student, sides.ours)
        for who, tensors in zip(("student", "teacher"), sides.found, strict=True):
            width = tensors[0].shape[-1]
            if width % self.heads:
                raise UsageError(
                    f"{self.heads} relation heads do not divide the {who}'s width of {width}; "
                    "give heads= a number that divides both"
                )

    def distance(
        self,
        ours: Sequence[torch.Tensor],
        theirs: Sequence[torch.Tensor],
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """See `Matching.distance`."""
        (q, k, v), (tq, tk, tv) = ours, theirs
        total = q.new_zeros(())
        for mine, its in (((q, k), (tq, tk)), ((v, v), (tv, tv))):
            logs, wanted = (_scores(*pair, self.heads) for pair in (mine, its))
            if mask is not None:
                padding = (mask == 0)[:, None, None, :]
                logs, wanted = (x.masked_fill(padding, -1e4) for x in (logs, wanted))
            apart = F.kl_div(
                logs.log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True
            )
            total = total + _mean(apart.sum(-1).mean(1), mask)
        return total


class _Maps(Matching):
    """What comparisons of feature maps share: the larger one is averaged down to the smaller."""

    def __init__(self, sides: Sides) -> None:
        super().__init__(sides)
        (s,), (t,) = sides.found
        if s.ndim != 4 or t.ndim != 4:
            raise UsageError("feature maps are [n, channels, height, width]")
        self.size = (min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3]))

    def _sized(self, values: torch.Tensor) -> torch.Tensor:
        return values if values.shape[2:] == self.size else F.adaptive_avg_pool2d(values, self.size)


class Hint(_Maps):
    """Mean squared error of feature maps, the student's through a learned 1 x 1 convolution.

    Romero et al., "FitNets: Hints for Thin Deep Nets", 2014, arXiv:1412.6550; the regressor is
    there where channels differ.
    """

    def __init__(self, sides: Sides) -> None:
        super().__init__(sides)
        channels = [given[0].shape[1] for given in sides.found]
        self.project: nn.Module = nn.Identity()
        if channels[0] != channels[1]:
            self.project = nn.Conv2d(channels[0], channels[1], 1)

    def kept(self, found: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """At the common size."""
        return [self._sized(found[0])]

    def adapted(self, found: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """At the common size, in the teacher's channels."""
        return [self.project(self._sized(found[0]))]

    def distance(
        self,
        ours: Sequence[torch.Tensor],
        theirs: Sequence[torch.Tensor],
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """See `Matching.distance`."""
        return F.mse_loss(ours[0], theirs[0])


class Transfer(_Maps):
    """Distance of attention maps, each the sum of squares over channels, at length 1.

    Zagoruyko and Komodakis, "Paying More Attention to Attention", 2016, arXiv:1612.03928; a mean
    over positions, as the authors' code has it.
    """

    def kept(self, found: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The map, ``[n, height * width]``."""
        return [F.normalize(self._sized(found[0].square().mean(1, keepdim=True)).flatten(1))]

    def adapted(self, found: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """As `kept`."""
        return self.kept(found)

    def distance(
        self,
        ours: Sequence[torch.Tensor],
        theirs: Sequence[torch.Tensor],
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """See `Matching.distance`."""
        return F.mse_loss(ours[0], theirs[0])


KINDS: Final[Mapping[str, type[Matching]]] = {
    "hidden": Hidden,
    "cosine": Cosine,
    "attention": Attention,
    "relation": Relation,
    "hint": Hint,
    "transfer": Transfer,
}
