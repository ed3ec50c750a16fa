"""Reading files that came from elsewhere: whole, once, and checked before anything parses them.

A file is read into memory from one open descriptor, so what is vetted is what is loaded, whatever
happens to the path in between. Zip archives are read by a parser of our own that accepts only what
`torch.export.save` writes: stored members, back to back, that both directories agree on.
"""

from __future__ import annotations

import json
import os
import re
import stat
import struct
import zlib
from pathlib import Path
from typing import Any, NoReturn

from edgekit.errors import BadData, StorageError, TrustError

__all__ = ["parse_json", "read_file", "stored_members"]

MAX_MEMBERS = 100_000
"""A program with more weights than this is refused."""

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_STREAMED, _UTF8 = 1 << 3, 1 << 11
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")


def read_file(path: Path) -> bytes:
    """A regular file's whole content, read through one descriptor.

    A link is followed (model caches are full of them); what it leads to must be a regular file.

    Raises:
        BadData: absent, empty, no regular file (a directory, pipe or device), or changing size.
        StorageError: no permission.
    """
    try:
        # A pipe without a writer would block the open itself.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        raise StorageError(f"no permission to read {path}") from error
    except OSError as error:
        raise BadData(f"cannot open {path}: {error.strerror}") from error
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        raise BadData(f"{path} is no regular file")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(about.st_size + 1)
    if not data:
        raise BadData(f"{path} is empty")
    if len(data) != about.st_size:
        raise BadData(f"{path} changed while it was read")
    return data


def parse_json(data: bytes | memoryview, what: str) -> Any:
    """JSON without duplicate keys, NaN or infinity.

    Raises:
        BadData: not JSON, not UTF-8, nested too deep, or ambiguous; names ``what``.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            raise ValueError("a key occurs twice")
        return out

    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(str(data, "utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise BadData(f"{what} is not valid JSON: {error}") from error


def stored_members(data: bytes, what: str) -> dict[str, memoryview]:
    """The members of an uncompressed zip archive, by name.

    The archive must be nothing but its members, in order and without gaps, and their directory;
    local headers, descriptors and directory must agree; every checksum must hold. So no other
    reader can see other members than these.

    Args:
        data: the whole file.
        what: the file's name, for messages.

    Returns:
        Name to content, as views of ``data``.

    Raises:
        BadData: no zip archive, or cut short.
        TrustError: an archive that two readers could read differently, or with a compressed,
            encrypted, duplicate or ill-named member, or a wrong checksum.
    """
    view = memoryview(data)
    count, at, end = _directory(view, what)
    if count > MAX_MEMBERS:
        raise TrustError(f"{what} holds {count} members; at most {MAX_MEMBERS} are read")
    members: dict[str, memoryview] = {}
    expected, directory = 0, at
    for _ in range(count):
        name, header, at = _entry(view, at, end, what)
        if name in members:
            raise TrustError(f"{what} holds {name!r} twice")
        if header[0] != expected:
            raise TrustError(f"{what} has bytes that belong to no member before {name!r}")
        members[name], expected = _member(view, name, *header, directory, what)
    if at != end or expected != directory:
        raise TrustError(f"{what} has bytes that belong to no member")
    return members


def _directory(view: memoryview, what: str) -> tuple[int, int, int]:
    """Count of members, and the first and past-the-last byte of the central directory."""
    at = len(view) - _END.size
    if at < 0 or bytes(view[:4]) != b"PK\3\4":
        raise BadData(f"{what} is no zip archive")
    mark, disk, first, here, count, size, offset, comment = _END.unpack_from(view, at)
    if mark != b"PK\5\6":
        raise BadData(f"{what} is no zip archive, or is cut short, or has bytes after its end")
    if disk or first or comment or here != count:
        raise TrustError(f"{what} has a comment or more than one volume")
    end = at
    if at >= _LOCATOR.size and bytes(view[at - _LOCATOR.size : at][:4]) == b"PK\6\7":
        _, _, at64, _ = _LOCATOR.unpack_from(view, at - _LOCATOR.size)
        end = at64
        if at64 + _END64.size != at - _LOCATOR.size:
            raise TrustError(f"{what} has a malformed end record")
        record = _END64.unpack_from(view, at64)
        small = (count, size, offset)
        count, size, offset = record[7:]
        if record[0] != b"PK\6\6" or record[1] != _END64.size - 12 or record[4] or record[5]:
            raise TrustError(f"{what} has a malformed end record")
        for narrow, wide, limit in zip(
            small, record[7:], (0xFFFF, 2**32 - 1, 2**32 - 1), strict=True
        ):
            if narrow not in (wide, limit):
                raise TrustError(f"{what} has two end records that disagree")
    if offset + size != end:
        raise TrustError(f"{what} has a directory that is not where its end record says")
    return count, offset, end


def _entry(
    view: memoryview, at: int, end: int, what: str
) -> tuple[str, tuple[int, int, int, int], int]:
    """One directory entry: name; header offset, size, checksum and flags; where the next starts."""
    if at + _CENTRAL.size > end:
        raise TrustError(f"{what} has a directory that ends within an entry")
    fields = _CENTRAL.unpack_from(view, at)
    mark, _, _, flags, method, _, _, crc, packed, size, n_name, n_extra, n_comment = fields[:13]
    offset = fields[16]
    stop = at + _CENTRAL.size + n_name + n_extra + n_comment
    if mark != b"PK\1\2" or stop > end or n_comment or fields[13]:
        raise TrustError(f"{what} has a malformed directory entry")
    raw = bytes(view[at + _CENTRAL.size :][:n_name])
    name = _checked_name(raw, what)
    wide = _zip64(view[at + _CENTRAL.size + n_name :][:n_extra], name, what)
    if wide:
        values = iter(wide)
        size = next(values, size) if size == 2**32 - 1 else size
        packed = next(values, packed) if packed == 2**32 - 1 else packed
        offset = next(values, offset) if offset == 2**32 - 1 else offset
    if method != 0 or packed != size:
        raise TrustError(f"{what}: {name!r} is compressed; torch.export.save stores members as is")
    if flags & ~(_STREAMED | _UTF8):
        raise TrustError(f"{what}: {name!r} is encrypted or patched")
    return name, (offset, size, crc, flags), stop


def _zip64(extra: memoryview, name: str, what: str) -> list[int]:
    """The 64-bit values of a directory entry's extra field, in their order."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        body = extra[at + 4 :][:size]
        if len(body) != size:
            break
        if kind == 1:
            return list(struct.unpack_from(f"<{size // 8}Q", body))
        at += 4 + size
    if at != len(extra):
        raise TrustError(f"{what}: {name!r} has a malformed extra field")
    return []


