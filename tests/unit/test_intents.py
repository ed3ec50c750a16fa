"""The grammar of a voice assistant's sentences, and what is drawn from it."""

from __future__ import annotations

import hashlib
import random
import re

import pytest

from edgekit.data import intents as module
from edgekit.data._intent_grammar import INTENTS, SLOTS
from edgekit.data.intents import INTENT_NAMES, garbled, intents
from edgekit.errors import UsageError

EVERY = [
    (name, split, template)
    for name, templates in INTENTS.items()
    for split in templates._fields
    for template in getattr(templates, split)
]


def test_the_same_seed_gives_the_same_sentences_everywhere() -> None:
    made = intents(seed=0)
    assert made == intents(seed=0)
    assert made != intents(seed=1)
    text = "\n".join(f"{t}\t{i}" for part in (made.train, made.dev, made.test) for t, i in part)
    # The draws are those of Python 3.11; the numbers of random() are promised not to change.
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "dbd07bbdddc73506"


def test_every_intent_has_all_the_sentences_that_were_asked_for() -> None:
    made = intents(seed=3)
    for rows, each in ((made.train, 100), (made.dev, 20), (made.test, 40)):
        for index in range(len(INTENT_NAMES)):
            assert sum(i == index for _, i in rows) == each
    # They come mixed: one who reads the first few meets most intents.
    assert len({i for _, i in made.test[:60]}) >= 12


def test_no_sentence_is_in_two_splits_or_twice() -> None:
    made = intents(seed=5, noise=0.6)
    texts = [text for rows in (made.train, made.dev, made.test) for text, _ in rows]
    assert len(set(texts)) == len(texts)
    assert all(text == " ".join(text.split()) and text for text in texts)
    assert not re.search(r"[(){}\[\]|]", "".join(texts))


def test_templates_of_one_split_are_in_no_other() -> None:
    templates = [template for _, _, template in EVERY]
    assert len(set(templates)) == len(templates)
    for name, templates_ in INTENTS.items():
        assert len(templates_.train) >= 9, name
        assert len(templates_.dev) >= 2 and len(templates_.test) >= 3, name


def test_templates_name_slots_that_there_are() -> None:
    named = {slot for _, _, template in EVERY for slot in re.findall(r"\{(\w+)\}", template)}
    assert named == set(SLOTS)
    for slot, (seen, unseen) in SLOTS.items():
        assert seen and unseen and not set(seen) & set(unseen), slot
    for _, _, template in EVERY:
        for left, right in ("()", "[]", "{}"):
            assert template.count(left) == template.count(right), template


def test_some_values_are_kept_for_testing() -> None:
    made = intents(seed=0, noise=0)
    for slot in ("food", "room", "city"):
        for value in SLOTS[slot][1]:
            assert not any(re.search(rf"\b{value}\b", text) for text, _ in made.train + made.dev)
    tests = " ".join(text for text, _ in made.test)
    assert "lisbon" in tests and "basement" in tests
    assert "berlin" in tests and "kitchen" in tests


def test_as_many_are_garbled_as_was_asked_for() -> None:
    assert intents(noise=0).garbled == ()
    made = intents(noise=0.5)
    clean = {text for text, _ in intents(noise=0).test}
    assert 0.4 <= len(made.garbled) / len(made.test) <= 0.6
    assert list(made.garbled) == sorted(set(made.garbled))
    rough = [made.test[i][0] for i in made.garbled]
    assert sum(text in clean for text in rough) <= 3


@pytest.mark.parametrize(
    ("kind", "text", "wanted"),
    [
        ("_left_out", "abc def", {"bc def", "ac def", "ab def", "abc ef", "abc df", "abc de"}),
        ("_doubled", "ab cd", {"aab cd", "abb cd", "ab ccd", "ab cdd"}),
        ("_exchanged", "abcd", {"bacd", "acbd", "abdc"}),
        ("_beside", "qqqq", {"wqqq", "qwqq", "qqwq", "qqqw"}),
        ("_misheard", "turn on the lights", {"turn on da lights", "turn on the light"}),
        ("_lost", "turn on the lamp", {"turn the lamp", "turn on lamp"}),
    ],
)
def test_each_kind_of_slip(kind: str, text: str, wanted: set[str]) -> None:
    draws = random.Random(0)
    assert {getattr(module, kind)(text, draws) for _ in range(200)} == wanted


def test_a_filler_is_one_more_word() -> None:
    draws = random.Random(0)
    for _ in range(20):
        text = module._filled("turn on the lamp", draws)
        words = text.split()
        assert len(words) == 5
        assert [w for w in words if w not in module._FILLERS] == ["turn", "on", "the", "lamp"]


def test_short_sentences_stay_as_they_are() -> None:
    assert all(garbled("yes", random.Random(i)) == "yes" for i in range(20))


@pytest.mark.parametrize("options", [{"train": 0}, {"dev": 0}, {"test": -1}])
def test_at_least_one_sentence(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        intents(**options)


@pytest.mark.parametrize("noise", [-0.1, 1.5, float("nan")])
def test_noise_is_a_share(noise: float) -> None:
    with pytest.raises(UsageError, match="share of 0 to 1"):
        intents(noise=noise)
