"""The device profile itself: frozen, unknown keys refused, no figure without a source."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from edgekit.names import DELEGATES, SCHEMES, TARGETS, TEST_TARGET, unknown

__all__ = [
    "Accelerator",
    "Anchor",
    "Bench",
    "Budgets",
    "Cluster",
    "Cpu",
    "Device",
    "Isa",
    "Memory",
    "TargetSupport",
    "UnsupportedTarget",
]

Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]

_SYSTEM = re.compile(r"(Android|iOS|iPadOS|macOS) (\d+(?:\.\d+)*)")

PROFILE_TARGETS = (*TARGETS, TEST_TARGET)
"""Target ids a profile may name; the planned ones are skipped until conversion to them exists."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Cluster(_Frozen):
    """Cores of one kind.

    Attributes:
        cores: how many.
        core: the core's name, e.g. ``Cortex-A76``.
        ghz: highest published clock in GHz; None where none is published.
        role: ``little`` for efficiency cores, which the default thread count leaves out.
    """

    cores: Count
    core: Text
    ghz: Positive | None = None
    role: Literal["big", "little"] = "big"


class Cpu(_Frozen):
    """The CPU, cluster by cluster, fastest first. ``measured``: read on a device, not published."""

    clusters: Annotated[tuple[Cluster, ...], Field(min_length=1)]
    measured: bool = False

    @property
    def cores(self) -> int:
        """All cores."""
        return sum(c.cores for c in self.clusters)

    @property
    def big_cores(self) -> int:
        """The cores worth a thread each: all but the little ones, unless there are no others."""
        return sum(c.cores for c in self.clusters if c.role == "big") or self.cores


class Isa(_Frozen):
    """Instruction sets that decide which int8 and half-precision kernels run; None is unknown.

    Attributes:
        fp16: Arm FEAT_FP16, arithmetic in half precision.
        dotprod: Arm FEAT_DotProd, 4-way int8 dot products (SDOT, UDOT).
        i8mm: Arm FEAT_I8MM, int8 matrix multiply.
        avx2: 256-bit x86 integers; without VNNI, u8 x s8 products saturate at 16 bits.
        avx_vnni: VNNI in 256 bits without AVX-512.
        avx512_vnni: VNNI in 512 bits.
        amx_int8: x86 int8 tile multiply.
        measured: read on a device, not published.
    """

    arch: Literal["arm64", "x86_64"]
    fp16: bool | None = None
    dotprod: bool | None = None
    i8mm: bool | None = None
    avx2: bool | None = None
    avx_vnni: bool | None = None
    avx512_vnni: bool | None = None
    amx_int8: bool | None = None
    measured: bool = False

    @property
    def lacks_vnni(self) -> bool:
        """Whether int8 kernels may saturate: x86 that is not known to have VNNI in some width.

        Arm multiplies into 16 bits without adding and adds in 32 bits, so it never is.
        """
        return self.arch == "x86_64" and not (self.avx_vnni or self.avx512_vnni or self.amx_int8)


class Memory(_Frozen):
    """Main memory; None is unknown.

    Attributes:
        ram_gib: GiB in the smallest configuration sold.
        ram_max_gib: GiB in the largest, where there are several.
        type: e.g. ``LPDDR5X``.
        bandwidth_gbs: peak bandwidth in GB/s.
        measured: read on a device, not published.
    """

    ram_gib: Positive | None = None
    ram_max_gib: Positive | None = None
    type: Text | None = None
    bandwidth_gbs: Positive | None = None
    measured: bool = False


class Accelerator(_Frozen):
    """A processor beside the CPU whose compiler edgekit does not drive.

    Attributes:
        reason: why artifacts made here do not run on it.
        advice: what a team that wants it can do.
    """

    name: Text
    kind: Literal["gpu", "npu", "tpu"]
    status: Literal["unsupported"]
    reason: Text
    advice: Text


class TargetSupport(_Frozen):
    """A target the device runs, through one delegate, with the schemes in order of preference.

    ``when_named``: made only where the user names the target, not with all that the device runs.
    """

    target: Text
    schemes: Annotated[tuple[Text, ...], Field(min_length=1)]
    delegate: Text
    when_named: bool = False
    note: str = ""

    @field_validator("target")
    @classmethod
    def _known_target(cls, value: str) -> str:
        return _one_of("target", value, PROFILE_TARGETS)

    @field_validator("schemes")
    @classmethod
    def _known_schemes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a scheme is listed twice")
        return tuple(_one_of("scheme", scheme, SCHEMES) for scheme in value)

    @model_validator(mode="after")
    def _known_delegate(self) -> Self:
        if self.target in DELEGATES:
            _one_of(f"delegate of {self.target}", self.delegate, DELEGATES[self.target])
        return self


class UnsupportedTarget(_Frozen):
    """A target the device cannot run, and why."""

    target: Text
    reason: Text

    @field_validator("target")
    @classmethod
    def _known_target(cls, value: str) -> str:
        return _one_of("target", value, PROFILE_TARGETS)


class Budgets(_Frozen):
    """What an artifact may cost on this device; None is no budget.

    Attributes:
        max_bytes: size of the artifact in bytes.
        latency_p90_ms: 90th percentile of one call, in milliseconds.
        peak_memory_mib: peak resident memory in MiB.
        max_drop_points: loss against the float model in percentage points.
    """

    max_bytes: Count | None = None
    latency_p90_ms: Positive | None = None
    peak_memory_mib: Positive | None = None
    max_drop_points: Annotated[float, Field(ge=0)] | None = None


