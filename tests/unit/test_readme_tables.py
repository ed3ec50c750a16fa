"""README's tables are those of the reports that lie beside the benchmarks."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def tables() -> Iterator[Any]:
    """The module ``readme_tables``; it imports its neighbours by name."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module("readme_tables")
    finally:
        sys.path.remove(str(FOLDER))


def test_the_readme_has_the_measured_tables(tables: Any) -> None:
    text = tables.README.read_text()
    assert tables.filled(text) == text


def test_another_figure_is_another_table(tables: Any, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(tables.RESULTS, results)
    for name, path in (
        ("estimate", ("devices", "int8", "edgekit", "median")),
        ("recipes", ("parts", "sst2", "bars", 0, "mean")),
    ):
        document = json.loads((results / f"{name}.json").read_text())
        found = document
        for key in path[:-1]:
            found = found[key]
        found[path[-1]] = 0.4321
        (results / f"{name}.json").write_text(json.dumps(document))
    text = tables.README.read_text()
    changed = tables.filled(text, results)
    lines = [line for line in changed.splitlines() if line not in text.splitlines()]
    assert len(lines) == 2
    assert " 0.43 " in lines[0] and " 43.2 % " in lines[1]


def test_a_readme_without_a_place_for_a_table_is_refused(tables: Any) -> None:
    text = tables.README.read_text().replace("<!-- end of estimate -->", "")
    with pytest.raises(SystemExit, match="0 places for the table 'estimate'"):
        tables.filled(text)
