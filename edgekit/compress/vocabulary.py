"""Cuts a text model's vocabulary to the pieces that its training texts use.

Of small encoders most weights are the embedding's: 11.7 of MiniLM-L6's 22.7 million.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn

from edgekit.compress._encoders import blank, family_of
from edgekit.compress._pairing import answering
from edgekit.errors import BadData, EdgekitError, UsageError
from edgekit.runtime.preprocess import TextPreprocess

__all__ = ["Trimmed", "trim_vocabulary"]

CHECKED: Final = 8
"""Texts whose answers before and after are compared."""

_SPECIAL_IDS: Final = ("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id")


@dataclass(frozen=True)
class Trimmed:
    """A model with fewer words.

    Attributes:
        model: of the same class, in eval mode, with fewer rows in its embedding of words.
        preprocess: the tokenizer whose ids it takes; ``preprocess.vocab`` is the new vocabulary.
        rows: int64 ``[len(vocab)]``, the id that each piece had.
        unknown: the part of the texts' tokens that has become the unknown token.
        changed: how many of the texts are cut into other pieces than before.
    """

    model: nn.Module
    preprocess: TextPreprocess
    rows: torch.Tensor
    unknown: float
    changed: int


def trim_vocabulary(
    model: nn.Module,
    preprocess: TextPreprocess,
    texts: Iterable[str],
    *,
    size: int | None = None,
    at_least: int = 1,
    letters: bool = True,
    keep: Iterable[str] = (),
) -> Trimmed:
    """The model with the embedding's rows of those pieces only that the texts use.

    Special tokens stay. A word of which no cover is left becomes the unknown token. A text of which
    all pieces are kept is cut as before, since the longest piece that fits is still the longest;
    that is checked for every text, and for some that the model's answers stay as they were.

    Args:
        model: a classifier of the family of BERT or DistilBERT; it stays as it is.
        preprocess: its tokenizer.
        texts: the training texts; never those that the model is judged by.
        size: pieces in the new vocabulary at most, the most frequent ones; None for no bound.
        at_least: how often a piece must occur.
        letters: keep single ASCII characters, alone and within words, so that hardly a word
            becomes unknown.
        keep: pieces to keep whether they occur or not.

    Raises:
        BadData: there are no texts, or the tokenizer has more pieces than the model.
        UnsupportedError: a model of another family.
        UsageError: ``size`` is too small for what stays in any case, or a piece to keep is not
            there.
    """
    family, config = family_of(model)
    listed = list(texts)
    if not listed:
        raise BadData("there are no texts to take the vocabulary from")
    if len(preprocess.vocab) > int(config.vocab_size):
        raise BadData(
            f"the tokenizer has {len(preprocess.vocab)} pieces, the model's embedding "
            f"{config.vocab_size} rows",
            hint="the vocabulary belongs to another model",
        )
    before = [_ids(preprocess, text) for text in listed]
    rows = _chosen(preprocess, before, size, at_least, letters, list(keep))
    smaller = replace(preprocess, vocab=tuple(preprocess.vocab[row] for row in rows))
    trimmed = _with_rows(model, family.embeddings[0], config, rows)
    after = [_ids(smaller, text) for text in listed]
    changed = _check_ids(before, after, rows, listed)
    _check_answers(model, trimmed, preprocess, smaller, listed, changed)
    lost = smaller.vocab.index(smaller.unk)
    had = preprocess.vocab.index(preprocess.unk)
    tokens = sum(map(len, after))
    unknown = sum(ids.count(lost) for ids in after) - sum(ids.count(had) for ids in before)
    return Trimmed(
        trimmed, smaller, torch.tensor(rows), max(0, unknown) / max(1, tokens), len(changed)
    )


def _ids(preprocess: TextPreprocess, text: str) -> list[int]:
    """The ids of a text, framed and cut as the model gets it, without padding."""
    made = preprocess.apply(text)
    count = int(made[preprocess.mask_name].sum())
    ids: list[int] = made[preprocess.ids_name][0, :count].tolist()
    return ids


def _chosen(
    preprocess: TextPreprocess,
    used: Sequence[Sequence[int]],
    size: int | None,
    at_least: int,
    letters: bool,
    keep: Sequence[str],
) -> list[int]:
    """The ids that stay, in ascending order."""
    places = {piece: i for i, piece in enumerate(preprocess.vocab)}
    absent = [piece for piece in keep if piece not in places]
    if absent:
        raise UsageError(f"keep: the vocabulary has no piece {absent[0]!r}")
    p = preprocess
    special = [token for token in (p.unk, p.cls, p.sep, p.pad, p.mask) if token in places]
    fixed = {places[piece] for piece in (*special, *keep)}
    if letters:
        fixed |= {
            i
            for piece, i in places.items()
            if len(bare := piece.removeprefix("##")) == 1 and bare.isascii()
        }
    counts = Counter(i for ids in used for i in ids)
    frequent = sorted(
        (i for i, n in counts.items() if n >= at_least and i not in fixed),
        key=lambda i: (-counts[i], i),
    )
    if size is not None:
        if size < len(fixed):
            raise UsageError(
                f"size {size}: {len(fixed)} pieces stay in any case (special tokens"
                + (", single letters" if letters else "")
                + (", those to keep)" if keep else ")"),
                hint=f"give {len(fixed)} or more" + (", or letters=False" if letters else ""),
            )
        frequent = frequent[: size - len(fixed)]
    return sorted(fixed | set(frequent))


def _with_rows(model: nn.Module, embedding: str, config: Any, rows: Sequence[int]) -> nn.Module:
    smaller = copy.deepcopy(config)
    smaller.vocab_size = len(rows)
    for name in _SPECIAL_IDS:
        place = getattr(config, name, None)
        if isinstance(place, int):
            setattr(smaller, name, rows.index(place) if place in rows else None)
    made = blank(model, smaller)
    state = dict(model.state_dict())
    name = f"{embedding}.weight"
    state[name] = state[name][torch.tensor(rows, device=state[name].device)]
    made.load_state_dict(state)
    return made


def _check_ids(
    before: Sequence[Sequence[int]],
    after: Sequence[Sequence[int]],
    rows: Sequence[int],
    texts: Sequence[str],
) -> set[int]:
    """Which texts are cut otherwise now; none whose pieces were all kept may be among them."""
    kept, changed = set(rows), set()
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        if [rows[j] for j in new] == list(old):
            continue
        if kept.issuperset(old):
            raise EdgekitError(
                f"all pieces of text {i} were kept, and its ids differ: {texts[i]!r}"
            )
        changed.add(i)
    return changed


def _check_answers(
    model: nn.Module,
    trimmed: nn.Module,
    preprocess: TextPreprocess,
    smaller: TextPreprocess,
    texts: Sequence[str],
    changed: set[int],
) -> None:
    same = [text for i, text in enumerate(texts) if i not in changed][:CHECKED]
    device = next(model.parameters()).device
    with answering(model):
        for text in same:
            answers = [
                network(
                    **{n: torch.from_numpy(v).to(device) for n, v in made.apply(text).items()}
                ).logits
                for network, made in ((model, preprocess), (trimmed, smaller))
            ]
            # Not to the last bit: sums depend on where in memory the weights happen to lie.
            if not torch.allclose(answers[0], answers[1], rtol=1e-4, atol=1e-4):
                raise EdgekitError(f"the answer changed though the ids did not: {text!r}")
