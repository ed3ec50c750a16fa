"""Golden sounds: the recordings that some golden inputs were made of, kept beside them.

An ``.npz`` with ``sound.<sample>``, ``[n, channels]`` as decoded, and ``rate.<sample>`` in Hz; see
`edgekit.runtime.golden`.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekit.errors import BadData
from edgekit.runtime.audio import AudioPreprocess
from edgekit.runtime.wav import Wav
from edgekit.signature import Signature, TensorSpec

__all__ = ["from_sounds", "pack_sounds", "sound_input", "unpack_sounds"]

Array = npt.NDArray[Any]

# A transform's last bits differ from one build of numpy to another.
_RTOL: Final = 1e-5
_ATOL: Final = 1e-6


def pack_sounds(sounds: Mapping[int, Wav]) -> bytes:
    """The ``.npz`` of the recordings behind golden inputs, by sample."""
    arrays: dict[str, Array] = {}
    for i in sorted(sounds):
        arrays[f"sound.{i}"] = sounds[i].samples
        arrays[f"rate.{i}"] = np.array(sounds[i].rate, np.int64)
    sink = io.BytesIO()
    np.savez_compressed(sink, allow_pickle=False, **arrays)
    return sink.getvalue()


def unpack_sounds(data: bytes) -> dict[int, Wav]:
    """The inverse of `pack_sounds`.

    Raises:
        BadData: it is no such file.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            numbers = [n.removeprefix("sound.") for n in file.files if n.startswith("sound.")]
            return {int(n): Wav(file[f"sound.{n}"], int(file[f"rate.{n}"])) for n in numbers}
    except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise BadData(f"the golden sounds cannot be read: {error}") from error


def sound_input(signature: Signature, preprocess: AudioPreprocess) -> TensorSpec:
    """The input that takes what the preprocessing makes of a recording.

    Raises:
        BadData: there is none.
    """
    for spec in signature.inputs:
        if spec.dtype == "float32" and spec.shape[1:] == preprocess.shape[1:]:
            return spec
    names = ", ".join(s.name for s in signature.inputs)
    raise BadData(f"no input takes what the preprocessing makes: {names}")


def from_sounds(
    feeds: Mapping[str, Array],
    sounds: Mapping[int, Wav],
    preprocess: AudioPreprocess,
    input: TensorSpec,
) -> tuple[dict[str, Array], tuple[int, ...]]:
    """Golden inputs, made anew of their recordings where these are there.

    Args:
        feeds: arrays [n, ...] by input name, as stored.
        sounds: by sample.
        preprocess: of the model.
        input: that takes the features.

    Returns:
        The feeds, and the samples for which they are not as stored.

    Raises:
        BadData: there are more sounds than samples, or one is no recording.
    """
    stored = feeds[input.name]
    rows, misread = np.array(stored), []
    for i, sound in sorted(sounds.items()):
        if not 0 <= i < len(rows):
            raise BadData(f"there is a golden sound {i}, and {len(rows)} golden inputs")
        rows[i] = preprocess.apply(sound.samples, sound.rate)[0]
        if not np.allclose(rows[i], stored[i], rtol=_RTOL, atol=_ATOL):
            misread.append(i)
    return {**feeds, input.name: rows}, tuple(misread)
