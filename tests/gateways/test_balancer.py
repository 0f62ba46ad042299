"""The balancer through both gateways: what is said here of one is said of the other."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from lbkit import asgi, wsgi
from lbkit.balancer import Dispatch, Mode, ReplicaState, Tried
from lbkit.balancer.exchange import Fault
from lbkit.errors import ConfigError, StartupError
from lbkit.types import Environ, Receive, Scope, Send, StartResponse
from tests.health_gateways import FakeClock, running_loop

PEER = "192.0.2.7"
CHUNK = b"chunk"


class Boom(Exception):
    pass


class AsgiApp:
    """What a replica can do, told by the path. `seen` is what it saw of the requests."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.seen: list[dict[str, Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode(), []).append(value.decode("latin-1"))
        self.seen.append({"client": scope["client"][0], "headers": headers, "body": await read(receive)})
        self.clock.now += 0.25
        await getattr(self, scope["path"].strip("/").replace("-", "_") or "index")(send)

    async def index(self, send: Send) -> None:
        await start(
            send, 200, (b"content-type", b"text/plain"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")
        )
        await send({"type": "http.response.body", "body": b"hello"})

    async def created(self, send: Send) -> None:
        await start(send, 201, (b"x-lbkit-replica", b"theirs"))
        await send({"type": "http.response.body", "body": b""})

    async def empty(self, send: Send) -> None:
        await start(send, 204)
        await send({"type": "http.response.body"})

    async def raise_early(self, send: Send) -> None:  # noqa: ARG002
        raise Boom("before the first byte")

    async def silent(self, send: Send) -> None:
        pass

    async def raise_late(self, send: Send) -> None:
        await start(send, 200)
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        raise Boom("after the first byte")

    async def chunks(self, send: Send) -> None:
        await start(send, 200)
        for _ in range(3):
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        await send({"type": "http.response.body"})


async def start(send: Send, status: int, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def read(receive: Receive) -> bytes:
    body, message = b"", await receive()
    while message["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
        message = await receive()
    return body


class WsgiApp:
    """The same as a WSGI app."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.seen: list[dict[str, Any]] = []

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        headers = {
            name[5:].lower().replace("_", "-"): [value]
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        body = environ["wsgi.input"].read()
        self.seen.append({"client": environ["REMOTE_ADDR"], "headers": headers, "body": body})
        assert environ["wsgi.multiprocess"]
        self.clock.now += 0.25
        answer: Callable[[StartResponse], Iterable[bytes]]
        answer = getattr(self, environ["PATH_INFO"].strip("/").replace("-", "_") or "index")
        return answer(start_response)

    def index(self, start_response: StartResponse) -> Iterable[bytes]:
        start_response(
            "200 OK", [("Content-Type", "text/plain"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
        )
        return [b"hello"]

    def created(self, start_response: StartResponse) -> Iterable[bytes]:
        start_response("201 Created", [("X-Lbkit-Replica", "theirs")])
        return (b"",)

    def empty(self, start_response: StartResponse) -> Iterable[bytes]:
        start_response("204 No Content", [])
        return []

    def raise_early(self, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])  # a promise; nothing has left yet
        raise Boom("before the first byte")

    def silent(self, start_response: StartResponse) -> Iterable[bytes]:  # noqa: ARG002
        return []

    def raise_late(self, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield CHUNK
        raise Boom("after the first byte")

    def chunks(self, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [])
        for _ in range(3):
            yield CHUNK


class Gateway:
    """A balancer of one kind: how to make it over three fresh replicas, and how to ask it."""

    def __init__(self, carrier: Any, app: Any, clock: FakeClock, send: Callable[..., httpx.Response]) -> None:
        self.Balancer = carrier.Balancer
        self.clock = clock
        self.replicas = [app(clock) for _ in range(3)]
        self.make_app = lambda: app(clock)
        self._send = send

    def balancer(self, **options: Any) -> Any:
        return self.Balancer(self.replicas, clock=self.clock, **options)

    def ask(self, balancer: Any, path: str = "/", **request: Any) -> httpx.Response:
        request = {"method": "GET", "url": f"http://shop.example:8080{path}", **request}
        return self._send(balancer, httpx.Request(**request))

    @property
    def seen(self) -> list[dict[str, Any]]:
        return [each for replica in self.replicas for each in replica.seen]


def send_wsgi(app: Any, request: httpx.Request) -> httpx.Response:
    with httpx.Client(transport=httpx.WSGITransport(app, remote_addr=PEER)) as client:
        return client.send(request)


def send_asgi(loop: asyncio.AbstractEventLoop, app: Any, request: httpx.Request) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app, client=(PEER, 4711))) as client:
            return await client.send(request)

    return asyncio.run_coroutine_threadsafe(send(), loop).result(timeout=30)


@contextmanager
def gateway_of(name: str) -> Iterator[Gateway]:
    if name == "wsgi":
        yield Gateway(wsgi, WsgiApp, FakeClock(), send_wsgi)
        return
    app = WsgiApp if name == "asgi over wsgi" else AsgiApp
    with running_loop() as loop:
        yield Gateway(asgi, app, FakeClock(), lambda *request: send_asgi(loop, *request))


@pytest.fixture(params=["asgi", "wsgi", "asgi over wsgi"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    with gateway_of(request.param) as gateway:
        yield gateway


def test_three_hundred_requests_spread_exactly(gateway: Gateway) -> None:
    balancer = gateway.balancer()
    names = [gateway.ask(balancer).headers["x-lbkit-replica"] for _ in range(300)]
    assert names == ["web1", "web2", "web3"] * 100
    assert [len(replica.seen) for replica in gateway.replicas] == [100, 100, 100]
    assert [state.active for state in balancer.pool.states] == [0, 0, 0]


def test_named_replicas_answer_under_their_names_in_the_order_given(gateway: Gateway) -> None:
    green, blue, _ = gateway.replicas
    balancer = gateway.Balancer({"green": green, "blue": blue})
    assert [replica.name for replica in balancer.pool.replicas] == ["green", "blue"]
    assert [gateway.ask(balancer).headers["x-lbkit-replica"] for _ in range(3)] == ["green", "blue", "green"]
    assert (len(green.seen), len(blue.seen)) == (2, 1)


def test_one_app_given_three_times_is_three_replicas(gateway: Gateway) -> None:
    balancer = gateway.Balancer(gateway.replicas[:1] * 3)
    names = Counter(gateway.ask(balancer).headers["x-lbkit-replica"] for _ in range(9))
    assert names == {"web1": 3, "web2": 3, "web3": 3}
    assert len(gateway.replicas[0].seen) == 9


def test_the_replica_header_takes_another_name(gateway: Gateway) -> None:
    response = gateway.ask(gateway.balancer(replica_header="X-Served-By"))
    assert response.headers["x-served-by"] == "web1"
    assert "x-lbkit-replica" not in response.headers


def test_without_a_replica_header_the_answer_is_the_replicas_own(gateway: Gateway) -> None:
    response = gateway.ask(gateway.balancer(replica_header=None))
    expected = [("content-type", "text/plain"), ("set-cookie", "a=1"), ("set-cookie", "b=2")]
    assert [(name.lower(), value) for name, value in response.headers.multi_items()] == expected
    assert response.content == b"hello"


def test_headers_of_the_answer_keep_their_order_and_ours_is_the_last(gateway: Gateway) -> None:
    names = [name.lower() for name, _ in gateway.ask(gateway.balancer()).headers.multi_items()]
    assert names == ["content-type", "set-cookie", "set-cookie", "x-lbkit-replica"]


def test_a_replica_that_sets_the_header_itself_does_not_hide_ours(gateway: Gateway) -> None:
    response = gateway.ask(gateway.balancer(), "/created")
    assert response.status_code == 201
    assert response.headers.get_list("x-lbkit-replica") == ["theirs", "web1"]


def test_status_and_body_pass_through(gateway: Gateway) -> None:
    balancer = gateway.balancer()
    assert gateway.ask(balancer, "/empty").status_code == 204
    assert gateway.ask(balancer, "/chunks").content == CHUNK * 3
    assert gateway.ask(balancer, method="POST", content=b"x" * 100_000).status_code == 200
    assert [each["body"] for each in gateway.seen] == [b"", b"", b"x" * 100_000]


FORGED = [
    ([], PEER),
    ([("X-Forwarded-For", "10.0.0.1")], f"10.0.0.1, {PEER}"),
    ([("x-forwarded-for", "10.0.0.1, 127.0.0.1")], f"10.0.0.1, 127.0.0.1, {PEER}"),
    ([("X-Forwarded-For", "10.0.0.1"), ("X-Forwarded-For", "10.0.0.2")], f"10.0.0.1, 10.0.0.2, {PEER}"),
    ([("X-Forwarded-For", "")], PEER),
]


@pytest.mark.parametrize(("came_in", "chain"), FORGED)
def test_a_replica_learns_the_client_from_the_last_entry_whatever_came_in(
    gateway: Gateway, came_in: list[tuple[str, str]], chain: str
) -> None:
    headers = httpx.Headers(came_in)
    gateway.ask(gateway.balancer(), headers=joined(headers))
    (seen,) = gateway.seen
    assert seen["headers"]["x-forwarded-for"] == [chain]
    assert seen["client"] == PEER


def joined(headers: httpx.Headers) -> list[tuple[bytes, bytes]]:
    """httpx.WSGITransport keeps the last of several lines, where a real server joins them."""
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def test_a_forged_scheme_and_host_are_replaced(gateway: Gateway) -> None:
    forged = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example"}
    gateway.ask(gateway.balancer(), headers=forged)
    (seen,) = gateway.seen
    assert seen["headers"]["x-forwarded-proto"] == ["http"]
    assert seen["headers"]["x-forwarded-host"] == ["shop.example:8080"]
    assert seen["headers"]["host"] == ["shop.example:8080"]


def test_https_at_this_hop_is_what_the_replica_is_told(gateway: Gateway) -> None:
    gateway.ask(gateway.balancer(), url="https://shop.example/", headers={"X-Forwarded-Proto": "http"})
    assert gateway.seen[0]["headers"]["x-forwarded-proto"] == ["https"]


def test_what_the_server_gave_is_left_as_it_was(gateway: Gateway) -> None:
    """The headers are added to a copy: a server, or a middleware outside, may use its own again."""
    balancer, given = gateway.balancer(), []

    async def outside_asgi(scope: Scope, receive: Receive, send: Send) -> None:
        given.append(({**scope, "headers": list(scope["headers"])}, scope))
        await balancer(scope, receive, send)

    def outside_wsgi(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        given.append((dict(environ), environ))
        return balancer(environ, start_response)  # type: ignore[no-any-return]

    gateway.ask(outside_wsgi if gateway.Balancer is wsgi.Balancer else outside_asgi)
    ((before, after),) = given
    assert after == before


@pytest.mark.parametrize(("path", "why"), [("/raise-early", "Boom"), ("/silent", None)])
def test_a_replica_that_fails_before_the_first_byte_is_answered_for_with_502(
    gateway: Gateway, caplog: pytest.LogCaptureFixture, path: str, why: str | None
) -> None:
    rows: list[Dispatch] = []
    balancer = gateway.balancer(on_dispatch=rows.append)
    with caplog.at_level(logging.ERROR, logger="lbkit.balancer"):
        response = gateway.ask(balancer, path)
    assert response.status_code == 502
    assert response.headers["x-lbkit-replica"] == "web1"
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.content == b"502 Bad Gateway: the replica failed before it answered\n"
    assert response.headers["content-length"] == str(len(response.content))
    assert "Boom" not in response.text
    assert [(row.status, row.complete) for row in rows] == [(502, True)]
    (record,) = caplog.records
    assert record.getMessage() == f"replica web1 failed before it answered GET {path}"
    if why is not None:
        assert record.exc_info is not None
        assert why in str(record.exc_info[0])
    assert [state.active for state in balancer.pool.states] == [0, 0, 0]


def test_a_failing_replica_does_not_hurt_the_others(gateway: Gateway) -> None:
    balancer = gateway.balancer()
    statuses = [
        gateway.ask(balancer, "/raise-early" if turn % 3 == 1 else "/").status_code for turn in range(9)
    ]
    assert statuses == [200, 502, 200] * 3


def test_a_replica_that_fails_in_the_middle_of_its_answer_cuts_it(gateway: Gateway) -> None:
    rows: list[Dispatch] = []
    balancer = gateway.balancer(on_dispatch=rows.append)
    with pytest.raises(Boom, match="after the first byte"):
        gateway.ask(balancer, "/raise-late")
    assert [(row.replica, row.status, row.complete) for row in rows] == [("web1", 200, False)]
    assert [state.active for state in balancer.pool.states] == [0, 0, 0]


def test_on_dispatch_gets_one_row_for_each_request(gateway: Gateway) -> None:
    rows: list[Dispatch] = []
    balancer = gateway.balancer(on_dispatch=rows.append)
    gateway.ask(balancer, "/chunks?a=1")
    gateway.ask(balancer, "/empty", method="DELETE")
    gateway.ask(balancer, "/created", method="POST", content=b"x")
    common: dict[str, Any] = {"client": PEER, "complete": True, "seconds": 0.25}
    assert rows == [
        Dispatch(
            replica=replica,
            method=method,
            path=path,
            status=status,
            attempts=(Tried(replica=replica, status=status, seconds=0.25),),
            **common,
        )
        for replica, method, path, status in [
            ("web1", "GET", "/chunks", 200),
            ("web2", "DELETE", "/empty", 204),
            ("web3", "POST", "/created", 201),
        ]
    ]


def test_a_policy_of_ones_own_decides(gateway: Gateway) -> None:
    class Second:
        def pick(self, candidates: Any, /) -> ReplicaState:
            state: ReplicaState = candidates[1]
            return state

    balancer = gateway.balancer(policy=Second())
    assert {gateway.ask(balancer).headers["x-lbkit-replica"] for _ in range(4)} == {"web2"}


def test_from_factory_makes_a_fresh_app_for_each_replica_and_takes_the_same_options(gateway: Gateway) -> None:
    made: list[Any] = []
    rows: list[Dispatch] = []

    def factory() -> Any:
        made.append(gateway.make_app())
        return made[-1]

    balancer = gateway.Balancer.from_factory(
        factory, replicas=4, replica_header="x-who", on_dispatch=rows.append, clock=gateway.clock
    )
    assert [gateway.ask(balancer).headers["x-who"] for _ in range(4)] == ["web1", "web2", "web3", "web4"]
    assert [len(app.seen) for app in made] == [1, 1, 1, 1]
    assert [row.seconds for row in rows] == [0.25] * 4
    assert len(gateway.Balancer.from_factory(factory).pool.replicas) == 3


def test_a_factory_that_raises_is_reported_with_the_name_of_its_replica(gateway: Gateway) -> None:
    made: list[Any] = []

    def factory() -> Any:
        if made:
            raise KeyError("DATABASE_URL")
        made.append(gateway.make_app())
        return made[-1]

    with pytest.raises(
        StartupError, match=r"replica web2 failed to start: KeyError: 'DATABASE_URL'"
    ) as caught:
        gateway.Balancer.from_factory(factory)
    assert caught.value.replica == "web2"


NONSENSE: list[tuple[str, Callable[[Any, Any], object], str]] = [
    ("no app", lambda new, _: new([]), "need at least one replica, got none"),
    ("one app", lambda new, _: new(object()), r"need a sequence of apps, such as \[app\] \* 3, got <object"),
    (
        "no callable",
        lambda new, _: new(["shop:app"]),
        "'shop:app' is not callable|need a URL such as .* got 'shop:app'",
    ),
    ("a class", lambda new, app: new([type(app)]), "App is a class: give an instance of it"),
    ("a bad name", lambda new, app: new({"web.1": app}), "need a replica name of .* got 'web.1'"),
    ("a name that is none", lambda new, app: new({1: app}), "need a replica name of .* got 1"),
    (
        "no replicas",
        lambda new, app: new.from_factory(lambda: app, replicas=0),
        "need replicas >= 1, got replicas=0",
    ),
    ("a factory of no apps", lambda new, _: new.from_factory(lambda: None), "None is not callable"),
    ("an empty header", lambda new, app: new([app], replica_header=""), "need a header name .* got ''"),
    ("two lines", lambda new, app: new([app], replica_header="a\r\nb"), "need a header name .* got 'a.r.nb'"),
    (
        "no ASCII",
        lambda new, app: new([app], replica_header="x-réplique"),
        "need a header name .* got 'x-réplique'",
    ),
]


@pytest.mark.parametrize(
    ("make", "message"), [each[1:] for each in NONSENSE], ids=[each[0] for each in NONSENSE]
)
def test_nonsense_is_refused_where_it_is_given(
    gateway: Gateway, make: Callable[[Any, Any], object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make(gateway.Balancer, gateway.replicas[0])


def test_the_wsgi_balancer_says_which_one_takes_asgi_apps() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None: ...

    with pytest.raises(
        ConfigError, match=r"need WSGI apps, got the ASGI app .*: lbkit\.asgi\.Balancer takes both"
    ):
        wsgi.Balancer([app])  # type: ignore[list-item]


def test_the_asgi_balancer_takes_both_kinds_at_once() -> None:
    with gateway_of("asgi") as gateway:
        mixed = asgi.Balancer({"new": AsgiApp(gateway.clock), "old": WsgiApp(gateway.clock)})
        responses = [gateway.ask(mixed, "/chunks") for _ in range(4)]
    assert [each.headers["x-lbkit-replica"] for each in responses] == ["new", "old", "new", "old"]
    assert {each.content for each in responses} == {CHUNK * 3}


class TestWsgiOnly:
    """PEP 3333's own manners, at the seams between the server, the balancer and the replica."""

    @staticmethod
    def call(balancer: Any, **environ: Any) -> tuple[Any, list[Any]]:
        calls: list[Any] = []

        def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
            calls.append((status, headers, exc_info))
            return calls.append

        inner = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "wsgi.url_scheme": "http", **environ}
        return balancer(inner, start_response), calls

    @staticmethod
    def balancer(app: Any, rows: list[Dispatch] | None = None) -> wsgi.Balancer:
        on_dispatch = rows.append if rows is not None else None
        return wsgi.Balancer([app], on_dispatch=on_dispatch)

    def test_an_answer_that_is_a_list_stays_a_list(self) -> None:
        """A server takes the Content-Length from a list of one."""

        def app(_: Environ, start_response: StartResponse) -> list[bytes]:
            start_response("200 OK", [])
            return [b"all of it"]

        body, calls = self.call(self.balancer(app))
        assert body == [b"all of it"]
        assert type(body) is list
        assert calls == [("200 OK", [("X-Lbkit-Replica", "web1")], None)]

    def test_the_header_list_of_the_replica_is_not_changed(self) -> None:
        constant = [("A", "1")]

        def app(_: Environ, start_response: StartResponse) -> list[bytes]:
            start_response("200 OK", constant)
            return [b""]

        balancer = self.balancer(app)
        self.call(balancer)
        _, calls = self.call(balancer)
        assert constant == [("A", "1")]
        assert calls[0][1] == [("A", "1"), ("X-Lbkit-Replica", "web1")]

    def test_the_body_is_closed_and_counted_once_when_read_to_the_end(self) -> None:
        rows, app = list[Dispatch](), Streaming()
        balancer = self.balancer(app, rows)
        body, _ = self.call(balancer)
        assert balancer.pool.states[0].active == 1
        assert list(body) == [CHUNK, CHUNK]
        body.close()
        body.close()
        assert [(row.status, row.complete) for row in rows] == [(200, True)]
        assert app.closed == 2
        assert balancer.pool.states[0].active == 0

    def test_a_server_that_never_closes_still_ends_the_request_by_reading_on(self) -> None:
        rows = list[Dispatch]()
        balancer = self.balancer(Streaming(), rows)
        list(self.call(balancer)[0])
        assert len(rows) == 1
        assert balancer.pool.states[0].active == 0

    def test_a_client_that_leaves_in_the_middle_closes_the_body_of_the_replica(self) -> None:
        rows, app = list[Dispatch](), Streaming()
        balancer = self.balancer(app, rows)
        body, _ = self.call(balancer)
        chunks = iter(body)
        next(chunks)
        assert rows == []
        body.close()
        assert app.closed == 1
        assert [(row.status, row.complete) for row in rows] == [(200, False)]
        assert balancer.pool.states[0].active == 0

    def test_a_body_closed_unread_ends_the_request(self) -> None:
        rows, app = list[Dispatch](), Streaming()
        balancer = self.balancer(app, rows)
        self.call(balancer)[0].close()
        assert app.closed == 1
        assert [(row.status, row.complete) for row in rows] == [(None, False)]
        assert balancer.pool.states[0].active == 0

    def test_nothing_is_collected_the_first_chunk_leaves_before_the_second_is_made(self) -> None:
        app = Streaming()
        chunks = iter(self.call(self.balancer(app))[0])
        assert app.made == 0
        next(chunks)
        assert app.made == 1
        next(chunks)
        assert app.made == 2

    def test_a_raising_close_is_reported_and_the_request_still_ends(self) -> None:
        class Body(list):  # type: ignore[type-arg]
            def close(self) -> None:
                raise Boom("close")

        def app(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
            start_response("200 OK", [])
            return Body([CHUNK])

        balancer = self.balancer(app)
        body, _ = self.call(balancer)
        with pytest.raises(Boom):
            body.close()
        assert balancer.pool.states[0].active == 0

    def test_write_sends_at_once_and_the_rest_follows(self) -> None:
        def app(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
            write = start_response("200 OK", [])
            write(b"one")
            write(b"two")
            return [b"three"]

        rows = list[Dispatch]()
        body, calls = self.call(self.balancer(app, rows))
        assert calls == [("200 OK", [("X-Lbkit-Replica", "web1")], None), b"one", b"two"]
        assert list(body) == [b"three"]
        assert [(row.status, row.complete) for row in rows] == [(200, True)]

    def test_an_app_that_fails_after_write_cuts_the_answer(self) -> None:
        def app(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
            start_response("200 OK", [])(b"one")
            raise Boom

        rows = list[Dispatch]()
        body, _ = self.call(self.balancer(app, rows))
        with pytest.raises(Boom):
            list(body)
        body.close()
        assert [(row.status, row.complete) for row in rows] == [(200, False)]

    def test_start_response_may_be_called_again_with_exc_info_before_the_first_byte(self) -> None:
        def app(_: Environ, start_response: StartResponse) -> Iterator[bytes]:
            start_response("200 OK", [("A", "1")])
            yield b""
            error = ValueError("changed my mind")
            start_response("500 Oops", [("B", "2")], (ValueError, error, None))
            yield b"oops"

        body, calls = self.call(self.balancer(app))
        assert list(body) == [b"oops"]
        assert calls == [("500 Oops", [("B", "2"), ("X-Lbkit-Replica", "web1")], None)]

    def test_start_response_with_exc_info_after_the_first_byte_raises_it(self) -> None:
        def app(_: Environ, start_response: StartResponse) -> Iterator[bytes]:
            start_response("200 OK", [])
            yield b"out"
            start_response("500 Oops", [], (Boom, Boom("too late"), None))
            yield b"never"

        chunks = iter(self.call(self.balancer(app))[0])
        assert next(chunks) == b"out"
        with pytest.raises(Boom, match="too late"):
            next(chunks)

    def test_start_response_twice_without_exc_info_is_a_502_with_the_reason_in_the_log(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def app(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
            start_response("200 OK", [])
            start_response("201 Created", [])
            return []

        body, calls = self.call(self.balancer(app))
        assert b"502" in b"".join(body)
        assert calls[0][0] == "502 Bad Gateway"
        assert "start_response was called a second time" in caplog.text

    def test_the_body_of_a_replica_that_failed_is_closed_too(self) -> None:
        app = Streaming(fail_at=0)
        body, calls = self.call(self.balancer(app))
        assert b"502" in b"".join(body)
        body.close()
        assert calls[0][0] == "502 Bad Gateway"
        assert app.closed == 1

    def test_an_exit_goes_through_and_leaves_nothing_in_flight(self) -> None:
        def app(_: Environ, __: StartResponse) -> Iterable[bytes]:
            raise SystemExit(3)

        balancer = self.balancer(app)
        with pytest.raises(SystemExit):
            self.call(balancer)
        assert balancer.pool.states[0].active == 0

    def test_a_request_without_a_host_tells_none(self) -> None:
        seen: list[Environ] = []

        def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
            seen.append(environ)
            start_response("200 OK", [])
            return []

        self.call(self.balancer(app), HTTP_X_FORWARDED_HOST="evil.example")
        assert "HTTP_X_FORWARDED_HOST" not in seen[0]
        assert seen[0]["HTTP_X_FORWARDED_FOR"] == "unknown"

    def test_bytes_that_are_no_ascii_stay_in_the_chain_as_they_were(self) -> None:
        seen: list[Environ] = []

        def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
            seen.append(environ)
            start_response("200 OK", [])
            return []

        self.call(self.balancer(app), HTTP_X_FORWARDED_FOR="evil, \xe9", REMOTE_ADDR=PEER)
        assert seen[0]["HTTP_X_FORWARDED_FOR"] == f"evil, \xe9, {PEER}"

    def test_the_path_of_a_row_includes_the_mount(self) -> None:
        rows = list[Dispatch]()
        body, _ = self.call(self.balancer(Streaming(), rows), SCRIPT_NAME="/shop", PATH_INFO="/caf\xc3\xa9")
        list(body)
        assert rows[0].path == "/shop/café"


class Streaming:
    """A WSGI app that answers in two chunks, and counts what becomes of its body."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.fail_at = fail_at
        self.made = self.closed = 0

    def __call__(self, _: Environ, start_response: StartResponse) -> Streaming:
        start_response("200 OK", [])
        return self

    def __iter__(self) -> Iterator[bytes]:
        for number in range(2):
            if number == self.fail_at:
                raise Boom
            self.made += 1
            yield CHUNK

    def close(self) -> None:
        self.closed += 1


def test_a_stopped_replica_refuses_until_it_is_started_and_every_attempt_is_told(gateway: Gateway) -> None:
    rows: list[Dispatch] = []
    balancer = gateway.balancer(on_dispatch=rows.append)
    balancer.replicas["web2"].stop()
    assert [gateway.ask(balancer).status_code for _ in range(3)] == [200, 502, 200]
    balancer.replicas["web2"].start()
    assert [gateway.ask(balancer).status_code for _ in range(3)] == [200, 200, 200]
    assert [len(replica.seen) for replica in gateway.replicas] == [2, 1, 2]
    assert [each.outcome for row in rows for each in row.attempts] == ["200", "refused", *["200"] * 4]
    assert rows[1].attempts[0].fault is Fault.REFUSED


def test_what_is_put_around_a_replica_stays_until_it_is_taken_away(gateway: Gateway) -> None:
    balancer = gateway.balancer()
    other = gateway.make_app()
    handle = balancer.replicas["web1"]
    handle.wrap(lambda _: balancer.replicas["web2"].own)
    gateway.ask(balancer)
    assert [len(replica.seen) for replica in gateway.replicas] == [0, 1, 0]
    handle.wrap(None)
    handle.replace(balancer.replicas["web3"].own)
    for _ in range(3):
        gateway.ask(balancer)
    assert [len(replica.seen) for replica in gateway.replicas] == [0, 2, 2]
    assert (other.seen, handle.active, handle.mode) == ([], 0, Mode.READY)


def test_a_request_that_no_replica_takes_is_told_too(gateway: Gateway) -> None:
    rows: list[Dispatch] = []
    balancer = gateway.balancer(on_dispatch=rows.append)
    for name in balancer.replicas:
        balancer.pool.set_mode(name, Mode.MAINT)
    assert gateway.ask(balancer).status_code == 503
    assert [(row.replica, row.status, row.attempts) for row in rows] == [(None, 503, ())]
