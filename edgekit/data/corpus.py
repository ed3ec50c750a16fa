"""Texts by class to train a model with: classes out of the labels, and three splits.

`edgekit.data.load` gives samples to a model that is there; here nothing is known but a file.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit.data.texts import Row, read_rows
from edgekit.errors import BadData, StorageError

__all__ = ["SPLITS", "Corpus", "read_corpus", "write_corpus"]

SPLITS: Final[Mapping[str, tuple[str, ...]]] = {
    "train": ("train", "training"),
    "dev": ("dev", "validation", "valid", "val"),
    "test": ("test", "eval", "evaluation"),
}
"""The splits, with the names that a file of theirs may have."""

SUFFIXES: Final = (".tsv", ".csv", ".jsonl")

# One text in ten to choose by, one in five to judge by.
_DEV, _TEST = 10, 20

Labelled = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Corpus:
    """Texts with class indices; no text is in two splits.

    Attributes:
        classes: names, in the order of their indices.
        train: to learn from.
        dev: to choose by.
        test: to judge by, and nothing else.
        notes: what was left out in reading, for people.
    """

    classes: tuple[str, ...]
    train: Labelled
    dev: Labelled
    test: Labelled
    notes: tuple[str, ...] = ()

    def check(self) -> Corpus:
        """Itself, if something can be learned and judged with it.

        Raises:
            BadData: fewer than two classes, or a class without texts in a split.
        """
        if len(self.classes) < 2:
            raise BadData(f"all texts are of one class, {self.classes[0]!r}; at least 2 are needed")
        for split in SPLITS:
            found = Counter(label for _, label in getattr(self, split))
            lacking = [name for i, name in enumerate(self.classes) if not found[i]]
            if lacking:
                raise BadData(
                    f"class {lacking[0]!r} has no text in {split}"
                    + (f", nor have {len(lacking) - 1} others" if lacking[1:] else ""),
                    hint="give it more texts, or leave it out",
                )
        return self


def read_corpus(path: Path) -> Corpus:
    """The texts of a file, or of a folder with a file for each split.

    A folder holds ``train`` and ``test``, and it may hold ``dev`` (`SPLITS` has other names), each
    a ``.tsv``, ``.csv`` or ``.jsonl`` of text and label as `edgekit.data.texts` reads them. What is
    missing is made by a hash of each text, so that the same text always goes to the same split:
    one in ten for ``dev`` and one in five for ``test``. Texts that occur more than once count once,
    one that is also in a later split is taken out of the earlier, and one that has two labels in a
    split is taken out of it; the notes say how many.

    Labels are names or whole numbers; classes are in the order of their numbers, else of the
    alphabet.

    Raises:
        BadData: nothing to read there, a file is malformed, a text is empty or has no label (names
            the line), or `Corpus.check` refuses what was found.
    """
    files = _files(path)
    rows = {split: _checked(read_rows(file), file) for split, file in files.items()}
    classes = _classes(label for found in rows.values() for _, label in found)
    index = {name: i for i, name in enumerate(classes)}
    splits: dict[str, dict[str, int]] = {split: {} for split in SPLITS}
    torn: dict[str, str] = {}
    for split, found in rows.items():
        own = _divided(split, files)
        for text, label in found:
            if splits[own(text)].setdefault(text, index[label]) != index[label]:
                torn[text] = own(text)
    for text, part in torn.items():
        del splits[part][text]
    notes = _separated(splits)
    if torn:
        first = next(iter(torn))[:60]
        notes += (f"{len(torn)} texts have two labels, and are left out: {first!r}",)
    train, dev, test = (tuple(splits[split].items()) for split in SPLITS)
    return Corpus(classes, train, dev, test, notes).check()


def write_corpus(corpus: Corpus, folder: Path) -> Mapping[str, Path]:
    """Writes ``train.jsonl``, ``dev.jsonl`` and ``test.jsonl``, with class names for labels.

    Raises:
        StorageError: no space or no permission.
    """
    made: dict[str, Path] = {}
    for split in SPLITS:
        made[split] = folder / f"{split}.jsonl"
        lines = [
            json.dumps({"text": text, "label": corpus.classes[label]}, ensure_ascii=False)
            for text, label in getattr(corpus, split)
        ]
        try:
            made[split].write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{made[split]} can't be written: {error.strerror}") from error
    return made


def _files(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {"all": path}
    if not path.is_dir():
        raise BadData(f"there is no file or folder {path}")
    found: dict[str, Path] = {}
    for split, names in SPLITS.items():
        fitting = [
            path / f"{name}{suffix}"
            for name in names
            for suffix in SUFFIXES
            if (path / f"{name}{suffix}").is_file()
        ]
        if len(fitting) > 1:
            raise BadData(f"{path} has two files for {split}: {fitting[0].name}, {fitting[1].name}")
        if fitting:
            found[split] = fitting[0]
    if "train" not in found:
        raise BadData(
            f"{path} has no file to train with",
            hint=f"it is called train{', train'.join(SUFFIXES)}; dev and test may lie beside it",
        )
    return found


def _checked(rows: Sequence[Row], file: Path) -> list[tuple[str, str]]:
    for row in rows:
        if not row.text.strip():
            raise BadData(f"{file} line {row.line} has an empty text")
        if row.label is None or not row.label.strip():
            raise BadData(f"{file} line {row.line} has no label")
    return [(row.text, (row.label or "").strip()) for row in rows]


def _classes(labels: Iterable[str]) -> tuple[str, ...]:
    names = set(labels)
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _divided(split: str, files: Mapping[str, Path]) -> _Division:
    if split == "all":
        return _Division(dev=True, test=True)
    if split != "train":
        return _Division(whole=split)
    return _Division(dev="dev" not in files, test="test" not in files)


@dataclass(frozen=True)
class _Division:
    """Which split a text of some file belongs to."""

    whole: str = ""
    dev: bool = False
    test: bool = False

    def __call__(self, text: str) -> str:
        if self.whole:
            return self.whole
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        rank = int.from_bytes(digest) % 100
        if self.test and rank < _TEST:
            return "test"
        if self.dev and _TEST <= rank < _TEST + _DEV:
            return "dev"
        return "train"


def _separated(splits: Mapping[str, dict[str, int]]) -> tuple[str, ...]:
    """Takes out of earlier splits what later ones hold, and says so."""
    notes = []
    for earlier, later in (("train", "dev"), ("train", "test"), ("dev", "test")):
        both = splits[earlier].keys() & splits[later].keys()
        for text in both:
            del splits[earlier][text]
        if both:
            notes.append(f"{len(both)} texts of {later} are also in {earlier}, and left out there")
    return tuple(notes)
