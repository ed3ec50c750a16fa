"""What each layer costs: in accuracy when it is quantized, and in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgekit.report.artifacts import Group
from edgekit.report.blocks import Block, Cell, Chart, Heading, Note, Row, Section, Table
from edgekit.report.charts.bars import Bar, Part, bars, stacks
from edgekit.report.charts.svg import columns
from edgekit.report.figures import NONE, counted, percent, short, size
from edgekit.report.found import Document, Source

__all__ = ["sensitivity", "sizes"]

_SHOWN: Final = 20
_NO_SENSITIVITY = (
    "nobody measured it. `edgekit quantize MODEL --calib DATA --sensitivity --json` does, and a "
    "stage that keeps that document, or a plan with it, brings it into the report."
)
_NO_SIZES = (
    "no artifact says what its bytes are. An export does; edgekit.report.collect with the float "
    "model tells bytes by layer."
)
_COLOURS: Final = {"int8": 0, "int4": 0, "uint8": 0, "int16": 1, "int32": 1, "float16": 4,
                   "float32": 2, "float": 2}  # fmt: skip


def _measured(source: Source) -> list[tuple[Document, Mapping[str, Any], str]]:
    """Documents with a sensitivity, that and the scheme; each measurement once."""
    found: list[tuple[Document, Mapping[str, Any], str]] = []
    for document in (*source.of("edgekit.quantize/1"), *source.of("edgekit.plan/1")):
        measured = document.data.get("sensitivity")
        if measured and measured not in [m for _, m, _ in found]:
            found.append((document, measured, document.data["scheme"]))
    return found


def sensitivity(sources: Sequence[Source]) -> Section:
    """The section: which layers int8 hurts, the worst first."""
    lead = "The noise that a layer alone puts on the model's outputs when only it is quantized."
    blocks: list[Block] = []
    for source in sources:
        for document, measured, scheme in _measured(source):
            blocks += _sensitive(source, document, measured, scheme)
    if not blocks:
        return Section("sensitivity", "Sensitivity by layer", lead, (), _NO_SENSITIVITY)
    return Section("sensitivity", "Sensitivity by layer", lead, blocks)


def _sensitive(
    source: Source, document: Document, measured: Mapping[str, Any], scheme: str
) -> list[Block]:
    layers = sorted(measured["layers"], key=lambda r: -_noise(r))
    shown = layers[:_SHOWN]
    whole = measured["sqnr_db"]
    said = "no noise at all" if whole is None else f"SQNR {whole:.1f} dB"
    head = f"{scheme}, {counted(measured['n'], 'calibration sample')}; all quantized: {said}"
    if measured["metric"] is not None and measured["metric_quantized"] is not None:
        head += f", {measured['metric']} {measured['metric_quantized']:.4g}"
        head += f" (float {measured['metric_float']:.4g})"
    rows = [Bar(r["layer"], _noise(r), _cost(r), 0 if r["kind"] == "layer" else 1) for r in shown]
    title = "Noise by layer"
    desc = "; ".join(f"{r.label}: {r.said}" for r in rows)
    drawing = columns(lambda w: bars(rows, width=w, title=title, desc=desc))
    more = f" The first {len(shown)} of {len(layers)}." if len(layers) > len(shown) else ""
    caption = (
        f"Bars: noise power as a share of the outputs' power; the figures are its ratio in dB "
        f"(lower is worse) and the multiply-accumulates that go to float with it.{more}"
    )
    headers = ["layer", "kind", "SQNR alone", "gain if kept float", "alone", "kept", "MACs with it",
               "bytes more with it"]  # fmt: skip
    cells = [
        [
            Cell(r["layer"], "mono", head=True), Cell(r["kind"]),
            *(Cell(v, "number") for v in (
                _db(r["sqnr_alone_db"]), _db(r["gain_kept_db"]), short(r["metric_alone"], 4),
                short(r["metric_kept"], 4), percent(100 * r["macs_share"]), size(r["bytes"]),
            )),
        ]
        for r in layers
    ]  # fmt: skip
    return [
        Heading(f"{source.title}: {document.origin}", head),
        Chart(title, drawing, caption),
        Table(headers, cells, f"Figures of all {len(layers)} layers", folded=True),
    ]


def _noise(row: Mapping[str, Any]) -> float:
    value = row["sqnr_alone_db"]
    return 0.0 if value is None else float(10 ** (-value / 10))


def _cost(row: Mapping[str, Any]) -> str:
    noise = "no noise" if row["sqnr_alone_db"] is None else _db(row["sqnr_alone_db"])
    return f"{noise} · {percent(100 * row['macs_share'], 1)} of MACs"


def _db(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f} dB"


# -- sizes ----------------------------------------------------------------------------------------


def sizes(groups: Sequence[Group], sources: Sequence[Source]) -> Section:
    """The section: what an artifact's bytes are, and which layers they belong to."""
    lead = "What the bytes of an artifact are, and which layers they belong to."
    blocks: list[Block] = []
    for group in groups:
        blocks += _by_dtype(group, len(groups) > 1)
    layered: list[Chart | Table | Note] = []
    tables: list[Block] = []
    for source in sources:
        for title, rows, note in _by_layer(source):
            several = f"{source.title}: {title}" if len(sources) > 1 else title
            layered.append(_layers(several, rows, note))
            tables.append(_layer_table(several, rows))
    blocks += [Row(layered)] if layered else []
    blocks += tables
    if blocks and not layered:
        said = (
            "Bytes by layer are not known: edgekit.report.collect with the float model tells, "
            "and so does a .safetensors file that a stage keeps."
        )
        blocks.append(Note(said, "missing"))
    return Section("sizes", "Size", lead, blocks, None if blocks else _NO_SIZES)


