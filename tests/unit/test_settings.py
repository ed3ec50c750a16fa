"""Settings: frozen, strict, and noting who reads what."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from edgekit.errors import UsageError
from edgekit.settings import Settings, leaves, reading, rooted, with_overrides


class Part(Settings):
    rate: float = 0.1
    steps: int = 5


class Config(Settings):
    first: Part = Part(steps=3)
    second: Part = Part()
    name: str = "x"
    where: Path | None = None
    sizes: tuple[int, ...] = (1, 2)


def test_leaves_are_all_fields_by_dotted_path() -> None:
    assert leaves(Config()) == {
        "first.rate": 0.1, "first.steps": 3, "second.rate": 0.1, "second.steps": 5,
        "name": "x", "where": None, "sizes": (1, 2),
    }  # fmt: skip


def test_reading_a_field_records_it_and_no_other() -> None:
    config = rooted(Config())
    with reading() as reads:
        assert config.first.steps == 3
        assert config.name == "x"
    assert reads == {"first.steps": 3, "name": "x"}
    assert config.second.steps == 5  # after the block nothing is recorded
    assert len(reads) == 2


@pytest.mark.parametrize(
    "look",
    [
        lambda s: s.model_dump(),
        lambda s: s.model_dump_json(),
        lambda s: repr(s),
        lambda s: f"{s}",
        lambda s: s == Part(),
        lambda s: hash(s),
        lambda s: dict(s),
        lambda s: vars(s),
        lambda s: s.model_copy(update={"steps": 9}),
        lambda s: Part.model_validate(s),
    ],
)
def test_looking_at_a_section_whole_reads_all_of_it(look: Callable[[Part], Any]) -> None:
    config = rooted(Config())
    with reading() as reads:
        look(config.second)
    assert reads == {"second.rate": 0.1, "second.steps": 5}


def test_what_another_thread_reads_is_recorded() -> None:
    config = rooted(Config())
    with reading() as reads, ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: config.second.steps).result() == 5
    assert reads == {"second.steps": 5}


def test_settings_that_a_stage_makes_itself_are_nobodys() -> None:
    config = rooted(Config())
    with reading() as reads:
        assert Part(steps=8).steps == 8
        copied = config.first.model_copy(update={"steps": 9})
    reads.clear()
    with reading() as reads:
        assert copied.steps == 9
    assert reads == {}


def test_settings_are_frozen_and_refuse_unknown_names() -> None:
    with pytest.raises(ValidationError):
        Config().name = "y"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Config(nmae="y")  # type: ignore[call-arg]


def test_overrides_are_read_by_the_fields_type() -> None:
    changed = with_overrides(
        Config(),
        {"first.rate": "1e-3", "second.steps": "7", "name": "12", "sizes": "[4]", "where": "a/b"},
    )
    assert leaves(changed) == {
        "first.rate": 1e-3, "first.steps": 3, "second.rate": 0.1, "second.steps": 7,
        "name": "12", "where": Path("a/b"), "sizes": (4,),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("first.step", "1", "Did you mean 'first.steps'"),
        ("first", "1", "'first' is a section"),
        ("first.steps", "many", "first.steps can't be 'many'"),
        ("sizes", "[1, 'a']", "sizes"),
    ],
)
def test_a_wrong_override_is_named(path: str, text: str, words: str) -> None:
    with pytest.raises(UsageError, match="setting") as caught:
        with_overrides(Config(), {path: text})
    assert words in str(caught.value)
