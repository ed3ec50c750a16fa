"""Device profiles: every figure has a source, unknown keys are refused, selection is exact."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import edgekit
from edgekit import device
from edgekit.device import loader
from edgekit.errors import BadData, UnsupportedError, UsageError
from edgekit.names import SCHEMES, TARGETS

IDS = device.available()
PUBLISHED = [name for name in IDS if name != "host"]

# Targets whose jobs the tests of selection write out.
FIRST = ("tflite", "openvino", "onnxruntime")

BOARD = """
schema = "edgekit.device/1"
id = "my-board"
name = "My board"
soc = "ABC1"
os = "Linux"

[cpu]
clusters = [{ cores = 2, core = "Cortex-A53", ghz = 1.5 }]

[isa]
arch = "arm64"
dotprod = false

[memory]
ram_gib = 1.0

[[targets]]
target = "tflite"
schemes = ["w8a8", "fp32"]
delegate = "xnnpack"

[sources]
soc = "data sheet"
cpu = "data sheet"
isa = "data sheet"
"memory.ram_gib" = "data sheet"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "board.toml"
    path.write_text(text)
    return path


def problems(tmp_path: Path, text: str) -> list[str]:
    return device.check(write(tmp_path, text))


# -- reading and refusing -------------------------------------------------------------------------


def test_a_path_is_a_device(tmp_path: Path) -> None:
    profile = device.load(str(write(tmp_path, BOARD)))
    assert (profile.id, profile.threads, profile.isa.dotprod) == ("my-board", 2, False)
    assert profile.isa.i8mm is None


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_source_that_is_taken_away_is_missed(name: str, tmp_path: Path) -> None:
    text = (loader._directory() / f"{name}.toml").read_text()
    keys = list(tomllib.loads(text)["sources"])
    for key in keys:
        line = re.compile(rf'^"?{re.escape(key)}"? = .*$', re.MULTILINE)
        head, table = text.split("[sources]")
        found = problems(tmp_path, f"{head}[sources]{line.sub('', table, count=1)}")
        assert found, key
        assert all(p.startswith(key) and "figure without source" in p for p in found)


