"""From what a user names to samples: `load` for one role, `load_pair` for both."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgekit.data.arrays import read_npz
from edgekit.data.functions import is_function_spec, read_function
from edgekit.data.pictures import read_pictures
from edgekit.data.samples import Role, Samples, SampleSet, draw, portion
from edgekit.data.sounds import read_sounds
from edgekit.data.texts import read_texts
from edgekit.errors import BadData, UsageError
from edgekit.runtime.audio import AudioPreprocess
from edgekit.runtime.preprocess import ImagePreprocess, Preprocess, TextPreprocess
from edgekit.signature import Signature

__all__ = ["load", "load_pair", "same_source"]

_KINDS: Final = (
    "a .npz, a folder or .zip of pictures or WAV files, a .tsv, .csv or .jsonl of texts, or "
    "file.py:function"
)
_PURPOSE: Final[dict[Role, str]] = {"calib": "calibration", "eval": "evaluation"}


def load(
    spec: str | Path,
    *,
    signature: Signature,
    preprocess: Preprocess | None,
    split: Role,
    limit: int | None = None,
    min_samples: int = 1,
    seed: int = 0,
    shared: bool | None = None,
) -> Samples:
    """The samples of ``spec`` that play one role.

    Args:
        spec: a ``.npz`` (arrays named after the inputs with the samples first, labels in ``y``), a
            folder or ``.zip`` of pictures, or of WAV files for a model with an `AudioPreprocess`,
            by class (``train/`` and ``test/`` inside are the splits), a ``.tsv``, ``.csv`` or
            ``.jsonl`` of text and label, ``file.py:function`` or ``module:function`` (imports and
            runs that code; see `edgekit.data.functions`).
        signature: what the model takes, and its labels; every sample is held to it.
        preprocess: what makes inputs of pictures, texts or sounds.
        split: ``calib`` or ``eval``.
        limit: at most so many samples, drawn at random by ``seed``.
        min_samples: fewer are refused.
        seed: of the draw; the division into roles does not depend on it.
        shared: whether the same source also serves the other role, and has to be divided if it has
            no splits of its own (see `edgekit.data`). None divides folders and zips without split
            folders, and takes all other sources whole. `load_pair` knows by itself.

    Returns:
        Samples in the order of the source, or of the draw where ``limit`` cut some off. Pictures
        are read when they are asked for, so that a broken one shows then.

    Raises:
        BadData: absent, unreadable or none of the kinds above; wrong shape, dtype or names; NaN or
            infinity; a label or class folder that the model does not know; too few samples; pickled
            arrays.
        UsageError: ``limit`` is below 1.
    """
    samples, own = _read(spec, signature, preprocess, split)
    files = not own and _is_files(spec)
    divided = not own and (files if shared is None else shared)
    if divided:
        samples = portion(samples, split)
    if limit is not None:
        samples = draw(samples, limit, seed)
    if len(samples) < max(1, min_samples):
        raise BadData(
            f"{samples.source}: {len(samples)} samples for {_PURPOSE[split]}, at least "
            f"{max(1, min_samples)} are needed",
            hint="a source without splits gives a quarter to calibration, the rest to evaluation"
            if divided
            else "",
        )
    return samples


def load_pair(
    calib: str | Path | None,
    evaluation: str | Path | None,
    *,
    signature: Signature,
    preprocess: Preprocess | None,
    limit_calib: int | None = None,
    limit_eval: int | None = None,
    min_calib: int = 1,
    min_eval: int = 1,
    seed: int = 0,
) -> tuple[Samples, Samples]:
    """Calibration and evaluation samples that have none in common.

    One of the two sources may be None: the other serves both. Two sources that are the same file,
    folder or function are divided; two different ones are taken whole. The other arguments are
    those of `load`.

    Raises:
        UsageError: both are None.
        BadData: see `load`.
    """
    first, second = calib or evaluation, evaluation or calib
    if first is None or second is None:
        raise UsageError("no data is named", hint=f"name {_KINDS}")
    shared = same_source(first, second)
    return (
        load(
            first, signature=signature, preprocess=preprocess, split="calib", limit=limit_calib,
            min_samples=min_calib, seed=seed, shared=shared,
        ),
        load(
            second, signature=signature, preprocess=preprocess, split="eval", limit=limit_eval,
            min_samples=min_eval, seed=seed, shared=shared,
        ),
    )  # fmt: skip


def same_source(one: str | Path, other: str | Path) -> bool:
    """Whether two specs name the same file, folder or function, links and spelling aside."""

    def resolved(spec: str | Path) -> tuple[str, str]:
        home, name = str(spec), ""
        if is_function_spec(home) and not Path(home).exists():
            home, _, name = home.rpartition(":")
            if not home.endswith(".py"):
                return home, name
        return str(Path(home).expanduser().resolve()), name

    return resolved(one) == resolved(other)


def _is_files(spec: str | Path) -> bool:
    path = Path(spec).expanduser()
    return path.suffix.lower() == ".zip" or path.is_dir()


def _read(
    spec: str | Path,
    signature: Signature,
    preprocess: Preprocess | None,
    role: Role,
) -> tuple[SampleSet, bool]:
    """All samples that may play the role, and whether the source itself chose them."""
    path = Path(spec).expanduser()
    if not path.exists() and is_function_spec(str(spec)):
        return read_function(str(spec), signature, preprocess, role)
    suffix = path.suffix.lower()
    image = preprocess if isinstance(preprocess, ImagePreprocess) else None
    text = preprocess if isinstance(preprocess, TextPreprocess) else None
    if not path.exists():
        raise BadData(f"there is no data at {path}", hint=f"name {_KINDS}")
    if path.is_dir() or suffix == ".zip":
        if isinstance(preprocess, AudioPreprocess):
            return read_sounds(path, signature, preprocess, role)
        return read_pictures(path, signature, image, role)
    if not path.is_file():
        raise BadData(f"{path} is no regular file", hint=f"name {_KINDS}")
    if suffix == ".npz":
        return read_npz(path, signature, preprocess), False
    if suffix in (".tsv", ".csv", ".jsonl"):
        return read_texts(path, signature, text, role), False
    raise BadData(f"{path} is no known kind of data", hint=f"name {_KINDS}")
