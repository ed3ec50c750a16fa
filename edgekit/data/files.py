"""Folders and zips of files by class, with splits: what pictures and sounds are read from.

Class folders stand at the top, or below the split folders ``train/`` and ``test/``; a single folder
around everything is looked through. Files may lie deeper within their class. Without class folders
they have no labels. Hidden files and other files than those wanted are passed over.
"""

from __future__ import annotations

import os
import stat
import threading
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Protocol, Self, TypeVar

from edgekit.data.checks import class_indices, class_names
from edgekit.data.samples import Role, SampleSet
from edgekit.errors import BadData
from edgekit.runtime._files import read_file
from edgekit.runtime.preprocess import AudioPreprocess, ImagePreprocess
from edgekit.signature import Signature

__all__ = [
    "FileSamples",
    "Files",
    "Found",
    "Item",
    "Kind",
    "by_folders",
    "numbered",
    "open_files",
    "the_input",
]

Step = TypeVar("Step", ImagePreprocess, AudioPreprocess)

TRAIN: Final = "train"
TEST: Final = ("test", "val", "validation", "valid", "dev")
"""Names of evaluation splits; the first one present counts."""


@dataclass(frozen=True)
class Kind:
    """What is looked for.

    Attributes:
        one, name: for messages, ``picture`` and ``pictures``.
        suffixes: endings of file names, in lower case.
        limit: the largest file that is read, in bytes.
        lists: names of files that list others.
        skip: name of folders that are passed over.
    """

    one: str
    name: str
    suffixes: Collection[str]
    limit: int
    lists: tuple[str, ...] = ()
    skip: str | None = None


@dataclass(frozen=True)
class Item:
    """A file: its name in the folder or zip, its name within the data set, and its class."""

    name: str
    key: str
    label: int | None


class Files(Protocol):
    """Where the files lie: relative names, split by ``/``, and the bytes behind each.

    Attributes:
        names: of the files that are wanted.
        lists: of those that list others.
    """

    names: list[str]
    lists: list[str]

    def read(self, name: str) -> bytes: ...


class _Folder:
    """Files of a folder. Links to files and folders are followed, as the user laid them."""

    def __init__(self, root: Path, kind: Kind) -> None:
        self._root, self._kind = root, kind
        self.names, self.lists = _sorted(self._walk(root, "", frozenset()), kind)

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
            elif entry.is_file() and _is_wanted(name, self._kind):
                yield name

    def read(self, name: str) -> bytes:
        return read_file(self._root / name, self._kind.limit, self._kind.one)


class _Zip:
    """Files of a zip, read in memory; nothing is ever extracted."""

    def __init__(self, path: Path, kind: Kind) -> None:
        self._limit = kind.limit
        self._handle = _Handle(path)
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in self._handle.open().infolist():
            # Zips made on Windows may separate by backslashes.
            written = member.filename.replace("\\", "/")
            _refuse_hostile(member, written, path)
            name = "/".join(part for part in written.split("/") if part not in ("", "."))
            if written.endswith("/") or not _is_wanted(name, kind):
                continue
            if name in self._members:
                raise BadData(f"{path} holds {name!r} twice")
            self._members[name] = member
        self.names, self.lists = _sorted(self._members, kind)

    def read(self, name: str) -> bytes:
        member = self._members[name]
        if member.file_size > self._limit:
            raise BadData(f"it is {member.file_size} bytes; at most {self._limit} are read")
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


class FileSamples(SampleSet, Generic[Step]):
    """Files with or without a class, read when they are asked for.

    Args:
        source: the folder or zip.
        files: all that is in it.
        items: those that are samples.
        input: the model's input that ``preprocess`` makes.
        preprocess: what makes it of a file.
        classes: names of the classes by index, where files have any.
    """

    def __init__(
        self,
        source: str,
        files: Files,
        items: Sequence[Item],
        input: str,
        preprocess: Step,
        classes: tuple[str, ...] = (),
    ) -> None:
        super().__init__(source)
        self.classes = classes
        self._files = files
        self._items = list(items)
        self._input = input
        self._preprocess: Step = preprocess

    def __len__(self) -> int:
        return len(self._items)

    def label(self, i: int) -> int | None:
        """See `Samples.label`."""
        return self._items[i].label

    def key(self, i: int) -> bytes:
        """The file's relative name, the same in a folder and in a zip of it."""
        return self._items[i].key.encode("utf-8", "surrogateescape")

    def content(self, i: int) -> bytes:
        """The file."""
        return self._files.read(self._items[i].name)

    def take(self, indices: Sequence[int]) -> Self:
        """The files at ``indices``."""
        part = copy(self)
        part.__dict__.pop("digest", None)
        part._items = [self._items[i] for i in indices]
        return part

    def name(self, i: int) -> str:
        """The file's name in the folder or zip."""
        return self._items[i].name

    @contextmanager
    def naming(self, i: int) -> Iterator[None]:
        """Lets errors name file ``i``."""
        try:
            yield
        except BadData as error:
            raise BadData(
                f"{self.source}: {self.name(i)}: {error.message}", hint=error.hint
            ) from error


@dataclass(frozen=True)
class Found:
    """What may play a role.

    Attributes:
        items: the files.
        own: whether the source's own splits chose them.
        classes: names of the classes by index; empty where files have none.
    """

    items: list[Item]
    own: bool
    classes: tuple[str, ...]


