"""What this machine has and lacks: packages by extra, CPU and memory, and runtimes that really run.

Versions come from the installed packages' metadata and ranges from edgekit's own, so nothing heavy
is imported here. A runtime is only believed once it has converted and run one layer, in a process
of its own: a broken wheel may take its process down.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from edgekit import __version__, cores
from edgekit.errors import MissingDependency, UnsupportedError, UsageError
from edgekit.names import EXTRAS, TARGETS, TEST_TARGET, unknown

__all__ = [
    "Package",
    "Requirement",
    "RoundTrip",
    "TargetHealth",
    "diagnose",
    "install_line",
    "machine_facts",
    "package",
    "requirements",
    "round_trip",
]

SELF_TEST_SECONDS: Final = 300.0
"""How long one target's round trip may take, imports included."""

_DISTRIBUTION = "edgekit"
_BUILT_EXTRAS = (*TARGETS, "text")
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*\(?(?P<ranges>[^;()]*)\)?\s*"
    r"(?:;\s*(?P<marker>.*))?"
)
_RANGE = re.compile(r"(?P<operator>>=|<=|==|!=|>|<)\s*(?P<version>[0-9]+(?:\.[0-9]+)*)")
_EXTRA_MARKER = re.compile(r"""extra\s*==\s*["'](?P<extra>[^"']+)["']""")


@dataclass(frozen=True)
class Requirement:
    """One line of what edgekit needs.

    Attributes:
        name: the distribution's name, as the package index spells it.
        ranges: the version ranges, comma separated; empty for any version.
        extra: the extra that asks for it; empty for the core.
    """

    name: str
    ranges: str
    extra: str = ""

    @classmethod
    def parse(cls, line: str) -> Requirement:
        """Reads a ``Requires-Dist`` line (PEP 508), as far as edgekit's own lines go.

        Raises:
            ValueError: the line uses something that this reader does not know.
        """
        match = _REQUIREMENT.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"requirement {line!r} cannot be read")
        marker = _EXTRA_MARKER.search(match["marker"] or "")
        ranges = match["ranges"].strip()
        for part in filter(None, ranges.split(",")):
            if _RANGE.fullmatch(part.strip()) is None:
                raise ValueError(f"requirement {line!r} has the range {part!r}")
        return cls(match["name"], ranges, marker["extra"] if marker else "")

    def allows(self, version: str) -> bool:
        """Whether ``version`` is in range, by its release number: 2.13.0+cpu counts as 2.13.0."""
        digits = re.match(r"[0-9]+(\.[0-9]+)*", version)
        if digits is None:
            return False
        have = _release(digits[0])
        return all(
            _COMPARE[part["operator"]](have, _release(part["version"]))
            for part in _RANGE.finditer(self.ranges)
        )


def _release(version: str) -> tuple[int, ...]:
    # Trailing zeros mean nothing (PEP 440): 2.13 and 2.13.0 are one release.
    return tuple(int(n) for n in re.sub(r"(\.0+)+$", "", version).split("."))


