"""What only ASGI can do: streams in both directions, websockets, disconnects, cancellation, lifespans."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from lbkit.asgi import Balancer
from lbkit.balancer import Dispatch
from lbkit.types import ASGIApp, Message, Receive, Scope, Send
from tests.gateways.connection import (
    HOST,
    Connection,
    body_of,
    connected,
    exchange,
    http_scope,
    run,
    websocket_scope,
)

DENIAL = {"websocket.http.response": {}}


def balancer_of(*apps: ASGIApp, rows: list[Dispatch] | None = None, **options: Any) -> Balancer:
    return Balancer(apps, on_dispatch=rows.append if rows is not None else None, **options)


def active(balancer: Balancer) -> list[int]:
    return [state.active for state in balancer.pool.states]


async def settle() -> None:
    """Let every task run until it waits for something that only the test can give."""
    for _ in range(50):
        await asyncio.sleep(0)


async def start(send: Send, status: int = 200, **more: Any) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [], **more})


async def body(send: Send, data: bytes, *, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


class TestStreaming:
    def test_the_client_has_the_first_chunk_while_the_replica_still_holds_the_second(self) -> None:
        async def work() -> None:
            second = asyncio.Event()

            async def app(_: Scope, __: Receive, send: Send) -> None:
                await start(send)
                await body(send, b"first", more=True)
                await second.wait()
                await body(send, b"second")

            balancer = balancer_of(app)
            async with connected(balancer, http_scope()) as client:
                assert (await client.get())["type"] == "http.response.start"
                assert (await client.get())["body"] == b"first"
                assert client.silent
                assert active(balancer) == [1]
                second.set()
                assert await client.get() == {
                    "type": "http.response.body",
                    "body": b"second",
                    "more_body": False,
                }
                await client.end()
            assert active(balancer) == [0]

        run(work())

    def test_the_replica_has_the_first_piece_before_the_client_sends_the_second(self) -> None:
        async def work() -> None:
            pieces: asyncio.Queue[Message] = asyncio.Queue()

            async def app(_: Scope, receive: Receive, send: Send) -> None:
                while (await pieces_put(message := await receive()))["more_body"]:
                    assert message["type"] == "http.request"
                await start(send)
                await body(send, b"")

            async def pieces_put(message: Message) -> Message:
                await pieces.put(message)
                return message

            async with connected(balancer_of(app), http_scope(method="POST")) as client:
                client.body(b"first", more=True)
                assert (await pieces.get())["body"] == b"first"
                client.body(b"second")
                assert (await pieces.get())["body"] == b"second"
                await client.end()

        run(work())

    def test_a_client_that_does_not_read_holds_the_replica_back(self) -> None:
        async def work() -> None:
            sent: list[int] = []

            async def app(_: Scope, __: Receive, send: Send) -> None:
                await start(send)
                for number in range(3):
                    await body(send, b"x", more=number < 2)
                    sent.append(number)

            async with connected(balancer_of(app), http_scope(), window=1) as client:
                for held_back in ([], [0], [0, 1]):  # one message lies in the window, and one waits before it
                    await settle()
                    assert sent == held_back
                    await client.get()
                await client.get()
                await client.end()
            assert sent == [0, 1, 2]

        run(work())

    def test_the_replica_asks_for_the_body_only_when_it_wants_it(self) -> None:
        async def app(_: Scope, __: Receive, send: Send) -> None:
            await start(send, 413)
            await body(send, b"")

        async def work() -> None:
            async with connected(balancer_of(app), http_scope(method="POST")) as client:
                await client.end()
                assert client.asked == 0

        run(work())

    def test_messages_are_handed_on_as_the_same_objects_but_for_the_start(self) -> None:
        messages: list[Message] = [
            {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload"]},
            {"type": "http.response.debug", "info": {}},
            {"type": "http.response.start", "status": 200, "headers": [(b"a", b"1")], "trailers": True},
            {"type": "http.response.body", "body": memoryview(b"x"), "more_body": True},
            {"type": "http.response.zerocopysend", "file": 3, "more_body": True},
            {"type": "http.response.body", "body": b""},
            {"type": "http.response.trailers", "headers": [(b"x-sum", b"7")], "more_trailers": True},
            {"type": "http.response.trailers", "headers": []},
        ]

        async def app(_: Scope, __: Receive, send: Send) -> None:
            for message in messages:
                await send(message)

        rows: list[Dispatch] = []
        got = run(exchange(balancer_of(app, rows=rows), http_scope()))
        assert [id(each) for each in got if "start" not in each["type"]] == [
            id(each) for each in messages if "start" not in each["type"]
        ]
        assert got[2] == {**messages[2], "headers": [(b"a", b"1"), (b"x-lbkit-replica", b"web1")]}
        assert messages[2]["headers"] == [(b"a", b"1")]
        assert (rows[0].status, rows[0].complete) == (200, True)

    @pytest.mark.parametrize(
        ("last", "complete"),
        [
            ({"type": "http.response.body", "body": b"x"}, True),
            ({"type": "http.response.body"}, True),
            ({"type": "http.response.body", "more_body": True}, False),
            ({"type": "http.response.pathsend", "path": "/x"}, True),
            ({"type": "http.response.zerocopysend", "file": 3}, True),
            ({"type": "http.response.zerocopysend", "file": 3, "more_body": True}, False),
            ({"type": "http.response.trailers", "headers": []}, True),
            ({"type": "http.response.debug", "info": {}}, False),
        ],
        ids=lambda value: (
            f"{value['type']} {value.get('more_body')}" if isinstance(value, dict) else str(value)
        ),
    )
    def test_a_row_knows_whether_the_answer_was_complete(self, last: Message, complete: bool) -> None:
        async def app(_: Scope, __: Receive, send: Send) -> None:
            await start(send)
            await send(last)

        rows: list[Dispatch] = []
        run(exchange(balancer_of(app, rows=rows), http_scope()))
        assert [(row.status, row.complete) for row in rows] == [(200, complete)]

    def test_promised_trailers_that_never_come_leave_the_answer_incomplete(self) -> None:
        async def app(_: Scope, __: Receive, send: Send) -> None:
            await start(send, trailers=True)
            await body(send, b"all")

        rows: list[Dispatch] = []
        run(exchange(balancer_of(app, rows=rows), http_scope()))
        assert [(row.status, row.complete) for row in rows] == [(200, False)]

    def test_the_scope_keeps_what_the_server_put_there(self) -> None:
        seen: list[Scope] = []

        async def app(scope: Scope, _: Receive, send: Send) -> None:
            seen.append(scope)
            scope["mine"] = True
            await start(send, 204)
            await body(send, b"")

        given = http_scope("/café", extensions={"tls": {"tls_version": 772}}, state={"shared": 1})
        headers, before = list(given["headers"]), dict(given)
        run(exchange(balancer_of(app), given))
        assert given == before
        assert given["headers"] == headers
        added = [(b"x-forwarded-for", b"192.0.2.7"), (b"x-forwarded-proto", b"http")]
        assert seen[0]["headers"] == [*headers, *added, (b"x-forwarded-host", b"shop.example")]
        assert {key: seen[0][key] for key in before if key != "headers"} == {
            key: before[key] for key in before if key != "headers"
        }

    @pytest.mark.parametrize(
        ("scope", "added"),
        [
            (http_scope(client=None), {b"x-forwarded-for": b"unknown"}),
            (http_scope(client=("", 0)), {b"x-forwarded-for": b"unknown"}),
            (http_scope(client=("2001:db8::7", 1)), {b"x-forwarded-for": b"2001:db8::7"}),
            (
                http_scope(headers=[(b"x-forwarded-for", b"a\xe9"), (b"x-forwarded-for", b"b")]),
                {b"x-forwarded-for": b"a\xe9, b, 192.0.2.7", b"x-forwarded-host": None},
            ),
            (http_scope(headers=[(b"x-forwarded-host", b"evil")]), {b"x-forwarded-host": None}),
            (http_scope(scheme="https"), {b"x-forwarded-proto": b"https"}),
            (websocket_scope(scheme="wss"), {b"x-forwarded-proto": b"https"}),
            (websocket_scope(), {b"x-forwarded-proto": b"http", b"x-forwarded-host": b"shop.example"}),
        ],
    )
    def test_the_forwarded_headers_of_odd_scopes(
        self, scope: Scope, added: dict[bytes, bytes | None]
    ) -> None:
        seen: list[tuple[bytes, bytes]] = []

        async def app(scope: Scope, _: Receive, __: Send) -> None:
            seen.extend(scope["headers"])

        run(exchange(balancer_of(app), dict(scope)))
        for name, value in added.items():
            assert [each for key, each in seen if key == name] == ([] if value is None else [value])


class TestEndings:
    """How a request ends, what the row says, and that nothing stays in flight."""

    def test_a_disconnect_reaches_the_replica_and_an_unanswered_one_is_a_499(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: list[Message] = []

        async def app(_: Scope, receive: Receive, __: Send) -> None:
            while (message := await receive())["type"] != "http.disconnect":
                seen.append(message)
            seen.append(message)

        async def work() -> list[Message]:
            async with connected(balancer, http_scope()) as client:
                client.body(b"x")
                client.put("http.disconnect")
                return await client.messages()

        rows: list[Dispatch] = []
        balancer = balancer_of(app, rows=rows)
        with caplog.at_level(logging.ERROR):
            assert run(work()) == []  # nobody is there to be told
        assert [each["type"] for each in seen] == ["http.request", "http.disconnect"]
        assert [(row.status, row.complete) for row in rows] == [(499, False)]
        assert active(balancer) == [0]
        assert caplog.records == []

    def test_a_replica_that_raises_because_the_client_left_is_not_blamed(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def app(_: Scope, receive: Receive, __: Send) -> None:
            if (await receive())["type"] == "http.disconnect":
                raise ConnectionError("the client left")

        async def work() -> list[Message]:
            async with connected(balancer_of(app, rows=rows), http_scope()) as client:
                client.put("http.disconnect")
                return await client.messages()

        rows: list[Dispatch] = []
        assert run(work()) == []
        assert [row.status for row in rows] == [499]
        assert caplog.records == []

    def test_a_client_that_leaves_in_the_middle_leaves_an_incomplete_row(self) -> None:
        async def app(_: Scope, receive: Receive, send: Send) -> None:
            await start(send)
            await body(send, b"tick", more=True)
            await receive()
            assert (await receive())["type"] == "http.disconnect"

        async def work() -> None:
            async with connected(balancer, http_scope()) as client:
                client.body()
                client.put("http.disconnect")
                await client.end()

        rows: list[Dispatch] = []
        balancer = balancer_of(app, rows=rows)
        run(work())
        assert [(row.status, row.complete) for row in rows] == [(200, False)]
        assert active(balancer) == [0]

    def test_a_send_that_fails_because_the_client_left_raises_in_the_replica(self) -> None:
        caught: list[BaseException] = []

        async def app(_: Scope, __: Receive, send: Send) -> None:
            await start(send)
            try:
                while True:
                    await body(send, b"tick", more=True)
            except OSError as error:
                caught.append(error)

        async def work() -> None:
            async with connected(balancer, http_scope()) as client:
                await client.get()
                await client.get()
                client.broken = True
                await client.end()

        balancer = balancer_of(app)
        run(work())
        assert len(caught) == 1
        assert active(balancer) == [0]

    def test_cancellation_reaches_the_replica_and_goes_on_to_the_server(self) -> None:
        cleaned: list[str] = []

        async def app(_: Scope, __: Receive, ___: Send) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cleaned.append("cancelled")
                raise
            finally:
                cleaned.append("finally")

        async def work() -> None:
            async with connected(balancer, http_scope()) as client:
                await settle()
                assert active(balancer) == [1]
                client.task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await client.task
                assert client.silent

        rows: list[Dispatch] = []
        balancer = balancer_of(app, rows=rows)
        run(work())
        assert cleaned == ["cancelled", "finally"]
        assert [(row.status, row.complete) for row in rows] == [(None, False)]
        assert active(balancer) == [0]

    def test_background_tasks_run_inside_the_request_after_the_last_byte(self) -> None:
        ran: list[str] = []

        async def work() -> None:
            go = asyncio.Event()

            async def later() -> None:
                await go.wait()
                ran.append("background")

            async def page(_: Request) -> PlainTextResponse:
                return PlainTextResponse("done", background=BackgroundTask(later))

            balancer = balancer_of(Starlette(routes=[Route("/", page)]), rows=rows)
            async with connected(balancer, http_scope()) as client:
                client.body()
                await client.get()
                assert (await client.get())["body"] == b"done"  # the client has it all
                assert (ran, rows, active(balancer)) == ([], [], [1])
                go.set()
                await client.end()
            assert (ran, active(balancer)) == (["background"], [0])

        rows: list[Dispatch] = []
        run(work())
        assert [(row.status, row.complete) for row in rows] == [(200, True)]

    def test_a_replica_that_raises_after_its_complete_answer_does_not_become_a_502(self) -> None:
        async def app(_: Scope, __: Receive, send: Send) -> None:
            await start(send)
            await body(send, b"fine")
            raise RuntimeError("in the background")

        async def work() -> None:
            async with connected(balancer, http_scope()) as client:
                assert (await client.get())["status"] == 200
                assert (await client.get())["body"] == b"fine"
                with pytest.raises(RuntimeError, match="in the background"):
                    await client.end()
                assert client.silent

        rows: list[Dispatch] = []
        balancer = balancer_of(app, rows=rows)
        run(work())
        assert [(row.status, row.complete) for row in rows] == [(200, True)]
        assert active(balancer) == [0]

    def test_a_hundred_requests_at_once_are_counted_where_they_are(self) -> None:
        async def work() -> None:
            go = asyncio.Event()

            async def app(_: Scope, __: Receive, send: Send) -> None:
                await go.wait()
                await start(send)
                await body(send, b"")

            balancer = balancer_of(app, app, app)
            calls = [asyncio.create_task(exchange(balancer, http_scope())) for _ in range(100)]
            await settle()
            assert active(balancer) == [34, 33, 33]
            go.set()
            await asyncio.gather(*calls)
            assert active(balancer) == [0, 0, 0]

        run(work())

    def test_a_starlette_stream_that_the_client_leaves_is_closed(self) -> None:
        async def work() -> None:
            closed = asyncio.Event()

            async def ticks() -> AsyncIterator[bytes]:
                try:
                    yield b"tick"
                    await asyncio.Event().wait()  # no more news today
                finally:
                    closed.set()

            async def page(_: Request) -> StreamingResponse:
                return StreamingResponse(ticks())

            balancer = balancer_of(Starlette(routes=[Route("/", page)]))
            # Before 2.4 the server says it by a message; since then by an OSError of `send`.
            scope = http_scope(asgi={"version": "3.0", "spec_version": "2.3"})
            async with connected(balancer, scope) as client:
                client.body()
                await client.get()
                assert (await client.get())["body"] == b"tick"
                await settle()
                assert not closed.is_set()
                client.put("http.disconnect")
                await client.end()
            assert closed.is_set()
            assert active(balancer) == [0]

        run(work())


def websocket_app(endpoint: Callable[[WebSocket], Awaitable[None]]) -> Starlette:
    return Starlette(routes=[WebSocketRoute("/", endpoint)])


async def echo(socket: WebSocket) -> None:
    await socket.accept(
        subprotocol=next(iter(socket.scope["subprotocols"]), None), headers=[(b"x-room", b"1")]
    )
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                break
            await socket.send({**message, "type": "websocket.send"})
            if message.get("text") == "bye":
                await socket.close(4001, "as you wish")
                break
    except WebSocketDisconnect:
        pass


class TestWebsockets:
    @staticmethod
    @asynccontextmanager
    async def open(app: ASGIApp, **scope: Any) -> AsyncIterator[Connection]:
        async with connected(app, websocket_scope(**scope)) as client:
            client.put("websocket.connect")
            yield client

    def test_text_and_bytes_are_echoed_and_the_replica_is_named(self) -> None:
        async def work() -> None:
            async with self.open(balancer) as client:
                assert await client.get() == {
                    "type": "websocket.accept",
                    "subprotocol": None,
                    "headers": [(b"x-room", b"1"), (b"x-lbkit-replica", b"web1")],
                }
                client.put("websocket.receive", text="hé")
                assert await client.get() == {"type": "websocket.send", "text": "hé"}
                client.put("websocket.receive", bytes=b"\x00\xff")
                assert await client.get() == {"type": "websocket.send", "bytes": b"\x00\xff"}
                assert active(balancer) == [1, 0, 0]
                client.put("websocket.disconnect", code=1001)
                await client.end()

        rows: list[Dispatch] = []
        balancer = balancer_of(*[websocket_app(echo)] * 3, rows=rows)
        run(work())
        (row,) = rows
        assert (row.replica, row.method, row.path, row.status) == ("web1", "WEBSOCKET", "/", 101)
        assert (row.client, row.complete) == ("192.0.2.7", True)
        assert active(balancer) == [0, 0, 0]

    def test_each_websocket_stays_with_its_replica(self) -> None:
        async def work() -> None:
            async with self.open(balancer) as first, self.open(balancer) as second:
                for client, name in ((first, b"web1"), (second, b"web2")):
                    assert (b"x-lbkit-replica", name) in (await client.get())["headers"]
                for client in (second, first, second, first):
                    client.put("websocket.receive", text="x")
                    await client.get()
                assert active(balancer) == [1, 1]

        balancer = balancer_of(*[websocket_app(echo)] * 2)
        run(work())
        assert active(balancer) == [0, 0]

    def test_the_subprotocol_is_negotiated_by_the_replica(self) -> None:
        async def work() -> None:
            async with self.open(
                balancer_of(websocket_app(echo)), subprotocols=["chat.v2", "chat.v1"]
            ) as client:
                assert (await client.get())["subprotocol"] == "chat.v2"

        run(work())

    def test_a_close_by_the_replica_keeps_its_code_and_reason(self) -> None:
        async def work() -> None:
            async with self.open(balancer_of(websocket_app(echo), rows=rows)) as client:
                await client.get()
                client.put("websocket.receive", text="bye")
                await client.get()
                assert await client.get() == {
                    "type": "websocket.close",
                    "code": 4001,
                    "reason": "as you wish",
                }
                await client.end()

        rows: list[Dispatch] = []
        run(work())
        assert [(row.status, row.complete) for row in rows] == [(101, True)]

    def test_the_close_code_of_the_client_reaches_the_replica(self) -> None:
        codes: list[tuple[int, str]] = []

        async def endpoint(socket: WebSocket) -> None:
            await socket.accept()
            try:
                await socket.receive_text()
            except WebSocketDisconnect as error:
                codes.append((error.code, error.reason))

        async def work() -> None:
            async with self.open(balancer_of(websocket_app(endpoint))) as client:
                await client.get()
                client.put("websocket.disconnect", code=4003, reason="moving on")
                await client.end()

        run(work())
        assert codes == [(4003, "moving on")]

    def test_a_handshake_refused_by_the_replica_is_a_403(self) -> None:
        async def work() -> None:
            app = websocket_app(lambda socket: socket.close(1008))
            async with self.open(balancer_of(app, rows=rows)) as client:
                assert (await client.get())["type"] == "websocket.close"
                await client.end()

        rows: list[Dispatch] = []
        run(work())
        assert [(row.status, row.complete) for row in rows] == [(403, True)]

    def test_a_denial_response_passes_through_with_the_replicas_name(self) -> None:
        async def deny(socket: WebSocket) -> None:
            await socket.send_denial_response(PlainTextResponse("members only", 401))

        async def work() -> list[Message]:
            async with self.open(balancer_of(websocket_app(deny), rows=rows), extensions=DENIAL) as client:
                return await client.messages()

        rows: list[Dispatch] = []
        first, *rest = run(work())
        assert (first["type"], first["status"]) == ("websocket.http.response.start", 401)
        assert first["headers"][-1] == (b"x-lbkit-replica", b"web1")
        assert b"".join(each["body"] for each in rest) == b"members only"
        assert [(row.status, row.complete) for row in rows] == [(401, True)]

    def test_a_failure_before_accept_is_a_502_where_the_server_can_say_so(self) -> None:
        async def fail(_: WebSocket) -> None:
            raise RuntimeError("no room")

        async def work(**scope: Any) -> list[Message]:
            async with self.open(balancer_of(websocket_app(fail), rows=rows), **scope) as client:
                return await client.messages()

        rows: list[Dispatch] = []
        first, last = run(work(extensions=DENIAL))
        assert (first["type"], first["status"]) == ("websocket.http.response.start", 502)
        assert (b"x-lbkit-replica", b"web1") in first["headers"]
        assert last["type"] == "websocket.http.response.body"
        assert run(work()) == [{"type": "websocket.close", "code": 1011, "reason": "bad gateway"}]
        assert [(row.status, row.complete) for row in rows] == [(502, True), (403, True)]

    def test_a_failure_after_accept_goes_on_to_the_server_which_cuts(self) -> None:
        async def fail(socket: WebSocket) -> None:
            await socket.accept()
            raise RuntimeError("in the middle")

        async def work() -> None:
            async with self.open(balancer) as client:
                await client.get()
                with pytest.raises(RuntimeError, match="in the middle"):
                    await client.end()
                assert client.silent

        rows: list[Dispatch] = []
        balancer = balancer_of(websocket_app(fail), rows=rows)
        run(work())
        assert [(row.status, row.complete) for row in rows] == [(101, False)]
        assert active(balancer) == [0]

    def test_a_client_that_leaves_before_accept_is_a_499(self) -> None:
        async def wait(_: Scope, receive: Receive, __: Send) -> None:
            while (await receive())["type"] != "websocket.disconnect":
                pass

        async def work() -> list[Message]:
            async with self.open(balancer_of(wait, rows=rows)) as client:
                client.put("websocket.disconnect", code=1006)
                return await client.messages()

        rows: list[Dispatch] = []
        assert run(work()) == []
        assert [(row.status, row.complete) for row in rows] == [(499, False)]


class Recorder:
    """An app with a lifespan that tells what happens to it, and a state of its own."""

    def __init__(self, name: str, log: list[str], *, fail: str | None = None) -> None:
        self.name, self.log, self.fail = name, log, fail
        self.app = Starlette(lifespan=self.lifespan, routes=[Route("/", self.page)])

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[dict[str, Any]]:
        if self.fail == "startup":
            self.log.append(f"{self.name} fails")
            raise ConnectionError("no database")
        self.log.append(f"{self.name} starts")
        yield {"name": self.name, "hits": []}
        self.log.append(f"{self.name} stops")
        if self.fail == "shutdown":
            raise OSError("cannot flush")

    async def page(self, request: Request) -> PlainTextResponse:
        request.state.hits.append(1)
        request.state.seen = True  # in this request's copy alone
        return PlainTextResponse(
            f"{request.state.name} {len(request.state.hits)} {'seen' in request.scope['state']}"
        )


class Server:
    """The lifespan side of a server."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def startup(self) -> Message:
        self.connection.put("lifespan.startup")
        return await self.connection.get()

    async def shutdown(self) -> Message:
        self.connection.put("lifespan.shutdown")
        message = await self.connection.get()
        await self.connection.end()
        return message


