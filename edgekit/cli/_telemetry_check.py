"""`edgekit telemetry check`: whether a file of rules is right, and what would fire now."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from edgekit.cli._output import emit, json_option, table, verbosity_options

__all__ = ["command"]


@click.command("check")
@click.argument("rules", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("store", type=click.Path(path_type=Path, exists=True, dir_okay=False),
                required=False)  # fmt: skip
@click.option("--watch-s", type=click.FloatRange(0.1, 86_400), default=300.0, show_default=True,
              help="How often the receiver looks.")  # fmt: skip
@click.option("-k", "least", type=click.IntRange(2), default=10, show_default=True,
              help="Use no fewer devices.")  # fmt: skip
@json_option
@verbosity_options
def command(rules: Path, store: Path | None, watch_s: float, least: int, as_json: bool) -> int:
    """Check the alert rules in the file RULES; with STORE, say what is beyond its limit now.

    What is beyond its limit fires once it has been so for the rule's for_minutes. A rule of a rate
    fires where the lower bound of the rate's interval is beyond the limit, so not by chance.

    \b
    Exit codes: 0 the rules are right, and nothing is beyond its limit; 1 something is; 3 the extra
    'telemetry' is missing, 6 others may read the webhook's secret, 7 the rules are wrong or STORE
    is no store, 9 a receiver has STORE open.

    \b
    edgekit telemetry check rules.toml
    edgekit telemetry check rules.toml fleet.duckdb
    """
    from edgekit.cli.telemetry import need_extra

    need_extra()
    from edgekit.telemetry.checking import check, document
    from edgekit.telemetry.duck import DuckStore
    from edgekit.telemetry.judging import Finding
    from edgekit.telemetry.rules import read_rules

    read = read_rules(rules)
    if store is None:
        none = Finding(None, None, "not looked at").to_json()
        found = document(
            [
                {"name": r.name, "kind": r.kind, "where": dict(r.where), "beyond": None, **none}
                for r in read.rules
            ]
        )
    else:
        with DuckStore(store, read_only=True) as opened:
            found = check(opened, read.rules, now_s=time.time(), k=least, interval_s=watch_s)
    emit(found, as_json, lambda: _text(found))
    return int(any(row["beyond"] for row in found["rules"]))


def _text(found: dict[str, Any]) -> str:
    words = {True: "beyond its limit", False: "ok", None: "-"}
    rows = [[row["name"], row["kind"], words[row["beyond"]], row["said"]] for row in found["rules"]]
    return table(["rule", "kind", "now", "what was found"], rows)
