"""Recorder: what a model does in the field, counted on the device.

```python
with Bundle.open("mobilenet.zip") as bundle:
    with Recorder("state/telemetry", bundle, endpoint="https://collector.example:4318") as recorder:
        recorder.give_consent()  # once, when the user has said yes
        start = time.perf_counter()
        outputs = session.run(inputs)
        recorder.record(time.perf_counter() - start, confidence=0.93, predicted=7)
```

Nothing is kept, written or sent before consent, and what is sent afterwards is counts, histograms
and words out of the list in `edgekit.runtime.attributes`: no inputs, no outputs, no texts.

`record` counts in memory and takes microseconds. Every ``interval_s`` the counts go to the spool,
so a power cut or a kill costs at most that interval; crashes and results of updates are on the disk
when their methods return. What the spool has taken is delivered at least once, or counted as
dropped, with the reason.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit.errors import UsageError
from edgekit.runtime._closing import Closing
from edgekit.runtime._consent import Consent
from edgekit.runtime._messages import document, resource_of, stack_hash
from edgekit.runtime._observed import Routed, draws_of, kind_of, statistics_of
from edgekit.runtime._records import Counts
from edgekit.runtime._station import Setup, Station, forget
from edgekit.runtime.aggregate import Aggregate
from edgekit.runtime.attributes import OTHER, REASONS, SOURCES
from edgekit.runtime.bundle import Bundle, BundleArtifact
from edgekit.runtime.clocks import Clock, SystemClock
from edgekit.runtime.privacy import LocalPrivacy
from edgekit.runtime.schedule import Conditions, Pace
from edgekit.runtime.uploader import Transport, to_server

__all__ = ["Recorder", "Routed"]

_MIN_QUOTA: Final = 2 << 20
_DAY_S: Final = 86400.0
_REASONS: Final = frozenset(REASONS)
_SOURCES: Final = frozenset(SOURCES)


class Recorder(Closing):
    """Counts what happens, keeps it, and sends it, once the user has agreed.

    Safe to use from several threads. In a forked child it is off. Close it, or use it in a
    ``with``; `close` on SIGTERM loses nothing.

    Args:
        folder: private to this recorder; made with the first consent.
        bundle: whose model runs; its name, version and digest are sent, the first two only where
            they look like a name and a version.
        artifact: of it, the one that runs.
        endpoint: of an OTLP/HTTP server; None: nothing is sent, only kept.
        headers: sent along, such as an ``Authorization``.
        transport: another way to the server, in place of ``endpoint``.
        device_class: the id of a device profile that ships with edgekit; others are ``other``.
        app_version: of the app, such as ``2.11.0``.
        interval_s: after which what was counted goes to the disk, in seconds.
        pace: when it is sent.
        conditions: tells of network and battery.
        quota_bytes: of the spool, 2 MiB or more.
        rotate_s: running time after which the device takes a new random name; it does every day.
        input_share: of how many requests one's inputs are looked at by `observe_inputs`.
        privacy: noises what tells of inputs and answers, within a budget; None: it is not noised.
        hold_on_auth: as `Uploader`.
        clock: the time.
        background: whether threads write and send; without, `flush` and `upload` are called.

    Raises:
        Locked: another process records in this folder.
        TrustError, StorageError: as `Spool`.
        UsageError: an argument is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        bundle: Bundle | None = None,
        artifact: BundleArtifact | None = None,
        *,
        endpoint: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: Callable[[], Transport] | None = None,
        device_class: str = OTHER,
        app_version: str | None = None,
        interval_s: float = 60.0,
        pace: Pace | None = None,
        conditions: Callable[[], Conditions] | None = None,
        quota_bytes: int = 8 << 20,
        rotate_s: float = _DAY_S,
        input_share: int = 16,
        privacy: LocalPrivacy | None = None,
        hold_on_auth: bool = False,
        clock: Clock | None = None,
        background: bool = True,
    ) -> None:
        if quota_bytes < _MIN_QUOTA:
            raise UsageError(f"quota_bytes is {quota_bytes}; {_MIN_QUOTA} or more is wanted")
        if not (interval_s > 0 and rotate_s > 0 and input_share >= 1):
            raise UsageError("interval_s and rotate_s are more than 0, and input_share 1 or more")
        self._folder = Path(folder)
        if endpoint is not None and transport is None:
            transport = to_server(endpoint, headers)
        self._setup = Setup(
            transport=transport,
            interval_s=interval_s,
            pace=pace,
            conditions=conditions,
            quota_bytes=quota_bytes,
            rotate_s=rotate_s,
            hold_on_auth=hold_on_auth,
            clock=clock or SystemClock(),
            background=background,
        )
        self._resource = resource_of(bundle, artifact, device_class, app_version)
        self._statistics = statistics_of(bundle, artifact)
        self._input_share, self._seen = input_share, 0
        self._consent = Consent(self._folder)
        self._lock = threading.Lock()  # of the window: held for microseconds
        self._disk = threading.RLock()  # of all else
        self._draws = draws_of(self._folder, privacy, bundle)
        self._window = Aggregate(self._draws)
        self._on = False
        self._station: Station | None = None
        if self._consent.given():
            self._start()
        else:
            forget(self._folder, self._setup)
        _OPEN.add(self)

    # -- the inference path -----------------------------------------------------------------------

    def record(
        self,
        duration_s: float | None = None,
        *,
        source: str = "device",
        reason: str = "sure",
        confidence: float | None = None,
        predicted: int | None = None,
        memory_bytes: float | None = None,
    ) -> None:
        """Counts one request. It touches no disk, never waits for one, and raises nothing.

        Args:
            duration_s: how long it took, in seconds.
            source: ``device``, ``cloud``, or ``none`` where there was no answer.
            reason: one of `edgekit.runtime.attributes.REASONS`.
            confidence: of the answer, from 0 to 1.
            predicted: index of the class.
            memory_bytes: the process's, at its peak or now.
        """
        if not self._on:
            return
        with contextlib.suppress(TypeError, ValueError, OverflowError), self._lock:
            if source not in _SOURCES:
                source = "none"
            if reason not in _REASONS:
                reason = OTHER
            self._window.add(source, reason, duration_s, confidence, predicted, memory_bytes)

    def observe(self, routed: Routed) -> None:
        """Counts what a router tells of a request: ``Router(..., observer=recorder.observe)``."""
        source = routed.source or "none"
        self.record(
            routed.total_ms / 1e3,
            source=source,
            reason=routed.why,
            confidence=routed.confidence,
        )
        for side, state in (("device", routed.device), ("cloud", routed.cloud)):
            if state.startswith("failed: "):
                self.record_error(state.removeprefix("failed: "), source=side)

    def observe_inputs(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Counts mean, spread and roughness of the inputs of one request in ``input_share``.

        Where it does look it passes over the arrays a few times, which takes longer than `record`.

        Args:
            inputs: arrays by name, as the artifact takes them, pixels too; only those are looked at
                of which the bundle has reference statistics.
        """
        if not self._on:
            return
        with self._lock:
            self._seen += 1
            if self._seen % self._input_share and self._input_share > 1:
                return
        bins = self._statistics.bins(inputs)
        with self._lock:
            self._window.add_inputs(bins)

    def record_error(self, error: BaseException | str, *, source: str = "device") -> None:
        """Counts an error that was dealt with, by its class; other people's classes as ``other``.

        Args:
            error: it, or the name of its class.
            source: where it was.
        """
        if not self._on:
            return
        kind = kind_of(error)
        with self._lock:
            self._window.add_error(source if source in _SOURCES else "none", kind)

    # -- events, which are written at once --------------------------------------------------------

    def crash(self, error: BaseException, *, source: str = "device") -> None:
        """Keeps that something failed for good: its class and a hash of where, no message.

        It is on the disk when this returns, or waits in memory where the disk refuses.
        """
        about = {
            "error.type": kind_of(error),
            "edgekit.stack.hash": stack_hash(error),
            "edgekit.source": source,
        }
        self._keep_event("edgekit.crash", about, failed=True)

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        """A block whose exceptions are kept as crashes, and go on."""
        try:
            yield
        except Exception as error:
            self.crash(error)
            raise

    def ota_result(
        self,
        outcome: str,
        *,
        reason: str = "none",
        release: int | None = None,
        from_version: str | None = None,
        to_version: str | None = None,
    ) -> None:
        """Keeps how an update ended.

        Args:
            outcome, reason: of `edgekit.runtime.attributes.OUTCOMES` and ``OTA_REASONS``.
            release: the release's counter.
            from_version, to_version: of the bundles.
        """
        about = {
            "edgekit.ota.outcome": outcome,
            "edgekit.ota.reason": reason,
            "edgekit.ota.release": release,
            "edgekit.ota.from": from_version,
            "edgekit.ota.to": to_version,
        }
        self._keep_event("edgekit.ota", about, failed=outcome != "installed")

    # -- consent ----------------------------------------------------------------------------------

    @property
    def consented(self) -> bool:
        """Whether the user has agreed."""
        return self._consent.given()

    def give_consent(self) -> None:
        """Writes down that the user agrees, and starts.

        Raises:
            StorageError, TrustError, Locked: it can't be kept.
        """
        with self._disk:
            self._consent.keep(True)
            if not self._on:
                self._start()

    def withdraw(self) -> None:
        """Writes down that the user does not agree, stops, and erases what was kept.

        Raises:
            StorageError, Locked: something can't be erased now. It is at the next start.
        """
        self._on = False
        if self._folder.exists():
            self._consent.keep(False)
        station = self._station
        if station is not None:
            station.stop(2.0)
        with self._disk:
            self._station = None
            self._fresh()
            if station is not None:
                station.erase()
            else:
                forget(self._folder, self._setup)

    def preview(self) -> dict[str, Any]:
        """What was counted since the last flush, as an ``edgekit.telemetry/1`` document."""
        now = int(self._setup.clock.wall() * 1e9)
        with self._lock:
            return document(self._resource, self._window.to_metrics(now, now))

    # -- keeping and sending ----------------------------------------------------------------------

    def flush(self) -> bool:
        """Brings what was counted to the disk.

        Returns:
            whether it is there. If not, it stays counted, in bounded memory, for the next time.
        """
        with self._disk:
            if not self._on or self._station is None:
                return False
            return self._station.journal.flush(self._swap)

    def upload(self) -> float:
        """Makes one request at most; only without ``background``.

        Returns:
            seconds after which to call it again.

        Raises:
            UsageError: there is no server, no consent, or a thread does it.
        """
        uploader = None if self._station is None else self._station.uploader
        if uploader is None or self._setup.background:
            raise UsageError("upload() is for a recorder with a server, consent and no background")
        return uploader.step()

    def counts(self) -> Counts:
        """What became of the records; all zero without consent."""
        station = self._station
        return Counts(0, 0, {}, 0) if station is None else station.spool.counts()

    def close(self, timeout_s: float = 2.0) -> None:
        """Brings all to the disk and stops; a request that is under way is broken off.

        Args:
            timeout_s: how long to wait for the threads, in seconds.
        """
        station = self._station
        if station is None:
            return
        station.stop(timeout_s)
        with self._disk:
            self.flush()
            self._on = False
            self._station = None
            station.spool.close()

    # -- inside -----------------------------------------------------------------------------------

    def _fresh(self) -> None:
        with self._lock:
            self._window = Aggregate(self._draws)
            self._window.forget()

    def _swap(self) -> Aggregate | None:
        """The window that is over, for a new one; None where it is empty."""
        now = self._setup.clock.wall()
        with self._lock:
            taken = self._window.taken(now)
            if self._window.empty and not taken:
                return None
            done, self._window = self._window, Aggregate(self._draws)
        done.pay(taken, now)
        return None if done.empty else done

    def _keep_event(self, name: str, about: Mapping[str, object], *, failed: bool) -> None:
        with self._disk:
            if self._on and self._station is not None:
                self._station.journal.keep(name, about, failed=failed)

    def _start(self) -> None:
        self._station = Station(self._folder, self._setup, self._resource, self.flush)
        self._fresh()
        self._on = True
        self._station.start()


_OPEN: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _forked() -> None:
    for recorder in _OPEN:
        recorder._on, recorder._station = False, None
        recorder._lock, recorder._disk = threading.Lock(), threading.RLock()


os.register_at_fork(after_in_child=_forked)
