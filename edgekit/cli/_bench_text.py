"""A bench document in words and tables."""

from __future__ import annotations

from typing import Any

from edgekit.cli._output import table

__all__ = ["text"]

_LAYERS = 12  # of a profile that are shown, the slowest first


def text(document: dict[str, Any]) -> str:
    """The document as people read it; what is insufficient stands in the notes alone."""
    facts = document["facts"]
    headers = ["artifact", "p50 ms", "p90 ms", "p99 ms", "n", "load ms", "first ms"]
    headers += ["peak MiB", "added MiB", "KiB"]
    where = (
        ""
        if document["where"] == "local"
        else f"{document['where'].partition('?')[0].rstrip(':')}: "
    )
    lines = [
        f"{where}{facts['cpu'] or 'unknown processor'}, "
        f"{facts['usable_cores'] or facts['cores']} cores, "
        f"load {facts['load_average']}; {document['settings']['threads']} threads",
        "",
        table(headers, [_row(result) for result in document["results"]]),
    ]
    if document["comparisons"]:
        lines += ["", *(_sentence(entry) for entry in document["comparisons"])]
    for result in document["results"]:
        lines += _sustained(result) + _profile(result)
    notes = [f"{r['artifact']}: {note}" for r in document["results"] for note in r["notes"]]
    return "\n".join([*lines, "", *notes])


def _row(result: dict[str, Any]) -> list[object]:
    # A figure that is no headline is none here either: the notes say what it would be, and why not.
    latency = {} if result["insufficient"] else result["latency_ms"] or {}
    size = result["bytes"]
    return [
        result["artifact"],
        *(_digits(latency.get(key)) for key in ("p50", "p90", "p99")),
        len(result["samples_ms"]),
        _digits(result["load_ms"]),
        _digits(result["first_ms"]),
        _digits(result["peak_memory_mib"]),
        _digits(result["added_memory_mib"]),
        None if size is None else round(size / 1024),
    ]


def _digits(value: float | None) -> float | None:
    """Three significant digits; whole numbers above 100."""
    return None if value is None else float(f"{value:.3g}") if value < 100 else round(value)


def _sentence(entry: dict[str, Any]) -> str:
    what = f"{entry['b']} against {entry['a']}"
    if entry["ratio"] is None and entry["unlike"]:
        reasons = "; ".join(entry["unlike"])
        return f"{what}: not compared, measured under unlike conditions (--force does): {reasons}"
    if entry["ratio"] is None:
        return f"{what}: too few rounds to compare"
    low, high = entry["ci95"]
    forced = f"; under unlike conditions: {'; '.join(entry['unlike'])}" if entry["unlike"] else ""
    return (
        f"{what}: {entry['verdict']}, {entry['ratio']:.3f} times its latency "
        f"(95 % interval {low:.3f} to {high:.3f}){forced}"
    )


def _sustained(result: dict[str, Any]) -> list[str]:
    found = result["sustained"]
    if found is None:
        return []
    headers = ["at s", "p50 ms", "p90 ms", "calls", "C", "MHz"]
    points = found["series"]
    step = max(1, -(-len(points) // _LAYERS))
    rows = [
        [
            *(_digits(p[key]) for key in ("at_s", "p50", "p90")),
            p["n"],
            *(_digits(p[key]) for key in ("temperature_c", "frequency_mhz")),
        ]
        for p in points[::step]
    ]
    lines = ["", f"{result['artifact']}, {found['seconds']:.0f} s back to back:"]
    if found["ratio"] is not None:
        first, last = found["first"], found["last"]
        lines[-1] += (
            f" p50 {_digits(first['p50'])} ms in the first {found['window_s']:.0f} s, "
            f"{_digits(last['p50'])} ms in the last, {found['ratio']:.2f} times; "
            f"p99 {_digits(first['p99'])} and {_digits(last['p99'])} ms"
        )
    return [*lines, table(headers, rows)]


def _profile(result: dict[str, Any]) -> list[str]:
    found = result["profile"]
    if found is None:
        return []
    slowest = sorted(found["layers"], key=lambda layer: -float(layer["ms"]))[:_LAYERS]
    rows = [
        [
            layer["layer"] or layer["name"],
            layer["kind"] if layer["kernel"] is None else f"{layer['kind']} ({layer['kernel']})",
            _digits(layer["ms"]),
            None if layer["share"] is None else f"{layer['share']:.0%}",
        ]
        for layer in slowest
    ]
    head = (
        f"{result['artifact']}, layers by {found['how']}: {len(found['layers'])} add up to "
        f"{_digits(found['sum_ms'])} ms, {found['covered']:.0%} of a call "
        f"({_digits(found['plain_ms'])} ms; {_digits(found['profiled_ms'])} ms with their timing)"
    )
    return ["", head, table(["layer", "kind", "ms", "share"], rows), *found["notes"]]
