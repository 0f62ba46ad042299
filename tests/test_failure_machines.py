"""How a balancer finds out that a replica is bad, and how that one returns: checks, traffic, agents, time."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbkit.balancer.caddy import Caddy, Passive, Upstream
from lbkit.balancer.check import CheckRules, Health
from lbkit.balancer.envoy import Envoy, Host, Outlier, OutlierRules, SlowStart
from lbkit.balancer.envoy.policy import RoundRobin
from lbkit.balancer.exchange import Attempt, Fault, Flow, Model, Outcome, Relay, Request, Standing, Wait
from lbkit.balancer.explain import decide
from lbkit.balancer.haproxy import Haproxy, HealthRules, Retries, Server
from lbkit.balancer.nginx import Nginx
from lbkit.balancer.nginx import Server as Peer
from lbkit.balancer.profile import PROFILES
from lbkit.balancer.replica import Mode
from lbkit.balancer.traefik import Member, PassiveCheck, Traefik
from lbkit.errors import ConfigError


def haproxy(count: int, *, slowstart: float = 0, maxconn: int = 0, **options: object) -> Haproxy:
    servers = [
        Server(name=f"b{n}", address=f"10.0.0.{n}:80", id=n, weight=16, slowstart=slowstart, maxconn=maxconn)
        for n in range(1, count + 1)
    ]
    return Haproxy(servers, **options)  # type: ignore[arg-type]


def picks(model: Model, times: int, now: float = 0.5) -> Counter[str | None]:
    return Counter(decide(model, Request(), now=now).replica for _ in range(times))


def give(model: Model, outcomes: dict[str, int | Fault], now: float) -> str | None:
    """One request. The replica that it was given to answers as `outcomes` says, else with 200."""
    flow = model.serve(Request(), now=now)
    asked = next(flow, None)
    if not isinstance(asked, Attempt):
        return None
    how = outcomes.get(asked.replica, 200)
    outcome = Outcome(at=now, fault=how) if isinstance(how, Fault) else Outcome(at=now, status=how)
    try:
        flow.send(outcome)
        flow.close()
    except StopIteration:
        pass
    return asked.replica


# -- active checks


@given(st.integers(1, 4), st.integers(1, 4), st.booleans(), st.lists(st.booleans(), max_size=40))
def test_rise_and_fall_count_results_in_a_row(
    rise: int, fall: int, begins_up: bool, results: list[bool]
) -> None:
    health = Health(CheckRules(rise=rise, fall=fall, begins_up=begins_up))
    up, row = begins_up, 0
    needed = 1  # the first result decides, or takes the one life
    for passed in results:
        if passed is up:
            row, needed = 0, fall if up else rise
        else:
            row += 1
            if row >= needed:
                up, row, needed = passed, 0, fall if passed else rise
        health.check(passed=passed)
        assert health.up is up


def test_checks_are_fast_in_transition_and_slow_while_it_is_down_for_good() -> None:
    health = Health(CheckRules(rise=2, fall=2, inter=4, fastinter=1, downinter=8))
    seconds = []
    for passed in (True, False, False, True, True):
        health.check(passed=passed)
        seconds.append(health.next_after)
    assert seconds == [4, 1, 8, 1, 4]


def test_a_check_looks_at_status_and_body() -> None:
    rules = CheckRules(statuses=(200, 299), body=r'"status":\s*"healthy"')
    assert rules.passes(200, '{"status": "healthy"}')
    assert not rules.passes(200, '{"status": "degraded"}')
    assert not rules.passes(302, '{"status": "healthy"}')


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"rise": 0}, "need rise >= 1 and fall >= 1"),
        ({"inter": 0.0}, "need intervals and a timeout > 0"),
        ({"path": "health"}, "need the path of a check that begins with '/'"),
    ],
)
def test_check_rules_that_are_none_are_refused(rules: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CheckRules(**rules)  # type: ignore[arg-type]


def test_every_profile_says_how_it_checks() -> None:
    assert PROFILES["haproxy@2.6"].checks.fall == 3
    assert not PROFILES["envoy"].checks.begins_up
    assert PROFILES["traefik@3"].checks.rise == PROFILES["traefik@3"].checks.fall == 1


# -- HAProxy


def test_traffic_and_checks_take_a_server_of_haproxy_down_together() -> None:
    model = haproxy(2)
    model.observe(HealthRules(observe="layer7", error_limit=3, on_error="mark-down"))
    model.check("b2", passed=True)
    failed = sum(give(model, {"b2": 500}, 0.5) == "b2" for _ in range(6))
    assert failed == 3
    assert picks(model, 6) == {"b1": 6}
    assert model.explain(0.5) == {"b2": "down"}
    assert [model.check("b2", passed=True) for _ in range(2)] == [2.0, 2.0]
    assert picks(model, 6)["b2"] > 0


def test_an_answer_that_is_still_on_its_way_counts_from_its_header_on() -> None:
    model = haproxy(2)
    model.observe(HealthRules(observe="layer7", error_limit=1, on_error="mark-down"))
    flow, asked = begun(model)
    assert isinstance(asked, Attempt)
    assert isinstance(flow.send(Outcome(at=0.5, status=500, open=True)), Relay)
    assert model.explain(0.5) == {asked.replica: "down"}
    assert model.node(asked.replica).served == 1


def test_to_layer_four_an_error_page_is_no_error_and_a_refused_connection_is() -> None:
    model = haproxy(2, retries=Retries(count=0))
    model.observe(HealthRules(observe="layer4", error_limit=1, on_error="mark-down"))
    for _ in range(6):
        give(model, {"b2": 500}, 0.5)
    assert model.explain(0.5) == {}
    for _ in range(2):
        give(model, {"b2": Fault.REFUSED}, 0.5)
    assert model.explain(0.5) == {"b2": "down"}


def test_an_agent_takes_weight_drains_and_brings_back() -> None:
    model = haproxy(2)
    model.agent("b2", "50%")
    assert picks(model, 300)["b2"] == pytest.approx(100, abs=3)
    model.agent("b2", "drain")
    assert picks(model, 9) == {"b1": 9}
    model.agent("b2", "up 100% ready maxconn:5")
    assert picks(model, 100)["b2"] == pytest.approx(50, abs=3)
    assert model.node("b2").maxconn == 5


def test_slow_start_gives_a_server_its_weight_by_sixteenths_of_a_second() -> None:
    model = haproxy(2, slowstart=8, maxconn=100)
    assert picks(model, 32, now=0.5)["b2"] == 16  # never when the process starts
    model.tell("b2", Standing(up=False))
    model.tell("b2", Standing())
    shares = [picks(model, 170, now=100.5 + second)["b2"] for second in (0, 4, 8)]
    assert shares == [pytest.approx(10, abs=4), pytest.approx(61, abs=4), pytest.approx(85, abs=4)]
    model.tell("b2", Standing(up=False))
    model.tell("b2", Standing())
    model.tick(200.5)
    assert model.node("b2").maxconn == 1
    model.tick(204.5)
    assert model.node("b2").maxconn == 50
    model.tick(208.5)
    assert model.node("b2").maxconn == 100


def test_who_waits_for_a_server_that_goes_down_finds_another_one_with_redispatch() -> None:
    model = haproxy(2, maxconn=1, balance="source", retries=Retries(redispatch=-1))
    home = decide(model, Request()).replica or ""
    other = "b1" if home == "b2" else "b2"
    _first = begun(model)
    waiting, wait = begun(model)
    assert isinstance(wait, Wait)
    assert wait.at == home
    model.tell(home, Standing(up=False))
    assert model.woken() == [wait]
    asked = waiting.send(None)
    assert isinstance(asked, Attempt)
    assert asked.replica == other


def test_a_server_that_comes_back_takes_from_the_queue_what_waits() -> None:
    model = haproxy(2, maxconn=1)
    model.tell("b2", Standing(mode=Mode.MAINT))
    _inside = begun(model)
    waiting, wait = begun(model)
    model.tell("b2", Standing())
    assert model.woken() == [wait]
    asked = waiting.send(None)
    assert isinstance(asked, Attempt)
    assert asked.replica == "b2"


def test_who_gives_up_leaves_the_queue_and_not_the_one_who_came_at_the_same_instant() -> None:
    model = haproxy(1, maxconn=1)
    first, _ = begun(model)
    patient, wait = begun(model)
    hasty, _ = begun(model)
    hasty.close()
    with pytest.raises(StopIteration):
        first.send(Outcome(at=0.5, status=200))
    (woken,) = model.woken()
    assert woken is wait
    assert isinstance(patient.send(None), Attempt)


def begun(model: Model) -> tuple[Flow, object]:
    flow = model.serve(Request(), now=0.5)
    return flow, next(flow)


# -- the others


def test_nginx_gives_a_slow_peer_a_chance_once_in_fail_timeout() -> None:
    group = Nginx(
        [Peer(name=f"b{n}", address=f"b{n}", fail_timeout=10) for n in (1, 2)], method="least_time header"
    )
    group.peers[0].header_time, group.peers[1].header_time = 15, 60
    assert picks(group, 5, now=5.5) == {"b1": 5}
    assert picks(group, 3, now=55.5)["b2"] >= 1  # 60 ms, halved every 11 s, are in the first bucket of 20 ms


def test_envoy_ejects_who_fails_in_a_row_and_takes_it_back_on_its_timer() -> None:
    hosts = [Host(name=f"b{n}", address=f"10.0.0.{n}:80") for n in (1, 2, 3)]
    rules = OutlierRules(
        consecutive_5xx=2, interval=10.0, base_ejection_time=5.0, max_ejection_percent=50, merge_window=0.0
    )
    turns = iter(range(10**6))
    model = Envoy(
        hosts, chooser=lambda some, _: RoundRobin(some, turns=turns, start=0), outlier=Outlier(hosts, rules)
    )
    for _ in range(6):
        give(model, {"b2": 503}, 1.0)
    assert model.explain(1.0) == {"b2": "ejected"}
    assert picks(model, 6, now=9.0)["b2"] == 0
    assert picks(model, 6, now=10.0)["b2"] == 2  # not after 5 s: on the timer
    assert model.explain(10.0) == {}


def test_envoy_ejects_no_more_than_a_tenth_unless_told_so() -> None:
    hosts = [Host(name=f"b{n}", address=f"10.0.0.{n}:80") for n in (1, 2, 3)]
    turns = iter(range(10**6))
    outlier = Outlier(hosts, OutlierRules(consecutive_5xx=1))
    model = Envoy(hosts, chooser=lambda some, _: RoundRobin(some, turns=turns, start=0), outlier=outlier)
    for _ in range(9):
        give(model, {"b2": 503}, 1.0)
    assert model.explain(1.0) == {}


def test_slow_start_of_envoy_begins_with_a_tenth_and_grows_over_its_window() -> None:
    rule = SlowStart(window=10.0)
    assert [rule.factor(seconds) for seconds in (0.0, 0.5, 5.0, 10.0)] == [0.1, 0.1, 0.5, 1.0]
    hosts = [Host(name=f"b{n}", address=f"10.0.0.{n}:80", weight=10) for n in (1, 2)]
    turns = iter(range(10**6))
    model = Envoy(
        hosts, chooser=lambda some, _: RoundRobin(some, turns=turns, start=0), slow_start=rule, panic_below=0
    )
    model.tell("b2", Standing(up=False))
    picks(model, 3, now=1.0)
    model.tell("b2", Standing())
    assert picks(model, 110, now=100.0)["b2"] == pytest.approx(10, abs=4)
    picks(model, 10, now=105.0)
    assert picks(model, 150, now=105.0)["b2"] == pytest.approx(50, abs=6)
    picks(model, 10, now=120.0)
    assert picks(model, 100, now=120.0)["b2"] == pytest.approx(50, abs=4)


def test_in_a_total_panic_of_envoy_each_priority_gets_its_share_of_hosts() -> None:
    hosts = [
        Host(name=f"b{n}", address=f"10.0.0.{n}:80", priority=int(n > 3), healthy=False) for n in (1, 2, 3, 4)
    ]
    turns = iter(range(10**6))
    model = Envoy(hosts, chooser=lambda some, _: RoundRobin(some, turns=turns, start=0))
    counts = picks(model, 2_000)
    assert counts["b4"] / 2_000 == pytest.approx(0.25, abs=0.04)


def test_caddy_forgets_each_failure_by_itself_and_counts_slow_answers() -> None:
    passive = Passive(fail_duration=4.0, max_fails=2, unhealthy_latency=1.0)
    model = Caddy([Upstream("b1", "b1"), Upstream("b2", "b2")], policy="first", passive=passive)
    give(model, {"b1": Fault.REFUSED}, 0.0)
    flow = model.serve(Request(), now=2.0)
    next(flow)
    with pytest.raises(StopIteration):
        flow.send(Outcome(at=3.5, status=200, seconds=1.5))
    assert picks(model, 2, now=3.9) == {"b2": 2}
    assert model.explain(3.9) == {"b1": "2 of 2 failures within 4 s"}
    assert picks(model, 2, now=4.1) == {"b1": 2}


def test_traefik_takes_out_for_a_window_who_fails_within_it() -> None:
    passive = PassiveCheck(window=2.0, attempts=2)
    model = Traefik([Member("b1", "b1"), Member("b2", "b2")], passive=passive)
    for _ in range(4):
        give(model, {"b2": 503}, 1.0)
    assert picks(model, 4, now=2.9) == {"b1": 4}
    assert picks(model, 4, now=3.1)["b2"] == 2
