"""Bundles: what a good one gives, and which manifests are refused."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import operator
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import BadData, TrustError, UnsupportedError, UsageError
from edgekit.runtime import cpu
from edgekit.runtime.bundle import Bundle, canonical_json, directory_digest
from edgekit.runtime.golden import check_golden, pack_golden, unpack_golden
from edgekit.runtime.manifest import parse_manifest
from edgekit.runtime.preprocess import ImagePreprocess
from edgekit.schemas import validate

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


# What a good bundle gives.


def test_a_bundle_gives_its_artifacts_and_runs_them(
    write: Callable[..., Path], bundle_contents: Contents
) -> None:
    with Bundle.open(write(*bundle_contents)) as bundle:
        assert (bundle.name, bundle.version, bundle.labels) == ("chain", "1.0", tuple("abcd"))
        assert bundle.preprocess() is None
        assert [a.id for a in bundle.artifacts] == ["null-fp32", "null-w8a8"]
        feeds, outputs = bundle.golden()
        session = bundle.session(bundle.artifact(scheme="fp32"), threads=2)
        assert session.threads == 2
        got = session.run({"x": feeds["x"][2:3]})["y"]
        np.testing.assert_allclose(got, outputs["y"][2:3], rtol=1e-5)
        assert bundle.read("golden.npz") == bundle_contents[0]["golden.npz"]
        session.close()


def test_directory_and_zip_of_one_bundle_have_one_digest(
    tmp_path: Path, write_directory: Writer, write_zip: Writer, bundle_contents: Contents
) -> None:
    digests = set()
    for path in (
        write_directory(tmp_path / "b", *bundle_contents),
        write_zip(tmp_path / "b.zip", *bundle_contents),
    ):
        with Bundle.open(path) as bundle:
            digests.add(bundle.digest)
    assert len(digests) == 1


def test_an_artifact_is_chosen_by_what_is_asked(null_bundle: Path) -> None:
    with Bundle.open(null_bundle) as bundle:
        assert bundle.artifact("null-w8a8").scheme == "w8a8"
        assert bundle.artifact(target="null", scheme="int8").id == "null-w8a8"
        assert bundle.artifact(device="pixel-8").id == "null-fp32"
        with pytest.raises(UsageError, match=r"2 artifacts.*those: null-fp32, null-w8a8"):
            bundle.artifact(target="null", device="raspberry-pi-5")
        with pytest.raises(UsageError, match=r"0 artifacts.*target tflite; it has: null-fp32"):
            bundle.artifact(target="tflite")
        with pytest.raises(UsageError, match="unknown scheme"):
            bundle.artifact(scheme="w3")


def test_an_older_runtime_than_required_is_refused(
    write: Callable[..., Path], bundle_contents: Contents
) -> None:
    bundle_contents[1]["artifacts"][0]["requires"]["min_version"] = "99.1"
    with Bundle.open(write(*bundle_contents)) as bundle:
        with pytest.raises(UnsupportedError, match=r"needs numpy 99\.1 or newer"):
            bundle.session(bundle.artifact("null-fp32"))
        bundle.session(bundle.artifact("null-w8a8")).close()


def test_a_zip_is_unpacked_privately_and_removed(
    tmp_path: Path, write_zip: Writer, bundle_contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    bundle = Bundle.open(write_zip(tmp_path / "b.zip", *bundle_contents))
    assert list((tmp_path / "temporary").iterdir()) == []  # nothing before it is asked for
    path = bundle.place(bundle.artifact("null-w8a8"))
    assert path == bundle.place(bundle.artifact("null-w8a8"))
    (root,) = (tmp_path / "temporary").iterdir()
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert [p.name for p in root.rglob("*") if p.is_file()] == ["w8a8.npz"]
    bundle.close()
    assert not root.exists()


def test_preprocessing_is_built_from_the_manifest(
    write: Callable[..., Path], bundle_contents: Contents
) -> None:
    step = ImagePreprocess(4, 6)
    bundle_contents[1]["preprocess"] = step.to_json()
    with Bundle.open(write(*bundle_contents)) as bundle:
        assert bundle.preprocess() == step
    bundle_contents[1]["preprocess"] = {"kind": "sound"}
    with Bundle.open(write(*bundle_contents)) as bundle, pytest.raises(BadData, match="sound"):
        bundle.preprocess()


def test_the_manifest_that_the_reader_takes_fits_its_schema(bundle_contents: Contents) -> None:
    validate(bundle_contents[1])


# Golden vectors.


def test_golden_vectors_pass_on_the_good_artifact_and_fail_on_a_broken_one(
    write: Callable[..., Path], bundle_contents: Contents
) -> None:
    with Bundle.open(write(*bundle_contents)) as bundle:
        session = bundle.session(bundle.artifact("null-w8a8"))
        check = bundle.check_golden(session)
        assert check.passed
        assert (check.n, check.limit_db) == (5, 15.0)
        assert 30 < check.sqnr_db["y"] < 60
        feeds, outputs = bundle.golden()
        swapped = {"y": outputs["y"][:, ::-1]}
        assert not check_golden(session, feeds, swapped, scheme="w8a8").passed
        poisoned = {"y": outputs["y"].copy()}
        poisoned["y"][3, 1] = np.nan
        assert not check_golden(session, feeds, poisoned, scheme="w8a8").passed
        assert not check_golden(session, feeds, outputs, scheme="fp32").passed
        with pytest.raises(BadData, match="do not fit"):
            check_golden(session, feeds, {"z": outputs["y"]}, scheme="w8a8")
        session.close()


def test_golden_vectors_pack_to_the_same_bytes_and_back() -> None:
    x, y = np.arange(6.0, dtype=np.float32).reshape(3, 2), np.arange(3)
    data = pack_golden({"x": x}, {"input.y": y})
    assert data == pack_golden({"x": x.copy()}, {"input.y": y.copy()})
    feeds, outputs = unpack_golden(data)
    assert list(feeds) == ["x"] and list(outputs) == ["input.y"]
    np.testing.assert_array_equal(outputs["input.y"], y)
    with pytest.raises(BadData, match="one number of samples"):
        pack_golden({"x": x}, {"y": y[:2]})
    with pytest.raises(BadData, match="cannot be read"):
        unpack_golden(b"PK\x03\x04 no")


def test_only_the_bundles_own_session_is_checked(null_bundle: Path) -> None:
    with Bundle.open(null_bundle) as bundle, Bundle.open(null_bundle) as other:
        session = other.session(other.artifact("null-fp32"))
        with pytest.raises(UsageError, match="not opened by"):
            bundle.check_golden(session)
        session.close()


# Canonical form and digests.


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": 1.5, "a": ["é", None]}) == '{"a":["é",null],"b":1.5}\n'.encode()
    for bad in (float("nan"), float("inf"), {"a": object()}, "\ud800"):
        with pytest.raises(BadData, match="not JSON"):
            canonical_json({"x": bad})


def test_directory_digest_is_sha256_over_sorted_lines() -> None:
    pairs = [("b/c", "2" * 64), ("a", "1" * 64)]
    text = f"a\0{'1' * 64}\nb/c\0{'2' * 64}\n".encode()
    assert directory_digest(pairs) == hashlib.sha256(text).hexdigest()
    for bad in ([("a", "1"), ("a", "2")], [("a\n", "1")], [("a\0", "1")]):
        with pytest.raises(BadData):
            directory_digest(bad)


def test_what_is_not_there_or_no_bundle_is_bad_data(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("hello")
    os.mkfifo(tmp_path / "fifo")
    for name, words in (
        ("absent", "No such file"),
        ("folder", "no manifest"),
        ("text", "not a zip"),
        ("fifo", "neither"),
    ):
        with pytest.raises(BadData, match=words):
            Bundle.open(tmp_path / name)


# Attacks on the manifest.


def test_ota_27_every_mutated_byte_of_the_manifest_or_a_file_is_refused(
    tmp_path: Path, write_directory: Writer, bundle_contents: Contents
) -> None:
    root = write_directory(tmp_path / "b", *bundle_contents)
    good = (root / "null/fp32.npz").read_bytes()
    for position in range(0, len(good), 97):
        spoiled = bytearray(good)
        spoiled[position] ^= 0x40
        (root / "null/fp32.npz").write_bytes(spoiled)
        with pytest.raises(TrustError, match="hash"):
            Bundle.open(root)
    (root / "null/fp32.npz").write_bytes(good)
    manifest = (root / "manifest.json").read_bytes()
    with Bundle.open(root) as bundle:
        digest = bundle.digest
    for position in range(len(manifest)):
        spoiled = bytearray(manifest)
        spoiled[position] ^= 0x01
        (root / "manifest.json").write_bytes(spoiled)
        try:
            with Bundle.open(root) as bundle:
                assert bundle.digest != digest  # another manifest, but it can't pass for this one
        except (TrustError, BadData):
            pass


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(schema="edgekit.bundle/2"), "edgekit.bundle/2"),
        (lambda m: m.pop("schema"), "schema"),
        (lambda m: m.pop("artifacts"), "artifacts"),
        (lambda m: m.update(files={}), "files"),
        (lambda m: m.update(name=7), "name"),
        (lambda m: m.update(signature={"inputs": 3}), "signature"),
        (lambda m: m["signature"]["inputs"][0].update(dtype="float128"), "signature"),
        (lambda m: m["files"][0].update(bytes=-1), "size or hash"),
        (lambda m: m["files"][0].update(bytes=True), "not int"),
        (lambda m: m["files"][0].update(sha256="../x"), "size or hash"),
        (lambda m: m["files"][0].update(sha256="0" * 64), "listed|hash"),
        (lambda m: m["artifacts"][0].update(sha256="0" * 64), "not that of its files"),
        (lambda m: m["artifacts"][0].update(bytes=1), "not that of its files"),
        (lambda m: m["artifacts"][0].update(path="golden.npz"), "none of its files"),
        (lambda m: m["artifacts"][0].update(scheme="w9"), "no scheme"),
        (lambda m: m["artifacts"][0].update(id="null-w8a8"), "two artifacts"),
        (lambda m: m["artifacts"].append("x"), "not an object"),
        (lambda m: m["artifacts"][0]["files"][0].update(bytes=1), "twice|not that"),
        (lambda m: m["golden"].update(path="null/none.npz"), "golden"),
        (lambda m: m["golden"].update(sha256="0" * 64), "golden"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(
    write: Callable[..., Path],
    bundle_contents: Contents,
    change: Callable[[dict[str, Any]], object],
    words: str,
) -> None:
    files, manifest = bundle_contents
    change(manifest)
    with pytest.raises(TrustError, match=words):
        Bundle.open(write(files, manifest))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]\n",
        b'{"schema":"edgekit.bundle/1","schema":"edgekit.bundle/1"}\n',
        b'{"schema": "edgekit.bundle/1"}\n',
        b'{"schema":"edgekit.bundle/1"}',
        b'{"schema":"edgekit.bundle/1","x":NaN}\n',
        b'{"schema":"edgekit.bundle/1","x":1e999}\n',
        b"[" * 100_000 + b"]" * 100_000 + b"\n",
    ],
)
def test_a_manifest_not_in_canonical_form_is_refused(data: bytes) -> None:
    with pytest.raises(TrustError):
        parse_manifest(data)


def test_a_manifest_that_is_too_large_is_refused() -> None:
    with pytest.raises(TrustError, match="more than"):
        parse_manifest(b" " * (16 * 2**20 + 1))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a JSON document."""
    children = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in children:
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from places(child, (*path, key))


