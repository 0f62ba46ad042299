"""What a model hears beside its traffic: slots held to the last byte, clients that left, standings."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from lbkit.balancer import Mode
from lbkit.balancer.exchange import Attempt, Fault, Flow, Model, Outcome, Relay, Request, Standing, Wait
from lbkit.balancer.explain import decide
from lbkit.balancer.profile import PROFILES, Options, Place
from lbkit.errors import ConfigError

LEAST = {
    "nginx": "least_conn",
    "haproxy@2.6": "leastconn",
    "caddy@2.6": "least_conn",
    "traefik@3": "p2c",
    "envoy": "LEAST_REQUEST",
}
WEIGHTED = ("nginx", "haproxy@2.6", "envoy", "traefik@3")
STICKY = ("nginx", "haproxy@2.6", "envoy", "traefik@3")
HEADER = Outcome(at=0.5, status=200, open=True)


def model_of(name: str, policy: str = "", *, replicas: int = 3, options: Options | None = None) -> Model:
    places = [Place(name=f"web{n}", address=f"10.0.0.{n}:80") for n in range(1, replicas + 1)]
    return PROFILES[name].model(places, policy=policy, rng=Random(1), options=options)


def begun(model: Model, request: Request | None = None) -> tuple[str, Flow]:
    flow = model.serve(request or Request(), now=0.5)
    asked = next(flow)
    assert isinstance(asked, Attempt)
    return asked.replica, flow


def picked(model: Model, times: int, request: Request | None = None) -> Counter[str | None]:
    return Counter(decide(model, request or Request(), now=0.5).replica for _ in range(times))


def inside(model: Model) -> int:
    """How many requests the model itself believes to be inside."""
    for names, count in (("peers", "conns"), ("nodes", "served")):
        if hasattr(model, names):
            return sum(getattr(each, count) for each in getattr(model, names))
    for names in ("hosts", "upstreams", "members"):
        if hasattr(model, names):
            return sum(each.active for each in getattr(model, names))
    raise AssertionError(f"{model} counts nothing")


@pytest.mark.parametrize("name", LEAST)
def test_a_replica_is_busy_until_the_last_byte_of_its_answer_has_left(name: str) -> None:
    model = model_of(name, LEAST[name])
    _, flow = begun(model)
    relayed = flow.send(HEADER)
    assert isinstance(relayed, Relay)
    assert relayed.answer.status == 200
    assert inside(model) == 1
    with pytest.raises(StopIteration) as stopped:
        flow.send(None)
    assert stopped.value.value == relayed.answer
    assert inside(model) == 0


@pytest.mark.parametrize("name", LEAST)
def test_a_client_that_leaves_gives_back_what_it_held_and_is_no_failure(name: str) -> None:
    model = model_of(name, LEAST[name])
    for step in range(9):
        replica, flow = begun(model)
        if step % 2:
            flow.send(HEADER)
        flow.close()
        assert inside(model) == 0
        assert replica not in model.explain(0.5)


@pytest.mark.parametrize("name", [*LEAST, "plain"])
def test_who_is_down_or_in_maintenance_gets_nothing_and_returns(name: str) -> None:
    for standing in (Standing(up=False), Standing(mode=Mode.MAINT), Standing(mode=Mode.DRAIN)):
        model = model_of(name)
        model.tell("web2", standing)
        assert "web2" not in picked(model, 60)
        assert list(model.explain(0.5)) == ["web2"]
        model.tell("web2", Standing())
        assert picked(model, 300)["web2"] > 30
        assert not model.explain(0.5)


@pytest.mark.parametrize("name", STICKY)
def test_who_drains_keeps_its_bound_clients_and_who_is_in_maintenance_loses_them(name: str) -> None:
    model = model_of(name, options=Options(sticky="route"))
    flow = model.serve(Request(), now=0.5)
    home = next(flow)
    assert isinstance(home, Attempt)
    with pytest.raises(StopIteration) as stopped:
        flow.send(Outcome(at=0.5, status=200))
    cookie = stopped.value.value.set_cookie[0].partition(";")[0]
    bound = Request(headers={"cookie": cookie})
    model.tell(home.replica, Standing(mode=Mode.DRAIN))
    assert home.replica not in picked(model, 30)
    assert set(picked(model, 30, bound)) == {home.replica}
    model.tell(home.replica, Standing(mode=Mode.MAINT))
    assert home.replica not in picked(model, 30, bound)


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_replica_at_half_of_its_weight_gets_half_as_much_and_all_of_it_again(name: str) -> None:
    model = model_of(name)
    assert picked(model, 300) == {"web1": 100, "web2": 100, "web3": 100}
    model.tell("web2", Standing(share=0.5))
    assert {each: round(count / 10) for each, count in picked(model, 500).items()} == {
        "web1": 20, "web2": 10, "web3": 20,
    }  # fmt: skip
    model.tell("web2", Standing(share=1.0))
    assert {each: round(count / 10) for each, count in picked(model, 300).items()} == {
        "web1": 10, "web2": 10, "web3": 10,
    }  # fmt: skip


def test_a_replica_of_haproxy_that_comes_up_takes_who_waits() -> None:
    places = [Place(name="web1", max_conns=1), Place(name="web2", max_conns=1)]
    model = PROFILES["haproxy@2.6"].model(places)
    model.tell("web2", Standing(up=False))
    _, first = begun(model)
    waiting = model.serve(Request(), now=0.5)
    ticket = next(waiting)
    assert isinstance(ticket, Wait)
    model.tell("web2", Standing())
    assert model.woken() == [ticket]
    asked = waiting.send(None)
    assert isinstance(asked, Attempt)
    assert asked.replica == "web2"
    first.close()


def test_a_waiting_client_that_leaves_after_it_was_woken_gives_its_slot_to_the_next() -> None:
    model = PROFILES["haproxy@2.6"].model([Place(name="web1", max_conns=1)])
    _, first = begun(model)
    second, third = (model.serve(Request(), now=0.5) for _ in range(2))
    tickets = [next(second), next(third)]
    with pytest.raises(StopIteration):
        first.send(Outcome(at=0.5, status=200))
    assert model.woken() == tickets[:1]
    second.close()
    assert model.woken() == tickets[1:]


RETRIES = [
    ("nginx", "error timeout http_503", Outcome(at=0.5, status=503)),
    ("haproxy@2.6", "redispatch", Outcome(at=0.5, fault=Fault.REFUSED)),
    ("haproxy@2.6", "conn-failure 503", Outcome(at=0.5, status=503)),
    ("envoy", "5xx", Outcome(at=0.5, status=500)),
    ("caddy@2.6", "5", Outcome(at=0.5, fault=Fault.REFUSED)),
    ("traefik@3", "3", Outcome(at=0.5, fault=Fault.REFUSED)),
]


@pytest.mark.parametrize(("name", "retry", "outcome"), RETRIES)
def test_retry_is_written_in_the_words_of_each_balancer(name: str, retry: str, outcome: Outcome) -> None:
    _, flow = begun(model_of(name, options=Options(retry=retry)))
    assert isinstance(flow.send(outcome), Attempt)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nginx", Options(retry="erorr"), "got 'erorr'"),
        ("haproxy@2.6", Options(retry="error"), "got 'error'"),
        ("envoy", Options(retry="timeout"), "got 'timeout'"),
        ("caddy@2.6", Options(retry="soon"), "got 'soon'"),
        ("traefik@3", Options(retry="some"), "got 'some'"),
        ("nginx@1.22", Options(sticky="route"), "need nginx 1.31 or later for sticky"),
        ("plain", Options(sticky="route"), "the profile plain has no sticky"),
    ],
)
def test_options_that_a_balancer_does_not_have_are_refused(name: str, options: Options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_of(name, options=options)


@pytest.mark.parametrize("name", ["envoy", "traefik@3"])
def test_a_limit_for_a_replica_is_refused_where_there_is_none(name: str) -> None:
    with pytest.raises(ConfigError, match="has no max_conns: need max_conns=0 for every replica"):
        PROFILES[name].model([Place(name="web1", max_conns=1)])


@pytest.mark.parametrize("name", ["nginx", "haproxy@2.6", "caddy@2.6"])
def test_no_replica_gets_more_than_its_limit(name: str) -> None:
    model = PROFILES[name].model([Place(name=f"web{n}", max_conns=2) for n in (1, 2)])
    held = [begun(model) for _ in range(4)]
    assert Counter(replica for replica, _ in held) == {"web1": 2, "web2": 2}
    assert not isinstance(decide(model, Request(), now=0.5).replica, str)
