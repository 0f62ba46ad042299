"""What the model of every profile promises, whichever policy it has: reasons, standings, nothing lost."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbkit.balancer.decision import Decision, pick, release
from lbkit.balancer.exchange import (
    Answer,
    Attempt,
    Fault,
    Flow,
    Model,
    Outcome,
    Relay,
    Request,
    Standing,
    Wait,
)
from lbkit.balancer.explain import decide
from lbkit.balancer.profile import PROFILES, Options, Place, profile_named
from lbkit.balancer.replica import Mode
from lbkit.errors import ConfigError

NAMES = ["web2", "web3", "web1"]
FILLED = {"KEY": "$uri", "NAME": "x-user", "HEADER": "x-user", "N": "2", "PERCENT": "125"}
EVERY = [(name, policy) for name, profile in PROFILES.items() for policy in profile.policies]
QUICK = [(name, policy) for name, policy in EVERY if "maglev" not in policy.lower()]
"""A Maglev table takes a tenth of a second, each time that somebody comes or goes."""


def filled(policy: str) -> str:
    for word, value in FILLED.items():
        policy = policy.replace(f" {word}", f" {value}").replace(f"({word})", f"({value})")
    return policy


def model_of(name: str, policy: str = "", **options: str) -> Model:
    places = [Place(name=f"web{n}", address=f"10.0.0.{n}:80") for n in (1, 2, 3)]
    return profile_named(name).model(places, policy=filled(policy), rng=Random(5), options=Options(**options))


# -- decisions


@pytest.mark.parametrize(("name", "policy"), EVERY)
def test_a_decision_tells_for_each_other_replica_why_it_was_not_picked(name: str, policy: str) -> None:
    profile, model = profile_named(name), model_of(name, policy)
    model.tell("web2", Standing(mode=Mode.MAINT))
    decision = decide(model, Request(headers={"x-user": "ada"}), rule=profile.rule(policy))
    assert decision.replica in ("web1", "web3")
    other = "web3" if decision.replica == "web1" else "web1"
    assert set(decision.skipped) == {"web2", other}
    assert decision.skipped[other] == f"passed over: the policy picks {profile.rule(policy)}"
    assert "passed over" not in decision.skipped["web2"]


def test_a_decision_goes_on_with_the_next_replica_and_ends_with_the_answer() -> None:
    model = model_of("nginx")
    first = pick(model, Request(), now=0.5)
    second = release(first, Outcome(at=0.5, fault=Fault.REFUSED))
    assert isinstance(second, Decision)
    assert (first.replica, second.replica, second.tried) == ("web1", "web2", ("web1",))
    assert second.skipped["web1"] == "tried by this request already"
    answer = release(second, Outcome(at=0.5, status=200, open=True))
    assert isinstance(answer, Answer)
    assert (answer.replica, answer.attempts) == ("web2", ("web1", "web2"))


def test_a_client_that_goes_counts_against_nobody() -> None:
    model = model_of("nginx")
    for _ in range(5):
        release(pick(model, Request(), now=0.5), None)
    assert model.explain(0.5) == {}


def test_there_is_nothing_to_release_when_nobody_was_picked() -> None:
    model = model_of("caddy@2.6")
    for name in NAMES:
        model.tell(name, Standing(up=False))
    decision = pick(model, Request(), now=0.5)
    assert (decision.replica, decision.status) == (None, 503)
    with pytest.raises(TypeError, match="nothing to release"):
        release(decision, None)


@pytest.mark.parametrize("name", PROFILES)
def test_a_replica_that_is_not_there_is_answered_with_those_that_are(name: str) -> None:
    with pytest.raises(ConfigError, match=r"need the name of a replica \(web1, web2, web3\), got 'web9'"):
        model_of(name).tell("web9", Standing(up=False))


# -- standings


@pytest.mark.parametrize(("name", "policy"), QUICK)
@settings(max_examples=15)
@given(
    changes=st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(["up", "down", "maint"])), max_size=20)
)
def test_nobody_who_is_known_to_be_out_gets_a_request_while_another_is_in(
    name: str, policy: str, changes: list[tuple[str, str]]
) -> None:
    model, known = model_of(name, policy), dict.fromkeys(NAMES, "up")
    for number, (replica, state) in enumerate(changes):
        known[replica] = state
        mode = Mode.MAINT if state == "maint" else Mode.READY
        model.tell(replica, Standing(up=state != "down", mode=mode))
        up = {each for each, said in known.items() if said == "up"}
        request = Request(target=f"/{number}", client=f"10.0.{number}.1", headers={"x-user": str(number)})
        picked = decide(model, request).replica
        if name == "envoy":  # it panics when less than half are healthy: all of the cluster's hosts are used
            assert picked is None or known[picked] != "maint"
        else:
            assert picked in up if up else picked is None


@pytest.mark.parametrize("name", ["nginx", "haproxy@2.6", "envoy", "traefik@3"])
def test_a_replica_that_drains_keeps_its_clients_and_gets_no_others(name: str) -> None:
    model = model_of(name, sticky="route")
    cookie = ""
    while not cookie:
        answer = serve(model, Request())
        if answer.replica == "web2":
            cookie = answer.set_cookie[-1].partition(";")[0]
    model.tell("web2", Standing(mode=Mode.DRAIN))
    bound = Request(headers={"cookie": cookie})
    assert {serve(model, bound).replica for _ in range(5)} == {"web2"}
    assert "web2" not in {serve(model, Request()).replica for _ in range(12)}
    model.tell("web2", Standing(mode=Mode.MAINT))
    assert serve(model, bound).replica != "web2"


@pytest.mark.parametrize(
    ("name", "policy"),
    [("nginx", ""), ("haproxy@2.6", ""), ("envoy", ""), ("traefik@3", ""), ("plain", "weighted")],
)
def test_a_degraded_replica_gets_less(name: str, policy: str) -> None:
    model = model_of(name, policy)
    model.tell("web2", Standing(share=0.5))
    counts = [serve(model, Request()).replica for _ in range(500)]
    assert 90 <= counts.count("web2") <= 110
    model.tell("web2", Standing())
    counts = [serve(model, Request()).replica for _ in range(300)]
    assert 95 <= counts.count("web2") <= 105


def serve(
    model: Model, request: Request, *, fails: dict[str, Fault] | None = None, now: float = 0.5
) -> Answer:
    decision: Decision | Answer = pick(model, request, now=now)
    while isinstance(decision, Decision):
        if decision.replica is None:
            return Answer(status=decision.status or 0, replica=None, attempts=decision.tried)
        fault = (fails or {}).get(decision.replica)
        decision = release(decision, Outcome(at=now, status=0 if fault else 200, fault=fault))
    return decision


# -- nothing is lost, whatever comes


Step = st.tuples(
    st.sampled_from(["begin", "answer", "fail", "header", "leave", "tell", "tick"]),
    st.integers(0, 9),
    st.sampled_from([None, *Fault]),
)


class World:
    """A model with many requests at once, driven as a carrier drives it."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.now = 0.5
        self.flows: list[tuple[Flow, Attempt | Wait | Relay]] = []

    def advance(self, flow: Flow, outcome: Outcome | None = None, *, late: bool = False) -> None:
        try:
            asked = flow.throw(TimeoutError()) if late else flow.send(outcome)
        except StopIteration:
            return
        self.flows.append((flow, asked))

    def step(self, kind: str, number: int, fault: Fault | None) -> None:
        self.now += 0.25
        if kind == "begin":
            method = ("GET", "POST")[number % 2]
            request = Request(method, f"/{number}", f"10.0.{number}.1", {"x-user": str(number)})
            self.advance(self.model.serve(request, now=self.now))
        elif kind == "tell":
            self.tell(number)
        elif kind == "tick":
            self.now += number
            self.model.tick(self.now)
        elif self.flows:
            self.go_on(kind, number, fault)
        self.wake()

    def tell(self, number: int) -> None:
        mode = list(Mode)[number % 3]
        standing = Standing(mode=mode, up=number % 4 > 0, share=1.0 if number < 5 else 0.5)
        self.model.tell(NAMES[number % len(NAMES)], standing)

    def go_on(self, kind: str, number: int, fault: Fault | None) -> None:
        flow, asked = self.flows.pop(number % len(self.flows))
        if kind == "leave":
            flow.close()
        elif isinstance(asked, Wait):
            self.advance(flow, late=True)
        elif isinstance(asked, Relay):
            self.advance(flow)
        else:
            failed = kind == "fail" and fault is not None
            status = 0 if failed else (200, 503, 404)[number % 3]
            outcome = Outcome(
                at=self.now,
                status=status,
                fault=fault if failed else None,
                open=kind == "header" and not failed,
            )
            self.advance(flow, outcome)

    def wake(self) -> None:
        for wait in self.model.woken():
            at = next(at for at, (_, asked) in enumerate(self.flows) if asked is wait)
            flow, _ = self.flows.pop(at)
            self.advance(flow)

    def end(self) -> None:
        while self.flows:
            flow, _ = self.flows.pop()
            flow.close()
            self.wake()


