"""Sets to learn from: batches of samples, augmented where a generator is given.

    learn = pictures("flowers.zip", preprocess, how=Augment(crop=4, flip=0.5))
    judge = pictures("flowers.zip", preprocess, part="test")
    train(module, learn, TrainSettings(validation=0.1))

A batch without augmentation is what the device makes of the same samples, bit for bit. Sets of
pictures are in `edgekit.data.training_pictures`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from edgekit.data.augment import Augment
from edgekit.data.augment_texts import TextAugment, TextAugmenter
from edgekit.data.checks import check_labels
from edgekit.data.texts import read_rows, row_labels
from edgekit.data.training_pictures import PictureSet, from_torchvision, pictures, split_by_name
from edgekit.errors import BadData
from edgekit.runtime.preprocess import TextPreprocess
from edgekit.signature import Signature, TensorSpec

__all__ = [
    "ArraySet",
    "Augment",
    "PictureSet",
    "Subset",
    "TextAugment",
    "TextSet",
    "from_torchvision",
    "pictures",
    "split_by_name",
    "texts",
]

Change = Callable[[dict[str, torch.Tensor], torch.Generator], dict[str, torch.Tensor]]

_TRIM: Final = 8
"""Trimmed texts are a multiple of so many tokens long, which kernels are written for."""


class ArraySet:
    """Samples in memory that need no more than to be picked.

    Args:
        feeds: input name to array or tensor, ``[n, ...]``; float64 is narrowed to float32.
        labels: class indices ``[n]``, or None.
        how: augmentation: takes a batch's inputs and a generator, gives inputs. What it does must
            follow from these two.
        classes: names of the classes.
        source: where the samples come from, for people.

    Raises:
        BadData: lengths differ, a value is NaN or infinite, or a label is no class.
    """

    def __init__(
        self,
        feeds: Mapping[str, npt.ArrayLike | torch.Tensor],
        labels: npt.ArrayLike | None = None,
        *,
        how: Change | None = None,
        classes: Sequence[str] = (),
        source: str = "memory",
    ) -> None:
        self.source, self.classes, self._how = source, tuple(classes), how
        self._feeds = {name: _tensor(value) for name, value in feeds.items()}
        self._count = _length(self._feeds, source)
        for name, value in self._feeds.items():
            _refuse_endless(name, value, source)
        self.labels = _labels(labels, self._count, source)

    @property
    def digest(self) -> str:
        """sha256 of names, values and labels. Another augmentation shows by its name only."""
        how = getattr(self._how, "__qualname__", type(self._how).__qualname__)
        arrays = self._feeds if self.labels is None else self._feeds | {"y": self.labels}
        return _digest(arrays, how)

    def __len__(self) -> int:
        return self._count

    def batch(
        self, rows: torch.Tensor, generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        """See `edgekit.compress.train.TrainSet`."""
        inputs = {name: value[rows] for name, value in self._feeds.items()}
        if generator is not None and self._how is not None:
            inputs = self._how(inputs, generator)
        return inputs | _about(rows, self.labels)


class TextSet:
    """Texts, tokenized once, as the device tokenizes them.

    Args:
        items: the texts.
        labels: class indices ``[n]``, or None.
        preprocess: the tokenizer, and the names of what it makes.
        lines: the line of each text, for messages; None counts them from 1.
        trim: cut what is padding in all of a batch, which takes less time to train on. The model
            then sees shorter inputs, of a multiple of 8 tokens.
        how: augmentation; off where it is not given.
        classes: names of the classes.
        source: where the texts come from, for people.

    Raises:
        BadData: there are no texts, one is empty (names its line), a label is no class, or the
            vocabulary lacks what the augmentation needs.
    """

    def __init__(
        self,
        items: Sequence[str],
        labels: npt.ArrayLike | None,
        preprocess: TextPreprocess,
        *,
        lines: Sequence[int] | None = None,
        trim: bool = True,
        how: TextAugment | None = None,
        classes: Sequence[str] = (),
        source: str = "memory",
    ) -> None:
        self.source, self.classes = source, tuple(classes)
        if not items:
            raise BadData(f"{source} holds no texts")
        for i, text in enumerate(items):
            if not text.strip():
                line = i + 1 if lines is None else lines[i]
                raise BadData(f"{source} line {line}: the text is empty", hint="remove the line")
        made = [preprocess.apply(text) for text in items]
        self._feeds = {
            name: torch.from_numpy(np.concatenate([feed[name] for feed in made]))
            for name in made[0]
        }
        self._mask, self._trim = preprocess.mask_name, trim
        how = how or TextAugment()
        self.augmented = bool(how.mask or how.cut)
        self._how = TextAugmenter(how, preprocess)
        self.labels = _labels(labels, len(items), source)

    @property
    def digest(self) -> str:
        """sha256 of tokens, labels and augmentation."""
        arrays = self._feeds if self.labels is None else self._feeds | {"y": self.labels}
        how = self._how.how.model_dump_json() if self.augmented else ""
        return _digest(arrays, f"{self._trim}{how}")

    def __len__(self) -> int:
        return len(self._feeds[self._mask])

    def batch(
        self, rows: torch.Tensor, generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        """See `edgekit.compress.train.TrainSet`."""
        inputs = {name: value[rows] for name, value in self._feeds.items()}
        if generator is not None and self.augmented:
            inputs = self._how(inputs, generator)
        if self._trim and len(rows):
            longest = int(inputs[self._mask].sum(1).max())
            length = -(-longest // _TRIM) * _TRIM
            inputs = {name: value[:, :length] for name, value in inputs.items()}
        return inputs | _about(rows, self.labels)


class Subset:
    """Some samples of a set, such as those that are held out of it.

    Args:
        whole: the set.
        rows: which of its samples, int64 ``[n]``.
    """

    def __init__(self, whole: ArraySet | TextSet | PictureSet, rows: torch.Tensor) -> None:
        self._whole, self._rows = whole, rows
        self.source, self.classes = whole.source, whole.classes
        self.threaded = bool(getattr(whole, "threaded", False))
        self.labels = None if whole.labels is None else whole.labels[rows]

    @property
    def digest(self) -> str:
        """sha256 of the set's digest and the rows."""
        return _digest({"rows": self._rows}, self._whole.digest)

    def __len__(self) -> int:
        return len(self._rows)

    def batch(
        self, rows: torch.Tensor, generator: torch.Generator | None
    ) -> dict[str, torch.Tensor]:
        """See `edgekit.compress.train.TrainSet`; ``row`` counts within the subset."""
        return self._whole.batch(self._rows[rows], generator) | {"row": rows}


