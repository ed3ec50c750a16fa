"""Golden vectors: a few inputs with the float model's outputs, kept in every bundle.

A device runs them once after installing: the artifact, the runtime and the processor together
must still give these answers. The file is an ``.npz`` with arrays ``input.<name>`` and
``output.<name>``, samples first. Where the inputs were made of pictures, some of these are kept too
(``picture.<sample>``, as decoded), and so with sounds (`edgekit.runtime.golden_sounds`): then the
preprocessing is part of what has to be right.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgekit.errors import BadData
from edgekit.metrics import passes, sqnr_db
from edgekit.runtime._golden_sources import close, made_anew, packed, unpacked
from edgekit.runtime.golden_sounds import from_sounds, sound_input
from edgekit.runtime.preprocess import AudioPreprocess, ImagePreprocess
from edgekit.runtime.session import Array, Session
from edgekit.runtime.wav import Wav
from edgekit.signature import Signature, TensorSpec

__all__ = [
    "GOLDEN_SQNR_DB",
    "OTHER_SQNR_DB",
    "GoldenCheck",
    "check_golden",
    "from_pictures",
    "pack_golden",
    "pack_pictures",
    "picture_input",
    "unpack_golden",
    "unpack_pictures",
]

GOLDEN_SQNR_DB = {"fp32": 60.0, "fp16": 40.0, "w8": 25.0, "w8a16": 25.0}
"""Lowest signal-to-quantization-noise ratio against the float model; other schemes 15 dB.

This catches a broken runtime or processor (transposed tensors, a saturating multiply), not a
point of accuracy: that is verify's work, on the evaluation data.
"""

OTHER_SQNR_DB = 15.0
"""The same for the other schemes."""

_ABSOLUTE = 1e-4


@dataclass(frozen=True)
class GoldenCheck:
    """What replaying the golden vectors found.

    Attributes:
        passed: every output's ratio reaches the limit and all values are finite.
        limit_db: the limit applied.
        sqnr_db: per output, see `edgekit.metrics.sqnr_db`; infinity where equal.
        max_abs: per output, the largest absolute difference.
        n: number of samples.
        pictures: how many of them were made anew of their pictures.
        misread: samples whose picture or sound gave another input than it did when the bundle was
            made; with any of these it is not passed.
        sounds: how many of them were made anew of their recordings.
    """

    passed: bool
    limit_db: float
    sqnr_db: Mapping[str, float]
    max_abs: Mapping[str, float]
    n: int
    pictures: int = 0
    misread: tuple[int, ...] = ()
    sounds: int = 0


def pack_golden(feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> bytes:
    """The ``.npz`` of golden vectors; equal arrays give equal bytes.

    Args:
        feeds: arrays [n, ...] by input name.
        outputs: arrays [n, ...] by output name: the float model's answers.

    Raises:
        BadData: the arrays differ in n, or n is 0.
    """
    arrays = {f"input.{name}": feeds[name] for name in sorted(feeds)}
    arrays |= {f"output.{name}": outputs[name] for name in sorted(outputs)}
    _count(arrays)
    sink = io.BytesIO()
    # numpy's own writer: every entry carries the zip epoch, 1980-01-01, as its time.
    np.savez(sink, allow_pickle=False, **arrays)
    return sink.getvalue()


def unpack_golden(data: bytes) -> tuple[dict[str, Array], dict[str, Array]]:
    """The inverse of `pack_golden`: feeds and outputs, by name, arrays [n, ...].

    Raises:
        BadData: it is no such file.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays: dict[str, Array] = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise BadData(f"the golden vectors cannot be read: {error}") from error
    _count(arrays)
    feeds = {k.removeprefix("input."): v for k, v in arrays.items() if k.startswith("input.")}
    outputs = {k.removeprefix("output."): v for k, v in arrays.items() if k.startswith("output.")}
    return feeds, outputs


def pack_pictures(pictures: Mapping[int, Array]) -> bytes:
    """The ``.npz`` of the pictures behind golden inputs: uint8 ``[H, W, C]`` by sample."""
    return packed({f"picture.{i}": pictures[i] for i in sorted(pictures)})


def unpack_pictures(data: bytes) -> dict[int, Array]:
    """The inverse of `pack_pictures`.

    Raises:
        BadData: it is no such file.
    """

    def read(file: Mapping[str, Array]) -> dict[int, Array]:
        return {int(name.removeprefix("picture.")): file[name] for name in file}

    return unpacked(data, "picture", read)


