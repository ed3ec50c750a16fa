"""`edgekit telemetry`: receive what a fleet's devices send, and report on it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from edgekit.cli._listening import listening_options, server_settings, url_of, warn_open
from edgekit.cli._output import emit, json_option, table, verbosity_options
from edgekit.cli._telemetry_check import command as check
from edgekit.cli._telemetry_store import (
    alerts_file,
    asked,
    from_receiver,
    is_receiver,
    need_extra,
    open_store,
    private_files,
    read_references,
    reading,
)
from edgekit.errors import UsageError

__all__ = ["command"]

_INTERRUPTED = 130
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_BUNDLE = click.Path(path_type=Path, exists=True)


@click.group()
def command() -> None:
    """Receive telemetry from a fleet of devices, and report on it."""


@command.command()
@click.argument("store")
@listening_options(port=4318)
@click.option("--max-body-mb", type=click.FloatRange(0.001, 64), default=4.0, show_default=True,
              help="The largest body as it comes, in MiB.")  # fmt: skip
@click.option("--max-inflated-mb", type=click.FloatRange(0.001, 64), default=8.0,
              show_default=True, help="... and decompressed.")  # fmt: skip
@click.option("--max-held-mb", type=click.FloatRange(0.001, 16_384), default=64.0,
              show_default=True, help="Of all bodies that are not written yet.")  # fmt: skip
@click.option("--keep-days", type=click.IntRange(36, 36_500), default=400, show_default=True,
              help="How long counts are kept; devices' daily names for 35 days.")  # fmt: skip
@click.option("-k", "least", type=click.IntRange(2), default=10, show_default=True,
              help="Reports say nothing of fewer devices.")  # fmt: skip
@click.option("--rules", type=_FILE, metavar="FILE",
              help="Raise alerts by these rules; see 'telemetry check'.")  # fmt: skip
@click.option("--alerts", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Keep alerts over a restart here; STORE.alerts.json for a file.")  # fmt: skip
@click.option("--watch-s", type=click.FloatRange(0.1, 86_400), default=300.0, show_default=True,
              help="How often the fleet is looked at, for alerts and /metrics.")  # fmt: skip
@click.option("--reference", "bundles", multiple=True, metavar="BUNDLE", type=_BUNDLE,
              help="Reports tell drift against it; may be repeated.")  # fmt: skip
@json_option
@verbosity_options
def serve(store: str, as_json: bool, **options: Any) -> int:
    """Receive OTLP/HTTP into STORE, a DuckDB file that is made where it is absent.

    STORE may be a PostgreSQL database as well (the extra 'postgresql'), by a URL with what libpq
    knows, sslmode for one. Its password is better in PGPASSWORD, ~/.pgpass or a service file than
    in the URL, which other users of this machine see.

    Metrics go to /v1/metrics and events to /v1/logs, as protobuf or JSON, gzip or not. What edgekit
    devices send is taken, each record once however often it comes, and answered when it is on the
    disk; anything else is rejected as OTLP has it, and attributes that are not on the allow-list
    are not kept. /v1/report and /v1/canary answer what 'telemetry report' and 'canary' do, / is a
    page that shows it, /v1/alerts tells what fires, and /metrics is for Prometheus: all of them to
    admin keys where there are keys, but for the page itself, which asks for one. /health/live and
    /health/ready tell how it is.

    SIGTERM lets finish what is going on; SIGHUP reads the keys and the rules again.

    \b
    Exit codes: 0 ended after SIGTERM with all answered, 130 ended before; 3 the extra 'telemetry'
    or 'postgresql' is missing, 6 others may read the keys, 7 STORE is no store or the rules are
    wrong, 8 it cannot be reached or written or the port is taken, 9 another process has STORE open.

    \b
    edgekit telemetry serve fleet.duckdb --keys keys.txt --rules rules.toml
    edgekit telemetry serve fleet.duckdb --host 0.0.0.0 --certificate c.pem --certificate-key k.pem
    edgekit telemetry serve 'postgresql://edgekit@db/fleet?sslmode=verify-full' --keys keys.txt
    """
    need_extra()
    from edgekit.serve.logs import set_up
    from edgekit.serve.security import Keys, Rates, read_keys
    from edgekit.telemetry.ingest import Ingest
    from edgekit.telemetry.receiver import receive
    from edgekit.telemetry.rules import Rules, read_rules
    from edgekit.telemetry.watch import Watch, Watched

    set_up(logging.INFO)
    warn_open(options, "receiving from")
    keys = Keys() if options["keys"] is None else read_keys(options["keys"])
    rules = Rules() if options["rules"] is None else read_rules(options["rules"])
    references = read_references(options["bundles"])
    inflated = int(options["max_inflated_mb"] * 2**20)

    def started(port: int) -> None:
        url = url_of(options, port)
        document = {"schema": "edgekit.telemetry-serve/1", "url": url, "store": opened.name}
        emit(document, as_json, lambda: f"{url} into {opened.name}  (Ctrl-C ends)")

    # Also of the log that the store keeps beside its file.
    with private_files(), open_store(store) as opened:
        ingest = Ingest(
            opened,
            keys=keys,
            rates=Rates(options["rate"]),
            max_body=inflated,
            max_held=int(options["max_held_mb"] * 2**20),
            k=options["least"],
            references=references,
        )
        watched = Watched(options["watch_s"], k=options["least"], references=references)
        ingest.watch = Watch(
            ingest.read, rules, alerts_file(store, options["alerts"], options["rules"]), watched
        )
        ended = receive(
            ingest,
            server_settings(options),
            rules=options["rules"],
            max_inflated=inflated,
            keep_days=options["keep_days"],
            started=started,
        )
    return _INTERRUPTED if ended.forced else 0


@command.command()
@click.argument("store")
@click.option("--days", type=click.IntRange(1, 36_500), default=7, show_default=True,
              help="Of the last days, the present one among them (UTC).")  # fmt: skip
@click.option("--by", metavar="COLUMNS", default="model,version,device,app", show_default=True,
              help="One entry for each of their values; 'all': one of everything.")  # fmt: skip
@click.option("--where", "filters", multiple=True, metavar="COLUMN=VALUE",
              help="Only these; may be repeated.")  # fmt: skip
@click.option("--baseline-days", type=click.IntRange(1, 36_500), metavar="N",
              help="Tell drift, against so many days before them.")  # fmt: skip
@click.option("--reference", "bundles", multiple=True, metavar="BUNDLE", type=_BUNDLE,
              help="Tell drift, against what a bundle was proven on; may be repeated.")  # fmt: skip
@click.option("--false-alarms", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              default=0.01, show_default=True,
              help="Share of cohorts without drift that may be flagged.")  # fmt: skip
@click.option("-k", "least", type=click.IntRange(2), show_default="10, or the receiver's",
              help="Say nothing of fewer devices.")  # fmt: skip
@asked
@json_option
@verbosity_options
def report(
    store: str,
    days: int,
    by: str,
    filters: tuple[str, ...],
    baseline_days: int | None,
    bundles: tuple[Path, ...],
    false_alarms: float,
    least: int | None,
    ca: Path | None,
    as_json: bool,
) -> int:
    """Show how the fleet in STORE does: latency, errors, crashes, confidence.

    STORE is the file or database, or the URL of a receiver: one that runs has its file to itself
    and answers for it, to admin keys where it has keys. Such a key is taken from EDGEKIT_API_KEY.

    Percentiles are of all values of all devices, within the error that is given. A model's version
    on a class of device in a version of the app is left out on days on which fewer than k devices
    had it, of totals too, so that no difference of two reports shows fewer either. Drift is that of
    confidence, classes and inputs: by PSI, Jensen-Shannon and Kolmogorov-Smirnov, each beyond what
    chance does at the rate of false alarms. It is told against earlier days, and against bundles:
    the samples that one was proven on are the reference of devices that have this very bundle.

    \b
    Exit codes: 0 shown; 2 a column is not known or there is no STORE, 3 the extra 'telemetry' or
    'postgresql' is missing, 4 no receiver answers, 7 STORE is no store, 8 it cannot be reached or
    read, 9 a receiver has STORE open.

    \b
    edgekit telemetry report fleet.duckdb
    edgekit telemetry report http://127.0.0.1:4318 --days 1
    edgekit telemetry report fleet.duckdb --by version --where device=pixel-8 --days 30 --json
    """
    where: dict[str, str] = {}
    for text in filters:
        name, sign, value = text.partition("=")
        if not sign or name in where:
            raise UsageError(f"--where {text} is no COLUMN=VALUE, or its column stands twice")
        where[name] = value
    columns = () if by == "all" else tuple(by.split(","))
    if is_receiver(store):
        if bundles:
            raise UsageError("a receiver has its own --reference: give them to 'telemetry serve'")
        fields = [("days", days), ("by", ",".join(columns)), ("false_alarms", false_alarms)]
        fields += [("baseline_days", baseline_days or 0), *where.items()]
        document = from_receiver(store, "/v1/report", fields, least, ca)
    else:
        need_extra()
        from edgekit.telemetry.cohorts import DEFAULT_K
        from edgekit.telemetry.question import Question

        k = DEFAULT_K if least is None else least
        question = Question(days, baseline_days or 0, columns, where, k, false_alarms)
        with reading(store) as reader:
            document = question.answer(reader, read_references(bundles))
    emit(document, as_json, lambda: _report_text(document))
    return 0


command.add_command(check)


@command.command()
@click.argument("store")
@click.argument("control")
@click.argument("canary")
@click.option("--model", metavar="NAME", help="Only of this model.")
@click.option("--days", type=click.IntRange(1, 35), default=14, show_default=True,
              help="Of the last days, the present one among them (UTC).")  # fmt: skip
@click.option("--alpha", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.01,
              show_default=True, help="False alarms, however often one looks.")  # fmt: skip
@click.option("-k", "least", type=click.IntRange(2), show_default="10, or the receiver's",
              help="Use no fewer devices of a kind on a day.")  # fmt: skip
@asked
@json_option
@verbosity_options
def canary(
    store: str,
    control: str,
    canary: str,
    model: str | None,
    days: int,
    alpha: float,
    least: int | None,
    ca: Path | None,
    as_json: bool,
) -> int:
    """Tell whether devices with the version CANARY fail more often than those with CONTROL.

    A device failed on a day on which it crashed or had errors in more than 5 % of its requests. It
    is compared with devices of its class with the same app on the same day. One may look every
    hour: the rate of false alarms is of all looks together. STORE is what it is for 'telemetry
    report': a file, a database, or the URL of a receiver.

    \b
    Exit codes: 0 not worse as far as one can tell, 1 worse; 2 the versions are one or there
    is no STORE, 3 the extra 'telemetry' or 'postgresql' is missing, 4 no receiver answers, 7 STORE
    is no store, 8 it cannot be reached or read, 9 a receiver has STORE open.

    \b
    edgekit telemetry canary fleet.duckdb 1.0 1.1
    edgekit telemetry canary https://telemetry.example.com 1.0 1.1 --days 7
    """
    if is_receiver(store):
        fields = [("control", control), ("canary", canary), ("days", days), ("alpha", alpha)]
        fields += [] if model is None else [("model", model)]
        document = from_receiver(store, "/v1/canary", fields, least, ca)
    else:
        need_extra()
        from edgekit.telemetry.cohorts import DEFAULT_K
        from edgekit.telemetry.question import Comparison

        k = DEFAULT_K if least is None else least
        where = {} if model is None else {"model": model}
        with reading(store) as reader:
            document = Comparison(control, canary, where, days, k, alpha).answer(reader)
    emit(document, as_json, lambda: _canary_text(document))
    return int(document["worse"] is True)


def _canary_text(document: dict[str, Any]) -> str:
    sides = [document["control"], document["canary"]]
    rows = [[side["version"], side["device_days"], side["failed"]] for side in sides]
    said = {None: "no day on which both have enough devices", True: "worse", False: "not worse"}
    words = f"{said[document['worse']]}, p {document['p']:.3g} (alpha {document['alpha']:g})"
    return f"{table(['version', 'device-days', 'failed'], rows)}\n{words}"


def _report_text(document: dict[str, Any]) -> str:
    rows = []
    for entry in document["cohorts"]:
        latency = entry["latency_s"].get("device") or {}
        rows.append(
            [
                " ".join(entry[name] or "-" for name in document["by"]) or "all",
                entry["devices"],
                entry["requests"],
                *(_shown(latency.get(p), 1000, " ms") for p in ("p50", "p95", "p99")),
                _shown(entry["error_rate"], 100, " %"),
                _shown(entry["crashes_per_device_day"], 1, ""),
                _shown((entry["confidence"] or {}).get("mean"), 1, ""),
            ]
        )
    titles = [
        "cohort", "devices", "requests", "p50", "p95", "p99", "errors", "crashes a day",
        "confidence",
    ]  # fmt: skip
    lines = [table(titles, rows)] if rows else ["nothing that is of enough devices"]
    for entry, row in zip(document["cohorts"], rows, strict=True):
        against = entry.get("reference_drift", {"features": {}, "no_reference": {}})
        lines += _drift_lines(f"drift of {row[0]}", entry.get("drift", {}))
        lines += _drift_lines(f"drift of {row[0]} from its bundle", against["features"])
        for one in entry["noised"]:
            lines.append(
                f"noised, epsilon={one['epsilon']:g}: {one['feature']} of {row[0]}, "
                f"{one['reports']} reports, shares within {one['error']:.2g}"
            )
        if missing := against["no_reference"]:
            names = ", ".join(
                name if share == 1 else f"{name} ({share:.0%} of it)"
                for name, share in missing.items()
            )
            lines.append(f"no reference for {row[0]}: {names}")
    out = document["base_cells"]["left_out"]
    if out != 0:
        many = "some" if out is None else str(out)
        lines.append(f"left out: {many}, of fewer than {document['k']} devices on a day")
    return "\n".join(lines)


def _drift_lines(head: str, features: dict[str, Any]) -> list[str]:
    lines = []
    for feature, drift in features.items():
        if drift["flagged"]:
            beyond = ", ".join(
                f"{name} {one['value']:.3g} (limit {one['limit']:.3g})"
                for name, one in drift["distances"].items()
                if one["value"] > one["limit"]
            )
            lines.append(f"{head}: {feature}: {beyond}")
    return lines


def _shown(value: float | None, scale: float, unit: str) -> str:
    return "-" if value is None else f"{value * scale:.3g}{unit}"
