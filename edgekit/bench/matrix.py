"""A matrix of measurements: artifacts x devices x settings, as a TOML file says.

wait = 600                      # seconds for a device that another job has
retries = 1                     # whole runs anew, where a link broke

[[subjects]]
path = "mobilenet.zip"          # a bundle, or one artifact; relative to this file
artifacts = ["tflite-fp32", "tflite-w8a8"]

[[devices]]
url = "ssh://pi@bench-3?python=/srv/venv/bin/python"
device = "raspberry-pi-5"       # its profile, for threads, budgets and what it is called

[[devices]]
url = "adb://29071FDH2004UX"
device = "pixel-8"
[devices.tools.benchmark_model]
path = "tools/benchmark_model"

[[settings]]
threads = 1
[[settings]]
threads = 4
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import edgekit
from edgekit.artifact import fingerprint, sha256_of
from edgekit.bench.measure import Settings
from edgekit.bench.request import parts
from edgekit.bench.runners import parse
from edgekit.bench.subjects import SUFFIXES
from edgekit.bench.vendor import Tool
from edgekit.device import Device, load
from edgekit.errors import BadData, EdgekitError, StorageError, UsageError

__all__ = ["Cell", "Matrix", "read_matrix", "settings_for"]

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SubjectEntry(_Frozen):
    """A bundle, with which of its artifacts (all if empty), or a bare artifact."""

    path: Text
    artifacts: tuple[Text, ...] = ()


class ToolEntry(_Frozen):
    """A vendor's program for a device (`edgekit.bench.vendor.Tool`)."""

    path: Text
    args: tuple[Text, ...] = ()


class DeviceEntry(_Frozen):
    """A device: its URL, its profile's id or path, and programs for it."""

    url: Text
    device: Text | None = None
    tools: dict[str, ToolEntry] = {}


class SettingsEntry(_Frozen):
    """How to measure (`edgekit.bench.measure.Settings`); what is left out, the profile says."""

    threads: Count | None = None
    runs: Count | None = None
    max_seconds: Positive | None = None
    rounds: Count | None = None
    cpus: tuple[Annotated[int, Field(ge=0)], ...] | Literal["big", "little"] | None = None
    max_temperature_c: float | None = None
    cool_down_s: Seconds | None = None
    sustained_s: Seconds | None = None
    profile: bool | None = None


class _File(_Frozen):
    wait: Seconds = 600.0
    retries: Annotated[int, Field(ge=0, le=10)] = 1
    subjects: Annotated[tuple[SubjectEntry, ...], Field(min_length=1)]
    devices: Annotated[tuple[DeviceEntry, ...], Field(min_length=1)]
    settings: Annotated[tuple[SettingsEntry, ...], Field(min_length=1)] = (SettingsEntry(),)


@dataclass(frozen=True)
class Cell:
    """One measurement of a matrix.

    Attributes:
        key: its digest: the same files, device, programs and settings have the same key.
        subject: path of the bundle or artifact.
        artifacts: which of the bundle's, all if empty.
        url: the device's.
        device: its profile, or None.
        tools: programs for it.
        settings: how to measure, in full.
    """

    key: str
    subject: Path
    artifacts: tuple[str, ...]
    url: str
    device: Device | None
    tools: tuple[Tool, ...]
    settings: Settings


@dataclass(frozen=True)
class Matrix:
    """A matrix as it is to be measured.

    Attributes:
        digest: of all of its cells and this version of edgekit.
        cells: in the file's order, the devices' settings innermost.
        wait: seconds to wait for a device.
        retries: how often a whole run is tried anew where the link broke.
    """

    digest: str
    cells: tuple[Cell, ...]
    wait: float
    retries: int


def read_matrix(path: Path) -> Matrix:
    """A matrix from its file.

    Raises:
        UsageError: the file is not there, or names what is not.
        BadData: it is not TOML, or not a matrix; the message lists what is wrong.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        file = _File.model_validate(data)
    except FileNotFoundError as error:
        raise UsageError(f"there is no matrix {str(path)!r}", hint="It is a .toml file.") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadData(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise BadData("\n".join([f"{path} is no matrix:", *lines])) from error
    cells = [
        cell
        for subject in file.subjects
        for device in file.devices
        for cell in _cells(path.parent, subject, device, file.settings)
    ]
    keys = [cell.key for cell in cells]
    if len(set(keys)) != len(keys):
        raise UsageError(f"{path} asks for the same measurement twice")
    digest = fingerprint(cells=keys, edgekit=edgekit.__version__)
    return Matrix(digest, tuple(cells), file.wait, file.retries)


def _cells(
    folder: Path,
    subject: SubjectEntry,
    entry: DeviceEntry,
    settings: tuple[SettingsEntry, ...],
) -> list[Cell]:
    path = folder / subject.path
    content = _digest(path)
    parse(entry.url)
    tools = tuple(Tool(name, folder / t.path, t.args) for name, t in sorted(entry.tools.items()))
    programs = [(tool.name, sha256_of(tool.path), tool.args) for tool in tools]
    device = None if entry.device is None else _profile(folder, entry.device)
    cells = []
    for how in settings:
        full = settings_for(device, **how.model_dump(exclude_none=True))
        key = fingerprint(
            content=content,
            artifacts=subject.artifacts,
            url=entry.url,
            device=None if device is None else device.digest(),
            tools=programs,
            settings=full.to_json(),
        )
        cells.append(Cell(key, path, subject.artifacts, entry.url, device, tools, full))
    return cells


def _profile(folder: Path, name: str) -> Device:
    return load(folder / name if name.endswith(".toml") else name)


def _digest(path: Path) -> str:
    """What a subject's content is: of a bundle, its manifest tells the hash of every file."""
    try:
        if (path / "manifest.json").is_file():
            return sha256_of(path / "manifest.json")
        target = SUFFIXES.get(path.suffix.lower())
        files = [path] if target is None else parts(target, path)
        if not files:
            raise FileNotFoundError
        return fingerprint(files=[(part.name, sha256_of(part)) for part in files])
    except FileNotFoundError as error:
        raise UsageError(f"there is no subject {str(path)!r}") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def settings_for(device: Device | None, **given: Any) -> Settings:
    """How to measure: as given, else as the device's profile says, else as usual.

    Raises:
        UsageError: a value below its least.
    """
    usual: dict[str, Any] = {}
    if device is not None:
        usual = {
            "threads": device.threads,
            "runs": device.bench.runs,
            "max_seconds": device.bench.max_seconds,
        }
    try:
        return Settings(**{**usual, **given})
    except TypeError as error:
        raise EdgekitError(f"no such setting: {error}") from error
