"""The traps that textbook snippets of load balancing fall into: a test for each, against what is really done.

======================================================  ====================================================
the snippet                                             the real ones
======================================================  ====================================================
weighted round robin takes index 0, then adjusts        all gain first, then the strictly highest pays
least connections does not look at weights              connections per weight; ties in turn, FIFO or drawn
address hash modulo the *live* servers                  a down server moves its own keys alone (nginx)
an average of 0 makes a new server look perfect         buckets of 20 ms, a penalty; Traefik has the flaw
"recovery after n successes", without any traffic       a probe, a window, a timer, or active checks
failures in a sliding window                            nginx: a counter that one success resets, sometimes
a server starts healthy, with full credit               HAProxy: with one life
retry everything                                        a POST that was sent is not run again
a sticky client returns after the recovery              it stays where it went
nobody is healthy: 503                                  502, 503, or all of them
======================================================  ====================================================
"""

from __future__ import annotations

from collections import Counter

import pytest

from lbkit.balancer.check import CheckRules, Health
from lbkit.balancer.decision import Decision, pick, release
from lbkit.balancer.exchange import Answer, Attempt, Fault, Flow, Model, Outcome, Request, Standing
from lbkit.balancer.explain import decide
from lbkit.balancer.profile import PROFILES, Options, Place, profile_named


def model_of(
    name: str, *weights: int, policy: str = "", sticky: str = "", fail_timeout: float = 2.0
) -> Model:
    fails = {"max_fails": 1, "fail_timeout": fail_timeout} if "max_fails" in PROFILES[name].has else {}
    places = [
        Place(name=f"b{n}", address=f"10.0.0.{n}:80", weight=weight, **fails)  # type: ignore[arg-type]
        for n, weight in enumerate(weights, 1)
    ]
    return profile_named(name).model(places, policy=policy, options=Options(sticky=sticky))


def picks(model: Model, times: int, now: float = 0.5, request: Request | None = None) -> list[str | None]:
    return [decide(model, request or Request(), now=now).replica for _ in range(times)]


def serve(model: Model, request: Request, *, fails: tuple[str, ...] = (), now: float = 0.5) -> Answer:
    decision: Decision | Answer = pick(model, request, now=now)
    while isinstance(decision, Decision):
        fault = Fault.REFUSED if decision.replica in fails else None
        decision = release(decision, Outcome(at=now, status=0 if fault else 200, fault=fault))
    return decision


@pytest.mark.parametrize("name", ["nginx", "plain"])
def test_the_first_pick_is_the_heaviest_and_not_the_first_in_the_list(name: str) -> None:
    model = model_of(name, 1, 1, 5, policy="weighted" if name == "plain" else "")
    assert picks(model, 7) == ["b3", "b3", "b1", "b3", "b2", "b3", "b3"]


@pytest.mark.parametrize(
    ("name", "policy"), [("nginx", "least_conn"), ("plain", "least_conn"), ("haproxy@2.6", "leastconn")]
)
def test_least_connections_are_counted_per_weight(name: str, policy: str) -> None:
    model, flows = model_of(name, 1, 4, policy=policy), []
    for _ in range(50):
        flow: Flow = model.serve(Request(), now=0.5)
        asked = next(flow)
        assert isinstance(asked, Attempt)
        flows.append((flow, asked.replica))
    counts = Counter(replica for _, replica in flows)
    assert 38 <= counts["b2"] <= 41


def test_a_server_that_is_down_moves_its_own_keys_alone_and_all_move_in_haproxys_map() -> None:
    def moved(name: str, policy: str) -> tuple[int, int]:
        before, after = (model_of(name, 1, 1, 1, 1, policy=policy) for _ in range(2))
        after.tell("b2", Standing(up=False))
        keys = [Request(client=f"10.{n}.{n % 7}.1", target=f"/{n}") for n in range(400)]
        homes = [(decide(before, key).replica, decide(after, key).replica) for key in keys]
        others = [pair for pair in homes if pair[0] != "b2"]
        return sum(here != there for here, there in others), len(others)

    assert moved("nginx", "ip_hash")[0] == 0
    assert moved("caddy@2.6", "uri_hash")[0] == 0
    lost, all_others = moved("haproxy@2.6", "uri")
    assert lost > all_others / 3


