"""TEL-07, 08, 12, 13, 20: quota, failing disks, other processes, clocks, permissions."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import FailingFiles, FakeClock

from edgekit.errors import Locked, StorageError, TrustError, UsageError
from edgekit.runtime._spool_files import DiskFiles
from edgekit.runtime.spool import Spool

QUOTA = 1 << 17


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.seg"))


# -- TEL-07: the quota ----------------------------------------------------------------------------


def test_tel_07_ten_times_the_quota_keeps_to_it_and_events_outlive_metrics(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    events = []
    with Spool(folder, quota_bytes=QUOTA) as spool:
        for i in range(1300):
            spool.append("metric", os.urandom(1000))
            if i % 50 == 0:
                events.append(spool.append("event", b"crash %d" % i))
            assert used(folder) <= QUOTA
            assert used(folder) == spool.bytes_held
        counts = spool.counts("metric")
        assert counts.produced == 1300
        assert counts.dropped == {"quota": 1300 - counts.pending}
        assert counts.conserved
        assert spool.counts("event").dropped == {}
        assert [record.id for record in spool.take("event")] == events
        # The newest metrics are the ones that are left, with none missing in between.
        seqs = [record.seq for record in spool.take("metric", records=2000, size=1 << 30)]
        assert seqs == list(range(1300 - len(seqs) + 1, 1301))


def test_tel_07_a_metric_never_pushes_an_event_out(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool", quota_bytes=QUOTA) as spool:
        while not spool.counts("event").dropped:
            spool.append("event", bytes(1000))
        before = spool.counts("event")
        # Where the oldest file of events went there is room for some metrics.
        with pytest.raises(StorageError, match="matters more"):
            for _ in range(1000):
                spool.append("metric", bytes(30_000))
        assert spool.counts("event") == before
        assert spool.counts().conserved


def test_a_quota_or_a_record_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="quota_bytes is 5"):
        Spool(tmp_path / "spool", quota_bytes=5)
    with Spool(tmp_path / "spool", quota_bytes=QUOTA) as spool:
        with pytest.raises(UsageError, match="too large"):
            spool.append("metric", bytes(QUOTA))
        with pytest.raises(UsageError, match="no stream 'other'"):
            spool.append("other", b"")
        assert spool.counts().produced == 0


# -- TEL-08: disks that fail ----------------------------------------------------------------------


def failing(folder: Path, hook: Callable[[str, str], None]) -> Callable[[], FailingFiles]:
    return lambda: FailingFiles(DiskFiles(folder), hook)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("operation", ["append", "sync", "overwrite", "remove", "truncate"])
def test_tel_08_a_disk_that_fails_and_recovers_leaves_a_whole_account(
    tmp_path: Path, code: int, operation: str
) -> None:
    broken = False

    def hook(name: str, _: str) -> None:
        if broken and name in (operation, "append" if operation == "truncate" else operation):
            raise OSError(code, os.strerror(code))

    folder = tmp_path / "spool"
    kept: list[bytes] = []
    with Spool(folder, quota_bytes=QUOTA, files=failing(folder, hook)) as spool:
        for i in range(300):
            broken = 100 <= i < 200
            try:
                kept.append(spool.append("metric", bytes(900)))
            except StorageError as error:
                assert os.strerror(code) in str(error)
            if i % 3 == 0:
                spool.settle("metric", [record.seq for record in spool.take("metric", records=2)])
            assert spool.counts().conserved
            assert used(folder) <= QUOTA + 900 * 2
        counts = spool.counts()
        assert counts.produced >= len(kept)
    with Spool(folder, quota_bytes=QUOTA) as spool:
        assert spool.counts().conserved
        assert spool.counts().delivered == counts.delivered
        assert spool.counts().pending == counts.pending


def test_tel_08_a_folder_deleted_under_it_is_made_anew_and_what_it_held_is_lost(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "spool"
    with Spool(folder) as spool:
        for _ in range(3):
            spool.append("metric", b"x")
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        assert spool.take("metric") == []
        spool.append("metric", b"after")
        assert [record.payload for record in spool.take("metric")] == [b"after"]
        assert spool.counts().dropped == {"lost": 3}
        assert spool.counts().conserved
    with Spool(folder) as spool:
        assert spool.counts().pending == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_tel_08_a_real_disk_that_is_full(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this system doesn't let us mount a file system")
    try:
        with Spool(mount / "spool", quota_bytes=1 << 20) as spool:
            with pytest.raises(StorageError, match="No space left"):
                for _ in range(300):
                    spool.append("metric", os.urandom(1000))
            full = spool.counts()
            assert full.conserved
            assert full.pending > 50
            spool.settle("metric", [record.seq for record in spool.take("metric")])
        with Spool(mount / "spool", quota_bytes=1 << 20) as spool:
            assert spool.counts().conserved
            assert spool.counts().delivered == full.pending
            spool.append("metric", os.urandom(1000))
    finally:
        subprocess.run(["umount", str(mount)], check=True)


# -- TEL-12: other processes ----------------------------------------------------------------------

HOLDER = """
import sys
from edgekit.runtime.spool import Spool
spool = Spool(sys.argv[1])
spool.append("event", b"of the first")
print("ready", flush=True)
sys.stdin.read()
"""


def test_tel_12_a_second_process_is_told_locked_and_a_dead_ones_lock_is_none(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "spool"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        with pytest.raises(Locked, match="in use by another process"):
            Spool(folder)
    finally:
        holder.kill()
        holder.communicate()
    with Spool(folder) as spool:
        assert [record.payload for record in spool.take("event")] == [b"of the first"]
    with Spool(folder), pytest.raises(Locked):
        Spool(folder)


def test_tel_12_a_forked_child_does_not_write_and_does_not_keep_the_lock(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    read, write = os.pipe()
    with Spool(folder) as spool:
        spool.append("event", b"of the parent")
        child = os.fork()
        if child == 0:  # lives on while the parent closes
            try:
                spool.append("event", b"of the child")
                os.write(write, b"kept")
            except Locked:
                os.write(write, b"locked")
            finally:
                time.sleep(0.5)
                os._exit(0)
        assert os.read(read, 10) == b"locked"
        spool.append("event", b"of the parent")
    with Spool(folder) as spool:  # though the child lives
        assert [record.payload for record in spool.take("event")] == [b"of the parent"] * 2
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)


# -- TEL-13: clocks -------------------------------------------------------------------------------


def test_tel_13_the_wall_clock_changes_nothing(tmp_path: Path) -> None:
    clock = FakeClock()
    with Spool(tmp_path / "spool", clock=clock, ttl_s=3600) as spool:
        for jump in (0.0, 3.2e8, -6.4e8, 3.2e8):
            clock.time += jump
            spool.append("metric", b"%d" % jump)
        assert [record.seq for record in spool.take("metric")] == [1, 2, 3, 4]
        assert spool.counts().dropped == {}


def test_tel_13_reboots_let_nothing_expire_early_and_keep_nothing_for_ever(tmp_path: Path) -> None:
    clock = FakeClock()
    with Spool(tmp_path / "spool", clock=clock, ttl_s=3600) as spool:
        spool.append("metric", b"old")
    lived, starts = 0.0, 0
    while True:
        clock.reboot()
        lived += clock.now
        with Spool(tmp_path / "spool", clock=clock, ttl_s=3600) as spool:
            clock.advance(300)
            lived += 300
            starts += 1
            if not spool.take("metric"):
                break
        assert starts < 20
    assert 3600 <= lived <= 3600 + 400


def test_records_expire_after_their_time_and_are_counted(tmp_path: Path) -> None:
    clock = FakeClock()
    with Spool(tmp_path / "spool", clock=clock, ttl_s=100) as spool:
        spool.append("metric", b"old")
        clock.advance(60)
        spool.append("metric", b"new")
        clock.advance(60)
        assert [record.payload for record in spool.take("metric")] == [b"new"]
        assert spool.counts().dropped == {"expired": 1}
        assert spool.counts().conserved


def test_the_device_takes_a_new_name_after_its_time_and_keeps_it_until_then(
    tmp_path: Path,
) -> None:
    clock = FakeClock()
    with Spool(tmp_path / "spool", clock=clock) as spool:
        first = spool.instance(100)
        clock.advance(60)
        assert spool.instance(100) == first
    with Spool(tmp_path / "spool", clock=clock) as spool:
        assert spool.instance(100) == first
        clock.advance(60)
        assert spool.instance(100) != first


@pytest.mark.parametrize("reopened", [False, True])
def test_a_device_has_one_name_on_each_day_and_another_on_the_next(
    tmp_path: Path, reopened: bool
) -> None:
    """A receiver counts devices of a day by their names: two would be two devices, and k half."""
    clock = FakeClock(wall=20_000 * 86_400.0 + 15 * 3600)
    names: dict[int, set[str]] = {}
    spool = Spool(tmp_path / "spool", clock=clock)
    for _ in range(80):
        names.setdefault(int(clock.wall() // 86_400), set()).add(spool.instance(86_400))
        clock.advance(3600)
        if reopened:
            spool.close()
            spool = Spool(tmp_path / "spool", clock=clock)
    spool.close()
    assert [len(found) for found in names.values()] == [1] * 4
    assert len(set.union(*names.values())) == 4


def test_a_clock_that_was_set_back_gives_no_name_twice_and_none_for_long(tmp_path: Path) -> None:
    clock = FakeClock(wall=20_000 * 86_400.0)
    with Spool(tmp_path / "spool", clock=clock) as spool:
        first = spool.instance(86_400)
        clock.time = 0.0  # a dead battery, until the network has told the time
        assert spool.instance(86_400) == first
        clock.advance(86_400)
        second = spool.instance(86_400)
        assert second != first
        clock.time = 20_001 * 86_400.0
        assert spool.instance(86_400) not in (first, second)


# -- TEL-20: permissions --------------------------------------------------------------------------


def test_tel_20_the_folder_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = tmp_path / "spool"
        folder.mkdir(mode=0o777)
        with Spool(folder) as spool:
            spool.append("event", b"x")
            spool.append("metric", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {0o600}
    assert len(list(folder.iterdir())) == 5


def test_tel_20_a_folder_that_is_a_link_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_bytes(b"")
    for name in ("link", "file"):
        with pytest.raises(TrustError, match="a link or no folder"):
            Spool(tmp_path / name)
    assert list((tmp_path / "real").iterdir()) == []


def test_tel_20_a_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    folder = tmp_path / "spool"
    folder.mkdir(mode=0o700)
    (folder / "event-0000000000000001.seg").symlink_to(target)
    (folder / "ledger.0").symlink_to(target)
    with Spool(folder) as spool:
        spool.append("event", b"x" * 100)
        assert [record.payload for record in spool.take("event")] == [b"x" * 100]
    with Spool(folder) as spool:
        assert spool.counts().pending == 1
    assert target.read_bytes() == b"precious"
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_a_folder_that_is_not_for_telemetry_alone_is_left_as_it_is(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    (home / "letter").write_bytes(b"precious")
    with pytest.raises(TrustError, match="holds 'letter'"):
        Spool(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o755
    home.chmod(0o700)
    with Spool(home) as spool:
        spool.append("event", b"x")
        spool.erase()
        spool.close(keep=False)
    assert sorted(path.name for path in home.iterdir()) == ["letter", "lock"]
    assert (home / "letter").read_bytes() == b"precious"
