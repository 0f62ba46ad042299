"""What only ASGI can do under a profile: clients that leave, cancellation, websockets, streams."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from lbkit.asgi import Balancer
from lbkit.balancer import Dispatch
from lbkit.types import Message, Receive, Scope, Send

HTTP: Scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": ("192.0.2.7", 1)}


class Client:
    """A client at the server's end: what it sends, what it gets, and how it leaves."""

    def __init__(self, balancer: Balancer, **scope: Any) -> None:
        self.sent: list[Message] = []
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self.task = asyncio.create_task(balancer({**HTTP, **scope}, self._to_app.get, self._send))

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    def says(self, **message: Any) -> None:
        self._to_app.put_nowait(message)

    async def until(self, true: Callable[[], bool]) -> None:
        async def poll() -> None:
            while not true():  # noqa: ASYNC110 - what it waits for is in the balancer
                await asyncio.sleep(0.001)

        await asyncio.wait_for(poll(), 10)


async def forever(_: Scope, receive: Receive, __: Send) -> None:
    """It answers when the client has left: never."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def streaming(_: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"one", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass


async def background(_: Scope, receive: Receive, send: Send) -> None:
    """It answers at once and then works on, until the client is gone."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})
    while (await receive())["type"] != "http.disconnect":
        pass


