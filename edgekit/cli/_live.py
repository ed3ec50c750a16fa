"""A run as it goes, on stderr: a table that is kept up to date, or lines off a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from edgekit.cli import _output
from edgekit.cli._output import note

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from edgekit.recipe.engine import Outcome, Planned

__all__ = ["View", "shown"]

EVERY_S: Final = 30.0
"""Off a terminal a stage's steps are told so often."""


@dataclass
class _Row:
    """What is known of a stage."""

    state: str
    what: str = ""
    done: int = 0
    total: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    begun: float | None = None
    stepped: float | None = None
    said: float = 0.0
    took: float | None = None

    @property
    def left(self) -> float | None:
        """Seconds that its steps will still take, by those that were made."""
        if self.stepped is None or self.begun is None or not 0 < self.done < self.total:
            return None
        return (self.stepped - self.begun) / self.done * (self.total - self.done)

    @property
    def words(self) -> tuple[str, str, str]:
        """Steps, figures, and the time that is left, as far as they are known."""
        figures = " ".join(f"{k} {v:.4g}" for k, v in self.figures.items())
        left = "" if self.left is None else f"{self.left:.0f} s left"
        return f"{self.done}/{self.total}", figures, left


class View:
    """See `edgekit.recipe.engine.View`."""

    def __init__(self) -> None:
        self.live: Live | None = None
        self._rows: dict[str, _Row] = {}

    def planned(self, stages: Sequence[Planned]) -> None:
        """Lists all stages."""
        self._rows = {s.stage: _Row("waits", s.why) for s in stages}

    def started(self, stage: str, attempt: int) -> None:
        """A stage begins, or is tried again."""
        again = "" if attempt == 1 else f", try {attempt}"
        now = time.monotonic()
        self._rows[stage] = _Row("runs", again.removeprefix(", "), begun=now, said=now)
        self._say(f"{stage}: begins{again}")

    def told(self, stage: str, event: Mapping[str, Any]) -> None:
        """A step, a note, or a new part of the work."""
        row = self._rows[stage]
        if event["event"] == "step":
            row.done, row.total, row.figures = event["done"], event["total"], event["figures"]
            row.stepped = now = time.monotonic()
            if self.live is None and row.total and now - row.said >= EVERY_S:
                row.said = now
                note(" ".join(filter(None, (f"{stage}:", *row.words))))
        elif event["event"] == "note":
            self._say(f"{stage}: {event['text']}", keep=True)
        elif event["event"] == "doing":
            row.what, row.done, row.total, row.figures = event["text"], 0, 0, {}
            row.begun = time.monotonic()
            self._say(f"{stage}: {event['text']}")

    def ended(self, stage: str, outcome: Outcome) -> None:
        """A stage is settled."""
        row = self._rows[stage] = _Row(outcome.status, outcome.reason or "", took=outcome.wall_s)
        if outcome.cached:
            row.state = "cached"
        took = f" in {outcome.wall_s:.1f} s" if outcome.wall_s and not outcome.cached else ""
        why = f": {outcome.reason}" if outcome.status == "skipped" else ""
        self._say(f"{stage}: {row.state}{took}{why}")

    def _say(self, line: str, *, keep: bool = False) -> None:
        if self.live is None:
            note(line)
        elif keep:
            self.live.console.print(line, markup=False)

    def table(self) -> Table:
        """All stages as they are now; asked for several times a second, so that time goes on."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        for name, row in list(self._rows.items()):
            style = {"runs": "bold", "failed": "red", "ok": "green"}.get(row.state, "dim")
            took = row.took
            if row.state == "runs" and row.begun is not None:
                took = time.monotonic() - row.begun
            bar: object = ""
            if row.state == "runs" and row.total:
                bar = ProgressBar(total=row.total, completed=row.done, width=24)
            steps, figures, left = row.words
            steps = steps if bar else row.what.partition("\n")[0][:48]
            cells = (row.state, bar, steps, figures, "" if took is None else f"{took:.0f} s", left)
            grid.add_row(name, *cells, style=style)  # type: ignore[arg-type]
        return grid


@contextlib.contextmanager
def shown() -> Iterator[View]:
    """A view: live on a terminal, else lines."""
    view = View()
    if not _output.draws():
        yield view
        return
    from rich.live import Live

    console = _output.console()
    with Live(
        get_renderable=view.table, console=console, refresh_per_second=4, transient=True
    ) as view.live:
        yield view
