"""The run of a recipe: what is cached is taken, the rest is made, each stage in its own process."""

from __future__ import annotations

import queue
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edgekit import cores, device
from edgekit.artifact import Store
from edgekit.errors import BadData, EdgekitError, UsageError
from edgekit.keys import isa
from edgekit.names import unknown
from edgekit.recipe import document, inputs
from edgekit.recipe.cache import Cache, Hit
from edgekit.recipe.process import Failure, Process
from edgekit.recipe.source import code_of
from edgekit.recipe.stages import Recipe, Stage
from edgekit.settings import Settings, leaves, with_overrides

__all__ = ["Outcome", "Planned", "Runner", "Silent", "View"]

Event = Mapping[str, Any]


class View(Protocol):
    """Hears what a run does, from one thread."""

    def planned(self, stages: Sequence[Planned]) -> None:
        """Before anything runs: all stages, and what is known of each."""

    def started(self, stage: str, attempt: int) -> None:
        """A stage's process begins; ``attempt`` counts from 1."""

    def told(self, stage: str, event: Event) -> None:
        """What a stage tells of itself; see `edgekit.recipe.context.Run`."""

    def ended(self, stage: str, outcome: Outcome) -> None:
        """A stage is done, was cached, failed, or can't run since another failed."""


class Silent:
    """A view that shows nothing."""

    def planned(self, stages: Sequence[Planned]) -> None:
        """Nothing."""

    def started(self, stage: str, attempt: int) -> None:
        """Nothing."""

    def told(self, stage: str, event: Event) -> None:
        """Nothing."""

    def ended(self, stage: str, outcome: Outcome) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Planned:
    """A stage before the run.

    Attributes:
        stage: its name.
        state: ``cached``, ``run``, or ``waits`` where it depends on a stage that has to run: if
            that one gives what it gave before, this one is cached after all.
        why: why it isn't cached; what it waits for; empty where it is cached.
        doc: what it does.
    """

    stage: str
    state: str
    why: str
    doc: str


@dataclass(frozen=True)
class Outcome:
    """A stage after the run.

    Attributes:
        status: ``ok``, ``failed`` or ``skipped``.
        cached: whether its result was there before.
        why: why it ran.
        hit: its result, where it is ok.
        error: what it failed of.
        reason: the error, or the stage that it would have needed, in words.
        attempts: how often it was tried.
        wall_s: seconds that it took; of a cached one, when it was made.
        log: what it printed, where it failed.
    """

    status: str
    cached: bool = False
    why: str | None = None
    hit: Hit | None = None
    error: EdgekitError | None = None
    reason: str | None = None
    attempts: int = 0
    wall_s: float | None = None
    log: Path | None = None


