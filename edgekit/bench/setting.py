"""What a latency depends on besides the model: processor, clock, threads, precision, runtime.

A `Setting` says it in numbers (`descriptors`) and in names of groups (`groups`), from what they all
share to this very device. An estimate adds up what is known of each group, so a processor that
nobody measured is estimated from its core, and a core that nobody measured from its family.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

__all__ = ["CORES", "DESCRIPTORS", "GROUPS", "Core", "Setting"]

Vector = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Core:
    """A kind of core.

    Attributes:
        family: cores whose kernels are the same, by instruction set.
        lanes: single-precision multiply-accumulates that it starts in one cycle.
        depth: how far it runs out of order, from 0 (not at all) to 3.
    """

    family: str
    lanes: float
    depth: float


# From the makers' optimization guides and public descriptions of the cores.
CORES: Final = {
    "Cortex-A5": Core("arm7", 1, 0),
    "Cortex-A7": Core("arm7", 1, 0),
    "Cortex-A9": Core("arm7", 2, 1),
    "Cortex-A17": Core("arm7", 3, 1),
    "Cortex-A53": Core("arm8", 4, 0),
    "Cortex-A35": Core("arm8", 2, 0),
    "Cortex-A57": Core("arm8", 4, 1),
    "Cortex-A72": Core("arm8", 4, 1.5),
    "Cortex-A73": Core("arm8", 4, 1.5),
    "Kryo": Core("arm8", 4, 1.5),
    "Cyclone": Core("arm8", 8, 2),
    "Denver 2": Core("arm8", 4, 1.5),
    "FTC66x": Core("arm8", 4, 1.3),
    "Cortex-A55": Core("arm82", 4, 0),
    "Cortex-A75": Core("arm82", 8, 1.8),
    "Cortex-A76": Core("arm82", 8, 2),
    "Cortex-A77": Core("arm82", 8, 2.1),
    "Cortex-A78": Core("arm82", 8, 2.2),
    "Cortex-A78AE": Core("arm82", 8, 2),
    "Neoverse-N1": Core("arm82", 8, 2),
    "Cortex-X1": Core("arm82", 16, 2.5),
    "Firestorm": Core("arm82", 16, 3),
    "Carmel": Core("arm82", 8, 2),
    "TaiShan v110": Core("arm82", 8, 2),
    "Cortex-A510": Core("arm86", 4, 0.3),
    "Cortex-A520": Core("arm86", 4, 0.3),
    "Cortex-A710": Core("arm86", 8, 2.2),
    "Cortex-A715": Core("arm86", 8, 2.2),
    "Cortex-A720": Core("arm86", 8, 2.3),
    "Neoverse-N2": Core("arm86", 8, 2.5),
    "Neoverse-V1": Core("arm86", 16, 2.7),
    "Neoverse-V2": Core("arm86", 16, 3),
    "Cortex-X2": Core("arm86", 16, 2.7),
    "Cortex-X3": Core("arm86", 16, 3),
    "Cortex-X4": Core("arm86", 16, 3),
    "Oryon": Core("arm86", 16, 3),
    "Apple M3": Core("arm86", 16, 3),
    "Yonah": Core("sse", 2, 1),
    "Airmont": Core("sse", 2.5, 1),
    "Tremont": Core("sse", 4, 1.7),
    "Zen": Core("avx2", 8, 2.3),
    "Zen 2": Core("avx2", 16, 2.5),
    "Zen 3": Core("avx2", 16, 2.7),
    "Skylake": Core("avx2", 16, 2.5),
    "AVX2 alone": Core("avx2", 16, 2.7),
    "Skylake-SP": Core("avx512", 32, 2.5),
    "Cascade Lake": Core("vnni512", 32, 2.5),
    "Ice Lake": Core("vnni512", 32, 2.7),
    "Tiger Lake": Core("vnni512", 16, 2.7),
    "Sapphire Rapids": Core("vnni512", 32, 2.8),
    "Emerald Rapids": Core("vnni512", 32, 2.8),
    "Zen 5": Core("vnni512", 32, 3),
    "Golden Cove": Core("vnni256", 16, 3),
}
"""By the name that device profiles have for it. ``AVX2 alone``: with AVX-512 turned off."""

DESCRIPTORS: Final = (
    "clock",
    "lanes",
    "depth",
    "threads",
    "oversubscribed",
    "beyond_8",
    "depth_threads",
    "int8_threads",
    "fp16_threads",
    "bandwidth",
)
"""What `Setting.descriptors` gives, in its order; logarithms, but for the depth."""

GROUPS: Final = (
    ("precision", 0.5, 0.6),
    ("family", 0.3, 0.25),
    ("family precision", 0.2, 0.4),
    ("runtime", 0.4, 0.25),
    ("runtime precision", 0.25, 0.2),
    ("version", 0.2, 0.1),
    ("version precision", 0.1, 0.2),
    ("version family", 0.4, 0.15),
    ("core", 0.25, 0.2),
    ("core precision", 0.15, 0.12),
    ("soc", 0.2, 0.1),
    ("soc precision", 0.1, 0.08),
    ("session", 0.2, 0.2),
    ("config", 0.16, 0.16),
)
"""Groups of settings, each with the spread of log latency that its members are expected to have:
of all features together, and of arithmetic and memory apart."""


@dataclass(frozen=True)
class Setting:
    """One way to run a model.

    Attributes:
        core: a name in `CORES`, or another one of a core that is told by ``kind``.
        kind: what the core is.
        ghz: its clock.
        big: cores worth a thread.
        threads: of one call.
        precision: what kernels compute in: ``fp32``, ``fp16`` or ``int8``.
        bandwidth: of main memory, GB/s.
        runtime: whose kernels: ``ncnn``, ``xnnpack``, ``paddle-lite`` and so on.
        version: of the runtime, as far as latencies tell versions apart.
        soc: what the core is built into.
        session: the device and what was set on it.
    """

    core: str
    kind: Core
    ghz: float
    big: int
    threads: int
    precision: str
    bandwidth: float
    runtime: str
    version: str
    soc: str
    session: str

    def descriptors(self) -> Vector:
        """The numbers named by `DESCRIPTORS`."""
        useful = min(self.threads, self.big)
        threads = math.log(min(self.threads, 8))
        depth = self.kind.depth - 1.5
        return np.array(
            [
                math.log(self.ghz / 2),
                math.log(self.kind.lanes / 8),
                depth,
                math.log(useful),
                math.log(self.threads / useful),
                math.log(max(1.0, self.threads / 8)),
                depth * threads,
                threads if self.precision == "int8" else 0.0,
                threads if self.precision == "fp16" else 0.0,
                math.log(self.bandwidth / 17),
            ]
        )

    def groups(self) -> tuple[str, ...]:
        """The member of each of `GROUPS` that this setting belongs to."""
        p, family = self.precision, self.kind.family
        version = f"{self.runtime} {self.version}"
        return (
            p,
            family,
            f"{family} {p}",
            self.runtime,
            f"{self.runtime} {p}",
            version,
            f"{version} {p}",
            f"{version} {family} {p}",
            self.core,
            f"{self.core} {p}",
            self.soc,
            f"{self.soc} {p}",
            f"{self.session} {self.threads}",
            f"{self.session} {self.threads} {version} {p}",
        )
