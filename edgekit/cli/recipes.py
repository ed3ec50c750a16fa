"""`edgekit recipes`: the recipes that come along, one in full, or a copy of one to edit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click

from edgekit.artifact import storage_error
from edgekit.cli._libraries import subdued
from edgekit.cli._output import emit, json_option, note, table, verbosity_options
from edgekit.errors import UsageError
from edgekit.recipe import shipped

__all__ = ["command"]


@click.group(invoke_without_command=True)
@json_option
@verbosity_options
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the recipes that come along, show one, or copy one to edit.

    \b
    edgekit recipes
    edgekit recipes show mobilenet
    edgekit recipes cp mobilenet .
    """
    context.obj = as_json
    if context.invoked_subcommand is None:
        rows = [_row(name, path) for name, path in shipped.available().items()]
        emit(
            {"schema": "edgekit.recipes/1", "recipes": rows},
            as_json,
            lambda: table(["recipe", "what it does"], [[r["name"], r["doc"]] for r in rows]),
        )


@command.command()
@click.argument("recipe", metavar="NAME|PATH")
@json_option
@verbosity_options
@click.pass_obj
def show(group_json: bool, recipe: str, as_json: bool) -> None:
    """Show a recipe's stages, what each needs, and all settings with their defaults."""
    from edgekit.recipe.document import plain
    from edgekit.recipe.stages import load_recipe
    from edgekit.settings import leaves

    path = shipped.find(recipe)
    with subdued():
        found = load_recipe(path)
    stages = [
        {"name": s.name, "needs": list(s.parameters), "doc": s.doc} for s in found.stages.values()
    ]
    settings = plain(leaves(found.defaults()))
    row = {**_row(found.name, path), "stages": stages, "settings": settings}
    emit(
        {"schema": "edgekit.recipes/1", "recipes": [row]},
        as_json or group_json,
        lambda: _text(row),
    )


@command.command()
@click.argument("recipe", metavar="NAME")
@click.argument("place", metavar="PLACE", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@json_option
@verbosity_options
@click.pass_obj
def cp(group_json: bool, recipe: str, place: Path, force: bool, as_json: bool) -> None:
    """Copy a recipe to PLACE, a directory or a file name, to edit and run it there."""
    source = shipped.find(recipe)
    target = place / source.name if place.is_dir() or str(place).endswith(os.sep) else place
    if target.suffix != ".py":
        raise UsageError(f"{target} does not end in .py", hint="name a directory or a .py file")
    if target.exists() and not force:
        raise UsageError(f"{target} exists; it is left alone", hint="--force replaces it")
    aside = target.with_name(f".{target.name}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(source.read_bytes())
        aside.replace(target)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise storage_error(target.parent, error) from error
    note(f"run it with: edgekit run {target}")
    document = {"schema": "edgekit.recipes/1", "recipes": [_row(source.stem, target)]}
    emit(document, as_json or group_json, lambda: str(target))


def _row(name: str, path: Path) -> dict[str, Any]:
    return {"name": name, "doc": shipped.summary(path), "path": str(path)}


def _text(row: dict[str, Any]) -> str:
    stages = [[s["name"], ", ".join(s["needs"]) or "nothing", s["doc"]] for s in row["stages"]]
    settings = [[name, json.dumps(value)] for name, value in row["settings"].items()]
    parts = [f"{row['name']}: {row['doc']}", "", table(["stage", "takes", "what it does"], stages)]
    if settings:
        parts += ["", table(["setting", "default"], settings)]
    return "\n".join(parts)
