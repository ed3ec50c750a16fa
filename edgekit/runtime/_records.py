"""What a spool gives: records, and the counts of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgekit.runtime._ledger import Stream

__all__ = ["Counts", "Record", "counts_of"]


@dataclass(frozen=True)
class Record:
    """What is to be sent.

    Attributes:
        stream, seq: which record it is.
        id: 16 random bytes that stay the same however often it is sent.
        payload: its bytes.
    """

    stream: str
    seq: int
    id: bytes
    payload: bytes


@dataclass(frozen=True)
class Counts:
    """What became of the records.

    Attributes:
        produced, delivered, pending: how many.
        dropped: how many, by reason: ``quota``, ``expired``, ``torn`` (half written at a crash),
            ``damaged``, ``lost`` (a file is gone), ``disk`` (it could not be written), and what the
            uploader gives: ``rejected``, ``refused``, ``poison``.
    """

    produced: int
    delivered: int
    dropped: Mapping[str, int]
    pending: int

    @property
    def conserved(self) -> bool:
        """Whether every record is accounted for."""
        return self.produced == self.delivered + sum(self.dropped.values()) + self.pending


def counts_of(books: Iterable[Stream], pending: int) -> Counts:
    """The counts of some streams together, of which so many records are on the disk."""
    produced = delivered = 0
    dropped: dict[str, int] = {}
    for book in books:
        produced += book.produced
        delivered += book.delivered
        for reason, count in book.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    return Counts(produced, delivered, dropped, pending)
