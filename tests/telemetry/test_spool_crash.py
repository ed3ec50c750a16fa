"""TEL-04: a spool whose process is killed, or whose machine loses power, at any point."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults import FakeClock, MemoryDisk, MemoryFiles, PowerCut

from edgekit.runtime.spool import Counts, Spool

VICTIM = Path(__file__).parent / "spool_victim.py"


def drain(spool: Spool, server: set[bytes]) -> None:
    """Brings everything to a server that takes it."""
    for stream in ("event", "metric"):
        while batch := spool.take(stream, records=50):
            server.update(record.id for record in batch)
            spool.settle(stream, [record.seq for record in batch])


def check(counts: Counts) -> None:
    assert counts.conserved, counts
    assert set(counts.dropped) <= {"torn"}, counts


def killed(folder: Path, seed: int) -> None:
    """Kills a process three times in one spool, and looks at what is left."""
    kept: set[str] = set()
    sent: set[str] = set()
    rng = random.Random(seed)
    deaths = 0
    for run in range(3):
        command = [
            sys.executable,
            str(VICTIM),
            str(folder),
            str(seed + run),
            str(rng.randint(1, 400)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        deaths += done.returncode != 0
        for line in done.stdout.splitlines():
            word, id = line.split()
            {"kept": kept, "sent": sent}[word].add(id)
    assert deaths
    with Spool(folder) as spool:
        check(spool.counts())
        server: set[bytes] = set()
        drain(spool, server)
        assert spool.counts().pending == 0
        check(spool.counts())
    sent |= {id.hex() for id in server}
    assert kept <= sent


@pytest.mark.parametrize("seed", range(8))
def test_tel_04_a_process_killed_at_any_change_loses_nothing_it_was_promised(
    tmp_path: Path, seed: int
) -> None:
    killed(tmp_path / "spool", seed * 1000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_tel_04_a_thousand_kills(tmp_path: Path) -> None:
    for seed in range(340):
        killed(tmp_path / str(seed), 100_000 + seed * 10)


def power_cuts(seed: int) -> None:
    """Cuts the power of a machine three times, and looks at what is left."""
    rng = random.Random(seed)
    disk = MemoryDisk(seed)
    kept: dict[bytes, bytes] = {}
    server: dict[bytes, bytes] = {}
    for _ in range(3):
        disk.left = rng.randint(1, 120)
        try:
            spool = Spool("unused", files=lambda: MemoryFiles(disk), clock=FakeClock())
            for _ in range(60):
                stream = rng.choice(["event", "metric"])
                if rng.random() < 0.6:
                    payload = rng.randbytes(rng.randint(0, 300))
                    kept[spool.append(stream, payload)] = payload
                    continue
                batch = spool.take(stream, records=rng.randint(1, 9))
                for record in batch:
                    assert server.setdefault(record.id, record.payload) == record.payload
                spool.settle(stream, [record.seq for record in batch])
        except PowerCut:
            pass
        disk.cut()
    spool = Spool("unused", files=lambda: MemoryFiles(disk), clock=FakeClock())
    # What was being written when the power went may be half there; nothing else is missing.
    assert spool.counts().conserved, spool.counts()
    assert set(spool.counts().dropped) <= {"torn", "damaged"}, spool.counts()
    for stream in ("event", "metric"):
        while batch := spool.take(stream):
            for record in batch:
                assert server.setdefault(record.id, record.payload) == record.payload
            spool.settle(stream, [record.seq for record in batch])
    assert spool.counts().conserved
    assert spool.counts().pending == 0
    assert kept.items() <= server.items()


@pytest.mark.parametrize("group", range(4))
def test_tel_04_a_power_cut_at_any_operation_loses_nothing_that_was_kept(group: int) -> None:
    for seed in range(group * 100, group * 100 + 100):
        power_cuts(seed)


@pytest.mark.slow
def test_tel_04_power_cuts_in_many_more_ways() -> None:
    for seed in range(1000, 11_000):
        power_cuts(seed)


def test_tel_04_between_syncs_a_power_cut_costs_what_came_since_the_last() -> None:
    disk = MemoryDisk(0)
    spool = Spool("unused", files=lambda: MemoryFiles(disk), clock=FakeClock(), fsync="interval")
    before = {spool.append("metric", b"before") for _ in range(5)}
    spool.sync()
    event = spool.append("event", b"events are written through")
    after = {spool.append("metric", b"after") for _ in range(5)}
    disk.cut()
    with Spool("unused", files=lambda: MemoryFiles(disk), clock=FakeClock()) as again:
        found = {record.id for record in again.take("metric")}
        assert before <= found <= before | after
        assert [record.id for record in again.take("event")] == [event]
        assert again.counts().conserved


def test_tel_04_a_file_gone_that_the_book_still_counts_on_is_a_loss_and_no_crash(
    tmp_path: Path,
) -> None:
    """Vector's order: the file removed, the power gone before the book was written."""
    folder = tmp_path / "spool"
    with Spool(folder, quota_bytes=1 << 17) as spool:
        for _ in range(40):
            spool.append("metric", os.urandom(1000))
    first = min(folder.glob("metric-*.seg"))
    first.unlink()
    for _ in range(2):  # and once more, as its crash came back at every start
        with Spool(folder, quota_bytes=1 << 17) as spool:
            counts = spool.counts()
            assert counts.conserved
            assert counts.produced == 40
            assert counts.dropped["lost"] + counts.pending == 40
            assert 0 < counts.dropped["lost"] < 40


@pytest.mark.parametrize("slots", [["ledger.0"], ["ledger.1"], ["ledger.0", "ledger.1"]])
@pytest.mark.parametrize("harm", ["gone", "garbage", "empty"])
def test_a_book_that_cannot_be_read_costs_no_record(
    tmp_path: Path, slots: list[str], harm: str
) -> None:
    folder = tmp_path / "spool"
    with Spool(folder) as spool:
        for _ in range(3):
            spool.append("metric", b"first")
        spool.settle("metric", [1])
        for _ in range(3):
            spool.append("metric", b"second")
    for name in slots:
        if harm == "gone":
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(b"" if harm == "empty" else os.urandom(300))
    with Spool(folder) as spool:
        assert spool.counts().conserved
        # Without any book what was delivered may be sent again.
        assert {record.seq for record in spool.take("metric")} >= {2, 3, 4, 5, 6}
        assert "lost" not in spool.counts().dropped
