"""Sticky clients of the mini balancer: what is said here of one gateway is said of the other."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import httpx
import pytest

from lbkit import Mode, SourceAddress, Sticky, TrustedProxies, asgi, wsgi
from lbkit.balancer import ReplicaState, RequestKey
from lbkit.sticky import Reason, Route

OLD, NEW = "old " * 8, "new " * 8
NOW = 1_790_000_000.0
STICKY = Sticky(secret_keys=[NEW, OLD])
NAMES = ("web1", "web2", "web3")
BODY = "the app"
HEADERS = [("content-type", "text/plain"), ("set-cookie", "session=abc")]


async def asgi_app(scope: Any, _receive: Any, send: Any) -> None:
    if scope["path"] == "/broken":
        raise ValueError
    headers = [(name.encode(), value.encode()) for name, value in HEADERS]
    if scope["path"] == "/own":
        headers.append((b"set-cookie", b"lb=own.aaaaaa.bbb; Path=/"))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY.encode()})


def wsgi_app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/broken":
        raise ValueError
    own = [("set-cookie", "lb=own.aaaaaa.bbb; Path=/")] if environ["PATH_INFO"] == "/own" else []
    start_response("200 OK", [*HEADERS, *own])
    return [BODY.encode()]


class Site:
    """A balancer over three replicas, asked without a server."""

    def __init__(self, gateway: str, **settings: Any) -> None:
        self.gateway = gateway
        self.proxies: TrustedProxies | None = settings.pop("proxies", None)
        settings = {"sticky": STICKY, "wall": lambda: NOW, **settings}
        if gateway == "asgi":
            self.balancer: Any = asgi.Balancer([asgi_app] * 3, **settings)
        else:
            self.balancer = wsgi.Balancer([wsgi_app] * 3, **settings)

    def ask(self, path: str = "/", *, peer: str = "192.0.2.7", **headers: str) -> httpx.Response:
        request = httpx.Request("GET", f"https://shop.example{path}", headers={
            name.replace("_", "-"): value for name, value in headers.items()
        })  # fmt: skip
        carrier: Any = {"asgi": asgi, "wsgi": wsgi}[self.gateway]
        app = carrier.ForwardedMiddleware(self.balancer, self.proxies) if self.proxies else self.balancer
        if self.gateway == "wsgi":
            with httpx.Client(transport=httpx.WSGITransport(app, remote_addr=peer)) as client:
                return client.send(request)

        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(peer, 1))) as client:
                return await client.send(request)

        return asyncio.run(send())

    def stays(self, value: str, times: int = 3) -> Counter[str]:
        answers = [self.ask(cookie=f"a=1; lb={value}") for _ in range(times)]
        assert all(given(answer) is None for answer in answers)
        return Counter(replica(answer) for answer in answers)


def replica(answer: httpx.Response) -> str:
    return str(answer.headers["x-lbkit-replica"])


def given(answer: httpx.Response) -> str | None:
    """The value of the route cookie, of which an answer has one at most."""
    ours = [line for line in answer.headers.get_list("set-cookie") if line.startswith("lb=")]
    assert len(ours) <= 1
    return ours[0][3:].partition(";")[0] if ours else None


@pytest.fixture(params=["asgi", "wsgi"])
def gateway(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def site(gateway: str) -> Site:
    return Site(gateway)


def test_a_new_client_is_balanced_and_stays_where_it_landed(site: Site) -> None:
    first = [site.ask() for _ in range(6)]
    assert [replica(answer) for answer in first] == [*NAMES] * 2
    for answer in first:
        value = given(answer)
        assert value is not None
        assert STICKY.decode(value, NOW) == Route(replica(answer), int(NOW), 0)
        assert site.stays(value) == {replica(answer): 3}
        assert answer.headers["cache-control"] == "private"


def test_the_cookie_is_the_one_that_replicas_and_real_balancers_speak(site: Site) -> None:
    assert site.stays(STICKY.encode("web2", NOW), 7) == {"web2": 7}


def test_a_draining_replica_keeps_its_clients_and_gets_no_new_ones(site: Site) -> None:
    site.balancer.pool.set_mode("web2", Mode.DRAIN)
    assert {replica(site.ask()) for _ in range(8)} == {"web1", "web3"}
    assert site.stays(STICKY.encode("web2", NOW)) == {"web2": 3}


def test_a_dead_replicas_client_moves_at_once_and_stays_there_when_the_old_one_returns(site: Site) -> None:
    site.balancer.pool.set_mode("web2", Mode.MAINT)
    moved = site.ask(cookie=f"lb={STICKY.encode('web2', NOW)}")
    value = given(moved)
    assert replica(moved) != "web2"
    assert value is not None
    assert site.balancer.stick.moves[Reason.DOWN] == 1
    site.balancer.pool.set_mode("web2", Mode.READY)
    assert site.stays(value) == {replica(moved): 3}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Sticky(secret_keys=["x" * 16]).encode("web1", NOW), Reason.FORGED),
        ("web1", Reason.MALFORMED),
        ("x" * 4000, Reason.OVERSIZED),
        (STICKY.encode("web9", NOW), Reason.UNKNOWN),
        (Sticky(secret_keys=[NEW]).encode("web1", NOW - 101), Reason.EXPIRED),
    ],
)
def test_a_cookie_that_says_nothing_is_plain_balancing_and_counted(
    gateway: str, value: str, reason: Reason
) -> None:
    site = Site(gateway, sticky=Sticky(secret_keys=[NEW, OLD], max_age=100))
    answers = [site.ask(cookie=f"lb={value}") for _ in range(6)]
    assert [replica(answer) for answer in answers] == [*NAMES] * 2
    assert all(given(answer) for answer in answers)
    assert {reason: count for reason, count in site.balancer.stick.moves.items() if count} == {reason: 6}


def test_a_key_rotates_without_a_client_moving(gateway: str) -> None:
    """Two balancers in the middle of a rollout, one with the old list and one with the new."""
    before = Site(gateway, sticky=Sticky(secret_keys=[OLD, NEW]))
    after = Site(gateway, sticky=Sticky(secret_keys=[NEW, OLD]))
    value = given(before.ask()) or ""
    for site in (after, before, after, before):
        answer = site.ask(cookie=f"lb={value}")
        assert replica(answer) == "web1"
        value = given(answer) or value
    moves = [
        reason for site in (before, after) for reason, count in site.balancer.stick.moves.items() if count
    ]
    assert moves == [Reason.ABSENT]


def test_an_opaque_cookie_is_followed_and_shows_no_name(gateway: str) -> None:
    site = Site(gateway, sticky=Sticky(secret_keys=[NEW], opaque=True))
    answer = site.ask()
    value = given(answer) or ""
    assert "web" not in value
    assert site.stays(value) == {replica(answer): 3}


def test_the_balancers_word_is_the_last(site: Site) -> None:
    """A replica that calls itself otherwise, by its host name say, would bind its clients to nobody."""
    fresh = site.ask("/own")
    assert fresh.headers.get_list("set-cookie") == ["session=abc", STICKY.set_cookie("web1", NOW)]
    pinned = site.ask("/own", cookie=f"lb={given(fresh)}")
    assert pinned.headers.get_list("set-cookie") == ["session=abc"]


def test_an_answer_that_the_replica_did_not_give_binds_nobody_to_it(site: Site) -> None:
    answer = site.ask("/broken")
    assert (answer.status_code, given(answer)) == (502, None)


def test_a_prober_gets_no_cookie(site: Site) -> None:
    assert given(site.ask("/health")) is None


def test_when_no_replica_takes_new_clients_they_get_503_and_the_bound_are_served(site: Site) -> None:
    for name in NAMES:
        site.balancer.pool.set_mode(name, Mode.DRAIN)
    answer = site.ask()
    assert (answer.status_code, answer.headers["retry-after"], given(answer)) == (503, "1", None)
    assert site.stays(STICKY.encode("web3", NOW)) == {"web3": 3}
    assert [state.active for state in site.balancer.pool.states] == [0, 0, 0]


def test_without_sticky_there_is_no_cookie_and_one_that_comes_is_not_followed(gateway: str) -> None:
    site = Site(gateway, sticky=None)
    answers = [site.ask("/own", cookie=f"lb={STICKY.encode('web2', NOW)}") for _ in range(3)]
    assert [replica(answer) for answer in answers] == [*NAMES]
    assert [given(answer) for answer in answers] == ["own.aaaaaa.bbb"] * 3  # the app's own business


def test_a_source_address_goes_to_one_replica(gateway: str) -> None:
    site = Site(gateway, sticky=None, policy=SourceAddress())
    clients = [f"203.0.113.{number}" for number in range(30)]
    landed = {client: {replica(site.ask(peer=client)) for _ in range(2)} for client in clients}
    assert all(len(replicas) == 1 for replicas in landed.values())
    assert set.union(*landed.values()) == {*NAMES}


def test_a_source_address_is_the_clients_and_not_what_a_client_claims(gateway: str) -> None:
    site = Site(gateway, sticky=None, policy=SourceAddress(), proxies=TrustedProxies(["10.0.0.0/8"]))
    clients = [f"203.0.113.{number}" for number in range(20)]
    direct = [replica(site.ask(peer=client)) for client in clients]
    chains = [f"6.6.6.6, {client}" for client in clients]
    assert [replica(site.ask(peer="10.0.0.1", x_forwarded_for=chain)) for chain in chains] == direct
    assert [replica(site.ask(peer=client, x_forwarded_for="6.6.6.6")) for client in clients] == direct


def test_a_policy_of_ones_own_can_look_at_the_request(gateway: str) -> None:
    class ByTenant:
        def pick_for(self, key: RequestKey, candidates: Any, /) -> ReplicaState:
            assert (key.client, key.path) == ("192.0.2.7", "/orders")
            state: ReplicaState = candidates[int(key.header("x-tenant"))]
            return state

    site = Site(gateway, sticky=None, policy=ByTenant())
    assert [replica(site.ask("/orders", x_tenant=str(n))) for n in (2, 0, 2)] == ["web3", "web1", "web3"]


def test_from_factory_takes_the_same_settings(gateway: str) -> None:
    carrier: Any = {"asgi": (asgi, asgi_app), "wsgi": (wsgi, wsgi_app)}[gateway]
    site = Site(gateway)
    site.balancer = carrier[0].Balancer.from_factory(lambda: carrier[1], sticky=STICKY, wall=lambda: NOW)
    assert site.stays(STICKY.encode("web3", NOW)) == {"web3": 3}


def test_the_wall_clock_of_the_process_dates_the_cookie(gateway: str) -> None:
    site = Site(gateway, wall=time.time)
    before = int(time.time())
    route = STICKY.decode(given(site.ask()) or "", NOW)
    assert isinstance(route, Route)
    assert before <= route.signed_at <= time.time()


def socket(balancer: Any, *, extensions: tuple[str, ...] = (), cookie: str = "") -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    scope = {
        "type": "websocket", "path": "/ws", "scheme": "ws", "client": ("192.0.2.7", 1),
        "headers": [(b"cookie", cookie.encode())], "extensions": {key: {} for key in extensions},
    }  # fmt: skip
    asyncio.run(balancer(scope, receive, send))
    return sent


async def accepting(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": 1000})


def test_a_websocket_is_bound_by_the_answer_to_its_handshake_and_stays() -> None:
    balancer = asgi.Balancer([accepting] * 3, sticky=STICKY, wall=lambda: NOW)
    accept = socket(balancer)[0]
    assert (b"set-cookie", STICKY.set_cookie("web1", NOW).encode()) in accept["headers"]
    pinned = socket(balancer, cookie=f"lb={STICKY.encode('web3', NOW)}")[0]
    assert pinned["headers"] == [(b"x-lbkit-replica", b"web3")]


def test_a_websocket_that_no_replica_takes_is_told_to_try_again() -> None:
    balancer = asgi.Balancer([accepting], sticky=STICKY)
    balancer.pool.set_mode("web1", Mode.DRAIN)
    assert socket(balancer) == [{"type": "websocket.close", "code": 1013, "reason": "no replica"}]
    denied = socket(balancer, extensions=("websocket.http.response",))
    assert (denied[0]["type"], denied[0]["status"]) == ("websocket.http.response.start", 503)
    assert denied[1]["body"].startswith(b"503 Service Unavailable")
