"""What a teacher answers: asked anew for every batch, or once, and then read from the disk.

A set of answers is a directory named by a key: one file of raw numbers per part, rows in the order
of the data, and ``answers.json``, which has their form, how many rows are done, and in the end the
files' hashes. It is written beside its place and renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgekit.artifact import sha256_of, storage_error
from edgekit.compress._checkpoint import digest_of
from edgekit.compress._matching import Matching, ask, captured, first_tensor
from edgekit.compress._optimize import tensors_of
from edgekit.errors import BadData, StorageError, UnsupportedError
from edgekit.protocols import Watch

__all__ = ["CHUNK", "Answers", "Asked", "Kept", "Layout", "Teacher", "digest_of_network", "keep"]

CHUNK: Final = 64
"""Samples that a teacher is asked at a time. Always the same ones together, so that answers do not
depend on where they were interrupted."""

PROGRESS_S: Final = 2.0
"""Seconds between notes of how far a set of answers is."""

GIB: Final = 1 << 30

_RECORD: Final = "answers.json"
_SCHEMA: Final = "edgekit.answers/1"

Answers = Callable[[Mapping[str, torch.Tensor], torch.Tensor], list[torch.Tensor]]
"""The teacher's answers to inputs by name that are the samples ``rows``, int64 ``[n]``: the
logits, then what each pair of layers keeps."""


class Teacher:
    """A network that answers, without gradients.

    Args:
        network: in eval mode.
        pairs: what is compared, each with the names of the teacher's modules that it looks at.
    """

    def __init__(
        self, network: nn.Module, pairs: Sequence[tuple[Matching, tuple[str, ...]]]
    ) -> None:
        self.network = network
        self._pairs = list(pairs)

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """The logits, then what each pair keeps."""
        names = [site for _, sites in self._pairs for site in sites]
        with torch.no_grad(), captured(self.network, names) as found:
            logits = first_tensor(ask(self.network, inputs))
            if logits is None:
                raise UnsupportedError("the teacher's output holds no tensor")
            answers = [logits]
            for matching, sites in self._pairs:
                answers.extend(matching.kept([found[site] for site in sites]))
        return answers

    def on(self, device: torch.device) -> Teacher:
        """This teacher on a device: itself where it is there, else a copy."""
        first = next(self.network.parameters(), None)
        if first is None or first.device == device:
            return self
        return Teacher(copy.deepcopy(self.network).to(device), self._pairs)


class Asked:
    """`Answers` of a teacher that is asked each time: to the very inputs that the student sees."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    def __call__(
        self, inputs: Mapping[str, torch.Tensor], rows: torch.Tensor
    ) -> list[torch.Tensor]:
        """See `Answers`."""
        self._teacher = self._teacher.on(rows.device)
        return self._teacher(inputs)


@dataclass(frozen=True)
class Layout:
    """How answers lie on the disk.

    Attributes:
        rows: how many samples.
        shapes: of one sample's part, by the part's name, logits first.
        dtype: ``float32`` or ``float16``.
        mask: name of the input ``[n, tokens]`` that says how many tokens the samples have.
        by_token: parts whose first dimension is of tokens. Samples may come with fewer of them, as
            texts do that are cut to the longest of a batch; zeros stand for the rest.
    """

    rows: int
    shapes: Mapping[str, tuple[int, ...]]
    dtype: str
    mask: str = ""
    by_token: tuple[str, ...] = ()

    def bytes_of(self, part: str) -> int:
        """Size of one part's file."""
        each = int(np.prod(self.shapes[part], dtype=np.int64))
        return self.rows * each * np.dtype(self.dtype).itemsize

    @property
    def bytes(self) -> int:
        """Size of all parts together."""
        return sum(self.bytes_of(part) for part in self.shapes)

    def open(self, folder: Path, mode: str) -> list[npt.NDArray[Any]]:
        """The parts' arrays ``[rows, ...]``, mapped into memory."""
        return [
            np.memmap(folder / f"{i}.bin", self.dtype, mode, shape=(self.rows, *shape))  # type: ignore[call-overload]
            for i, shape in enumerate(self.shapes.values())
        ]

    def to_json(self) -> dict[str, Any]:
        """As ``answers.json`` says it."""
        shapes = {part: list(shape) for part, shape in self.shapes.items()}
        return {
            "schema": _SCHEMA,
            "rows": self.rows,
            "dtype": self.dtype,
            "shapes": shapes,
            "by_token": list(self.by_token),
        }


