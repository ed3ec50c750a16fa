"""Watch: looks at the fleet at an interval, for alerts and for Prometheus.

Scrapes read what the last look left, however often they come. A look takes its reports beside
ingest, one after the other; deliveries to the webhook have a thread of their own, so that one that
hangs holds up neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from edgekit.errors import EdgekitError
from edgekit.runtime.drift_reference import DriftReference
from edgekit.telemetry.alerts import Alerts, Waiting, load, save
from edgekit.telemetry.cohorts import DEFAULT_K, Window
from edgekit.telemetry.judging import Finding, judge
from edgekit.telemetry.report import report
from edgekit.telemetry.rules import Rule, Rules
from edgekit.telemetry.store import Reader
from edgekit.telemetry.webhook import Outcome, Webhook

__all__ = ["DEFAULT_INTERVAL_S", "Fleet", "Read", "Watch", "Watched"]

log = logging.getLogger("edgekit.telemetry")

_T = TypeVar("_T")
Read = Callable[[Callable[[Reader], Any]], Awaitable[Any]]
"""Runs a function on one state of the store."""

DEFAULT_INTERVAL_S: Final = 300.0
_LONGEST_S: Final = 86_400.0
_FIRST_BACK_OFF_S: Final = 2.0
_LONGEST_BACK_OFF_S: Final = 900.0


@dataclass(frozen=True)
class Watched:
    """What is looked at, and how often.

    Attributes:
        interval_s: between two looks.
        days: that the fleet's gauges are of, the present one among them.
        baseline_days: before them, that their drift is told against.
        k: devices that anything is of, at least.
        references: of bundles, which drift is told against, too.
    """

    interval_s: float = DEFAULT_INTERVAL_S
    days: int = 2
    baseline_days: int = 28
    k: int = DEFAULT_K
    references: Sequence[DriftReference] | None = None


@dataclass(frozen=True)
class Fleet:
    """The last look at the fleet: a report by model and version, when, and how long it took."""

    report: dict[str, Any]
    at_s: float
    took_s: float


class Watch:
    """Looks, and tells.

    Args:
        read: runs a function on one state of the store.
        rules: what alerts are raised by.
        state: the file that alerts are kept in over a restart; None: they are not.
        watched: what is looked at.
        clock: seconds since 1970.

    Attributes:
        alerts: as they are now.
        fleet: of the last look; None before the first.
        delivered: attempts at the webhook, by ``ok``, ``failed``, ``given_up``.
        looked_s: when rules were looked at last.

    Raises:
        BadData: the file of alerts is none.
    """

    def __init__(
        self,
        read: Read,
        rules: Rules,
        state: Path | None,
        watched: Watched | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._read, self._state, self._clock = read, state, clock
        self.rules, self.watched = rules, watched or Watched()
        self.alerts = Alerts() if state is None else load(state)
        self.fleet: Fleet | None = None
        self.delivered: Counter[str] = Counter()
        self.looked_s: float | None = None
        self._kept = True

    async def run(self) -> None:
        """Looks and tells until it is cancelled."""
        await asyncio.gather(self._looking(), self._telling())

    async def _looking(self) -> None:
        while True:
            await self._safely(self.look)
            await asyncio.sleep(self.watched.interval_s)

    async def _telling(self) -> None:
        while True:
            await self._safely(self.tell)
            await asyncio.sleep(min(1.0, self.watched.interval_s))

    async def _safely(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except EdgekitError as error:
            log.error("the watch could not look", extra={"reason": str(error)})
        except Exception:
            # The next look may do better; without it there would be no alerts and no sign of that.
            log.exception("the watch failed")

    # -- looking ----------------------------------------------------------------------------------

    async def look(self) -> None:
        """Looks once at the rules, then at the fleet.

        Raises:
            StorageError: the store cannot be read, or the alerts cannot be kept.
        """
        now_s = self._clock()
        self.alerts.keep(self.rules.rules, now_s)
        for rule in self.rules.rules:
            finding: Finding = await self._read(partial(self._judge, rule, now_s))
            self.alerts.look(rule, finding, now_s)
        self.looked_s = now_s
        if self.rules.webhook is None:
            self.alerts.waiting.clear()
        self._keep()
        begun = time.perf_counter()
        found = await self._read(partial(self._report, now_s))
        self.fleet = Fleet(found, now_s, time.perf_counter() - begun)

    def _judge(self, rule: Rule, now_s: float, store: Reader) -> Finding:
        looks = 86_400 / self.watched.interval_s
        references = self.watched.references or ()
        return judge(store, rule, now_s=now_s, k=self.watched.k, looks=looks, references=references)

    def _report(self, now_s: float, store: Reader) -> dict[str, Any]:
        today = int(now_s // 86_400)
        first = today - self.watched.days + 1
        return report(
            store,
            Window(first, today),
            by=("model", "version"),
            k=self.watched.k,
            baseline=Window(first - self.watched.baseline_days, first - 1),
            references=self.watched.references,
        )

    def _keep(self) -> None:
        state = self._state
        if state is None or not (self.alerts.by_rule or self.alerts.waiting or state.exists()):
            return
        try:
            save(self.alerts, state)
        except EdgekitError as error:
            # Told all the same: better twice than not at all.
            if self._kept:
                log.error("alerts are not kept over a restart", extra={"reason": str(error)})
            self._kept = False
        else:
            self._kept = True

    # -- telling ----------------------------------------------------------------------------------

    async def tell(self) -> None:
        """Delivers what is due; of one alert, what happened first first."""
        webhook = self.rules.webhook
        held: set[str] = set()
        for one in list(self.alerts.waiting) if webhook is not None else ():
            assert webhook is not None
            if one.after_s <= self._clock() and one.document["alert"] not in held:
                self._told(one, await _posted(webhook, one.document))
                self._keep()
            if one in self.alerts.waiting:
                held.add(one.document["alert"])

    def _told(self, one: Waiting, outcome: Outcome) -> None:
        one.attempts += 1
        now_s = self._clock()
        over = not outcome.again or now_s - one.document["at_s"] > _LONGEST_S
        if not outcome.delivered:
            self.delivered["given_up" if over else "failed"] += 1
            log.warning(
                "the webhook did not take an alert",
                extra={"reason": outcome.said, "rule": one.document["name"],
                       "attempts": one.attempts, "given_up": over},
            )  # fmt: skip
            if not over:
                one.after_s = now_s + _back_off(one, outcome.after_s)
                return
        else:
            self.delivered["ok"] += 1
        if one in self.alerts.waiting:
            self.alerts.waiting.remove(one)

    # -- telling others ---------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """A document of the form ``edgekit.telemetry-alerts/1``."""
        rows = []
        for rule in self.rules.rules:
            alert = self.alerts.by_rule.get(rule.name)
            row: dict[str, Any] = {**Finding(None, None, "not looked at yet").to_json()}
            state, since_s = "unknown", None
            if alert is not None and alert.digest == rule.digest:
                row = dict(alert.last)
                since_s = int(alert.since_s)
                state = "unknown" if alert.state == "ok" and not alert.told else alert.state
            named = {"name": rule.name, "kind": rule.kind, "where": dict(rule.where)}
            rows.append({**named, "state": state, "since_s": since_s, **row})
        return {
            "schema": "edgekit.telemetry-alerts/1",
            "looked_s": None if self.looked_s is None else int(self.looked_s),
            "interval_s": self.watched.interval_s,
            "rules": rows,
            "webhook": None
            if self.rules.webhook is None
            else {
                "waiting": len(self.alerts.waiting),
                "lost": self.alerts.lost,
                **{name: self.delivered[name] for name in ("ok", "failed", "given_up")},
            },
        }


async def _posted(webhook: Webhook, document: dict[str, Any]) -> Outcome:
    """Posts in a thread that nobody waits for when the receiver ends, unlike an executor's."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Outcome] = loop.create_future()

    def settle(outcome: Outcome) -> None:
        if not answer.done():
            answer.set_result(outcome)

    def post() -> None:
        outcome = webhook.post(document)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=post, name="edgekit-telemetry-webhook", daemon=True).start()
    return await answer


def _back_off(waiting: Waiting, after_s: float | None) -> float:
    """Twice as long every time, a random half of it left out; no less than what was asked for."""
    doubled = _FIRST_BACK_OFF_S * 2.0 ** min(waiting.attempts - 1, 20)
    longest = min(_LONGEST_BACK_OFF_S, doubled)
    return max(after_s or 0.0, longest * random.uniform(0.5, 1.0))