_COMPARE: Final[dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]]] = {
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


@dataclass(frozen=True)
class Package:
    """One required package as found here; ``version`` is ``None`` where it is not installed."""

    name: str
    wanted: str
    version: str | None
    ok: bool


@dataclass(frozen=True)
class RoundTrip:
    """One layer converted for a target and run in its runtime.

    Attributes:
        ok: whether the outputs were right.
        detail: what was run, or what went wrong.
        seconds: wall time, process start and imports included.
    """

    ok: bool
    detail: str
    seconds: float


@dataclass(frozen=True)
class TargetHealth:
    """One target: whether its packages are there, and whether it ran (``None``: not tried)."""

    id: str
    installed: bool
    round_trip: RoundTrip | None


def requirements() -> dict[str, tuple[Requirement, ...]]:
    """What edgekit requires, by extra in the order of `edgekit.names.EXTRAS`; ``""`` is the core.

    Raises:
        MissingDependency: edgekit itself is not installed, only on the import path.
    """
    try:
        lines = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError as error:
        raise MissingDependency(
            "edgekit is on the import path but not installed, so what it needs is not known",
            hint="pip install edgekit, or in a checkout: pip install -e .",
        ) from error
    parsed = [Requirement.parse(line) for line in lines]
    return {extra: tuple(r for r in parsed if r.extra == extra) for extra in ("", *EXTRAS)}


def package(requirement: Requirement) -> Package:
    """The installed version of one requirement, and whether it is in range."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Package(requirement.name, requirement.ranges, None, False)
    return Package(requirement.name, requirement.ranges, version, requirement.allows(version))


def install_line(extras: Iterable[str]) -> str:
    """The one command that installs these extras; empty for none."""
    named = [extra for extra in EXTRAS if extra in set(extras)]
    return f"pip install '{_DISTRIBUTION}[{','.join(named)}]'" if named else ""


def round_trip(target_id: str, timeout: float = SELF_TEST_SECONDS) -> RoundTrip:
    """Converts one layer for the target and runs it, in a process of its own.

    Args:
        target_id: a target whose packages are installed.
        timeout: seconds after which the process, with its children, is ended.
    """
    command = [sys.executable, "-P", "-m", "edgekit.targets.worker", "--self-test", target_id]
    return _run_self_test(command, timeout)


def _run_self_test(command: Sequence[str], timeout: float) -> RoundTrip:
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=timeout)
    except BaseException as error:
        # The whole group: a converter may have started processes of its own.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        took = time.perf_counter() - start
        return RoundTrip(False, f"no answer within {timeout:g} s", round(took, 3))
    ok, detail = _read_answer(process.returncode, output, errors)
    return RoundTrip(ok, detail, round(time.perf_counter() - start, 3))


def _read_answer(returncode: int, output: str, errors: str) -> tuple[bool, str]:
    """The self-test's verdict: the last line of its stdout, if it ended as it should."""
    last = output.strip().rpartition("\n")[2]
    try:
        answer = json.loads(last)
        ok, detail = answer["ok"] is True, str(answer["detail"])
    except (ValueError, KeyError, TypeError):
        ok, detail = False, ""
    if ok and returncode == 0:
        return True, detail
    if returncode < 0:
        try:
            how = f"died of {signal.Signals(-returncode).name}"
        except ValueError:
            how = f"died of signal {-returncode}"
    else:
        how = f"ended with exit code {returncode}"
    why = detail or errors.strip().rpartition("\n")[2]
    if returncode == 0 and detail:
        return False, detail
    return False, f"{how}: {why}" if why else f"{how} without an answer"


def machine_facts() -> dict[str, Any]:
    """Interpreter, system, CPU and its instruction sets, memory, and free disk space.

    ``cores`` are the ones this process may use; ``memory_mib`` and ``disk_free_mib`` are MiB, the
    latter where temporary files go. No names of people or folders are in it.
    """
    import tempfile

    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "cores": cores.usable(),
        "memory_mib": _memory_mib(),
        "disk_free_mib": shutil.disk_usage(tempfile.gettempdir()).free >> 20,
    }
    try:
        from edgekit.device.detect import detect

        found = detect()
    except UnsupportedError as error:
        return facts | {"cpu": None, "isa": None, "unknown": error.message}
    isa = {name: flag for name, flag in found["isa"].items() if name not in ("arch", "measured")}
    return facts | {"cpu": found["soc"], "os": found["os"], "isa": isa}