def _member(
    view: memoryview,
    name: str,
    offset: int,
    size: int,
    crc: int,
    flags: int,
    directory: int,
    what: str,
) -> tuple[memoryview, int]:
    """A member's content and where the next header must start; its local header must agree."""
    if offset + _LOCAL.size > directory:
        raise TrustError(f"{what}: {name!r} lies outside of the archive")
    mark, _, bits, method, _, _, crc0, packed0, size0, n_name, n_extra = _LOCAL.unpack_from(
        view, offset
    )
    start = offset + _LOCAL.size + n_name + n_extra
    stop = start + size
    local = bytes(view[offset + _LOCAL.size :][:n_name])
    if mark != b"PK\3\4" or bits != flags or method != 0 or local != name.encode():
        raise TrustError(f"{what}: {name!r} has a local header that disagrees with the directory")
    # What is streamed states these after the content; above 4 GiB the sizes stand in the extra.
    wide = 2**32 - 1
    unset = {(0, 0, 0), (0, wide, wide)} if flags & _STREAMED else {(crc, wide, wide)}
    if (crc0, packed0, size0) not in {(crc, size, size), *unset} or stop > directory:
        raise TrustError(f"{what}: {name!r} has a local header that disagrees with the directory")
    content = view[start:stop]
    if zlib.crc32(content) != crc:
        raise TrustError(f"{what}: {name!r} does not have the checksum that the archive states")
    if flags & _STREAMED:
        for layout in ("<4sLLL", "<4sLQQ"):
            length = struct.calcsize(layout)
            tail = view[stop : stop + length]
            if len(tail) == length and struct.unpack(layout, tail) == (
                b"PK\7\x08",
                crc,
                size,
                size,
            ):
                return content, stop + length
        raise TrustError(f"{what}: {name!r} has a descriptor that disagrees with the directory")
    return content, stop


def _checked_name(raw: bytes, what: str) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        name = raw.decode("latin-1")
        parts = [""]
    else:
        parts = name.split("/")
    if _UNSAFE.search(name) or any(part in ("", ".", "..") for part in parts):
        raise TrustError(f"{what} holds a member with an unsafe name: {name!r}")
    return name
