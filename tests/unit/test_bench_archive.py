"""The worker as one file: what is in it, and that a device with numpy alone can run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bench.archive import worker_archive, worker_modules
from edgekit.errors import StorageError
from edgekit.runtime.session import session_targets
from edgekit.signature import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", (1, 4)),), (TensorSpec("y", (1, 3)),))

IMPORT = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    importlib.import_module(name)
print(*(name for name in sys.modules if not name.startswith("edgekit")))
print(*(name for name in sys.modules if name.startswith("edgekit")))
"""


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as it is on a device: the worker, an artifact, its feeds; numpy apart from it."""
    folder = tmp_path_factory.mktemp("device")
    worker_archive(folder / "worker.pyz")
    site = folder / "site"
    site.mkdir()
    home = Path(np.__file__).parent
    for name in (home.name, "numpy.libs"):
        if (home.parent / name).exists():
            (site / name).symlink_to(home.parent / name)
    rng = np.random.default_rng(0)
    shapes = {"w0": (4, 5), "b0": (5,), "w1": (5, 3), "b1": (3,)}
    np.savez(folder / "a.npz", **{k: rng.standard_normal(v).astype("f") for k, v in shapes.items()})
    np.savez(folder / "feeds.npz", x=np.ones((1, 4), np.float32))
    return folder


def ask(device: Path, **request: Any) -> dict[str, Any]:
    """The worker's answer, run elsewhere, with nothing to import but numpy and the archive."""
    (device / "request.json").write_text(json.dumps({"nonce": "n0", **request}))
    done = subprocess.run(
        [sys.executable, "-S", str(device / "worker.pyz"), str(device / "request.json")],
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(device / "site")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.count("\n") == 1
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer.pop("nonce") == "n0"
    return answer


def test_the_same_sources_give_the_same_bytes(tmp_path: Path) -> None:
    first = worker_archive(tmp_path / "a.pyz").read_bytes()
    assert worker_archive(tmp_path / "b.pyz").read_bytes() == first
    with zipfile.ZipFile(tmp_path / "a.pyz") as archive:
        names = archive.namelist()
    assert names == ["__main__.py", *sorted(names[1:])]
    assert len(first) < 400_000  # it goes over adb and ssh, to many devices
    with pytest.raises(StorageError, match="can't be written"):
        worker_archive(tmp_path / "no" / "folder.pyz")


def test_it_measures_with_numpy_alone(device: Path) -> None:
    stated = ask(device, op="signature", target="null", path="a.npz")["signature"]
    assert Signature.from_json(stated) == SIGNATURE
    limits = {"warmup_runs": 2, "warmup_seconds": 0.1, "runs": 5, "max_seconds": 1.0}
    found = ask(
        device,
        op="bench",
        target="null",
        path="a.npz",
        signature=stated,
        feeds="feeds.npz",
        threads=1,
        **limits,
    )
    assert len(found["samples_ms"]) == 5 and min(found["samples_ms"]) > 0
    assert found["runtime_version"] == f"numpy {np.__version__}"


def test_it_says_what_machine_it_is_on(device: Path) -> None:
    facts = ask(device, op="facts")["facts"]
    assert facts["machine"] == os.uname().machine
    assert facts["packages"] == {}  # no wheel is installed there: only a folder of numpy's
    assert facts["state"]["load_average"] >= 0


def test_a_runtime_that_the_device_lacks_is_named(device: Path) -> None:
    error = ask(device, op="signature", target="onnxruntime", path="a.npz")["error"]
    assert error == {
        "kind": "MissingDependency",
        "message": "onnxruntime is not installed",
        "hint": "pip install onnxruntime",
    }
    error = ask(device, op="explode")["error"]
    assert error["kind"] == "BadData" and "'explode' is none of bench" in error["message"]


def test_exactly_what_the_worker_imports_is_in_it(device: Path) -> None:
    """Every module of edgekit that it could import is there; none of the workshop is."""
    names = {module.as_posix() for module in worker_modules()}
    modules = [n.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for n in names]
    done = subprocess.run(
        [sys.executable, "-S", "-c", IMPORT, str(device / "worker.pyz"), *sorted(modules)],
        env={"PYTHONPATH": str(device / "site")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    tops, ours = done.stdout.splitlines()
    assert set(ours.split()) == set(modules)
    assert not {"torch", "pydantic", "click", "PIL", "importlib.metadata"} & set(tops.split())
    sessions = {f"edgekit.runtime.session_{t.replace('-', '_')}" for t in session_targets()}
    assert sessions <= set(modules)


def test_a_device_without_numpy_is_told_so(device: Path) -> None:
    (device / "bare.json").write_text(json.dumps({"nonce": "n2", "op": "facts"}))
    done = subprocess.run(
        [sys.executable, "-S", str(device / "worker.pyz"), str(device / "bare.json")],
        env={},
        capture_output=True,
        text=True,
        timeout=60,
    )
    answer = json.loads(done.stdout)
    assert answer["nonce"] == "n2" and answer["error"]["kind"] == "MissingDependency"
    assert answer["error"]["message"].startswith("numpy does not load on the device: No module")


def test_an_old_python_is_told_so_in_the_workers_own_words(device: Path) -> None:
    with zipfile.ZipFile(device / "worker.pyz") as archive:
        main = archive.read("__main__.py").decode()
    (device / "old.json").write_text(json.dumps({"nonce": "n1", "op": "facts"}))
    code = f"import sys; sys.version_info = (3, 9, 2)\n{main}"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(device / "old.json")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    answer = json.loads(done.stdout)
    assert answer["nonce"] == "n1"
    said = answer["error"]["message"]
    assert said == "the device's python3 is 3.9.2; the worker needs 3.11 or later"
