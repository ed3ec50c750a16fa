"""Folders and zips of pictures by class, read one picture at a time.

Class folders stand at the top, or below the split folders ``train/`` and ``test/``; a single folder
around everything is looked through. Pictures may lie deeper within their class. Without class
folders pictures have no labels. Hidden files and other files than pictures are passed over.
"""

from __future__ import annotations

import os
import stat
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, Self

import numpy as np
import numpy.typing as npt

from edgekit.data.checks import class_indices, class_names
from edgekit.data.samples import Feeds, Role, SampleSet
from edgekit.errors import BadData
from edgekit.runtime.decode import MAX_FILE_BYTES, PICTURE_SUFFIXES, read_file
from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.signature import Signature

__all__ = ["PictureSamples", "read_pictures"]

TRAIN: Final = "train"
TEST: Final = ("test", "val", "validation", "valid", "dev")
"""Names of evaluation splits; the first one present counts."""


class _Files(Protocol):
    """Where the pictures lie: relative names, split by ``/``, and the bytes behind each."""

    names: list[str]

    def read(self, name: str) -> bytes: ...


class _Folder:
    """Pictures of a folder. Links to files and folders are followed, as the user laid them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.names = sorted(self._walk(root, "", frozenset()))

    def _walk(self, folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
        try:
            info = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError as error:
            raise BadData(f"cannot read folder {folder}: {error.strerror or error}") from error
        here = (info.st_dev, info.st_ino)
        if here in above:
            return  # A link back to a folder that holds it.
        for entry in entries:
            name = prefix + entry.name
            if entry.is_dir():
                yield from self._walk(Path(entry.path), name + "/", above | {here})
            elif entry.is_file() and _is_picture(name):
                yield name

    def read(self, name: str) -> bytes:
        return read_file(self._root / name)


class _Zip:
    """Pictures of a zip, read in memory; nothing is ever extracted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = _Handle(path)
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in self._handle.open().infolist():
            # Zips made on Windows may separate by backslashes.
            written = member.filename.replace("\\", "/")
            _refuse_hostile(member, written, path)
            name = "/".join(part for part in written.split("/") if part not in ("", "."))
            if written.endswith("/") or not _is_picture(name):
                continue
            if name in self._members:
                raise BadData(f"{path} holds {name!r} twice")
            self._members[name] = member
        self.names = sorted(self._members)

    def read(self, name: str) -> bytes:
        member = self._members[name]
        if member.file_size > MAX_FILE_BYTES:
            raise BadData(f"it is {member.file_size} bytes; at most {MAX_FILE_BYTES} are read")
        try:
            return self._handle.open().read(member)
        except Exception as error:
            # A bad checksum, an unknown compression, a broken stream: each has its own exception.
            raise BadData(f"it cannot be read out of the zip: {error}") from error


class _Handle:
    """A zip opened on first use in every process: a forked one would share the file's position."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._open: tuple[int, zipfile.ZipFile] | None = None

    def open(self) -> zipfile.ZipFile:
        with self._lock:
            if self._open is None or self._open[0] != os.getpid():
                try:
                    self._open = (os.getpid(), zipfile.ZipFile(self._path))
                except (OSError, zipfile.BadZipFile) as error:
                    raise BadData(f"cannot read {self._path} as a zip: {error}") from error
            return self._open[1]

    def __reduce__(self) -> tuple[type[_Handle], tuple[Path]]:
        return (_Handle, (self._path,))


@dataclass(frozen=True)
class _Picture:
    """A picture: its name in the folder or zip, its name within the data set, and its class."""

    name: str
    key: str
    label: int | None


class PictureSamples(SampleSet):
    """Pictures with or without a class, decoded and preprocessed when they are asked for.

    ``classes`` are the names of the classes by index, where pictures have any.
    """

    def __init__(
        self,
        source: str,
        files: _Files,
        items: Sequence[_Picture],
        name: str,
        preprocess: ImagePreprocess,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(source)
        self.classes = classes
        self._files = files
        self._items = list(items)
        self._input = name
        self._preprocess = preprocess

    def __len__(self) -> int:
        return len(self._items)

    def feed(self, i: int) -> Feeds:
        """Decodes picture ``i``; see `Samples.feed`.

        Raises:
            BadData: the picture is unreadable; names it.
            MissingDependency: Pillow is not installed.
        """
        with self._naming(i):
            return {self._input: self._preprocess.apply(self._decoded(i))}

    def picture(self, i: int) -> npt.NDArray[np.uint8]:
        """See `edgekit.data.samples.picture_of`; raises as `feed`."""
        with self._naming(i):
            return self._decoded(i)

    def name(self, i: int) -> str:
        """The picture's name in the folder or zip."""
        return self._items[i].name

    def _decoded(self, i: int) -> npt.NDArray[np.uint8]:
        return self._preprocess.decode(self._files.read(self._items[i].name))

    @contextmanager
    def _naming(self, i: int) -> Iterator[None]:
        try:
            yield
        except BadData as error:
            name = self._items[i].name
            raise BadData(f"{self.source}: {name}: {error.message}", hint=error.hint) from error

    def label(self, i: int) -> int | None:
        """See `Samples.label`."""
        return self._items[i].label

    def key(self, i: int) -> bytes:
        """The picture's relative name, the same in a folder and in a zip of it."""
        return self._items[i].key.encode("utf-8", "surrogateescape")

    def content(self, i: int) -> bytes:
        """The picture file."""
        return self._files.read(self._items[i].name)

    def take(self, indices: Sequence[int]) -> Self:
        """The pictures at ``indices``."""
        items = [self._items[i] for i in indices]
        return type(self)(
            self.source, self._files, items, self._input, self._preprocess, self.classes
        )


