"""What a set of samples is, how one is divided and drawn from, and the set that lies in memory."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from edgekit.data.checks import Fitted, check_labels, fit_array, pick_batch
from edgekit.errors import BadData, UsageError
from edgekit.runtime.preprocess import Preprocess
from edgekit.runtime.wav import Wav
from edgekit.signature import Signature

__all__ = [
    "ArraySamples",
    "Feeds",
    "Role",
    "SampleSet",
    "Samples",
    "draw",
    "picture_of",
    "portion",
    "sound_of",
    "text_of",
]

Role = Literal["calib", "eval"]
Feeds = dict[str, npt.NDArray[Any]]

CALIB_SHARE: Final = 4
"""One sample in so many goes to calibration where a source without splits serves both."""


class Samples(Protocol):
    """Samples of one role, in a fixed order."""

    @property
    def source(self) -> str:
        """Where they come from, for people."""

    @property
    def digest(self) -> str:
        """sha256 of the samples' content and labels, in hex: equal for equal sets."""

    def __len__(self) -> int: ...

    def feed(self, i: int) -> dict[str, npt.NDArray[Any]]:
        """Sample ``i`` as a batch of 1: the model's input names to arrays that fit its signature.

        Raises:
            BadData: the sample cannot be read or does not fit.
        """

    def label(self, i: int) -> int | None:
        """The class index of sample ``i``, or None where there are no labels."""


def picture_of(samples: Samples, i: int) -> npt.NDArray[np.uint8] | None:
    """The picture that sample ``i`` was made of: uint8 ``[H, W]`` or ``[H, W, C]``, as decoded.

    Samples may offer it as a method ``picture``. None where only the model's tensors are known.

    Raises:
        BadData: the picture cannot be read.
    """
    ask = getattr(samples, "picture", None)
    found: npt.NDArray[np.uint8] | None = None if ask is None else ask(i)
    return found


def text_of(samples: Samples, i: int) -> str | None:
    """The text that sample ``i`` was made of; samples may offer it as a method ``text``. None where
    only the model's tensors are known."""
    ask = getattr(samples, "text", None)
    found: str | None = None if ask is None else ask(i)
    return found


def sound_of(samples: Samples, i: int) -> Wav | None:
    """The recording that sample ``i`` was made of, with its rate.

    Samples may offer it as a method ``sound``. None where only the model's tensors are known.

    Raises:
        BadData: the recording cannot be read.
    """
    ask = getattr(samples, "sound", None)
    found: Wav | None = None if ask is None else ask(i)
    return found


class SampleSet(ABC):
    """Base of our own sets: they can name their samples, and give a subset of themselves."""

    def __init__(self, source: str) -> None:
        self.source = source

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def feed(self, i: int) -> Feeds:
        """See `Samples.feed`."""

    @abstractmethod
    def label(self, i: int) -> int | None:
        """See `Samples.label`."""

    def picture(self, i: int) -> npt.NDArray[np.uint8] | None:
        """See `picture_of`."""
        return None

    def sound(self, i: int) -> Wav | None:
        """See `sound_of`."""
        return None

    @abstractmethod
    def key(self, i: int) -> bytes:
        """What identifies sample ``i`` where a set is divided; equal samples have equal keys."""

    @abstractmethod
    def take(self, indices: Sequence[int]) -> SampleSet:
        """The samples at ``indices``, in that order."""

    @abstractmethod
    def content(self, i: int) -> bytes:
        """The bytes that determine what `feed` gives for sample ``i``."""

    @cached_property
    def digest(self) -> str:
        """See `Samples.digest`. Reads every sample once."""
        total = hashlib.sha256()
        for i in range(len(self)):
            total.update(hashlib.sha256(self.content(i)).digest())
            total.update(f"{self.label(i)};".encode())
        return total.hexdigest()


def portion(samples: SampleSet, role: Role) -> SampleSet:
    """The part of ``samples`` that plays ``role`` where one source serves both; see the package."""
    ranks = [int.from_bytes(hashlib.sha256(samples.key(i)).digest()) for i in range(len(samples))]
    calib = {i for i, rank in enumerate(ranks) if rank % CALIB_SHARE == 0}
    if len(ranks) > 1:
        # A handful may all fall on one side; then the extreme one crosses over.
        order = sorted(range(len(ranks)), key=lambda i: (ranks[i], i))
        if not calib:
            calib = {order[0]}
        elif len(calib) == len(ranks):
            calib.discard(order[-1])
    return samples.take([i for i in range(len(ranks)) if (i in calib) == (role == "calib")])


def draw(samples: SampleSet, limit: int, seed: int) -> SampleSet:
    """At most ``limit`` samples, drawn without regard to order; a larger limit only adds to them.

    Raises:
        UsageError: ``limit`` is below 1.
    """
    if limit < 1:
        raise UsageError(f"a limit of {limit} samples is too small; at least 1 is needed")
    if limit >= len(samples):
        return samples

    def rank(i: int) -> tuple[bytes, int]:
        return (hashlib.sha256(f"{seed}:".encode() + samples.key(i)).digest(), i)

    return samples.take(sorted(range(len(samples)), key=rank)[:limit])


