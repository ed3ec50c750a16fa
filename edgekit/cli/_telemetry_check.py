"""`edgekit telemetry check`: whether a file of rules is right, and what would fire now."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from edgekit.cli._output import emit, json_option, table, verbosity_options
from edgekit.cli._telemetry_store import (
    asked,
    from_receiver,
    is_receiver,
    need_extra,
    read_references,
    reading,
)

__all__ = ["command"]


@click.command("check")
@click.argument("rules", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("store", required=False)
@click.option("--watch-s", type=click.FloatRange(0.1, 86_400), default=300.0, show_default=True,
              help="How often the receiver looks; one that is asked knows.")  # fmt: skip
@click.option("-k", "least", type=click.IntRange(2), default=10, show_default=True,
              help="Use no fewer devices; a receiver has its own.")  # fmt: skip
@click.option("--reference", "bundles", multiple=True, metavar="BUNDLE",
              type=click.Path(path_type=Path, exists=True),
              help="What rules of drift hold a store against; a receiver has its own.")  # fmt: skip
@asked
@json_option
@verbosity_options
def command(
    rules: Path,
    store: str | None,
    watch_s: float,
    least: int,
    bundles: tuple[Path, ...],
    ca: Path | None,
    as_json: bool,
) -> int:
    """Check the alert rules in the file RULES; with STORE, say what is beyond its limit now.

    STORE is a store's file, a postgresql:// URL, or the URL of a receiver that has it open, which
    is sent the rules, not the webhook, and wants an admin's key from EDGEKIT_API_KEY where it has
    keys. What is beyond its limit fires once it has been so for the rule's for_minutes. A rule of a
    rate is beyond it where the lower bound of the rate's interval is, so not by chance.

    \b
    Exit codes: 0 the rules are right, and nothing is beyond its limit; 1 something is; 3 the extra
    'telemetry' is missing, 4 the receiver does not answer, 6 others may read the webhook's secret,
    7 the rules are wrong or STORE is no store, 9 a receiver has STORE open.

    \b
    edgekit telemetry check rules.toml
    edgekit telemetry check rules.toml fleet.duckdb
    edgekit telemetry check rules.toml http://127.0.0.1:4318
    """
    need_extra()
    from edgekit.telemetry.checking import check, unlooked
    from edgekit.telemetry.rules import read_rules

    read = read_rules(rules).rules
    if store is None:
        found = unlooked(read)
    elif is_receiver(store):
        sent = {"rules": [rule.to_json() for rule in read]}
        found = from_receiver(store, "/v1/check", (), None, ca, sent)
    else:
        with reading(store) as opened:
            found = check(
                opened,
                read,
                now_s=time.time(),
                k=least,
                interval_s=watch_s,
                references=read_references(bundles) or (),
            )
    emit(found, as_json, lambda: _text(found))
    return int(any(row["beyond"] for row in found["rules"]))


def _text(found: dict[str, Any]) -> str:
    words = {True: "beyond its limit", False: "ok", None: "-"}
    rows = [[row["name"], row["kind"], words[row["beyond"]], row["said"]] for row in found["rules"]]
    return table(["rule", "kind", "now", "what was found"], rows)
