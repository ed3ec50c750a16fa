"""A model that is served under its name: which version, how far it is, and putting in another."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgekit.errors import BadData, EdgekitError, StorageError, TrustError
from edgekit.runtime.bundle import Bundle, BundleArtifact
from edgekit.runtime.preprocess import Preprocess
from edgekit.scratch import scratch
from edgekit.serve.choice import choose
from edgekit.serve.engine import Engine, EngineSettings
from edgekit.serve.metrics import ModelMetrics
from edgekit.serve.oip import datatype_of
from edgekit.serve.refusal import Refusal
from edgekit.serve.teacher import teacher_of
from edgekit.signature import Signature, TensorSpec

__all__ = ["Hosted", "State", "Version"]

log = logging.getLogger("edgekit.serve")

State = Literal["loading", "ready", "failed", "draining"]

_FINISH_S = 60.0


@dataclass(frozen=True)
class Version:
    """One bundle as it is served; what a request keeps to from beginning to end.

    Attributes:
        name: the model's.
        version: the bundle's.
        digest: of the bundle.
        target: whose runtime executes it.
        signature: of the artifact.
        labels: class names, or none.
        preprocess: the bundle's own, or None.
        temperature: that confidences are calibrated with; 1 where none was found.
        engine: what executes it.
        folder: a private copy of the bundle: what is put in its place on disk changes nothing here,
            also when a worker has to be started again.
        place: removes it.
    """

    name: str
    version: str
    digest: str
    target: str
    signature: Signature
    labels: tuple[str, ...]
    preprocess: Preprocess | None
    temperature: float
    engine: Engine
    folder: Path
    place: contextlib.ExitStack

    def metadata(self) -> dict[str, Any]:
        """The protocol's description of the model."""
        rows = self.engine.by_rows
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": f"edgekit_{self.target}",
            "inputs": [_tensor(spec, rows) for spec in self.signature.inputs],
            "outputs": [_tensor(spec, rows) for spec in self.signature.outputs],
        }


def _tensor(spec: TensorSpec, rows: bool) -> dict[str, Any]:
    shape = [-1, *spec.shape[1:]] if rows else list(spec.shape)
    return {"name": spec.name, "datatype": datatype_of(spec.dtype), "shape": shape}


@dataclass(frozen=True)
class _Read:
    """A bundle's facts, without its files open."""

    copy: Path
    name: str
    version: str
    digest: str
    artifact: BundleArtifact
    labels: tuple[str, ...]
    preprocess: Preprocess | None
    temperature: float


