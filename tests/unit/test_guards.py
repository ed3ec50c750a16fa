"""The circuit breaker, the retry budget and the latencies, on a clock that the test turns."""

from __future__ import annotations

import pytest

from edgekit.runtime.guards import Breaker, Latencies, RetryBudget


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def call(breaker: Breaker, ok: bool | None) -> bool:
    ticket = breaker.admit()
    if ticket is None:
        return False
    breaker.settle(ticket, ok)
    return True


def test_retries_are_never_more_than_a_tenth_of_the_requests() -> None:
    budget, retries = RetryBudget(), 0
    for requests in range(1, 500):
        budget.deposit()
        retries += sum(budget.withdraw() for _ in range(3))
        assert retries <= requests / 10
    assert retries == 49
    for _ in range(1000):
        budget.deposit()
    assert sum(budget.withdraw() for _ in range(50)) == 10  # quiet times save up no storm


def test_a_breaker_opens_at_half_failures_of_five_and_not_before() -> None:
    breaker = Breaker(clock=Clock())
    for ok in (False, False, True, False):
        assert call(breaker, ok)
    assert breaker.state == "closed"  # four calls tell too little
    assert call(breaker, True)
    assert breaker.state == "open"
    assert not call(breaker, True)


def test_ten_of_twenty_are_too_many_and_nine_are_not() -> None:
    breaker = Breaker(least=20, clock=Clock())
    for i in range(20):
        assert call(breaker, i >= 9)
    assert breaker.state == "closed"
    assert call(breaker, False)  # the first failure left the window: again nine
    assert breaker.state == "closed"
    breaker = Breaker(least=20, clock=Clock())
    for i in range(20):
        assert call(breaker, i >= 10)
    assert breaker.state == "open"


def test_one_probe_goes_through_and_closes_it_or_doubles_the_wait() -> None:
    clock = Clock()
    breaker = Breaker(open_s=5, longest_s=12, clock=clock)
    for _ in range(5):
        call(breaker, False)
    clock.now += 4.9
    assert breaker.state == "open"
    assert breaker.wait_s == pytest.approx(0.1)
    clock.now += 0.2
    assert breaker.state == "half-open"
    probe = breaker.admit()
    assert probe is not None
    assert breaker.admit() is None  # one at a time
    breaker.settle(probe, False)
    assert breaker.wait_s == pytest.approx(10)
    clock.now += 10
    assert call(breaker, False)
    assert breaker.wait_s == pytest.approx(12)
    clock.now += 12
    assert call(breaker, True)
    assert breaker.state == "closed"
    for _ in range(5):
        call(breaker, False)
    assert breaker.wait_s == pytest.approx(5)  # and it starts over


def test_what_says_nothing_of_the_other_side_neither_opens_nor_closes() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    for _ in range(50):
        assert call(breaker, None)
    assert breaker.state == "closed"
    for _ in range(5):
        call(breaker, False)
    clock.now += 5
    assert call(breaker, None)
    assert breaker.state == "half-open"
    assert call(breaker, True)  # the next one is a probe again
    assert breaker.state == "closed"


def test_a_call_of_before_does_not_settle_what_is_now() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    old = breaker.admit()
    assert old is not None
    for _ in range(5):
        call(breaker, False)
    breaker.settle(old, True)
    assert breaker.state == "open"
    clock.now += 5
    probe = breaker.admit()
    breaker.settle(old, True)
    assert breaker.admit() is None
    assert probe is not None
    breaker.settle(probe, False)
    assert breaker.state == "open"


def test_a_probe_that_never_comes_back_keeps_nobody_out_for_good() -> None:
    clock = Clock()
    breaker = Breaker(longest_s=60, clock=clock)
    for _ in range(5):
        call(breaker, False)
    clock.now += 5
    assert breaker.admit() is not None
    clock.now += 59
    assert breaker.admit() is None
    clock.now += 1
    assert call(breaker, True)
    assert breaker.state == "closed"


def test_old_failures_are_forgotten() -> None:
    clock = Clock()
    breaker = Breaker(age_s=60, clock=clock)
    for _ in range(4):
        call(breaker, False)
    clock.now += 61
    call(breaker, False)
    assert breaker.state == "closed"


def test_a_hold_lets_nothing_through_and_a_shorter_one_does_not_cut_it() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    breaker.hold(30)
    breaker.hold(1)
    assert breaker.held
    assert breaker.admit() is None
    assert breaker.wait_s == pytest.approx(30)
    clock.now += 30
    assert not breaker.held
    assert call(breaker, True)


def test_latencies_are_those_of_late() -> None:
    clock = Clock()
    latencies = Latencies(clock=clock)
    assert latencies.median is None
    for i in range(1, 10):
        latencies.add(i / 1000)
    assert latencies.median == 0.005
    assert latencies.p95 is None  # nine are too few
    latencies.add(0.5)
    assert latencies.p95 == 0.5
    clock.now += 61
    assert latencies.median is None
    latencies.add(0.02)
    assert latencies.median == 0.02
