"""A replica at a URL or a unix socket through both gateways, with a real server at the other end."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from lbkit import asgi, wsgi
from lbkit.asgi.upstream import Upstream as ASGIUpstream
from lbkit.children import Child
from lbkit.errors import ReplicaRefused, ReplicaReset, ReplicaTimeout
from lbkit.wsgi.upstream import Upstream as WSGIUpstream
from tests.gateways.test_balancer import PEER, send_asgi, send_wsgi
from tests.health_gateways import running_loop

APP = "tests.children_app:create_app"


class Way:
    """A gateway to the child: how to make an upstream of an address, and how to ask an app."""

    def __init__(self, upstream: Callable[[str], Any], send: Callable[..., httpx.Response]) -> None:
        self.upstream = upstream
        self.send = send

    def ask(self, app: Any, path: str = "/", **request: Any) -> httpx.Response:
        request = {"method": "GET", "url": f"http://shop.example{path}", **request}
        return self.send(app, httpx.Request(**request))


@pytest.fixture(scope="module", params=["unix", "tcp"])
def child(request: pytest.FixtureRequest) -> Iterator[Child]:
    child = Child(APP, name="web7", port=None if request.param == "unix" else 0)
    child.start()
    yield child
    child.stop(timeout=1.0)  # what hangs in it is not waited for


@pytest.fixture(scope="module", params=["asgi", "wsgi"])
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    made: list[Any] = []

    def keep(upstream: Any) -> Any:
        made.append(upstream)
        return upstream

    if request.param == "wsgi":
        yield Way(lambda url: keep(WSGIUpstream(url)), send_wsgi)
        for each in made:
            each.close()
        return
    with running_loop() as loop:
        yield Way(lambda url: keep(ASGIUpstream(url)), lambda *request: send_asgi(loop, *request))
        for each in made:
            asyncio.run_coroutine_threadsafe(each.aclose(), loop).result(timeout=5)


@pytest.fixture(scope="module")
def upstream(child: Child, way: Way) -> Any:
    return way.upstream(child.address)


def test_method_path_query_and_headers_arrive_as_they_were_sent(way: Way, upstream: Any) -> None:
    told = way.ask(
        upstream,
        "/a//b;c=1/%25?x=1&y=%20",
        method="DELETE",
        headers={"X-Mine": "1", "Connection": "x-mine"},
    ).json()
    assert (told["method"], told["path"], told["query"]) == ("DELETE", "/a//b;c=1/%25", "x=1&y=%20")
    assert told["headers"]["host"] == "shop.example"
    assert "x-mine" not in told["headers"]
    assert "user-agent" not in told["headers"]


def test_a_body_goes_up_and_the_answer_comes_down(way: Way, upstream: Any) -> None:
    body = b"x" * 300_000
    assert way.ask(upstream, "/upload", method="POST", content=body).json() == {"size": len(body)}
    assert way.ask(upstream, "/stream?chunks=4").content == b"0\n1\n2\n3\n"
    assert way.ask(upstream, method="HEAD").content == b""


def test_who_is_not_there_has_refused(way: Way) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ReplicaRefused):
        way.ask(way.upstream(f"http://127.0.0.1:{port}"))
    with pytest.raises(ReplicaRefused):
        way.ask(way.upstream("unix:/nowhere/at.sock"))


def test_who_hangs_up_before_it_answers_has_reset(way: Way) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        with pytest.raises(ReplicaReset):
            way.ask(way.upstream(f"http://127.0.0.1:{server.getsockname()[1]}"))


def test_an_answer_that_is_cut_is_no_short_answer(way: Way) -> None:
    child = Child(APP)
    child.start()
    with pytest.raises(ReplicaReset, match="the answer was cut"):
        way.ask(way.upstream(child.address), "/cut")
    child.stop(timeout=1.0)  # what hangs in it is not waited for


def test_a_balancer_over_urls_apps_and_children_names_who_answered(way: Way, child: Child) -> None:
    upstream = way.upstream(child.address)
    balancer: Any = wsgi.Balancer if isinstance(upstream, WSGIUpstream) else asgi.Balancer
    answer = way.ask(balancer({"away": upstream}))
    assert answer.headers["x-lbkit-replica"] == "away"
    told = answer.json()
    assert told["headers"]["x-forwarded-for"] == PEER
    assert told["client"] == PEER
    assert {"date", "server"}.isdisjoint(answer.headers)  # of one hop: a server in front has its own


def test_a_wsgi_upstream_gives_up_an_answer_that_does_not_begin(child: Child) -> None:
    upstream = WSGIUpstream(child.address, read_timeout=0.05)
    with pytest.raises(ReplicaTimeout):
        send_wsgi(upstream, httpx.Request("GET", "http://shop.example/hang"))
    upstream.close()


def test_a_wsgi_body_of_unknown_length_is_sent_in_chunks(child: Child) -> None:
    upstream = WSGIUpstream(child.address)
    environ = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/upload",
        "HTTP_TRANSFER_ENCODING": "chunked",
        "wsgi.input": io.BytesIO(b"x" * 70_000),
        "wsgi.input_terminated": True,
    }
    body = upstream(environ, lambda *_: bytes)
    assert b"".join(body) == b'{"size":70000}'
    body.close()  # type: ignore[attr-defined]
    upstream.close()


def test_the_first_chunk_leaves_before_the_second_is_made(child: Child) -> None:
    async def first() -> bytes:
        got: asyncio.Queue[Any] = asyncio.Queue()
        left = asyncio.Event()

        async def receive() -> Any:
            await left.wait()
            return {"type": "http.disconnect"}

        upstream = ASGIUpstream(child.address)
        scope = {
            "type": "http", "method": "GET", "path": "/stream", "query_string": b"chunks=1000&every=60",
            "headers": [(b"host", b"shop.example")], "http_version": "1.1",
        }  # fmt: skip
        request = asyncio.create_task(upstream(scope, receive, got.put))
        assert (await got.get())["status"] == 200
        chunk = (await got.get())["body"]
        left.set()  # and a client that leaves ends it
        await asyncio.wait_for(request, timeout=10)
        await upstream.aclose()
        return bytes(chunk)

    assert asyncio.run(first()) == b"0\n"


def test_a_length_beside_chunks_is_not_believed(child: Child) -> None:
    sent: list[Any] = []
    pieces = [b"x" * 10, b"y" * 20]

    async def receive() -> Any:
        if not pieces:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> None:
        upstream = ASGIUpstream(child.address)
        headers = [(b"host", b"x"), (b"content-length", b"3"), (b"transfer-encoding", b"chunked")]
        scope = {"type": "http", "method": "POST", "path": "/upload", "headers": headers}
        await upstream(scope, receive, send)
        await upstream.aclose()

    asyncio.run(ask())
    assert b"".join(each.get("body", b"") for each in sent) == b'{"size":30}'
