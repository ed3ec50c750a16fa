"""The rules for values: shapes, dtypes, NaN, index ranges, labels. Nothing here reads a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from edgekit.errors import BadData
from edgekit.runtime.audio import AudioPreprocess
from edgekit.runtime.preprocess import ImagePreprocess, Preprocess
from edgekit.signature import Signature, TensorSpec

__all__ = [
    "Fitted",
    "check_labels",
    "class_count",
    "class_indices",
    "class_names",
    "fit_array",
    "pick_batch",
    "pick_row",
]

_CASTS: Final = {("float64", "float32"), ("int64", "int32"), ("int32", "int64")}

# Whole arrays are looked through in pieces of so many values, to bound the temporary memory.
_PIECE: Final = 1 << 22


@dataclass(frozen=True, eq=False)
class Fitted:
    """An array of samples and how sample ``i`` of it becomes an input: ``pick(array, i)``.

    ``raw`` says that the preprocessing makes inputs of the samples: ``pictures``, uint8, or
    ``sounds``, int16 at ``rate`` Hz.
    """

    array: npt.NDArray[Any]
    pick: Callable[[npt.NDArray[Any], int], npt.NDArray[Any]]
    raw: Literal["", "pictures", "sounds"] = ""
    rate: int = 0


def fit_array(
    spec: TensorSpec, array: npt.NDArray[Any], step: Preprocess | None, source: str
) -> Fitted:
    """Makes ``array`` (samples first) fit ``spec``, or says why it cannot.

    Raises:
        BadData: wrong shape or dtype, or a value that the input cannot take; names the input, and
            the first bad sample by its index.
    """
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if isinstance(step, ImagePreprocess) and _are_pictures(array, spec):
        return _fit_pictures(spec, array, step, source)
    if isinstance(step, AudioPreprocess) and (array.ndim, str(array.dtype)) == (2, "int16"):
        return _fit_sounds(spec, array, step, source)
    row = array.shape[1:]
    if row == spec.shape:
        pick = pick_row
    elif spec.shape[:1] == (1,) and row == spec.shape[1:]:
        pick = pick_batch
    else:
        raise _wrong_shape(spec, array, source)
    array = _cast(spec, array, source)
    _check_values(spec, array, source)
    return Fitted(array, pick)


def pick_row(array: npt.NDArray[Any], i: int) -> npt.NDArray[Any]:
    """Sample ``i`` without the axis of samples."""
    return np.asarray(array[i])


def pick_batch(array: npt.NDArray[Any], i: int) -> npt.NDArray[Any]:
    """Sample ``i`` as a batch of 1."""
    return array[i : i + 1]


def _are_pictures(array: npt.NDArray[Any], spec: TensorSpec) -> bool:
    if array.dtype != np.uint8 or spec.dtype == "uint8":
        return False
    return array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (1, 3, 4))


def _fit_pictures(
    spec: TensorSpec, array: npt.NDArray[Any], image: ImagePreprocess, source: str
) -> Fitted:
    _check_made(spec, image.shape, source)
    if image.resize == "none" and array.shape[1:3] != (image.height, image.width):
        raise BadData(
            f"{source}: {spec.name!r} has pictures of {array.shape[1:3]} (height, width); the "
            f"preprocessing takes {(image.height, image.width)} and does not resize"
        )
    return Fitted(array, partial(_applied, image), raw="pictures")


def _fit_sounds(
    spec: TensorSpec, array: npt.NDArray[Any], audio: AudioPreprocess, source: str
) -> Fitted:
    _check_made(spec, audio.shape, source)
    if not array.shape[1]:
        raise BadData(f"{source}: {spec.name!r} has sounds of no samples")
    return Fitted(array, partial(_applied, audio), raw="sounds", rate=audio.sample_rate)


def _check_made(spec: TensorSpec, shape: tuple[int, ...], source: str) -> None:
    if shape != spec.shape or spec.dtype != "float32":
        raise BadData(
            f"{source}: the preprocessing makes float32 {shape}; input {spec.name!r} takes "
            f"{spec.dtype} {spec.shape}"
        )


def _applied(
    step: ImagePreprocess | AudioPreprocess, array: npt.NDArray[Any], i: int
) -> npt.NDArray[Any]:
    return step.apply(array[i])


def _wrong_shape(spec: TensorSpec, array: npt.NDArray[Any], source: str) -> BadData:
    wanted = spec.shape[1:] if spec.shape[:1] == (1,) else spec.shape
    hint = "the first axis counts the samples"
    if sorted(array.shape[1:]) == sorted(wanted):
        hint = f"the axes are in another order; the input's layout is {spec.layout or wanted}"
    listed = ", ".join(["n", *map(str, wanted)])
    return BadData(f"{source}: {spec.name!r} is {array.shape}, wanted ({listed})", hint=hint)


def _cast(spec: TensorSpec, array: npt.NDArray[Any], source: str) -> npt.NDArray[Any]:
    if str(array.dtype) == spec.dtype:
        return array
    if (str(array.dtype), spec.dtype) not in _CASTS:
        hint = f"convert the array with .astype('{spec.dtype}')"
        if array.dtype == np.uint8:
            hint = "give the model an ImagePreprocess and the pictures as [n, H, W, C], or " + hint
        raise BadData(f"{source}: {spec.name!r} is {array.dtype}, wanted {spec.dtype}", hint=hint)
    if array.dtype.kind == "i":
        limits = np.iinfo(spec.dtype)
        _refuse(spec, array, source, f"does not fit {spec.dtype}", _outside(limits.min, limits.max))
    # What overflows float32 becomes infinite, which is refused with the other values.
    with np.errstate(over="ignore"):
        return array.astype(spec.dtype)


def _check_values(spec: TensorSpec, array: npt.NDArray[Any], source: str) -> None:
    if array.dtype.kind == "f":
        _refuse(spec, array, source, "holds NaN or infinity", lambda piece: ~np.isfinite(piece))
    elif spec.high is not None and array.dtype.kind in "iu":
        allowed = f"holds a value outside 0 to {spec.high}"
        _refuse(spec, array, source, allowed, _outside(0, spec.high))


def _outside(low: int, high: int) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.bool_]]:
    return lambda piece: (piece < low) | (piece > high)


def _refuse(
    spec: TensorSpec,
    array: npt.NDArray[Any],
    source: str,
    complaint: str,
    is_bad: Callable[[npt.NDArray[Any]], npt.NDArray[np.bool_]],
) -> None:
    """Raises with the index of the first sample, and the number of all, that ``is_bad``."""
    bad = [i for start, piece in _pieces(array) for i in start + _rows_with(is_bad(piece))]
    if bad:
        raise BadData(
            f"{source}: sample {bad[0]} of {spec.name!r} {complaint} "
            f"({len(bad)} of {len(array)} samples do)"
        )


def _pieces(array: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    step = max(1, _PIECE // max(1, array[:1].size))
    for start in range(0, len(array), step):
        yield start, array[start : start + step]


def _rows_with(bad: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    return np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))


def class_names(signature: Signature | None) -> tuple[str, ...]:
    """The labels of the first output that has any."""
    outputs = signature.outputs if signature else ()
    return next((spec.labels for spec in outputs if spec.labels), ())


def class_count(signature: Signature | None) -> int | None:
    """How many classes the model tells apart; None where its signature does not say.

    A single number per sample may be a probability of the second of two classes.
    """
    names = class_names(signature)
    if names:
        return len(names)
    first = signature.outputs[0] if signature and signature.outputs else None
    if first is None or len(first.shape) != 2:
        return None
    return max(2, first.shape[1])


def check_labels(
    labels: npt.ArrayLike, count: int, signature: Signature | None, source: str
) -> npt.NDArray[np.int64]:
    """Class indices as int64 ``[count]``.

    Raises:
        BadData: not one whole number per sample, or one that is no class of the model.
    """
    array = np.asarray(labels)
    if array.shape == (count, 1):
        array = array[:, 0]
    if array.shape != (count,):
        hint = "for one-hot labels, save y.argmax(axis=1)" if array.ndim == 2 else ""
        raise BadData(f"{source}: labels are {array.shape}, wanted ({count},)", hint=hint)
    whole = array.dtype.kind in "iub"
    if array.dtype.kind == "f":
        whole = bool(np.isfinite(array).all() and (array == np.round(array)).all())
    if not whole:
        raise BadData(
            f"{source}: labels are {array.dtype}, not all whole numbers; class indices are wanted",
            hint="without labels, the model is compared with its own float answers",
        )
    top = class_count(signature)
    bad = np.flatnonzero((array < 0) | (False if top is None else array >= top))
    if len(bad):
        allowed = "0 or more" if top is None else f"0 to {top - 1}"
        raise BadData(f"{source}: label {array[bad[0]]} of sample {bad[0]} is no class ({allowed})")
    return array.astype(np.int64)


def class_indices(
    found: Sequence[str], signature: Signature | None, kind: str, source: str
) -> Mapping[str, int] | None:
    """Class name to index: the model's own labels where it has them, else sorted order.

    Args:
        found: the distinct names that the data uses.
        signature: the model's.
        kind: what a name is, for messages (``class folder``).
        source: where the names come from.

    Returns:
        None where the model has more classes than the data and does not name them, so that sorted
        order would be a guess.

    Raises:
        BadData: a name that is no class of the model, or more names than it has classes.
    """
    names, top = class_names(signature), class_count(signature)
    if names:
        unknown = sorted(set(found) - set(names))
        if unknown:
            near = get_close_matches(unknown[0], names, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise BadData(
                f"{source}: {kind} {unknown[0]!r} is none of the model's {len(names)} labels"
                f"{f' (nor are {len(unknown) - 1} others)' if unknown[1:] else ''}.{guess}",
                hint=f"the model's labels begin with {', '.join(map(repr, names[:5]))}",
            )
        twice = [name for name in found if names.count(name) > 1]
        if twice:
            raise BadData(f"{source}: {kind} {twice[0]!r} stands for several of the model's labels")
        return {name: names.index(name) for name in found}
    if top is not None and len(found) > top:
        raise BadData(f"{source} has {len(found)} different {kind}s; the model has {top} classes")
    if top is not None and len(found) < top:
        return None
    return {name: i for i, name in enumerate(sorted(found))}