def test_any_value_of_another_type_is_refused_or_harmless(bundle_contents: Contents) -> None:
    refused = 0
    for *way, last in list(places(bundle_contents[1])):
        for value in (None, True, -1, 2**70, 0.5, "", "x", [], [[]], {}, {"x": None}):
            manifest = copy.deepcopy(bundle_contents[1])
            functools.reduce(operator.getitem, way, manifest)[last] = value
            try:
                read = parse_manifest(canonical_json(manifest))
            except TrustError:
                refused += 1
                continue
            assert all(artifact.files for artifact in read.artifacts)
    assert refused > 500


def test_an_artifact_of_several_files_is_hashed_as_a_whole(
    write: Callable[..., Path], bundle_contents: Contents
) -> None:
    files, manifest = bundle_contents
    files["null/fp32.bin"] = b"weights"
    parts = [entry(n, files[n]) for n in ("null/fp32.bin", "null/fp32.npz")]
    whole = directory_digest((p["path"], p["sha256"]) for p in parts)
    size = sum(p["bytes"] for p in parts)
    manifest["files"].append(parts[0])
    manifest["artifacts"][0].update(files=parts, sha256=whole, bytes=size)
    with Bundle.open(write(files, manifest)) as bundle:
        path = bundle.place(bundle.artifact("null-fp32"))
        assert path.with_suffix(".bin").read_bytes() == b"weights"
    manifest["artifacts"][0]["sha256"] = parts[1]["sha256"]
    assert json.loads(canonical_json(manifest)) == manifest
    with pytest.raises(TrustError, match="not that of its files"):
        parse_manifest(canonical_json(manifest))


