"""Reads FlatBuffers without their library: tables, strings, vectors and whole numbers.

After the format's specification ("FlatBuffer Internals"): a table starts with the distance back to
its vtable, which holds for each field where it lies in the table, 0 where it is left out.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from edgekit.errors import BadData

__all__ = ["Table", "root"]


class Table:
    """One table of a buffer.

    Args:
        data: the whole buffer.
        at: where the table begins.

    Raises:
        BadData: in every method, where the buffer ends or points outside of itself.
    """

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._vtable = at - self._read("<i", at)
        self._size = self._read("<H", self._vtable)

    def _read(self, form: str, at: int) -> int:
        try:
            if at < 0:
                raise struct.error
            found: int = struct.unpack_from(form, self._data, at)[0]
        except struct.error as error:
            raise BadData("a FlatBuffers file is damaged: it points outside of itself") from error
        return found

    def _field(self, number: int) -> int | None:
        slot = 4 + 2 * number
        if slot + 2 > self._size:
            return None
        offset = self._read("<H", self._vtable + slot)
        return self._at + offset if offset else None

    def number(self, field: int, form: str, default: int = 0) -> int:
        """A whole number, its form as `struct` names it (``<i``, ``<Q``)."""
        at = self._field(field)
        return default if at is None else self._read(form, at)

    def text(self, field: int) -> str | None:
        """A string; None where it is left out."""
        at = self._field(field)
        if at is None:
            return None
        start = at + self._read("<I", at)
        length = self._read("<I", start)
        return self._data[start + 4 : start + 4 + length].decode("utf-8", "replace")

    def table(self, field: int) -> Table | None:
        """A table; None where it is left out."""
        at = self._field(field)
        return None if at is None else Table(self._data, at + self._read("<I", at))

    def numbers(self, field: int, form: str) -> list[int]:
        """A vector of whole numbers, empty where it is left out."""
        at = self._field(field)
        if at is None:
            return []
        start, width = at + self._read("<I", at), struct.calcsize(form)
        count = self._read("<I", start)
        if count * width > len(self._data):
            raise BadData("a FlatBuffers file is damaged: a vector is longer than it")
        return [self._read(form, start + 4 + width * i) for i in range(count)]

    def tables(self, field: int) -> Iterator[Table]:
        """A vector of tables, empty where it is left out."""
        at = self._field(field)
        if at is None:
            return
        start = at + self._read("<I", at)
        for index in range(self._read("<I", start)):
            entry = start + 4 + 4 * index
            yield Table(self._data, entry + self._read("<I", entry))


def root(data: bytes, identifier: bytes | None) -> Table:
    """The table that a buffer is, after a look at its identifier; None: whatever that is.

    Raises:
        BadData: it has another identifier, or is cut off.
    """
    if len(data) < 8:
        raise BadData("a FlatBuffers file is cut off")
    if identifier is not None and data[4:8] != identifier:
        raise BadData(f"a FlatBuffers file is not {identifier!r}: its identifier is {data[4:8]!r}")
    return Table(data, struct.unpack_from("<I", data)[0])