def _memory_mib() -> dict[str, int | None]:
    """Physical memory, what of it is free to use, and the control group's limit if there is one."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    available = limit = None
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
        available = int(match[1]) >> 10 if match else None
    cgroup = Path("/sys/fs/cgroup/memory.max")
    if cgroup.exists() and (text := cgroup.read_text().strip()).isdigit():
        limit = int(text) >> 20
    return {"total": total, "available": available, "limit": limit}


def diagnose(
    targets: Sequence[str] = (),
    *,
    run: Callable[[str], RoundTrip] = round_trip,
    tell: Callable[[str], None] = lambda _target: None,
) -> dict[str, Any]:
    """Everything `edgekit doctor` reports, as an ``edgekit.doctor/1`` document.

    Args:
        targets: the targets asked for; none asks for whatever is installed.
        run: does one target's round trip.
        tell: called with each target's id before its round trip.

    Returns:
        ``checks``, each with ``passed`` (``None``: optional and absent), ``detail`` and ``hint``
        (the command that mends it); ``facts``; ``extras`` and ``targets`` in full; ``missing``,
        the targets asked for that are not installed; and ``passed``, false if any check is.

    Raises:
        UsageError: a target is not known.
        UnsupportedError: a target is reserved and not built yet.
        MissingDependency: edgekit itself is not installed.
    """
    _check_known(targets)
    packages = {extra: tuple(map(package, lines)) for extra, lines in requirements().items()}
    complete = {extra: all(p.ok for p in found) for extra, found in packages.items()}
    complete[TEST_TARGET] = complete[""]
    health = []
    for target in dict.fromkeys(targets or TARGETS):
        trip = None
        if complete[target]:
            tell(target)
            trip = run(target)
        health.append(TargetHealth(target, complete[target], trip))
    missing = [target.id for target in health if targets and not target.installed]
    absent = [extra for extra in _BUILT_EXTRAS if not complete[extra]]
    checks = [
        _core_check(packages[""]),
        *(_extra_check(e, packages[e], required=e in targets) for e in _BUILT_EXTRAS),
        *(_target_check(target) for target in health if target.installed),
    ]
    return {
        "schema": "edgekit.doctor/1",
        "edgekit": __version__,
        "python": platform.python_version(),
        "facts": machine_facts(),
        "checks": checks,
        "extras": {
            extra or "core": {"complete": complete[extra], "packages": [asdict(p) for p in found]}
            for extra, found in packages.items()
        },
        "targets": [asdict(target) for target in health],
        "missing": missing,
        "install": install_line(missing or absent) or None,
        "passed": not any(check["passed"] is False for check in checks),
    }


def _check_known(targets: Sequence[str]) -> None:
    for target in targets:
        if target not in (*TARGETS, TEST_TARGET):
            raise UsageError(unknown("target", target, TARGETS))


def _core_check(found: Sequence[Package]) -> dict[str, Any]:
    bad = [p for p in found if not p.ok]
    hint = f"pip install --upgrade {_DISTRIBUTION}" if bad else None
    return _check("core", not bad, _describe(bad or found), hint)


def _extra_check(extra: str, found: Sequence[Package], *, required: bool) -> dict[str, Any]:
    bad = [p for p in found if not p.ok]
    if not bad:
        return _check(f"extra {extra}", True, _describe(found), None)
    # An optional extra that is not there is no fault; one asked for is.
    return _check(
        f"extra {extra}", False if required else None, _describe(bad), install_line([extra])
    )


def _target_check(target: TargetHealth) -> dict[str, Any]:
    assert target.round_trip is not None
    ok = target.round_trip.ok
    hint = None if ok else install_line([target.id]).replace("install", "install --force-reinstall")
    return _check(f"run {target.id}", ok, target.round_trip.detail, hint)


def _check(name: str, passed: bool | None, detail: str, hint: str | None) -> dict[str, Any]:
    return {"name": name, "passed": passed, "detail": detail, "hint": hint}


def _describe(found: Sequence[Package]) -> str:
    here = [p for p in found if p.version is not None]
    parts = [f"{p.name} {p.version}" + ("" if p.ok else f" is not {p.wanted}") for p in here]
    absent = ", ".join(p.name for p in found if p.version is None)
    return "; ".join(filter(None, [", ".join(parts), absent and f"not installed: {absent}"]))
