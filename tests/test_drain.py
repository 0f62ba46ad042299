"""The drain machine: what it says at each instant, as tables and as properties."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lbkit.drain import (
    ACCEPT_FILTER,
    QUIET,
    Drain,
    DrainTimings,
    Phase,
    Reason,
    Reject,
    Step,
    over_budget,
    rejects,
    spread,
    wants,
)
from lbkit.errors import ConfigError

TIMINGS = DrainTimings(pre_stop_delay=5.0, drain_timeout=30.0)
BEGAN = 100.0


def leaving(*, in_flight: int = 0, timings: DrainTimings = TIMINGS) -> Drain:
    drain = Drain(timings)
    for ticket in range(in_flight):
        drain.inside[ticket] = None
    assert drain.begin(BEGAN) is False
    drain.step(BEGAN)
    return drain


@pytest.mark.parametrize(
    ("in_flight", "after", "step"),
    [
        (1, 3.9, Step.WAIT),
        (0, 3.9, Step.WAIT),
        (0, 4.0, Step.END_STREAMS),
        (0, 4.9, Step.END_STREAMS),
        (1, 5.0, Step.STOP_LISTENING),
        (0, 5.0, Step.HAND_OVER),
        (1, 29.9, Step.STOP_LISTENING),
        (1, 30.0, Step.HAND_OVER),
    ],
)
def test_what_it_is_time_for_follows_from_time_and_load(in_flight: int, after: float, step: Step) -> None:
    assert leaving(in_flight=in_flight).step(BEGAN + after) is step


def test_the_process_is_handed_over_only_when_it_has_been_quiet_for_a_moment() -> None:
    drain = leaving(in_flight=1)
    assert drain.step(BEGAN + 6) is Step.STOP_LISTENING
    drain.inside.pop(0, None)
    assert drain.step(BEGAN + 6.1) is Step.STOP_LISTENING
    drain.inside["late"] = None
    assert drain.step(BEGAN + 6.2) is Step.STOP_LISTENING
    drain.inside.pop("late", None)
    assert drain.step(BEGAN + 6.3) is Step.STOP_LISTENING
    assert drain.step(BEGAN + 6.3 + QUIET) is Step.HAND_OVER


def test_with_a_filter_what_waits_to_be_accepted_is_asked_after_the_delay() -> None:
    drain = Drain(TIMINGS, accept_filter=True)
    drain.begin(BEGAN)
    drain.step(BEGAN)
    assert drain.step(BEGAN + 5) is Step.STOP_LISTENING  # quiet for long, but the filter is set only now
    assert drain.step(BEGAN + 5.1, in_flight=1) is Step.STOP_LISTENING
    assert drain.step(BEGAN + 5.2, in_flight=0) is Step.STOP_LISTENING
    assert drain.step(BEGAN + 5.2 + QUIET, in_flight=0) is Step.HAND_OVER


@pytest.mark.parametrize(("value", "wanted"), [("1", True), ("0", False), ("", False)])
def test_a_switch_in_the_environment_is_on_or_off(value: str, wanted: bool) -> None:
    assert wants({ACCEPT_FILTER: value}, ACCEPT_FILTER) is wanted
    assert wants({}, ACCEPT_FILTER) is False
    with pytest.raises(ConfigError, match="need 0 or 1 in LBKIT_ACCEPT_FILTER, got 'yes'"):
        wants({ACCEPT_FILTER: "yes"}, ACCEPT_FILTER)


def test_requests_of_other_processes_hold_the_hand_over_back() -> None:
    drain = leaving()
    assert drain.step(BEGAN + 6, in_flight=1) is Step.STOP_LISTENING
    assert drain.step(BEGAN + 7, in_flight=0) is Step.STOP_LISTENING
    assert drain.step(BEGAN + 7 + QUIET, in_flight=0) is Step.HAND_OVER


def test_a_second_signal_hands_over_now() -> None:
    drain = leaving(in_flight=1)
    assert drain.begin(BEGAN + 1) is True


def test_a_second_signal_does_not_restart_the_clock() -> None:
    drain = leaving()
    drain.begin(BEGAN + 4)
    assert drain.began_at == BEGAN


def test_a_signal_during_the_start_hands_over_now() -> None:
    drain = Drain(TIMINGS, starting=True)
    assert drain.begin(BEGAN) is True
    assert drain.phase is Phase.DRAINING


def test_an_operators_drain_never_hands_over() -> None:
    drain = Drain(TIMINGS)
    assert drain.begin(BEGAN, Reason.OPERATOR) is False
    drain.step(BEGAN)
    assert drain.step(BEGAN + 86_400) is Step.END_STREAMS
    assert drain.left(BEGAN + 86_400) is None
    assert not drain.late(BEGAN + 86_400)


def test_a_signal_after_an_operators_drain_waits_no_second_time() -> None:
    drain = Drain(TIMINGS)
    drain.begin(BEGAN, Reason.OPERATOR)
    drain.step(BEGAN)
    assert drain.begin(BEGAN + 60) is False
    assert drain.step(BEGAN + 60) is Step.HAND_OVER


def test_an_operators_drain_can_be_taken_back_and_a_signals_cannot() -> None:
    drain = Drain(TIMINGS)
    drain.begin(BEGAN, Reason.OPERATOR)
    assert drain.undrain() is True
    assert drain.phase is Phase.READY
    drain.begin(BEGAN + 1)
    assert drain.undrain() is False
    assert drain.phase is Phase.DRAINING


def test_a_job_that_is_held_counts_as_in_flight() -> None:
    drain = leaving()
    with drain.hold("nightly report"):
        assert drain.in_flight == 1
        assert drain.step(BEGAN + 6) is Step.STOP_LISTENING
    assert drain.in_flight == 0


def test_the_deadline_counts_down_and_then_it_is_late() -> None:
    drain = leaving(in_flight=1)
    assert drain.left(BEGAN + 10) == 20.0
    assert not drain.late(BEGAN + 29.9)
    assert drain.late(BEGAN + 30)


@pytest.mark.parametrize(
    ("delay", "timeout"),
    [(5.0, 4.9), (-1.0, 3.0), (float("nan"), 3.0), (1.0, float("inf")), (True, 3.0), ("5", 9.0)],
)
def test_timings_that_make_no_sense_are_refused_with_the_rule(delay: float, timeout: float) -> None:
    with pytest.raises(
        ConfigError, match=r"need 0 <= pre_stop_delay <= drain_timeout .*, got pre_stop_delay="
    ):
        DrainTimings(pre_stop_delay=delay, drain_timeout=timeout)


def test_a_deadline_that_nobody_gave_leaves_room_after_the_delay() -> None:
    assert DrainTimings(pre_stop_delay=40).deadline == 55.0


def test_timings_come_from_the_environment_unless_they_are_given() -> None:
    environ = {"LBKIT_PRE_STOP_DELAY": "2.5", "LBKIT_DRAIN_TIMEOUT": "9"}
    assert DrainTimings.of(environ) == DrainTimings(pre_stop_delay=2.5, drain_timeout=9)
    assert DrainTimings.of(environ, delay=0, timeout=1) == DrainTimings(pre_stop_delay=0, drain_timeout=1)
    assert DrainTimings.of({}) == DrainTimings()


@pytest.mark.parametrize("name", ["LBKIT_PRE_STOP_DELAY", "LBKIT_DRAIN_TIMEOUT"])
def test_an_environment_that_is_no_number_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"need a number of seconds in {name}, got 'soon'"):
        DrainTimings.of({name: "soon"})


@pytest.mark.parametrize(
    ("reject", "method", "marked", "refused"),
    [
        (Reject.MARKED, "GET", False, False),
        (Reject.MARKED, "GET", True, True),
        (Reject.MARKED, "POST", True, False),
        (Reject.ALWAYS, "HEAD", False, True),
        (Reject.ALWAYS, "PUT", False, False),
        (Reject.NEVER, "GET", True, False),
    ],
)
def test_only_what_is_safe_twice_is_ever_refused(
    reject: Reject, method: str, marked: bool, refused: bool
) -> None:
    assert rejects(reject, method=method, marked=marked) is refused


@given(count=st.integers(1, 50), seconds=st.floats(0, 10), chance=st.floats(0, 1, exclude_max=True))
def test_streams_end_one_after_another_within_the_time(count: int, seconds: float, chance: float) -> None:
    instants = [spread(index, count, seconds=seconds, chance=chance) for index in range(count)]
    assert instants == sorted(instants)
    assert instants[0] >= 0
    assert instants[-1] <= seconds


@pytest.mark.parametrize(
    ("timings", "graceful", "limit", "words"),
    [
        (DrainTimings(pre_stop_delay=5), None, None, []),
        (DrainTimings(pre_stop_delay=5), None, 30.0, []),
        (DrainTimings(pre_stop_delay=40), None, 30.0, ["does not fit into the 30 s"]),
        (DrainTimings(pre_stop_delay=5), 30.0, 30.0, ["graceful_timeout=30 may take 50 s"]),
        (DrainTimings(pre_stop_delay=5, drain_timeout=10), 15.0, 30.0, []),
    ],
)
def test_a_drain_that_does_not_fit_is_told_in_words(
    timings: DrainTimings, graceful: float | None, limit: float | None, words: list[str]
) -> None:
    said = over_budget(timings, graceful=graceful, limit=limit)
    assert len(said) == len(words)
    assert all(word in sentence for word, sentence in zip(words, said, strict=True))


class AnyLife(RuleBasedStateMachine):
    """Any sequence of orders, requests and time."""

    @initialize(starting=st.booleans(), accept_filter=st.booleans())
    def born(self, starting: bool, accept_filter: bool) -> None:
        self.drain = Drain(TIMINGS, starting=starting, accept_filter=accept_filter)
        self.starting = starting
        self.now = 0.0
        self.inside: list[object] = []
        self.signalled = self.operator = self.gone = False

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def starts(self) -> None:
        self.drain.started()
        self.starting = False

    @rule()
    def a_request_comes(self) -> None:
        ticket = object()
        self.drain.inside[ticket] = "request"
        self.inside.append(ticket)

    @rule(twice=st.booleans())
    def a_request_ends(self, twice: bool) -> None:
        if self.inside:
            ticket = self.inside.pop()
            self.drain.inside.pop(ticket, None)
            if twice:
                self.drain.inside.pop(ticket, None)

    @rule()
    def a_signal_comes(self) -> None:
        at_once = self.drain.begin(self.now)
        assert at_once is (self.signalled or self.starting)
        self.signalled = True

    @rule()
    def an_operator_drains(self) -> None:
        assert self.drain.begin(self.now, Reason.OPERATOR) is False
        self.operator = True

    @rule()
    def an_operator_undrains(self) -> None:
        assert self.drain.undrain() is not (self.signalled or self.gone)
        if not (self.signalled or self.gone):
            self.operator = False

    @rule()
    def somebody_looks(self) -> None:
        step = self.drain.step(self.now)
        if step is Step.HAND_OVER:
            assert self.signalled
            self.drain.hand_over()
            self.gone = True
        if not (self.signalled or self.operator or self.gone):
            assert step is Step.WAIT

    @invariant()
    def in_flight_is_exact(self) -> None:
        assert self.drain.in_flight == len(self.inside)

    @invariant()
    def nobody_is_ready_while_leaving(self) -> None:
        phase = self.drain.phase
        if self.gone:
            assert phase is Phase.DRAINED
        elif self.signalled or self.operator:
            assert phase is Phase.DRAINING
        else:
            assert phase is (Phase.STARTING if self.starting else Phase.READY)
        assert self.drain.draining is phase.leaving


AnyLife.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAnyLife = AnyLife.TestCase
