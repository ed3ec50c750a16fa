"""What `edgekit telemetry` finds a store by: file, database, or the receiver that has it open."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from edgekit.errors import MissingDependency, UsageError
from edgekit.names import install_command

if TYPE_CHECKING:
    from edgekit.runtime.drift_reference import DriftReference
    from edgekit.telemetry.store import Reader, Store

__all__ = [
    "alerts_file",
    "asked",
    "from_receiver",
    "is_receiver",
    "need_extra",
    "open_store",
    "private_files",
    "read_references",
    "reading",
]

_KEY: Final = "EDGEKIT_API_KEY"
_Command = TypeVar("_Command", bound=Callable[..., Any])


def asked(function: _Command) -> _Command:
    """Adds the options of what may be asked of a receiver."""
    kind = click.Path(path_type=Path, exists=True, dir_okay=False)
    words = "Trust these certificates of a receiver, in PEM."
    return click.option("--ca", type=kind, metavar="FILE", help=words)(function)


def need_extra() -> None:
    """Raises MissingDependency where the extra 'telemetry' is not installed."""
    for name in ("duckdb", "opentelemetry.proto", "uvicorn", "httptools", "uvloop"):
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            message = f"{error.name} is not installed"
            raise MissingDependency(message, hint=install_command("telemetry")) from error


def is_receiver(store: str) -> bool:
    """Whether it is the URL of a receiver."""
    return store.lower().startswith(("http://", "https://"))


def from_receiver(
    url: str,
    path: str,
    fields: Sequence[tuple[str, object]],
    k: int | None,
    ca: Path | None,
    body: object = None,
) -> dict[str, Any]:
    """What a receiver answers; see `edgekit.telemetry.asking.ask`."""
    from edgekit.telemetry.asking import ask

    fields = [*fields, *(() if k is None else (("k", k),))]
    key = os.environ.get(_KEY)
    return ask(url, path, fields, key=key or None, ca=None if ca is None else str(ca), body=body)


@contextmanager
def reading(store: str) -> Iterator[Reader]:
    """A store that no receiver has open.

    Raises:
        UsageError: there is no such file.
        BadData, Locked, StorageError: it cannot be read.
    """
    from edgekit.telemetry.store import is_postgres

    if not is_postgres(store) and not Path(store).is_file():
        raise UsageError(
            f"there is no file {store}",
            hint="a store's file or postgresql:// URL, or the URL of a receiver: http://...",
        )
    with open_store(store, read_only=True) as opened, opened.reading() as reader:
        yield reader


def open_store(store: str, *, read_only: bool = False) -> Store:
    """A store by its file or its database's URL.

    Raises:
        MissingDependency: a database needs the extra 'postgresql'.
        UsageError, BadData, Locked, StorageError: see the stores.
    """
    from edgekit.telemetry.store import is_postgres

    if not is_postgres(store):
        if "://" in store:
            raise UsageError(
                f"{store.partition('://')[0]}:// is no store's",
                hint="a file, or postgresql://USER@HOST/DATABASE",
            )
        from edgekit.telemetry.duck import DuckStore

        return DuckStore(Path(store), read_only=read_only)
    try:
        from edgekit.telemetry.postgres import PostgresStore
    except ImportError as error:
        # psycopg without its own libpq, and without the system's, says so by an ImportError.
        if error.name is not None and error.name.startswith("edgekit"):
            raise
        message = "psycopg is not installed, or finds no libpq"
        raise MissingDependency(message, hint=install_command("postgresql")) from error
    return PostgresStore(store, read_only=read_only)


@contextmanager
def private_files() -> Iterator[None]:
    """Has all files that are made be their owner's only; afterwards it is as it was before."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def read_references(bundles: Sequence[Path]) -> list[DriftReference] | None:
    """What drift is told against, of bundles; None of none.

    Raises:
        BadData, TrustError: one is no bundle, or not what its manifest says.
    """
    from edgekit.runtime.bundle import Bundle
    from edgekit.runtime.drift_reference import DriftReference

    found = []
    for path in bundles:
        with Bundle.open(path) as bundle:
            found.append(DriftReference(bundle))
    return found or None


def alerts_file(store: str, named: Path | None, rules: Path | None) -> Path | None:
    """Where alerts are kept: those of a file beside it, those of a database where it is named.

    Raises:
        UsageError: there are rules, and no place to keep their alerts.
    """
    from edgekit.telemetry.store import is_postgres

    if named is not None:
        return named
    if not is_postgres(store):
        return Path(f"{store}.alerts.json")
    if rules is not None:
        raise UsageError(
            "alerts are kept in a file over a restart, and there is none beside a database",
            hint="name one: --alerts FILE",
        )
    return None