# Which of an artifact and its variant a processor gets.

VNNI = "x86_64:avx_vnni|avx512_vnni"


@pytest.fixture
def two_ways(bundle_contents: Contents, write_directory: Writer, tmp_path: Path) -> Path:
    """``null-w8a8`` needs VNNI, its variant does not; each was made for a device of its own."""
    files, manifest = bundle_contents
    fp32, default = manifest["artifacts"]
    variant = copy.deepcopy(default) | {
        "id": "null-w8a8-x86-no-vnni",
        "variant": "x86-no-vnni",
        "devices": ["intel-nuc"],
    }
    default["devices"] = ["core-ultra"]
    default["requires"] = {**default["requires"], "isa": [VNNI]}
    manifest["artifacts"] = [fp32, default, variant]
    validate(manifest)
    return write_directory(tmp_path / "two", files, manifest)


def processor(monkeypatch: pytest.MonkeyPatch, arch: str, flags: set[str] | None) -> None:
    monkeypatch.setattr(cpu, "architecture", lambda: arch)
    monkeypatch.setattr(cpu, "flags", lambda: None if flags is None else frozenset(flags))


@pytest.mark.parametrize(
    ("arch", "flags", "chosen"),
    [
        ("x86_64", {"avx2", "avx_vnni"}, "null-w8a8"),
        ("x86_64", {"avx2", "avx512_vnni"}, "null-w8a8"),
        ("x86_64", {"avx2"}, "null-w8a8-x86-no-vnni"),
        ("x86_64", None, "null-w8a8-x86-no-vnni"),  # it can't be told: what is right on all
        ("arm64", None, "null-w8a8"),
    ],
)
def test_a_processor_gets_the_artifact_that_it_runs_rightly(
    two_ways: Path,
    monkeypatch: pytest.MonkeyPatch,
    arch: str,
    flags: set[str] | None,
    chosen: str,
) -> None:
    processor(monkeypatch, arch, flags)
    with Bundle.open(two_ways) as bundle:
        artifact = bundle.artifact(scheme="w8a8")
        assert artifact.id == chosen
        bundle.session(artifact).close()
        # Who names a device or an id is taken at his word: he may be packing for another machine.
        assert bundle.artifact(device="core-ultra", scheme="w8a8").id == "null-w8a8"
        assert bundle.artifact(device="intel-nuc", scheme="w8a8").variant == "x86-no-vnni"
        assert bundle.artifact("null-w8a8").id == "null-w8a8"


