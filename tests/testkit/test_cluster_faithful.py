"""What a replica in a process of its own would do, a replica of a cluster does as well."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from lbkit.errors import ConfigError, StartupError
from lbkit.testkit import Cluster, WebsocketClosed
from lbkit.types import Message, Receive, Scope, Send
from tests.gateways.connection import connected, http_scope, run, websocket_scope
from tests.testkit.cluster_apps import Notes, flask_shop, starlette_shop
from tests.testkit.test_cluster import LIMIT, eventually


@pytest.fixture
def notes() -> Iterator[Notes]:
    notes = Notes()
    yield notes
    notes.go.set()


@pytest.fixture
def cluster(notes: Notes) -> Iterator[Cluster]:
    with Cluster(lambda: starlette_shop(notes), timeout=LIMIT) as cluster:
        yield cluster


def test_the_first_chunk_leaves_at_once(cluster: Cluster, notes: Notes) -> None:
    async def work() -> None:
        async with connected(cluster.asgi, http_scope("/stream")) as client:
            client.body()
            assert (await client.get())["status"] == 200
            assert (await client.get())["body"] == b"one"
            notes.go.set()
            assert (await client.get())["body"] == b"two"
            await client.end()

    run(work())


def test_a_background_task_is_inside_after_the_last_byte(cluster: Cluster, notes: Notes) -> None:
    async def work() -> None:
        async with connected(cluster.asgi, http_scope("/later")) as client:
            client.body()
            await client.get()
            await client.get()
            row = cluster.trace[0]
            assert row.complete
            assert row.open
            assert cluster["web1"].active == 1
            notes.go.set()
            await client.end()
            assert not row.open
            assert notes.told[-1] == "background done"

    run(work())


def test_a_drain_waits_for_background_tasks(cluster: Cluster, notes: Notes) -> None:
    async def work() -> None:
        async with connected(cluster.asgi, http_scope("/later")) as client:
            client.body()
            await client.get()
            await client.get()
            drain = asyncio.create_task(cluster["web1"].adrain(LIMIT))
            await asyncio.sleep(0)
            notes.go.set()
            assert await drain == 0
            assert notes.told[-2:] == ["background done", "shutdown"]

    run(work())


def test_a_client_that_leaves_is_seen_by_the_app() -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, _: Send) -> None:
        if scope["type"] == "http":
            seen.extend([await receive(), await receive()])

    with Cluster([app] * 2) as other:

        async def work() -> None:
            async with connected(other.asgi, http_scope("/")) as client:
                client.body()
                client.put("http.disconnect")
                await client.end()

        run(work())
        assert [each["type"] for each in seen] == ["http.request", "http.disconnect"]
        assert other.trace[0].disconnected
        assert not other.trace[0].lost


def test_a_client_that_is_cancelled_takes_the_app_with_it(cluster: Cluster, notes: Notes) -> None:
    async def work() -> None:
        async with connected(cluster.asgi, http_scope("/slow")) as client:
            client.body()
            await asyncio.to_thread(eventually, lambda: "slow began" in notes.told)
            client.task.cancel()
            await asyncio.to_thread(eventually, lambda: "slow cancelled" in notes.told)
            await asyncio.to_thread(eventually, lambda: cluster["web1"].active == 0)

    run(work())


def test_a_killed_replica_never_cancels_its_client(cluster: Cluster, notes: Notes) -> None:
    async def work() -> None:
        async with connected(cluster.asgi, http_scope("/slow")) as client:
            client.body()
            await asyncio.to_thread(eventually, lambda: "slow began" in notes.told)
            notes.told.clear()
            await cluster["web1"].akill()
            assert "slow cancelled" in notes.told
            notes.go.set()
            assert (await client.get())["status"] == 200  # the next replica's answer
            assert [attempt.replica for attempt in cluster.trace[0].attempts] == ["web1", "web2"]

    run(work())


def test_a_post_whose_replica_is_killed_is_a_bad_gateway(notes: Notes) -> None:
    async def app(scope: Scope, receive: Receive, _: Send) -> None:
        if scope["type"] == "http":
            await receive()
            notes.tell("inside")
            await asyncio.sleep(LIMIT)

    with Cluster([app] * 2, timeout=LIMIT) as other:

        async def work() -> None:
            async with connected(other.asgi, http_scope("/", method="POST")) as client:
                client.body()
                await asyncio.to_thread(eventually, lambda: "inside" in notes.told)
                await other["web1"].akill()
                assert (await client.get())["status"] == 502

        run(work())


def test_each_replica_has_a_lifespan_and_a_state_of_its_own(notes: Notes) -> None:
    with Cluster(lambda: starlette_shop(notes)) as cluster:
        assert notes.told == ["startup"] * 3
        client = cluster.client()
        assert len({client.get("/pool").text for _ in range(6)}) == 3
        cluster["web1"].kill()
        assert "shutdown" not in notes.told
        cluster["web2"].drain()
        assert notes.told.count("shutdown") == 1
    assert notes.told.count("shutdown") == 2


def test_a_lifespan_that_fails_names_the_replica() -> None:
    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.raises(StartupError, match="replica web1 failed to start: no database"):
        Cluster([app] * 3).start()


def test_a_websocket_stays_with_its_replica_and_is_closed_with_1012(cluster: Cluster) -> None:
    client = cluster.client()
    with client.ws("/room") as socket:
        for word in ("tea", "pot"):
            socket.send_text(word)
            assert socket.receive_text() == f"echo {word}"
        assert socket.replica == "web1"
        cluster["web1"].kill()
        with pytest.raises(WebsocketClosed, match=r"closed with 1012 .*by web1"):
            socket.receive_text()
    assert [len(row.attempts) for row in cluster.trace] == [1]


def test_a_websocket_without_a_replica_is_closed_with_1013(cluster: Cluster) -> None:
    for replica in cluster:
        replica.drain()
    with pytest.raises(WebsocketClosed) as refused, cluster.client().ws("/room"):
        pass
    assert refused.value.code == 1013


def test_a_websocket_goes_to_the_next_replica_when_the_first_refuses(cluster: Cluster) -> None:
    cluster["web1"].kill()
    with cluster.client().ws("/room") as socket:
        assert socket.replica != "web1"


def test_the_goodbye_of_a_websocket_reaches_the_app(cluster: Cluster, notes: Notes) -> None:
    with cluster.client().ws("/room"):
        pass
    assert notes.told[-1] == "left with 1000"
    assert not cluster.trace[0].lost


def test_a_room_that_lives_in_one_replica_is_told_by_name() -> None:
    def chat() -> Starlette:
        room: list[WebSocket] = []

        async def talk(socket: WebSocket) -> None:
            await socket.accept()
            room.append(socket)
            try:
                while True:
                    text = await socket.receive_text()
                    for each in room:
                        await each.send_text(text)
            except WebSocketDisconnect:
                room.remove(socket)

        return Starlette(routes=[WebSocketRoute("/chat", talk)])

    with Cluster(chat) as cluster:
        client = cluster.client()
        with client.ws("/chat", replica="web1") as a, client.ws("/chat", replica="web2") as b:
            a.send_text("hi")
            assert a.receive_text() == "hi"
            rule = "held by web2; messages were sent on web1 only"
            with pytest.raises(TimeoutError, match=rule):
                b.receive_text(timeout=0.05)
            client.websocket_patience = 0.05
            with client.on("web3"), client.websocket_connect("/chat") as c:
                with pytest.raises(TimeoutError, match="held by web3; messages were sent on web1 only"):
                    c.receive_text()
                c.send_text("hello")
                assert c.receive_text() == "hello"


def test_a_wsgi_app_has_no_websockets(notes: Notes) -> None:
    with Cluster(lambda: flask_shop(notes)) as cluster, pytest.raises(AttributeError):
        cluster.client().ws("/room")


def test_a_body_that_is_not_read_is_closed(notes: Notes) -> None:
    with Cluster(lambda: flask_shop(notes)) as cluster:
        answer = cluster.client().get("/stream")
        assert cluster["web1"].active == 1
        answer.close()
        assert notes.told == ["stream closed"]
        assert cluster["web1"].active == 0
        assert cluster.trace[0].disconnected


def test_an_app_that_is_silent_is_given_up_and_runs_on_as_a_zombie(notes: Notes) -> None:
    with Cluster(lambda: starlette_shop(notes), timeout=0.05) as cluster:
        client = cluster.client()
        assert client.get("/slow").status_code == 502
        row = cluster.trace[0]
        assert [attempt.replica for attempt in row.attempts] == ["web1", "web2", "web3"]
        assert all(attempt.zombie for attempt in row.attempts)
        assert "slow cancelled" not in notes.told


def test_a_denial_of_the_handshake_is_passed_through() -> None:
    async def app(scope: Scope, _: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            start = {"type": "websocket.http.response.start", "status": 401, "headers": []}
            await send(start)
            await send({"type": "websocket.http.response.body", "body": b"who are you?"})

    async def work(other: Cluster) -> None:
        extensions = {"websocket.http.response": {}}
        async with connected(other.asgi, websocket_scope("/", extensions=extensions)) as client:
            client.put("websocket.connect")
            assert (await client.get())["status"] == 401
            assert (await client.get())["body"] == b"who are you?"

    with Cluster([app] * 2) as other:
        run(work(other))
        assert other.trace[0].status == 401


def test_inside_the_loop_of_the_replicas_one_has_to_await(cluster: Cluster) -> None:
    async def work() -> None:
        with pytest.raises(ConfigError, match="need `await`"):
            cluster["web1"].kill()

    cluster.run(work())


def test_a_slow_upload_is_no_silence_of_the_replica(notes: Notes) -> None:
    with Cluster(lambda: starlette_shop(notes), timeout=0.05) as cluster:

        async def work() -> None:
            async with connected(cluster.asgi, http_scope("/", method="POST")) as client:
                client.body(b"te", more=True)
                await asyncio.sleep(0.2)  # four times the patience with a replica
                client.body(b"a")
                assert (await client.get())["status"] == 200

        run(work())
        assert cluster.trace[0].bytes_in == 3


def test_with_loops_of_their_own_one_that_blocks_holds_up_nobody_else(notes: Notes) -> None:
    with Cluster(lambda: starlette_shop(notes), own_loops=True, timeout=0.1) as cluster:
        client = cluster.client()
        assert client.get("/block").status_code == 200  # the next replica's, for this one waits for a thread
        assert [str(attempt) for attempt in cluster.trace[0].attempts] == [
            "web1 timeout (zombie)",
            "web2 200",
        ]
        assert [client.get("/").status_code for _ in range(2)] == [200, 200]
        cluster["web1"].kill()
        assert client.get("/").status_code == 200
        notes.go.set()
        cluster["web1"].start()
        with client.on("web1"):
            assert client.get("/").json()["hits"] == 1
            assert client.get("/pool").status_code == 200
        with client.ws("/room", replica="web1") as socket:
            socket.send_text("tea")
            assert socket.receive_text() == "echo tea"
