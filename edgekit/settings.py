"""Settings: what a recipe and its verbs can be told, frozen, and noting who reads what.

    class Config(Settings):
        epochs: int = 16
        distill: DistillSettings = DistillSettings(temperature=4.0)

A stage of a recipe is made again only when a setting that it *read* has another value, so reading
is recorded: while `reading` lasts, every field that is looked at leaves its dotted path and value
in the record. Looking at a whole section, by comparing, printing or dumping it, reads all of it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from edgekit.errors import UsageError
from edgekit.names import unknown

__all__ = ["Settings", "leaves", "reading", "rooted", "with_overrides"]

Reads = dict[str, Any]
S = TypeVar("S", bound="Settings")


class _Recorder:
    """The record that is being kept, if one is: of the whole process, its threads included."""

    reads: Reads | None = None
    aside: Path | None = None


class _Aside(Reads):
    """The record in a process that was forked: it leaves what is read in a file."""

    def __setitem__(self, name: str, value: Any) -> None:
        if _Recorder.aside is not None:
            with _Recorder.aside.open("a") as file:
                file.write(f"{name}\n")


def _forked() -> None:
    if _Recorder.reads is not None:
        _Recorder.reads = _Aside()


os.register_at_fork(after_in_child=_forked)


_WHOLE: Final = frozenset(("__dict__", "__iter__", "__eq__", "__repr__", "__str__", "__hash__"))
"""What shows every field of a section at once. Special methods are looked up on the type, past
`__getattribute__`; pydantic's own, and `model_dump`, come to `__dict__` in the end."""


class Settings(BaseModel):
    """Base of a recipe's settings and of its sections: frozen, unknown names refused.

    Give every field a type and a default. Fields may be Settings themselves, strings, numbers,
    booleans, None, paths, and tuples of those.
    """

    model_config = ConfigDict(
        # Sections are copied where they are put, so that each can know its own place.
        extra="forbid",
        frozen=True,
        validate_default=True,
        revalidate_instances="always",
    )

    # What goes before a field's name in its dotted path; None outside of a recipe's settings.
    _place: str | None = PrivateAttr(default=None)

    def __getattribute__(self, name: str) -> Any:
        record = _Recorder.reads
        if record is None or (name.startswith("_") and name not in _WHOLE):
            return super().__getattribute__(name)
        if name in _WHOLE:
            _read_whole(self)
        value = super().__getattribute__(name)
        field = type(self).model_fields.get(name)
        if field is not None and isinstance(value, Settings):
            if not isinstance(field.annotation, type):
                _read_whole(value)  # that it is there at all is read: it may be None
        elif field is not None:
            place = self._place
            if place is not None:
                record[f"{place}{name}"] = value
        return value

    def __eq__(self, other: object) -> bool:
        _read_whole(self)
        return super().__eq__(other)

    def __hash__(self) -> int:
        _read_whole(self)
        return hash((type(self), tuple(leaves(self).items())))

    def __repr__(self) -> str:
        _read_whole(self)
        return super().__repr__()

    def __str__(self) -> str:
        _read_whole(self)
        return super().__str__()

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """See pydantic; reads every field."""
        _read_whole(self)
        return super().model_dump(**options)

    def model_dump_json(self, **options: Any) -> str:
        """See pydantic; reads every field."""
        _read_whole(self)
        return super().model_dump_json(**options)

    def model_copy(self, **options: Any) -> Self:
        """See pydantic; reads every field. What is read of the copy is not recorded."""
        _read_whole(self)
        return _settled(super().model_copy(**options), None)


@contextlib.contextmanager
def reading(aside: Path | None = None) -> Iterator[Reads]:
    """Records the settings that are read while it lasts, in any thread: dotted path to value.

    Args:
        aside: a file for the paths of what forked processes read, one a line.
    """
    before, record = (_Recorder.reads, _Recorder.aside), dict[str, Any]()
    _Recorder.reads, _Recorder.aside = record, aside
    try:
        yield record
    finally:
        _Recorder.reads, _Recorder.aside = before


def rooted(settings: S) -> S:
    """A copy of a recipe's settings whose fields are recorded when they are read."""
    return _settled(type(settings).model_validate(settings), "")


def leaves(settings: Settings) -> dict[str, Any]:
    """Every field of the settings and of their sections: dotted path to value. Records nothing."""
    found: dict[str, Any] = {}
    _read_all(settings, "", found)
    return found


def with_overrides(settings: Settings, overrides: Mapping[str, str]) -> Settings:
    """The settings with some of them replaced, as ``-s section.name=value`` asks for.

    Args:
        settings: the defaults.
        overrides: dotted path to text, which is read by the field's type: JSON where it is JSON,
            else the text itself.

    Raises:
        UsageError: no such setting, a section was given a value, or the value does not fit.
    """
    known = leaves(settings)
    tree = settings.model_dump(mode="python")
    for path, text in overrides.items():
        if path not in known:
            inside = [p for p in known if p.startswith(f"{path}.")]
            if inside:
                raise UsageError(
                    f"{path!r} is a section, not a setting", hint=f"in it: {', '.join(inside)}"
                )
            raise UsageError(unknown("setting", path, known))
        *sections, name = path.split(".")
        place = tree
        for section in sections:
            place = place[section]
        kept = place[name]
        for value in _readings(text):
            place[name] = value
            with contextlib.suppress(ValidationError):
                type(settings).model_validate(tree)
                break
        else:
            place[name] = kept
            raise UsageError(f"setting {path} can't be {text!r}: {_misfit(settings, path, text)}")
    return type(settings).model_validate(tree)


def _readings(text: str) -> list[Any]:
    """What ``text`` may mean: a JSON value, or itself (a name such as ``12`` is both)."""
    try:
        return [json.loads(text), text]
    except ValueError:
        return [text]


def _misfit(settings: Settings, path: str, text: str) -> str:
    """What pydantic has against ``text`` as the setting at ``path``."""
    tree = settings.model_dump(mode="python")
    *sections, name = path.split(".")
    place = tree
    for section in sections:
        place = place[section]
    place[name] = _readings(text)[0]
    try:
        type(settings).model_validate(tree)
    except ValidationError as error:
        return error.errors(include_url=False)[0]["msg"].lower()
    return "it does not fit"


def _settled(settings: S, place: str | None) -> S:
    settings._place = place
    for name, value in _values(settings):
        if isinstance(value, Settings):
            _settled(value, None if place is None else f"{place}{name}.")
    return settings


def _read_whole(settings: Settings) -> None:
    record, place = _Recorder.reads, settings._place
    if record is not None and place is not None:
        _read_all(settings, place, record)


def _read_all(settings: Settings, place: str, record: Reads) -> None:
    for name, value in _values(settings):
        if isinstance(value, Settings):
            _read_all(value, f"{place}{name}.", record)
        else:
            record[f"{place}{name}"] = value


def _values(settings: Settings) -> list[tuple[str, Any]]:
    # BaseModel's own attribute access, which does not record.
    return list(BaseModel.__getattribute__(settings, "__dict__").items())
