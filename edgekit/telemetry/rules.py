"""Rules: what alerts are raised by, read from a TOML file.

    [webhook]
    url = "https://ops.example/hook"
    secret_env = "FLEET_WEBHOOK_SECRET"

    [[rule]]
    name = "errors-on-pixel-8"
    kind = "error_rate"
    where = { model = "net", device = "pixel-8" }
    limit = 0.02
    for_minutes = 30

`KINDS` has what each kind takes, with what is allowed and what it is without being told.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from edgekit.errors import BadData
from edgekit.names import unknown
from edgekit.runtime._files import read_file
from edgekit.telemetry.cohorts import BASE
from edgekit.telemetry.tables import DEVICE_DAYS
from edgekit.telemetry.webhook import Webhook, read_webhook

__all__ = ["KINDS", "Rule", "Rules", "read_rules", "rules_of"]

_MOST_BYTES: Final = 2**20
_MOST_RULES: Final = 200
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")


@dataclass(frozen=True)
class _Key:
    """What a key of a rule may be.

    Attributes:
        kind: ``number``, ``whole`` or ``text``.
        low, high: of numbers; ``open`` ends are not among them.
        default: None where it has to be given.
    """

    kind: str
    low: float = 0.0
    high: float = 0.0
    open: bool = False
    default: float | str | None = None

    @property
    def allowed(self) -> str:
        """For messages."""
        if self.kind == "text":
            return "a text"
        what = "a whole number" if self.kind == "whole" else "a number"
        ends = "between" if self.open else "from"
        to = "and" if self.open else "to"
        return f"{what} {ends} {self.low:g} {to} {self.high:g}"

    def holds(self, value: object) -> bool:
        """Whether it may be that."""
        if self.kind == "text":
            return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()
        # A bool is an int, too.
        if type(value) is not int and (self.kind == "whole" or type(value) is not float):
            return False
        assert isinstance(value, int | float)
        inside = self.low < value < self.high if self.open else self.low <= value <= self.high
        return bool(inside)


_SHARE: Final = _Key("number", 0, 1, open=True)
_DAYS: Final = _Key("whole", 1, DEVICE_DAYS, default=1)
_ENOUGH: Final = {
    "days": _DAYS,
    "least_devices": _Key("whole", 2, 2**31, default=10),
    "least_requests": _Key("whole", 1, 2**53, default=100),
    "false_alarms": _Key("number", 1e-9, 0.5, open=True, default=0.01),
}
_HELD: Final = {
    "for_minutes": _Key("number", 0, 7 * 1440, default=0.0),
    "clear_minutes": _Key("number", 0, 7 * 1440, default=30.0),
}
_RATE: Final = {**_ENOUGH, "limit": _SHARE, "clear": _Key("number", 0, 1, default=-1.0)}

KINDS: Final[Mapping[str, Mapping[str, _Key]]] = {
    "error_rate": _RATE,
    "crash_rate": _RATE,
    "fallback_rate": _RATE,
    "latency": {
        **_ENOUGH,
        "percentile": _Key("number", 1, 100, open=True),
        "limit_ms": _Key("number", 0, 1e7, open=True),
        "clear_ms": _Key("number", 0, 1e7, default=-1.0),
        "source": _Key("text", default="device"),
    },
    "drift": {
        **_ENOUGH,
        "against": _Key("text", default="days"),
        "baseline_days": _Key("whole", 1, 365, default=28),
        "clear": _Key("number", 0, 1, open=True, default=0.8),
    },
    "canary": {
        "days": _Key("whole", 1, DEVICE_DAYS, default=14),
        "least_devices": _ENOUGH["least_devices"],
        "false_alarms": _ENOUGH["false_alarms"],
        "control": _Key("text"),
        "canary": _Key("text"),
    },
    "silence": {"hours": _Key("number", 1, 24 * 30)},
}
"""Keys of each kind, beside those that all have (`_COMMON`)."""

_CLEARS: Final = {"clear": "limit", "clear_ms": "limit_ms"}
_COMMON: Final = ("name", "kind", "where", *_HELD)


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: of it, and of its alert.
        kind: out of `KINDS`.
        where: values that columns of `BASE` must have.
        for_s: how long it must hold without a break before its alert fires, in seconds.
        clear_s: how long it must be clear before the alert resolves.
        settings: what `KINDS` has for its kind, as given or as they are without.
    """

    name: str
    kind: str
    where: Mapping[str, str]
    for_s: float
    clear_s: float
    settings: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Of what it asks: an alert of another rule of the same name is another alert."""
        asked = [self.kind, dict(self.where), self.for_s, self.clear_s, dict(self.settings)]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """As a rules file has it."""
        held = {"for_minutes": self.for_s / 60, "clear_minutes": self.clear_s / 60}
        named = {"name": self.name, "kind": self.kind, "where": dict(self.where)}
        return {**named, **held, **self.settings}


@dataclass(frozen=True)
class Rules:
    """A rules file.

    Attributes:
        rules: each with a name of its own.
        webhook: where alerts go to; None: nowhere but to Prometheus and the page.
    """

    rules: tuple[Rule, ...] = ()
    webhook: Webhook | None = field(default=None, repr=False)


def read_rules(path: Path) -> Rules:
    """Reads a file.

    Raises:
        BadData: it is no TOML, or something in it is not allowed; the message names the rule, the
            key, and what is allowed.
        TrustError: others may read the webhook's secret.
    """
    data = read_file(path, _MOST_BYTES, "rules")
    if len(data) > _MOST_BYTES:
        raise BadData(f"{path} has more than {_MOST_BYTES} bytes")
    try:
        document = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadData(f"{path} is no TOML: {error}") from error
    for key in document:
        if key not in ("webhook", "rule"):
            raise BadData(f"{path}: {unknown('key', key, ('webhook', 'rule'))}")
    rules = rules_of(document.get("rule", []), str(path))
    if not rules:
        raise BadData(f"{path} has no rule", hint="a rule begins with [[rule]]")
    webhook = document.get("webhook")
    return Rules(rules, None if webhook is None else read_webhook(webhook, path))


def rules_of(found: object, place: str) -> tuple[Rule, ...]:
    """Rules as TOML or JSON has them: a list of tables.

    Args:
        found: the list.
        place: what it is called in messages.

    Raises:
        BadData: as of `read_rules`.
    """
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise BadData(f"{place}: rules are tables, each beginning with [[rule]]")
    if len(found) > _MOST_RULES:
        raise BadData(f"{place} has {len(found)} rules, at most {_MOST_RULES} are allowed")
    rules: list[Rule] = []
    for number, table in enumerate(found, 1):
        rule = _rule(table, f"{place}, rule {number}")
        if any(rule.name == other.name for other in rules):
            raise BadData(f"{place}: two rules are named {rule.name!r}")
        rules.append(rule)
    return tuple(rules)


def _rule(table: Mapping[str, Any], place: str) -> Rule:
    name = table.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadData(
            f"{place}: name is {name!r}; small letters, digits and -._ are allowed, 1 to 64"
        )
    place = f"{place} ({name})"
    kind = table.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadData(f"{place}: {unknown('kind', str(kind), KINDS)}")
    keys = KINDS[kind]
    for key in table:
        if key not in keys and key not in _COMMON:
            message = unknown("key", key, (*_COMMON, *keys))
            raise BadData(f"{place}, of kind {kind}: {message}")
    settings = {key: _value(table, key, about, place) for key, about in keys.items()}
    for clear, limit in _CLEARS.items():
        if limit in settings:
            settings[clear] = _clear(settings[clear], settings[limit], clear, limit, place)
    held = {key: _value(table, key, about, place) for key, about in _HELD.items()}
    rule = Rule(
        name,
        kind,
        _where(table.get("where", {}), place),
        held["for_minutes"] * 60,
        held["clear_minutes"] * 60,
        settings,
    )
    _check_kind(rule, place)
    return rule


def _value(table: Mapping[str, Any], key: str, about: _Key, place: str) -> Any:
    if key not in table:
        if about.default is None:
            raise BadData(f"{place}: {key} is missing; allowed: {about.allowed}")
        return about.default
    value = table[key]
    if not about.holds(value):
        raise BadData(f"{place}: {key} is {value!r}; allowed: {about.allowed}")
    return value


def _clear(value: float, limit: float, clear: str, name: str, place: str) -> float:
    if value == -1.0:
        return 0.8 * limit
    if value > limit:
        raise BadData(f"{place}: {clear} is {value:g}; allowed: up to its {name}, {limit:g}")
    return value


def _where(found: object, place: str) -> dict[str, str]:
    if not isinstance(found, dict):
        raise BadData(f"{place}: where is {found!r}; allowed: a table of {', '.join(BASE)}")
    for column, value in found.items():
        if column not in BASE:
            raise BadData(f"{place}: where: {unknown('column', column, BASE)}")
        if not isinstance(value, str) or not value.isprintable():
            raise BadData(f"{place}: where.{column} is {value!r}; allowed: a text")
    return dict(found)


def _check_kind(rule: Rule, place: str) -> None:
    checks: Mapping[str, Callable[[], str]] = {
        "drift": lambda: _check_drift(rule),
        "canary": lambda: _check_canary(rule),
        "latency": lambda: (
            ""
            if rule.settings["source"] in ("device", "cloud")
            else f"source is {rule.settings['source']!r}; allowed: device, cloud"
        ),
    }
    message = checks.get(rule.kind, str)()
    if message:
        raise BadData(f"{place}: {message}")


def _check_drift(rule: Rule) -> str:
    if rule.settings["against"] not in ("days", "bundle"):
        return f"against is {rule.settings['against']!r}; allowed: days, bundle"
    return "" if "model" in rule.where else "where.model is missing: drift is of one"


def _check_canary(rule: Rule) -> str:
    if "version" in rule.where:
        return "where.version is not allowed: the versions are control and canary"
    if rule.settings["control"] == rule.settings["canary"]:
        return "canary is the control; allowed: another version"
    return ""
