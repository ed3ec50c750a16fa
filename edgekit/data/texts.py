"""Texts with or without a label, out of ``.tsv``, ``.csv`` and ``.jsonl``."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from edgekit.data.checks import class_count, class_indices, class_names, fit_array
from edgekit.data.samples import Feeds, Role, SampleSet
from edgekit.errors import BadData
from edgekit.runtime.preprocess import TextPreprocess
from edgekit.signature import Signature

__all__ = ["Row", "TextSamples", "read_rows", "read_texts", "row_labels"]

TEXT_NAMES: Final = ("text", "sentence", "review", "content", "document", "utterance", "input")
LABEL_NAMES: Final = ("label", "labels", "class", "category", "target", "sentiment", "intent", "y")
"""Column and key names that are recognised, best first, in any case."""

_WHOLE = re.compile(r"[+-]?[0-9]+\Z")


@dataclass(frozen=True)
class Row:
    """One line: its number for messages, the text, and the label as written (None: no column)."""

    line: int
    text: str
    label: str | None


class TextSamples(SampleSet):
    """Texts in memory, tokenized when they are asked for."""

    def __init__(
        self,
        source: str,
        items: Sequence[tuple[str, int | None]],
        signature: Signature,
        preprocess: TextPreprocess,
    ) -> None:
        super().__init__(source)
        self._items = list(items)
        self._signature = signature
        self._preprocess = preprocess

    def __len__(self) -> int:
        return len(self._items)

    def feed(self, i: int) -> Feeds:
        """Tokenizes text ``i``; see `Samples.feed`."""
        made = self._preprocess.apply(self._items[i][0])
        out: Feeds = {}
        for spec in self._signature.inputs:
            if spec.name not in made:
                raise BadData(
                    f"the tokenizer makes {', '.join(made)}; the model also takes {spec.name}",
                    hint="set ids_name, mask_name and types_name of the TextPreprocess",
                )
            fitted = fit_array(spec, made[spec.name], None, f"{self.source}: text {i}")
            out[spec.name] = fitted.pick(fitted.array, 0)
        return out

    def label(self, i: int) -> int | None:
        """See `Samples.label`."""
        return self._items[i][1]

    def text(self, i: int) -> str:
        """See `edgekit.data.samples.text_of`."""
        return self._items[i][0]

    def key(self, i: int) -> bytes:
        """The text itself: one that occurs twice is one sample to a division."""
        return self.content(i)

    def content(self, i: int) -> bytes:
        """The text as UTF-8."""
        return self._items[i][0].encode("utf-8", "surrogatepass")

    def take(self, indices: Sequence[int]) -> Self:
        """The texts at ``indices``."""
        items = [self._items[i] for i in indices]
        return type(self)(self.source, items, self._signature, self._preprocess)


def read_texts(
    path: Path, signature: Signature, preprocess: TextPreprocess | None, role: Role
) -> TextSamples:
    """The texts of a file.

    ``.tsv`` is split at tabs and knows no quotes, as GLUE's files; ``.csv`` follows RFC 4180, with
    commas, semicolons or tabs; a line of ``.jsonl`` is an object, or a list of text and label. The
    first line of a table may be a header. Labels are class indices or class names.

    Raises:
        BadData: the file is absent, not UTF-8, or malformed (names the line), a label is no class,
            or the tokenizer does not make what the model takes.
    """
    if preprocess is None:
        raise BadData(
            f"{path} holds texts, and the model has no tokenizer for them",
            hint="give the Model preprocess=TextPreprocess(...), or the data as a .npz of inputs",
        )
    rows = read_rows(path, class_names(signature))
    labels = row_labels(rows, signature, role, path)
    items = [(row.text, label) for row, label in zip(rows, labels, strict=True)]
    _check_vocabulary(signature, preprocess)
    samples = TextSamples(str(path), items, signature, preprocess)
    samples.feed(0)  # A tokenizer that does not fit the model is refused here, not halfway.
    return samples


def read_rows(path: Path, classes: Sequence[str] = ()) -> list[Row]:
    """The lines of a file as `read_texts` understands them.

    Args:
        path: a ``.tsv``, ``.csv`` or ``.jsonl``.
        classes: names that labels may have, by which a column of labels is recognised.

    Raises:
        BadData: the file is absent, empty, not UTF-8, or malformed (names the line).
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            kind = path.suffix.lower()
            if kind == ".jsonl":
                rows = _from_json_lines(file, path)
            else:
                rows = _from_table(file, kind, classes, path)
    except OSError as error:
        raise BadData(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not UTF-8: {error}") from error
    if not rows:
        raise BadData(f"{path} holds no texts")
    return rows


def _from_json_lines(lines: Iterable[str], path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadData(f"{path} line {number} is no JSON: {error}") from error
        text, label = _json_row(value)
        if not isinstance(text, str):
            raise BadData(
                f"{path} line {number} holds no text",
                hint='one line looks like {"text": "...", "label": 1}, or ["...", 1]',
            )
        if label is not None and (isinstance(label, bool) or not isinstance(label, int | str)):
            raise BadData(f"{path} line {number}: label {label!r} is no class index or name")
        rows.append(Row(number, text, None if label is None else str(label)))
    return rows


def _json_row(value: object) -> tuple[object, Any]:
    if isinstance(value, str):
        return value, None
    if isinstance(value, list) and len(value) in (1, 2):
        return value[0], value[1] if len(value) == 2 else None
    if isinstance(value, dict):
        keys = [str(key).lower() for key in value]
        cells = list(value.values())
        text, label = _named(keys, TEXT_NAMES), _named(keys, LABEL_NAMES)
        return (
            None if text is None else cells[text],
            None if label is None else cells[label],
        )
    return None, None


def _named(columns: Sequence[str], names: Sequence[str]) -> int | None:
    return next((columns.index(name) for name in names if name in columns), None)


def _from_table(lines: Iterable[str], kind: str, classes: Sequence[str], path: Path) -> list[Row]:
    numbered = _cells(lines, kind, path)
    if not numbered:
        return []
    width = len(numbered[0][1])
    ragged = next((n for n, cells in numbered if len(cells) != width), None)
    if ragged is not None:
        raise BadData(
            f"{path} line {ragged} does not have the {width} columns of the first line",
            hint="a .tsv has no quotes, so a text cannot hold a tab; save as .csv or .jsonl",
        )
    columns = [cell.strip().lower() for cell in numbered[0][1]]
    text, label = _named(columns, TEXT_NAMES), _named(columns, LABEL_NAMES)
    if text is not None and (label is not None or width == 1):
        return [Row(n, c[text], None if label is None else c[label]) for n, c in numbered[1:]]
    if width > 2:
        raise BadData(
            f"{path} has {width} columns and no header that tells text from label",
            hint="name the columns text and label in the first line",
        )
    if width == 1:
        return [Row(n, cells[0], None) for n, cells in numbered]
    return _two_columns(numbered, text, label, classes)


def _two_columns(
    numbered: Sequence[tuple[int, list[str]]],
    text: int | None,
    label: int | None,
    classes: Sequence[str],
) -> list[Row]:
    """Two columns whose header is absent, or names one of them at most."""

    def are_labels(column: int, start: int) -> bool:
        cells = [row[column].strip() for _, row in numbered[start:]]
        return bool(cells) and all(_WHOLE.match(c) or c in classes for c in cells)

    if label is None and text is not None and are_labels(1 - text, 1):
        label = 1 - text
    header = label is not None and are_labels(label, 1) and not are_labels(label, 0)
    if not header:
        # Without a header the labels give themselves away; failing that they come last.
        fitting = [c for c in (1, 0) if are_labels(c, 1)]
        label = fitting[0] if fitting else 1
        header = bool(fitting) and not are_labels(label, 0)
    assert label is not None
    return [Row(n, c[1 - label], c[label]) for n, c in numbered[1 if header else 0 :]]


def _cells(lines: Iterable[str], kind: str, path: Path) -> list[tuple[int, list[str]]]:
    out: list[tuple[int, list[str]]] = []
    if kind == ".tsv":
        for number, line in enumerate(lines, start=1):
            if line.strip():
                out.append((number, line.rstrip("\r\n").split("\t")))
        return out
    text = list(lines)
    first = text[0] if text else ""
    delimiter = next((d for d in ",;\t" if d in first), ",")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        out.extend((reader.line_num, cells) for cells in reader if any(cells))
    except csv.Error as error:
        raise BadData(f"{path} line {reader.line_num} is no CSV: {error}") from error
    return out


def row_labels(
    rows: Sequence[Row], signature: Signature, role: Role, path: Path
) -> Sequence[int] | Sequence[None]:
    """Class indices of the rows, or None for each where the file has no labels.

    Raises:
        BadData: a label is missing or is no class (names the line).
    """
    written = [row.label.strip() if row.label is not None else "" for row in rows]
    if not any(written):
        return [None] * len(rows)
    zipped = list(zip(rows, written, strict=True))
    blank = next((row.line for row, label in zipped if not label), None)
    if blank is not None:
        raise BadData(f"{path} line {blank} has no label")
    names = class_names(signature)
    if all(_WHOLE.match(label) for label in written) and not set(written) <= set(names):
        return [_class_index(row, label, signature, path) for row, label in zipped]
    indices = class_indices(sorted(set(written)), signature, "label", str(path))
    if indices is None:
        if role == "calib":
            return [None] * len(rows)  # Calibration uses no labels.
        raise BadData(
            f"{path} uses {len(set(written))} label names; the model has more classes and does not "
            "name them",
            hint="give the model its labels: Model.from_module(..., labels=[...])",
        )
    return [indices[label] for label in written]


def _class_index(row: Row, written: str, signature: Signature, path: Path) -> int:
    index, top = int(written), class_count(signature)
    if index < 0 or (top is not None and index >= top):
        allowed = "0 or more" if top is None else f"0 to {top - 1}"
        raise BadData(f"{path} line {row.line}: label {written} is no class ({allowed})")
    return index


def _check_vocabulary(signature: Signature, preprocess: TextPreprocess) -> None:
    for spec in signature.inputs:
        last = len(preprocess.vocab) - 1
        if spec.name == preprocess.ids_name and spec.high is not None and last > spec.high:
            raise BadData(
                f"the tokenizer's ids reach {last}; input {spec.name!r} takes at most {spec.high}",
                hint="the vocabulary belongs to another model",
            )
