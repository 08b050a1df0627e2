"""The circuit breaker: closed, open for a period, then one trial."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Breaker
from gateway.server.breaker import Circuit, CircuitBreaker
from tests.draws import examples

SETTINGS = Breaker(failures=3, period_s=5.0)


def test_it_opens_after_failures_in_a_row_and_closes_after_a_success():
    breaker = CircuitBreaker(SETTINGS)
    for _ in range(2):
        breaker.failed(0.0)
    breaker.succeeded()
    for _ in range(2):
        breaker.failed(0.0)
        assert breaker.admits(0.0)
    breaker.failed(0.0)
    assert breaker.state(4.9) is Circuit.OPEN
    assert not breaker.admits(4.9)
    assert breaker.state(5.0) is Circuit.HALF_OPEN
    breaker.sent(5.0)
    assert not breaker.admits(5.0)  # one trial at a time
    breaker.succeeded()
    assert breaker.state(5.0) is Circuit.CLOSED


def test_a_trial_that_fails_opens_it_again_and_one_that_is_forgotten_ends():
    breaker = CircuitBreaker(SETTINGS)
    breaker.failed(0.0, at_once=True)
    breaker.sent(6.0)
    breaker.failed(6.5)
    assert not breaker.admits(11.4)
    assert breaker.admits(11.5)
    breaker.sent(11.5)
    assert not breaker.admits(16.4)
    assert breaker.admits(16.5)


def test_an_engine_may_say_how_long_to_leave_it_alone():
    breaker = CircuitBreaker(SETTINGS)
    breaker.failed(0.0, at_once=True, period_s=1.0)
    assert (breaker.admits(0.9), breaker.admits(1.0)) == (False, True)


@examples(100)
@given(st.lists(st.tuples(st.sampled_from(["sent", "succeeded", "failed", "refused"]), st.floats(0, 3)), max_size=30))
def test_it_always_lets_something_through_within_a_period(events):
    breaker, now_s = CircuitBreaker(SETTINGS), 0.0
    for what, wait_s in events:
        now_s += wait_s
        if what == "sent":
            breaker.sent(now_s)
        elif what == "succeeded":
            breaker.succeeded()
            assert breaker.admits(now_s)
        else:
            breaker.failed(now_s, at_once=what == "refused")
        assert breaker.admits(now_s + SETTINGS.period_s)
