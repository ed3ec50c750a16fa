"""The two forms in which a bundle lies on disk: a directory, or a zip file.

Both are read without following a link, within limits that the manifest or this module sets, and
nothing is written until every file has the size and the hash that the manifest states.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Protocol

from edgekit.errors import BadData, StorageError, TrustError
from edgekit.runtime.manifest import MANIFEST, MAX_FILES, MAX_MANIFEST_BYTES, FileEntry

__all__ = ["Container", "open_container"]

MAX_BUNDLE_BYTES = 16 * 2**30
"""Everything a bundle may hold, unpacked; a manifest that states more is refused."""

MAX_RATIO = 200
"""Unpacked size over packed size of one zip entry above `RATIO_FROM` bytes."""

RATIO_FROM = 2**20

_BLOCK = 2**20
_SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX


class Container(Protocol):
    """Where a bundle's bytes come from."""

    def manifest(self) -> bytes:
        """The manifest's bytes, not yet checked."""
        ...

    def check(self, files: Mapping[str, FileEntry]) -> None:
        """Holds every file against its entry, and the names against the list.

        Raises:
            TrustError: a file is missing, unlisted, no regular file, or not what its entry says.
        """
        ...

    def place(self, files: Iterable[FileEntry]) -> Path:
        """A directory in which these files lie under their names, as `check` saw them."""
        ...

    def read(self, entry: FileEntry) -> bytes:
        """One file's bytes, hashed as they are read."""
        ...

    def close(self) -> None:
        """Removes what `place` wrote."""
        ...


