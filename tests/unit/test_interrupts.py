"""Signals while something is cleaned up."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from edgekit.bench.interrupts import ended_by_signals, held_back


@pytest.fixture(autouse=True)
def taken() -> Iterator[None]:
    # Where the tests run in a shell's background, SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_work_is_done(number: int) -> None:
    done = []
    with ended_by_signals():
        with pytest.raises(KeyboardInterrupt), held_back():
            os.kill(os.getpid(), number)
            done.append(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert done == [1]


def test_a_second_one_does_not() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), held_back():
        os.kill(os.getpid(), signal.SIGINT)
        done.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        done.append(2)
    assert done == [1]


def test_without_a_signal_and_for_ignored_ones_nothing_changes() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with held_back():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_threads_have_no_handlers_to_set() -> None:
    done = []

    def work() -> None:
        with held_back():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]
