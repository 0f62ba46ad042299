"""Balancers that serve as a profile does, through both gateways: attempts, retries, cookies, limits."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import httpx
import pytest

from lbkit import ReplicaRefused, ReplicaReset, ReplicaTimeout, RoundRobin, asgi, wsgi
from lbkit import Sticky as Signed
from lbkit.balancer import Dispatch, Mode
from lbkit.balancer.nginx import NextUpstream, Nginx, Server, Sticky
from lbkit.errors import ConfigError
from lbkit.types import Environ, Receive, Scope, Send, StartResponse
from tests.gateways.test_balancer import Boom, Gateway, gateway_of, read, start

PROFILES = ["plain", "nginx", "haproxy@2.6", "envoy", "caddy@2.6", "traefik@3"]


@pytest.fixture(params=["asgi", "wsgi", "asgi over wsgi"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    with gateway_of(request.param) as gateway:
        yield gateway


class Told:
    """A balancer of the gateway, and what it told about each dispatch."""

    def __init__(self, gateway: Gateway, **options: Any) -> None:
        self.rows: list[Dispatch] = []
        self.gateway = gateway
        self.balancer = gateway.balancer(on_dispatch=self.rows.append, wall=gateway.clock, **options)

    def ask(self, path: str = "/", **request: Any) -> httpx.Response:
        return self.gateway.ask(self.balancer, path, **request)

    def attempts(self) -> list[str]:
        return [f"{each.replica} {each.outcome}" for row in self.rows for each in row.attempts]

    def idle(self) -> bool:
        """Nothing is inside: neither as the pool counts nor as the model does."""
        carrier = self.balancer._carrier
        model = carrier.backend.model if carrier is not None else None
        inside = [state.active for state in self.balancer.pool.states]
        return not any(inside) and not any(peer.conns for peer in getattr(model, "peers", []))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_answers_and_every_replica_gets_requests(gateway: Gateway, profile: str) -> None:
    told = Told(gateway, profile=profile)
    answers = [told.ask("/chunks") for _ in range(60)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.content for answer in answers} == {b"chunk" * 3}
    names = Counter(answer.headers["x-lbkit-replica"] for answer in answers)
    assert set(names) == {"web1", "web2", "web3"}
    assert told.idle()
    assert [(row.replica, row.status, row.complete) for row in told.rows] == [
        (answer.headers["x-lbkit-replica"], 200, True) for answer in answers
    ]


def test_weights_are_those_of_the_real_balancer(gateway: Gateway) -> None:
    told = Told(gateway, profile="nginx", weights={"web1": 5})
    names = [told.ask().headers["x-lbkit-replica"] for _ in range(7)]
    assert names == ["web1", "web1", "web2", "web1", "web3", "web1", "web1"]


def test_a_stopped_replica_is_tried_once_and_the_next_one_answers(gateway: Gateway) -> None:
    told = Told(gateway, profile="nginx")
    told.balancer.replicas["web1"].stop()
    assert told.ask(method="POST", content=b"order").status_code == 200
    assert told.attempts() == ["web1 refused", "web2 200"]
    assert [seen["body"] for seen in gateway.seen] == [b"order"]
    later = {told.ask().headers["x-lbkit-replica"] for _ in range(4)}
    assert later == {"web2", "web3"}  # web1 is left alone for a while
    assert "failed out" in told.balancer.explain()["web1"]
    assert told.idle()


def test_how_often_a_replica_may_fail_and_for_how_long_it_is_out_can_be_said(gateway: Gateway) -> None:
    told = Told(gateway, profile="nginx", max_fails=2, fail_timeout=30.0)
    told.balancer.replicas["web1"].stop()
    assert {told.ask().status_code for _ in range(12)} == {200}
    assert told.attempts().count("web1 refused") == 2
    gateway.clock.now += 32
    assert {told.ask().status_code for _ in range(3)} == {200}
    assert told.attempts().count("web1 refused") == 3


def test_a_get_that_broke_is_sent_again_and_a_post_that_was_sent_never_is(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told(gateway, profile="nginx")
    assert told.ask("/raise-early").status_code == 502
    assert told.attempts() == ["web1 reset", "web2 reset", "web3 reset"]
    gateway.clock.now += 20
    told.rows.clear()
    answer = told.ask("/raise-early", method="POST", content=b"order")
    assert (answer.status_code, answer.content) == (502, b"502 Bad Gateway: no replica answered\n")
    assert len(told.attempts()) == 1
    assert sum(seen["body"] == b"order" for seen in gateway.seen) == 1
    assert not [record for record in caplog.records if "may be run twice" in record.getMessage()]
    assert told.idle()


def test_a_post_that_the_profile_sends_twice_is_warned_of_and_brings_its_body_again(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told(gateway, profile="nginx", retry="error timeout non_idempotent")
    told.balancer.replicas["web1"].wrap(failing(gateway))
    with caplog.at_level(logging.WARNING, logger="lbkit.balancer"):
        assert told.ask("/", method="POST", content=b"order").status_code == 200
    assert told.attempts() == ["web1 reset", "web2 200"]
    assert [seen["body"] for seen in gateway.seen] == [b"order"] * 2
    warned = [record.getMessage() for record in caplog.records if "may be run twice" in record.getMessage()]
    assert warned == ["POST / goes to web2 after web1 may have run it already: it may be run twice"]


def failing(gateway: Gateway, error: Exception | None = None) -> Any:
    """Put around a replica: it reads the request, answers nobody and is gone."""
    error = error or ReplicaReset("gone")
    if gateway.Balancer is wsgi.Balancer:

        def around_wsgi(app: Any) -> Any:
            def app_that_fails(environ: Environ, _: StartResponse) -> Iterable[bytes]:
                app(environ, lambda *_: bytes)
                raise error

            return app_that_fails

        return around_wsgi

    def around_asgi(app: Any) -> Any:
        async def app_that_fails(scope: Scope, receive: Receive, _: Send) -> None:
            async def send(_: Any) -> None:
                pass

            await app(scope, receive, send)
            raise error

        return app_that_fails

    return around_asgi


def test_a_body_that_is_too_long_to_be_kept_is_not_sent_again_and_the_client_learns_why(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told(gateway, profile="nginx")
    told.balancer.replicas["web1"].wrap(failing(gateway))
    answer = told.ask(method="PUT", content=b"x" * 65_537)
    why = "its body of more than 65536 bytes was not kept, so it cannot be sent again"
    assert (answer.status_code, answer.text) == (502, f"502 Bad Gateway: {why}\n")
    assert told.attempts() == ["web1 reset"]
    assert f"PUT / failed at web1 (reset): {why}" in caplog.text
    assert told.ask(method="PUT", content=b"x" * 65_536).status_code == 200
    assert told.idle()


def test_what_a_replica_read_before_it_refused_is_read_again_by_the_next_one(gateway: Gateway) -> None:
    told = Told(gateway, profile="nginx")
    told.balancer.replicas["web1"].wrap(failing(gateway, ReplicaRefused("gone")))
    assert told.ask(method="POST", content=b"order").status_code == 200
    assert told.attempts() == ["web1 refused", "web2 200"]
    assert [seen["body"] for seen in gateway.seen] == [b"order"] * 2


def test_a_status_on_which_the_profile_goes_on_is_not_what_the_client_gets(gateway: Gateway) -> None:
    told = Told(gateway, profile="nginx", retry="error http_503")
    told.balancer.replicas["web1"].wrap(answering(gateway, 503))
    answer = told.ask("/chunks")
    assert (answer.status_code, answer.content) == (200, b"chunk" * 3)
    assert answer.headers.get_list("x-lbkit-replica") == ["web2"]
    assert told.attempts() == ["web1 503", "web2 200"]
    assert told.idle()


def answering(gateway: Gateway, status: int, headers: Mapping[str, str] | None = None) -> Any:
    """Put around a replica: it answers this, whatever it is asked."""
    if gateway.Balancer is wsgi.Balancer:

        def app_wsgi(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
            start_response(f"{status} As Told", [("Content-Length", "2"), *(headers or {}).items()])
            return [b"no"]

        return lambda _: app_wsgi

    async def app_asgi(_: Scope, __: Receive, send: Send) -> None:
        more = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        await start(send, status, (b"content-length", b"2"), *more)
        await send({"type": "http.response.body", "body": b"no"})

    return lambda _: app_asgi


def test_an_answer_that_breaks_in_the_middle_is_cut_and_not_tried_again(gateway: Gateway) -> None:
    told = Told(gateway, profile="nginx")
    with pytest.raises(Boom, match="after the first byte"):
        told.ask("/raise-late")
    assert [(row.replica, row.status, row.complete) for row in told.rows] == [("web1", 200, False)]
    assert told.attempts() == ["web1 200"]
    assert told.idle()


@pytest.mark.parametrize(
    ("profile", "status"),
    [("nginx", 502), ("haproxy@2.6", 503), ("envoy", 503), ("caddy@2.6", 503), ("traefik@3", 503)],
)
def test_with_no_replica_left_the_client_gets_the_status_of_the_profile(
    gateway: Gateway, profile: str, status: int
) -> None:
    told = Told(gateway, profile=profile)
    for name in told.balancer.replicas:
        told.balancer.maintain(name)
    answer = told.ask()
    assert answer.status_code == status
    assert answer.text.endswith("no replica takes the request\n")
    assert "x-lbkit-replica" not in answer.headers
    assert [(row.replica, row.status, row.attempts) for row in told.rows] == [(None, status, ())]
    told.balancer.ready("web2")
    assert told.ask().headers["x-lbkit-replica"] == "web2"


def test_backups_answer_when_nobody_else_can(gateway: Gateway) -> None:
    told = Told(gateway, profile="nginx", backups=["web1"])
    assert {told.ask().headers["x-lbkit-replica"] for _ in range(4)} == {"web2", "web3"}
    told.balancer.replicas["web2"].stop()
    told.balancer.replicas["web3"].stop()
    assert told.ask().headers["x-lbkit-replica"] == "web1"


@pytest.mark.parametrize("profile", ["nginx", "haproxy@2.6", "envoy", "caddy@2.6", "traefik@3"])
def test_a_client_with_the_profiles_cookie_stays_and_the_apps_cookies_are_left_alone(
    gateway: Gateway, profile: str
) -> None:
    told = Told(gateway, profile=profile, sticky="route")
    first = told.ask()
    home = first.headers["x-lbkit-replica"]
    cookies = first.headers.get_list("set-cookie")
    assert {"a=1", "b=2"} < set(cookies)
    (route,) = (line for line in cookies if line.startswith("route="))
    headers = {"Cookie": route.partition(";")[0]}
    assert [told.ask(headers=headers).headers["x-lbkit-replica"] for _ in range(5)] == [home] * 5


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, []),
        ({"ETag": '"a"'}, ["private"]),
        ({"Last-Modified": "Thu, 26 Nov 2026 01:14:09 GMT"}, ["private"]),
        ({"Expires": "Thu, 26 Nov 2030 01:14:09 GMT"}, ["private"]),
        ({"Cache-Control": "max-age=60"}, ["max-age=60", "private"]),
        ({"Cache-Control": "public"}, ["public"]),
        ({"Cache-Control": "private"}, ["private"]),
        ({"Cache-Control": "no-store", "ETag": '"a"'}, ["no-store"]),
    ],
)
def test_an_answer_that_brings_haproxys_cookie_is_kept_from_caches_as_haproxy_does(
    gateway: Gateway, headers: dict[str, str], told: list[str]
) -> None:
    """The table is what HAProxy 2.6 answered with `cookie route insert indirect nocache`."""
    asked = Told(gateway, profile="haproxy@2.6", sticky="route")
    for each in asked.balancer.replicas.values():
        each.wrap(answering(gateway, 200, headers))
    assert asked.ask().headers.get_list("cache-control") == told
    own = [value for value in told if value != "private" or headers.get("Cache-Control") == "private"]
    assert asked.ask(method="POST").headers.get_list("cache-control") == own
    assert asked.ask(headers={"Cookie": "route=web2"}).headers.get_list("cache-control") == own


def test_haproxy_takes_its_own_cookie_out_of_what_the_replica_sees(gateway: Gateway) -> None:
    told = Told(gateway, profile="haproxy@2.6", sticky="route")
    told.ask(headers={"Cookie": "theme=dark; route=web2"})
    (seen,) = gateway.seen
    assert seen["headers"]["cookie"] == ["theme=dark"]
    assert told.rows[0].replica == "web2"


def test_a_drained_replica_keeps_its_clients_and_one_in_maintenance_loses_them(gateway: Gateway) -> None:
    told = Told(gateway, profile="nginx", sticky="route")
    home = told.ask().headers["x-lbkit-replica"]
    headers = {"Cookie": told.ask().headers.get_list("set-cookie")[-1]}
    bound = told.ask(headers=headers).headers["x-lbkit-replica"]
    told.balancer.drain(bound)
    assert bound not in {told.ask().headers["x-lbkit-replica"] for _ in range(6)}
    assert told.ask(headers=headers).headers["x-lbkit-replica"] == bound
    told.balancer.maintain(bound)
    assert told.ask(headers=headers).headers["x-lbkit-replica"] != bound
    assert told.balancer.replicas[bound].mode is Mode.MAINT
    assert home


def test_a_model_of_ones_own_decides_in_its_own_words(gateway: Gateway) -> None:
    model = Nginx(
        [Server(name=f"web{n}", address=f"10.0.0.{n}:80", weight=4 - n) for n in (1, 2, 3)],
        passing=NextUpstream(tries=2),
        sticky=Sticky(mode="route", sources=("$arg_route",)),
    )
    told = Told(gateway, profile=model)
    assert [told.ask().headers["x-lbkit-replica"] for _ in range(6)].count("web1") == 3
    for each in told.balancer.replicas.values():
        each.stop()
    assert told.ask().status_code == 502
    assert len(told.rows[-1].attempts) == 2


ALONE = Nginx([Server(name="web1", address="10.0.0.1:80")])
ALONE = Nginx([Server(name="web1", address="10.0.0.1:80")])
SIGNED = Signed(secret_keys=["k" * 32])
NONSENSE: list[tuple[dict[str, Any], str]] = [
    ({"profile": "nginy"}, r"need a profile \(nginx, .*got 'nginy'"),
    ({"profile": "nginx", "policy": "fair"}, "need a method of nginx .*got 'fair'"),
    ({"profile": "nginx", "weights": {"web1": 0}}, "need 1 <= weight <= 65535, got weight=0 for web1"),
    ({"profile": "nginx", "weights": {"web1": -1}}, "got weight=-1 for web1"),
    ({"profile": "nginx", "weights": {"web1": 10**9}}, "got weight=1000000000 for web1"),
    (
        {"profile": "nginx", "weights": {"web9": 2}},
        r"need the name of a replica \(web1, .* in weights, got 'web9'",
    ),
    ({"profile": "nginx", "backups": ["web9"]}, "in backups, got 'web9'"),
    ({"profile": "nginx", "backups": ["web1", "web2", "web3"]}, "one server that is not a backup"),
    ({"profile": "nginx", "max_conns": {"web9": 2}}, "in max_conns, got 'web9'"),
    ({"profile": "nginx", "max_conns": -1}, "need max_conns >= 0, got max_conns=-1"),
    ({"profile": "nginx", "read_timeout": 0}, "need read_timeout > 0"),
    ({"profile": "caddy@2.6", "weights": {"web1": 2}}, "has no weights"),
    ({"policy": "fair"}, "fair"),
    ({"profile": "nginx", "max_fails": -1}, "need max_fails >= 0, got max_fails=-1"),
    ({"profile": "haproxy@2.6", "max_fails": 3}, "haproxy@2.6 has no max_fails"),
    ({"profile": ALONE, "fail_timeout": 3.0}, "need no fail_timeout beside a model"),
    ({"profile": "plain", "retry": "error"}, "the profile plain has no sticky and no retry"),
    ({"sticky": "route"}, "the profile plain has no sticky and no retry"),
    ({"profile": "nginx", "sticky": SIGNED}, "need the name of a cookie as sticky beside profile='nginx'"),
    ({"weights": {"web1": 2}, "sticky": SIGNED}, "need the name of a cookie as sticky beside weights"),
    ({"profile": "nginx", "policy": RoundRobin()}, "need a policy in words beside profile='nginx'"),
    ({"profile": ALONE, "policy": "x"}, "need no policy beside a model"),
    ({"profile": ALONE}, "need a model of web1, web2, web3, got one of web1"),
]


@pytest.mark.parametrize(("options", "message"), NONSENSE)
def test_nonsense_is_refused_with_the_rule(gateway: Gateway, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gateway.balancer(**options)


# -- what needs time, and several requests at once


class Gate:
    """A WSGI or ASGI replica that answers when it is let."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside = 0

    def wsgi(self, _: Environ, start_response: StartResponse) -> Iterable[bytes]:
        self.inside += 1
        assert self.open.wait(10)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    async def asgi(self, _: Scope, receive: Receive, send: Send) -> None:
        self.inside += 1
        await read(receive)
        await asyncio.to_thread(self.open.wait, 10)
        await start(send, 200)
        await send({"type": "http.response.body", "body": b"ok"})


