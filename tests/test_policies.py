"""What balancing policies promise, and the traps into which textbook versions of them fall."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbkit.balancer.caddy import Caddy, Passive, Upstream
from lbkit.balancer.chance import Chance
from lbkit.balancer.envoy import Envoy, Host
from lbkit.balancer.envoy import Retries as EnvoyRetries
from lbkit.balancer.envoy.policy import FullScan, RoundRobin
from lbkit.balancer.exchange import Answer, Attempt, Fault, Flow, Model, Outcome, Request, Standing, Wait
from lbkit.balancer.explain import decide, moves
from lbkit.balancer.haproxy import Haproxy, Health, HealthRules, slow_start
from lbkit.balancer.haproxy import Retries as HaproxyRetries
from lbkit.balancer.haproxy import Server as HaproxyServer
from lbkit.balancer.nginx import Nginx, Server, Sticky
from lbkit.balancer.profile import Place, profile_named
from lbkit.balancer.replica import Mode
from lbkit.balancer.traefik import Member, Traefik

Weights = st.lists(st.integers(1, 12), min_size=2, max_size=6)


def nginx(*weights: int, method: str = "", fail_timeout: float = 10, **options: object) -> Nginx:
    servers = [
        Server(name=f"b{n}", address=f"10.0.0.{n}:80", weight=weight, fail_timeout=fail_timeout)
        for n, weight in enumerate(weights, 1)
    ]
    return Nginx(servers, method=method, **options)  # type: ignore[arg-type]


def haproxy(*weights: int, maxconn: int = 0, **options: object) -> Haproxy:
    servers = [
        HaproxyServer(name=f"b{n}", address=f"10.0.0.{n}:80", id=n, weight=weight, maxconn=maxconn)
        for n, weight in enumerate(weights, 1)
    ]
    return Haproxy(servers, **options)  # type: ignore[arg-type]


def caddy(count: int, policy: str = "round_robin", **options: object) -> Caddy:
    upstreams = [Upstream(f"b{n}", f"10.0.0.{n}:80") for n in range(1, count + 1)]
    return Caddy(upstreams, policy=policy, **options)  # type: ignore[arg-type]


def traefik(*weights: float, **options: object) -> Traefik:
    members = [Member(f"b{n}", f"http://10.0.0.{n}", weight) for n, weight in enumerate(weights, 1)]
    return Traefik(members, **options)  # type: ignore[arg-type]


def envoy(count: int, **options: object) -> Envoy:
    hosts = [Host(name=f"b{n}", address=f"10.0.0.{n}:80") for n in range(1, count + 1)]
    turns = iter(range(10**9))
    return Envoy(
        hosts,
        chooser=lambda some, _: RoundRobin(some, turns=turns, start=0),
        **options,  # type: ignore[arg-type]
    )


def picks(model: Model, times: int, *, now: float = 0.5, request: Request | None = None) -> list[str | None]:
    return [decide(model, request or Request(), now=now).replica for _ in range(times)]


def hold(model: Model, request: Request | None = None) -> tuple[str, Flow]:
    """A request that stays inside: which replica it is at, and the flow to end it with."""
    flow = model.serve(request or Request(), now=0.5)
    asked = next(flow)
    assert isinstance(asked, Attempt)
    return asked.replica, flow


def fill(model: Model, times: int, request: Request | None = None) -> tuple[Counter[str], list[Flow]]:
    """So many requests that stay inside: how many each replica has, and the flows. A flow let go of ends."""
    held = [hold(model, request) for _ in range(times)]
    return Counter(name for name, _ in held), [flow for _, flow in held]


def end(flow: Flow, outcome: Outcome | None = None) -> Answer:
    try:
        flow.send(outcome or Outcome(at=0.5, status=200))
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer
    raise AssertionError("it goes on")


def run(model: Model, broken: dict[str, Fault], request: Request | None = None, now: float = 0.5) -> Answer:
    """One request, from end to end; the replicas in `broken` fail in that way."""
    flow = model.serve(request or Request(), now=now)
    try:
        asked = next(flow)
        while True:
            assert isinstance(asked, Attempt)
            fault = broken.get(asked.replica)
            asked = flow.send(Outcome(at=now, status=0 if fault else 200, fault=fault))
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer


# -- weights


@given(Weights)
def test_smooth_weighted_round_robin_gives_each_its_weight_in_every_cycle(weights: list[int]) -> None:
    model = nginx(*weights)
    for _ in range(3):
        assert Counter(picks(model, sum(weights))) == {f"b{n}": w for n, w in enumerate(weights, 1)}


@given(
    st.integers(1, 5),
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from(["b2", "b3", "b1"]),
            st.sampled_from(["", "down", "up", "drain", *Fault]),
            st.integers(0, 3),
        ),
        max_size=30,
    ),
)
def test_the_short_cut_of_equal_weights_gives_the_sequence_of_the_rule(
    weight: int, backup: bool, steps: list[tuple[str, str | Fault, int]]
) -> None:
    """A limit that nobody reaches makes servers that differ, so that nothing is cut short."""
    servers = [
        Server(name=f"b{n}", address=f"b{n}", weight=weight, fail_timeout=2, backup=backup and n == 3)
        for n in (1, 2, 3)
    ]
    quick, slow = Nginx(servers), Nginx([replace(server, max_conns=10**6) for server in servers])
    now = 0.5
    for name, what, seconds in steps:
        now += seconds
        for model in (quick, slow):
            if what in ("down", "up", "drain"):
                mode = Mode.DRAIN if what == "drain" else Mode.READY
                model.tell(name, Standing(up=what != "down", mode=mode))
        broken = {name: what} if isinstance(what, Fault) else {}
        assert run(quick, broken, now=now) == run(slow, broken, now=now)


@given(Weights)
def test_static_round_robin_gives_each_its_weight_in_every_cycle(weights: list[int]) -> None:
    model = haproxy(*weights, balance="static-rr")
    for _ in range(2):
        assert Counter(picks(model, sum(weights))) == {f"b{n}": w for n, w in enumerate(weights, 1)}


@given(Weights)
def test_haproxys_round_robin_gives_each_its_weight_over_many_cycles(weights: list[int]) -> None:
    counts = Counter(picks(haproxy(*weights), 20 * sum(weights)))
    for number, weight in enumerate(weights, 1):
        assert abs(counts[f"b{number}"] - 20 * weight) <= 2


@given(Weights)
def test_traefiks_round_robin_gives_each_its_weight_over_many_cycles(weights: list[int]) -> None:
    counts = Counter(picks(traefik(*weights), 20 * sum(weights)))
    for number, weight in enumerate(weights, 1):
        assert abs(counts[f"b{number}"] - 20 * weight) <= 2


def test_five_balancers_spread_the_same_weights_in_their_own_orders() -> None:
    assert picks(nginx(5, 1, 1), 7) == ["b1", "b1", "b2", "b1", "b3", "b1", "b1"]
    assert picks(haproxy(5, 1, 1), 7) == ["b1", "b1", "b1", "b2", "b1", "b1", "b3"]
    assert picks(traefik(5, 1, 1), 7) == ["b1", "b1", "b1", "b1", "b3", "b1", "b2"]
    assert picks(caddy(3), 4) == ["b2", "b3", "b1", "b2"]  # it counts before it picks


# -- load


LEAST: dict[str, Callable[[], tuple[Model, Callable[[], dict[str, float]]]]] = {}


def least(name: str) -> Callable[[Callable[[], tuple[Model, Callable[[], dict[str, float]]]]], None]:
    def register(make: Callable[[], tuple[Model, Callable[[], dict[str, float]]]]) -> None:
        LEAST[name] = make

    return register


@least("nginx least_conn")
def _() -> tuple[Model, Callable[[], dict[str, float]]]:
    model = nginx(3, 1, 2, method="least_conn")
    return model, lambda: {p.server.name: p.conns / p.weight for p in model.peers}


@least("haproxy leastconn")
def _() -> tuple[Model, Callable[[], dict[str, float]]]:
    model = haproxy(1, 1, 1, balance="leastconn")
    return model, lambda: {node.name: node.served for node in model.nodes}


@least("caddy least_conn")
def _() -> tuple[Model, Callable[[], dict[str, float]]]:
    model = caddy(3, "least_conn", chance=Chance(Random(3)))
    return model, lambda: {upstream.name: upstream.active for upstream in model.upstreams}


@least("envoy full scan")
def _() -> tuple[Model, Callable[[], dict[str, float]]]:
    hosts = [Host(name=f"b{n}", address=f"10.0.0.{n}:80") for n in (1, 2, 3)]
    chance = Chance(Random(3))
    model = Envoy(hosts, chooser=lambda some, _: FullScan(some, chance=chance), chance=chance)
    return model, lambda: {host.name: host.active for host in hosts}


@pytest.mark.parametrize("name", LEAST)
@given(data=st.data())
def test_no_policy_picks_a_busier_replica_than_one_it_refused(name: str, data: st.DataObject) -> None:
    model, load = LEAST[name]()
    inside: list[Flow] = []
    for arrives in data.draw(st.lists(st.booleans(), max_size=40)):
        if arrives or not inside:
            before = load()
            replica, flow = hold(model)
            assert before[replica] == min(before.values())
            inside.append(flow)
        else:
            end(inside.pop(data.draw(st.integers(0, len(inside) - 1))))


def test_traefiks_two_choices_never_take_the_busiest_of_all() -> None:
    model = traefik(1, 1, 1, 1, strategy="p2c", chance=Chance(Random(5)))
    model.members[2].active = 9
    assert "b3" not in picks(model, 300)


def test_least_connections_looks_at_weights() -> None:
    model = nginx(3, 1, method="least_conn")
    inside, _flows = fill(model, 8)
    assert inside == {"b1": 6, "b2": 2}


def test_idle_servers_of_haproxys_leastconn_take_turns_whatever_their_weight() -> None:
    assert picks(haproxy(5, 1, 1, balance="leastconn"), 6) == ["b1", "b2", "b3"] * 2


def test_a_new_server_is_not_flooded_by_nginx_and_is_by_traefik() -> None:
    """With an average of 0 it looks perfect. nginx rounds up to 20 ms and multiplies by what is in flight."""
    group, service = nginx(1, 1, 1, method="least_time header"), traefik(1, 1, 1, strategy="leasttime")
    for peer, member in zip(group.peers[:2], service.members[:2], strict=True):
        peer.header_time = 50
        member.times.append(0.05)
    bounded, _group_flows = fill(group, 30)
    flooded, _service_flows = fill(service, 30)
    assert bounded["b3"] < 20
    assert flooded == {"b3": 30}


def test_random_two_on_an_idle_pool_has_not_the_shares_of_the_weights() -> None:
    counts = Counter(picks(nginx(5, 3, 1, method="random two", rng=Random(7)), 20_000))
    shares = [counts[f"b{n}"] / 20_000 for n in (1, 2, 3)]
    assert shares == pytest.approx([0.347, 0.458, 0.194], abs=0.015)


# -- keys


def test_ip_hash_takes_a_whole_network_for_one_client() -> None:
    model = nginx(1, 1, 1, method="ip_hash")
    homes = {decide(model, Request(client=f"10.1.2.{last}")).replica for last in range(256)}
    assert len(homes) == 1


def test_a_server_that_is_down_leaves_the_other_keys_of_nginx_where_they_are() -> None:
    place = [Place(name=f"web{n}") for n in range(1, 6)]
    down = [Place(name=p.name, down=p.name == "web2") for p in place]
    profile = profile_named("nginx")
    before, after = (profile.model(some, policy="hash $request_uri") for some in (place, down))
    for number in range(500):
        request = Request(target=f"/{number}")
        home = decide(before, request).replica
        now_at = decide(after, request).replica
        assert now_at == home or home == "web2"


CONSISTENT = [
    ("nginx", "hash $request_uri consistent", 1.0),
    ("haproxy@2.6", "uri; hash-type consistent", 1.35),  # the nearest point, not the next one
    ("envoy", "RING_HASH x-user", 2.0),  # about 1024 points in all: the others get more of them
    ("envoy", "MAGLEV x-user", 1.35),
    ("caddy@2.6", "uri_hash", 1.0),
    ("traefik@3", "hrw", 1.0),
]


@pytest.mark.parametrize(("name", "policy", "most"), CONSISTENT)
def test_removing_one_of_ten_moves_about_a_tenth_of_the_keys(name: str, policy: str, most: float) -> None:
    places = [Place(name=f"web{n}", address=f"10.0.{n}.7:80{n:02}") for n in range(1, 11)]
    profile = profile_named(name)
    request = Request(headers={"x-user": "u"})
    # The last one: HAProxy numbers its servers, and those behind a removed one get another number.
    found = moves(lambda some: profile.model(some, policy=policy), places, "web10", request, keys=4_000)
    assert 0.04 < found.owned / found.keys < 0.2
    assert found.owned <= found.moved <= found.owned * most


@pytest.mark.parametrize(("name", "policy"), [("nginx", "hash $request_uri"), ("haproxy@2.6", "uri")])
def test_removing_one_of_ten_moves_nearly_all_keys_without_a_ring(name: str, policy: str) -> None:
    places = [Place(name=f"web{n}") for n in range(1, 11)]
    profile = profile_named(name)
    found = moves(lambda some: profile.model(some, policy=policy), places, "web10", Request(), keys=2_000)
    assert found.moved > 0.7 * found.keys


def test_haproxys_ring_moves_more_when_a_server_in_the_middle_is_removed() -> None:
    """Its points come from the number of the server, not from its address."""
    places = [Place(name=f"web{n}") for n in range(1, 11)]
    profile = profile_named("haproxy@2.6")

    def moved(without: str) -> int:
        make = lambda some: profile.model(some, policy="uri; hash-type consistent")  # noqa: E731
        return moves(make, places, without, Request(), keys=2_000).moved

    assert moved("web2") > 3 * moved("web10")


@pytest.mark.parametrize(
    ("name", "policy"), [("nginx", "hash $http_x_user"), ("nginx", "hash $http_x_user consistent")]
)
def test_a_missing_key_never_fails(name: str, policy: str) -> None:
    places = [Place(name=f"web{n}") for n in range(1, 4)]
    assert None not in picks(profile_named(name).model(places, policy=policy), 9)


def test_a_bounded_load_is_never_exceeded() -> None:
    model = haproxy(1, 1, 1, 1, balance="uri", hash_type="consistent", balance_factor=125)
    inside = []
    for served in range(1, 41):
        inside.append(hold(model, Request(target="/the-same")))
        assert max(node.served for node in model.nodes) <= max(1, -(-served * 125 // 100 // 4) + 1)


# -- failures


def test_nginx_sends_exactly_one_probe_when_fail_timeout_is_over() -> None:
    model = nginx(1, 1, fail_timeout=2)
    assert run(model, {"b1": Fault.REFUSED}, now=1.5).attempts == ("b1", "b2")
    assert picks(model, 20, now=3.5) == ["b2"] * 20  # 2 s are 2 to 3 s: whole seconds
    tried = [run(model, {"b1": Fault.REFUSED}, now=4.5).attempts for _ in range(20)]
    assert sum("b1" in attempts for attempts in tried) == 1


def test_a_failure_that_is_forgiven_by_nothing_adds_up_in_nginx_and_is_forgotten_by_caddy() -> None:
    servers = [Server(name=f"b{n}", address=f"b{n}", max_fails=2, fail_timeout=10) for n in (1, 2)]
    group = Nginx(servers)
    proxy = caddy(2, "first", passive=Passive(fail_duration=2, max_fails=2))
    for now in (1.5, 9.5):
        run(group, {"b1": Fault.REFUSED}, now=now)
        run(group, {}, now=now)
        run(proxy, {"b1": Fault.REFUSED}, now=now)
    assert picks(group, 5, now=9.5) == ["b2"] * 5
    assert picks(proxy, 5, now=9.5) == ["b1"] * 5


def test_the_first_failed_check_takes_a_server_of_haproxy_down_and_later_ones_do_not() -> None:
    health = Health(HealthRules(rise=2, fall=3))
    health.check(passed=False)
    assert not health.up
    for _ in range(2):
        health.check(passed=True)
    assert (health.up, health.health) == (True, 4)
    health.check(passed=False)
    health.check(passed=False)
    assert health.up
    health.check(passed=False)
    assert not health.up


def test_slow_start_begins_with_a_sixteenth_and_ends_on_time() -> None:
    sixteenths = [slow_start(second, 8) for second in range(10)]
    assert sixteenths == [1, 3, 5, 7, 9, 11, 13, 15, 16, 16]


def test_a_refused_server_keeps_its_clients_in_nginx_until_they_move_for_good() -> None:
    model = nginx(1, 1, 1, fail_timeout=2, sticky=Sticky(mode="cookie", name="srv"))
    bound = Request(headers={"cookie": f"srv={model.peers[1].sid}"})
    assert run(model, {}, bound).replica == "b2"
    moved = run(model, {"b2": Fault.REFUSED}, bound)
    assert moved.attempts[0] == "b2"
    after = Request(headers={"cookie": moved.set_cookie[0]})
    assert [run(model, {}, after, now=60.5).replica for _ in range(5)] == [moved.replica] * 5


def everyone_down(name: str) -> Model:
    return profile_named(name).model([Place(name=f"web{n}", down=True) for n in (1, 2, 3)])


@pytest.mark.parametrize(
    ("name", "status"),
    [("nginx", 502), ("haproxy@2.6", 503), ("caddy@2.6", 503), ("traefik@3", 503), ("plain", 503)],
)
def test_what_a_client_gets_when_all_are_down(name: str, status: int) -> None:
    decision = decide(everyone_down(name), Request())
    assert (decision.replica, decision.status) == (None, status)
    assert set(decision.skipped) == {"web1", "web2", "web3"}


def test_envoy_panics_when_all_are_down() -> None:
    assert set(picks(everyone_down("envoy"), 9)) == {"web1", "web2", "web3"}


UP_AND_DOWN = {
    "haproxy": lambda: (haproxy(2, 1, 1), lambda model, name, up: model.tell(name, Standing(up=up))),
    "haproxy leastconn": lambda: (
        haproxy(2, 1, 1, balance="leastconn"),
        lambda model, name, up: model.tell(name, Standing(up=up)),
    ),
    "traefik": lambda: (traefik(2, 1, 1), lambda model, name, up: model.tell(name, Standing(up=up))),
    "caddy": lambda: (
        caddy(3),
        lambda model, name, up: model.tell(name, Standing(up=up)),
    ),
    "envoy without panic": lambda: (
        envoy(3, panic_below=0),
        lambda model, name, up: model.tell(name, Standing(up=up)),
    ),
}


@pytest.mark.parametrize("name", UP_AND_DOWN)
@given(changes=st.lists(st.tuples(st.sampled_from(["b2", "b3", "b1"]), st.booleans()), max_size=30))
def test_nobody_who_is_known_to_be_down_gets_a_request_while_another_is_up(
    name: str, changes: list[tuple[str, bool]]
) -> None:
    model, change = UP_AND_DOWN[name]()
    up = {"b1", "b2", "b3"}
    for replica, is_up in changes:
        change(model, replica, is_up)
        up = up | {replica} if is_up else up - {replica}
        for picked in picks(model, 3):
            assert picked in up if up else picked is None


@given(st.lists(st.tuples(st.sampled_from(["b2", "b3", "b1"]), st.booleans()), max_size=40))
def test_nginx_skips_who_failed_while_another_is_usable(steps: list[tuple[str, bool]]) -> None:
    model = nginx(1, 2, 1, fail_timeout=10**6)
    failed: set[str] = set()
    for name, fails in steps:
        tried = run(model, {name: Fault.REFUSED} if fails else {}).attempts
        assert not failed & set(tried)
        if fails and name in tried:
            failed.add(name)


# -- what goes in comes out


BUSY: dict[str, Callable[[], tuple[Model, Callable[[], Sequence[int]]]]] = {}


def busy(make: Callable[[], tuple[Model, Callable[[], Sequence[int]]]]) -> None:
    BUSY[make.__name__] = make


@busy
def of_nginx() -> tuple[Model, Callable[[], Sequence[int]]]:
    model = nginx(3, 1, 1)
    return model, lambda: [peer.conns for peer in model.peers]


@busy
def of_haproxy() -> tuple[Model, Callable[[], Sequence[int]]]:
    model = haproxy(3, 1, 1, retries=HaproxyRetries(redispatch=-1))
    return model, lambda: [node.served for node in model.nodes]


@busy
def of_envoy() -> tuple[Model, Callable[[], Sequence[int]]]:
    model = envoy(3, retries=EnvoyRetries(on=frozenset({"5xx"}), count=2))
    return model, lambda: [host.active for host in model.hosts]


@busy
def of_caddy() -> tuple[Model, Callable[[], Sequence[int]]]:
    model = caddy(3)
    return model, lambda: [upstream.active for upstream in model.upstreams]


@busy
def of_traefik() -> tuple[Model, Callable[[], Sequence[int]]]:
    model = traefik(3, 1, 1, retries=3)
    return model, lambda: [member.active for member in model.members]


@pytest.mark.parametrize("name", BUSY)
@given(
    faults=st.lists(st.dictionaries(st.sampled_from(["b1", "b2", "b3"]), st.sampled_from(Fault)), max_size=20)
)
def test_every_request_that_was_counted_in_is_counted_out(name: str, faults: list[dict[str, Fault]]) -> None:
    model, load = BUSY[name]()
    for broken in faults:
        run(model, broken)
        assert not any(load())


# -- retries: what was sent is not run twice unless the balancer does so


POST = Request(method="POST", body=True)


@pytest.mark.parametrize(
    ("model", "request_", "attempts"),
    [
        (nginx(1, 1), POST, 1),
        (nginx(1, 1), Request(method="PUT", body=True), 2),
        (haproxy(1, 1, retries=HaproxyRetries(redispatch=1)), POST, 1),
        (
            haproxy(1, 1, retries=HaproxyRetries(redispatch=1, on=frozenset({"empty-response"}))),
            POST,
            2,
        ),
        (envoy(2), POST, 1),
        (envoy(2, retries=EnvoyRetries(on=frozenset({"5xx"}))), POST, 2),
        (caddy(2, "first"), POST, 1),
        (traefik(1, 1, retries=3), Request(), 1),
    ],
    ids=["nginx POST", "nginx PUT", "haproxy", "haproxy L7", "envoy", "envoy 5xx", "caddy", "traefik GET"],
)
def test_who_sends_a_request_again_that_broke_after_it_was_sent(
    model: Model, request_: Request, attempts: int
) -> None:
    first = {f"b{n}": Fault.RESET for n in (1, 2)}
    assert len(set(run(model, first, request_).attempts)) == attempts


def test_nothing_is_lost_when_a_post_was_refused() -> None:
    assert run(nginx(1, 1), {"b1": Fault.REFUSED}, POST).replica == "b2"


# -- queues and operators


def test_a_queue_of_haproxy_is_served_in_the_order_of_arrival() -> None:
    model = haproxy(1, 1, maxconn=1)
    _, first = hold(model)
    _, second = hold(model)
    waiting = [model.serve(Request(), now=0.5) for _ in range(2)]
    waits = [next(flow) for flow in waiting]
    assert all(isinstance(wait, Wait) for wait in waits)
    end(second)
    assert model.woken() == [waits[0]]
    assert next_replica(waiting[0]) == "b2"
    end(first)
    assert model.woken() == [waits[1]]
    assert next_replica(waiting[1]) == "b1"


def next_replica(flow: Flow) -> str:
    asked = flow.send(None)
    assert isinstance(asked, Attempt)
    return asked.replica


def test_a_queue_that_takes_too_long_is_a_503() -> None:
    model = haproxy(1, maxconn=1)
    _inside = hold(model)
    flow = model.serve(Request(), now=0.5)
    next(flow)
    with pytest.raises(StopIteration) as stopped:
        flow.throw(TimeoutError())
    assert stopped.value.value.status == 503


def test_a_drained_server_of_haproxy_gets_nothing_new_and_returns_after_about_one_turn() -> None:
    model = haproxy(1, 1, 1)
    model.tell("b2", Standing(mode=Mode.DRAIN))
    assert "b2" not in picks(model, 12)
    assert decide(model, Request()).skipped["b2"] == "admin state drain"
    model.tell("b2", Standing())
    assert "b2" in picks(model, 6)
