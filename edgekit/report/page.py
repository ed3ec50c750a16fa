"""The page: one HTML file that needs nothing else, no network and no script.

Everything that comes out of a document is escaped, and the page's own policy lets a browser load
nothing but pictures that are written into it. The same sources give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import __version__
from edgekit.artifact import storage_error
from edgekit.errors import MissingDependency, UsageError
from edgekit.names import install_command
from edgekit.report.found import Source, find

if TYPE_CHECKING:
    from jinja2 import Template

    from edgekit.report.artifacts import Gate, Group
    from edgekit.report.blocks import Section

__all__ = ["SCHEMA", "Page", "build", "write"]

SCHEMA = "edgekit.report/1"


@dataclass(frozen=True)
class Page:
    """A page, and what is in it.

    Attributes:
        html: the whole file.
        sources: what it was made of.
        sections: its parts, in order.
        gates: of all sources.
    """

    html: str
    sources: tuple[Source, ...]
    sections: tuple[Section, ...]
    gates: tuple[Gate, ...]

    def to_json(self, place: Path) -> dict[str, Any]:
        """The ``edgekit.report/1`` document of the page, once it lies at ``place``."""
        data = _encoded(self.html)
        passed = [g.passed for g in self.gates]
        return {
            "schema": SCHEMA,
            "page": str(place),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "sources": [
                {
                    "path": str(s.path),
                    "kind": s.kind,
                    "title": s.title,
                    "documents": sorted(d.schema for d in s.documents),
                    "missing": list(s.missing),
                }
                for s in self.sources
            ],
            "sections": [
                {"id": s.id, "title": s.title, "shown": s.reason is None, "reason": s.reason}
                for s in self.sections
            ],
            "gates": {
                "held": passed.count(True),
                "failed": passed.count(False),
                "not_judged": passed.count(None),
            },
        }


def build(paths: Sequence[Path]) -> Page:
    """Reads what the paths are, and makes the page of it.

    Args:
        paths: folders of runs, ``edgekit.export/1`` documents, bundles; at least one. Runs are
            compared with each other.

    Raises:
        UsageError: no path, or one that does not exist.
        BadData, TrustError, MissingDependency: as `edgekit.report.found.find`; jinja2 is needed.
    """
    if not paths:
        raise UsageError("a report needs a run, an export's document or a bundle")
    template = _template()
    from edgekit.report.artifacts import groups_of
    from edgekit.report.sections.answers import classes, worst
    from edgekit.report.sections.facts import facts, lineage, settings
    from edgekit.report.sections.gates import gates, stage_gates
    from edgekit.report.sections.layers import sensitivity, sizes
    from edgekit.report.sections.results import results
    from edgekit.report.sections.training import training

    sources = find(paths)
    groups = [g for s in sources for g in groups_of(s)]
    judged = [g for group in groups for g in group.gates]
    judged += [g for s in sources for g in stage_gates(s, groups)]
    sections = (
        results(groups),
        gates(groups, sources),
        training(sources),
        sensitivity(sources),
        sizes(groups, sources),
        classes(sources),
        worst(sources),
        lineage(sources, groups),
        settings(sources),
        facts(sources),
    )
    html = template.render(
        title=", ".join(s.title for s in sources),
        sources=sources,
        sections=sections,
        tiles=_tiles(groups, sources, judged),
        style=_style(),
        version=__version__,
    )
    return Page(html + "\n", tuple(sources), sections, tuple(judged))


def write(page: Page, place: Path) -> None:
    """Writes the page aside, then renames it.

    Raises:
        UsageError: ``place`` is a directory.
        StorageError: no space or no permission; what was there before stays.
    """
    if place.is_dir():
        raise UsageError(f"{place} is a directory", hint="name the page: -o report.html")
    aside = place.with_name(f".{place.name}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(_encoded(page.html))
        aside.replace(place)
    except OSError as error:
        raise storage_error(place, error) from error


def _encoded(html: str) -> bytes:
    # A text may hold half of a surrogate pair, which UTF-8 has no form for.
    return html.encode("utf-8", "replace")


# -- the head of the page -------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """A figure at the top: its value, what it is, and what has to be said of it."""

    value: str
    title: str
    text: str
    kind: str = ""


def _tiles(
    groups: Sequence[Group], sources: Sequence[Source], judged: Sequence[Gate]
) -> list[Tile]:
    tiles = []
    if judged:
        passed = [g.passed for g in judged]
        failed, unknown = passed.count(False), passed.count(None)
        waived = sum(g.waived and g.passed is False for g in judged)
        of_these = f" ({waived} waived)" if waived else ""
        said = f"{passed.count(True)} held, {failed} failed{of_these}, {unknown} not judged"
        value = f"{failed} FAILED" if failed else "all held" if not unknown else "none failed"
        kind = "failed" if failed else "unknown" if unknown else "held"
        tiles.append(Tile(value, "gates", said, kind))
    for group in groups:
        where = f", {group.title}" if len(groups) > 1 else ""
        tiles += _of_group(group, where, len(groups) <= 2)
    for source in sources:
        if source.run is not None:
            tiles.append(_of_run(source.title, source.run, len(sources) > 1))
    return tiles


def _of_group(group: Group, where: str, whole: bool) -> list[Tile]:
    """Figures of an export; where there are many exports, not the ``whole`` of them."""
    from edgekit.report.figures import TIMES, counted, ms, percent, size

    made = [i for i in group.items if i.entry["status"] == "ok"]
    tiles = []
    if group.reference is not None:
        known = [i for i in made if i.entry["drop_points"] is not None]
        worst = max(known, key=lambda i: float(i.entry["drop_points"]), default=None)
        said = f"float model, {counted(group.reference[1], 'sample')}{where}"
        if worst is not None:
            drop = float(worst.entry["drop_points"])
            lost = f"the largest loss: {drop:.2f} points, {worst.id}"
            said += f"; {lost if drop > 0 else 'no artifact loses any'}"
        tiles.append(Tile(percent(group.reference[0]), "accuracy", said))
    if not whole:
        return tiles
    timed = [(t, i) for i in made if (t := i.ms()) is not None]
    if timed:
        t, item = min(timed, key=lambda found: found[0])
        tiles.append(Tile(ms(t), "fastest", f"{item.id}, median, {group.where}{where}"))
    if made:
        item = min(made, key=lambda i: int(i.entry["bytes"]))
        before = item.float_bytes()
        said = f"{item.id}{where}"
        said += (
            ""
            if before is None
            else f"; {before / item.entry['bytes']:.1f}{TIMES} smaller than float"
        )
        tiles.append(Tile(size(item.entry["bytes"]), "smallest", said))
    return tiles


def _of_run(title: str, run: Mapping[str, Any], named: bool) -> Tile:
    from edgekit.report.figures import counted, duration

    stages = run["stages"]
    cached = sum(s["cached"] for s in stages)
    bad = [s["name"] for s in stages if s["status"] != "ok"]
    said = f"{counted(len(stages), 'stage')}, {cached} from the cache"
    said += f"; without result: {', '.join(bad)}" if bad else ""
    said += f"; {title}" if named else ""
    return Tile(duration(run["wall_s"]), "the run took", said, "failed" if bad else "")


# -- the template ---------------------------------------------------------------------------------


@cache
def _template() -> Template:
    try:
        import jinja2
    except ImportError as error:
        raise MissingDependency(
            "jinja2, which pages are made with, is not installed", hint=install_command("recipes")
        ) from error
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FunctionLoader(_read),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["code"] = _code
    return environment.get_template("page.html.j2")


def _code(text: str) -> Any:
    """A sentence of ours, what stands between backticks as code; all of it is escaped."""
    from markupsafe import Markup, escape

    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    tags = (escape(p) if i % 2 == 0 else Markup("<code>{}</code>").format(p)
            for i, p in enumerate(parts))  # fmt: skip
    return Markup("").join(tags)


def _read(name: str) -> str:
    return resources.files("edgekit.report").joinpath(name).read_text(encoding="utf-8")


def _style() -> Any:
    from markupsafe import Markup

    return Markup(_read("page.css"))