def texts(
    path: str | Path,
    preprocess: TextPreprocess,
    *,
    classes: Sequence[str] = (),
    trim: bool = True,
    how: TextAugment | None = None,
) -> TextSet:
    """The texts and labels of a ``.tsv``, ``.csv`` or ``.jsonl``; see `edgekit.data.texts`.

    Args:
        path: the file.
        preprocess: the tokenizer.
        classes: names of the classes in order; without them the file's names are numbered in
            alphabetical order, and numbers are taken as they are.
        trim, how: see `TextSet`.

    Raises:
        BadData: the file cannot be read or is malformed, a text is empty, or a label is no class;
            names the line.
    """
    path = Path(path).expanduser()
    rows = read_rows(path, classes)
    outputs = (TensorSpec("y", (1, len(classes)), labels=tuple(classes)),) if classes else ()
    labels = row_labels(rows, Signature((), outputs), "eval", path)
    known = None if labels[0] is None else [int(label or 0) for label in labels]
    names = tuple(classes)
    if not names and known is not None:
        written = sorted({(row.label or "").strip() for row in rows})
        names = () if all(name.lstrip("+-").isdigit() for name in written) else tuple(written)
    return TextSet(
        [row.text for row in rows],
        known,
        preprocess,
        lines=[row.line for row in rows],
        trim=trim,
        how=how,
        classes=names,
        source=str(path),
    )


def _tensor(value: npt.ArrayLike | torch.Tensor) -> torch.Tensor:
    made = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
    return made.float() if made.dtype == torch.float64 else made


def _length(feeds: Mapping[str, torch.Tensor], source: str) -> int:
    counts = {len(value) if value.dim() else 0 for value in feeds.values()}
    if len(counts) != 1:
        listed = ", ".join(f"{name} {tuple(v.shape)}" for name, v in feeds.items())
        raise BadData(
            f"{source}: inputs differ in their number of samples: {listed or 'there are none'}",
            hint="the first axis of every array counts the samples",
        )
    return counts.pop()


def _refuse_endless(name: str, value: torch.Tensor, source: str) -> None:
    if not value.is_floating_point():
        return
    bad = (~torch.isfinite(value)).reshape(len(value), -1).any(1).nonzero()
    if len(bad):
        raise BadData(
            f"{source}: sample {int(bad[0])} of {name!r} holds NaN or infinity "
            f"({len(bad)} of {len(value)} samples do)"
        )


def _labels(labels: npt.ArrayLike | None, count: int, source: str) -> torch.Tensor | None:
    if labels is None:
        return None
    return torch.from_numpy(check_labels(labels, count, None, source))


def _about(rows: torch.Tensor, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {"row": rows} if labels is None else {"row": rows, "y": labels[rows]}


def _digest(arrays: Mapping[str, torch.Tensor], about: str) -> str:
    total = hashlib.sha256(about.encode())
    for name, value in sorted(arrays.items()):
        array: npt.NDArray[Any] = value.contiguous().numpy()
        total.update(f";{name}:{array.dtype}:{array.shape};".encode())
        total.update(array.tobytes())
    return total.hexdigest()
