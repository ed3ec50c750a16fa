"""Texts by class for training: files, folders, and the three splits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.data.corpus import Corpus, read_corpus, write_corpus
from edgekit.errors import BadData

ROWS = [(f"text number {i}", ("no", "yes", "maybe")[i % 3]) for i in range(120)]


def write(path: Path, rows: list[tuple[str, str]], header: bool = False) -> Path:
    if path.suffix == ".jsonl":
        lines = [json.dumps({"text": t, "label": c}) for t, c in rows]
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [separator.join(row) for row in rows]
        lines = [separator.join(("utterance", "intent")), *lines] if header else lines
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def texts(corpus: Corpus, split: str) -> set[str]:
    return {text for text, _ in getattr(corpus, split)}


@pytest.mark.parametrize(
    ("name", "header"),
    [("a.tsv", False), ("a.tsv", True), ("a.csv", True), ("a.csv", False), ("a.jsonl", False)],
)
def test_one_file_is_divided_by_its_texts(tmp_path: Path, name: str, header: bool) -> None:
    corpus = read_corpus(write(tmp_path / name, ROWS, header))
    assert corpus.classes == ("maybe", "no", "yes")
    labelled = [*corpus.train, *corpus.dev, *corpus.test]
    assert {(t, corpus.classes[i]) for t, i in labelled} == set(ROWS)
    assert len(labelled) == len(ROWS)
    assert 12 <= len(corpus.test) <= 40 and 4 <= len(corpus.dev) <= 24
    # More texts move none of those that were there.
    more = read_corpus(write(tmp_path / f"more-{name}", [*ROWS, ("one more", "no")], header))
    for split in ("train", "dev", "test"):
        assert texts(corpus, split) <= texts(more, split)


def test_a_folder_keeps_its_splits_and_gets_the_one_that_it_lacks(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "test.tsv", [("other no", "no"), ("other yes", "yes"), ("else", "maybe")])
    corpus = read_corpus(tmp_path)
    assert texts(corpus, "test") == {"other no", "other yes", "else"}
    assert (
        texts(corpus, "dev") and texts(corpus, "train") | texts(corpus, "dev") == dict(ROWS).keys()
    )
    write(tmp_path / "validation.jsonl", ROWS[:6])
    corpus = read_corpus(tmp_path)
    assert texts(corpus, "dev") == dict(ROWS[:6]).keys()
    assert texts(corpus, "train") == dict(ROWS[6:]).keys()
    assert corpus.notes == ("6 texts of dev are also in train, and left out there",)


def test_numbers_are_classes_in_the_order_of_numbers(tmp_path: Path) -> None:
    rows = [(f"text {i}", str(8 + i % 3)) for i in range(90)]
    assert read_corpus(write(tmp_path / "a.tsv", rows)).classes == ("8", "9", "10")


def test_a_text_with_two_labels_is_left_out_and_one_that_occurs_twice_is_one(
    tmp_path: Path,
) -> None:
    rows = [*ROWS, ("text number 0", "yes"), ("text number 1", "yes")]
    corpus = read_corpus(write(tmp_path / "a.tsv", rows))
    found = [t for split in ("train", "dev", "test") for t in texts(corpus, split)]
    assert "text number 0" not in found and found.count("text number 1") == 1
    assert corpus.notes == ("1 texts have two labels, and are left out: 'text number 0'",)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    rows = [(f'quoted "{i}"\ttab\nline é', label) for i, (_, label) in enumerate(ROWS)]
    (tmp_path / "in").mkdir()
    corpus = read_corpus(write(tmp_path / "in" / "a.jsonl", rows))
    (tmp_path / "out").mkdir()
    made = write_corpus(corpus, tmp_path / "out")
    assert sorted(p.name for p in made.values()) == ["dev.jsonl", "test.jsonl", "train.jsonl"]
    assert read_corpus(tmp_path / "out") == corpus


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([("a", "x"), ("b", "x")] * 40, "all texts are of one class, 'x'"),
        ([*ROWS, ("lonely", "rare")], "class 'rare' has no text in "),
        ([*ROWS[:5], ("  ", "no"), *ROWS[5:]], "line 6 has an empty text"),
        ([*ROWS[:7], ("text", ""), *ROWS[7:]], "line 8 has no label"),
    ],
)
def test_what_nothing_can_be_learned_from(
    tmp_path: Path, rows: list[tuple[str, str]], wanted: str
) -> None:
    with pytest.raises(BadData, match=wanted):
        read_corpus(write(tmp_path / "a.csv", rows))


def test_absent_and_ambiguous_files(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no file or folder"):
        read_corpus(tmp_path / "nothing")
    with pytest.raises(BadData, match="no file to train with"):
        read_corpus(tmp_path)
    write(tmp_path / "train.csv", ROWS)
    write(tmp_path / "val.csv", ROWS)
    write(tmp_path / "dev.tsv", ROWS)
    with pytest.raises(BadData, match=r"two files for dev: dev\.tsv, val\.csv"):
        read_corpus(tmp_path)
