"""`edgekit bench` beyond this machine: devices by URL, a matrix of them, history and comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.cli._output import emit, json_option, note, table, verbosity_options

if TYPE_CHECKING:
    from edgekit.bench.lab import Outcome
    from edgekit.bench.store import Measurement
    from edgekit.bench.vendor import Tool
    from edgekit.device import Device

__all__ = ["Verb", "history", "lab_options", "measured_on", "run_matrix"]

F = TypeVar("F", bound=Callable[..., Any])

_STORE = click.option(
    "--store",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    metavar="FILE",
    help="SQLite file of measurements; by default bench.sqlite in the state folder.",
)


class Verb(click.Command):
    """A command with others below it, for which it makes way if their name comes first."""

    others: Mapping[str, click.Command]

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """As click does it, for this command or the named one."""
        if args and args[0] in self.others:
            name = f"{info_name} {args[0]}"
            return self.others[args[0]].make_context(name, args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


def lab_options(function: F) -> F:
    """Adds the options of where to measure; handed to the verb by their names."""
    for option in reversed(
        (
            click.option(
                "--on",
                "url",
                metavar="URL",
                help="Measure on a device: ssh://[USER@]HOST[:PORT], adb://SERIAL, local:.",
            ),
            click.option(
                "--device",
                "profile_name",
                metavar="ID",
                help="The device's profile: its threads and runs are usual, its budgets gates.",
            ),
            click.option(
                "--tool",
                "tools",
                multiple=True,
                metavar="NAME=PATH",
                help="Have a program that you built for the device measure: benchmark_model or "
                "executor_runner.",
            ),
            click.option(
                "--wait",
                type=click.FloatRange(0),
                default=600.0,
                show_default=True,
                metavar="SECONDS",
                help="Wait so long for a device that another job has.",
            ),
            click.option(
                "--matrix",
                type=click.Path(path_type=Path, dir_okay=False),
                metavar="FILE",
                help="Measure what a TOML file says: artifacts x devices x settings.",
            ),
            click.option(
                "--again", is_flag=True, help="Begin a matrix anew, not where its last run ended."
            ),
            _STORE,
        )
    ):
        function = option(function)
    return function


def _tools(given: Sequence[str]) -> list[Tool]:
    from edgekit.bench.vendor import Tool
    from edgekit.errors import UsageError

    found = []
    for text in given:
        name, sign, path = text.partition("=")
        if not sign:
            raise UsageError(f"--tool {text!r} is not NAME=PATH")
        found.append(Tool(name, Path(path)))
    return found


def profile_of(name: str | None) -> Device | None:
    """The profile that ``--device`` names."""
    from edgekit import device

    return None if name is None else device.load(name)


def measured_on(
    subject: Path,
    ids: tuple[str, ...],
    settings: Mapping[str, Any],
    lab: Mapping[str, Any],
    *,
    force: bool,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """Measures where the options say, and appends it to the store if they name one.

    Args:
        subject: path of the bundle or artifact.
        ids: which artifacts of the bundle.
        settings: fields of `edgekit.bench.measure.Settings`.
        lab: values of `lab_options`.
        force: compare what was measured under unlike conditions, too.
        advance: called with 1 after each block.
    """
    from edgekit.bench.interrupts import ended_by_signals
    from edgekit.bench.lab import bench_on
    from edgekit.bench.measure import Settings
    from edgekit.bench.store import Store

    device, how = profile_of(lab["profile_name"]), Settings(**settings)
    store = None if lab["store"] is None else Store(lab["store"])
    with ended_by_signals():
        document = bench_on(
            lab["url"],
            subject,
            ids,
            settings=how,
            device=device,
            tools=_tools(lab["tools"]),
            wait=lab["wait"],
            force=force,
            waiting=note,
            progress=lambda done, total: advance(1),
        )
    if store is not None:
        number = store.append(
            url=lab["url"],
            device=None if device is None else device.id,
            subject=str(subject),
            settings=how.to_json(),
            document=document,
        )
        note(f"kept as measurement {number} in {store.path}")
    return document


def gates_text(gates: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per budget: held, broken, or why that can't be said."""
    words = {True: "held", False: "BROKEN", None: "not judged"}
    return [
        f"budget {gate['name']} of {gate['artifact']}: {words[gate['passed']]} "
        f"({'-' if gate['value'] is None else format(gate['value'], '.4g')} of {gate['limit']:g})"
        + (f": {gate['detail']}" if gate["detail"] else "")
        for gate in gates
    ]