class Bench(_Frozen):
    """How to measure: stop after ``runs`` calls or ``max_seconds``, whichever comes first.

    ``threads`` None means one per big core; ``warmup`` calls are made first and not counted.
    """

    threads: Count | None = None
    runs: Count = 200
    max_seconds: Positive = 20.0
    warmup: Annotated[int, Field(ge=0)] = 10


class Anchor(_Frozen):
    """A published latency of a known model, to judge estimates and measurements by.

    Attributes:
        latency_ms: milliseconds for one call at batch 1.
        threads: CPU threads; None where the source does not say.
        measured: False where the figure was derived, e.g. from a throughput.
    """

    model: Text
    precision: Text
    runtime: Text
    compute_unit: Text
    latency_ms: Positive
    threads: Count | None = None
    measured: bool = True
    note: str = ""
    source: Text


class Device(_Frozen):
    """One device family.

    Attributes:
        id: kebab-case id, the name of its file.
        os: the oldest system that the profile assumes the device runs; see `system`.
        targets: what it runs, in order of preference.
        unsupported: targets it cannot run, with reasons.
        sources: where each figure comes from; a key names a figure (``memory.type``) or a whole
            table (``memory``).
        unverified: figures or tables given without a source, and said to be.
    """

    schema_: Literal["edgekit.device/1"] = Field(default="edgekit.device/1", alias="schema")
    id: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    name: Text
    soc: Text
    os: Text
    cpu: Cpu
    isa: Isa
    memory: Memory = Memory()
    accelerators: tuple[Accelerator, ...] = ()
    targets: Annotated[tuple[TargetSupport, ...], Field(min_length=1)]
    unsupported: tuple[UnsupportedTarget, ...] = ()
    budgets: Budgets = Budgets()
    bench: Bench = Bench()
    anchors: tuple[Anchor, ...] = ()
    sources: dict[str, Text]
    unverified: tuple[Text, ...] = ()

    @field_validator("sources", mode="before")
    @classmethod
    def _flatten(cls, value: object) -> object:
        # TOML reads an unquoted `cpu.clusters = "..."` as nested tables: both spellings mean one.
        return _flat(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _consistent(self) -> Device:
        problems = [*_repeated(self), *_without_source(self)]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def threads(self) -> int:
        """CPU threads to run with: the profile's setting, or one per big core."""
        return self.bench.threads or self.cpu.big_cores

    @property
    def system(self) -> tuple[str, tuple[int, ...]] | None:
        """Name and version that ``os`` begins with, such as ``("iOS", (18,))``.

        Versions compare as tuples; those of iPadOS are iOS's. None where ``os`` names no version of
        a mobile system or of macOS: nothing here depends on a Linux distribution's.
        """
        found = _SYSTEM.match(self.os)
        return (found[1], tuple(map(int, found[2].split(".")))) if found else None

    def figures(self) -> dict[str, Any]:
        """Every factual figure by its dotted name, unknown ones left out; anchors not counted."""
        tables = {"isa": self.isa, "memory": self.memory}
        found: dict[str, Any] = {"soc": self.soc, "cpu.clusters": self.cpu.clusters}
        for table, values in tables.items():
            for key, value in values:
                if value is not None and key != "measured":
                    found[f"{table}.{key}"] = value
        return found | {f"accelerators.{a.name}": a.kind for a in self.accelerators}

    def source(self, figure: str) -> str:
        """Where a figure comes from, by the narrowest key that covers it; empty if nowhere."""
        keys = [key for key in self.sources if _covers(key, figure)]
        return self.sources[max(keys, key=len)] if keys else ""

    def doubted(self, figure: str) -> bool:
        """Whether the profile itself says that a figure is unverified."""
        return any(_covers(key, figure) for key in self.unverified)

    def to_json(self) -> dict[str, Any]:
        """The ``edgekit.device/1`` document."""
        return self.model_dump(mode="json", by_alias=True)

    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON form: equal profiles, equal digests."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _one_of(kind: str, value: str, allowed: Any) -> str:
    if value not in allowed:
        raise ValueError(unknown(kind, value, allowed))
    return value


def _flat(table: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    out: dict[str, object] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _repeated(device: Device) -> list[str]:
    problems = []
    pairs = [(t.target, t.delegate) for t in device.targets]
    for target, delegate in sorted({p for p in pairs if pairs.count(p) > 1}):
        problems.append(f"targets: {target} with delegate {delegate} is listed twice")
    both = {t.target for t in device.targets} & {u.target for u in device.unsupported}
    problems += [f"unsupported: {target} is listed in targets too" for target in sorted(both)]
    names = [a.name for a in device.accelerators]
    twice = sorted({n for n in names if names.count(n) > 1})
    return problems + [f"accelerators: {name} is listed twice" for name in twice]


def _without_source(device: Device) -> list[str]:
    """Figures nobody vouches for, figures both vouched for and doubted, and keys naming nothing."""
    figures = device.figures()
    problems = []
    for figure in figures:
        if not device.source(figure) and not device.doubted(figure):
            problems.append(f"{figure}: figure without source; name it in sources or unverified")
        # A table may have a source and one of its figures be doubted, but not by the same name.
        if figure in device.sources and figure in device.unverified:
            problems.append(f"{figure}: named in sources and in unverified")
    for where, keys in (("sources", device.sources), ("unverified", device.unverified)):
        problems += [
            f"{where}: {key} names no figure of this profile"
            for key in keys
            if not any(_covers(key, figure) for figure in figures)
        ]
    return problems


def _covers(key: str, figure: str) -> bool:
    return figure == key or figure.startswith(f"{key}.")