@pytest.mark.parametrize(
    ("name", "policy", "flooded"),
    [("nginx", "least_time header", False), ("plain", "peak_ewma", False), ("traefik@3", "leasttime", True)],
)
def test_a_server_without_a_history_is_not_flooded_but_by_traefik(
    name: str, policy: str, flooded: bool
) -> None:
    model = model_of(name, 1, 1, 1, policy=policy, fail_timeout=60.0)
    model.tell("b3", Standing(up=False))
    for at in range(6):
        flow = model.serve(Request(), now=float(at))
        next(flow)
        with pytest.raises(StopIteration):
            flow.send(Outcome(at=at + 0.05, status=200, seconds=0.05))
    model.tell("b3", Standing())
    held = [model.serve(Request(), now=6.0) for _ in range(30)]
    counts = Counter(asked.replica for flow in held if isinstance(asked := next(flow), Attempt))
    assert (counts["b3"] == 30) is flooded
    assert counts["b3"] >= 1


def test_without_traffic_there_is_no_success_that_could_bring_a_server_back() -> None:
    """nginx, Caddy and Traefik let time pass; HAProxy asks by itself; nobody waits for n successes."""
    for name in ("nginx", "caddy@2.6", "traefik@3"):
        model = model_of(name, 1, 1, policy="first" if name == "caddy@2.6" else "")
        for _ in range(4):
            serve(model, Request(), fails=("b1",))
        assert set(picks(model, 6, now=1.5)) == {"b2"}
        assert "b1" in picks(model, 6, now=9.5)


def test_failures_of_nginx_are_no_sliding_window() -> None:
    places = [Place(name=f"b{n}", max_fails=2, fail_timeout=10.0) for n in (1, 2)]
    model = profile_named("nginx").model(places)
    serve(model, Request(), fails=("b1",), now=0.5)
    for now in (2.5, 4.5, 6.5, 8.5):
        serve(model, Request(), now=now)  # successes in between forgive nothing
    for _ in range(2):
        serve(model, Request(), fails=("b1",), now=9.5)
    assert set(picks(model, 6, now=9.5)) == {"b2"}


def test_a_server_starts_with_one_life() -> None:
    health = Health(CheckRules(fall=3))
    health.check(passed=False)
    assert not health.up


def test_what_was_sent_is_not_sent_again_by_default() -> None:
    for name in PROFILES:
        flow = model_of(name, *(1, 1, 1)).serve(Request("POST", body=True), now=0.5)
        next(flow)
        with pytest.raises(StopIteration):
            flow.send(Outcome(at=0.5, fault=Fault.RESET))


@pytest.mark.parametrize("name", ["nginx", "haproxy@2.6", "envoy", "caddy@2.6", "traefik@3"])
def test_a_client_that_had_to_move_does_not_return(name: str) -> None:
    model = model_of(name, 1, 1, 1, sticky="route")
    first = serve(model, Request())
    home = first.replica or ""
    model.tell(home, Standing(up=False))
    moved = serve(model, Request(headers={"cookie": first.set_cookie[-1].partition(";")[0]}))
    assert moved.replica not in (None, home)
    model.tell(home, Standing())
    cookie = Request(headers={"cookie": moved.set_cookie[-1].partition(";")[0]})
    assert {serve(model, cookie).replica for _ in range(5)} == {moved.replica}


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("nginx", 502),
        ("haproxy@2.6", 503),
        ("caddy@2.6", 503),
        ("traefik@3", 503),
        ("plain", 503),
        ("envoy", 200),
    ],
)
def test_what_a_client_gets_when_nobody_is_healthy(name: str, status: int) -> None:
    model = model_of(name, 1, 1, 1)
    for replica in model.names:
        model.tell(replica, Standing(up=False))
    decision = pick(model, Request(), now=0.5)
    if decision.replica is None:
        assert decision.status == status
    else:
        answer = release(decision, Outcome(at=0.5, status=200))
        assert isinstance(answer, Answer)
        assert answer.status == status
