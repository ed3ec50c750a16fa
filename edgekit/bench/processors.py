"""From a device profile to a `Setting`: its core, clock, threads, and whose kernels would run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgekit.bench.setting import CORES, Core, Setting
from edgekit.device import Cluster, Device, Isa
from edgekit.errors import UnsupportedError

__all__ = ["COMPUTES", "KERNELS", "Kernels", "precision_of", "setting_of", "thread_choices"]


@dataclass(frozen=True)
class Kernels:
    """Whose kernels a target's delegate runs.

    Attributes:
        runtime: as latency tables name it.
        version: of the runtime that was measured.
        measured: whether tables have that runtime at all.
    """

    runtime: str
    version: str
    measured: bool = True


KERNELS: Final = {
    ("tflite", "xnnpack"): Kernels("xnnpack", ""),
    ("executorch", "xnnpack"): Kernels("xnnpack", ""),
    ("onnxruntime", "cpu"): Kernels("onnxruntime", "1.18"),
    ("openvino", "cpu"): Kernels("openvino", "2024.3"),
    ("torch-mobile", "qnnpack"): Kernels("qnnpack", "", measured=False),
}
"""By target and delegate. Others run on processors of which no latencies are known."""

COMPUTES: Final = {
    "fp32": ("fp32", 4.0),
    "fp16": ("fp32", 2.0),
    "w8": ("fp32", 1.0),
    "w4": ("fp32", 0.5),
    "w8a8": ("int8", 1.0),
}
"""By scheme, what kernels compute in and the bytes of a stored weight. Artifacts of half precision
store it and compute in single, as those of w8 and w4 do."""

_X86_ALONE: Final = frozenset({"openvino"})
_BANDWIDTH = 17.0  # GB/s, where a profile has none: that of many phones of the middle
_GHZ = 2.0
_BIG_BANDWIDTH = 60.0

_OTHER_NAMES: Final = {
    "performance core": "Golden Cove",
    "a17 pro performance core": "Apple M3",
    "icestorm": "Cortex-A76",
    "a17 pro efficiency core": "Cortex-A78",
}


def precision_of(scheme: str) -> tuple[str, float]:
    """What kernels compute in, and bytes of a stored weight.

    Raises:
        UnsupportedError: nothing is known of the scheme's speed.
    """
    if scheme not in COMPUTES:
        raise UnsupportedError(
            f"no published latency says how fast scheme {scheme!r} is",
            hint=f"estimates are made for {', '.join(COMPUTES)}; measure others on the device",
        )
    return COMPUTES[scheme]


def setting_of(
    device: Device, target: str, delegate: str, precision: str, threads: int
) -> tuple[Setting, list[str]]:
    """The setting, and what had to be assumed of the device.

    Raises:
        UnsupportedError: the delegate's processor is one of which no latencies are known.
    """
    kernels = KERNELS.get((target, delegate))
    if kernels is None:
        raise UnsupportedError(
            f"a latency of {target} through {delegate!r} can't be estimated: "
            "there are no measurements to rest it on",
            hint="estimates are made for "
            + ", ".join(f"{t} ({d})" for t, d in KERNELS)
            + "; measure others with edgekit bench",
        )
    if target in _X86_ALONE and device.isa.arch != "x86_64":
        raise UnsupportedError(
            f"a latency of {target} on {device.id} can't be estimated: its kernels for Arm are "
            "others than those for x86, and only these were measured",
            hint="measure it with edgekit bench, or estimate another target",
        )
    cluster = device.cpu.clusters[0]
    name, kind = _core(cluster, device.isa)
    notes = []
    if name not in CORES:
        notes.append(f"{cluster.core} was never measured: taken for a core of its kind")
    if cluster.ghz is None:
        notes.append(f"the profile has no clock for {cluster.core}: {_GHZ:g} GHz assumed")
    bandwidth = device.memory.bandwidth_gbs
    if bandwidth is None:
        big = kind.lanes >= 16
        bandwidth = _BIG_BANDWIDTH if big else _BANDWIDTH
        notes.append(f"the profile has no memory bandwidth: {bandwidth:g} GB/s assumed")
    if not kernels.measured:
        notes.append(f"{kernels.runtime} is in no table: taken for a runtime like the others")
    setting = Setting(
        core=name,
        kind=kind,
        ghz=cluster.ghz or _GHZ,
        big=device.cpu.big_cores,
        threads=threads,
        precision=precision,
        bandwidth=bandwidth,
        runtime=kernels.runtime,
        version=kernels.version,
        soc=device.soc,
        session=f"profile {device.id}",
    )
    return setting, notes


def thread_choices(device: Device) -> list[int]:
    """Numbers of threads worth comparing: one, two, the profile's own, all big cores, all."""
    found = {1, device.threads, device.cpu.big_cores, device.cpu.cores}
    if device.cpu.big_cores >= 2:
        found.add(2)
    return sorted(found)


def _core(cluster: Cluster, isa: Isa) -> tuple[str, Core]:
    """A core's name and kind; where the name is unknown, what its instruction set says."""
    name = _OTHER_NAMES.get(cluster.core.lower(), cluster.core)
    if name in CORES:
        return name, CORES[name]
    if isa.arch == "arm64":
        little = cluster.role == "little"
        if isa.i8mm:
            return name, Core("arm86", 4 if little else 12, 0.3 if little else 2.6)
        if isa.dotprod or isa.fp16:
            return name, Core("arm82", 4 if little else 8, 0.0 if little else 2.1)
        return name, Core("arm8", 4, 0.0 if little else 1.2)
    if isa.amx_int8:
        return name, CORES["Sapphire Rapids"]
    if isa.avx512_vnni:
        return name, CORES["Cascade Lake"]
    if isa.avx_vnni:
        return name, CORES["Golden Cove"]
    return name, CORES["AVX2 alone"] if isa.avx2 else CORES["Tremont"]
