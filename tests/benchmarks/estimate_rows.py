"""Published latencies on processors, as rows for a fit: the tables joined with cores and graphs.

Only what a device profile can describe is taken (arm64, 32-bit Arm to learn from, x86-64), and
only networks whose graphs are known (`estimate_networks.py`). Clusters, clocks and memory of the
devices are those that their makers publish; bandwidths are the memory's peak, from its type.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from estimate_networks import NETWORKS

from edgekit.bench.features import features
from edgekit.bench.layers import Layer
from edgekit.bench.setting import CORES, Setting

__all__ = ["FILES", "Row", "layers_of", "load", "scored"]


@dataclass(frozen=True)
class Row:
    """One published latency.

    Attributes:
        model: the network, one of `NETWORKS`.
        family: networks of one kind and several sizes.
        setting: where and how.
        x: its features.
        ms: the latency; the smallest of the runs where the table has it.
    """

    model: str
    family: str
    setting: Setting
    x: np.ndarray[Any, Any]
    ms: float

    @property
    def soc(self) -> str:
        return self.setting.soc


# What a device's name holds: (soc, core, GHz, cores worth a thread, GB/s).
_Device = tuple[str, str, float, int, float]
_NCNN: dict[str, _Device] = {
    "Ryzen Embedded V1605B": ("V1605B", "Zen", 3.6, 4, 38),
    "855+": ("Snapdragon 855", "Cortex-A76", 2.96, 4, 34),
    "Snapdragon 675": ("Snapdragon 675", "Cortex-A76", 2.0, 2, 14.9),
    "Kirin 970": ("Kirin 970", "Cortex-A73", 2.4, 4, 29),
    "Snapdragon 835": ("Snapdragon 835", "Cortex-A73", 2.45, 4, 29.8),
    "765G": ("Snapdragon 765G", "Cortex-A76", 2.2, 2, 17),
    "Snapdragon 660": ("Snapdragon 660", "Cortex-A73", 2.2, 4, 14.9),
    "Snapdragon 821": ("Snapdragon 821", "Kryo", 2.35, 2, 29.8),
    "Snapdragon 820": ("Snapdragon 820", "Kryo", 2.15, 2, 29.8),
    "Snapdragon 845": ("Snapdragon 845", "Cortex-A75", 2.8, 4, 29.8),
    "Snapdragon 865": ("Snapdragon 865", "Cortex-A77", 2.84, 4, 44),
    "Snapdragon 870": ("Snapdragon 870", "Cortex-A77", 3.2, 4, 44),
    "Snapdragon 810": ("Snapdragon 810", "Cortex-A57", 2.0, 4, 25.6),
    "Snapdragon 410": ("Snapdragon 410", "Cortex-A53", 1.2, 4, 4.2),
    "Snapdragon 888": ("Snapdragon 888", "Cortex-X1", 2.84, 4, 51),
    "X Elite": ("Snapdragon X Elite", "Oryon", 3.4, 12, 135),
    "Raspberry Pi 3": ("BCM2837", "Cortex-A53", 1.4, 4, 3.6),
    "Raspberry Pi 4": ("BCM2711", "Cortex-A72", 1.8, 4, 12.8),
    "Overclock to 2.9": ("BCM2712", "Cortex-A76", 2.9, 4, 17.1),
    "Raspberry Pi 5": ("BCM2712", "Cortex-A76", 2.4, 4, 17.1),
    "Zero 2 W": ("BCM2710", "Cortex-A53", 1.0, 4, 3.6),
    "H2+": ("H2+", "Cortex-A7", 1.2, 4, 3.2),
    "Orion O6": ("CD8180", "Cortex-A720", 2.6, 8, 96),
    "Zero 3W": ("RK3566", "Cortex-A55", 1.416, 4, 12.8),
    "T527": ("T527", "Cortex-A55", 2.2, 8, 12.8),
    "RK3588": ("RK3588", "Cortex-A76", 2.4, 4, 34),
    "RK3568": ("RK3568", "Cortex-A55", 2.0, 4, 12.8),
    "RK3566": ("RK3566", "Cortex-A55", 1.8, 4, 12.8),
    "Rk3566": ("RK3566", "Cortex-A55", 1.8, 4, 12.8),
    "RK3399": ("RK3399", "Cortex-A72", 1.8, 2, 17),
    "RK3288": ("RK3288", "Cortex-A17", 1.8, 4, 12.8),
    "RZG2L": ("RZG2L", "Cortex-A55", 1.5, 2, 5.3),
    "H616": ("H616", "Cortex-A53", 1.5, 4, 5.3),
    "H618": ("H618", "Cortex-A53", 1.5, 4, 5.3),
    "RDK X3": ("Sunrise X3", "Cortex-A53", 1.5, 4, 12.8),
    "RK3228H": ("RK3328", "Cortex-A53", 1.3, 4, 6.4),
    "RK3328": ("RK3328", "Cortex-A53", 1.3, 4, 6.4),
    "A311D": ("A311D", "Cortex-A73", 2.2, 4, 12.8),
    "Orin Nano": ("Orin", "Cortex-A78AE", 1.5, 6, 68),
    "AGX Orin": ("Orin", "Cortex-A78AE", 2.2, 12, 205),
    "Orin NX": ("Orin", "Cortex-A78AE", 2.0, 8, 102),
    "Jetson Nano": ("Tegra X1", "Cortex-A57", 1.43, 4, 25.6),
    "TX2": ("Tegra X2", "Denver 2", 2.0, 6, 51),
    "Hi3519": ("Hi3519", "Cortex-A17", 1.2, 1, 4),
    "iPhone 5S": ("Apple A7", "Cyclone", 1.3, 2, 12.8),
    "i.MX7": ("i.MX7", "Cortex-A7", 1.0, 2, 4.2),
    "i.MX 8M": ("i.MX 8M", "Cortex-A53", 1.5, 4, 12.8),
    "XC7Z020": ("XC7Z020", "Cortex-A9", 0.766, 2, 4.2),
    "FT-2000/4": ("FT-2000/4", "FTC66x", 2.2, 4, 38),
    "FT-2000+": ("FT-2000+", "FTC66x", 2.4, 8, 38),
    "D2000": ("D2000", "FTC66x", 2.3, 8, 38),
    "2251K": ("KunPeng 920", "TaiShan v110", 2.6, 8, 38),
    "3211K": ("KunPeng 920", "TaiShan v110", 2.6, 24, 38),
    "KunPeng 920": ("KunPeng 920", "TaiShan v110", 2.6, 24, 38),
    "Z8350": ("Z8350", "Airmont", 1.92, 4, 12.8),
    "N5105": ("N5105", "Tremont", 2.9, 4, 25),
    "Xavier": ("Xavier", "Carmel", 2.2, 8, 137),
    "M1, 2020": ("Apple M1", "Firestorm", 3.2, 4, 68),
    "M3, 2024": ("Apple M3", "Apple M3", 4.05, 4, 100),
    "2.6GHz six cores": ("i7-9750H", "Skylake", 4.5, 6, 38),
    "AX620A": ("AX620A", "Cortex-A7", 1.0, 4, 4),
    "5700g": ("5700G", "Zen 3", 4.6, 8, 45),
    "Celeron M 420": ("Celeron M 420", "Yonah", 1.6, 1, 4.2),
    "c5.4xlarge": ("Xeon 8124M", "Skylake-SP", 3.6, 8, 90),
    "i7-11800H": ("i7-11800H", "Tiger Lake", 4.6, 8, 45),
    "i7-7700K": ("i7-7700K", "Skylake", 4.5, 4, 34),
    "5950X": ("5950X", "Zen 3", 4.9, 16, 45),
    "13700K": ("i7-13700K", "Golden Cove", 5.4, 8, 75),
    "S805": ("S805", "Cortex-A5", 1.536, 4, 4),
    "8 Gen 2": ("Snapdragon 8 Gen 2", "Cortex-X3", 3.2, 5, 67),
    "Dimensity 9300": ("Dimensity 9300", "Cortex-X4", 3.25, 8, 76),
    "PhytiumPi": ("E2000", "FTC66x", 1.8, 2, 17),
    "EPYC 7742": ("EPYC 7742", "Zen 2", 3.4, 64, 150),
    "AX630C": ("AX630C", "Cortex-A53", 1.2, 2, 6.4),
    "QRB2210": ("QRB2210", "Cortex-A53", 2.0, 4, 7.5),
    "D64ps v6": ("Azure Cobalt 100", "Neoverse-N2", 3.4, 64, 200),
    "D64s v6": ("Xeon 8573C", "Emerald Rapids", 3.6, 32, 250),
    "D64as v7": ("EPYC 9V74", "Zen 5", 4.5, 64, 300),
}
# Clusters of efficiency cores, where a run was bound to them.
_LITTLE = {
    "RK3588": ("Cortex-A55", 1.8, 4),
    "RK3399": ("Cortex-A53", 1.5, 4),
    "Dimensity 9300": ("Cortex-A720", 2.0, 4),
}
_SOCS: dict[str, _Device] = {
    "Kirin 980": ("Kirin 980", "Cortex-A76", 2.6, 4, 34),
    "Kirin 990": ("Kirin 990", "Cortex-A76", 2.86, 4, 34),
    "Snapdragon 865": _NCNN["Snapdragon 865"],
    "Snapdragon 855": ("Snapdragon 855", "Cortex-A76", 2.84, 4, 34),
    "Snapdragon 845": _NCNN["Snapdragon 845"],
    "Snapdragon 835": _NCNN["Snapdragon 835"],
    "Snapdragon 821": _NCNN["Snapdragon 821"],
    "Snapdragon 670": ("Snapdragon 670", "Cortex-A75", 2.0, 2, 14.9),
    "Snapdragon 625": ("Snapdragon 625", "Cortex-A53", 1.8, 4, 7.5),
    "BCM2836": ("BCM2836", "Cortex-A7", 0.9, 4, 3.6),
    "BCM2837B0": ("BCM2837", "Cortex-A53", 1.4, 4, 3.6),
    "BCM2711": ("BCM2711", "Cortex-A72", 1.5, 4, 12.8),
}
_INTEL: dict[str, tuple[str, float, int, float]] = {
    "Atom X6425E": ("Tremont", 3.0, 4, 51),
    "Celeron 6305E": ("Tiger Lake", 1.8, 2, 51),
    "i5-10500TE": ("Skylake", 3.7, 6, 42),
    "i5-13600K": ("Golden Cove", 5.1, 6, 75),
    "i5-8500": ("Skylake", 4.1, 6, 42),
    "i7-1185G7": ("Tiger Lake", 4.3, 4, 51),
    "i7-1185GRE": ("Tiger Lake", 4.3, 4, 51),
    "i7-12700H": ("Golden Cove", 4.7, 6, 75),
    "i7-1360P": ("Golden Cove", 5.0, 4, 75),
    "i7-8700T": ("Skylake", 4.0, 6, 42),
    "i9-10900TE": ("Skylake", 4.5, 10, 42),
    "i9-13900K": ("Golden Cove", 5.5, 8, 80),
    "Ultra 7 165H": ("Golden Cove", 5.0, 6, 90),
    "E-2124G": ("Skylake", 4.5, 4, 42),
    "5218T": ("Cascade Lake", 2.7, 32, 250),
    "8280": ("Cascade Lake", 3.3, 56, 280),
    "8380": ("Ice Lake", 3.0, 80, 400),
    "8480+": ("Sapphire Rapids", 3.0, 112, 600),
    "8580": ("Emerald Rapids", 3.0, 120, 700),
    "4216R": ("Cascade Lake", 2.7, 32, 230),
    "4316": ("Ice Lake", 2.8, 40, 340),
    "W1290P": ("Skylake", 5.0, 10, 46),
}
_XEON = {
    "ResNet18": "resnet18",
    "ResNet50 V1.5": "resnet50",
    "VGG16": "vgg16",
    "MobileNet V2": "mobilenet_v2",
    "Inception V1": "inception_v1",
    "Inception V3": "inception_v3",
    "AlexNet (ONNX Model Zoo)": "alexnet",
    "GoogleNet (ONNX Model Zoo)": "googlenet",
    "SqueezeNet (ONNX Model Zoo)": "squeezenet_v1.0",
    "ShuffleNet V2 (ONNX Model Zoo)": "shufflenet_v2",
}


@cache
def layers_of(network: str) -> tuple[Layer, ...]:
    """The layers of one of `NETWORKS`."""
    return tuple(NETWORKS[network]().layers)


@cache
def _x(network: str, precision: str) -> np.ndarray[Any, Any]:
    return features(layers_of(network), precision)


def _family(model: str) -> str:
    return re.sub(
        r"_(?:[01]\.\d+_)?\d+$|_[01]\.\d+$|_int8$|_lite\d$|_lite", "", model
    ).removesuffix("_minimalistic")


def _row(model: str, graph: str, ms: float, device: _Device, **kw: Any) -> Row | None:
    if graph not in NETWORKS or ms <= 0:
        return None
    soc, core, ghz, big, bandwidth = device
    setting = Setting(
        core=core, kind=CORES[core], ghz=ghz, big=big, bandwidth=bandwidth, soc=soc, **kw
    )
    return Row(model, _family(model), setting, _x(graph, kw["precision"]), ms)


def _find(table: Mapping[str, Any], name: str) -> Any:
    return next((value for key, value in table.items() if key in name), None)


def _ncnn(folder: Path) -> Iterator[Row | None]:
    rows = [r for r in _read(folder / "latency_ncnn.csv") if r["compute_unit"] == "CPU"]
    nets = defaultdict(set)
    for r in rows:
        nets[_session(r)].add(r["model"])
    for r in rows:
        device = _find(_NCNN, f"{r['device']} {r['soc']}")
        if device is None:
            continue
        # Which networks a table has tells how old the runtime was.
        known = nets[_session(r)]
        version = "2020"
        if known & {"yolo-fastest-1.1", "yolo-fastestv2", "nanodet_m"}:
            version = "2021"
        if known & {"vision_transformer", "FastestDet"}:
            version = "2022"
        if "little" in r["notes"].split(";")[1] and device[0] in _LITTLE:
            device = (device[0], *_LITTLE[device[0]], device[4])
        if "Without AVX512" in r["notes"]:
            device = (device[0], "AVX2 alone", *device[2:])
        least = re.search(r"min=([\d.]+)", r["notes"])
        ms = float(least[1]) if least else float(r["latency_ms"])
        model = r["model"]
        graph = f"ncnn:{model}" if f"ncnn:{model}" in NETWORKS else model
        yield _row(
            model, graph, ms, device, threads=int(r["threads"]), precision=r["precision"],
            runtime="ncnn", version=version, session="/".join(_session(r)),
        )  # fmt: skip


def _session(r: Mapping[str, str]) -> tuple[str, ...]:
    section = re.search(r"Results \(([^)]*)\)", r["notes"])
    cluster = r["notes"].split(";")[1].strip()
    return r["device"], r["soc"], r["threads"], cluster, section[1] if section else ""


def _paddle(folder: Path) -> Iterator[Row | None]:
    for r in _read(folder / "latency_paddlelite.csv"):
        device = _find(_SOCS, r["soc"])
        if r["compute_unit"] != "CPU" or device is None or "armv7" in r["notes"].split(";")[0]:
            continue
        yield _row(
            r["model"], r["model"], float(r["latency_ms"]), device, threads=1,
            precision=r["precision"], runtime="paddle-lite", version="2.11",
            session=f"paddle {r['device']}",
        )  # fmt: skip


def _tflite(folder: Path) -> Iterator[Row | None]:
    for r in _read(folder / "latency_tflite_mobile.csv"):
        device = _find(_SOCS, r["soc"])
        known = r["runtime"] in ("tflite", "xnnpack") and r["precision"] in ("fp32", "int8")
        if r["compute_unit"] != "CPU" or device is None or not known or not r["threads"]:
            continue
        yield _row(
            r["model"], r["model"], float(r["latency_ms"]), device, threads=int(r["threads"]),
            precision=r["precision"], runtime="xnnpack" if r["runtime"] == "xnnpack" else "tflite",
            version="", session=f"{r['runtime']} {r['device']}",
        )  # fmt: skip


def _openvino(folder: Path) -> Iterator[Row | None]:
    for r in _read(folder / "latency_openvino.csv"):
        intel = _find(_INTEL, r["soc"])
        if r["compute_unit"] != "CPU" or r["precision"] != "int8" or intel is None:
            continue
        device = (r["soc"].removeprefix("Intel ").removeprefix("Core "), *intel)
        yield _row(
            r["model"], r["model"], float(r["latency_ms"]), device, threads=intel[2],
            precision="int8", runtime="openvino", version="2024.3", session=f"openvino {r['soc']}",
        )  # fmt: skip


def _xeon(folder: Path) -> Iterator[Row | None]:
    for r in _read(folder / "latency_inc_xeon.csv"):
        if not r["runtime"].startswith("onnxruntime") or r["model"] not in _XEON:
            continue
        if r["precision"] not in ("fp32", "int8-qlinearops"):
            continue
        device = ("Xeon Platinum 8480+", "Sapphire Rapids", 3.0, 4, 40.0)
        name = _XEON[r["model"]]
        yield _row(
            name, name, float(r["latency_ms"]), device, threads=4,
            precision=r["precision"].partition("-")[0], runtime="onnxruntime", version="1.18",
            session="Xeon 8480+, all of it loaded",
        )  # fmt: skip


FILES = {
    "latency_ncnn.csv": _ncnn,
    "latency_paddlelite.csv": _paddle,
    "latency_tflite_mobile.csv": _tflite,
    "latency_openvino.csv": _openvino,
    "latency_inc_xeon.csv": _xeon,
}


def load(folder: Path) -> list[Row]:
    """All rows of a reference folder that can be used; files that are not there are left out."""
    return [
        row
        for name, read in FILES.items()
        if (folder / name).is_file()
        for row in read(folder)
        if row is not None
    ]


def scored(row: Row) -> bool:
    """Whether estimates are judged by a row: 32-bit Arm, which no profile has, only teaches."""
    return row.setting.kind.family != "arm7"


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
