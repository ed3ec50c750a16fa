"""Folders and zips of WAV files by class, read one recording at a time.

They are laid out as pictures are (`edgekit.data.files`), or as Google's Speech Commands (Warden,
"Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition", 2018, arXiv:1804.03209):
beside the class folders lie ``testing_list.txt``, whose recordings are the evaluation split, and
``validation_list.txt``; what neither lists is for calibration. There, words that are no class of
the model count as its class ``unknown``, where it has one. ``_background_noise_`` is passed over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from edgekit.data.checks import class_names
from edgekit.data.files import (
    Files,
    FileSamples,
    Found,
    Item,
    Kind,
    by_folders,
    numbered,
    open_files,
    the_input,
)
from edgekit.data.samples import Feeds, Role
from edgekit.errors import BadData
from edgekit.runtime.audio import SOUND_SUFFIXES, AudioPreprocess, Wav
from edgekit.runtime.wav import MAX_WAV_BYTES
from edgekit.signature import Signature

__all__ = ["NOISE", "SOUNDS", "UNKNOWN", "SoundSamples", "read_sounds"]

UNKNOWN: Final = ("unknown", "_unknown_")
"""Names of the class of words that are none of the others."""

NOISE: Final = "_background_noise_"
TESTING: Final = "testing_list.txt"
VALIDATION: Final = "validation_list.txt"

SOUNDS: Final = Kind(
    "sound", "sounds", SOUND_SUFFIXES, MAX_WAV_BYTES, lists=(TESTING, VALIDATION), skip=NOISE
)


class SoundSamples(FileSamples[AudioPreprocess]):
    """Recordings with or without a class, decoded and preprocessed when they are asked for."""

    def feed(self, i: int) -> Feeds:
        """Decodes recording ``i``; see `Samples.feed`.

        Raises:
            BadData: the recording is unreadable; names it.
        """
        with self.naming(i):
            wav = self._preprocess.decode(self.content(i))
            return {self._input: self._preprocess.apply(wav.samples, wav.rate)}

    def sound(self, i: int) -> Wav:
        """See `edgekit.data.samples.sound_of`; raises as `feed`."""
        with self.naming(i):
            return self._preprocess.decode(self.content(i))


def read_sounds(
    path: Path, signature: Signature, preprocess: AudioPreprocess, role: Role
) -> tuple[SoundSamples, bool]:
    """The recordings of a folder or zip that may play ``role``.

    Returns:
        The samples, and whether the source's own splits chose them.

    Raises:
        BadData: no WAV files, a class folder that is no class of the model, no split for ``role``,
            or a preprocessing that does not make what the model takes.
    """
    name = the_input(signature, preprocess.shape, SOUNDS)
    files = open_files(path, SOUNDS)
    testing = next((n for n in files.lists if n.rpartition("/")[2] == TESTING), None)
    if testing is None:
        found = by_folders(path, files, SOUNDS, signature, role)
    else:
        found = _by_lists(path, files, testing, signature, role)
    made = SoundSamples(str(path), files, found.items, name, preprocess, found.classes)
    return made, found.own


def _by_lists(path: Path, files: Files, testing: str, signature: Signature, role: Role) -> Found:
    """The recordings of Speech Commands for a role."""
    base = testing.removesuffix(TESTING)
    held = _listed(files, testing, path)
    others = f"{base}{VALIDATION}"
    kept = _listed(files, others, path) if others in files.lists else frozenset()
    inside = {n: n.removeprefix(base) for n in files.names if n.startswith(base)}
    inside = {n: key for n, key in inside.items() if "/" in key}
    known = class_names(signature)
    unknown = next((u for u in UNKNOWN if u in known), None)
    classes = {}
    for name, key in inside.items():
        word = key.partition("/")[0]
        classes[name] = word if word in known or unknown is None else unknown
    labels = numbered(classes, signature, role, str(path))
    wanted = [
        name
        for name, key in inside.items()
        if (key in held if role == "eval" else key not in held and key not in kept)
    ]
    names = known or tuple(sorted(set(classes.values())))
    items = [Item(name, inside[name], labels[name]) for name in wanted]
    return Found(items, True, () if None in labels.values() else names)


def _listed(files: Files, name: str, path: Path) -> frozenset[str]:
    """The relative names in a list, each of which must be there.

    Raises:
        BadData: the list is no text, or names a recording that is not there.
    """
    try:
        lines = files.read(name).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise BadData(f"{path}: {name} is no UTF-8 text") from error
    listed = [line.strip() for line in lines if line.strip()]
    base = name.rpartition("/")[0]
    there = set(files.names)
    missing = [n for n in listed if (f"{base}/{n}" if base else n) not in there]
    if missing:
        raise BadData(f"{path}: {name} lists {missing[0]!r} ({len(missing)} such), which is absent")
    return frozenset(listed)
