"""Attacks on a bundle's files, each refused before a runtime sees a byte."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import BadData, TrustError
from edgekit.runtime.bundle import Bundle, canonical_json
from edgekit.runtime.manifest import check_name

Contents = tuple[dict[str, bytes], dict[str, Any]]
Writer = Callable[..., Path]


def entry(path: str, data: bytes) -> dict[str, Any]:
    """A file entry as the manifest has it."""
    return {"path": path, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.fixture(params=["directory", "zip"])
def write(
    request: pytest.FixtureRequest, tmp_path: Path, write_directory: Writer, write_zip: Writer
) -> Callable[[dict[str, bytes], object], Path]:
    """Writes a bundle in either form."""
    writer = write_directory if request.param == "directory" else write_zip
    return lambda files, manifest: writer(tmp_path / "written.bundle", files, manifest)


# Attacks by name.


OTA_21_NAMES = [
    "",
    ".",
    "..",
    "../x",
    "a/../../x",
    "/x",
    "//x",
    "a//b",
    "a/",
    "a%2e%2e/b",
    "C:\\x",
    "C:/x",
    "a\\b",
    "x\0y",
    "x\ny",
    "x\x7f",
    "~/x",
    "?",
    "#",
    "-rf",
    "a/-rf",
    "$(touch p)",
    "a b",
    "x.",
    "caf\u00e9",
    "cafe\u0301",
    "\u202egnp",
    "a" * 300,
]


@pytest.mark.parametrize("name", OTA_21_NAMES)
def test_ota_21_hostile_names_are_refused(
    write: Callable[..., Path], bundle_contents: Contents, name: str
) -> None:
    with pytest.raises(TrustError, match="not allowed"):
        check_name(name)
    files, manifest = bundle_contents
    manifest["files"].append(entry(name, b"x"))
    with pytest.raises(TrustError, match="not allowed"):
        Bundle.open(write(files, manifest))


def test_ota_21_names_that_bundles_use_are_accepted() -> None:
    for name in ("a", "a/b.tflite", "tflite-w8a8_v1.2+x@y=z,1.npz", "m.mlpackage/Data/.keep"):
        assert check_name(name) == name


@pytest.mark.parametrize(
    ("twin", "words"),
    [
        ("null/FP32.npz", "one file where case"),
        ("MANIFEST.json", "lists itself"),
        ("manifest.json", "lists itself"),
        ("manifest.json/x", "inside another"),
        ("golden.npz/x", "inside another"),
        ("GOLDEN.npz/deep/x", "inside another"),
    ],
)
def test_ota_21_case_fold_twins_and_files_inside_files_are_refused(
    write_directory: Writer, tmp_path: Path, bundle_contents: Contents, twin: str, words: str
) -> None:
    files, manifest = bundle_contents
    manifest["files"].append(entry(twin, b"x"))
    with pytest.raises(TrustError, match=words):
        Bundle.open(write_directory(tmp_path / "b", files, manifest))


# Attacks on the files.


def test_ota_22_an_unlisted_file_is_refused(
    write: Callable[..., Path], bundle_contents: Contents
) -> None:
    files, manifest = bundle_contents
    with pytest.raises(TrustError, match=r"does not list: 'null/evil\.so'"):
        Bundle.open(write({**files, "null/evil.so": b"x"}, manifest))


def test_ota_22_a_missing_file_is_refused(
    write: Callable[..., Path], bundle_contents: Contents
) -> None:
    files, manifest = bundle_contents
    del files["null/w8a8.npz"]
    with pytest.raises(TrustError, match=r"lacks.*null/w8a8\.npz"):
        Bundle.open(write(files, manifest))


@pytest.mark.parametrize("spoil", [lambda d: d + b"x", lambda d: d[:-1], lambda d: b""])
def test_ota_22_a_file_of_another_size_is_refused(
    write: Callable[..., Path], bundle_contents: Contents, spoil: Callable[[bytes], bytes]
) -> None:
    files, manifest = bundle_contents
    files["null/w8a8.npz"] = spoil(files["null/w8a8.npz"])
    with pytest.raises(TrustError, match=r"null/w8a8\.npz"):
        Bundle.open(write(files, manifest))


def test_ota_22_a_symbolic_link_is_refused_even_to_the_right_bytes(null_bundle: Path) -> None:
    target = null_bundle.parent / "outside.npz"
    (null_bundle / "null/fp32.npz").rename(target)
    (null_bundle / "null/fp32.npz").symlink_to(target)
    with pytest.raises(TrustError, match="symbolic link"):
        Bundle.open(null_bundle)


def test_ota_22_a_linked_folder_is_refused(null_bundle: Path) -> None:
    (null_bundle / "null").rename(null_bundle.parent / "elsewhere")
    (null_bundle / "null").symlink_to(null_bundle.parent / "elsewhere")
    with pytest.raises(TrustError, match="symbolic link"):
        Bundle.open(null_bundle)


def test_ota_22_a_linked_manifest_is_refused(null_bundle: Path) -> None:
    (null_bundle / "manifest.json").rename(null_bundle.parent / "m.json")
    (null_bundle / "manifest.json").symlink_to(null_bundle.parent / "m.json")
    with pytest.raises(TrustError, match="link"):
        Bundle.open(null_bundle)


def test_ota_22_a_hard_link_is_read_only_with_the_listed_bytes(null_bundle: Path) -> None:
    path = null_bundle / "null/fp32.npz"
    store = null_bundle.parent / "store"
    store.hardlink_to(path)
    Bundle.open(null_bundle).close()
    store.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(TrustError, match="hash"):
        Bundle.open(null_bundle)


def test_ota_22_a_fifo_is_refused_without_waiting_for_a_writer(null_bundle: Path) -> None:
    (null_bundle / "null/fp32.npz").unlink()
    os.mkfifo(null_bundle / "null/fp32.npz")
    with pytest.raises(TrustError, match="FIFO"):
        Bundle.open(null_bundle)
    (null_bundle / "manifest.json").unlink()
    os.mkfifo(null_bundle / "manifest.json")
    with pytest.raises(TrustError, match="not a regular file"):
        Bundle.open(null_bundle)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
def test_ota_22_a_device_node_is_refused(null_bundle: Path) -> None:
    (null_bundle / "null/fp32.npz").unlink()
    try:
        os.mknod(null_bundle / "null/fp32.npz", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("this container makes no device nodes")
    with pytest.raises(TrustError, match="device node"):
        Bundle.open(null_bundle)


@pytest.mark.parametrize("bit", [stat.S_ISUID, stat.S_ISGID])
def test_ota_22_a_setuid_bit_is_refused(null_bundle: Path, bit: int) -> None:
    (null_bundle / "null/fp32.npz").chmod(0o700 | bit)
    with pytest.raises(TrustError, match="setuid"):
        Bundle.open(null_bundle)


def test_ota_22_a_folder_without_listed_files_is_refused(null_bundle: Path) -> None:
    (null_bundle / "hidden").mkdir()
    with pytest.raises(TrustError, match="'hidden'"):
        Bundle.open(null_bundle)


def test_sec_10_a_file_swapped_between_check_and_load_is_refused(null_bundle: Path) -> None:
    bundle = Bundle.open(null_bundle)
    path = null_bundle / "null/fp32.npz"
    copy = path.with_suffix(".new")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)
    with pytest.raises(TrustError, match="changed after"):
        bundle.session(bundle.artifact("null-fp32"))
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(TrustError, match="hash"):
        bundle.read("null/fp32.npz")
    bundle.close()


# Attacks on the zip.


def rewrite(path: Path, edit: Callable[[zipfile.ZipFile], object]) -> Path:
    """Appends to a zip, whatever zipfile thinks of it."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        edit(archive)
    return path