def test_an_artifact_that_would_answer_wrongly_is_not_run(
    two_ways: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(monkeypatch, "x86_64", {"avx2"})
    with (
        Bundle.open(two_ways) as bundle,
        pytest.raises(UnsupportedError, match=r"'null-w8a8' needs .* avx_vnni or avx512_vnni"),
    ):
        bundle.session(bundle.artifact("null-w8a8"))


def test_without_a_variant_such_a_processor_is_refused(
    bundle_contents: Contents,
    write_directory: Writer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files, manifest = bundle_contents
    manifest["artifacts"][1]["requires"]["isa"] = [VNNI]
    path = write_directory(tmp_path / "one", files, manifest)
    processor(monkeypatch, "x86_64", {"avx2"})
    with Bundle.open(path) as bundle:
        with pytest.raises(UnsupportedError, match="export one for a device that lacks it"):
            bundle.artifact(scheme="w8a8")
        assert bundle.artifact(scheme="fp32").id == "null-fp32"
    processor(monkeypatch, "x86_64", {"avx_vnni"})
    with Bundle.open(path) as bundle:
        assert bundle.artifact(scheme="w8a8").id == "null-w8a8"


def test_a_variant_alone_is_for_everyone(
    two_ways: Path, monkeypatch: pytest.MonkeyPatch, write_directory: Writer, tmp_path: Path
) -> None:
    manifest = json.loads((two_ways / "manifest.json").read_bytes())
    del manifest["artifacts"][1]
    files = {p: (two_ways / p).read_bytes() for p in (f["path"] for f in manifest["files"])}
    path = write_directory(tmp_path / "alone", files, manifest)
    processor(monkeypatch, "x86_64", {"avx_vnni"})
    with Bundle.open(path) as bundle:
        assert bundle.artifact(scheme="w8a8").variant == "x86-no-vnni"
