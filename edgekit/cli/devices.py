"""`edgekit devices`: the device profiles there are, one in full, or whether one is sound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from edgekit import device as devices
from edgekit.cli._output import emit, json_option, note, table, verbosity_options
from edgekit.errors import UnsupportedError

__all__ = ["command"]


@click.group(invoke_without_command=True)
@json_option
@verbosity_options
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List device profiles, show one, or check one.

    A device is named by its id or by the path of a .toml of your own.

    \b
    edgekit devices
    edgekit devices show pixel-8
    edgekit devices check my-board.toml
    """
    context.obj = as_json
    if context.invoked_subcommand is None:
        rows = list(_rows())
        document = {"schema": "edgekit.devices/1", "devices": rows}
        emit(document, as_json, lambda: _list_text(rows))


@command.command()
@click.argument("device", metavar="ID|PATH")
@json_option
@verbosity_options
@click.pass_obj
def show(group_json: bool, device: str, as_json: bool) -> None:
    """Show a profile: its figures with their sources, what it runs, and what it can't."""
    profile = devices.load(device)
    emit(profile.to_json(), as_json or group_json, lambda: _show_text(profile))


@command.command()
@click.argument("names", metavar="[ID|PATH]...", nargs=-1)
@json_option
@verbosity_options
@click.pass_obj
def check(group_json: bool, names: tuple[str, ...], as_json: bool) -> int:
    """Check that profiles are sound and give a source for every figure.

    Without an argument: all profiles that ship with edgekit. Exit code 1 if one is not sound.
    """
    profiles = [_checked(name) for name in names or devices.available()]
    passed = all(profile["passed"] for profile in profiles)
    document = {"schema": "edgekit.device-check/1", "profiles": profiles, "passed": passed}
    emit(document, as_json or group_json, lambda: "\n".join(_check_text(profiles)))
    return 0 if passed else 1


def _rows() -> Iterator[dict[str, Any]]:
    for name in devices.available():
        try:
            profile = devices.load(name)
        except UnsupportedError as error:
            # Only `host` can be unsupported, on a machine that can't be described.
            note(f"{name} is left out: {error.message}")
            continue
        yield {
            "id": profile.id,
            "name": profile.name,
            "soc": profile.soc,
            "arch": profile.isa.arch,
            "targets": list(dict.fromkeys(entry.target for entry in profile.targets)),
            "threads": profile.threads,
        }


def _list_text(rows: list[dict[str, Any]]) -> str:
    cells = [
        [row["id"], row["name"], row["soc"], row["arch"], row["threads"], " ".join(row["targets"])]
        for row in rows
    ]
    return table(["id", "name", "soc", "arch", "threads", "targets"], cells)


def _show_text(profile: devices.Device) -> str:
    title = f"{profile.id}: {profile.name}, {profile.os}"
    parts = [title, "", table(["figure", "value", "source"], _figures(profile))]
    runs = [[t.target, t.delegate, " ".join(t.schemes)] for t in profile.targets]
    parts += ["", table(["runs", "delegate", "schemes"], runs)]
    parts += [f"  {t.target}: {t.note}" for t in profile.targets if t.note]
    if profile.unsupported or profile.accelerators:
        parts += ["", "does not run"]
    parts += [f"  {u.target}: {u.reason}" for u in profile.unsupported]
    for a in profile.accelerators:
        parts += [f"  {a.name} ({a.kind}): {a.reason}", f"    {a.advice}"]
    if profile.anchors:
        parts += ["", table(["published", "precision", "on", "threads", "ms"], _anchors(profile))]
    budgets = [[name, value] for name, value in profile.budgets if value is not None]
    if budgets:
        parts += ["", table(["budget", "limit"], budgets)]
    bench = profile.bench
    parts += [
        "",
        f"bench: {profile.threads} threads, {bench.runs} runs or {bench.max_seconds:g} s, "
        f"{bench.warmup} to warm up",
        f"digest: {profile.digest()}",
    ]
    return "\n".join(parts)


def _figures(profile: devices.Device) -> list[list[object]]:
    rows: list[list[object]] = []
    for figure, value in profile.figures().items():
        source = profile.source(figure)
        if profile.doubted(figure):
            source = f"unverified ({source})" if source else "unverified"
        if isinstance(value, tuple):
            rows += [[figure, _cluster(cluster), source] for cluster in value]
        else:
            rows.append([figure, _value(value), source])
    return rows


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cluster(cluster: devices.Cluster) -> str:
    clock = "" if cluster.ghz is None else f" {cluster.ghz:g} GHz"
    return f"{cluster.cores} x {cluster.core}{clock}"


def _anchors(profile: devices.Device) -> list[list[object]]:
    return [
        [
            a.model,
            a.precision,
            f"{a.runtime} {a.compute_unit}",
            a.threads,
            f"{a.latency_ms:g}" if a.measured else f"{a.latency_ms:g} (derived)",
        ]
        for a in profile.anchors
    ]


def _checked(name: str) -> dict[str, Any]:
    problems = devices.check(name)
    profile = None if problems else devices.load(name)
    return {
        "file": Path(name).name if name.endswith(".toml") else f"{name}.toml",
        "id": profile.id if profile else None,
        "passed": not problems,
        "problems": problems,
        "unverified": list(profile.unverified) if profile else [],
    }


def _check_text(profiles: list[dict[str, Any]]) -> Iterator[str]:
    for profile in profiles:
        yield f"{'ok    ' if profile['passed'] else 'FAILED'}  {profile['file']}"
        yield from (f"        {problem}" for problem in profile["problems"])
        if profile["unverified"]:
            yield f"        unverified: {', '.join(profile['unverified'])}"