def read_pictures(
    path: Path, signature: Signature, preprocess: ImagePreprocess | None, role: Role
) -> tuple[PictureSamples, bool]:
    """The pictures of a folder or zip that may play ``role``.

    Returns:
        The samples, and whether the source's own split folders chose them.

    Raises:
        BadData: no pictures, a class folder that is no class of the model, no split for ``role``,
            or a preprocessing that does not make what the model takes.
    """
    if preprocess is None:
        raise BadData(
            f"{path} holds pictures, and the model has no preprocessing for them",
            hint="give the Model preprocess=ImagePreprocess(...), or the data as a .npz of inputs",
        )
    name = _picture_input(signature, preprocess)
    files: _Files = _Folder(path) if path.is_dir() else _Zip(path)
    if not files.names:
        raise BadData(f"{path} holds no pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")
    around = _folders_around(files, class_names(signature))
    parts = {n: tuple(n.split("/")[around:]) for n in files.names}
    splits = {p[0] for p in parts.values() if len(p) > 1} & {TRAIN, *TEST}
    tops = {p[0] for p in parts.values()}
    own = bool(splits) and (tops <= splits or (TRAIN in splits and len(splits) > 1))
    wanted = _split_folder(splits, role, path) if own else None
    # All splits count for the numbering of classes, so that it is the same in each.
    within = {n: p[1:] if own else p for n, p in parts.items() if not own or p[0] in splits}
    labels = _labels(within, signature, role, path)
    items = [
        _Picture(n, "/".join(parts[n]), labels[n])
        for n in within
        if not own or parts[n][0] == wanted
    ]
    classes = class_names(signature) or _classes(within, labels)
    return PictureSamples(str(path), files, items, name, preprocess, classes), own


def _picture_input(signature: Signature, preprocess: ImagePreprocess) -> str:
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise BadData(
            f"pictures can feed a model with one input; this one has {names}",
            hint="give the data as a .npz, or as file.py:function",
        )
    spec = signature.inputs[0]
    if spec.shape != preprocess.shape or spec.dtype != "float32":
        raise BadData(
            f"the preprocessing makes float32 {preprocess.shape}; input {spec.name!r} takes "
            f"{spec.dtype} {spec.shape}"
        )
    return spec.name


def _folders_around(files: _Files, classes: Sequence[str]) -> int:
    """How many folders lie around the whole data set and mean nothing."""
    depth = 0
    while True:
        heads = {tuple(n.split("/", depth + 3)[depth : depth + 3]) for n in files.names}
        first = next(iter(heads))[0]
        if any(head[0] != first or len(head) == 1 for head in heads):
            return depth
        if first in {TRAIN, *TEST, *classes}:
            return depth
        # A lone folder directly around pictures is a class, unless it only came about by zipping.
        if any(len(head) == 2 for head in heads):
            return depth + isinstance(files, _Zip)
        depth += 1


def _split_folder(splits: set[str], role: Role, path: Path) -> str:
    wanted = (TRAIN,) if role == "calib" else TEST
    for name in wanted:
        if name in splits:
            return name
    purpose = "calibration" if role == "calib" else "evaluation"
    raise BadData(
        f"{path} has split folders ({', '.join(sorted(splits))}) but none for {purpose}: "
        f"{' or '.join(f'{n}/' for n in wanted)}"
    )


def _labels(
    parts: Mapping[str, tuple[str, ...]], signature: Signature, role: Role, path: Path
) -> dict[str, int | None]:
    loose = [name for name, part in parts.items() if len(part) == 1]
    if len(loose) == len(parts):
        return dict.fromkeys(parts)
    if loose:
        raise BadData(
            f"{path}: {loose[0]} lies outside the class folders ({len(loose)} such pictures)"
        )
    found = sorted({part[0] for part in parts.values()})
    indices = class_indices(found, signature, "class folder", str(path))
    if indices is None:
        if role == "calib":
            return dict.fromkeys(parts)  # Calibration uses no labels.
        raise BadData(
            f"{path} has {len(found)} class folders; the model has more classes and does not name "
            "them, so the folders cannot be numbered",
            hint="give the model its labels: Model.from_module(..., labels=[...])",
        )
    return {name: indices[part[0]] for name, part in parts.items()}


def _classes(
    parts: Mapping[str, tuple[str, ...]], labels: Mapping[str, int | None]
) -> tuple[str, ...]:
    """The class folders in the order of their numbers."""
    if None in labels.values():
        return ()
    return tuple(sorted({part[0] for part in parts.values()}))


def _is_picture(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    stem, dot, suffix = parts[-1].rpartition(".")
    return not hidden and bool(stem) and dot + suffix.lower() in PICTURE_SUFFIXES


def _refuse_hostile(member: zipfile.ZipInfo, name: str, path: Path) -> None:
    drive = len(name) > 1 and name[1] == ":"
    if name.startswith("/") or drive or ".." in name.split("/"):
        raise BadData(f"{path} holds {member.filename!r}, a path that leads out of it")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise BadData(f"{path} holds {member.filename!r}, a link")
    if member.flag_bits & 0x1:
        raise BadData(f"{path} holds {member.filename!r}, which is encrypted")