def from_pictures(
    feeds: Mapping[str, Array],
    pictures: Mapping[int, Array],
    preprocess: ImagePreprocess,
    input: TensorSpec,
) -> tuple[dict[str, Array], tuple[int, ...]]:
    """Golden inputs, made anew of their pictures where these are there.

    Args:
        feeds: arrays [n, ...] by input name, as stored.
        pictures: by sample, uint8 ``[H, W, C]``.
        preprocess: of the model, for the artifact's io (`ImagePreprocess.for_io`).
        input: the picture input of the artifact: uint8 where it takes pixels.

    Returns:
        The feeds, and the samples for which they are not as stored.

    Raises:
        BadData: there are more pictures than samples, or one is no picture.
    """
    make: Callable[[Array], Array] = preprocess.apply
    near: Callable[[Array, Array], bool] = close
    if input.dtype == "uint8":
        make, near = preprocess.pixels, np.array_equal
    return made_anew(feeds, input.name, pictures, "picture", make, near)


def _count(arrays: Mapping[str, Array]) -> int:
    counts = {len(a) if a.ndim else 0 for a in arrays.values()}
    if len(counts) != 1 or counts == {0}:
        raise BadData(f"golden vectors need one number of samples, not {sorted(counts) or 'none'}")
    return counts.pop()


def check_golden(
    session: Session,
    feeds: Mapping[str, Array],
    outputs: Mapping[str, Array],
    *,
    scheme: str,
    pictures: Mapping[int, Array] | None = None,
    sounds: Mapping[int, Wav] | None = None,
    preprocess: ImagePreprocess | AudioPreprocess | None = None,
) -> GoldenCheck:
    """Runs the golden inputs and compares. Fails closed: NaN anywhere is no pass.

    Args:
        session: the artifact, loaded.
        feeds, outputs: as `unpack_golden` gives them; n a multiple of the signature's batch.
        scheme: the artifact's scheme, which sets the limit (`GOLDEN_SQNR_DB`).
        pictures, sounds, preprocess: as `from_pictures` and `from_sounds` take them, where there
            are any.

    Raises:
        BadData: names, n or shapes do not fit the session's signature.
    """
    signature = session.signature
    batch = signature.inputs[0].shape[0]
    n = _count({**feeds, **outputs})
    if n % batch or {s.name for s in signature.outputs} != set(outputs):
        raise BadData(
            f"{n} golden samples with outputs {', '.join(sorted(outputs))} do not fit a batch of "
            f"{batch} and outputs {', '.join(s.name for s in signature.outputs)}"
        )
    misread: tuple[int, ...] = ()
    if pictures and isinstance(preprocess, ImagePreprocess):
        input = picture_input(signature, preprocess)
        feeds, misread = from_pictures(feeds, pictures, preprocess, input)
    if sounds and isinstance(preprocess, AudioPreprocess):
        input = sound_input(signature, preprocess)
        feeds, misread = from_sounds(feeds, sounds, preprocess, input)
    parts = [
        session.run({name: array[start : start + batch] for name, array in feeds.items()})
        for start in range(0, n, batch)
    ]
    limit = GOLDEN_SQNR_DB.get(scheme, OTHER_SQNR_DB)
    sqnr: dict[str, float] = {}
    worst: dict[str, float] = {}
    passed = not misread
    for spec in signature.outputs:
        got = np.concatenate([part[spec.name] for part in parts])
        sqnr[spec.name], worst[spec.name], fine = _compare(spec, outputs[spec.name], got, limit)
        passed = passed and fine
    return GoldenCheck(
        passed, limit, sqnr, worst, n, pictures=len(pictures or ()), misread=misread,
        sounds=len(sounds or ()),
    )  # fmt: skip


def picture_input(signature: Signature, preprocess: ImagePreprocess) -> TensorSpec:
    """The input of an artifact that takes pixels, or the tensor that is made of them.

    Raises:
        BadData: there is none.
    """
    pixels = (preprocess.height, preprocess.width, preprocess.channels)
    for spec in signature.inputs:
        if spec.dtype == "uint8" and spec.shape[1:] == pixels:
            return spec
        if spec.dtype == "float32" and spec.shape[1:] == preprocess.shape[1:]:
            return spec
    names = ", ".join(s.name for s in signature.inputs)
    raise BadData(f"no input takes what the preprocessing makes: {names}")


def _compare(
    spec: TensorSpec, reference: Array, got: Array, limit: float
) -> tuple[float, float, bool]:
    """SQNR in dB, largest absolute difference, and whether that is good enough."""
    if reference.shape != got.shape:
        raise BadData(
            f"golden output {spec.name!r} has shape {reference.shape}, the model gives {got.shape}"
        )
    ratio = sqnr_db(reference, got, atol=_ABSOLUTE)
    difference = np.abs(got.astype(np.float64) - reference.astype(np.float64))
    return ratio, float(difference.max(initial=0.0)), passes(ratio, limit)