def test_ota_22_a_duplicate_zip_entry_is_refused(
    tmp_path: Path, write_zip: Writer, bundle_contents: Contents
) -> None:
    path = write_zip(tmp_path / "b.zip", *bundle_contents)
    data = bundle_contents[0]["null/fp32.npz"]
    rewrite(path, lambda z: z.writestr("null/fp32.npz", data))
    with pytest.raises(TrustError, match="twice"):
        Bundle.open(path)


def test_ota_22_local_and_central_names_must_agree(
    tmp_path: Path, write_zip: Writer, bundle_contents: Contents
) -> None:
    path = write_zip(tmp_path / "b.zip", *bundle_contents)
    data = path.read_bytes()
    first = data.index(b"null/fp32.npz")  # the local header stands before the central directory
    path.write_bytes(data[:first] + b"null/fp33.npz" + data[first + 13 :])
    with pytest.raises(TrustError, match="cannot be unpacked"):
        Bundle.open(path)


def test_ota_22_a_zip_bomb_is_refused_before_anything_is_written(
    tmp_path: Path, write_zip: Writer, bundle_contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    files, manifest = bundle_contents
    bomb = bytes(16 * 2**20)
    files["null/zeros.bin"] = bomb
    manifest["files"].append(entry("null/zeros.bin", bomb))
    with pytest.raises(TrustError, match="times its packed size"):
        Bundle.open(write_zip(tmp_path / "b.zip", files, manifest))
    assert list((tmp_path / "temporary").iterdir()) == []


def test_ota_22_an_entry_that_unpacks_to_more_than_listed_is_cut_off(
    tmp_path: Path, write_zip: Writer, bundle_contents: Contents
) -> None:
    files, manifest = bundle_contents
    real = files["null/fp32.npz"]
    files["null/fp32.npz"] = real + b"more"
    path = write_zip(tmp_path / "b.zip", files, manifest)
    with pytest.raises(TrustError, match="unpacks to"):
        Bundle.open(path)
    # The same with both headers lying about the size, so that only unpacking can tell.
    data = bytearray(path.read_bytes())
    wrong, right = struct.pack("<I", len(real) + 4), struct.pack("<I", len(real))
    assert data.count(wrong) >= 2
    path.write_bytes(bytes(data).replace(wrong, right))
    with pytest.raises(TrustError):
        Bundle.open(path)


def test_ota_22_a_manifest_that_states_a_giant_file_is_refused(
    tmp_path: Path, write_zip: Writer, bundle_contents: Contents
) -> None:
    files, manifest = bundle_contents
    manifest["files"].append({"path": "big", "bytes": 2**60, "sha256": "0" * 64})
    files["big"] = b"x"
    with pytest.raises(TrustError, match="more than"):
        Bundle.open(write_zip(tmp_path / "b.zip", files, manifest))


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (stat.S_IFLNK | 0o777, "symbolic link"),
        (stat.S_IFIFO | 0o600, "FIFO"),
        (stat.S_IFCHR | 0o600, "device node"),
        (stat.S_IFREG | 0o4755, "setuid"),
    ],
)
def test_ota_22_special_files_in_a_zip_are_refused(
    tmp_path: Path, bundle_contents: Contents, mode: int, words: str
) -> None:
    files, manifest = bundle_contents
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", canonical_json(manifest))
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (mode if name.endswith("fp32.npz") else 0) << 16
            archive.writestr(info, data)
    with pytest.raises(TrustError, match=words):
        Bundle.open(path)