def test_a_doubted_figure_needs_no_source(tmp_path: Path) -> None:
    text = BOARD.replace('"memory.ram_gib" = "data sheet"\n', "")
    assert problems(tmp_path, text) == [
        "memory.ram_gib: figure without source; name it in sources or unverified"
    ]
    marked = text.replace('os = "Linux"', 'os = "Linux"\nunverified = ["memory"]')
    assert problems(tmp_path, marked) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('cpu = "data', 'cpus = "data', "sources: cpus names no figure of this profile"),
        ("[cpu]", 'unverified = ["soc"]\n[cpu]', "soc: named in sources and in unverified"),
        ("[cpu]", 'unverified = ["gpu"]\n[cpu]', "unverified: gpu names no figure"),
        ("[cpu]", "[cpu]\nspeed = 3", "cpu.speed: unknown key"),
        ("ghz = 1.5", "mhz = 1500", "cpu.clusters.0.mhz: unknown key"),
        ('soc = "ABC1"\n', "", "soc: is missing"),
        ("cores = 2", 'cores = "2"', "cpu.clusters.0.cores: "),
        ("cores = 2", "cores = 0", "cpu.clusters.0.cores: "),
        ("ram_gib = 1.0", "ram_gib = nan", "memory.ram_gib: "),
        ("ram_gib = 1.0", "ram_gib = 2026-01-01", "memory.ram_gib: "),
        ('"arm64"', '"riscv64"', "isa.arch: "),
        ('"tflite"', '"tflit"', "unknown target 'tflit'. Did you mean 'tflite'?"),
        ('"w8a8", ', '"int8", ', "unknown scheme 'int8'"),
        ('"w8a8", ', '"fp32", ', "a scheme is listed twice"),
        ("my-board", "My_Board", "id: "),
        ("device/1", "device/2", "schema: "),
        (
            "[sources]",
            '[[unsupported]]\ntarget = "tflite"\nreason = "no"\n[sources]',
            "unsupported: tflite is listed in targets too",
        ),
        (
            "[sources]",
            '[[targets]]\ntarget = "tflite"\nschemes = ["fp32"]\ndelegate = "xnnpack"\n[sources]',
            "targets: tflite with delegate xnnpack is listed twice",
        ),
        ("[sources]", "[budgets]\nlatency_p90_ms = 0\n[sources]", "budgets.latency_p90_ms: "),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert old in BOARD
    found = problems(tmp_path, BOARD.replace(old, new, 1))
    assert any(problem in line for line in found), found
    with pytest.raises(BadData, match=re.escape("board.toml")):
        device.load(tmp_path / "board.toml")


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"board\.toml is not TOML: .*line 2"):
        device.load(write(tmp_path, "id = 1\nname == 2\n"))
    (tmp_path / "board.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadData, match="is not TOML"):
        device.load(tmp_path / "board.toml")


def test_unknown_ids_and_missing_files() -> None:
    with pytest.raises(UsageError, match=r"unknown device 'pixle-8'\. Did you mean 'pixel-8'"):
        device.load("pixle-8")
    with pytest.raises(UsageError, match="no device profile at"):
        device.load("nowhere/board.toml")
    with pytest.raises(UsageError, match=r"unknown device '\.\.'"):
        device.load("..")


def test_sources_may_be_written_without_quotes(tmp_path: Path) -> None:
    plain = write(tmp_path, BOARD)
    quoted = device.load(plain)
    plain.write_text(BOARD.replace('"memory.ram_gib" =', "memory.ram_gib ="))
    assert device.load(plain) == quoted


@pytest.mark.parametrize(
    ("os_name", "system"),
    [
        ("Android 14", ("Android", (14,))),
        ("macOS 15.1", ("macOS", (15, 1))),
        ("iOS 17.0.1", ("iOS", (17, 0, 1))),
        ("Debian GNU/Linux 12 (bookworm)", None),
        ("Android", None),
    ],
)
def test_names_of_systems(
    tmp_path: Path, os_name: str, system: tuple[str, tuple[int, ...]] | None
) -> None:
    text = BOARD.replace('os = "Linux"', f'os = "{os_name}"')
    assert device.load(write(tmp_path, text)).system == system


def test_a_profile_is_frozen() -> None:
    profile = device.load("pixel-8")
    with pytest.raises(ValidationError, match="frozen"):
        profile.name = "other"  # type: ignore[misc]


def test_digest_is_of_the_content(tmp_path: Path) -> None:
    first = device.load(write(tmp_path, BOARD))
    reordered = BOARD.replace('soc = "ABC1"\nos = "Linux"', 'os = "Linux"\nsoc = "ABC1"')
    assert device.load(write(tmp_path, f"# a comment\n{reordered}")).digest() == first.digest()
    changed = device.load(write(tmp_path, BOARD.replace("ghz = 1.5", "ghz = 1.6")))
    assert changed.digest() != first.digest()
    assert re.fullmatch(r"[0-9a-f]{64}", first.digest())


def test_little_cores_count_where_there_are_no_others(tmp_path: Path) -> None:
    little = BOARD.replace("ghz = 1.5", 'ghz = 1.5, role = "little"')
    assert device.load(write(tmp_path, little)).threads == 2


def test_an_installed_wheel_finds_its_own_profiles(tmp_path: Path) -> None:
    """The wheel's layout: profiles inside the package, and someone's `devices` beside it."""
    package = Path(edgekit.__file__).parent
    for name in ("__init__.py", "errors.py", "names.py"):
        (tmp_path / "edgekit").mkdir(exist_ok=True)
        shutil.copy(package / name, tmp_path / "edgekit" / name)
    shutil.copytree(package / "device", tmp_path / "edgekit" / "device")
    shutil.copytree(loader._directory(), tmp_path / "edgekit" / "_devices")
    (tmp_path / "edgekit" / "_devices" / "pixel-8.toml").unlink()
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "host.toml").write_text("")
    code = "import edgekit.device as d; print(d.__file__, *d.available(), d.load('host').id)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    file, *names = done.stdout.split()
    assert Path(file).is_relative_to(tmp_path.resolve())
    assert names == [*(name for name in IDS if name != "pixel-8"), "host"]


# -- which artifacts to make ----------------------------------------------------------------------


def jobs(*names: str, targets: tuple[str, ...] = (), schemes: tuple[str, ...] = ()) -> list[Any]:
    made = device.plan_targets([device.load(name) for name in names], targets, schemes)
    return [(j.target, j.scheme, j.delegate, j.devices, j.threads) for j in made]


def test_without_names_each_target_gets_its_preferred_scheme() -> None:
    runs = {t.target: t.delegate for t in device.load("pixel-8").targets if not t.when_named}
    expected = [(t, "w8a8", runs[t], ("pixel-8",), 5) for t in TARGETS if t in runs]
    assert jobs("pixel-8") == expected
    assert expected[0][0] == "tflite" and len(expected) >= 2


def test_devices_share_jobs() -> None:
    names, schemes = ("core-ultra", "raspberry-pi-5", "pixel-8"), ("fp32", "int8", "w8a8")
    assert jobs(*names, targets=FIRST, schemes=schemes) == [
        ("tflite", "fp32", "xnnpack", ("core-ultra", "raspberry-pi-5", "pixel-8"), 4),
        ("tflite", "w8a8", "xnnpack", ("core-ultra", "raspberry-pi-5", "pixel-8"), 4),
        ("openvino", "fp32", "cpu", ("core-ultra", "raspberry-pi-5"), 4),
        ("openvino", "w8a8", "cpu", ("core-ultra", "raspberry-pi-5"), 4),
        ("onnxruntime", "fp32", "cpu", ("core-ultra", "raspberry-pi-5", "pixel-8"), 4),
        ("onnxruntime", "w8a8", "cpu", ("core-ultra", "raspberry-pi-5", "pixel-8"), 4),
    ]


