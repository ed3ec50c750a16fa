"""What was answered on labelled samples: the confusion matrix, and the worst answers."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

from edgekit.report.blocks import Block, Card, Cards, Cell, Chart, Heading, Row, Section, Table
from edgekit.report.charts.bars import Bar, bars
from edgekit.report.charts.matrix import LARGEST, confusion
from edgekit.report.charts.svg import columns
from edgekit.report.figures import NONE, counted, digest, percent
from edgekit.report.found import Document, Source

__all__ = ["classes", "worst"]

_LACKING = (
    "no answers were kept. A stage that calls edgekit.report.collect(bundle, samples, run.out) "
    "brings them into the report."
)
_PAIRS: Final = 20


def _evidence(sources: Sequence[Source]) -> list[tuple[Source, Document]]:
    return [(s, d) for s in sources for d in s.of("edgekit.evidence/1")]


def classes(sources: Sequence[Source]) -> Section:
    """The section: which class is taken for which."""
    lead = "Which class is taken for which; a row is a class, and what its samples were taken for."
    found = _evidence(sources)
    if not found:
        return Section("classes", "Classes", lead, (), _LACKING)
    blocks: list[Block] = []
    for source, document in found:
        blocks += [_heading(source, document, len(sources) > 1), *_matrix(document.data)]
    return Section("classes", "Classes", lead, blocks)


def worst(sources: Sequence[Source]) -> Section:
    """The section: the samples with the highest loss, to look at."""
    lead = "Samples with the highest loss, the worst first: often wrong labels, or what to collect."
    found = [(s, d) for s, d in _evidence(sources) if d.data["worst"]]
    if not found:
        return Section("worst", "Worst samples", lead, (), _LACKING)
    blocks: list[Block] = []
    for source, document in found:
        cards = [_card(document, entry) for entry in document.data["worst"]]
        blocks += [_heading(source, document, len(sources) > 1), Cards(cards)]
    return Section("worst", "Worst samples", lead, blocks)


def _heading(source: Source, document: Document, several: bool) -> Heading:
    data = document.data
    of = data["of"]
    name = f"{of['name']}, float" if of["kind"] == "float" else f"{of['name']}: {of['artifact']}"
    loss = "not finite" if data["loss"] is None else f"{data['loss']:.4f} nats"
    said = (
        f"{percent(data['top1'])} top-1 on {counted(data['n'], 'sample')} of "
        f"{data['data']['source']}, mean loss {loss}; answered by {of['runtime']}, sha256 "
        f"{digest(of['sha256'])}"
    )
    return Heading(f"{source.title}: {name}" if several else name, said)


def _names(data: Mapping[str, Any]) -> list[str]:
    labels = data["labels"]
    return [str(i) for i in range(len(data["classes"]))] if labels is None else list(labels)


def _matrix(data: Mapping[str, Any]) -> list[Block]:
    names = _names(data)
    counts = {
        (c["label"], c["prediction"]): c["n"]
        for c in data["confusion"]
        if c["prediction"] is not None
    }
    lost = sum(c["n"] for c in data["confusion"] if c["prediction"] is None)
    wrong = sorted(((n, a, b) for (a, b), n in counts.items() if a != b), key=lambda w: (-w[0], w))
    said = "; ".join(f"{names[a]} as {names[b]}: {n}" for n, a, b in wrong[:_PAIRS])
    said = said or "no class was taken for another"
    charts: list[Any] = []
    if len(names) <= LARGEST:
        title = "Confusion matrix"
        desc = f"{len(names)} classes. {said}."
        drawing = columns(
            lambda w: confusion(counts, names, width=w, title=title, desc=desc), half=True
        )
        caption = "Labels down, predictions across; the stronger, the more of the row's samples."
        if lost:
            caption += f" {counted(lost, 'answer')} had no finite scores and stand nowhere."
        charts.append(Chart(title, drawing, caption))
    if wrong:
        totals = [c["n"] for c in data["classes"]]
        rows = [Bar(f"{names[a]} taken for {names[b]}", n,
                    f"{n} of {totals[a]}", 3) for n, a, b in wrong[:_PAIRS]]  # fmt: skip
        title = "Mistakes, the most frequent first"
        drawing = columns(lambda w: bars(rows, width=w, title=title, desc=said), half=True)
        more = f"The first {_PAIRS} of {len(wrong)} pairs." if len(wrong) > _PAIRS else ""
        charts.append(Chart(title, drawing, more))
    table = Table(["class", "samples", "predicted", "correct", "recall", "precision"],
                  _class_rows(names, data["classes"]), "Figures of every class", True)  # fmt: skip
    pairs = [[Cell(names[a], head=True), Cell(names[b]), Cell(str(n), "number")]
             for n, a, b in wrong]  # fmt: skip
    tables: list[Block] = [table]
    if pairs:
        tables.append(Table(["label", "prediction", "samples"], pairs, "Every mistake", True))
    return [*([Row(charts)] if charts else []), *tables]


def _class_rows(names: Sequence[str], found: Sequence[Mapping[str, int]]) -> list[list[Cell]]:
    def share(part: int, whole: int) -> str:
        return percent(100 * part / whole, 1) if whole else NONE

    return [
        [
            Cell(name, head=True),
            *(Cell(str(c[k]), "number") for k in ("n", "predicted", "correct")),
            Cell(share(c["correct"], c["n"]), "number"),
            Cell(share(c["correct"], c["predicted"]), "number"),
        ]
        for name, c in zip(names, found, strict=True)
    ]


def _card(document: Document, entry: Mapping[str, Any]) -> Card:
    names = _names(document.data)
    label, found = names[entry["label"]], entry["prediction"]
    right = found == entry["label"]
    if found is None:
        title, lines = f"{label}: no finite answer", [f"sample {entry['sample']}"]
    else:
        title = f"{label}: right" if right else f"{label}, taken for {names[found]}"
        lines = [f"{percent(100 * entry['confidence'], 1)} sure of {names[found]}"]
        if not right:
            lines.append(f"{percent(100 * entry['label_confidence'], 1)} for {label}")
        lines.append(f"loss {entry['loss']:.2f}, sample {entry['sample']}")
    picture, missing = None, None
    if entry["picture"] is not None:
        data = document.picture(entry["picture"])
        if data is None:
            missing = "the picture is not there"
        else:
            picture = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    what = "the model's own tensor of" if entry["shown"] == "tensor" else ""
    alt = f"{what} sample {entry['sample']}, labelled {label}".strip()
    text = entry["text"] if entry["text"] is not None else missing
    return Card(title, "right" if right else "wrong", lines, picture, alt, text)