@dataclass
class Runner:
    """One run of a recipe.

    Args:
        recipe: from `load_recipe`.
        overrides: settings to change, dotted path to text.
        data: a file or folder for stages that take ``data``.
        devices: ids or paths of profiles for those that take ``device`` or ``devices``; without
            any, the setting ``devices`` where there is one, else ``host``.
        out: the run's folder: ``run.json`` and each stage's files; None keeps results in the store
            alone.
        only: stages that are wanted, with all that they need; empty means all.
        again: stages to run although they are cached.
        store: where results are kept.
        view: hears what happens.

    Raises:
        UsageError: an unknown setting, stage or device, or ``out`` is not a run's.
        BadData: ``data`` does not exist.
    """

    recipe: Recipe
    overrides: Mapping[str, str] = field(default_factory=dict)
    data: Path | None = None
    devices: tuple[str, ...] = ()
    out: Path | None = None
    only: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    store: Store = field(default_factory=Store)
    view: View = field(default_factory=Silent)

    def __post_init__(self) -> None:
        for name in (*self.only, *self.again):
            if name not in self.recipe.stages:
                raise UsageError(unknown("stage", name, self.recipe.stages))
        self.settings: Settings = with_overrides(self.recipe.defaults(), self.overrides)
        found = leaves(self.settings)
        self.values = document.plain(found)
        """All settings as JSON has them, by dotted path."""
        # What results are kept under: a file that a setting names counts by what is in it.
        self._compared = self.values | inputs.named(found)
        self.result: Mapping[str, Any] = {}
        """The ``edgekit.run/1`` document, once `run` has returned."""
        self._named = self._devices()
        self._profiles = tuple(device.load(name) for name in self._named)
        self._about_data = None if self.data is None else inputs.data(self.data, self.store)
        self._cache = Cache(self.store, self.recipe.path)
        self._code = {s: code_of(self.recipe, s) for s in self.recipe.stages}
        self._cores = cores.usable()
        self._processor = isa()
        self.wanted = self.recipe.needed_for(self.only or tuple(self.recipe.stages))
        if self.out is not None:
            document.check_out(self.out)

    def _devices(self) -> tuple[str, ...]:
        if self.devices:
            return self.devices
        chosen = self.values.get("devices")
        return tuple(chosen) if chosen else ("host",)

    # -- before -----------------------------------------------------------------------------------

    def plan(self) -> list[Planned]:
        """What a run would do; nothing is run."""
        hits: dict[str, Hit] = {}
        planned = []
        for name in self.wanted:
            stage = self.recipe.stages[name]
            missing = [i for i in stage.inputs if i not in hits]
            if missing:
                planned.append(Planned(name, "waits", f"needs {', '.join(missing)}", stage.doc))
                continue
            parts = self._parts(stage, hits)
            hit = self._found(name, parts)
            if hit is not None:
                hits[name] = hit
                planned.append(Planned(name, "cached", "", stage.doc))
            else:
                planned.append(Planned(name, "run", self._why(name, parts), stage.doc))
        return planned

    def _found(self, name: str, parts: Mapping[str, Any]) -> Hit | None:
        return None if name in self.again else self._cache.find(parts, self._compared)

    def _why(self, name: str, parts: Mapping[str, Any]) -> str:
        if name in self.again:
            return "asked for again"
        return self._cache.why(name, parts, self._compared)

    def _parts(self, stage: Stage, hits: Mapping[str, Hit]) -> dict[str, Any]:
        """All that a stage's result depends on, but for the settings that it reads."""
        code = self._code[stage.name]
        takes = set(stage.parameters)
        devices = None
        if "devices" in takes:
            devices = [p.digest() for p in self._profiles]
        elif "device" in takes:
            devices = [self._profiles[0].digest()]
        return {
            "stage": stage.name,
            "code": code.text,
            "versions": dict(code.versions),
            "inputs": {name: hits[name].digest for name in stage.inputs},
            "data": self._about_data.digest if self._about_data and "data" in takes else None,
            "devices": devices,
            "threads": self._threads(stage),
            "processor": self._processor,
        }

    def _threads(self, stage: Stage) -> int:
        return min(stage.options.threads or self._cores, self._cores)

    # -- the run ----------------------------------------------------------------------------------

    def run(self) -> Mapping[str, Outcome]:
        """Runs what has to be run, and gives what came of each wanted stage, in order.

        Stages that don't need one that failed are still made. What is finished stays, whatever
        happens after it.

        Raises:
            Locked: another run writes to ``out``.
            StorageError: no space or no permission for ``out``.
            KeyboardInterrupt: after all processes have ended.
        """
        start = time.perf_counter()
        self.view.planned(self.plan())
        outcomes: dict[str, Outcome] = {}
        with document.held(self.out):
            events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
            running: dict[str, Process] = {}
            try:
                while len(outcomes) < len(self.wanted):
                    if self._start_ready(outcomes, running, events):
                        self._write(outcomes, start)
                        continue
                    name, event = events.get()
                    self._take(name, event, outcomes, running)
                    if name in outcomes:
                        self._write(outcomes, start)
            finally:
                for process in running.values():
                    process.stop()
            ordered = {name: outcomes[name] for name in self.wanted}
            self.result = self._write(ordered, start)
        return ordered

    def _start_ready(
        self,
        outcomes: dict[str, Outcome],
        running: dict[str, Process],
        events: queue.SimpleQueue[tuple[str, Any]],
    ) -> bool:
        """Settles or starts what can be; whether any stage was settled without running."""
        free = self._cores - sum(p.threads for p in running.values())
        for name in self.wanted:
            if name in outcomes or name in running:
                continue
            stage = self.recipe.stages[name]
            if any(i not in outcomes for i in stage.inputs):
                continue
            failed = next((i for i in stage.inputs if outcomes[i].hit is None), None)
            if failed is not None:
                self._end(name, Outcome("skipped", reason=f"needs {failed}"), outcomes)
                return True
            hits = {i: hit for i in stage.inputs if (hit := outcomes[i].hit) is not None}
            parts = self._parts(stage, hits)
            hit = self._found(name, parts)
            if hit is not None:
                self._end(name, _cached(hit), outcomes)
                return True
            threads = self._threads(stage)
            if threads > free and running:
                continue
            free -= threads
            running[name] = self._process(stage, parts, hits, events)
        return False

    def _process(
        self,
        stage: Stage,
        parts: Mapping[str, Any],
        hits: Mapping[str, Hit],
        events: queue.SimpleQueue[tuple[str, Any]],
    ) -> Process:
        code = self._code[stage.name]
        job = {
            "script": str(self.recipe.path),
            "stage": stage.name,
            "settings": self.settings.model_dump(mode="json"),
            "inputs": {name: str(hit.folder) for name, hit in hits.items()},
            "data": None if self.data is None else str(self.data.resolve()),
            "devices": list(self._named),
            "threads": self._threads(stage),
            "code": {"script": code.script, "files": dict(code.files)},
        }
        scratch = self._cache.scratch(stage.name, parts, self._compared)
        process = Process(
            job=job,
            scratch=scratch,
            options=stage.options,
            why=self._why(stage.name, parts),
            parts=parts,
            found=lambda: self._found(stage.name, parts),
            tell=lambda event: events.put((stage.name, event)),
        )
        process.start()
        return process

    def _take(
        self,
        name: str,
        event: Any,
        outcomes: dict[str, Outcome],
        running: dict[str, Process],
    ) -> None:
        """What a stage's process has told."""
        process = running[name]
        if isinstance(event, Mapping):
            if event["event"] == "started":
                self.view.started(name, event["attempt"])
            else:
                self.view.told(name, event)
            return
        del running[name]
        try:
            self._settle(name, process, event, outcomes)
        finally:
            process.release()

    def _settle(
        self, name: str, process: Process, event: Any, outcomes: dict[str, Outcome]
    ) -> None:
        """What came of a stage's process."""
        if isinstance(event, Hit):
            self._end(name, _cached(event), outcomes)
            return
        if isinstance(event, Failure):
            error = event.error
            self._end(
                name,
                Outcome(
                    "failed", why=process.why, error=error, reason=error.message,
                    attempts=event.attempts, wall_s=event.wall_s, log=event.log,
                ),
                outcomes,
            )  # fmt: skip
            return
        about = event.about
        try:
            self._check_data(name)
            hit = self._cache.keep(name, process.parts, self._compared, event.result, about)
        except EdgekitError as error:
            known = type(error)(f"stage {name!r}: {error.message}", hint=error.hint)
            failed = Outcome("failed", why=process.why, error=known, reason=known.message)
            self._end(name, failed, outcomes)
            return
        shutil.rmtree(process.scratch, ignore_errors=True)
        tried, took = about["attempts"], about["wall_s"]
        ended = Outcome("ok", why=process.why, hit=hit, attempts=tried, wall_s=took)
        self._end(name, ended, outcomes)

    def _check_data(self, stage: str) -> None:
        """Refuses what a stage made of data that is other data by now."""
        if self.data is None or "data" not in self.recipe.stages[stage].parameters:
            return
        if inputs.data(self.data, self.store) != self._about_data:
            raise BadData(f"{self.data} was changed while it was read", hint="run it again")

    def _end(self, name: str, outcome: Outcome, outcomes: dict[str, Outcome]) -> None:
        outcomes[name] = outcome
        if self.out is not None and outcome.hit is not None:
            document.publish(outcome.hit, self.out / name)
        self.view.ended(name, outcome)

    # -- what is told -----------------------------------------------------------------------------

    def _write(self, outcomes: Mapping[str, Outcome], start: float) -> dict[str, Any]:
        told = self.document(outcomes, time.perf_counter() - start)
        if self.out is not None:
            document.write(told, self.out)
        return told

    def document(self, outcomes: Mapping[str, Outcome], wall_s: float) -> dict[str, Any]:
        """The run so far as ``edgekit.run/1``."""
        return document.build(
            self.recipe,
            settings=self.values,
            data=self._about_data,
            devices=self._named,
            code=self._code,
            processor=self._processor,
            outcomes={n: outcomes[n] for n in self.wanted if n in outcomes},
            wall_s=wall_s,
        )


def _cached(hit: Hit) -> Outcome:
    return Outcome("ok", cached=True, hit=hit, wall_s=hit.record["wall_s"])