def open_container(path: Path) -> Container:
    """The container at ``path``.

    Raises:
        BadData: nothing is there, or it is neither a directory nor a zip file.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise BadData(f"bundle {path} cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        return DirectoryContainer(path)
    if stat.S_ISREG(mode):
        return ZipContainer(path)
    raise BadData(f"bundle {path} is neither a directory nor a zip file")


def _verified(source: IO[bytes], entry: FileEntry) -> Iterator[bytes]:
    """Blocks of a file, never more than its entry states; the end comes only if the hash fits."""
    digest, left = hashlib.sha256(), entry.bytes
    while block := source.read(min(_BLOCK, left + 1)):
        left -= len(block)
        if left < 0:
            break
        digest.update(block)
        yield block
    if left:
        raise TrustError(f"{entry.path} is not {entry.bytes} bytes long, as its manifest says")
    if digest.hexdigest() != entry.sha256:
        raise TrustError(
            f"{entry.path} does not have the hash that its manifest states",
            hint="it was changed or damaged after it was packed; fetch the bundle again",
        )


def _check_names(found: Iterable[str], files: Mapping[str, FileEntry]) -> None:
    names = set(found) - {MANIFEST}
    if extra := sorted(names - files.keys()):
        raise TrustError(f"the bundle holds files that its manifest does not list: {_some(extra)}")
    if missing := sorted(files.keys() - names):
        raise TrustError(f"the bundle lacks files that its manifest lists: {_some(missing)}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(repr(name[:200]) for name in names[:5]) + more


class DirectoryContainer:
    """A bundle that lies unpacked.

    A hard link is not refused: deduplicating stores make them, and the hash decides what is read.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: dict[str, tuple[int, ...]] = {}

    def manifest(self) -> bytes:
        """See `Container.manifest`."""
        if not os.path.lexists(self._root / MANIFEST):
            raise BadData(f"{self._root} is not a bundle: it has no {MANIFEST}")
        with self._open(MANIFEST) as file:
            return file.read(MAX_MANIFEST_BYTES + 1)

    def check(self, files: Mapping[str, FileEntry]) -> None:
        """See `Container.check`."""
        _check_names(self._walk(files), files)
        for entry in files.values():
            self._hash(entry)

    def place(self, files: Iterable[FileEntry]) -> Path:
        """See `Container.place`: the bundle's own directory, if nothing changed since `check`."""
        for entry in files:
            with self._open(entry.path) as file:
                unchanged = _identity(os.fstat(file.fileno())) == self._seen.get(entry.path)
            if not unchanged:
                raise TrustError(
                    f"{entry.path} changed after it was checked", hint="open the bundle again"
                )
        return self._root

    def read(self, entry: FileEntry) -> bytes:
        """See `Container.read`."""
        with self._open(entry.path) as file:
            return b"".join(_verified(file, entry))

    def close(self) -> None:
        """See `Container.close`; nothing was written."""

    def _hash(self, entry: FileEntry) -> None:
        with self._open(entry.path) as file:
            before = os.fstat(file.fileno())
            if before.st_size != entry.bytes:
                raise TrustError(
                    f"{entry.path} is {before.st_size} bytes long, its manifest says {entry.bytes}"
                )
            for _ in _verified(file, entry):
                pass
            self._seen[entry.path] = _identity(before)

    def _open(self, name: str) -> IO[bytes]:
        """Opens a regular file without following a link in the last or in any earlier part."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        parts = name.split("/")
        try:
            folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for part in parts[:-1]:
                    inner = os.open(part, flags | os.O_DIRECTORY, dir_fd=folder)
                    os.close(folder)
                    folder = inner
                fd = os.open(parts[-1], flags, dir_fd=folder)
            finally:
                os.close(folder)
        except OSError as error:
            if isinstance(error, PermissionError):
                raise StorageError(f"{name} in the bundle may not be read") from error
            raise TrustError(f"{name} is missing or is a link: {error.strerror}") from error
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) or mode & _SPECIAL_BITS:
            os.close(fd)
            raise TrustError(f"{name} is not a regular file")
        return os.fdopen(fd, "rb")

    def _walk(self, files: Mapping[str, FileEntry]) -> Iterator[str]:
        """Every file below the root by its POSIX name; links and special files are refused."""
        wanted = {part for name in files for part in _parents(name)}
        pending = [""]
        found = 0
        while pending:
            prefix = pending.pop()
            with os.scandir(self._root / prefix) as entries:
                for entry in entries:
                    name = f"{prefix}{entry.name}"
                    found += 1
                    if found > 2 * MAX_FILES:
                        raise TrustError(f"the bundle holds more than {2 * MAX_FILES} files")
                    mode = entry.stat(follow_symlinks=False).st_mode
                    if stat.S_ISDIR(mode) and name in wanted:
                        pending.append(name + "/")
                    elif stat.S_ISREG(mode) and not mode & _SPECIAL_BITS:
                        yield name
                    else:
                        raise TrustError(f"the bundle holds {name[:200]!r}: {_kind(mode)}")


def _identity(info: os.stat_result) -> tuple[int, ...]:
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device node",
        stat.S_IFBLK: "a device node",
        stat.S_IFDIR: "a directory without a listed file",
    }
    return kinds.get(stat.S_IFMT(mode), "a file with a setuid, setgid or sticky bit")


class ZipContainer:
    """A bundle in one zip file, stored or deflated."""

    def __init__(self, path: Path) -> None:
        self._placed: dict[str, Path] = {}
        self._temporary: weakref.finalize[[Path], ZipContainer] | None = None
        self._name = path.name
        self._file = path.open("rb")
        self._closer = weakref.finalize(self, self._file.close)
        try:
            self._zip = zipfile.ZipFile(self._file)
            _check_ends(self._file, self._zip)
            self._entries = _central_directory(self._zip)
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
            self._closer()
            raise BadData(f"bundle {path} is not a zip file: {error}") from error
        except BaseException:
            self._closer()
            raise

    def manifest(self) -> bytes:
        """See `Container.manifest`."""
        info = self._entries.get(MANIFEST)
        if info is None:
            raise BadData(f"{self._name} is not a bundle: it has no {MANIFEST}")
        with self._open(MANIFEST) as file:
            return file.read(MAX_MANIFEST_BYTES + 1)

    def check(self, files: Mapping[str, FileEntry]) -> None:
        """See `Container.check`."""
        _check_names(self._entries, files)
        total = sum(entry.bytes for entry in files.values())
        if total > MAX_BUNDLE_BYTES:
            raise TrustError(f"the bundle unpacks to {total} bytes, more than {MAX_BUNDLE_BYTES}")
        for entry in files.values():
            info = self._entries[entry.path]
            if info.file_size != entry.bytes:
                raise TrustError(
                    f"{entry.path} unpacks to {info.file_size} bytes, "
                    f"its manifest says {entry.bytes}"
                )
        for entry in files.values():
            with self._open(entry.path) as file:
                for _ in _verified(file, entry):
                    pass

    def place(self, files: Iterable[FileEntry]) -> Path:
        """See `Container.place`: a private temporary directory, hashed again while unpacking."""
        root = self._directory()
        for entry in files:
            if entry.path in self._placed:
                continue
            target = root / entry.path
            try:
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with target.open("xb") as sink, self._open(entry.path) as source:
                    for block in _verified(source, entry):
                        sink.write(block)
            except OSError as error:
                target.unlink(missing_ok=True)
                raise StorageError(f"{entry.path} cannot be unpacked: {error.strerror}") from error
            self._placed[entry.path] = target
        return root

    def read(self, entry: FileEntry) -> bytes:
        """See `Container.read`."""
        with self._open(entry.path) as file:
            return b"".join(_verified(file, entry))

    def close(self) -> None:
        """See `Container.close`."""
        if self._temporary is not None:
            self._temporary()
        self._temporary = None
        self._placed.clear()
        self._closer()

    def _directory(self) -> Path:
        if self._temporary is None:
            try:
                root = Path(tempfile.mkdtemp(prefix="edgekit-bundle-"))
            except OSError as error:
                raise StorageError(f"no temporary directory: {error.strerror}") from error
            self._root = root
            self._temporary = weakref.finalize(self, shutil.rmtree, root, ignore_errors=True)
        return self._root

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        # zipfile compares the local header's name with the central directory's on opening.
        with _bad_zip(name), self._zip.open(self._entries[name]) as file:
            yield file


@contextlib.contextmanager
def _bad_zip(name: str) -> Iterator[None]:
    """Turns the many ways in which zipfile and zlib call an entry damaged into one."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise TrustError(f"{name} cannot be unpacked: {error}") from error