def asked_beside(gateway: Gateway, balancer: Any, answers: list[int]) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(gateway.ask(balancer).status_code), daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_who_waits_in_haproxys_queue_is_served_when_a_slot_is_free(kind: str) -> None:
    with gateway_of(kind) as gateway:
        gate = Gate()
        app = getattr(gate, kind)
        balancer = gateway.Balancer([app], profile="haproxy@2.6", max_conns=1)
        answers: list[int] = []
        threads = [asked_beside(gateway, balancer, answers) for _ in range(3)]
        queue = balancer._carrier.backend.model._queue
        until(lambda: len(queue) == 2)
        assert (gate.inside, balancer.replicas["web1"].active) == (1, 1)
        gate.open.set()
        for thread in threads:
            thread.join(10)
        assert (answers, gate.inside, len(queue)) == ([200] * 3, 3, 0)


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_who_waits_too_long_in_haproxys_queue_gets_503(kind: str) -> None:
    with gateway_of(kind) as gateway:
        gate = Gate()
        balancer = gateway.Balancer([getattr(gate, kind)], profile="haproxy@2.6", max_conns=1)
        balancer._carrier.backend.model.queue_timeout = 0.05
        answers: list[int] = []
        thread = asked_beside(gateway, balancer, answers)
        until(lambda: gate.inside == 1)
        assert gateway.ask(balancer).status_code == 503
        gate.open.set()
        thread.join(10)
        assert answers == [200]


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_a_replica_that_begins_no_answer_in_time_is_given_up(kind: str) -> None:
    with gateway_of(kind) as gateway:
        gate, quick = Gate(), gateway.make_app()
        told = Told(gateway, profile="nginx", read_timeout=0.05)
        told.balancer.replicas["web1"].replace(getattr(gate, kind))
        told.balancer.replicas["web2"].replace(quick)
        assert told.ask().status_code == 200
        assert told.attempts() == ["web1 timeout", "web2 200"]
        gate.open.set()
        until(told.idle)


@pytest.mark.parametrize("kind", ["asgi", "wsgi"])
def test_the_last_timeout_is_a_504_and_a_fault_may_say_so_itself(kind: str) -> None:
    def times_out(*_: Any) -> Any:
        raise ReplicaTimeout("as told")

    async def times_out_too(_: Scope, __: Receive, ___: Send) -> None:
        times_out()

    with gateway_of(kind) as gateway:
        told = Told(gateway, profile="nginx")
        for each in told.balancer.replicas.values():
            each.wrap(lambda _: times_out if kind == "wsgi" else times_out_too)
        assert told.ask().status_code == 504
        assert [each.partition(" ")[2] for each in told.attempts()] == ["timeout"] * 3


def until(true: Any, seconds: float = 10.0) -> None:
    pause = threading.Event()
    for _ in range(int(seconds / 0.005)):
        if true():
            return
        pause.wait(0.005)
    raise AssertionError(f"not within {seconds} s")


def test_the_two_balancers_take_the_same_options() -> None:
    import inspect

    one, other = (list(inspect.signature(each.Balancer).parameters) for each in (asgi, wsgi))
    assert one == other
