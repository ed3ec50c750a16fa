"""WordPiece tokenization as BERT defined it, with the standard library alone.

Text is cleaned, lower-cased and stripped of accents where the model asks for it, split at white
space, punctuation and CJK characters, and each word is then covered greedily, longest piece first,
by the vocabulary (Schuster and Nakajima, ICASSP 2012; Devlin et al., arXiv:1810.04805). Where
BERT's published implementations differ, this one follows ``tokenizers``, which
``BertTokenizerFast`` runs: literal special tokens in the text are taken as such, lower-casing
ignores context, and unassigned code points are kept.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["MAX_WORD_CHARS", "WordPiece"]

MAX_WORD_CHARS = 100
"""Longer words become the unknown token whole."""

# CJK ideographs and their extensions: every one is a word of its own.
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


@dataclass(frozen=True)
class WordPiece:
    """A tokenizer for one vocabulary.

    Attributes:
        ids: piece to id; pieces that continue a word start with ``##``.
        special: tokens that are matched literally in the text, before anything else.
        unknown: the token for words that the vocabulary cannot cover.
        lower_case: lower-case the text.
        strip_accents: drop combining marks after canonical decomposition.
    """

    ids: Mapping[str, int]
    special: tuple[str, ...]
    unknown: str
    lower_case: bool
    strip_accents: bool

    def __call__(self, text: str) -> list[int]:
        """The ids of ``text``, without the tokens that frame a sequence."""
        out: list[int] = []
        for part in self._split_special(text):
            if part in self.special:
                out.append(self.ids[part])
            else:
                for word in words(part, self.lower_case, self.strip_accents):
                    out.extend(self._pieces(word))
        return out

    def _split_special(self, text: str) -> list[str]:
        if not self.special:
            return [text]
        # Longest first, so that no token hides behind another that begins it.
        tokens = sorted(self.special, key=len, reverse=True)
        return re.split("(" + "|".join(map(re.escape, tokens)) + ")", text)

    def _pieces(self, word: str) -> list[int]:
        unknown = [self.ids[self.unknown]]
        if len(word) > MAX_WORD_CHARS:
            return unknown
        out: list[int] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                piece = self.ids.get(prefix + word[start:end])
                if piece is not None:
                    out.append(piece)
                    start = end
                    break
            else:
                return unknown
        return out


def words(text: str, lower_case: bool, strip_accents: bool) -> Iterator[str]:
    """Splits ``text`` at white space, around every punctuation mark and around every ideograph."""
    clean = "".join(_clean(char) for char in text)
    if strip_accents:
        decomposed = unicodedata.normalize("NFD", clean)
        clean = "".join(c for c in decomposed if unicodedata.category(c) != "Mn")
    if lower_case:
        # Character by character: str.lower() of a whole word would write a final sigma.
        clean = "".join(c.lower() for c in clean)
    for word in clean.split():
        start = 0
        for i, char in enumerate(word):
            if _is_punctuation(char):
                if i > start:
                    yield word[start:i]
                yield char
                start = i + 1
        if start < len(word):
            yield word[start:]


@lru_cache(maxsize=4096)
def _clean(char: str) -> str:
    """What one character becomes before the text is split: itself, a space, or nothing."""
    if char in "\t\n\r ":
        return " "
    category = unicodedata.category(char)
    if char in "\0\ufffd" or category in ("Cc", "Cf", "Co", "Cs"):
        return ""
    if category in ("Zs", "Zl", "Zp"):
        return " "
    code = ord(char)
    if any(low <= code <= high for low, high in _IDEOGRAPHS):
        return f" {char} "
    return char


@lru_cache(maxsize=4096)
def _is_punctuation(char: str) -> bool:
    # ASCII symbols such as $ and ^ count as punctuation, whatever Unicode calls them.
    if char.isascii():
        return char.isprintable() and not char.isalnum() and char != " "
    return unicodedata.category(char).startswith("P")
