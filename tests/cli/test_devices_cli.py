"""`edgekit devices` and `edgekit targets`, run through the real command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekit import device, schemas
from edgekit.cli.main import main
from edgekit.device import loader
from edgekit.names import TARGETS, install_command, through_target


@pytest.fixture
def document(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command with ``--json`` and gives its exit code and its one, valid document."""

    def run(*args: str) -> tuple[int, dict[str, Any]]:
        code = main(list(args))
        out = capsys.readouterr().out
        found = json.loads(out)
        schemas.validate(found)
        return code, found

    return run


def test_list(document: Any) -> None:
    code, found = document("devices", "--json")
    assert code == 0
    assert [row["id"] for row in found["devices"]] == device.available()
    pixel = next(row for row in found["devices"] if row["id"] == "pixel-8")
    assert pixel == {
        "id": "pixel-8", "name": "Google Pixel 8", "soc": "Google Tensor G3", "arch": "arm64",
        "targets": ["tflite", "executorch", "onnxruntime", "torch-mobile"], "threads": 5,
    }  # fmt: skip


def test_list_for_a_reader(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["id", *device.available()]


@pytest.mark.parametrize("name", device.available())
def test_show(name: str, document: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = document("devices", "show", name, "--json")
    profile = device.load(name)
    assert (code, found) == (0, profile.to_json())
    assert document("devices", "--json", "show", name)[1] == found
    assert main(["devices", "show", name]) == 0
    text = capsys.readouterr().out
    assert profile.digest() in text
    for figure in profile.figures():
        assert figure in text
        assert profile.source(figure) in text
    for accelerator in profile.accelerators:
        assert accelerator.reason in text and accelerator.advice in text
    for entry in profile.targets:
        assert entry.note in text


def test_show_an_unknown_device(document: Any) -> None:
    code, found = document("devices", "show", "pixle-8", "--json")
    assert code == 2
    assert found["error"]["kind"] == "UsageError"
    assert "Did you mean 'pixel-8'?" in found["error"]["message"]


def test_show_a_file_of_ones_own(document: Any, tmp_path: Path) -> None:
    text = (loader._directory() / "pixel-8.toml").read_text()
    path = tmp_path / "my.toml"
    path.write_text(text.replace('id = "pixel-8"', 'id = "my-phone"'))
    code, found = document("devices", "show", str(path), "--json")
    assert (code, found["id"]) == (0, "my-phone")


def test_check_all(document: Any) -> None:
    code, found = document("devices", "check", "--json")
    assert (code, found["passed"]) == (0, True)
    assert [p["id"] for p in found["profiles"]] == device.available()
    ultra = next(p for p in found["profiles"] if p["id"] == "core-ultra")
    assert (ultra["file"], ultra["unverified"]) == ("core-ultra.toml", ["memory"])


def test_check_names_a_figure_without_source(
    document: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (loader._directory() / "pixel-8.toml").read_text()
    path = tmp_path / "my.toml"
    path.write_text(text.replace('"memory.ram_gib" = "phonearena id151181"\n', ""))
    problem = "memory.ram_gib: figure without source; name it in sources or unverified"
    code, found = document("devices", "check", str(path), "pixel-8", "--json")
    assert (code, found["passed"]) == (1, False)
    assert found["profiles"] == [
        {"file": "my.toml", "id": None, "passed": False, "problems": [problem], "unverified": []},
        {
            "file": "pixel-8.toml", "id": "pixel-8", "passed": True, "problems": [],
            "unverified": ["accelerators.Google TPU (G3)"],
        },
    ]  # fmt: skip
    assert main(["devices", "check", str(path)]) == 1
    assert problem in capsys.readouterr().out


def test_check_a_missing_file(document: Any) -> None:
    code, found = document("devices", "check", "nowhere.toml", "--json")
    assert (code, found["error"]["kind"]) == (2, "UsageError")


def test_targets(document: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = document("targets", "--json")
    assert code == 0
    rows = {row["id"]: row for row in found["targets"]}
    assert list(rows)[: len(TARGETS)] == list(TARGETS)
    for row in rows.values():
        assert row["installed"] == (row["version"] is not None) == (row["install"] is None)
        assert row["install"] in (None, install_command(row["extra"]))
    assert main(["targets"]) == 0
    text = capsys.readouterr().out
    assert all(row["suffix"] in text for row in rows.values())


@pytest.mark.parametrize("name", device.available())
def test_targets_carry_what_the_profiles_promise(name: str, document: Any) -> None:
    rows = {row["id"]: row for row in document("targets", "--json")[1]["targets"]}
    for entry in device.load(name).targets:
        row = rows[through_target(entry.target, entry.delegate)]
        assert entry.delegate in row["delegates"]
        assert set(entry.schemes) <= set(row["schemes"])


@pytest.mark.parametrize(
    "args", [["devices"], ["devices", "check"], ["devices", "--help"], ["targets", "--help"]]
)
def test_no_framework_is_imported(args: list[str]) -> None:
    heavy = ("torch", "onnx", "onnxruntime", "openvino", "tensorflow", "numpy")
    code = (
        "import sys; from edgekit.cli.main import main; "
        f"assert main({args!r}) == 0; "
        f"sys.exit(', '.join(m for m in {heavy!r} if m in sys.modules) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
