"""What a page consists of: sections of charts, tables, cards and notes. The template draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

__all__ = ["Block", "Card", "Cards", "Cell", "Chart", "Heading", "Note", "Row", "Section", "Table"]


@dataclass(frozen=True)
class Cell:
    """A table's cell.

    Attributes:
        text: what it says.
        kind: ``number`` stands to the right; ``mono`` is a digest or an id; ``held``, ``failed``
            and ``unknown`` are verdicts, which bear a sign as well as a colour; ``wide`` is a
            sentence; or empty.
        head: whether it names its row.
    """

    text: str
    kind: str = ""
    head: bool = False


@dataclass(frozen=True)
class Table:
    """Rows under headers, as wide as they have to be.

    Attributes:
        headers: one for each column.
        rows: cells.
        caption: what it shows.
        folded: whether it is closed until it is asked for: the figures behind a chart.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str
    folded: bool = False
    block: str = "table"


@dataclass(frozen=True)
class Chart:
    """A drawing under a title, with what has to be known to read it."""

    title: str
    drawing: Markup
    caption: str = ""
    block: str = "chart"


@dataclass(frozen=True)
class Heading:
    """Begins a part of a section: a run, an export."""

    title: str
    text: str = ""
    block: str = "heading"


@dataclass(frozen=True)
class Note:
    """A sentence; ``kind`` is ``missing`` for what there is not, or empty."""

    text: str
    kind: str = ""
    block: str = "note"


@dataclass(frozen=True)
class Row:
    """Blocks beside each other where there is room for it.

    Attributes:
        blocks: what they are.
        columns: how many stand beside each other at most, 2 or 3.
    """

    blocks: Sequence[Chart | Table | Note]
    columns: int = 2
    block: str = "row"


@dataclass(frozen=True)
class Card:
    """One sample.

    Attributes:
        title: what it was taken for, and what it is.
        verdict: ``right`` or ``wrong``.
        lines: confidences and loss.
        picture: a ``data:`` address, or None.
        alt: the picture in words.
        text: a text sample's own text, or None.
    """

    title: str
    verdict: str
    lines: Sequence[str]
    picture: str | None
    alt: str
    text: str | None


@dataclass(frozen=True)
class Cards:
    """Samples beside each other."""

    cards: Sequence[Card]
    block: str = "cards"


Block = Table | Chart | Heading | Note | Row | Cards


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        id: its anchor.
        title: its heading.
        lead: what it shows, in a sentence.
        blocks: what is in it.
        reason: what is not there and how to get it; None where there is something to show.
    """

    id: str
    title: str
    lead: str
    blocks: Sequence[Block]
    reason: str | None = None