async def room(_: Scope, receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def ok(_: Scope, __: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


class Seen:
    def __init__(self, *apps: Any, profile: str = "nginx", **options: Any) -> None:
        self.rows: list[Dispatch] = []
        self.balancer = Balancer(apps, profile=profile, on_dispatch=self.rows.append, **options)
        self.model: Any = self.balancer._carrier.backend.model  # type: ignore[union-attr]

    def inside(self) -> list[int]:
        counted = getattr(self.model, "peers", None) or self.model.nodes
        return [each.conns if hasattr(each, "conns") else each.served for each in counted]

    def active(self) -> list[int]:
        return [state.active for state in self.balancer.pool.states]


def run(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(story())  # type: ignore[arg-type]


def test_a_client_that_leaves_before_the_answer_is_a_499_and_nobodys_failure() -> None:
    seen = Seen(forever, ok)

    async def story() -> None:
        client = Client(seen.balancer)
        await client.until(lambda: seen.inside() == [1, 0])
        client.says(type="http.disconnect")
        await client.task

    run(story)
    assert [(row.status, row.complete) for row in seen.rows] == [(499, False)]
    assert [each.outcome for each in seen.rows[0].attempts] == ["left"]
    assert (seen.inside(), seen.active(), seen.balancer.explain()) == ([0, 0], [0, 0], {})


def test_a_cancelled_request_gives_back_what_it_held() -> None:
    seen = Seen(forever, ok)

    async def story() -> None:
        client = Client(seen.balancer)
        await client.until(lambda: seen.inside() == [1, 0])
        client.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client.task

    run(story)
    assert (seen.inside(), seen.active(), seen.balancer.explain()) == ([0, 0], [0, 0], {})


def test_a_request_that_is_cancelled_in_the_queue_leaves_it() -> None:
    seen = Seen(forever, profile="haproxy@2.6", max_conns=1)

    async def story() -> None:
        first, second = Client(seen.balancer), Client(seen.balancer)
        await first.until(lambda: seen.model.nodes[0].served == 1 and len(seen.model._queue) == 1)
        second.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second.task
        assert not len(seen.model._queue)
        first.says(type="http.disconnect")
        await first.task

    run(story)
    assert (seen.inside(), seen.active()) == ([0], [0])


def test_a_stream_keeps_its_replica_busy_until_it_ends() -> None:
    seen = Seen(streaming, ok)

    async def story() -> None:
        client = Client(seen.balancer)
        await client.until(lambda: len(client.sent) == 2)
        assert client.sent[1]["body"] == b"one"
        assert seen.inside() == [1, 0]
        client.says(type="http.disconnect")
        await client.task

    run(story)
    assert [(row.status, row.complete) for row in seen.rows] == [(200, False)]
    assert (seen.inside(), seen.balancer.explain()) == ([0, 0], {})


def test_a_replica_is_free_when_its_answer_has_left_though_its_app_works_on() -> None:
    seen = Seen(background, ok)

    async def story() -> None:
        client = Client(seen.balancer)
        await client.until(lambda: len(client.sent) == 2)
        assert (seen.inside(), seen.active()) == ([0, 0], [1, 0])
        client.says(type="http.disconnect")
        await client.task

    run(story)
    assert [(row.status, row.complete) for row in seen.rows] == [(200, True)]
    assert seen.active() == [0, 0]


def test_a_websocket_counts_until_it_is_closed_and_a_refusing_replica_is_passed_over() -> None:
    seen = Seen(room, room)
    seen.balancer.replicas["web1"].stop()

    async def story() -> None:
        client = Client(seen.balancer, type="websocket", scheme="ws")
        client.says(type="websocket.connect")
        await client.until(lambda: len(client.sent) == 1)
        assert client.sent[0]["type"] == "websocket.accept"
        assert seen.inside() == [0, 1]
        client.says(type="websocket.disconnect", code=1000)
        await client.task

    run(story)
    (row,) = seen.rows
    assert (row.method, row.status, row.complete) == ("WEBSOCKET", 101, True)
    assert [each.outcome for each in row.attempts] == ["refused", "101"]
    assert (seen.inside(), seen.active()) == ([0, 0], [0, 0])


def test_a_websocket_without_a_replica_is_refused_as_the_server_can() -> None:
    seen = Seen(room)
    seen.balancer.maintain("web1")

    async def story() -> None:
        plain = Client(seen.balancer, type="websocket", scheme="ws")
        await plain.task
        assert [message["type"] for message in plain.sent] == ["websocket.close"]
        able = Client(
            seen.balancer, type="websocket", scheme="ws", extensions={"websocket.http.response": {}}
        )
        await able.task
        assert [(each["type"], each.get("status")) for each in able.sent] == [
            ("websocket.http.response.start", 502),
            ("websocket.http.response.body", None),
        ]

    run(story)


def test_a_cancellation_from_outside_is_not_taken_for_a_timeout() -> None:
    seen = Seen(forever, ok, read_timeout=30.0)

    async def story() -> None:
        client = Client(seen.balancer)
        await client.until(lambda: seen.inside() == [1, 0])
        client.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client.task

    run(story)
    assert [row.status for row in seen.rows] == [None]
    assert not seen.balancer.explain()


async def slowly(_: Scope, receive: Receive, send: Send) -> None:
    """It answers when the whole request is there, and says how much that was."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message["body"]), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % size})


def test_a_client_that_is_slow_to_send_its_request_is_no_timeout_of_the_replica() -> None:
    seen = Seen(slowly, read_timeout=0.1)

    async def story() -> None:
        client = Client(seen.balancer, method="POST")
        for more in (True, True, False):
            await asyncio.sleep(0.15)
            client.says(type="http.request", body=b"piece", more_body=more)
        await client.task
        assert client.sent[1]["body"] == b"15"

    run(story)
    assert [row.status for row in seen.rows] == [200]


def test_the_time_for_an_answer_begins_when_the_request_is_there_and_each_has_its_own() -> None:
    seen = Seen(forever, forever, read_timeout=0.1)

    async def story() -> None:
        clients = [Client(seen.balancer, method="POST") for _ in range(3)]
        for client in clients:
            client.says(type="http.request", body=b"", more_body=False)
        for client in clients:
            await client.task

    run(story)
    assert [(row.status, row.attempts[0].outcome) for row in seen.rows] == [(504, "timeout")] * 3
    assert all(row.attempts[0].seconds >= 0.1 for row in seen.rows)
    assert (seen.inside(), seen.active()) == ([0, 0], [0, 0])