@asynccontextmanager
async def server(app: ASGIApp, **scope: Any) -> AsyncIterator[Server]:
    given = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}, **scope}
    async with connected(app, given) as connection:
        yield Server(connection)


class TestLifespan:
    def test_replicas_start_one_after_another_and_each_keeps_its_own_state(self) -> None:
        async def work() -> None:
            balancer = Balancer({"b": Recorder("b", log).app, "a": Recorder("a", log).app})
            async with server(balancer) as lifespan:
                assert await lifespan.startup() == {"type": "lifespan.startup.complete"}
                assert log == ["b starts", "a starts"]
                texts = [body_of(await exchange(balancer, http_scope())).decode() for _ in range(4)]
                # Lists in the state are shared between the requests of a replica, names in it are not.
                assert texts == ["b 1 True", "a 1 True", "b 2 True", "a 2 True"]
                assert await lifespan.shutdown() == {"type": "lifespan.shutdown.complete"}
            assert log == ["b starts", "a starts", "b stops", "a stops"]

        log: list[str] = []
        run(work())

    def test_the_state_of_a_request_is_a_copy_and_keeps_what_the_server_added(self) -> None:
        seen: list[dict[str, Any]] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await receive()
                scope["state"]["mine"] = 1
                await send({"type": "lifespan.startup.complete"})
                await receive()
                await send({"type": "lifespan.shutdown.complete"})
                return
            seen.append(dict(scope["state"]))
            scope["state"]["leak"] = True
            await start(send, 204)
            await body(send, b"")

        async def work() -> None:
            balancer, outer = balancer_of(app), {"outer": 0}
            async with server(balancer, state=outer) as lifespan:
                await lifespan.startup()
                for _ in range(2):
                    await exchange(balancer, http_scope(state={"outer": 0, "mine": "hidden"}))
                await lifespan.shutdown()
            assert outer == {"outer": 0}

        run(work())
        assert seen == [{"outer": 0, "mine": 1}] * 2

    def test_a_startup_that_fails_names_the_replica_and_stops_the_ones_before(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def work() -> None:
            apps = [
                Recorder("1", log),
                Recorder("2", log),
                Recorder("3", log, fail="startup"),
                Recorder("4", log),
            ]
            async with server(Balancer([each.app for each in apps])) as lifespan:
                message = await lifespan.startup()
                assert message["type"] == "lifespan.startup.failed"
                assert message["message"] == "replica web3 failed to start: ConnectionError: no database"
                await lifespan.connection.end()

        log: list[str] = []
        run(work())
        assert log == ["1 starts", "2 starts", "3 fails", "1 stops", "2 stops"]
        assert "replica web3 failed to start: ConnectionError: no database" in caplog.text

    def test_a_startup_failure_said_by_message_alone_is_told_in_its_words(self) -> None:
        async def app(_: Scope, receive: Receive, send: Send) -> None:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": "no licence"})

        async def silent(_: Scope, receive: Receive, send: Send) -> None:
            await receive()
            await send({"type": "lifespan.startup.failed"})

        async def work(app: ASGIApp) -> str:
            async with server(balancer_of(app)) as lifespan:
                return str((await lifespan.startup())["message"])

        assert run(work(app)) == "replica web1 failed to start: no licence"
        assert run(work(silent)) == "replica web1 failed to start: it gave no reason"

    def test_a_shutdown_that_fails_names_the_replica_and_the_others_still_stop(self) -> None:
        async def work() -> None:
            apps = [Recorder("1", log), Recorder("2", log, fail="shutdown"), Recorder("3", log)]
            async with server(Balancer([each.app for each in apps])) as lifespan:
                await lifespan.startup()
                message = await lifespan.shutdown()
            assert message["type"] == "lifespan.shutdown.failed"
            assert message["message"] == "replica web2 failed to shut down: OSError: cannot flush"

        log: list[str] = []
        run(work())
        assert log[3:] == ["1 stops", "2 stops", "3 stops"]

    def test_an_app_without_a_lifespan_is_no_failure(self) -> None:
        async def raises(scope: Scope, _: Receive, send: Send) -> None:
            assert scope["type"] == "http"
            await start(send, 204)
            await body(send, b"")

        async def returns(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await raises(scope, receive, send)

        def old(_: Any, start_response: Any) -> list[bytes]:
            start_response("204 No Content", [])
            return []

        async def work() -> None:
            balancer = Balancer([raises, returns, old])
            async with server(balancer) as lifespan:
                assert await lifespan.startup() == {"type": "lifespan.startup.complete"}
                statuses = [(await exchange(balancer, http_scope()))[0]["status"] for _ in range(3)]
                assert statuses == [204, 204, 204]
                assert await lifespan.shutdown() == {"type": "lifespan.shutdown.complete"}

        run(work())

    def test_an_app_that_ends_while_it_serves_is_reported_at_the_shutdown(self) -> None:
        async def work() -> None:
            crash = asyncio.Event()

            async def app(_: Scope, receive: Receive, send: Send) -> None:
                await receive()
                await send({"type": "lifespan.startup.complete"})
                await crash.wait()
                raise LookupError("lost it")

            async with server(balancer_of(app)) as lifespan:
                await lifespan.startup()
                crash.set()
                await settle()
                message = await lifespan.shutdown()
            assert message["message"] == "replica web1 failed to shut down: LookupError: lost it"

        run(work())

    def test_a_balancer_starts_again_after_it_was_stopped(self) -> None:
        async def work() -> None:
            balancer = Balancer([Recorder("1", log).app])
            for _ in range(2):
                async with server(balancer) as lifespan:
                    assert (await lifespan.startup())["type"] == "lifespan.startup.complete"
                    assert body_of(await exchange(balancer, http_scope())) == b"1 1 True"
                    await lifespan.shutdown()

        log: list[str] = []
        run(work())
        assert log == ["1 starts", "1 stops"] * 2

    def test_a_cancelled_start_leaves_no_replica_running(self) -> None:
        async def work() -> None:
            reached = asyncio.Event()

            async def slow(_: Scope, receive: Receive, __: Send) -> None:
                await receive()
                reached.set()
                await asyncio.Event().wait()

            async with server(Balancer([Recorder("1", log).app, slow])) as lifespan:
                lifespan.connection.put("lifespan.startup")
                await asyncio.wait_for(reached.wait(), 30)
                lifespan.connection.task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await lifespan.connection.task

        log: list[str] = []
        run(work())
        assert log == ["1 starts", "1 stops"]

    def test_a_server_that_is_killed_while_it_serves_leaves_no_replica_running(self) -> None:
        async def work() -> None:
            async with server(Balancer([Recorder("1", log).app, Recorder("2", log).app])) as lifespan:
                await lifespan.startup()
                lifespan.connection.task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await lifespan.connection.task

        log: list[str] = []
        run(work())  # fails when tasks are left

    def test_both_halves_of_a_lifespan_run_in_one_task(self) -> None:
        tasks: list[Any] = []

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            tasks.append(asyncio.current_task())
            async with asyncio_scope():
                yield
            tasks.append(asyncio.current_task())

        @asynccontextmanager
        async def asyncio_scope() -> AsyncIterator[None]:
            import anyio

            async with anyio.create_task_group():  # must be left by the task that entered it
                yield

        async def work() -> None:
            async with server(Balancer([Starlette(lifespan=lifespan)] * 2)) as running:
                await running.startup()
                assert (await running.shutdown())["type"] == "lifespan.shutdown.complete"

        run(work())
        assert len(tasks) == 4
        assert tasks[0] is tasks[2]
        assert tasks[1] is tasks[3]
        assert tasks[0] is not tasks[1]


def test_a_balancer_below_a_mount_forwards_and_names_as_elsewhere() -> None:
    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"{request.url} {request.headers['x-forwarded-for']}")

    rows: list[Dispatch] = []
    inner = balancer_of(Starlette(routes=[Route("/page", page)]), rows=rows)
    outer = Starlette(routes=[Mount("/shop", app=inner)])
    messages = run(exchange(outer, http_scope("/shop/page")))
    assert body_of(messages) == b"http://shop.example/shop/page 192.0.2.7"
    assert rows[0].path == "/shop/page"


def test_a_balancer_behind_a_balancer_adds_one_hop_each() -> None:
    seen: list[bytes] = []

    async def app(scope: Scope, _: Receive, send: Send) -> None:
        seen.extend(value for name, value in scope["headers"] if name == b"x-forwarded-for")
        await start(send, 204)
        await body(send, b"")

    first, _ = run(exchange(balancer_of(balancer_of(app, replica_header="x-inner")), http_scope()))
    assert seen == [b"192.0.2.7, 192.0.2.7"]
    assert first["headers"] == [(b"x-inner", b"web1"), (b"x-lbkit-replica", b"web1")]


def test_context_variables_of_the_server_reach_the_replica() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    seen: list[str] = []

    async def app(_: Scope, __: Receive, send: Send) -> None:
        seen.append(variable.get())
        await start(send, 204)
        await body(send, b"")

    async def work() -> None:
        variable.set("from outside")
        await exchange(balancer_of(app), http_scope(headers=[HOST]))

    run(work())
    assert seen == ["from outside"]