class Kept:
    """`Answers` that lie on the disk, whole. Pickled, it is only its place."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self._layout = folder, layout
        self._arrays: list[npt.NDArray[Any]] | None = None

    def __call__(
        self, inputs: Mapping[str, torch.Tensor], rows: torch.Tensor
    ) -> list[torch.Tensor]:
        """See `Answers`; float32, where ``rows`` are."""
        if self._arrays is None:
            self._arrays = self._layout.open(self.folder, "r")
        wanted = rows.cpu().numpy()
        answers = []
        for part, array in zip(self._layout.shapes, self._arrays, strict=True):
            if part in self._layout.by_token:
                array = array[:, : inputs[self._layout.mask].shape[1]]
            answers.append(torch.from_numpy(array[wanted].astype(np.float32)).to(rows.device))
        return answers

    def logits(self) -> torch.Tensor:
        """All logits: float32 ``[rows, classes]``."""
        return torch.from_numpy(self._layout.open(self.folder, "r")[0].astype(np.float32))

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_layout": self._layout, "_arrays": None}


@contextlib.contextmanager
def keep(
    root: Path,
    key: str,
    layout: Layout,
    ask: Callable[[int, int], list[torch.Tensor]],
    *,
    limit: int,
    watch: Watch,
) -> Iterator[Kept]:
    """The answers under a key, made where they are not there yet.

    Of several processes that want the same answers one makes them and the others wait. Nobody
    removes them while this lasts.

    Args:
        root: where sets of answers lie.
        key: of this set.
        layout: its form.
        ask: the answers to the samples from ``start`` to ``stop``.
        limit: bytes of all sets in ``root`` together; older ones are removed to make room.
        watch: hears how far it is.

    Raises:
        BadData: an answer is not finite, or too large for the type.
        StorageError: no space, no permission, or more than the limit.
    """
    place = root / key
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = (root / f"{key}.lock").open("a")
    except OSError as error:
        raise storage_error(root, error) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        if not _is_whole(place, layout):
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not _is_whole(place, layout):
                _make(place, layout, ask, limit, watch)
            fcntl.flock(handle, fcntl.LOCK_SH)
        with contextlib.suppress(OSError):
            os.utime(place)  # what was used longest ago is removed first
        yield Kept(place, layout)


def _make(
    place: Path,
    layout: Layout,
    ask: Callable[[int, int], list[torch.Tensor]],
    limit: int,
    watch: Watch,
) -> None:
    aside = place.with_name(f"{place.name}.new")
    try:
        if place.exists():
            watch.note(f"the teacher's answers in {place} are damaged; made again")
            shutil.rmtree(place, ignore_errors=True)
        done = _begun(aside, layout)
        if done is None:
            done = 0
            shutil.rmtree(aside, ignore_errors=True)
            _make_room(place.parent, layout.bytes, limit, watch)
            aside.mkdir()
            for i, part in enumerate(layout.shapes):
                _reserve(aside / f"{i}.bin", layout.bytes_of(part))
        else:
            watch.note(f"the teacher has answered {done} of {layout.rows} samples already")
        _fill(aside, layout, ask, done, watch)
        files = [f"{i}.bin" for i in range(len(layout.shapes))]
        hashes = {name: sha256_of(aside / name) for name in files}
        _write(aside / _RECORD, layout.to_json() | {"done": layout.rows, "sha256": hashes})
        aside.rename(place)
    except OSError as error:
        raise storage_error(place.parent, error) from error


def _fill(
    aside: Path,
    layout: Layout,
    ask: Callable[[int, int], list[torch.Tensor]],
    done: int,
    watch: Watch,
) -> None:
    arrays = layout.open(aside, "r+")
    noted = time.monotonic()
    for start in range(done, layout.rows, CHUNK):
        stop = min(start + CHUNK, layout.rows)
        answers = ask(start, stop)
        for (part, shape), array, answer in zip(
            layout.shapes.items(), arrays, answers, strict=True
        ):
            rows = array[start:stop]
            if part in layout.by_token and answer.ndim > 1 and answer.shape[1] < shape[0]:
                rows[:, answer.shape[1] :] = 0
                rows = rows[:, : answer.shape[1]]
            if answer.shape[1:] != rows.shape[1:]:
                raise BadData(
                    f"the teacher's {part} of samples {start} to {stop - 1} is of shape "
                    f"{list(answer.shape[1:])}; of those before it was {list(shape)}",
                    hint="pad all samples to one length, or set cache='off'",
                )
            rows[:] = _numbers(answer, part, layout.dtype, start)
        watch.step(stop, layout.rows)
        if time.monotonic() - noted >= PROGRESS_S or stop == layout.rows:
            for array in arrays:
                array.flush()  # type: ignore[attr-defined]
            _write(aside / _RECORD, layout.to_json() | {"done": stop})
            noted = time.monotonic()


def _numbers(answer: torch.Tensor, part: str, dtype: str, start: int) -> npt.NDArray[Any]:
    exact = answer.detach().float().cpu().numpy()
    finite = np.isfinite(exact).reshape(len(exact), -1).all(1)
    if not finite.all():
        raise BadData(
            f"the teacher's {part} of sample {start + int(finite.argmin())} is not finite",
            hint="look at that sample and at the teacher's weights",
        )
    highest = float(np.abs(exact).max(initial=0))
    if highest > float(np.finfo(dtype).max):
        raise BadData(
            f"the teacher's {part} reaches {highest:.6g}, which {dtype} cannot hold",
            hint="set cache_dtype='float32'",
        )
    return exact.astype(dtype)


def _is_whole(place: Path, layout: Layout) -> bool:
    try:
        record = json.loads((place / _RECORD).read_text())
        hashes = record.pop("sha256")
        if record != layout.to_json() | {"done": layout.rows} or len(hashes) != len(layout.shapes):
            return False
        return all(sha256_of(place / name) == sha for name, sha in hashes.items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def _begun(aside: Path, layout: Layout) -> int | None:
    """How many rows are done in a directory that was left half filled; None: it is of no use."""
    try:
        record = json.loads((aside / _RECORD).read_text())
        done = record.pop("done")
        record.pop("sha256", None)
        sizes = [(aside / f"{i}.bin").stat().st_size for i in range(len(layout.shapes))]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    if record != layout.to_json() or sizes != [layout.bytes_of(p) for p in layout.shapes]:
        return None
    return int(done)


def _make_room(root: Path, wanted: int, limit: int, watch: Watch) -> None:
    """Removes what was used longest ago until ``wanted`` bytes fit below ``limit``."""
    sets = sorted((p for p in root.iterdir() if p.is_dir()), key=lambda p: (_used(p), p.name))
    total = sum(_size(p) for p in sets)
    for place in sets:
        if total + wanted <= limit:
            return
        with (root / f"{place.name.removesuffix('.new')}.lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # in use
            total -= _size(place)
            shutil.rmtree(place, ignore_errors=True)
            watch.note(f"older teachers' answers were removed to make room: {place}")
    if total + wanted > limit:
        raise StorageError(
            f"the teacher's answers take {wanted / GIB:.3g} GiB and others that are in use "
            f"{total / GIB:.3g}; the limit is {limit / GIB:.3g}",
            hint="raise cache_limit, set cache_dtype='float16', compare fewer layers, or set "
            "cache='off'",
        )


def _used(place: Path) -> float:
    """When a set was used last; 0 where another process has just removed or renamed it."""
    with contextlib.suppress(FileNotFoundError):
        return place.stat().st_mtime
    return 0.0


def _size(place: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return sum(p.stat().st_size for p in place.iterdir() if p.is_file())
    return 0


def _reserve(path: Path, size: int) -> None:
    """A file of ``size`` bytes whose space is taken now, so that a full disk shows at once."""
    with path.open("wb") as file:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)


def _write(path: Path, document: Mapping[str, Any]) -> None:
    aside = path.with_suffix(".part")
    with aside.open("w") as file:
        json.dump(document, file, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def digest_of_network(network: nn.Module) -> str:
    """sha256 over a network's class, its printed form and all of its weights and buffers."""
    about = f"{type(network).__qualname__}\n{network!r}\n{digest_of(tensors_of(network))}"
    return hashlib.sha256(about.encode()).hexdigest()