def busy(model: Model) -> list[int]:
    for attribute, count in (("peers", "conns"), ("nodes", "served"), ("hosts", "active")):
        if hasattr(model, attribute):
            return [getattr(each, count) for each in getattr(model, attribute)]
    return [each.active for each in (getattr(model, "upstreams", None) or getattr(model, "members"))]  # noqa: B009


RETRY = {"nginx": "error timeout http_503 non_idempotent", "haproxy@2.6": "503 empty-response redispatch=1"}
RETRY |= {"envoy": "5xx num_retries=2 previous_hosts", "caddy@2.6": "1", "traefik@3": "3"}


@pytest.mark.parametrize(("name", "policy"), QUICK)
@settings(max_examples=12)
@given(steps=st.lists(Step, max_size=60))
def test_every_request_that_was_counted_in_is_counted_out_whatever_comes(
    name: str, policy: str, steps: list[tuple[str, int, Fault | None]]
) -> None:
    limits = "max_conns" in PROFILES[name].has
    places = [Place(name=f"web{n}", max_conns=2 if limits and n < 3 else 0) for n in (1, 2, 3)]
    options = Options(retry=RETRY.get(name, ""))
    model = profile_named(name).model(places, policy=filled(policy), rng=Random(5), options=options)
    world = World(model)
    for step in steps:
        world.step(*step)
        assert sum(busy(model)) == sum(not isinstance(asked, Wait) for _, asked in world.flows)
    world.end()
    assert not any(busy(model))