def test_sec_02_a_damaged_or_encrypted_zip_entry_is_refused(
    tmp_path: Path, write_zip: Writer, bundle_contents: Contents
) -> None:
    path = write_zip(tmp_path / "b.zip", *bundle_contents)
    good = path.read_bytes()
    central = good.index(b"PK\x01\x02")
    encrypted = bytearray(good)
    encrypted[6] |= 1
    encrypted[central + 8] |= 1
    path.write_bytes(encrypted)
    with pytest.raises(TrustError, match="encrypted"):
        Bundle.open(path)
    packed = bytearray(good)
    packed[central + 10] = 14  # LZMA
    path.write_bytes(packed)
    with pytest.raises(TrustError, match="do not use"):
        Bundle.open(path)
    path.write_bytes(good)
    with Bundle.open(path) as bundle:
        digest = bundle.digest
    refused = 0
    for position in range(40, central, 61):
        damaged = bytearray(good)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            with Bundle.open(path) as bundle:  # a time in a header means nothing
                assert bundle.digest == digest
        except (TrustError, BadData):
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("where", ["before", "after", "comment", "two"])
def test_sec_02_a_zip_joined_to_something_else_is_refused(
    tmp_path: Path, write_zip: Writer, bundle_contents: Contents, where: str
) -> None:
    path = write_zip(tmp_path / "b.zip", *bundle_contents)
    data = path.read_bytes()
    if where == "comment":
        rewrite(path, lambda z: setattr(z, "comment", b"hello"))
    else:
        joined = {"before": b"#!/bin/sh\n" + data, "after": data + b"tail", "two": data + data}
        path.write_bytes(joined[where])
    with pytest.raises((TrustError, BadData)):
        Bundle.open(path)


def test_zip_tools_that_write_folder_entries_are_read(
    tmp_path: Path, write_zip: Writer, bundle_contents: Contents
) -> None:
    path = write_zip(tmp_path / "b.zip", *bundle_contents)
    rewrite(path, lambda z: z.mkdir("null"))
    Bundle.open(path).close()
