"""Websockets to a replica in a process of its own: through the balancer, under a real uvicorn, both ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from lbkit.asgi import Balancer
from lbkit.balancer import Dispatch
from lbkit.children import Child
from tests.gateways.test_lifecycle import until

APP = "tests.children_app:create_app"


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    config = uvicorn.Config(app, port=0, log_config=None, lifespan="on", proxy_headers=False)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    await asyncio.to_thread(until, lambda: server.started, 30.0)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"ws://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@pytest.mark.parametrize("port", [None, 0], ids=["unix", "tcp"])
def test_messages_and_closes_go_both_ways_and_the_client_is_told(port: int | None) -> None:
    child, rows = Child(APP, name="web1", port=port), list[Dispatch]()

    async def talk() -> None:
        balancer = Balancer([child], profile="nginx", on_dispatch=rows.append)
        async with serving(balancer) as url:
            async with connect(f"{url}/echo", proxy=None) as client:
                assert await client.recv() == "web1 127.0.0.1"
                for text in ("one", "two", "x" * 100_000):
                    await client.send(text)
                    assert await client.recv() == text.upper()
            async with connect(f"{url}/echo", proxy=None) as client:
                await client.recv()
                await client.send("bye")
                assert await client.recv() == "BYE"
                with pytest.raises(ConnectionClosed) as closed:
                    await client.recv()
                assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "as asked")  # type: ignore[union-attr]
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"{url}/", proxy=None)
            assert refused.value.response.status_code == 403

    asyncio.run(talk())
    assert [(row.method, row.path, row.status, row.complete) for row in rows] == [
        ("WEBSOCKET", "/echo", 101, True),
        ("WEBSOCKET", "/echo", 101, True),
        ("WEBSOCKET", "/", 403, True),
    ]


def test_a_killed_replica_ends_its_websockets_and_the_next_handshake_goes_elsewhere() -> None:
    children = [Child(APP, name=f"web{n}") for n in (1, 2)]

    async def talk() -> None:
        async with serving(Balancer(children, profile="nginx")) as url:
            async with connect(f"{url}/echo", proxy=None) as client:
                assert (await client.recv()).startswith("web1")
                children[0].kill()
                with pytest.raises(ConnectionClosed):
                    await client.recv()
            for _ in range(2):
                async with connect(f"{url}/echo", proxy=None) as client:
                    assert (await client.recv()).startswith("web2")

    asyncio.run(talk())
