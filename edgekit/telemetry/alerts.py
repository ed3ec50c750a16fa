"""Alerts: when what rules find is told, and when it is over. No clock, no store, no network.

An alert is pending once its rule is beyond its limit, and fires when it has been so at every look
for as long as the rule says. It resolves when it has been clear, which is farther from the limit
than not beyond, at every look for as long as the rule says: between the two it stays what it is, so
that a value about the limit is told once. A look that could not tell breaks a pending alert off,
and leaves one that fires as it is.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from edgekit.errors import BadData, StorageError
from edgekit.runtime._files import read_file
from edgekit.telemetry.judging import Finding
from edgekit.telemetry.rules import Rule

__all__ = ["Alert", "Alerts", "Waiting", "load", "save"]

_VERSION: Final = 1
_MOST_BYTES: Final = 16 * 2**20
_MOST_WAITING: Final = 1_000


@dataclass
class Alert:
    """One rule's.

    Attributes:
        state: ``ok``, ``pending`` or ``firing``.
        digest: of the rule.
        id: of this time that it fires; empty otherwise.
        since_s: since when it has been in its state, in seconds since 1970.
        clear_s: since when it has been clear while it fires; None where it is not.
        last: the figures of the last look.
        told: whether that could tell.
    """

    state: str
    digest: str
    since_s: float
    id: str = ""
    clear_s: float | None = None
    last: dict[str, Any] = field(default_factory=dict)
    told: bool = False


@dataclass
class Waiting:
    """A document that is to be delivered.

    Attributes:
        document: of the form ``edgekit.telemetry-alert/1``.
        attempts: that were made.
        after_s: not before, in seconds since 1970.
    """

    document: dict[str, Any]
    attempts: int = 0
    after_s: float = 0.0


@dataclass
class Alerts:
    """All rules' alerts, and what is still to be told of them.

    Attributes:
        by_rule: by name.
        waiting: in the order in which it happened.
        lost: documents that were given up for newer ones.
    """

    by_rule: dict[str, Alert] = field(default_factory=dict)
    waiting: list[Waiting] = field(default_factory=list)
    lost: int = 0

    def look(self, rule: Rule, finding: Finding, now_s: float) -> None:
        """Takes in what a rule found."""
        alert = self.by_rule.get(rule.name)
        if alert is None:
            alert = self.by_rule[rule.name] = Alert("ok", rule.digest, now_s)
        alert.last, alert.told = finding.to_json(), finding.beyond is not None
        if alert.state == "firing":
            self._look_firing(alert, rule, finding, now_s)
        elif finding.beyond:
            if alert.state == "ok":
                alert.state, alert.since_s = "pending", now_s
            if now_s - alert.since_s >= rule.for_s:
                alert.state, alert.since_s, alert.id = "firing", now_s, uuid.uuid4().hex
                self._tell(rule.name, rule.to_json(), alert, "firing", "", now_s)
        elif alert.state == "pending":
            alert.state, alert.since_s = "ok", now_s

    def _look_firing(self, alert: Alert, rule: Rule, finding: Finding, now_s: float) -> None:
        if finding.clear is None:
            return
        if not finding.clear or finding.beyond:
            alert.clear_s = None
            return
        if alert.clear_s is None:
            alert.clear_s = now_s
        if now_s - alert.clear_s >= rule.clear_s:
            self._tell(rule.name, rule.to_json(), alert, "resolved", "clear", now_s)
            alert.state, alert.since_s, alert.id, alert.clear_s = "ok", now_s, "", None

    def keep(self, rules: Iterable[Rule], now_s: float) -> None:
        """Lets go of alerts of rules that are not there any more, or ask something else now. One
        that fires is resolved, with the reason ``removed``."""
        digests = {rule.name: rule.digest for rule in rules}
        for name, alert in list(self.by_rule.items()):
            if digests.get(name) != alert.digest:
                if alert.state == "firing":
                    self._tell(name, None, alert, "resolved", "removed", now_s)
                del self.by_rule[name]

    def _tell(
        self,
        name: str,
        rule: Mapping[str, Any] | None,
        alert: Alert,
        state: str,
        reason: str,
        now_s: float,
    ) -> None:
        document = {
            "schema": "edgekit.telemetry-alert/1",
            "id": uuid.uuid4().hex,
            "alert": alert.id,
            "name": name,
            "rule": None if rule is None else dict(rule),
            "state": state,
            "reason": reason,
            "at_s": int(now_s),
            "since_s": int(alert.since_s),
            **alert.last,
        }
        self.waiting.append(Waiting(document))
        while len(self.waiting) > _MOST_WAITING:
            del self.waiting[0]
            self.lost += 1


def load(path: Path) -> Alerts:
    """What was saved; of no file, no alerts.

    Raises:
        BadData: the file is none of this version.
    """
    if not path.exists():
        return Alerts()
    data = read_file(path, _MOST_BYTES, "alerts")
    try:
        document = json.loads(data)
        if document["version"] != _VERSION:
            raise BadData(
                f"{path} is of version {document['version']}, this edgekit reads {_VERSION}",
                hint="use the edgekit that wrote it, or remove it: what fires then fires anew",
            )
        by_rule = {str(name): Alert(**alert) for name, alert in document["alerts"].items()}
        waiting = [Waiting(**one) for one in document["waiting"]]
        return Alerts(by_rule, waiting, int(document["lost"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadData(
            f"{path} holds no alerts: {type(error).__name__}",
            hint="remove it: what fires then fires anew",
        ) from error


def save(alerts: Alerts, path: Path) -> None:
    """Writes them aside, then renames: a cut leaves the ones before. Only its owner may read it.

    Raises:
        StorageError: no space or no permission; what was there before stays.
    """
    document = {
        "version": _VERSION,
        "alerts": {name: asdict(alert) for name, alert in alerts.by_rule.items()},
        "waiting": [asdict(one) for one in alerts.waiting],
        "lost": alerts.lost,
    }
    aside = path.with_name(f".{path.name}")
    try:
        opened = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(opened, "w") as file:
            json.dump(document, file, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}") from error
