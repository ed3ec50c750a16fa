"""TEL-05, TEL-06: files of the spool that are cut short or changed."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from edgekit.runtime._spool_frames import HEADER_BYTES, frame, scan
from edgekit.runtime.spool import Spool

PAYLOADS = [bytes([65 + i]) * (20 + i) for i in range(4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with Spool(tmp_path / "spool") as spool:
        for payload in PAYLOADS:
            spool.append("event", payload)
    return tmp_path / "spool"


def only_file(folder: Path) -> Path:
    [segment] = folder.glob("event-*.seg")
    return segment


def copy_with(folder: Path, to: Path, data: bytes) -> Path:
    shutil.copytree(folder, to)
    # As if the process was killed: the book has not heard of the records.
    for name in ("ledger.0", "ledger.1"):
        (to / name).unlink()
    only_file(to).write_bytes(data)
    return to


def test_tel_05_cut_at_every_byte_all_whole_records_come_and_one_torn_is_counted(
    folder: Path, tmp_path: Path
) -> None:
    data = only_file(folder).read_bytes()
    ends = [0]
    for payload in PAYLOADS:
        ends.append(ends[-1] + HEADER_BYTES + len(payload))
    assert ends[-1] == len(data)
    for cut in range(1, len(data)):
        there = copy_with(folder, tmp_path / str(cut), data[:cut])
        whole = sum(end <= cut for end in ends) - 1
        with Spool(there) as spool:
            got = [record.payload for record in spool.take("event")]
            assert got == PAYLOADS[:whole]
            torn = 0 if cut in ends else 1
            assert spool.counts().dropped == ({"torn": 1} if torn else {}), cut
            assert spool.counts().produced == whole + torn
            assert spool.counts().conserved
            # What comes after it has a number and a file of its own.
            spool.append("event", b"after")
        with Spool(there) as spool:
            assert spool.take("event")[-1].payload == b"after"
            assert spool.counts().conserved
        shutil.rmtree(there)


def test_tel_06_any_byte_changed_costs_the_record_it_is_in_and_no_other(
    folder: Path, tmp_path: Path
) -> None:
    data = only_file(folder).read_bytes()
    ends = [HEADER_BYTES + len(PAYLOADS[0])]
    for payload in PAYLOADS[1:]:
        ends.append(ends[-1] + HEADER_BYTES + len(payload))
    for at in range(0, len(data), 3):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        hit = sum(end <= at for end in ends)
        there = copy_with(folder, tmp_path / str(at), bytes(changed))
        with Spool(there) as spool:
            got = [record.payload for record in spool.take("event")]
            assert got == PAYLOADS[:hit] + PAYLOADS[hit + 1 :], at
            assert sum(spool.counts().dropped.values()) == 1
            assert spool.counts().produced == len(PAYLOADS)
            assert spool.counts().conserved
        shutil.rmtree(there)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, 1 << 21, 0])
def test_tel_06_a_length_that_is_a_lie_allocates_nothing(length: int) -> None:
    good = frame(1, 0, bytes(16), b"one")
    lie = bytearray(frame(2, 0, bytes(16), b"two"))
    lie[8:12] = length.to_bytes(4, "little")
    after = frame(3, 0, bytes(16), b"three")
    seen = scan(good + bytes(lie) + after, 1)
    assert [found.seq for found in seen.frames] == [1, 3]
    assert not seen.torn
    assert seen.bad_bytes == len(lie)


def test_a_record_changed_while_the_spool_is_open_is_dropped_as_damaged(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        for payload in PAYLOADS:
            spool.append("event", payload)
        file = only_file(tmp_path / "spool")
        data = bytearray(file.read_bytes())
        data[HEADER_BYTES] ^= 1
        file.write_bytes(data)
        assert [record.payload for record in spool.take("event")] == PAYLOADS[1:]
        assert spool.counts().dropped == {"damaged": 1}
        assert spool.counts().conserved


def test_why_not_sqlite_one_bad_byte_in_its_log_costs_all_that_came_after(
    tmp_path: Path,
) -> None:
    """The evidence for files of our own: the same 40 records, one byte changed in the middle."""
    base = sqlite3.connect(tmp_path / "base.db", isolation_level=None)
    base.execute("PRAGMA journal_mode=WAL")
    base.execute("PRAGMA wal_autocheckpoint=0")
    base.execute("CREATE TABLE t (seq INTEGER PRIMARY KEY, payload BLOB)")
    with Spool(tmp_path / "spool") as spool:
        for i in range(40):
            payload = bytes([i]) * 500
            base.execute("INSERT INTO t (payload) VALUES (?)", (payload,))
            spool.append("event", payload)
    for name in ("base.db", "base.db-wal"):  # as a kill would leave them
        shutil.copy(tmp_path / name, tmp_path / name.replace("base", "killed"))
    base.close()
    for path in (tmp_path / "killed.db-wal", only_file(tmp_path / "spool")):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    killed = sqlite3.connect(tmp_path / "killed.db")
    [[left]] = killed.execute("SELECT count(*) FROM t").fetchall()
    killed.close()
    with Spool(tmp_path / "spool") as spool:
        ours = len(spool.take("event"))
    assert ours == 39
    assert left < 25
