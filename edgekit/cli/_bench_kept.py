"""`edgekit bench history` and `edgekit bench compare`: measurements that were kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli._output import emit, json_option, note, table, verbosity_options

if TYPE_CHECKING:
    from edgekit.bench.store import Measurement

__all__ = ["STORE", "compare", "figures", "history", "plain_url"]

STORE = click.option(
    "--store",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="SQLite file of measurements; by default bench.sqlite in the state folder.",
)


def plain_url(url: str) -> str:
    """A device's URL without its options, as tables show it."""
    return url.partition("?")[0]


def figures(result: Mapping[str, Any]) -> list[object]:
    """Artifact, p50, p90, peak memory and a remark, as cells of a table."""

    def digits(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.4g}")

    # What too few calls gave is told, not shown as a figure.
    known = not result["insufficient"]
    latencies = [digits(result[key]) if known else None for key in ("p50_ms", "p90_ms")]
    memory = digits(result["peak_memory_mib"])
    return [result["artifact"], *latencies, memory, "" if known else result["insufficient"][0]]


@click.command("history")
@STORE
@click.option("--device", metavar="ID_OR_URL", help="Only this device.")
@click.option("--subject", metavar="TEXT", help="Only what has this in its path.")
@click.option(
    "--limit", type=click.IntRange(1, 10**9), default=20, show_default=True, help="At most."
)
@json_option
@verbosity_options
def history(
    store: Path | None, device: str | None, subject: str | None, limit: int, as_json: bool
) -> None:
    """List the measurements that were kept, the newest first.

    \b
    edgekit bench history --device raspberry-pi-5
    edgekit bench history --subject mobilenet --limit 100 --json
    """
    from edgekit.bench.lab import short
    from edgekit.bench.store import Store, default_store

    file = Store(store or default_store(), make=False)
    found = file.measurements(device=device, subject=subject, limit=limit)
    kept = ("id", "session", "created", "url", "device", "subject", "settings")
    document = {
        "schema": "edgekit.bench-history/1",
        "store": str(file.path),
        "measurements": [
            {name: getattr(m, name) for name in (*kept, "status", "reason", "attempts")}
            | {"results": [short(r) for r in (m.document or {}).get("results", [])]}
            for m in found
        ],
    }
    emit(document, as_json, lambda: _history_text(document))


def _history_text(document: Mapping[str, Any]) -> str:
    rows: list[list[object]] = []
    for m in document["measurements"]:
        where = [
            m["id"],
            m["created"],
            m["device"] or plain_url(m["url"]),
            m["settings"].get("threads"),
        ]
        rows += [[*where, *figures(result)] for result in m["results"]]
        if m["status"] != "ok":
            name = Path(m["subject"]).name
            rows.append([*where, name, None, None, None, f"failed: {m['reason']}"])
    if not rows:
        return f"{document['store']} holds no such measurement"
    headers = ["id", "when", "device", "threads", "artifact", "p50 ms", "p90 ms", "peak MiB", ""]
    return table(headers, rows)


@click.command("compare")
@click.argument("a")
@click.argument("b")
@click.option("--force", is_flag=True, help="Also what was measured under unlike conditions.")
@click.option(
    "--fail-if-slower", is_flag=True, help="Exit with 1 where an artifact of B is slower."
)
@STORE
@json_option
@verbosity_options
def compare(
    a: str, b: str, force: bool, fail_if_slower: bool, store: Path | None, as_json: bool
) -> int:
    """Say whether B is faster or slower than A, with a 95 % interval.

    A and B are numbers of kept measurements or files that ``edgekit bench --json`` wrote, each with
    :ARTIFACT behind it or not; without it, every artifact that both have. What one run measured in
    turn is compared in pairs. At another time a device may be another: that is said.

    \b
    Exit codes: 0 compared, 1 slower under --fail-if-slower, 2 there is no such measurement, or the
    conditions were unlike, 7 too few rounds.

    \b
    edgekit bench compare 12 15
    edgekit bench compare 15:tflite-fp32 15:tflite-w8a8
    edgekit bench compare released.json candidate.json --fail-if-slower
    """
    from edgekit.bench.compare import compare as held

    first, second = _named(a, store), _named(b, store)
    pairs = _pairs((a, *first), (b, *second))
    document = held(first[0], second[0], pairs, names=(a, b), force=force)
    emit(document, as_json, lambda: _compare_text(document))
    slower = any(entry["verdict"] == "slower" for entry in document["comparisons"])
    return int(fail_if_slower and slower)


def _named(name: str, store: Path | None) -> tuple[dict[str, Any], str | None]:
    """The document that a name on the command line means, and the artifact if it names one."""
    import json

    from edgekit.bench.compare import readable
    from edgekit.bench.store import Store, default_store
    from edgekit.errors import BadData, StorageError, UsageError

    where, artifact = name, None
    if not Path(name).is_file() and ":" in name:
        where, _, artifact = name.rpartition(":")
    if Path(where).is_file():
        try:
            document = json.loads(Path(where).read_text(encoding="utf-8"))
        except OSError as error:
            raise StorageError(f"cannot read {where}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise BadData(f"{where} is not JSON: {error}") from error
        return readable(document, where), artifact
    if not re.fullmatch(r"[0-9]{1,18}", where):
        raise UsageError(
            f"{where!r} is neither a file nor the number of a measurement",
            hint="which there are: edgekit bench history",
        )
    found = Store(store or default_store(), make=False).measurement(int(where))
    return _document(found), artifact


def _document(found: Measurement) -> dict[str, Any]:
    from edgekit.errors import UsageError

    if found.document is None:
        raise UsageError(f"measurement {found.id} failed: {found.reason}")
    return found.document


def _pairs(
    a: tuple[str, dict[str, Any], str | None], b: tuple[str, dict[str, Any], str | None]
) -> list[tuple[str, str]]:
    from edgekit.errors import UsageError

    ids = [[result["artifact"] for result in side[1]["results"]] for side in (a, b)]
    if a[2] is not None or b[2] is not None:
        return [(a[2] or b[2] or "", b[2] or a[2] or "")]
    common = [(name, name) for name in ids[0] if name in ids[1]]
    if not common:
        raise UsageError(
            f"{a[0]} and {b[0]} have no artifact in common",
            hint=f"name one of each: {a[0]}:{ids[0][0]} {b[0]}:{ids[1][0]}",
        )
    for own, others, side in ((ids[0], ids[1], a), (ids[1], ids[0], b)):
        if lone := [name for name in own if name not in others]:
            note(f"not compared, as only {side[0]} has them: {', '.join(lone)}")
    return common


def _compare_text(document: Mapping[str, Any]) -> str:
    lines = []
    for entry in document["comparisons"]:
        low, high = entry["ci95"]
        how = "in pairs, one run" if entry["paired"] else "at different times"
        name = entry["b"] if entry["a"] == entry["b"] else f"{entry['b']} against {entry['a']}"
        lines.append(
            f"{name}: {entry['verdict']}, {entry['ratio']:.3f} times the latency "
            f"(95 % interval {low:.3f} to {high:.3f}; {how}, "
            f"{entry['rounds'][0]} and {entry['rounds'][1]} rounds)"
        )
        lines += [f"  unlike: {text}" for text in entry["unlike"]]
        lines += [f"  changed: {text}" for text in entry["changed"]]
    return "\n".join(lines)
