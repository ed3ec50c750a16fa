"""The profiles that ship: every device has one, every figure a source, every target an answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgekit import device
from edgekit.names import TARGETS
from edgekit.targets import find

ANDROID = ["android-low-end", "galaxy-s22", "galaxy-s24", "pixel-6", "pixel-8"]
APPLE = ["ipad", "iphone-12", "iphone-15-pro"]
BOARDS = ["coral-dev-board", "jetson-orin-nano", "raspberry-pi-4", "raspberry-pi-5"]
ARM_LINUX = ["arm-server", *BOARDS]
X86 = ["core-ultra", "intel-nuc", "x86-server"]
IDS = sorted([*ANDROID, *APPLE, *ARM_LINUX, *X86, "host"])
PUBLISHED = [name for name in IDS if name != "host"]

# Order of preference. Apple's own runtime comes first on its devices, OpenVINO on Intel's.
RUNS = {name: ["tflite", "executorch", "onnxruntime", "torch-mobile"] for name in ANDROID}
RUNS |= {n: ["coreml", "executorch", "tflite", "onnxruntime", "torch-mobile"] for n in APPLE}
RUNS |= {name: ["tflite", "onnxruntime", "openvino", "executorch"] for name in ARM_LINUX}
RUNS |= {"coral-dev-board": ["tflite", "onnxruntime"]}
RUNS |= {name: ["openvino", "onnxruntime", "tflite", "executorch"] for name in X86}

DELEGATES = {
    "tflite": "xnnpack",
    "openvino": "cpu",
    "onnxruntime": "cpu",
    "executorch": "xnnpack",
    "torch-mobile": "qnnpack",
    "coreml": "coreml",
}


def test_available_lists_the_packaged_profiles() -> None:
    assert device.available() == IDS


@pytest.mark.parametrize("name", IDS)
def test_packaged_profile_is_sound(name: str) -> None:
    assert device.check(name) == []
    profile = device.load(name)
    assert profile.id == name
    for entry in profile.targets:
        if entry.delegate in ("vulkan", "coreml") and entry.target == "executorch":
            # Nothing here runs these: they are made where they are asked for, and in float.
            assert entry.when_named
            assert entry.schemes == find(f"executorch:{entry.delegate}").schemes
            assert (entry.delegate == "coreml") == (profile.system[0] in ("iOS", "iPadOS"))
            continue
        # What is made where no scheme is named: on A14, int8 activations speed nothing up.
        weights_first = entry.target == "coreml" and name in ("ipad", "iphone-12")
        assert entry.schemes[0] == ("w8" if weights_first else "w8a8")
        assert set(entry.schemes) == set(find(entry.target).schemes)
        assert entry.delegate == DELEGATES[entry.target]


@pytest.mark.parametrize("name", PUBLISHED)
def test_packaged_profile_tells_of_every_target(name: str) -> None:
    """Each target is run, in the order of preference, or refused with a reason."""
    profile = device.load(name)
    assert list(dict.fromkeys(entry.target for entry in profile.targets)) == RUNS[name]
    refused = {entry.target: entry.reason for entry in profile.unsupported}
    assert set(refused) == set(TARGETS) - set(RUNS[name])
    assert all(len(reason) > 30 for reason in refused.values())


@pytest.mark.parametrize("name", [*ANDROID, *APPLE])
def test_a_phones_system_can_be_compared(name: str) -> None:
    profile = device.load(name)
    assert profile.system is not None
    system, version = profile.system
    assert profile.os == f"{system} {version[0]}"
    for entry in profile.targets:
        if entry.target == "coreml":
            # coremltools, "What's New": activations since iOS 17, 4-bit quantized weights since 18.
            needs = {"w8a8": 17, "w8": 17, "w4": 18, "fp16": 16, "fp32": 16}
            assert all(version >= (needs[scheme],) for scheme in entry.schemes)
    # The newest of the runtimes' own floors: ExecuTorch's Swift package.
    assert system == "Android" or version >= (17,)


def test_the_readme_lists_every_profile_with_its_targets() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    section = readme.split("\n## Devices\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (.+) \| (.+) \|$", section, re.MULTILINE)
    assert [name for name, _, _ in rows] == IDS
    for name, title, targets in rows:
        if name != "host":
            assert title == device.load(name).name
            assert targets.split(", ") == RUNS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_packaged_profile_says_where_each_figure_comes_from(name: str) -> None:
    profile = device.load(name)
    for figure in profile.figures():
        assert profile.source(figure) or profile.doubted(figure), figure
    for text in [*profile.sources.values(), *(a.source for a in profile.anchors)]:
        assert not re.search(r"\.csv$|^/|reference/", text.replace("benchmark-data.csv", "")), text
    assert all(len(a.source) > 3 and a.latency_ms > 0 for a in profile.anchors)
    tables = (profile.cpu, profile.isa, profile.memory)
    assert not any(table.measured for table in tables), "published, not measured"


def test_figures_that_nobody_verified_are_left_out_or_marked() -> None:
    assert device.load("pixel-8").memory.bandwidth_gbs is None
    assert device.load("galaxy-s24").memory.ram_gib is None
    assert device.load("x86-server").memory.bandwidth_gbs is None
    assert {c.ghz for c in device.load("core-ultra").cpu.clusters} == {None}
    assert device.load("raspberry-pi-5").doubted("memory.bandwidth_gbs")
    assert device.load("galaxy-s24").doubted("memory.bandwidth_gbs")
    for name in ("android-low-end", "galaxy-s22", "ipad", "iphone-12", "pixel-6"):
        assert device.load(name).memory.ram_gib is None
    assert device.load("coral-dev-board").cpu.clusters[0].ghz is None
    assert device.load("iphone-12").cpu.clusters[1].ghz is None
    assert device.load("pixel-6").doubted("accelerators.Google TPU (G1)")
    assert device.load("raspberry-pi-4").doubted("memory.bandwidth_gbs")


@pytest.mark.parametrize(
    ("name", "flags"),
    [  # fp16, dotprod, i8mm: what all of a chip's clusters have
        ("pixel-6", (True, True, False)),
        ("galaxy-s22", (True, True, True)),
        ("android-low-end", (False, False, False)),
        ("iphone-12", (True, True, False)),
        ("ipad", (True, True, False)),
        ("iphone-15-pro", (True, True, True)),
        ("raspberry-pi-4", (False, False, False)),
        ("jetson-orin-nano", (True, True, False)),
        ("coral-dev-board", (False, False, False)),
        ("arm-server", (True, True, True)),
    ],
)
def test_instruction_sets_of_the_arm_devices(name: str, flags: tuple[bool, ...]) -> None:
    isa = device.load(name).isa
    assert (isa.arch, isa.fp16, isa.dotprod, isa.i8mm) == ("arm64", *flags)


def test_no_packaged_profile_invents_a_budget() -> None:
    for name in IDS:
        assert {value for _, value in device.load(name).budgets} == {None}


def test_throughput_quotients_are_not_called_measured() -> None:
    for anchor in device.load("x86-server").anchors:
        assert anchor.measured == ("total throughput" not in anchor.note)


@pytest.mark.parametrize(
    ("name", "threads"),
    [
        ("pixel-8", 5),
        ("galaxy-s24", 6),
        ("raspberry-pi-5", 4),
        ("core-ultra", 6),
        ("x86-server", 4),
        ("arm-server", 4),
        ("android-low-end", 4),
        ("iphone-12", 2),
        ("pixel-6", 4),
        ("jetson-orin-nano", 6),
    ],
)
def test_threads_default_to_the_big_cores(name: str, threads: int) -> None:
    assert device.load(name).threads == threads


def test_accelerators_are_unsupported_with_a_reason_and_a_way_out() -> None:
    found = [a for name in PUBLISHED for a in device.load(name).accelerators]
    assert {a.kind for a in found} == {"gpu", "npu", "tpu"}
    assert all(a.status == "unsupported" for a in found)
    assert all(len(text) > 30 for a in found for text in (a.reason, a.advice))


@pytest.mark.parametrize(
    ("name", "accelerator", "compiler"),
    [
        ("coral-dev-board", "Edge TPU", "edgetpu_compiler"),
        ("jetson-orin-nano", "Ampere GPU (1024 CUDA cores)", "TensorRT"),
        ("galaxy-s22", "Hexagon NPU", "QNN"),
        ("galaxy-s24", "Hexagon NPU", "QNN"),
        ("iphone-12", "Apple Neural Engine (A14)", "Core ML"),
        ("ipad", "Apple Neural Engine (A14)", "Core ML"),
        ("iphone-15-pro", "Apple Neural Engine (A17 Pro)", "Core ML"),
        ("core-ultra", "Intel AI Boost", "NPU plug-in"),
    ],
)
def test_compilers_that_are_not_driven_are_named(
    name: str, accelerator: str, compiler: str
) -> None:
    found = {a.name: a for a in device.load(name).accelerators}
    assert compiler in found[accelerator].reason
    assert re.search(r"artifact", found[accelerator].advice)
