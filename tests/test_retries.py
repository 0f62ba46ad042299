"""Retries: one rule, each balancer's data; what was sent is not run twice unless that balancer does so."""

from __future__ import annotations

from random import Random

import pytest

from lbkit.balancer.exchange import Answer, Attempt, Fault, Flow, Model, Outcome, Request, Wait
from lbkit.balancer.profile import Options, Place, profile_named
from lbkit.balancer.retry import Budget, RetryRules, twice
from lbkit.errors import ConfigError

GET, POST, PUT = Request(), Request("POST", "/pay", body=True), Request("PUT", "/pay")
REFUSED, RESET, TIMEOUT = Fault.REFUSED, Fault.RESET, Fault.TIMEOUT


def model_of(name: str, retry: str = "", replicas: int = 3) -> Model:
    places = [Place(name=f"web{n}") for n in range(1, replicas + 1)]
    policy = "first" if name.startswith("caddy") else ""
    return profile_named(name).model(places, policy=policy, rng=Random(2), options=Options(retry=retry))


def tried(model: Model, request: Request, how: Fault | int) -> tuple[int, list[str]]:
    """How often a request is given to a replica when every one of them fails so, and what it is warned of."""
    flow, attempts, warnings = model.serve(request, now=0.5), 0, []
    outcome = Outcome(at=0.5, fault=how) if isinstance(how, Fault) else Outcome(at=0.5, status=how)
    try:
        asked = next(flow)
        while isinstance(asked, Attempt) and attempts < 9:
            attempts += 1
            warnings += [asked.warning] * bool(asked.warning)
            asked = flow.send(outcome)
        flow.close()
    except StopIteration:
        pass
    return attempts, warnings


@pytest.mark.parametrize(
    ("name", "retry", "request_", "how", "attempts", "warned"),
    [
        ("nginx", "", GET, RESET, 3, False),
        ("nginx", "", PUT, RESET, 3, False),
        ("nginx", "", POST, RESET, 1, False),
        ("nginx", "", POST, REFUSED, 3, False),
        ("nginx", "", GET, 503, 1, False),
        ("nginx", "error timeout http_503", GET, 503, 3, False),
        ("nginx", "error timeout http_503", POST, 503, 1, False),
        ("nginx", "error timeout non_idempotent", POST, RESET, 3, True),
        ("nginx", "error timeout tries=2", GET, REFUSED, 2, False),
        ("nginx", "off", GET, REFUSED, 1, False),
        ("haproxy@2.6", "", GET, REFUSED, 4, False),
        ("haproxy@2.6", "", GET, RESET, 1, False),
        ("haproxy@2.6", "empty-response", POST, RESET, 4, True),
        ("haproxy@2.6", "503 retries=1", GET, 503, 2, False),
        ("haproxy@2.6", "all-retryable-errors", GET, TIMEOUT, 4, False),
        ("envoy", "", GET, REFUSED, 1, False),
        ("envoy", "5xx", POST, 503, 2, True),
        ("envoy", "5xx num_retries=3 previous_hosts", POST, RESET, 4, True),
        ("envoy", "connect-failure", POST, RESET, 1, False),
        ("caddy@2.6", "", GET, REFUSED, 1, False),
        ("caddy@2.6", "1", GET, RESET, 9, False),
        ("caddy@2.6", "1", POST, RESET, 1, False),
        ("caddy@2.6", "retries=2", POST, REFUSED, 3, False),
        ("traefik@3", "", GET, REFUSED, 1, False),
        ("traefik@3", "3", POST, REFUSED, 3, False),
        ("traefik@3", "3", GET, RESET, 1, False),
        ("plain", "", GET, REFUSED, 1, False),
    ],
)
def test_who_tries_again_what_and_how_often(
    name: str, retry: str, request_: Request, how: Fault | int, attempts: int, warned: bool
) -> None:
    count, warnings = tried(model_of(name, retry), request_, how)
    assert count == attempts
    assert bool(warnings) is warned


def test_the_warning_names_the_request_and_both_replicas() -> None:
    _, warnings = tried(model_of("envoy", "5xx"), POST, RESET)
    assert len(warnings) == 1
    assert warnings[0].startswith("POST /pay goes to web")
    assert warnings[0].endswith("may have run it already: it may be run twice")
    assert twice(PUT, "web1", "web2") == ""
    assert twice(POST, "", "web2") == ""


def test_a_status_counts_as_run() -> None:
    assert Outcome(at=0.0, status=503).sent
    assert not Outcome(at=0.0, fault=REFUSED).sent


# -- the budget


def held(model: Model, count: int) -> list[Flow]:
    """Requests that are being tried for the first time."""
    flows = [model.serve(GET, now=0.5) for _ in range(count)]
    for flow in flows:
        assert isinstance(next(flow), Attempt)
    return flows


