"""What people say to a voice assistant, made by a grammar: sentences and what is meant by them.

    made = intents(seed=0)
    made.train[0]  # ("switch off the garage lights", 7)

Sixteen intents, the last of which is none of the others. A model that learns from the training
sentences is asked about others: those for development and for testing come from templates of their
own, and the testing ones also from names, rooms and dishes of their own. Some are garbled as a
hurried thumb or a speech recogniser would have it. All of it is drawn from one seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from edgekit.data._intent_grammar import INTENTS, SLOTS
from edgekit.errors import UsageError

__all__ = ["INTENT_NAMES", "Intents", "Split", "garbled", "intents"]

Split = Literal["train", "dev", "test"]
T = TypeVar("T")

INTENT_NAMES: Final[tuple[str, ...]] = tuple(INTENTS)
"""The intents, in the order of their class indices."""

_PARTS: Final = re.compile(r"\{(\w+)\}|\(([^()\[\]{}]*)\)|\[([^\[\]]*)\]")
_UNSEEN: Final = 0.5
"""Share of slots in testing sentences that get a value which is in no other sentence."""

_FRAMED: Final = 0.15
"""Share of sentences with something said before them; as many have something behind."""

_TRIES: Final = 60
"""Draws for each sentence that is wanted, before its templates are taken to hold no more."""

# Letters that lie beside each other on a keyboard.
_ROWS: Final = ("qwertyuiop", "asdfghjkl", "zxcvbnm")

# What recognisers of speech write for one another.
_HEARD: Final = {
    "for": "four", "to": "two", "two": "to", "four": "for", "the": "da", "eight": "ate",
    "lights": "light", "light": "like", "songs": "song", "play": "played", "alarm": "a larm",
    "by": "buy", "there": "their", "here": "hear", "hear": "here", "hour": "our", "route": "root",
    "weather": "whether", "right": "write", "write": "right", "mail": "male", "week": "weak",
    "i'm": "im", "what's": "whats", "it's": "its", "can't": "cant", "and": "an", "in": "and",
    "their": "there", "dim": "them", "sun": "son", "heat": "heed", "text": "texts",
    "call": "called",
}  # fmt: skip

# What goes before and after any sentence, and means nothing.
_OPENERS: Final = ("ok", "hey", "alright", "please", "now", "computer")
_CLOSERS: Final = ("please", "now", "thanks", "computer")

_FILLERS: Final = ("uh", "um", "er", "hey", "so", "well")


@dataclass(frozen=True)
class Intents:
    """Sentences with the index of their intent in `INTENT_NAMES`; none is in two of the splits.

    Attributes:
        train: to learn from.
        dev: to choose by.
        test: to judge by, and nothing else.
        garbled: numbers of the sentences of ``test`` that were garbled, ascending.
    """

    train: tuple[tuple[str, int], ...]
    dev: tuple[tuple[str, int], ...]
    test: tuple[tuple[str, int], ...]
    garbled: tuple[int, ...]


def intents(
    seed: int = 0, *, train: int = 100, dev: int = 20, test: int = 40, noise: float = 0.25
) -> Intents:
    """Sentences of every intent.

    Args:
        seed: of all draws; the same one gives the same sentences everywhere.
        train: sentences of each intent to learn from. Intents whose templates hold fewer (few ways
            to say hello) have fewer.
        dev: the same to choose by.
        test: the same to judge by.
        noise: share of each split that is garbled, 0 to 1; see `garbled`.

    Raises:
        UsageError: fewer than one sentence of a split, or a share outside of 0 to 1.
    """
    wanted: dict[Split, int] = {"test": test, "dev": dev, "train": train}
    few = [split for split, count in wanted.items() if count < 1]
    if few:
        raise UsageError(f"{wanted[few[0]]} sentences for {few[0]}; at least 1 is needed")
    if not 0 <= noise <= 1:
        raise UsageError(f"noise is {noise}; allowed: a share of 0 to 1")
    taken: set[str] = set()
    made: dict[Split, list[tuple[str, int]]] = {}
    rough: dict[Split, set[str]] = {}
    # Testing first: where two splits could hold the same words, they are for testing.
    for split, count in wanted.items():
        draws = random.Random(f"{seed} {split}")
        made[split], rough[split] = [], set()
        for index, name in enumerate(INTENTS):
            for clean in _sentences(name, split, count, draws, taken):
                text = clean
                if draws.random() < noise:
                    text = garbled(clean, draws)
                    if text in taken:
                        text = clean
                    elif text != clean:
                        rough[split].add(text)
                taken.add(text)
                made[split].append((text, index))
        _shuffle(made[split], draws)
    numbers = tuple(i for i, (text, _) in enumerate(made["test"]) if text in rough["test"])
    return Intents(tuple(made["train"]), tuple(made["dev"]), tuple(made["test"]), numbers)


def garbled(text: str, draws: random.Random) -> str:
    """A sentence as it may arrive: a slip of the thumb, or of a speech recogniser.

    One of: a letter left out, doubled, exchanged with the next, or hit beside; a word heard as one
    that sounds like it; a small word lost; a filler put in. Sentences of less than four letters
    stay as they are.
    """
    if len(text) < 4:
        return text
    kinds = (_left_out, _doubled, _exchanged, _beside, _misheard, _lost, _filled)
    # A word of one letter may have gone.
    return " ".join(_one_of(kinds, draws)(text, draws).split())


def _sentences(
    name: str, split: Split, count: int, draws: random.Random, taken: set[str]
) -> list[str]:
    """Up to ``count`` sentences of an intent, from its templates in turn, none of them taken."""
    templates: Sequence[str] = getattr(INTENTS[name], split)
    found: list[str] = []
    for i in range(count * _TRIES):
        if len(found) == count:
            break
        text = _said(templates[i % len(templates)], split, draws)
        if text not in taken:
            taken.add(text)
            found.append(text)
    return found


def _said(template: str, split: Split, draws: random.Random) -> str:
    """One sentence of a template."""

    def fill(match: re.Match[str]) -> str:
        slot, choice = match[1], match[2]
        if slot is not None:
            seen, unseen = SLOTS[slot]
            new = split == "test" and draws.random() < _UNSEEN
            return _one_of(unseen if new else seen, draws)
        if choice is not None:
            return _one_of(str(choice).split("|"), draws)
        return str(match[3]) if draws.random() < 0.5 else ""

    text = template
    # Options may hold slots and choices, and choices may hold slots: inside out.
    while _PARTS.search(text):
        text = _PARTS.sub(fill, text)
    words = text.split()
    if draws.random() < _FRAMED:
        words.insert(0, _one_of(_OPENERS, draws))
    if draws.random() < _FRAMED:
        words.append(_one_of(_CLOSERS, draws))
    return " ".join(words)


def _left_out(text: str, draws: random.Random) -> str:
    at = _letter(text, draws)
    return text[:at] + text[at + 1 :]


def _doubled(text: str, draws: random.Random) -> str:
    at = _letter(text, draws)
    return text[:at] + text[at] + text[at:]


def _exchanged(text: str, draws: random.Random) -> str:
    at = min(_letter(text, draws), len(text) - 2)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def _beside(text: str, draws: random.Random) -> str:
    at = _letter(text, draws)
    for row in _ROWS:
        where = row.find(text[at])
        if where >= 0:
            near = row[max(0, where - 1) : where] + row[where + 1 : where + 2]
            return text[:at] + _one_of(near, draws) + text[at + 1 :]
    return text


def _misheard(text: str, draws: random.Random) -> str:
    words = text.split()
    known = [i for i, word in enumerate(words) if word in _HEARD]
    if not known:
        return _exchanged(text, draws)
    at = _one_of(known, draws)
    words[at] = _HEARD[words[at]]
    return " ".join(words)


def _lost(text: str, draws: random.Random) -> str:
    words = text.split()
    small = [i for i, word in enumerate(words) if len(word) <= 3]
    if not small or len(words) < 4:
        return _left_out(text, draws)
    at = _one_of(small, draws)
    return " ".join(words[:at] + words[at + 1 :])


def _filled(text: str, draws: random.Random) -> str:
    words = text.split()
    at = int(draws.random() * len(words))
    return " ".join([*words[:at], _one_of(_FILLERS, draws), *words[at:]])


def _letter(text: str, draws: random.Random) -> int:
    return _one_of([i for i, char in enumerate(text) if char.isalpha()] or [0], draws)


# `random.Random.random` is the one method whose numbers Python promises to keep.
def _one_of(values: Sequence[T], draws: random.Random) -> T:
    return values[int(draws.random() * len(values))]


def _shuffle(values: list[T], draws: random.Random) -> None:
    for i in range(len(values) - 1, 0, -1):
        j = int(draws.random() * (i + 1))
        values[i], values[j] = values[j], values[i]