class Hosted:
    """One model.

    Args:
        path: the bundle; read again by `load`.
        artifact: id of the artifact to serve, or None to choose.
        settings: how.
        name: under which it is served; None for the bundle's own.
        student: of the pair that it belongs to, if it does: as its student or as its teacher, which
            must be the one that the student names.

    Attributes:
        state: ``loading`` also while a first try goes on; a model that was ready stays so while
            another version loads.
        reason: why it failed.
        metrics: its counters, over all versions.
    """

    def __init__(
        self,
        path: Path,
        artifact: str | None,
        settings: EngineSettings,
        name: str | None = None,
        student: Path | None = None,
    ) -> None:
        self._student = student
        self._path, self._artifact = path, artifact
        self._settings = settings
        self._given = name
        self._lock = asyncio.Lock()
        self._leaving: dict[asyncio.Task[None], Version] = {}
        self._past_executions = 0
        self.state: State = "loading"
        self.reason = ""
        self.version: Version | None = None
        self.name = name or _read_name(path)
        self.metrics = ModelMetrics(self.name)

    @property
    def ready(self) -> bool:
        """Whether it takes requests: warmed up, with a worker that lives."""
        version = self.version
        return (
            self.state == "ready"
            and version is not None
            and version.engine.alive > 0
            and not version.engine.looping
        )

    def current(self, version: str | None = None) -> Version:
        """The version that takes requests now.

        Raises:
            Refusal: 404 where another version is asked for, 503 where it is not ready.
        """
        now = self.version
        if now is not None and version not in (None, now.version):
            raise Refusal(404, "the model has no such version")
        if now is None or not self.ready:
            raise Refusal(503, f"the model is not ready ({self.state})", {"Retry-After": "1"})
        return now

    async def load(self) -> Version:
        """Reads the bundle, warms it up, and only then puts it in the place of what is served.

        Raises:
            EdgekitError: it cannot be served; what was served before goes on.
            Refusal: 503, the server ended meanwhile.
        """
        async with self._lock:
            try:
                version = await self._start()
            except EdgekitError as error:
                log.error("a model does not load", extra={"model": self.name, "reason": str(error)})
                if self.version is None:
                    self.state, self.reason = "failed", error.message
                raise
            if self.state == "draining":
                await _end(version)
                raise Refusal(503, "the server is ending")
            before, self.version = self.version, version
            self.state, self.reason = "ready", ""
            if before is not None:
                self.metrics.swaps += 1
                self._let_finish(before)
            log.info(
                "a model is ready",
                extra={
                    "model": self.name,
                    "version": version.version,
                    "digest": version.digest,
                    **version.engine.describe(),
                },
            )
            return version

    async def _start(self) -> Version:
        place = contextlib.ExitStack()
        try:
            folder = await asyncio.to_thread(place.enter_context, scratch("serve"))
        except OSError as error:
            raise StorageError(f"there is no room for a copy of the bundle: {error}") from error
        try:
            read = await asyncio.to_thread(_read, self._path, folder, self._artifact)
            if self._student is not None:
                await asyncio.to_thread(_check_pair, self._student, self._path, read.digest)
            if self._given is None and read.name != self.name:
                raise BadData(f"the bundle is now {read.name!r}, not {self.name!r}")
            engine = Engine(read.copy, read.digest, read.artifact, self._settings)
            await engine.start()
        except BaseException:
            place.close()
            raise
        return Version(
            self.name,
            read.version,
            read.digest,
            read.artifact.target,
            read.artifact.signature,
            read.labels,
            read.preprocess,
            read.temperature,
            engine,
            folder,
            place,
        )

    def _let_finish(self, version: Version) -> None:
        """Closes a version when it has answered what it was asked."""
        engine = version.engine

        async def finish() -> None:
            loop = asyncio.get_running_loop()
            until = loop.time() + _FINISH_S
            while engine.queued + engine.running and loop.time() < until:
                await asyncio.sleep(0.05)
            await _end(version)

        def ended(task: asyncio.Task[None]) -> None:
            del self._leaving[task]
            self._past_executions += engine.executions

        task = asyncio.get_running_loop().create_task(finish())
        self._leaving[task] = version
        task.add_done_callback(ended)

    def measured(self) -> ModelMetrics:
        """The counters, with what the engine knows now."""
        engine = None if self.version is None else self.version.engine
        engines = [version.engine for version in self._leaving.values()]
        engines += [] if engine is None else [engine]
        return replace(
            self.metrics,
            executions=self._past_executions + sum(e.executions for e in engines),
            queued=0 if engine is None else engine.queued,
            workers=0 if engine is None else engine.alive,
            ready=self.ready,
        )

    async def close(self) -> None:
        """Ends its workers, also those of versions that were to finish in peace."""
        self.state = "draining"
        versions = list(self._leaving.values())
        for task in list(self._leaving):
            task.cancel()
        if self.version is not None:
            versions.append(self.version)
        for version in versions:
            await _end(version)


async def _end(version: Version) -> None:
    await version.engine.close()
    await asyncio.to_thread(version.place.close)


def _read_name(path: Path) -> str:
    with Bundle.open(path) as bundle:
        return bundle.name


def _read(path: Path, folder: Path, artifact: str | None) -> _Read:
    # Opened first where it lies: what is no bundle, or holds links or pipes, is not copied.
    _read_name(path)
    copy = folder / f"bundle{path.suffix}"
    try:
        if path.is_dir():
            shutil.copytree(path, copy, symlinks=True)
        else:
            shutil.copyfile(path, copy)
    except OSError as error:
        raise StorageError(f"the bundle cannot be copied to {folder}: {error}") from error
    with Bundle.open(copy) as bundle:
        return _Read(
            copy,
            bundle.name,
            bundle.version,
            bundle.digest,
            choose(bundle, artifact),
            bundle.labels,
            bundle.preprocess(),
            _temperature(bundle.manifest),
        )


def _check_pair(student: Path, path: Path, digest: str) -> None:
    """Refuses a teacher that its student does not name, and a student whose teacher is another."""
    teacher = teacher_of(student)
    if teacher is not None and teacher.path == path and teacher.digest != digest:
        raise TrustError(f"{path} was replaced while it was read")


def _temperature(manifest: Mapping[str, Any]) -> float:
    policy = manifest.get("policy")
    value = policy.get("temperature") if isinstance(policy, dict) else None
    return float(value) if isinstance(value, int | float) and value > 0 else 1.0
