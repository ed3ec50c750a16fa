"""Texts augmented after they were tokenized: words masked, and cut down to some of their words.

Follows Tang et al., "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks"
(2019, arXiv:1903.12136), section 3.3, without its replacement of words by part of speech. What is
left of a text may no longer say what its label says: the lesson of a teacher, which is asked about
the augmented text, is not hurt by that (``DistillSettings.alpha`` near 1), a label is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field

from edgekit.errors import BadData
from edgekit.runtime.preprocess import TextPreprocess
from edgekit.settings import Settings

__all__ = ["TextAugment", "TextAugmenter"]

Part = Annotated[float, Field(ge=0, le=1)]


class TextAugment(Settings):
    """How texts are changed; everything is off by default.

    Attributes:
        mask: how often a word becomes ``[MASK]``, 0 to 1.
        cut: how often a text is cut down to a run of its words, 0 to 1.
        shortest: words that such a run has at least; it has any number from there to all.
    """

    mask: Part = 0.0
    cut: Part = 0.0
    shortest: Annotated[int, Field(ge=1)] = 1


class TextAugmenter:
    """Changes batches of texts of one tokenizer.

    Args:
        how: what is done.
        preprocess: the tokenizer.

    Raises:
        BadData: words are to be masked, and the vocabulary has no mask.
    """

    def __init__(self, how: TextAugment, preprocess: TextPreprocess) -> None:
        vocab = preprocess.vocab
        if how.mask and preprocess.mask not in vocab:
            raise BadData(
                f"texts are to be masked, and the vocabulary has no {preprocess.mask}",
                hint="set mask=0",
            )
        self.how = how
        self._ids, self._mask = preprocess.ids_name, preprocess.mask_name
        self._continues = torch.tensor([piece.startswith("##") for piece in vocab])
        frame = (preprocess.cls, preprocess.sep, preprocess.pad)
        self._frame = torch.tensor([piece in frame for piece in vocab])
        self._masked = vocab.index(preprocess.mask) if how.mask else -1
        self._pad = vocab.index(preprocess.pad)

    def __call__(
        self, feeds: Mapping[str, torch.Tensor], generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """The texts, each changed in its own way; all pieces of a word share its fate.

        Args:
            feeds: ids, mask, and segments where the model takes any, integers ``[n, length]``.
            generator: what is drawn from.

        Returns:
            The same inputs, shorter texts padded on the right.
        """
        ids, how = feeds[self._ids], self.how
        here = ~self._frame[ids]
        # The number of each token's word, from 0; what is of the frame has none.
        starts = here & ~self._continues[ids]
        word = (torch.cumsum(starts, 1) - 1).clamp(min=0)
        words = starts.sum(1, keepdim=True)
        drawn = torch.rand(ids.shape, generator=generator)
        cut, length, place = torch.rand(3, len(ids), 1, generator=generator)
        hidden = here & (drawn.gather(1, word) < how.mask)
        ids = torch.where(hidden, self._masked, ids)
        least = words.clamp(max=how.shortest)
        kept = least + (length * (words - least + 1)).long()
        first = (place * (words - kept + 1)).long()
        inside = (word >= first) & (word < first + kept)
        keep = feeds[self._mask].bool() & (~here | inside | (cut >= how.cut))
        order = torch.argsort(~keep, dim=1, stable=True)
        left = keep.gather(1, order)
        made = {name: value.gather(1, order) * left for name, value in feeds.items()}
        made[self._ids] = torch.where(left, ids.gather(1, order), self._pad)
        return {name: value.to(feeds[name].dtype) for name, value in made.items()}
