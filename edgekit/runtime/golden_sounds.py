"""Golden sounds: the recordings that some golden inputs were made of, kept beside them.

An ``.npz`` with ``sound.<sample>``, ``[n, channels]`` as decoded, and ``rate.<sample>`` in Hz; see
`edgekit.runtime.golden`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import BadData
from edgekit.runtime._golden_sources import made_anew, packed, unpacked
from edgekit.runtime.audio import AudioPreprocess
from edgekit.runtime.wav import Wav
from edgekit.signature import Signature, TensorSpec

__all__ = ["from_sounds", "pack_sounds", "sound_input", "unpack_sounds"]

Array = npt.NDArray[Any]


def pack_sounds(sounds: Mapping[int, Wav]) -> bytes:
    """The ``.npz`` of the recordings behind golden inputs, by sample."""
    arrays: dict[str, Array] = {}
    for i in sorted(sounds):
        arrays[f"sound.{i}"] = sounds[i].samples
        arrays[f"rate.{i}"] = np.array(sounds[i].rate, np.int64)
    return packed(arrays)


def unpack_sounds(data: bytes) -> dict[int, Wav]:
    """The inverse of `pack_sounds`.

    Raises:
        BadData: it is no such file.
    """

    def read(file: Mapping[str, Array]) -> dict[int, Wav]:
        numbers = [n.removeprefix("sound.") for n in file if n.startswith("sound.")]
        return {int(n): Wav(file[f"sound.{n}"], int(file[f"rate.{n}"])) for n in numbers}

    return unpacked(data, "sound", read)


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

    def make(sound: Wav) -> Array:
        return preprocess.apply(sound.samples, sound.rate)

    return made_anew(feeds, input.name, sounds, "sound", make)
