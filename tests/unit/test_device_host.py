"""The host profile: what is read from this machine, and from other machines' files."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import pytest

from edgekit import device
from edgekit.device import loader
from edgekit.device.detect import Probe, detect
from edgekit.errors import UnsupportedError
from edgekit.names import TARGETS


def linux(tmp_path: Path, files: dict[str, str], machine: str, cpus: set[int]) -> dict[str, Any]:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return detect(Probe("Linux", machine, tmp_path, frozenset(cpus), lambda _key: ""))


def arm_cpuinfo(parts: list[int]) -> str:
    features = "fp asimd aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
    return "\n".join(
        f"processor\t: {n}\nFeatures\t: {features}\n"
        f"CPU implementer\t: 0x41\nCPU part\t: {part:#x}\n"
        for n, part in enumerate(parts)
    )


@pytest.mark.skipif(platform.system() != "Linux", reason="compares with /proc")
def test_host_is_this_machine() -> None:
    host = device.host()
    assert host.id == "host"
    assert host.cpu.measured and host.isa.measured
    assert 1 <= host.cpu.cores <= len(os.sched_getaffinity(0))
    assert 1 <= host.threads <= host.cpu.cores
    cpuinfo = Path("/proc/cpuinfo").read_text()
    if host.isa.arch == "x86_64":
        assert host.isa.avx512_vnni == bool(re.search(r"^flags.*\bavx512_vnni\b", cpuinfo, re.M))
        assert host.isa.dotprod is None
    else:
        assert host.isa.dotprod == bool(re.search(r"^Features.*\basimddp\b", cpuinfo, re.M))
    total = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    assert total and host.memory.ram_gib == pytest.approx(int(total[1]) / 2**20, abs=0.01)
    assert all(host.source(figure) for figure in host.figures())
    assert [t.target for t in host.targets] == list(TARGETS)


def test_a_raspberry_pi(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": arm_cpuinfo([0xD0B] * 4),
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "proc/meminfo": "MemTotal:        8245920 kB\nMemFree: 1 kB\n",
        "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
    }
    for cpu in range(4):
        files[f"sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq"] = "2400000\n"
        files[f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity"] = "1024\n"
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = f"{cpu}\n"
    facts = linux(tmp_path, files, "aarch64", {0, 1, 2, 3})
    assert facts["soc"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert facts["os"] == "Debian GNU/Linux 12 (bookworm)"
    assert facts["cpu"]["clusters"] == [
        {"cores": 4, "core": "Cortex-A76", "role": "big", "ghz": 2.4}
    ]
    assert facts["isa"] == {
        "arch": "arm64", "fp16": True, "dotprod": True, "i8mm": False, "measured": True
    }  # fmt: skip
    assert facts["memory"]["ram_gib"] == 7.86


def test_big_and_little_cores_are_told_apart_by_capacity(tmp_path: Path) -> None:
    files = {"proc/cpuinfo": arm_cpuinfo([0xD46] * 4 + [0xD4D] * 4 + [0xD4E])}
    for cpu in range(9):
        capacity = 180 if cpu < 4 else 800 if cpu < 8 else 1024
        files[f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity"] = str(capacity)
    facts = linux(tmp_path, files, "aarch64", set(range(9)))
    found = [(c["cores"], c["core"], c["role"]) for c in facts["cpu"]["clusters"]]
    assert found == [
        (1, "Cortex-X3", "big"),
        (4, "Cortex-A715", "big"),
        (4, "Cortex-A510", "little"),
    ]


def test_hybrid_x86_counts_cores_not_threads_and_only_its_own(tmp_path: Path) -> None:
    block = "model name\t: Core Ultra\nflags\t\t: fpu avx2 avx_vnni\n"
    files = {
        "proc/cpuinfo": "\n".join(f"processor\t: {n}\n{block}" for n in range(8)),
        "sys/devices/cpu_atom/cpus": "4-7\n",
    }
    for cpu in range(8):
        siblings = f"{cpu & ~1}-{cpu | 1}" if cpu < 4 else str(cpu)
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = siblings
    facts = linux(tmp_path, files, "x86_64", {0, 1, 2, 3, 5, 6})
    assert [(c["cores"], c["role"]) for c in facts["cpu"]["clusters"]] == [
        (2, "big"),
        (2, "little"),
    ]
    assert facts["isa"]["avx_vnni"] is True
    assert facts["isa"]["avx512_vnni"] is False
    assert "memory" not in facts["sources"], "nothing was read, so nothing is claimed"


@pytest.mark.parametrize(
    ("quota", "threads"), [("max 100000", None), ("250000 100000", 2), ("50000 100000", 1)]
)
def test_a_containers_quota_limits_the_threads(
    tmp_path: Path, quota: str, threads: int | None
) -> None:
    files = {"proc/cpuinfo": arm_cpuinfo([0xD0C] * 8), "sys/fs/cgroup/cpu.max": f"{quota}\n"}
    facts = linux(tmp_path, files, "aarch64", set(range(8)))
    assert facts["bench"].get("threads") == threads


def test_unknown_stays_unknown_where_nothing_can_be_read(tmp_path: Path) -> None:
    facts = linux(tmp_path, {}, "x86_64", {0, 1})
    assert facts["isa"] == {"arch": "x86_64", "measured": True}
    assert facts["cpu"]["clusters"] == [{"cores": 2, "core": "CPU", "role": "big"}]
    assert facts["os"] == "Linux"


def test_an_apple_machine(tmp_path: Path) -> None:
    values = {
        "machdep.cpu.brand_string": "Apple M2",
        "hw.nperflevels": "2",
        "hw.perflevel0.name": "Performance",
        "hw.perflevel0.physicalcpu": "4",
        "hw.perflevel1.name": "Efficiency",
        "hw.perflevel1.physicalcpu": "4",
        "hw.optional.arm.FEAT_FP16": "1",
        "hw.optional.arm.FEAT_DotProd": "1",
        "hw.optional.arm.FEAT_I8MM": "0",
        "hw.memsize": str(16 * 2**30),
        "kern.osproductversion": "15.1",
    }
    probe = Probe("Darwin", "arm64", tmp_path, frozenset(range(8)), lambda k: values.get(k, ""))
    path = loader._directory() / "host.toml"
    host = loader._device(path, probe)
    assert (host.soc, host.os, host.memory.ram_gib) == ("Apple M2", "macOS 15.1", 16.0)
    assert (host.threads, host.cpu.cores) == (4, 8)
    assert (host.isa.fp16, host.isa.i8mm, host.isa.avx2) == (True, False, None)


def test_what_cannot_be_described_is_refused(tmp_path: Path) -> None:
    for system, machine in (("Windows", "AMD64"), ("Linux", "armv7l")):
        with pytest.raises(UnsupportedError, match=machine):
            detect(Probe(system, machine, tmp_path, frozenset({0}), lambda _key: ""))


def test_a_host_profile_of_ones_own_keeps_its_settings(tmp_path: Path) -> None:
    text = (loader._directory() / "host.toml").read_text()
    path = tmp_path / "mine.toml"
    path.write_text(f"{text}\n[bench]\nthreads = 1\n[budgets]\nmax_bytes = 9\n")
    own = device.load(path)
    assert (own.id, own.threads, own.budgets.max_bytes) == ("host", 1, 9)
    assert own.cpu == device.host().cpu