def test_x86_without_vnni_gets_variants_where_kernels_saturate() -> None:
    devices = [device.load(n) for n in ("core-ultra", "intel-nuc", "pixel-8")]
    made = device.plan_targets(devices, FIRST)
    assert [(j.id, j.variant, j.devices) for j in made] == [
        ("tflite-w8a8", None, ("core-ultra", "intel-nuc", "pixel-8")),
        ("openvino-w8a8", None, ("core-ultra",)),
        ("openvino-w8a8-x86-no-vnni", "x86-no-vnni", ("intel-nuc",)),
        ("onnxruntime-w8a8", None, ("core-ultra", "pixel-8")),
        ("onnxruntime-w8a8-x86-no-vnni", "x86-no-vnni", ("intel-nuc",)),
    ]
    floats = device.plan_targets([device.load("intel-nuc")], (), ("fp32",))
    assert all(job.variant is None for job in floats)


@pytest.mark.parametrize(
    ("arch", "flags", "lacks"),
    [
        ("x86_64", {}, True),  # unknown is not known to be safe
        ("x86_64", {"avx2": True}, True),
        ("x86_64", {"avx_vnni": False, "avx512_vnni": False, "amx_int8": False}, True),
        ("x86_64", {"avx_vnni": True}, False),
        ("x86_64", {"avx512_vnni": True}, False),
        ("x86_64", {"amx_int8": True}, False),
        ("arm64", {}, False),
        ("arm64", {"dotprod": False}, False),
    ],
)
def test_who_lacks_vnni(arch: Any, flags: dict[str, bool], lacks: bool) -> None:
    assert device.Isa(arch=arch, **flags).lacks_vnni is lacks


def test_a_device_named_twice_counts_once() -> None:
    assert jobs("pixel-8", "pixel-8", targets=("tflite", "tflite")) == [
        ("tflite", "w8a8", "xnnpack", ("pixel-8",), 5)
    ]


def test_a_target_needs_one_of_the_devices_only() -> None:
    made = jobs("pixel-8", "core-ultra", targets=("openvino", "tflite"))
    assert [(target, devices) for target, _, _, devices, _ in made] == [
        ("tflite", ("pixel-8", "core-ultra")),
        ("openvino", ("core-ultra",)),
    ]


@pytest.mark.parametrize(
    ("targets", "schemes", "error", "message"),
    [
        (
            ("openvino",),
            (),
            UnsupportedError,
            "cannot run target openvino.*no ready-made",
        ),
        (
            ("tflite", "openvino"),
            (),
            UnsupportedError,
            "devices runs target 'openvino'",
        ),
        (("tflite",), ("w4",), UnsupportedError, "'pixel-8' cannot run target tflite with .* w4"),
        (("tflite",), ("w8a8", "w4"), UnsupportedError, "carries scheme 'w4'"),
        (("tflit",), (), UsageError, "unknown target 'tflit'. Did you mean 'tflite'"),
        ((), ("int9",), UsageError, "unknown scheme 'int9'. Did you mean 'int8'"),
    ],
)
def test_what_was_named_is_never_passed_over(
    targets: tuple[str, ...], schemes: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        jobs("pixel-8", targets=targets, schemes=schemes)
    if error is UnsupportedError:
        assert "pixel-8 runs tflite (w8a8, w8a8-dyn, w8, w8a16, fp16, fp32), " in str(raised.value)
        assert "onnxruntime (w8a8, w8a8-dyn, w8, w4, fp16, fp32)" in str(raised.value)


def test_chips_that_do_not_multiply_int8_faster_get_int8_weights_from_core_ml() -> None:
    assert jobs("iphone-12", "iphone-15-pro", targets=("coreml",)) == [
        ("coreml", "w8", "coreml", ("iphone-12",), 2),
        ("coreml", "w8a8", "coreml", ("iphone-15-pro",), 2),
    ]


def test_a_device_that_gets_nothing_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="'pixel-8' cannot run target openvino"):
        jobs("core-ultra", "pixel-8", targets=("openvino",))
    with pytest.raises(UsageError, match="no device"):
        device.plan_targets([])


def test_two_profiles_of_one_id_are_refused(tmp_path: Path) -> None:
    first = device.load(write(tmp_path, BOARD))
    other = device.load(write(tmp_path, BOARD.replace("cores = 2", "cores = 4")))
    with pytest.raises(UsageError, match="two different device profiles have the id 'my-board'"):
        device.plan_targets([first, other])


def test_a_profile_may_name_the_null_target(tmp_path: Path) -> None:
    entry = '[[targets]]\ntarget = "null"\nschemes = ["fp32"]\ndelegate = "cpu"\n[sources]'
    null = BOARD.replace("[sources]", entry)
    made = device.plan_targets([device.load(write(tmp_path, null))], ["null"], ["fp32"])
    assert [(job.target, job.scheme) for job in made] == [("null", "fp32")]


def test_json_form_reads_back() -> None:
    profile = device.load("galaxy-s24")
    document = json.loads(json.dumps(profile.to_json(), allow_nan=False))
    assert document["schema"] == "edgekit.device/1"
    assert device.Device.model_validate_json(json.dumps(document), strict=True) == profile
    assert all(set(t["schemes"]) <= set(SCHEMES) for t in document["targets"])
