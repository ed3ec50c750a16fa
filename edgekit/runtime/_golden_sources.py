"""What golden pictures and golden sounds have in common: how they are kept and made inputs of."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from edgekit.errors import BadData

__all__ = ["close", "made_anew", "packed", "unpacked"]

Array = npt.NDArray[Any]
Source = TypeVar("Source")

# A preprocessing's last bits differ from one build of numpy to another.
_RTOL: Final = 1e-5
_ATOL: Final = 1e-6


def close(a: Array, b: Array) -> bool:
    """Whether two inputs are the same but for rounding."""
    return bool(np.allclose(a, b, rtol=_RTOL, atol=_ATOL))


def packed(arrays: Mapping[str, Array]) -> bytes:
    """A compressed ``.npz``; equal arrays give equal bytes."""
    sink = io.BytesIO()
    np.savez_compressed(sink, allow_pickle=False, **arrays)
    return sink.getvalue()


def unpacked(
    data: bytes, what: str, read: Callable[[Mapping[str, Array]], dict[int, Source]]
) -> dict[int, Source]:
    """What ``read`` takes out of an ``.npz``; it may raise KeyError, ValueError or TypeError.

    Raises:
        BadData: it is no such file.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return read(file)
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise BadData(f"the golden {what}s cannot be read: {error}") from error


def made_anew(
    feeds: Mapping[str, Array],
    name: str,
    sources: Mapping[int, Source],
    what: str,
    make: Callable[[Source], Array],
    near: Callable[[Array, Array], bool] = close,
) -> tuple[dict[str, Array], tuple[int, ...]]:
    """Golden inputs, made anew of their sources where these are there.

    Args:
        feeds: arrays [n, ...] by input name, as stored.
        name: of the input that is made.
        sources: by sample.
        what: ``picture`` or ``sound``.
        make: a source's input, [1, ...].
        near: whether an input is as stored.

    Returns:
        The feeds, and the samples for which they are not as stored.

    Raises:
        BadData: there are more sources than samples, or ``make`` refuses one.
    """
    stored = feeds[name]
    rows, misread = np.array(stored), []
    for i, source in sorted(sources.items()):
        if not 0 <= i < len(rows):
            raise BadData(f"there is a golden {what} {i}, and {len(rows)} golden inputs")
        rows[i] = make(source)[0]
        if not near(rows[i], stored[i]):
            misread.append(i)
    return {**feeds, name: rows}, tuple(misread)
