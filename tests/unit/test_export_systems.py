"""What a device's system is too old for is refused before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit import device
from edgekit.device import Device, plan_targets
from edgekit.errors import UnsupportedError
from edgekit.export.systems import check_systems
from edgekit.names import through_target

SHIPPED = Path(device.__file__).parents[2] / "devices"


def phone(tmp_path: Path, os: str, profile: str = "iphone-12") -> Device:
    """A shipped profile that says another system."""
    shipped = device.load(profile)
    text = (SHIPPED / f"{profile}.toml").read_text()
    assert f'os = "{shipped.os}"' in text
    path = tmp_path / f"{profile}.toml"
    path.write_text(text.replace(f'os = "{shipped.os}"', f'os = "{os}"'))
    return device.load(path)


def check(profile: Device, scheme: str, target: str = "coreml") -> None:
    check_systems(plan_targets([profile], [target], [scheme]), {profile.id: profile})


@pytest.mark.parametrize(
    ("os", "scheme", "carried"),
    [
        ("iOS 17.6", "w4", "w8, fp16, w8a8, fp32"),
        ("iOS 16", "w8a8", "fp16, fp32"),
        ("iOS 16.7.2", "w8", "fp16, fp32"),
    ],
)
def test_what_needs_a_newer_system_is_refused(
    tmp_path: Path, os: str, scheme: str, carried: str
) -> None:
    with pytest.raises(UnsupportedError, match=f"coreml {scheme} needs iOS .*iphone-12.*{os}") as e:
        check(phone(tmp_path, os), scheme)
    assert f"({carried})" in str(e.value.hint)


def test_where_no_scheme_is_left_the_target_is_to_go(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="coreml fp32 needs iOS 16") as e:
        check(phone(tmp_path, "iOS 15.8"), "fp32")
    assert "leave coreml out" in str(e.value.hint)


@pytest.mark.parametrize(
    ("os", "scheme", "target"),
    [
        ("iOS 17", "w8a8", "coreml"),
        ("iOS 16", "fp16", "coreml"),
        ("iOS 18.1", "w4", "coreml"),
        ("iOS 15", "w8a8", "tflite"),
        ("some build", "w4", "coreml"),
    ],
)
def test_what_a_system_runs_is_made(tmp_path: Path, os: str, scheme: str, target: str) -> None:
    check(phone(tmp_path, os), scheme, target)


def test_an_ipads_versions_are_an_iphones(tmp_path: Path) -> None:
    check(phone(tmp_path, "iPadOS 18", "ipad"), "w4")
    with pytest.raises(UnsupportedError, match=r"needs iPadOS 18.*iPadOS 17"):
        check(phone(tmp_path, "iPadOS 17.2", "ipad"), "w4")


@pytest.mark.parametrize("profile", [d.stem for d in sorted(SHIPPED.glob("*.toml"))])
def test_shipped_profiles_run_all_that_they_list(profile: str) -> None:
    shipped = device.load(profile)
    for entry in shipped.targets:
        for scheme in entry.schemes:
            through = through_target(entry.target, entry.delegate)
            jobs = plan_targets([shipped], [through], [scheme])
            check_systems(jobs, {shipped.id: shipped})
