"""`edgekit bench` beyond this machine: devices by URL, and a matrix of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgekit.cli._bench_kept import figures, plain_url
from edgekit.cli._output import emit, note, progress, table

if TYPE_CHECKING:
    from edgekit.bench.lab import Outcome
    from edgekit.bench.vendor import Tool
    from edgekit.device import Device

__all__ = [
    "Seconds",
    "elsewhere",
    "gates_text",
    "lab_options",
    "measured_on",
    "place",
    "run_matrix",
]

F = TypeVar("F", bound=Callable[..., Any])
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class Seconds(click.ParamType):  # type: ignore[type-arg]
    """A length of time: ``90``, ``90s``, ``10m``, ``1.5h``; in seconds."""

    name = "TIME"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|)", str(value).strip())
        if found is None:
            self.fail(f"{value!r} is no time; write 90s, 10m or 1h", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


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
                type=Seconds(),
                default=600.0,
                show_default="600s",
                metavar="TIME",
                help="Wait so long for a device that another job has.",
            ),
            click.option(
                "--matrix",
                type=click.Path(path_type=Path, dir_okay=False),
                metavar="FILE",
                help="Measure what a TOML file says, as below: artifacts x devices x settings.",
            ),
            click.option(
                "--again", is_flag=True, help="Begin a matrix anew, not where its last run ended."
            ),
            click.option(
                "--store",
                type=click.Path(path_type=Path, dir_okay=False),
                metavar="FILE",
                help="Keep the result in this SQLite file; those of a matrix are kept in "
                "bench.sqlite in the state folder without it.",
            ),
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


def elsewhere(lab: Mapping[str, Any]) -> bool:
    """Whether the options ask for a runner, be it that of this machine."""
    # An empty word counts as one: it is a shell's unset variable, and names no device.
    return any(lab[name] not in (None, ()) for name in ("url", "profile_name", "tools", "store"))


def place(lab: Mapping[str, Any]) -> tuple[str, Device | None, list[Tool]]:
    """Where to measure: the device's URL, its profile, and programs for it.

    What is wrong with these is found here, before anything is begun or repeated on a screen.
    """
    from edgekit.bench.runners import parse

    url = parse("local:" if lab["url"] is None else lab["url"]).text
    return url, _profile(lab["profile_name"]), _tools(lab["tools"])


def measured_on(
    ctx: click.Context,
    subject: Path,
    ids: tuple[str, ...],
    settings: Mapping[str, Any],
    lab: Mapping[str, Any],
    *,
    force: bool,
) -> dict[str, Any]:
    """Measures where the options say, and appends it to the store if they name one.

    Args:
        ctx: knows which options were given.
        subject: path of the bundle or artifact.
        ids: which artifacts of the bundle.
        settings: fields of `edgekit.bench.measure.Settings`.
        lab: values of `lab_options`.
        force: compare what was measured under unlike conditions, too.
    """
    from edgekit.bench.interrupts import ended_by_signals
    from edgekit.bench.lab import bench_on
    from edgekit.bench.matrix import settings_for
    from edgekit.bench.store import Store

    url, device, tools = place(lab)
    how = settings_for(device, **_given(ctx, settings, device))
    store = None if lab["store"] is None else Store(lab["store"])
    with ended_by_signals(), progress(f"measuring on {url}") as advance:
        document = bench_on(
            url,
            subject,
            ids,
            settings=how,
            device=device,
            tools=tools,
            wait=lab["wait"],
            force=force,
            waiting=note,
            progress=lambda done, total: advance(1),
        )
    if store is not None:
        number = store.append(
            url=url,
            device=None if device is None else device.id,
            subject=str(subject),
            settings=how.to_json(),
            document=document,
        )
        note(f"kept as measurement {number} in {store.path}")
    return document


def _profile(name: str | None) -> Device | None:
    from edgekit import device

    return None if name is None else device.load(name)


def _given(
    ctx: click.Context, settings: Mapping[str, Any], device: Device | None
) -> dict[str, Any]:
    """The settings without those that the profile knows better than our defaults."""
    usual = () if device is None else ("threads", "runs", "max_seconds")
    asked = click.core.ParameterSource.DEFAULT
    return {
        name: value
        for name, value in settings.items()
        if name not in usual or ctx.get_parameter_source(name) is not asked
    }


def gates_text(gates: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per budget: held, broken, or why that can't be said."""
    words = {True: "held", False: "BROKEN", None: "not judged"}
    return [
        f"budget {gate['name']} of {gate['artifact']}: {words[gate['passed']]} "
        f"({'-' if gate['value'] is None else format(gate['value'], '.4g')} of {gate['limit']:g})"
        + (f": {gate['detail']}" if gate["detail"] else "")
        for gate in gates
    ]


def run_matrix(ctx: click.Context, lab: Mapping[str, Any], as_json: bool) -> int:
    """`edgekit bench --matrix`: its exit code.

    Raises:
        click.UsageError: an option is given that the matrix's file decides.
    """
    known = {"matrix", "again", "store", "as_json", "quiet", "verbose"}
    for param in ctx.command.params:
        source = ctx.get_parameter_source(param.name or "")
        if param.name not in known and source is click.core.ParameterSource.COMMANDLINE:
            name = "BUNDLE_OR_ARTIFACT" if param.name == "subject" else param.opts[0]
            raise click.UsageError(f"{name} is said by the matrix's file", ctx)
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
        where = [
            cell["measurement"],
            cell["device"] or plain_url(cell["url"]),
            cell["settings"]["threads"],
        ]
        for result in cell["results"]:
            rows.append([*where, *figures(result)])
        if cell["status"] != "ok":
            rows.append([*where, Path(cell["subject"]).name, None, None, None, cell["status"]])
    headers = ["id", "device", "threads", "artifact", "p50 ms", "p90 ms", "peak MiB", ""]
    failed = [f"{c['url']}: {c['reason']}" for c in document["cells"] if c["reason"]]
    state = "complete" if document["complete"] else "not complete; run it again to go on"
    lines = [f"matrix run {document['session']}: {state}; kept in {document['store']}", ""]
    return "\n".join([*lines, table(headers, rows), "", *failed, *gates_text(document["gates"])])
