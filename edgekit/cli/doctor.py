"""`edgekit doctor`: what is installed, and whether each runtime really runs here."""

from __future__ import annotations

from typing import Any

import click

from edgekit import doctor
from edgekit.cli._output import emit, json_option, note, table, verbosity_options

__all__ = ["command"]

_MARKS = {True: "ok", False: "FAILED", None: "absent"}


@click.command()
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="ID",
    help="Ask for this target; may be repeated. Without it: every target that is installed.",
)
@json_option
@verbosity_options
def command(targets: tuple[str, ...], as_json: bool) -> int:
    """Check what is installed and that each runtime really runs.

    Each installed target converts one layer and runs it in its runtime, in a process of its own.

    \b
    Exit codes: 0 all installed targets run, 1 one did not, 3 a target asked for is not installed.

    \b
    edgekit doctor
    edgekit doctor --target tflite --json
    """
    report = doctor.diagnose(targets, tell=lambda target: note(f"running one layer in {target}"))
    emit(report, as_json, lambda: _text(report))
    if report["missing"]:
        return 3
    return 0 if report["passed"] else 1


def _text(report: dict[str, Any]) -> str:
    facts, memory = report["facts"], report["facts"]["memory_mib"]
    isa = [name for name, present in (facts["isa"] or {}).items() if present]
    lines = [
        f"edgekit {report['edgekit']}, Python {report['python']}, "
        f"{facts['system']} {facts['release']} {facts['machine']}",
        f"cpu     {facts['cpu'] or 'unknown'}, {facts['cores']} cores, "
        f"isa {' '.join(isa) or 'unknown'}",
        f"memory  {_mib(memory['available'])} free of {_mib(memory['limit'] or memory['total'])}",
        f"disk    {_mib(facts['disk_free_mib'])} free",
        "",
        table(
            ["check", "", "detail"],
            [[c["name"], _MARKS[c["passed"]], c["detail"]] for c in report["checks"]],
        ),
    ]
    failed = [c for c in report["checks"] if c["passed"] is False and c["hint"]]
    lines += [""] * bool(failed) + [f"to mend {c['name']}: {c['hint']}" for c in failed]
    absent = [
        name
        for name, extra in report["extras"].items()
        if not extra["complete"] and name not in ("core", "all", "dev")
    ]
    if absent:
        lines += ["", f"extras not installed: {', '.join(absent)}"]
    if report["install"]:
        lines += ["", f"to install what is missing: {report['install']}"]
    return "\n".join(lines)


def _mib(value: int | None) -> str:
    return "unknown" if value is None else f"{value / 1024:.1f} GiB"
