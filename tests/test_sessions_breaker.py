"""The breaker as a table of what happens and what it then says."""

from __future__ import annotations

import pytest

from lbkit.errors import ConfigError
from lbkit.sessions.breaker import Breaker


def broken(at: float = 0.0) -> Breaker:
    breaker = Breaker(failures=3, first=1.0, longest=10.0)
    for _ in range(3):
        assert breaker.admits(at)
        breaker.failed(at)
    return breaker


def test_it_opens_after_so_many_failures_in_a_row() -> None:
    breaker = Breaker(failures=3)
    for outcome in ("failed", "failed", "succeeded", "failed", "failed"):
        getattr(breaker, outcome)(*((0.0,) if outcome == "failed" else ()))
        assert breaker.closed
    breaker.failed(0.0)
    assert not breaker.closed
    assert not breaker.admits(0.99)
    assert breaker.left(0.25) == 0.75


def test_when_its_time_is_over_one_may_ask_and_the_others_wait() -> None:
    breaker = broken()
    assert [breaker.admits(1.0) for _ in range(3)] == [True, False, False]
    breaker.succeeded()
    assert breaker.closed
    assert [breaker.admits(1.0) for _ in range(3)] == [True, True, True]


def test_each_probe_that_fails_doubles_the_time_up_to_the_longest() -> None:
    breaker, now, waits = broken(), 0.0, []
    for _ in range(6):
        left = breaker.left(now)
        waits.append(left)
        assert not breaker.admits(now + left - 0.01)
        now += left
        assert breaker.admits(now)
        breaker.failed(now)
    assert waits == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_probe_that_was_cancelled_leaves_the_place_to_another() -> None:
    breaker = broken()
    assert breaker.admits(1.0)
    breaker.released()
    assert breaker.admits(1.0)


def test_those_who_were_under_way_when_it_opened_do_not_prolong_it() -> None:
    breaker = broken()
    breaker.failed(0.9)
    assert breaker.admits(1.0)


@pytest.mark.parametrize("options", [{"failures": 0}, {"first": 0.0}, {"first": 2.0, "longest": 1.0}])
def test_nonsense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="need failures >= 1 and 0 < first <= longest, got failures="):
        Breaker(**options)  # type: ignore[arg-type]
