"""Accuracy against latency against size, for every target and device."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.report.artifacts import Group, Item
from edgekit.report.blocks import Block, Cell, Chart, Heading, Note, Row, Section, Table
from edgekit.report.charts.bars import Bar, gains
from edgekit.report.charts.svg import columns
from edgekit.report.charts.tradeoff import Axis, Point, scatter
from edgekit.report.figures import NONE, TIMES, counted, ms, percent, size

__all__ = ["results"]

_LACKING = (
    "there is no export here: no artifact was made, so there is nothing to weigh. A recipe's stage "
    "that calls edgekit.export_bundle writes one, as `edgekit export` does."
)
_FRONT = (
    "Ringed: on the Pareto front; no other is at least as accurate, as fast and as small, and "
    "better in one of the three."
)


def results(groups: Sequence[Group]) -> Section:
    """The section; its axes are the same for all groups, so that they can be compared."""
    lead = "What each artifact gives up in accuracy, and what it gains in speed and size."
    if not groups:
        return Section("results", "Accuracy, latency, size", lead, (), _LACKING)
    blocks: list[Block] = []
    everything = [p for g in groups for p in g.points]
    for group in groups:
        if len(groups) > 1:
            blocks.append(Heading(group.title))
        blocks += _weighed(group, everything)
        blocks.append(_table(group))
        if group.devices:
            blocks.append(_devices(group))
    return Section("results", "Accuracy, latency, size", lead, blocks)


def _weighed(group: Group, everything: Sequence[Point]) -> list[Block]:
    charts: list[Chart | Table | Note] = []
    metric = "top-1 accuracy" if group.metric == "top1" else group.metric or ""
    values = [v for p in everything for v in (p.value, p.low, p.high) if v is not None]
    accuracy = Axis(f"{metric}, %", tuple(values), least=2.0, bounds=(0.0, 100.0))
    reference = None if group.reference is None else group.reference[0]
    place = f", {group.where}" if group.where else ""
    latency = Axis(f"median latency, ms{place}", _all(everything, "ms"), zero=True)
    kib = tuple(b / 1024 for b in _all(everything, "bytes"))
    sizes = Axis("size, KiB", kib, zero=True)
    timed = [p for p in group.points if p.ms is not None]
    if reference is not None:
        dotted = "The dotted line is the float model's accuracy. "
        fast = [(p.ms, p.value, p) for p in timed if p.value is not None]
        if fast:
            charts.append(
                _scatter(fast, latency, accuracy, "Accuracy against latency", reference, True,
                         f"{dotted}Up and to the left is better; areas are sizes; hollow: the "
                         f"float model in the same runtime. {_FRONT}")
            )  # fmt: skip
        small = [(p.bytes / 1024, p.value, p) for p in group.points
                 if p.value is not None and p.bytes is not None]  # fmt: skip
        if small:
            charts.append(
                _scatter(small, sizes, accuracy, "Accuracy against size", reference, False,
                         f"{dotted}Bars are 95 % intervals of the difference from the float model"
                         f"{_on(group)}: within them, artifacts are not told apart.")
            )  # fmt: skip
    elif timed:
        plain = [(p.ms, p.bytes / 1024, p) for p in timed if p.bytes is not None]
        if plain:
            up = Axis("size, KiB", kib, zero=True)
            charts.append(_scatter(plain, latency, up, "Size against latency", None, False,
                                   f"Down and to the left is better. {_FRONT}"))  # fmt: skip
    blocks: list[Block] = [Row(charts)] if charts else []
    gained = _gained(group)
    blocks += [Row(gained)] if gained else []
    return [*blocks, *_absent(group)]


def _all(points: Sequence[Point], name: str) -> tuple[float, ...]:
    return tuple(v for p in points if (v := getattr(p, name)) is not None)


def _on(group: Group) -> str:
    return "" if group.reference is None else f" on {group.reference[1]} samples"


def _scatter(
    points: Sequence[tuple[float | None, float | None, Point]],
    x: Axis,
    y: Axis,
    title: str,
    reference: float | None,
    bubbles: bool,
    caption: str,
) -> Chart:
    known = [(a, b, p) for a, b, p in points if a is not None and b is not None]
    said = "; ".join(f"{p.label}: {a:.4g} and {b:.4g}" for a, b, p in known)
    drawing = columns(
        lambda width: scatter(
            known, x, y, width=width, title=title, desc=f"{x.title} and {y.title}. {said}.",
            reference=reference, bubbles=bubbles,
        ),
        half=True,
    )  # fmt: skip
    return Chart(title, drawing, caption)


def _gained(group: Group) -> list[Chart | Table | Note]:
    charts: list[Chart | Table | Note] = []
    rows = [
        Bar(i.id, i.ms(), _against(ms(i.ms()), i.ms(), i.float_ms(), "faster", "slower"),
            i.group, i.float_ms())
        for i in group.items
        if i.ms() is not None
    ]  # fmt: skip
    if rows:
        caption = f"Median of one call, {_how(group.items)}. "
        if any(r.before is not None for r in rows):
            caption += "Hollow: float in the same runtime. The gate faster compares the two in "
            caption += "the same rounds, with an interval."
        charts.append(_bars("Latency, beside float", rows, caption))
    rows = [
        Bar(i.id, i.entry["bytes"],
            _against(size(i.entry["bytes"]), i.entry["bytes"], i.float_bytes(), "smaller",
                     "larger"), i.group, i.float_bytes())
        for i in group.items
        if i.entry["status"] == "ok" and i.entry["bytes"] is not None
    ]  # fmt: skip
    if rows:
        caption = "All files of an artifact."
        if any(r.before is not None for r in rows):
            caption += " Hollow: the float model in the same format."
        charts.append(_bars("Size, beside float", rows, caption))
    return charts


def _against(said: str, value: float | None, before: float | None, better: str, worse: str) -> str:
    if value is None or before is None or not value or not before:
        return said
    ratio = before / value
    if ratio >= 1.005:
        return f"{said} · {ratio:.2f}{TIMES} {better}"
    return f"{said} · {1 / ratio:.2f}{TIMES} {worse}" if ratio <= 0.995 else f"{said} · as float"


def _how(items: Sequence[Item]) -> str:
    found = [i.entry["latency_ms"] for i in items if i.entry["latency_ms"] is not None]
    threads = sorted({f["threads"] for f in found})
    where = ", ".join(dict.fromkeys(f["where"] for f in found))
    return f"{' or '.join(counted(t, 'thread') for t in threads)}, {where}"


def _bars(title: str, rows: Sequence[Bar], caption: str) -> Chart:
    desc = "; ".join(f"{r.label}: {r.said}" for r in rows)
    drawing = columns(lambda w: gains(rows, width=w, title=title, desc=desc), half=True)
    return Chart(title, drawing, caption)


def _absent(group: Group) -> list[Block]:
    notes: list[Block] = []
    made = [i for i in group.items if i.entry["status"] == "ok"]
    if made and group.where is None:
        notes.append(
            Note("Latency was not measured: this export ran with --no-bench. `edgekit bench BUNDLE`"
                 " measures it, and an export does so by itself.", "missing")
        )  # fmt: skip
    if made and group.reference is None:
        notes.append(
            Note("Accuracy is not known: the export had no labelled evaluation data. Give it "
                 "`--eval DATA`.", "missing")
        )  # fmt: skip
    failed = [i for i in group.items if i.entry["status"] != "ok"]
    notes += [Note(f"{i.id} {i.entry['status']}: {i.entry['reason']}", "missing") for i in failed]
    return notes


def _table(group: Group) -> Table:
    headers = ["artifact", "scheme", "accuracy", "drop [95 %]", "p50", "p90", "float p50", "size",
               "float size", "load", "memory", "float ops", "proof", "Pareto"]  # fmt: skip
    rows = [_cells(i) for i in group.items]
    rows += [_float_cells(group)] if group.reference is not None else []
    held = f" Accuracy{_on(group)}." if group.reference is not None else ""
    return Table(headers, rows, f"Every artifact of {group.title}.{held}")


def _cells(item: Item) -> list[Cell]:
    e = item.entry
    latency, placement = e["latency_ms"] or {}, e["placement"] or {}
    drop = NONE
    if e["drop_points"] is not None:
        drop = f"{e['drop_points']:.2f}"
        if e["drop_ci95"] is not None:
            drop += f" [{e['drop_ci95'][0]:.2f}, {e['drop_ci95'][1]:.2f}]"
    memory = NONE if e["peak_memory_mib"] is None else f"{e['peak_memory_mib']:.0f} MiB"
    floats = placement.get("float_ops")
    proof = e["verification"] if e["status"] == "ok" else e["status"]
    kind = {"runtime": "held", "none": "failed", "failed": "failed"}.get(proof, "unknown")
    return [
        Cell(item.id, "mono", head=True),
        Cell(e["scheme"]),
        *(Cell(v, "number") for v in (
            percent(e["value"]), drop, ms(item.ms()), ms(latency.get("p90")), ms(item.float_ms()),
            size(e["bytes"]), size(item.float_bytes()), ms(e["load_ms"]), memory,
            NONE if floats is None else str(floats),
        )),
        Cell("not proven" if proof == "none" else proof, kind),
        Cell(_front(item)),
    ]  # fmt: skip


def _front(item: Item) -> str:
    both = [*(["front"] if item.front else []), *(["float: front"] if item.float_front else [])]
    return ", ".join(both) or NONE


def _float_cells(group: Group) -> list[Cell]:
    assert group.reference is not None
    cells = [Cell("float model", head=True), Cell("fp32"),
             Cell(percent(group.reference[0]), "number")]  # fmt: skip
    return [*cells, *(Cell(NONE, "number") for _ in range(9)), Cell("reference"), Cell(NONE)]


def _devices(group: Group) -> Table:
    """Artifacts by device: which was measured where, and which was not."""
    rows = []
    for item in group.items:
        e, cells = item.entry, []
        for device in group.devices:
            if device not in e["devices"]:
                cells.append(Cell("not made for it"))
            elif e["status"] != "ok":
                cells.append(Cell("failed", "failed"))
            else:
                cells.append(_on_device(item, device))
        place = Cell(f"{e['target']}, {e['delegate']}")
        rows.append([Cell(item.id, "mono", head=True), place, *cells])
    caption = (
        "Devices. Latency is of the machine that measured it, and of no other: `edgekit bench "
        "BUNDLE` on the device measures it there."
    )
    return Table(["artifact", "runs in", *group.devices], rows, caption)


def _on_device(item: Item, device: str) -> Cell:
    latency = item.entry["latency_ms"]
    if latency is not None and (latency["where"] == device or device == "host"):
        return Cell(f"{ms(latency['p50'])} p50, measured", "held")
    return Cell("not measured on it", "unknown")
