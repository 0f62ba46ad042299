"""What goes wrong, decided from rules, a clock's reading and a random generator."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from lbkit.errors import ConfigError
from lbkit.testkit.faults import (
    Fault,
    Faults,
    Injection,
    Plan,
    drip,
    error,
    flap,
    hang,
    refuse,
    reset,
    slow,
    unready,
)


def decided(fault: Fault, *, asked: str = "/cart", now: float = 0.0, **which: Any) -> Plan | None:
    faults = Faults()
    faults.add(Injection(fault, 0.0, **which))
    return faults.decide(None, "GET", asked, now, Random(1))


@pytest.mark.parametrize(
    ("fault", "name", "value"),
    [
        (refuse(), "refuse", True),
        (hang(), "hang", "before"),
        (hang(at="body"), "hang", "body"),
        (slow(0.3), "delay", 0.3),
        (error(503), "status", 503),
        (reset(after_bytes=7), "reset_after", 7),
        (reset(), "reset_after", 0),
        (drip(100), "bytes_per_second", 100),
    ],
    ids=str,
)
def test_a_fault_is_written_into_the_plan(fault: Fault, name: str, value: object) -> None:
    plan = decided(fault)
    assert plan is not None
    assert getattr(plan, name) == value
    assert str(plan) == str(fault)


@pytest.mark.parametrize(
    ("which", "hit"),
    [
        ({"path": "/cart"}, True),
        ({"path": "/ca*"}, True),
        ({"path": "/"}, False),
        ({"method": "get"}, True),
        ({"method": "POST"}, False),
        ({"path": "/cart", "method": "POST"}, False),
    ],
)
def test_a_fault_hits_the_requests_that_it_is_meant_for(which: dict[str, str], hit: bool) -> None:
    assert (decided(error(), **which) is not None) is hit


def test_a_fault_ends_after_so_many_times() -> None:
    faults = Faults()
    injection = faults.add(Injection(error(), 0.0, times=2))
    hits = [faults.decide(None, "GET", "/", 0.0, Random(1)) is not None for _ in range(4)]
    assert hits == [True, True, False, False]
    assert injection.count == 2


def test_a_rate_is_drawn_from_the_generator_and_repeats_with_its_seed() -> None:
    faults = Faults()
    faults.add(Injection(error(), 0.0, rate=0.3))

    def hits(seed: int) -> list[bool]:
        rng = Random(seed)
        return [faults.decide(None, "GET", "/", 0.0, rng) is not None for _ in range(1000)]

    assert hits(7) == hits(7) != hits(8)
    assert 250 < sum(hits(7)) < 350


def test_faults_add_up() -> None:
    faults = Faults()
    for each in (slow(0.2), slow(0.1), error(500)):
        faults.add(Injection(each, 0.0))
    plan = faults.decide(None, "GET", "/", 0.0, Random(1))
    assert plan is not None
    assert (round(plan.delay, 3), plan.status) == (0.3, 500)
    assert str(plan) == "slow(0.2), slow(0.1), error(500)"


def test_a_flapping_replica_refuses_for_a_part_of_each_period() -> None:
    refused = [decided(flap(up=2, down=1), now=now) is not None for now in (0, 1.9, 2, 2.9, 3, 4.9, 5.5)]
    assert refused == [False, False, True, True, False, False, True]


def test_an_unready_replica_serves_everything_but_its_health() -> None:
    plan = decided(unready(), asked="/health/ready")
    assert plan is not None
    assert plan.status == 503
    assert decided(unready(), asked="/cart") is None
    assert decided(unready(), asked="/health/live") is None


def test_a_fault_that_is_taken_back_is_over() -> None:
    faults = Faults()
    with faults.add(Injection(error(), 0.0)):
        assert faults.decide(None, "GET", "/", 0.0, Random(1)) is not None
    assert faults.decide(None, "GET", "/", 0.0, Random(1)) is None


def test_a_fault_prints_as_the_call_that_made_it() -> None:
    faults = [hang(), hang(at="body"), slow(0.5), slow(0.5, jitter=0.1), error(503), reset(after_bytes=1)]
    assert [str(each) for each in faults] == [
        "hang()",
        "hang(at='body')",
        "slow(0.5)",
        "slow(0.5, jitter=0.1)",
        "error(503)",
        "reset(after_bytes=1)",
    ]


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        (lambda: hang(at="never"), "need at to be 'before', 'headers' or 'body', got 'never'"),
        (lambda: slow(-1), "need seconds >= 0, got -1"),
        (lambda: slow(0.1, jitter=0.2), "need 0 <= jitter <= seconds, got jitter=0.2, seconds=0.1"),
        (lambda: error(200), "need 400 <= status <= 599, got 200"),
        (lambda: reset(after_bytes=-1), "need after_bytes >= 0, got -1"),
        (lambda: drip(0), "need bytes_per_second > 0, got 0"),
        (lambda: flap(up=0, down=1), "need up > 0, got 0"),
        (lambda: Injection(error(), 0.0, rate=1.5), "need 0 <= rate <= 1, got 1.5"),
        (lambda: Injection(error(), 0.0, times=0), "need times >= 1, got 0"),
        (lambda: Injection("kill", 0.0), r"need a fault such as hang\(\) or error\(503\), got 'kill'"),
    ],
)
def test_nonsense_is_refused_with_the_value_and_the_rule(wrong: Callable[[], object], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        wrong()
