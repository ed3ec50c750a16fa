"""What a device knows of its own processor."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

import pytest

from edgekit.runtime import cpu


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="x86 Linux has these sources"
)
def test_the_c_library_and_the_kernel_agree_on_this_machine() -> None:
    line = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    assert line is not None
    here = set(line[1].split())
    known = {flag for flag in ("sse4_1", "avx2", "avx_vnni", "avx512_vnni") if flag in here}
    assert cpu._cpuinfo() == known
    assert cpu._glibc() in (known, None)
    assert cpu.flags() == known
    assert cpu.lacks_vnni() is not bool(known & {"avx_vnni", "avx512_vnni"})


@pytest.mark.parametrize(
    ("arch", "flags", "requires", "missing"),
    [
        ("x86_64", {"avx2"}, {}, None),
        ("x86_64", {"avx2"}, {"isa": ["x86_64:avx2"]}, None),
        ("x86_64", {"avx2"}, {"isa": ["x86_64:avx2", "x86_64:a|b"]}, "x86_64:a|b"),
        ("x86_64", {"b"}, {"isa": ["x86_64:a|b"]}, None),
        ("x86_64", None, {"isa": ["x86_64:a|b"]}, "x86_64:a|b"),
        ("x86_64", set(), {"isa": ["arm64:dotprod"]}, None),
        ("arm64", None, {"isa": ["x86_64:a|b"]}, None),
        ("arm64", None, {"isa": "garbage"}, None),
    ],
)
def test_requirements_are_for_one_architecture_and_any_of_their_flags(
    monkeypatch: pytest.MonkeyPatch,
    arch: str,
    flags: set[str] | None,
    requires: dict[str, object],
    missing: str | None,
) -> None:
    monkeypatch.setattr(cpu, "architecture", lambda: arch)
    monkeypatch.setattr(cpu, "flags", lambda: None if flags is None else frozenset(flags))
    assert cpu.unmet(requires) == missing


@pytest.mark.parametrize(
    ("machine", "name"),
    [("x86_64", "x86_64"), ("AMD64", "x86_64"), ("aarch64", "arm64"), ("riscv64", "riscv64")],
)
def test_architectures_have_one_name(
    monkeypatch: pytest.MonkeyPatch, machine: str, name: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert cpu.architecture() == name


def test_arm_has_nothing_to_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "architecture", lambda: "arm64")
    cpu.flags.cache_clear()
    assert cpu.flags() is None and not cpu.lacks_vnni()
    cpu.flags.cache_clear()
