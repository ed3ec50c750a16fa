"""`edgekit run`: a recipe's stages, those that are cached taken, the others made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekit.cli import _export_text, _live, _output
from edgekit.cli._libraries import subdued
from edgekit.cli._output import emit, json_option, note, table, verbosity_options
from edgekit.errors import EdgekitError, UsageError

if TYPE_CHECKING:
    from edgekit.recipe.engine import Outcome, Planned, Runner

__all__ = ["command"]


@click.command()
@click.argument("recipe", metavar="RECIPE")
@click.option(
    "-s", "--set", "settings", multiple=True, metavar="NAME=VALUE",
    help="Change a setting: section.name=value.",
)  # fmt: skip
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="PATH",
    help="Data of your own, for stages that take it.",
)  # fmt: skip
@click.option(
    "--device", "devices", multiple=True, metavar="ID|PATH",
    help="Device to make it for; may be given again. The recipe's own by default.",
)  # fmt: skip
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="DIR",
    help="Where run.json and the stages' files go; out/RECIPE by default.",
)  # fmt: skip
@click.option(
    "--only", multiple=True, metavar="STAGE",
    help="Run this stage and what it needs; may be given again.",
)  # fmt: skip
@click.option(
    "--again", multiple=True, metavar="STAGE", help="Run this stage although it is cached."
)
@click.option("--dry-run", is_flag=True, help="Tell what would run, and why; run nothing.")
@click.option(
    "--track", metavar="URI",
    help="Record settings, curves and gates with MLflow: sqlite:///FILE, or a server's address.",
)  # fmt: skip
@json_option
@verbosity_options
def command(
    recipe: str,
    settings: tuple[str, ...],
    data: Path | None,
    devices: tuple[str, ...],
    out: Path | None,
    only: tuple[str, ...],
    again: tuple[str, ...],
    dry_run: bool,
    track: str | None,
    as_json: bool,
) -> int:
    """Run RECIPE, a script or the name of one that comes along (`edgekit recipes`).

    A stage whose code, inputs, settings and library versions are as before is not run again.
    A run that was interrupted goes on where it was.

    \b
    edgekit run mobilenet
    edgekit run recipes/mobilenet.py -s train.epochs=5 --data my-pictures/
    edgekit run my_recipe.py --dry-run
    """
    from edgekit.recipe import shipped, tracking
    from edgekit.recipe.engine import Runner
    from edgekit.recipe.stages import load_recipe

    script = shipped.find(recipe)
    overrides = _pairs(settings)
    out = out or Path("out") / script.stem
    if track is not None:
        tracking.check(track)
    with subdued():
        # The script's imports; what its stages print is kept beside them.
        loaded = load_recipe(script)
    with _live.shown() as view:
        runner = Runner(
            loaded,
            overrides=overrides,
            data=data,
            devices=devices,
            out=None if dry_run else out,
            only=only,
            again=again,
            view=view,
        )
        if not dry_run:
            outcomes = runner.run()
    if dry_run:
        planned = runner.plan()
        emit(_plan_document(runner, planned), as_json, lambda: _plan_text(planned))
        return 0
    document = runner.result
    page = _page(out, document)
    emit(document, as_json, lambda: _text(document, out, page))
    if track is not None:
        tracking.record(document, out, track)
    return _answer(document, outcomes)


def _pairs(settings: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not (name and equals):
            raise UsageError(f"-s {setting!r} is not NAME=VALUE", hint="such as -s train.epochs=5")
        pairs[name.strip()] = value
    return pairs


def _answer(document: Mapping[str, Any], outcomes: Mapping[str, Outcome]) -> int:
    """The exit code; tells what failed."""
    failed = {name: o.error for name, o in outcomes.items() if o.error is not None}
    for error in failed.values():
        tail = f"\n  {error.hint}" if error.hint else ""
        _output.write_error(f"edgekit: error: {error.message}{tail}\n")
    if failed:
        return next(iter(failed.values())).exit_code
    broken = [
        f"{stage['name']}: {gate['name']}"
        for stage in document["stages"]
        for gate in stage["gates"]
        if gate["passed"] is False
    ]
    if broken:
        note(f"gates that failed: {', '.join(broken)}")
    return 1 if broken else 0


def _plan_document(runner: Runner, planned: Sequence[Planned]) -> dict[str, Any]:
    return {
        "schema": "edgekit.run-plan/1",
        "recipe": runner.recipe.name,
        "settings": runner.values,
        "stages": [
            {"name": p.stage, "state": p.state, "why": p.why, "doc": p.doc} for p in planned
        ],
    }


def _plan_text(planned: Sequence[Planned]) -> str:
    return table(["stage", "state", "why"], [[p.stage, p.state, p.why] for p in planned])


def _exports(document: Mapping[str, Any], out: Path) -> dict[str, dict[str, Any]]:
    """The documents of stages that exported, by stage."""
    from edgekit.recipe.document import EXPORT

    found = {}
    for stage in document["stages"]:
        if any(file["path"] == EXPORT for file in stage["files"]):
            place = out / stage["name"]
            exported = json.loads((place / EXPORT).read_text())
            if exported["bundle"] is not None:
                exported["bundle"] = str(place / exported["bundle"])
            found[stage["name"]] = exported
    return found


def _page(out: Path, document: Mapping[str, Any]) -> Path | None:
    """Writes the run's page, unless it is there and nothing was made; None where it can't be."""
    from edgekit.report.page import build, write

    page = out / "report.html"
    if page.is_file() and all(stage["cached"] for stage in document["stages"]):
        return page
    try:
        write(build([out]), page)
    except EdgekitError as error:
        # The run is what it is; `edgekit report` tells the same.
        note(f"no report: {error.message}")
        return None
    return page


def _text(document: Mapping[str, Any], out: Path, page: Path | None) -> str:
    rows = []
    for stage in document["stages"]:
        state = "cached" if stage["cached"] else stage["status"]
        seconds = None if stage["wall_s"] is None else round(stage["wall_s"], 1)
        why = stage["reason"] or stage["why"] or ""
        rows.append([stage["name"], state, seconds, why.partition("\n")[0]])
    lines = [table(["stage", "state", "s", "why"], rows)]
    words = {True: "held", False: "FAILED", None: "not judged"}
    exports = _exports(document, out)
    for name, exported in exports.items():
        lines += ["", _export_text.text(exported, out / name)]
    gates = [
        [stage["name"], gate["name"], words[gate["passed"]], gate["text"]]
        for stage in document["stages"]
        for gate in stage["gates"]
        # An export's are told with its artifacts.
        if stage["name"] not in exports or gate["passed"] is False
    ]
    if gates:
        lines += ["", table(["stage", "gate", "", ""], gates)]
    files = [s["name"] for s in document["stages"] if s["files"]]
    lines += ["", *(f"{name}: {out / name}" for name in files), f"run: {out / 'run.json'}"]
    lines += [] if page is None else [f"report: {page}"]
    return "\n".join(lines)