def run_matrix(lab: Mapping[str, Any], as_json: bool) -> int:
    """`edgekit bench --matrix`: its exit code."""
    from edgekit.bench import lab as device_lab
    from edgekit.bench.interrupts import ended_by_signals
    from edgekit.bench.matrix import read_matrix
    from edgekit.bench.store import Store, default_store

    matrix = read_matrix(lab["matrix"])
    store = Store(lab["store"] or default_store())
    done = 0

    def report(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        cell = outcome.cell
        how = "already measured" if outcome.resumed else outcome.reason or "measured"
        threads = f"{cell.settings.threads} threads"
        note(f"[{done}/{len(matrix.cells)}] {cell.subject.name} on {cell.url}, {threads}: {how}")

    with ended_by_signals():
        document = device_lab.run_matrix(
            matrix, store, again=lab["again"], report=report, waiting=note
        )
    emit(document, as_json, lambda: _matrix_text(document))
    if any(gate["passed"] is False for gate in document["gates"]):
        return 1
    return next((cell["exit_code"] for cell in document["cells"] if cell["exit_code"]), 0)


def _matrix_text(document: Mapping[str, Any]) -> str:
    rows: list[list[object]] = []
    for cell in document["cells"]:
        where = [cell["measurement"], cell["device"] or cell["url"], cell["settings"]["threads"]]
        for result in cell["results"]:
            rows.append([*where, *_figures(result)])
        if cell["status"] != "ok":
            rows.append([*where, cell["subject"], None, None, None, cell["status"]])
    headers = ["id", "device", "threads", "artifact", "p50 ms", "p90 ms", "peak MiB", ""]
    failed = [f"{c['url']}: {c['reason']}" for c in document["cells"] if c["reason"]]
    state = "complete" if document["complete"] else "not complete; run it again to go on"
    lines = [f"matrix run {document['session']}: {state}; kept in {document['store']}", ""]
    return "\n".join([*lines, table(headers, rows), "", *failed, *gates_text(document["gates"])])


def _figures(result: Mapping[str, Any]) -> list[object]:
    def digits(value: float | None) -> float | None:
        return None if value is None else float(f"{value:.4g}")

    # What too few calls gave is told, not shown as a figure.
    known = not result["insufficient"]
    latencies = [digits(result[key]) if known else None for key in ("p50_ms", "p90_ms")]
    memory = digits(result["peak_memory_mib"])
    return [result["artifact"], *latencies, memory, "" if known else result["insufficient"][0]]


@click.command("history")
@_STORE
@click.option("--device", metavar="ID_OR_URL", help="Only this device.")
@click.option("--subject", metavar="TEXT", help="Only what has this in its path.")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most.")
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

    file = Store(store or default_store())
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
        where = [m["id"], m["created"], m["device"] or m["url"], m["settings"]["threads"]]
        rows += [[*where, *_figures(result)] for result in m["results"]]
        if m["status"] != "ok":
            rows.append([*where, m["subject"], None, None, None, f"failed: {m['reason']}"])
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
@_STORE
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

    from edgekit.bench.store import Store, default_store
    from edgekit.errors import BadData, UsageError

    where, artifact = name, None
    if not Path(name).is_file() and ":" in name:
        where, _, artifact = name.rpartition(":")
    if Path(where).is_file():
        try:
            document = json.loads(Path(where).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise BadData(f"{where} is not JSON: {error}") from error
        if not isinstance(document, dict) or document.get("schema") != "edgekit.bench/1":
            raise BadData(f"{where} is no edgekit.bench/1 document")
        return document, artifact
    if not where.isascii() or not where.isdigit():
        raise UsageError(
            f"{where!r} is neither a file nor the number of a measurement",
            hint="which there are: edgekit bench history",
        )
    found = Store(store or default_store()).measurement(int(where))
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


OTHERS = {"history": history, "compare": compare}
"""Commands below `edgekit bench`."""