def _check_ends(file: IO[bytes], archive: zipfile.ZipFile) -> None:
    """Refuses two zips one after the other, a zip behind something else, and anything behind it.

    Readers differ on which part of such a file counts, so a check by one says nothing to another.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 22))  # the end record without a comment
    ends = file.read(4) == b"PK\x05\x06"
    first = min((info.header_offset for info in archive.infolist()), default=0)
    if first or not ends:
        raise TrustError("the zip has bytes before its first entry or after its last record")


def _central_directory(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """All entries by name, after refusing what no bundle holds."""
    infos = archive.infolist()
    if len(infos) > 2 * MAX_FILES:
        raise TrustError(f"the bundle holds {len(infos)} zip entries, more than {2 * MAX_FILES}")
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename
        if info.is_dir() and info.file_size == 0:
            continue  # some zip tools write one for each folder; it carries nothing
        if info.orig_filename != name or name in entries:
            raise TrustError(f"the zip names {name[:200]!r} twice, or hides part of a name")
        mode = info.external_attr >> 16
        if mode and (stat.S_IFMT(mode) not in (0, stat.S_IFREG) or mode & _SPECIAL_BITS):
            raise TrustError(f"the bundle holds {name[:200]!r}: {_kind(mode)}")
        if info.flag_bits & 1 or info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise TrustError(f"{name[:200]!r} is encrypted or packed in a way bundles do not use")
        if info.file_size > RATIO_FROM and info.file_size > MAX_RATIO * info.compress_size:
            raise TrustError(
                f"{name[:200]!r} unpacks to more than {MAX_RATIO} times its packed size"
            )
        entries[name] = info
    return entries