def _by_dtype(group: Group, named: bool) -> list[Block]:
    rows, cells = [], []
    for item in group.items:
        placement, total = item.entry["placement"], item.entry["bytes"]
        if placement is None or total is None:
            continue
        stored = {k: v for k, v in sorted(placement["bytes_by_dtype"].items()) if v}
        # Compressed or shared constants may take less than they hold.
        rest = max(total - sum(stored.values()), 0)
        parts = [
            Part(v, f"{k} {size(v)}", _COLOURS.get(k, 3))
            for k, v in sorted(stored.items(), key=lambda kv: -kv[1])
        ]
        parts += [Part(rest, f"the rest {size(rest)}", 5)] if rest else []
        rows.append((item.id, size(total), parts))
        said = ", ".join(f"{k} {size(v)}" for k, v in stored.items())
        cells.append([Cell(item.id, "mono", head=True), Cell(size(total), "number"), Cell(said),
                      Cell(size(rest), "number")])  # fmt: skip
    if not rows:
        return []
    title = "Bytes by type"
    desc = "; ".join(f"{name}: {', '.join(p.name for p in parts)}" for name, _, parts in rows)
    drawing = columns(lambda w: stacks(rows, width=w, title=title, desc=desc))
    caption = "Constants by their type; the rest is the graph, names and what the format adds."
    table = Table(["artifact", "size", "constants", "the rest"], cells, "Figures of bytes by type",
                  folded=True)  # fmt: skip
    return [*([Heading(group.title)] if named else []), Chart(title, drawing, caption), table]


def _by_layer(source: Source) -> list[tuple[str, list[tuple[str, float]], str]]:
    """What is known of bytes by layer: a title, layers and bytes, where the figures are from.

    A plan's sensitivity is no source: what it says of a layer includes its neighbours, which go to
    float together with it.
    """
    found: list[tuple[str, list[tuple[str, float]], str]] = []
    for document in source.of("edgekit.evidence/1"):
        layers = document.data["layers"]
        if layers:
            rows = [(r["layer"], float(r["bytes"])) for r in layers]
            of = document.data["of"]["name"]
            note = f"Weights of {of} as {document.origin} has them."
            if rows not in [r for _, r, _ in found]:
                found.append((f"{of}, float", rows, note))
    for weights in source.weights:
        held = [(name, float(count)) for name, count in weights.layers if count]
        if held:
            said = counted(weights.parameters, "element")
            found.append((weights.origin, held, f"Tensors of the file, {said}."))
    return [(t, sorted(r, key=lambda row: (-row[1], row[0])), n) for t, r, n in found]


def _layers(title: str, rows: Sequence[tuple[str, float]], note: str) -> Chart:
    total = sum(b for _, b in rows) or 1
    shown = [Bar(n, b, f"{size(b)} · {percent(100 * b / total, 1)}", 2) for n, b in rows[:_SHOWN]]
    rest = sum(b for _, b in rows[_SHOWN:])
    if rest:
        label = counted(len(rows) - _SHOWN, "other layer")
        shown.append(Bar(label, rest, f"{size(rest)} · {percent(100 * rest / total, 1)}", 5))
    heading = f"Bytes by layer, {title}"
    desc = "; ".join(f"{b.label}: {b.said}" for b in shown)
    drawing = columns(lambda w: bars(shown, width=w, title=heading, desc=desc), half=True)
    return Chart(heading, drawing, f"{note} Together {size(total)}.")


def _layer_table(title: str, rows: Sequence[tuple[str, float]]) -> Table:
    total = sum(b for _, b in rows) or 1
    cells = [
        [Cell(n, "mono", head=True), Cell(size(b), "number"),
         Cell(percent(100 * b / total), "number")]
        for n, b in rows
    ]  # fmt: skip
    return Table(["layer", "bytes", "share"], cells, f"Figures of bytes by layer, {title}", True)
