"""One request to a trivial app, called as a server calls it: what anything in front of the app adds shows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

import werkzeug.test

from benchmarks._measure import Batch
from lbkit.types import ASGIApp, Environ, Message, Receive, Scope, Send, StartResponse, WSGIApp

__all__ = [
    "BODY",
    "Headers",
    "asgi_app",
    "asgi_calls",
    "environ",
    "environs",
    "receive",
    "scope",
    "scopes",
    "send",
    "start_response",
    "wsgi_app",
    "wsgi_calls",
]

Headers = dict[str, str]

BODY = b"hello"

# What a browser sends, more or less.
BROWSER = {
    "host": "shop.example",
    "user-agent": "Mozilla/5.0",
    "accept": "*/*",
    "accept-encoding": "gzip, br",
    "connection": "keep-alive",
}


def scope(*, peer: str = "192.0.2.7") -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in BROWSER.items()],
        "client": (peer, 4711),
        "server": ("127.0.0.1", 8000),
    }


def environ(*, peer: str = "192.0.2.7") -> Environ:
    made = werkzeug.test.EnvironBuilder(headers=list(BROWSER.items())).get_environ()
    return {**made, "REMOTE_ADDR": peer, "REMOTE_PORT": "4711"}


def scopes(headers: Iterable[Headers], *, peer: str = "192.0.2.7") -> Iterator[Scope]:
    """One scope for each of these, made when it is asked for, as a server makes it."""
    first = scope(peer=peer)
    browser: list[tuple[bytes, bytes]] = first["headers"]
    for more in headers:
        lines = [(name.encode(), value.encode()) for name, value in more.items()]
        yield {**first, "headers": [*browser, *lines]}


def environs(headers: Iterable[Headers], *, peer: str = "192.0.2.7") -> Iterator[Environ]:
    first = environ(peer=peer)
    for more in headers:
        lines = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in more.items()}
        yield {**first, **lines}


async def asgi_app(_: Scope, __: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


def wsgi_app(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [BODY]


async def receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(_: Message) -> None:
    pass


def start_response(_: str, __: list[tuple[str, str]], ___: object = None, /) -> Callable[[bytes], object]:
    return bytes


def asgi_calls(loop: asyncio.AbstractEventLoop, app: ASGIApp, scopes: Iterator[Scope]) -> Batch:
    """Requests with these scopes; as from a server, each is a new one."""

    async def calls(count: int) -> None:
        for _ in range(count):
            await app(next(scopes), receive, send)

    return lambda count: loop.run_until_complete(calls(count))


def wsgi_calls(app: WSGIApp, environs: Iterator[Environ]) -> Batch:
    def calls(count: int) -> None:
        for _ in range(count):
            body = app(next(environs), start_response)
            for _ in body:
                pass
            if close := getattr(body, "close", None):
                close()

    return calls
