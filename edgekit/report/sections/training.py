"""The curves of all metrics of all stages, those of several runs in the same picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekit.report.blocks import Block, Cell, Chart, Heading, Note, Row, Section, Table
from edgekit.report.charts.curves import Curve, chart
from edgekit.report.figures import NONE, duration, short
from edgekit.report.found import Source

__all__ = ["training"]

_LACKING = (
    "no curves were kept: this is no run of a recipe, or none of its stages told of a metric. "
    "`edgekit run` keeps what a stage tells by run.metric(name, value, step)."
)


def training(sources: Sequence[Source]) -> Section:
    """The section: a part for each stage that has curves, in the order of the stages."""
    lead = "How each stage went, step by step; a label at a line's end gives its last value."
    runs = [s for s in sources if s.run is not None]
    names = list(
        dict.fromkeys(
            stage["name"]
            for source in runs
            for stage in (source.run or {})["stages"]
            if any(stage["metrics"].values())
        )
    )
    if not names:
        return Section("training", "Training", lead, (), _LACKING)
    blocks: list[Block] = []
    if len(runs) > 1:
        said = "; ".join(f"{_letter(i)}: {s.title}" for i, s in enumerate(runs))
        blocks.append(Note(f"Runs are told apart by letters. {said}."))
    for name in names:
        stages = [_stage(source, name) for source in runs]
        blocks += _part(name, stages)
    return Section("training", "Training", lead, blocks)


def _letter(i: int) -> str:
    return chr(ord("A") + i % 26)


def _stage(source: Source, name: str) -> Mapping[str, object] | None:
    stages = (source.run or {})["stages"]
    return next((s for s in stages if s["name"] == name), None)


def _part(name: str, stages: Sequence[Mapping[str, object] | None]) -> list[Block]:
    several = len(stages) > 1
    metrics = list(
        dict.fromkeys(m for s in stages if s is not None for m, points in _points(s) if points)
    )
    times = [
        f"{_letter(i) + ': ' if several else ''}{_took(stage)}" for i, stage in enumerate(stages)
    ]
    charts: list[Chart | Table | Note] = []
    for panel, members in _panels(metrics).items():
        curves = [
            Curve(_named(_letter(i) if several else "", metric, panel), i if several else at,
                  tuple(dict(_points(stage))[metric]), at if several else 0)
            for at, metric in enumerate(members)
            for i, stage in enumerate(stages)
            if stage is not None and dict(_points(stage)).get(metric)
        ]  # fmt: skip
        charts += _chart(name, panel, curves)
    tables = [_table(name, metrics, stages, several)]
    return [Heading(name, "; ".join(times)), Row(charts, 3), *tables]


def _took(stage: Mapping[str, object] | None) -> str:
    if stage is None:
        return "not in this run"
    wall = stage["wall_s"]
    took = "" if not isinstance(wall, int | float) else f" {duration(float(wall))}"
    return "taken from the cache" if stage["cached"] else f"{stage['status']},{took}"


def _points(
    stage: Mapping[str, object],
) -> list[tuple[str, list[tuple[float, float | None]]]]:
    metrics = stage["metrics"]
    assert isinstance(metrics, Mapping)
    return [(name, [(float(s), v) for s, v in points]) for name, points in metrics.items()]


def _panels(metrics: Sequence[str]) -> dict[str, list[str]]:
    """Metrics that belong in one picture: ``train/loss`` with ``val/loss``, ``score_ema`` with
    ``score``; others stand alone."""
    last = [m.rpartition("/")[2] for m in metrics]
    panels: dict[str, list[str]] = {}
    for metric, name in zip(metrics, last, strict=True):
        base = next((b for b in last if b != name and name.startswith(f"{b}_")), name)
        panels.setdefault(base, []).append(metric)
    return {(v[0] if len(v) == 1 else k): v for k, v in panels.items()}


def _named(letter: str, metric: str, panel: str) -> str:
    """What tells a line from the others of its picture."""
    rest = metric.removesuffix(panel).strip("/") if metric != panel else ""
    rest = rest or (metric if metric not in (panel,) and not letter else "")
    return " ".join(filter(None, (letter, rest)))


def _chart(stage: str, panel: str, curves: Sequence[Curve]) -> list[Chart | Table | Note]:
    known = [c for c in curves if c.known]
    if not known:
        return [Note(f"{panel} of {stage} was never finite.", "missing")]
    said = "; ".join(
        f"{c.name or panel}: from {short(c.known[0][1], 4)} to {short(c.known[-1][1], 4)}"
        for c in known
    )
    lost = sum(v is None for c in curves for _, v in c.points)
    caption = f"{lost} values were not finite; the line has gaps there." if lost else ""
    drawing = chart(known, width=340, title=f"{panel} of {stage}", desc=f"{said}.")
    return [Chart(panel, drawing, caption)]


def _table(
    stage: str,
    metrics: Sequence[str],
    stages: Sequence[Mapping[str, object] | None],
    several: bool,
) -> Table:
    columns: list[tuple[str, dict[float, float | None]]] = []
    for metric in metrics:
        for i, found in enumerate(stages):
            points = dict(dict(_points(found)).get(metric, ())) if found is not None else {}
            if points:
                columns.append((f"{_letter(i)} {metric}" if several else metric, points))
    steps = sorted({s for _, points in columns for s in points})
    rows = [
        [
            Cell(f"{step:g}", "number", head=True),
            *(Cell(short(p[step], 5) if step in p else NONE, "number") for _, p in columns),
        ]
        for step in steps
    ]
    headers = ["epoch or step", *(name for name, _ in columns)]
    return Table(headers, rows, f"Figures of {stage}", folded=True)