def open_files(path: Path, kind: Kind) -> Files:
    """The files of a kind in a folder or zip.

    Raises:
        BadData: there are none, it can't be read, or a name in the zip leads out of it.
    """
    files: Files = _Folder(path, kind) if path.is_dir() else _Zip(path, kind)
    if not files.names:
        raise BadData(f"{path} holds no {kind.name} ({', '.join(sorted(kind.suffixes))})")
    return files


def by_folders(path: Path, files: Files, kind: Kind, signature: Signature, role: Role) -> Found:
    """The files that may play ``role``, by the folders that they lie in.

    Raises:
        BadData: a class folder that is no class of the model, files beside class folders, or no
            split for ``role``.
    """
    around = _folders_around(files, class_names(signature))
    parts = {n: tuple(n.split("/")[around:]) for n in files.names}
    splits = {p[0] for p in parts.values() if len(p) > 1} & {TRAIN, *TEST}
    tops = {p[0] for p in parts.values()}
    own = bool(splits) and (tops <= splits or (TRAIN in splits and len(splits) > 1))
    wanted = _split_folder(splits, role, path) if own else None
    # All splits count for the numbering of classes, so that it is the same in each.
    within = {n: p[1:] if own else p for n, p in parts.items() if not own or p[0] in splits}
    labels = _labels(within, signature, role, path, kind)
    items = [
        Item(n, "/".join(parts[n]), labels[n]) for n in within if not own or parts[n][0] == wanted
    ]
    return Found(items, own, class_names(signature) or _classes(within, labels))


def the_input(signature: Signature, shape: tuple[int, ...], kind: Kind) -> str:
    """The name of the one input, which takes float32 of ``shape``.

    Raises:
        BadData: the model has several inputs, or takes something else.
    """
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise BadData(
            f"{kind.name} can feed a model with one input; this one has {names}",
            hint="give the data as a .npz, or as file.py:function",
        )
    spec = signature.inputs[0]
    if spec.shape != shape or spec.dtype != "float32":
        raise BadData(
            f"the preprocessing makes float32 {shape}; input {spec.name!r} takes "
            f"{spec.dtype} {spec.shape}"
        )
    return spec.name


def _folders_around(files: Files, classes: Sequence[str]) -> int:
    """How many folders lie around the whole data set and mean nothing."""
    depth = 0
    while True:
        heads = {tuple(n.split("/", depth + 3)[depth : depth + 3]) for n in files.names}
        first = next(iter(heads))[0]
        if any(head[0] != first or len(head) == 1 for head in heads):
            return depth
        if first in {TRAIN, *TEST, *classes}:
            return depth
        # A lone folder directly around files is a class, unless it only came about by zipping.
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
    parts: Mapping[str, tuple[str, ...]], signature: Signature, role: Role, path: Path, kind: Kind
) -> dict[str, int | None]:
    loose = [name for name, part in parts.items() if len(part) == 1]
    if len(loose) == len(parts):
        return dict.fromkeys(parts)
    if loose:
        raise BadData(
            f"{path}: {loose[0]} lies outside the class folders ({len(loose)} such {kind.name})"
        )
    return numbered({name: part[0] for name, part in parts.items()}, signature, role, str(path))


def numbered(
    classes: Mapping[str, str], signature: Signature, role: Role, source: str
) -> dict[str, int | None]:
    """The class index of every file, by the name of its class folder.

    Raises:
        BadData: a folder is no class of the model, or the folders can't be numbered.
    """
    found = sorted(set(classes.values()))
    indices = class_indices(found, signature, "class folder", source)
    if indices is None:
        if role == "calib":
            return dict.fromkeys(classes)  # Calibration uses no labels.
        raise BadData(
            f"{source} has {len(found)} class folders; the model has more classes and does not "
            "name them, so the folders cannot be numbered",
            hint="give the model its labels: Model.from_module(..., labels=[...])",
        )
    return {name: indices[folder] for name, folder in classes.items()}


def _classes(
    parts: Mapping[str, tuple[str, ...]], labels: Mapping[str, int | None]
) -> tuple[str, ...]:
    """The class folders in the order of their numbers."""
    if None in labels.values():
        return ()
    return tuple(sorted({part[0] for part in parts.values()}))


def _is_wanted(name: str, kind: Kind) -> bool:
    *folders, last = name.split("/")
    hidden = any(p.startswith(".") or p in ("__MACOSX", kind.skip) for p in (*folders, last))
    stem, dot, suffix = last.rpartition(".")
    wanted = bool(stem) and dot + suffix.lower() in kind.suffixes
    return not hidden and (wanted or last in kind.lists)


def _sorted(names: Iterable[str], kind: Kind) -> tuple[list[str], list[str]]:
    """The files that are wanted, and those that list others."""
    ordered = sorted(names)
    listing = [n for n in ordered if n.rpartition("/")[2] in kind.lists]
    return [n for n in ordered if n.rpartition("/")[2] not in kind.lists], listing


def _refuse_hostile(member: zipfile.ZipInfo, name: str, path: Path) -> None:
    drive = len(name) > 1 and name[1] == ":"
    if name.startswith("/") or drive or ".." in name.split("/"):
        raise BadData(f"{path} holds {member.filename!r}, a path that leads out of it")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise BadData(f"{path} holds {member.filename!r}, a link")
    if member.flag_bits & 0x1:
        raise BadData(f"{path} holds {member.filename!r}, which is encrypted")
