"""The worker as one file that a device can run: ``python3 worker.pyz REQUEST.json``.

A zipapp (PEP 441) of exactly the modules that the worker needs. numpy and the runtime's own wheel
are all that the device has to have beside Python. The same sources give the same bytes, so that
what lies on a device already can be told by its hash.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import edgekit
from edgekit.errors import BadData, StorageError

__all__ = ["worker_archive", "worker_modules"]

_ROOT = Path(edgekit.__file__).resolve().parent
_FIXED = (1980, 1, 1, 0, 0, 0)  # the first time that a zip can state

# What the worker imports of edgekit; the runtimes' own files are found by their names.
_MODULES = (
    "__init__.py",
    "errors.py",
    "names.py",
    "signature.py",
    "bench/__init__.py",
    "bench/worker.py",
    "bench/_*.py",
    "runtime/__init__.py",
    "runtime/_silence.py",
    "runtime/coreml_plan.py",
    "runtime/cpu.py",
    "runtime/ptl.py",
    "runtime/ptl_pickle.py",
    "runtime/session.py",
    "runtime/session_*.py",
)

# It runs before anything else is imported, on whatever Python a device has, and so is written for
# an old one: a device that lacks what the worker needs must be told so in the worker's own words.
_MAIN = b"""\
import json
import sys


def refuse(message, hint):
    with open(sys.argv[1], encoding="utf-8") as file:
        nonce = json.load(file)["nonce"]
    error = {"kind": "MissingDependency", "message": message, "hint": hint}
    print(json.dumps({"nonce": nonce, "error": error}))
    sys.exit(0)


if sys.version_info < (3, 11):
    found = ".".join(str(n) for n in sys.version_info[:3])
    refuse(
        "the device's python3 is %s; the worker needs 3.11 or later" % found,
        "install a newer Python there, and name it as the one to use",
    )
try:
    import numpy
except ImportError as error:
    refuse("numpy does not load on the device: %s" % error, "pip install numpy, on the device")

from edgekit.bench.worker import main

sys.exit(main(sys.argv[1:]))
"""


def worker_modules() -> list[Path]:
    """The sources that the archive holds, relative to the folder that ``edgekit`` lies in, sorted.

    Raises:
        BadData: this installation lacks one.
    """
    found: set[Path] = set()
    for pattern in _MODULES:
        paths = sorted(_ROOT.glob(pattern))
        if not paths:
            raise BadData(
                f"the worker's module edgekit/{pattern} is not in {_ROOT}",
                hint="install edgekit anew; as files, not as one zip",
            )
        found.update(path.relative_to(_ROOT.parent) for path in paths)
    return sorted(found)


def worker_archive(out: Path) -> Path:
    """Writes the worker as one file.

    Args:
        out: where; the folder must be there. A file of that name is replaced.

    Returns:
        ``out``.

    Raises:
        BadData: this installation lacks one of the modules.
        StorageError: ``out`` can't be written.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "__main__.py", _MAIN)
        for module in worker_modules():
            _add(archive, module.as_posix(), (_ROOT.parent / module).read_bytes())
    try:
        out.write_bytes(buffer.getvalue())
    except OSError as error:
        raise StorageError(f"the worker can't be written to {out}: {error.strerror}") from error
    return out


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, _FIXED)
    entry.compress_type = zipfile.ZIP_STORED  # zlib builds give different bytes
    entry.create_system = 3  # Unix, whatever system this is
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)