class ArraySamples(SampleSet):
    """Samples in memory.

    Args:
        feeds: input name to array, samples along the first axis: ``[n, ...]`` where the model takes
            ``[1, ...]``, or ``[n, *shape]`` for any other shape. float64 is narrowed to float32 and
            int32 and int64 are exchanged where the model wants it and values allow it; uint8
            pictures ``[n, H, W]`` or ``[n, H, W, C]``, and int16 sounds ``[n, samples]`` at the
            model's rate, go through ``preprocess``.
        labels: class indices ``[n]``, or None.
        signature: what the model takes; without it, feeds are only held to equal lengths.
        preprocess: the model's preprocessing, where there is one.
        source: where the samples come from, for people.

    Raises:
        BadData: an input is missing or unknown, has the wrong shape or dtype, holds NaN, infinity
            or an index that is too high, lengths differ, or a label is no class.
    """

    def __init__(
        self,
        feeds: Mapping[str, npt.ArrayLike],
        labels: npt.ArrayLike | None = None,
        *,
        signature: Signature | None = None,
        preprocess: Preprocess | None = None,
        source: str = "memory",
    ) -> None:
        super().__init__(source)
        arrays = {name: np.asarray(value) for name, value in feeds.items()}
        _check_lengths(arrays, source)
        if signature is None:
            self._inputs = {name: Fitted(a, pick_batch) for name, a in arrays.items()}
        else:
            _check_names(arrays, signature, source)
            self._inputs = {
                spec.name: fit_array(spec, arrays[spec.name], preprocess, source)
                for spec in signature.inputs
            }
        count = len(next(iter(arrays.values())))
        self._labels = None if labels is None else check_labels(labels, count, signature, source)
        self._rows = np.arange(count)

    def __len__(self) -> int:
        return len(self._rows)

    def feed(self, i: int) -> Feeds:
        """See `Samples.feed`; the arrays are the caller's to change."""
        row = int(self._rows[i])
        return {name: np.array(f.pick(f.array, row)) for name, f in self._inputs.items()}

    def label(self, i: int) -> int | None:
        """See `Samples.label`."""
        return None if self._labels is None else int(self._labels[self._rows[i]])

    def picture(self, i: int) -> npt.NDArray[np.uint8] | None:
        """See `picture_of`; there is one where pictures were given for an input."""
        found = [f for f in self._inputs.values() if f.raw == "pictures"]
        return np.array(found[0].array[int(self._rows[i])]) if found else None

    def sound(self, i: int) -> Wav | None:
        """See `sound_of`; there is one where sounds were given for an input."""
        found = next((f for f in self._inputs.values() if f.raw == "sounds"), None)
        if found is None:
            return None
        return Wav(np.array(found.array[int(self._rows[i])])[:, None], found.rate)

    def key(self, i: int) -> bytes:
        """The row's bytes: a row that occurs twice is one sample to a division."""
        return self.content(i)

    def content(self, i: int) -> bytes:
        """The row of every input, as stored."""
        row = self._rows[i]
        parts: list[bytes] = []
        for name, fitted in self._inputs.items():
            array = fitted.array
            parts.append(f"{name}:{array.dtype}:{array.shape[1:]}:".encode())
            parts.append(array[row].tobytes())
        return b"".join(parts)

    def take(self, indices: Sequence[int]) -> Self:
        """The samples at ``indices``; the arrays are shared."""
        part = object.__new__(type(self))
        part.source = self.source
        part._inputs, part._labels = self._inputs, self._labels
        part._rows = self._rows[np.asarray(indices, dtype=np.intp)]
        return part


def _check_lengths(arrays: Mapping[str, npt.NDArray[Any]], source: str) -> None:
    if not arrays:
        raise BadData(f"{source} holds no inputs")
    lengths = {name: a.shape[0] if a.ndim else None for name, a in arrays.items()}
    if None in lengths.values() or len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {a.shape}" for name, a in arrays.items())
        raise BadData(
            f"{source}: inputs differ in their number of samples: {listed}",
            hint="the first axis of every array counts the samples",
        )


def _check_names(arrays: Mapping[str, object], signature: Signature, source: str) -> None:
    names = [spec.name for spec in signature.inputs]
    missing = [name for name in names if name not in arrays]
    extra = [name for name in arrays if name not in names]
    if missing or extra:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing)
        parts += [f"has {', '.join(extra)}, which the model does not take"] * bool(extra)
        raise BadData(
            f"{source} {' and '.join(parts)}",
            hint=f"name the arrays after the model's inputs ({', '.join(names)}), the labels y",
        )
