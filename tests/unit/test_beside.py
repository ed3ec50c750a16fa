"""Work beside the targets' workers: its result, its error, and its end where nobody waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from edgekit.errors import BadData
from edgekit.export.beside import Aside, beside
from edgekit.export.request import Silent


class Lines(Silent):
    """Keeps the notes, and fails where a second bar is drawn."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    @contextmanager
    def progress(self, description: str, total: int | None = None) -> Iterator[None]:  # type: ignore[override]
        raise AssertionError("a bar is drawn already")
        yield


def test_work_gives_its_result_and_says_lines_instead_of_bars() -> None:
    def work(aside: Aside) -> str:
        with aside.progress("evaluating", 3) as advance:
            advance(3)
        return threading.current_thread().name

    lines = Lines()
    with beside(work, lines) as result:
        assert result.result(timeout=30) != threading.current_thread().name
    assert lines.notes == ["evaluating"]


def test_an_error_of_the_work_is_the_results() -> None:
    def work(aside: Aside) -> None:
        raise BadData("NaN")

    with pytest.raises(BadData, match="NaN"), beside(work, Silent()) as result:
        result.result()


def test_a_block_that_fails_ends_the_work() -> None:
    started = threading.Event()

    def work(aside: Aside) -> None:
        for _ in range(10**9):
            started.set()
            aside.tick()

    with pytest.raises(KeyboardInterrupt), beside(work, Silent()) as result:
        assert started.wait(30)
        raise KeyboardInterrupt
    assert result.done()
    assert result.exception() is not None
