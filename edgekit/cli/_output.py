"""What every verb writes, and where: results to stdout, everything else to stderr.

A verb calls `emit` once with its document; on the way it may `note` a step or show `progress`.
rich is imported only to draw on a terminal, so a verb in a script or in CI does without it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "console",
    "document_json",
    "emit",
    "json_option",
    "note",
    "progress",
    "table",
    "verbosity_options",
]

F = TypeVar("F", bound=Callable[..., Any])


class _State:
    """What the options asked for, and whether the result is written."""

    def __init__(self) -> None:
        self.quiet = self.verbose = self.emitted = False


_state = _State()


def reset() -> None:
    """Forgets the last invocation: normal verbosity, nothing written."""
    _state.quiet = _state.verbose = _state.emitted = False


def emitted() -> bool:
    """Whether this invocation has written its document."""
    return _state.emitted


def debugging(options: Sequence[str]) -> bool:
    """Whether tracebacks are asked for, by ``-v`` (parsed or not yet) or ``EDGEKIT_DEBUG``."""
    asked = _state.verbose or "-v" in options or "--verbose" in options
    return asked or os.environ.get("EDGEKIT_DEBUG", "") not in ("", "0")


# -- options that verbs share ---------------------------------------------------------------------


def json_option(function: F) -> F:
    """Adds ``--json``, handed to the verb as ``as_json``."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON document on stdout."
    )(function)


def verbosity_options(function: F) -> F:
    """Adds ``-q`` and ``-v``. They act here and are not handed to the verb."""

    def quiet(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        _state.quiet = _state.quiet or value

    def verbose(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        _state.verbose = _state.verbose or value

    for flags, callback, text in (
        (("-v", "--verbose"), verbose, "Say more, and show the traceback of an error."),
        (("-q", "--quiet"), quiet, "Write nothing to stderr but errors."),
    ):
        function = click.option(
            *flags, is_flag=True, expose_value=False, callback=callback, help=text
        )(function)
    return function


# -- results, on stdout ---------------------------------------------------------------------------


def emit(document: Mapping[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    """Writes a verb's result to stdout: the document itself, or the same for a reader.

    A reader that has left, as ``head`` does, does not change what the verb found out: the rest
    is dropped and the verb goes on to its exit code.

    Args:
        document: the result, with its ``schema``; see `document_json` for what it may hold.
        as_json: whether ``--json`` was given.
        text: gives the result as lines of text; called only if it is needed.

    Raises:
        OSError: stdout could not take it, for want of space.
    """
    output = document_json(document) if as_json else text()
    try:
        sys.stdout.write(output if output.endswith("\n") else f"{output}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        abandon(sys.stdout)
    _state.emitted = True


def document_json(document: Mapping[str, Any]) -> str:
    """The document as JSON: keys sorted, two spaces, ASCII, a newline at the end.

    NaN and infinities, which JSON does not have, become ``null``. Tuples, paths and numpy scalars
    and arrays are written as the JSON values they stand for.

    Raises:
        TypeError: the document holds something that JSON has no form for; names where.
    """
    plain = _plain(document, "$")
    return json.dumps(plain, sort_keys=True, indent=2, allow_nan=False) + "\n"


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(k, where): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, PurePath):
        return value.as_posix()
    # numpy's scalars and arrays, without importing numpy to ask.
    tolist = getattr(value, "tolist", None)
    if callable(tolist):
        return _plain(tolist(), where)
    raise TypeError(f"{where} is a {type(value).__name__}, which JSON has no form for")


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{where} has the key {key!r}; JSON's keys are strings")
    return key


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as aligned columns of plain text, numbers to the right; no colour, nothing cut off.

    Args:
        headers: one title per column.
        rows: cells in any type; ``None`` shows as ``-``.
    """
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    right = [
        bool(rows) and all(isinstance(row[i], int | float | None) for row in rows)
        for i in range(len(headers))
    ]
    lines = [
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in [list(headers), *cells]
    ]
    return "\n".join(lines)


# -- progress and notes, on stderr ----------------------------------------------------------------


def note(message: str, *, verbose: bool = False) -> None:
    """Writes one line to stderr, unless ``-q`` was given.

    Args:
        message: the line.
        verbose: write it only under ``-v``.
    """
    if not _state.quiet and (_state.verbose or not verbose):
        write_error(f"{message}\n")


@contextlib.contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr for work of more than two seconds; off a terminal, one plain line.

    Args:
        description: what is being done.
        total: how many steps there are; ``None`` if that is not known.

    Yields:
        A function that takes how many steps were just done.
    """
    if not draws():
        note(description)
        yield lambda _steps: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
    if total is not None:
        columns.insert(2, MofNCompleteColumn())
    with Progress(*columns, console=console(), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda steps: bar.advance(task, steps)


def console() -> Console:
    """A rich console on stderr; without colour or cursor movement off a terminal or under -q."""
    from rich.console import Console

    on_terminal = draws()
    return Console(
        file=sys.stderr,
        force_terminal=on_terminal,
        color_system="auto" if on_terminal else None,
        quiet=_state.quiet,
        highlight=False,
        soft_wrap=not on_terminal,
    )


def draws() -> bool:
    """Whether colour and bars are wanted: a terminal, no ``NO_COLOR``, no ``-q``."""
    if _state.quiet or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stderr.isatty()


def write_error(text: str) -> None:
    """Writes to stderr; a stderr that cannot take it changes nothing else."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        abandon(sys.stderr)


# -- streams that have failed ---------------------------------------------------------------------


def reader_left() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads any more; such a one is abandoned."""
    import select

    left = False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            poll = select.poll()
            poll.register(stream.fileno(), 0)
            # POLLERR on a pipe's writing end, POLLHUP on a socket or a terminal.
            if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
                abandon(stream)
                left = True
    return left


def abandon(stream: TextIO) -> None:
    """Sends what a broken stream still holds to nowhere, so that the interpreter can exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
