"""The store's tables, version 2.

Everything that a fleet sends is a count, so the store is one table of counts, ``cell``: how often,
in an hour, in a cohort, a series' bucket was hit. A histogram is its buckets, a sum its bucket 0.
Merging is adding, whatever is asked: a report groups and sums, and compaction does the same with
what is older. Cells say nothing of single devices; ``device_day`` does, by names that devices make
anew every day, and is kept no longer than `DEVICE_DAYS`, for three things: how many devices a
cohort has (cohorts of less than k are not shown), how much one of them weighs in it, and tests that
take the device, not the request, as what varies.

``seen`` has the ids of records for as long as a device may send one again.
"""

from __future__ import annotations

from typing import Final

from edgekit.telemetry.contract import COHORT, SERIES

__all__ = ["DDL", "DEVICE_DAYS", "SEEN_DAYS", "VERSION"]

VERSION: Final = 2

SEEN_DAYS: Final = 32
"""A device keeps what it cannot send for 30 days; a day more on either side."""

DEVICE_DAYS: Final = 35

_COHORT: Final = ", ".join(f'"{name}" VARCHAR NOT NULL' for name in COHORT)
_SERIES: Final = ", ".join(f'"{name}" VARCHAR NOT NULL' for name in SERIES)

DDL: Final = (
    "CREATE TABLE about (version INTEGER NOT NULL)",
    f"INSERT INTO about VALUES ({VERSION})",
    f"CREATE TABLE cohort (id INTEGER NOT NULL PRIMARY KEY, {_COHORT})",
    "CREATE TABLE series (id INTEGER NOT NULL PRIMARY KEY, metric VARCHAR NOT NULL, "
    f"scale INTEGER NOT NULL, {_SERIES})",
    # Hours since 1970. Not unique: what comes is put behind, and compaction adds it up.
    "CREATE TABLE cell (hour INTEGER NOT NULL, cohort INTEGER NOT NULL, series INTEGER NOT NULL, "
    "bucket INTEGER NOT NULL, n BIGINT NOT NULL)",
    "CREATE TABLE moment (hour INTEGER NOT NULL, cohort INTEGER NOT NULL, series INTEGER NOT NULL, "
    "n BIGINT NOT NULL, total DOUBLE PRECISION NOT NULL, low DOUBLE PRECISION NOT NULL, "
    "high DOUBLE PRECISION NOT NULL)",
    "CREATE TABLE event (hour INTEGER NOT NULL, cohort INTEGER NOT NULL, device UUID, "
    "name VARCHAR NOT NULL, severity INTEGER NOT NULL, attributes VARCHAR NOT NULL)",
    "CREATE TABLE device_day (day INTEGER NOT NULL, cohort INTEGER NOT NULL, device UUID NOT NULL, "
    "requests BIGINT NOT NULL, elsewhere BIGINT NOT NULL, errors BIGINT NOT NULL, "
    "crashes BIGINT NOT NULL)",
    # What is left of device_day when its devices are forgotten.
    "CREATE TABLE cohort_day (day INTEGER NOT NULL, cohort INTEGER NOT NULL, "
    "devices BIGINT NOT NULL, requests BIGINT NOT NULL, elsewhere BIGINT NOT NULL, "
    "errors BIGINT NOT NULL, crashes BIGINT NOT NULL)",
    "CREATE TABLE seen (id UUID NOT NULL, day INTEGER NOT NULL, parts BYTEA NOT NULL)",
    "CREATE INDEX seen_id ON seen (id)",
    # What upkeep has to add up (`edgekit.telemetry.upkeep.Mark`).
    "CREATE TABLE waiting (kind VARCHAR NOT NULL, which INTEGER NOT NULL, "
    "PRIMARY KEY (kind, which))",
)
"""What makes an empty store, in DuckDB and in PostgreSQL."""
