"""A student out of its teacher: fewer layers, narrower ones, fewer words.

The student is a model of the teacher's own family, which `transformers` can save and load; what was
taken is written in its configuration under ``student_of``.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from edgekit.compress._encoders import Family, blank, family_of
from edgekit.compress._narrow import Narrow, narrowed
from edgekit.compress.distill import Match, Pair
from edgekit.errors import UsageError

__all__ = ["layer_pairs", "student_of"]


def student_of(
    teacher: nn.Module,
    layers: Sequence[int] | None = None,
    *,
    hidden_size: int | None = None,
    heads: int | None = None,
    intermediate_size: int | None = None,
    samples: Mapping[str, torch.Tensor] | None = None,
) -> nn.Module:
    """A smaller classifier that starts from what its teacher knows.

    Layers are copied: Sanh et al., "DistilBERT, a distilled version of BERT", 2019,
    arXiv:1910.01108, section 3, take every other one. A narrower student is made of the copy:

    - attention heads, their dimensions and neurons of feed-forward networks are those whose weights
      are largest;
    - with ``samples`` hidden states are projected onto their principal components, as in Ashkboos
      et al., "SliceGPT: Compress Large Language Models by Deleting Rows and Columns", 2024,
      arXiv:2401.15024, and then each linear layer and each normalization, in the order of the
      data's way, is fitted by least squares to what the wide one gives for the samples;
    - without samples the hidden dimensions with the largest weights are kept.

    Args:
        teacher: a classifier of the family of BERT, DistilBERT or RoBERTa; it stays as it is.
        layers: which of its layers, in this order; None means every other one, the first included.
        hidden_size: width of the student's hidden states; None is the teacher's.
        heads: attention heads of a layer; None keeps the size of a head.
        intermediate_size: width of feed-forward networks; None keeps their ratio to the hidden
            states'.
        samples: inputs by name, some 100 samples of the training data; what a batch holds beside
            inputs is ignored.

    Returns:
        The student, in eval mode.

    Raises:
        UnsupportedError: a model of another family.
        UsageError: a layer that is not there, or a size that is not smaller or does not divide.
    """
    family, config = family_of(teacher)
    count = int(config.num_hidden_layers)
    chosen = list(range(0, count, 2)) if layers is None else [int(i) for i in layers]
    wrong = [i for i in chosen if not 0 <= i < count]
    if wrong or not chosen:
        raise UsageError(
            f"layers: the teacher has {count} layers, 0 to {count - 1}, "
            + (f"and no layer {wrong[0]}" if wrong else "and none was asked for"),
        )
    student = _shallow(teacher, family, chosen)
    if hidden_size is None and heads is None and intermediate_size is None:
        return student
    sizes = Narrow.of(config, family, hidden_size, heads, intermediate_size)
    narrow = narrowed(student, family, sizes, samples)
    basis = "components" if samples is not None and sizes.hidden < config.hidden_size else "select"
    narrow.config.student_of = {**student.config.student_of, "hidden": basis}  # type: ignore[union-attr, dict-item]
    return narrow


def _shallow(teacher: nn.Module, family: Family, layers: Sequence[int]) -> nn.Module:
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(layers)  # type: ignore[union-attr]
    config.student_of = {  # type: ignore[union-attr]
        "layers": list(layers),
        "of": int(teacher.config.num_hidden_layers),  # type: ignore[union-attr, arg-type]
    }
    student = blank(teacher, config)
    theirs: Mapping[str, torch.Tensor] = teacher.state_dict()
    name_of = re.compile(rf"({re.escape(family.layers)}\.)(\d+)(\..*)")

    def source(name: str) -> torch.Tensor:
        found = name_of.fullmatch(name)
        if found is None:
            return theirs[name]
        return theirs[f"{found[1]}{layers[int(found[2])]}{found[3]}"]

    student.load_state_dict({name: source(name) for name in student.state_dict()})
    return student


def layer_pairs(
    student: nn.Module,
    teacher: nn.Module,
    match: Match = "cosine",
    *,
    every: bool = False,
    weight: float = 1.0,
    heads: int | None = None,
) -> list[Pair]:
    """Which layers of a student that `student_of` made are compared with which of the teacher's.

    A student's layer stands for its own and for the teacher's layers that were left out after it,
    so it is compared with the last of these; the student's last one with the teacher's last one.

    Args:
        student, teacher: of the same family.
        match: how, for ``hidden`` and ``cosine`` the layers' outputs, for ``attention`` and
            ``relation`` the self-attentions in them.
        every: all of the student's layers, as TinyBERT has it; else the last one alone, as
            DistilBERT and MiniLM have it.
        weight: of all pairs together.
        heads: see `Pair`.

    Raises:
        UnsupportedError: a model of another family.
        UsageError: the student's configuration does not say which layers were taken, or ``match``
            is for pictures.
    """
    family, config = family_of(student)
    theirs, wide = family_of(teacher)
    if match in ("hint", "transfer"):
        raise UsageError(f"match={match!r} compares feature maps, which encoders have none of")
    told = getattr(config, "student_of", None)
    if not isinstance(told, Mapping) or theirs != family:
        raise UsageError(
            "the student does not say which of the teacher's layers it has",
            hint="make it with student_of, or give distill pairs of names",
        )
    chosen, count = list(told["layers"]), int(told["of"])
    if count != int(wide.num_hidden_layers):
        raise UsageError(
            f"the student was made of a teacher of {count} layers; this one has "
            f"{wide.num_hidden_layers}",
            hint="give distill pairs of names",
        )
    ends = [after - 1 for after in chosen[1:]] + [count - 1]
    pairs = list(enumerate(max(end, own) for end, own in zip(ends, chosen, strict=True)))
    within = f".{family.attention}" if match in ("attention", "relation") else ""
    used = pairs if every else pairs[-1:]
    return [
        Pair(
            f"{family.layers}.{ours}{within}",
            f"{family.layers}.{its}{within}",
            match,
            weight / len(used),
            heads,
        )
        for ours, its in used
    ]
