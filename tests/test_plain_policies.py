"""The field's policies under their own names: the profile `plain`."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbkit.balancer.exchange import Attempt, Fault, Flow, Outcome, Request, Standing
from lbkit.balancer.explain import decide, moves
from lbkit.balancer.plain import Member, PeakEwma, Plain
from lbkit.balancer.profile import Place, profile_named
from lbkit.errors import ConfigError


def plain(*weights: int, policy: str = "round_robin", limit: int = 0) -> Plain:
    members = [
        Member(f"b{n}", f"10.0.0.{n}:80", weight=weight, limit=limit) for n, weight in enumerate(weights, 1)
    ]
    return Plain(members, policy=policy, rng=Random(3))


def picks(model: Plain, times: int, request: Request | None = None) -> list[str | None]:
    return [decide(model, request or Request()).replica for _ in range(times)]


def inside(model: Plain, times: int, now: float = 0.0) -> list[tuple[str, Flow]]:
    """So many requests that stay inside."""
    held = []
    for _ in range(times):
        flow = model.serve(Request(), now=now)
        asked = next(flow)
        assert isinstance(asked, Attempt)
        held.append((asked.replica, flow))
    return held


def end(flow: Flow, *, at: float = 0.0, fault: Fault | None = None) -> None:
    with pytest.raises(StopIteration):
        flow.send(Outcome(at=at, status=0 if fault else 200, fault=fault))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_weighted_gives_each_its_weight_in_every_cycle(weights: list[int]) -> None:
    model = plain(*weights, policy="weighted")
    for _ in range(2):
        assert Counter(picks(model, sum(weights))) == {f"b{n}": w for n, w in enumerate(weights, 1)}


@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.lists(st.integers(0, 9), max_size=30))
def test_least_conn_never_picks_a_busier_replica_than_one_it_refused(
    weights: list[int], steps: list[int]
) -> None:
    model = plain(*weights, policy="least_conn")
    held: list[Flow] = []
    for step in steps:
        if step < 7 or not held:
            loads = {member.name: member.active / member.weight for member in model.members}
            ((replica, flow),) = inside(model, 1)
            assert loads[replica] == min(loads.values())
            held.append(flow)
        else:
            end(held.pop(step % len(held)))


@given(st.lists(st.integers(0, 6), min_size=2, max_size=6), st.integers(0, 2**32))
def test_two_choices_never_take_the_only_busiest(loads: list[int], seed: int) -> None:
    model = Plain([Member(f"b{n}") for n in range(len(loads))], policy="p2c", rng=Random(seed))
    for member, load in zip(model.members, loads, strict=True):
        member.active = load
    busiest = [member.name for member in model.members if member.active == max(loads)]
    if len(busiest) == 1:
        assert decide(model, Request()).replica not in busiest


def test_a_peak_counts_at_once_and_is_forgotten_slowly() -> None:
    latency = PeakEwma(decay=10.0)
    latency.observe(0.1, 0.0)
    latency.observe(2.0, 1.0)
    assert latency.cost == 2.0
    latency.observe(0.1, 2.0)
    assert 1.7 < latency.cost < 2.0
    assert latency.load(0, 62.0) < 0.01


def test_peak_ewma_does_not_flood_a_replica_that_has_no_history() -> None:
    """With an average of 0 it would look perfect for as long as its first answer is not there."""
    model = plain(1, 1, policy="peak_ewma")
    model.members[0].latency.observe(0.05, 0.0)
    assert Counter(name for name, _ in inside(model, 20))["b2"] == 1


def test_peak_ewma_leaves_a_slow_replica_to_the_others() -> None:
    model = plain(1, 1, 1, policy="peak_ewma")
    counts: Counter[str] = Counter()
    now = 0.0
    for _ in range(300):
        ((name, flow),) = inside(model, 1, now)
        counts[name] += 1
        now += 1.0 if name == "b2" else 0.01
        end(flow, at=now)
    assert counts["b2"] < 30
    assert min(counts["b1"], counts["b3"]) > 100


def test_random_draws_by_weight() -> None:
    counts = Counter(picks(plain(5, 3, 2, policy="random"), 5_000))
    assert [counts[f"b{n}"] / 5_000 for n in (1, 2, 3)] == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


@pytest.mark.parametrize("policy", ["rendezvous uri", "maglev uri", "ketama uri", "bounded uri 125"])
def test_keys_are_spread_by_weight(policy: str) -> None:
    model = plain(5, 3, 2, policy=policy)
    counts = Counter(decide(model, Request(target=f"/{n}")).replica for n in range(4_000))
    shares = [counts[f"b{n}"] / 4_000 for n in (1, 2, 3)]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.06)  # a ring of 1600 points has shares of its own


CONSISTENT = [("rendezvous uri", 1.0), ("ketama uri", 1.0), ("maglev uri", 1.35), ("source", 1.0)]


@pytest.mark.parametrize(("policy", "most"), CONSISTENT)
def test_removing_one_of_ten_moves_about_a_tenth_of_the_keys(policy: str, most: float) -> None:
    places = [Place(name=f"web{n}", address=f"10.0.{n}.7:80") for n in range(1, 11)]
    profile = profile_named("plain")
    found = moves(lambda some: profile.model(some, policy=policy), places, "web4", Request(), keys=2_000)
    assert 0.04 < found.owned / found.keys < 0.2
    assert found.owned <= found.moved <= found.owned * most


@given(st.lists(st.sampled_from(["/a", "/b", "/c"]), max_size=40))
def test_nobody_has_more_than_the_bound_of_a_fair_share(targets: list[str]) -> None:
    model, held = plain(1, 1, 1, 1, policy="bounded uri 125"), []
    for number, target in enumerate(targets, 1):
        flow = model.serve(Request(target=target), now=0.0)
        next(flow)
        held.append(flow)
        assert max(member.active for member in model.members) <= -(-number * 125 // 400)


@pytest.mark.parametrize(
    ("policy", "here", "there"),
    [
        ("rendezvous header x-user", Request(headers={"x-user": "ada"}), Request(headers={"x-user": "bob"})),
        (
            "rendezvous cookie sid",
            Request(headers={"cookie": "sid=1"}),
            Request(headers={"cookie": "sid=22"}),
        ),
        ("rendezvous $arg_id", Request(target="/?id=1"), Request(target="/?id=22")),
        ("rendezvous path", Request(target="/1?x=1"), Request(target="/1?x=2")),
        ("source", Request(client="10.0.0.1"), Request(client="10.0.0.9")),
    ],
)
def test_a_key_stays_where_it_is(policy: str, here: Request, there: Request) -> None:
    model = plain(1, 1, 1, 1, policy=policy)
    assert len(set(picks(model, 5, here))) == 1
    assert len(set(picks(model, 5, there))) == 1
    if policy == "rendezvous path":
        assert picks(model, 1, here) == picks(model, 1, there)


def test_a_request_without_the_key_takes_its_turn() -> None:
    assert picks(plain(1, 1, 1, policy="rendezvous header x-user"), 4) == ["b1", "b2", "b3", "b1"]


def test_who_is_full_gets_nothing_and_all_full_is_a_503() -> None:
    model = plain(1, 1, limit=1)
    held = inside(model, 2)
    assert [name for name, _ in held] == ["b1", "b2"]
    decision = decide(model, Request())
    assert (decision.replica, decision.status) == (None, 503)
    assert decision.skipped["b1"] == "full: 1 of 1 requests"
    end(held[1][1])
    assert picks(model, 2) == ["b2", "b2"]


def test_weights_are_honoured_unless_the_policy_that_is_asked_for_has_none() -> None:
    places = [Place(name="web1", weight=3), Place(name="web2")]
    profile = profile_named("plain")
    assert profile.policy_of(places) == "weighted"
    model = profile.model(places)
    assert Counter(decide(model, Request()).replica for _ in range(8)) == {"web1": 6, "web2": 2}
    with pytest.raises(ConfigError, match="need the policy weighted"):
        profile.model(places, policy="round_robin")


def test_a_share_takes_weight_from_a_degraded_replica_alone() -> None:
    model = plain(1, 1, policy="weighted")
    model.tell("b2", Standing(share=0.25))
    assert Counter(picks(model, 500)) == {"b1": 400, "b2": 100}
    model.tell("b2", Standing())
    assert Counter(picks(model, 200)) == {"b1": 100, "b2": 100}


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("fair", r"need a policy \(round_robin, weighted, .*'fair'"),
        ("rendezvous", "need a policy"),
        ("rendezvous nonsense", "need a key"),
        ("rendezvous $nonsense", "need a variable"),
        ("bounded uri 80", "need a bound of at least 100"),
        ("bounded uri", "need a policy"),
        ("round_robin twice", "need a policy"),
    ],
)
def test_a_policy_that_is_none_is_answered_with_the_known_ones(policy: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plain(1, 1, policy=policy)


def test_rings_and_tables_that_are_too_big_are_refused_when_the_pool_is_made() -> None:
    with pytest.raises(ConfigError, match="need a total weight of at most 50000 for a ring"):
        plain(30_000, 30_000, policy="ketama uri")
    with pytest.raises(ConfigError, match="need at most 6553 replicas for a table of 65537"):
        Plain([Member(f"b{n}") for n in range(6_600)], policy="maglev uri")
    with pytest.raises(ConfigError, match="need 1 <= weight <= 65535, got weight=0 for b1"):
        plain(0)