def test_envoy_tries_no_more_than_three_again_at_the_same_time() -> None:
    flows = held(model_of("envoy", "5xx"), 6)
    again = [goes_on(flow) for flow in flows]
    assert again == [True, True, True, False, False, False]
    for flow in flows[:3]:  # those have ended, and others may be tried again
        with pytest.raises(StopIteration):
            flow.send(Outcome(at=0.5, status=200))
    model = model_of("envoy", "5xx max_retries=1")
    first, second = held(model, 2)
    assert (goes_on(first), goes_on(second)) == (True, False)
    first.close()
    (third,) = held(model, 1)
    assert goes_on(third)


def test_a_budget_is_a_share_of_what_is_under_way_and_never_less_than_three() -> None:
    flows = held(model_of("envoy", "5xx budget_percent=20"), 40)
    assert [goes_on(flow) for flow in flows].count(True) == 8
    assert Budget(percent=20).allows(retrying=2, active=5)
    assert not Budget(percent=20).allows(retrying=3, active=15)
    assert Budget(percent=20).allows(retrying=3, active=20)
    with pytest.raises(ConfigError, match="need most >= 0 and 0 <= percent <= 100"):
        Budget(percent=120)


def goes_on(flow: Flow) -> bool:
    try:
        return isinstance(flow.send(Outcome(at=0.5, status=503)), Attempt)
    except StopIteration:
        return False


def test_the_rule_looks_at_causes_tries_seconds_and_methods() -> None:
    rules = RetryRules(
        causes=lambda outcome: frozenset({str(outcome.status)}),
        on=frozenset({"503"}),
        retries=2,
        seconds=5.0,
        again=lambda request: request.method == "GET",
    )
    failed = Outcome(at=0.0, status=503)
    assert rules.allows(GET, failed, done=1, elapsed=4.9)
    assert not rules.allows(GET, failed, done=2, elapsed=0.0)
    assert not rules.allows(GET, failed, done=0, elapsed=5.0)
    assert not rules.allows(POST, failed, done=0, elapsed=0.0)
    assert not rules.allows(GET, Outcome(at=0.0, status=500), done=0, elapsed=0.0)


# -- what is beside the count


def test_caddy_waits_for_somebody_to_come_back_as_long_as_its_duration_lasts() -> None:
    places = [Place(name="web1", max_fails=1, fail_timeout=0.4)]
    model = profile_named("caddy@2.6").model(places, policy="first", options=Options(retry="1"))
    flow = model.serve(GET, now=0.0)
    assert isinstance(next(flow), Attempt)
    asked = flow.send(Outcome(at=0.0, fault=REFUSED))
    assert asked == Wait(0.25)
    asked = flow.throw(TimeoutError())
    assert asked == Wait(0.5)
    asked = flow.throw(TimeoutError())
    assert isinstance(asked, Attempt)
    with pytest.raises(StopIteration) as stopped:
        flow.send(Outcome(at=0.5, status=200))
    answer: Answer = stopped.value.value
    assert (answer.status, answer.attempts) == (200, ("web1", "web1"))


def test_haproxy_waits_a_second_before_it_asks_the_same_server_again_and_not_before_another_one() -> None:
    model = model_of("haproxy@2.6")
    flow = model.serve(GET, now=0.5)
    first = next(flow)
    second = flow.send(Outcome(at=0.5, fault=REFUSED))
    assert isinstance(first, Attempt)
    assert isinstance(second, Attempt)
    assert (second.replica, second.after) == (first.replica, 1.0)
    flow = model_of("haproxy@2.6", "redispatch").serve(GET, now=0.5)
    first = next(flow)
    second = flow.send(Outcome(at=0.5, fault=REFUSED))
    assert isinstance(first, Attempt)
    assert isinstance(second, Attempt)
    assert (second.replica == first.replica, second.after) == (False, 0.0)


@pytest.mark.parametrize(
    ("name", "retry", "message"),
    [
        ("nginx", "error nonsense", r"need a word for retries \(error, timeout, .*got 'nonsense'"),
        ("nginx", "tries=many", "need a number >= 0, got 'tries=many'"),
        ("haproxy@2.6", "5xx", "need a word for retries .*conn-failure"),
        ("envoy", "http_503", "need a word for retries .*5xx"),
        ("envoy", "5xx budget_percent=200", "percent <= 100"),
        ("caddy@2.6", "soon", "need a number >= 0, got 'soon'"),
        ("traefik@3", "-1", "need a number >= 0"),
        ("plain", "error", "no retry of its own"),
    ],
)
def test_a_retry_rule_that_a_balancer_does_not_have_is_refused(name: str, retry: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_of(name, retry)
