"""The same small site on each gateway, with our sessions, and a browser for it.

A view is written once, as a generator: where it yields, the test may do something else meanwhile, such as
another request of the same browser. So every race here is played in one order, and is the same each time.
"""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from flask import Flask, request
from flask import session as flask_session
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from lbkit.asgi import SessionMiddleware as ASGISessionMiddleware
from lbkit.asgi import Sessions as ASGISessions
from lbkit.sessions import SessionOptions
from lbkit.stores import astore_from, store_from
from lbkit.wsgi import SessionMiddleware as WSGISessionMiddleware
from lbkit.wsgi import Sessions as WSGISessions
from lbkit_flask import RedisSessionInterface
from lbkit_flask.sessions import Sessions as FlaskSessions

KEYS = ["k" * 32]
PATIENCE = 5.0
NAME = "__Host-sid"

View = Generator[None, None, str]
Meanwhile = Callable[[], object]


# What the views do.


def read(session: Any, query: dict[str, str]) -> View:
    value = session.get(query.get("k", "n"))
    yield
    return json.dumps(value)


def write(session: Any, query: dict[str, str]) -> View:
    session.get("n")
    yield
    session[query.get("k", "n")] = query.get("v", "1")
    return "ok"


def drop(session: Any, query: dict[str, str]) -> View:
    session.get("n")
    yield
    session.pop(query.get("k", "n"), None)
    return "ok"


def add(session: Any, _: dict[str, str]) -> View:
    """As everybody writes it: two at once count as one."""
    n = session.get("hits", 0)
    yield
    session["hits"] = n + 1
    return "ok"


def incr(session: Any, query: dict[str, str]) -> View:
    session.get("hits")
    yield
    session.incr("hits", int(query.get("by", "1")))
    return json.dumps(session["hits"])


def expecting(session: Any, query: dict[str, str]) -> View:
    session.expect("n")
    yield
    session["n"] = query.get("v", "1")
    return "ok"


def nest(session: Any, query: dict[str, str]) -> View:
    session.setdefault("cart", {"lines": []})["lines"].append(query.get("v", "x"))
    yield
    return "ok"


def dump(session: Any, _: dict[str, str]) -> View:
    yield
    return json.dumps(dict(session), default=str)


def login(session: Any, query: dict[str, str]) -> View:
    session.get("n")
    yield
    session["user_id"] = query.get("user", "alice")
    return "ok"


def rotate(session: Any, _: dict[str, str]) -> View:
    session.get("n")
    yield
    session.rotate()
    return "ok"


def switch(session: Any, _: dict[str, str]) -> View:
    session.get("n")
    yield
    session["n"] = "switched"
    session["user_id"] = "carol"
    return "ok"


def logout(session: Any, query: dict[str, str]) -> View:
    session.get("n")
    yield
    session.clear()
    if "flash" in query:
        session["flash"] = "bye"
    return "ok"


def big(session: Any, query: dict[str, str]) -> View:
    session["big"] = "x" * int(query["bytes"])
    yield
    return "ok"


def bad(session: Any, _: dict[str, str]) -> View:
    session["cart"] = {"lines": [object()]}
    yield
    return "ok"


def permanent(session: Any, query: dict[str, str]) -> View:
    session.permanent = query.get("v", "1") == "1"
    yield
    return "ok"


def crash(session: Any, _: dict[str, str]) -> View:
    session["n"] = "crashed"
    yield
    raise RuntimeError("the view is broken")


def broken(_: Any, __: dict[str, str]) -> View:
    yield
    raise RuntimeError("the view is broken, and has not used its session")


def untouched(_: Any, __: dict[str, str]) -> View:
    yield
    return "ok"


VIEWS = {
    f"/{view.__name__}": view
    for view in (
        read, write, drop, add, incr, expecting, nest, dump, login, rotate, switch, logout, big, bad,
        permanent, crash, broken, untouched,
    )
}  # fmt: skip


def played(view: View, meanwhile: Meanwhile) -> str:
    """Run the view, and what comes in between."""
    try:
        next(view)
        meanwhile()
        next(view)
    except StopIteration as end:
        return str(end.value)
    raise AssertionError("a view yields once")


async def aplayed(view: View, meanwhile: Meanwhile) -> str:
    try:
        next(view)
        await asyncio.to_thread(meanwhile)
        next(view)
    except StopIteration as end:
        return str(end.value)
    raise AssertionError("a view yields once")


# The browser.


@dataclass
class Reply:
    status: int
    headers: list[tuple[str, str]]
    body: str

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def set_cookies(self) -> list[str]:
        return self.all("set-cookie")

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Browser:
    site: Site
    jar: dict[str, str] = field(default_factory=dict)

    @property
    def cookie(self) -> str:
        return self.jar.get(NAME, "")

    def get(self, path: str, *, cookie: str | None = None, meanwhile: Meanwhile = lambda: None) -> Reply:
        """`cookie` is sent as it is, and the jar stays as it was."""
        sent = "; ".join(f"{name}={value}" for name, value in self.jar.items()) if cookie is None else cookie
        reply = self.site.ask(path, sent, meanwhile)
        if cookie is None:
            self.take(reply)
        return reply

    def take(self, reply: Reply) -> None:
        for line in reply.set_cookies:
            pair, *attributes = [part.strip() for part in line.split(";")]
            name, _, value = pair.partition("=")
            if "max-age=0" in [each.lower() for each in attributes]:
                self.jar.pop(name, None)
            else:
                self.jar[name] = value


class Site:
    """One app on one gateway. `meanwhile` of a request is found by a header."""

    sessions: Any

    def browser(self) -> Browser:
        return Browser(self)

    def ask(self, path: str, cookie: str, meanwhile: Meanwhile) -> Reply:
        raise NotImplementedError

    def do(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of `sessions`, whichever colour it has."""
        return getattr(self.sessions, method)(*arguments, **named)

    def close(self) -> None:
        self.do("close")


class WSGISite(Site):
    store = staticmethod(store_from)

    def __init__(self, store: object, options: SessionOptions | None, clock: Any) -> None:
        self.sessions = self.make(store, options, clock)
        self.app = self.build()

    def make(self, store: object, options: SessionOptions | None, clock: Any) -> Any:
        return WSGISessions(store, secret_keys=KEYS, options=options, **clock)

    def build(self) -> Any:
        return WSGISessionMiddleware(self.bare, store=self.sessions)

    def bare(self, environ: Any, start_response: Any) -> Any:
        session, path = environ["lbkit.session"], environ["PATH_INFO"]
        if path == "/stream":
            start_response("200 OK", [("Content-Type", "text/plain")])
            return self.stream(session)
        query = dict(parse_qsl(environ["QUERY_STRING"]))
        try:
            body = played(VIEWS[path](session, query), environ["meanwhile"])
        except RuntimeError:
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b"broken"]
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [body.encode()]

    def stream(self, session: Any) -> Iterator[bytes]:
        yield b"a"
        session["late"] = 1
        yield b"b"

    def ask(self, path: str, cookie: str, meanwhile: Meanwhile) -> Reply:
        url = urlsplit(path)
        environ = {
            "REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": url.path, "QUERY_STRING": url.query,
            "SERVER_NAME": "shop", "SERVER_PORT": "443", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "shop",
            "REMOTE_ADDR": "192.0.2.7", "HTTP_USER_AGENT": "browser", "wsgi.version": (1, 0),
            "wsgi.url_scheme": "https", "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True, "wsgi.multiprocess": True, "wsgi.run_once": False,
            "meanwhile": meanwhile,
        }  # fmt: skip
        if cookie:
            environ["HTTP_COOKIE"] = cookie
        head: list[Any] = []

        def start_response(status: str, headers: Any, _: Any = None) -> Any:
            head[:] = [int(status[:3]), list(headers)]
            return lambda _: None

        try:
            body = self.app(environ, start_response)
            try:
                sent = b"".join(body)
            finally:
                if hasattr(body, "close"):
                    body.close()
        except Exception as error:  # a server would answer so
            return Reply(500, [], f"{type(error).__name__}: {error}")
        return Reply(head[0], head[1], sent.decode())


class FlaskSite(WSGISite):
    def make(self, store: object, options: SessionOptions | None, clock: Any) -> Any:
        return FlaskSessions(store, secret_keys=KEYS, options=options, **clock)

    def build(self) -> Any:
        app = Flask("shop")
        app.session_interface = RedisSessionInterface(self.sessions)

        @app.get("/<name>")
        def answer(name: str) -> Any:
            if name == "stream":
                return app.response_class(self.stream(flask_session._get_current_object()))  # type: ignore[attr-defined]
            return played(VIEWS[f"/{name}"](flask_session, request.args), request.environ["meanwhile"])

        return app


class ASGISite(Site):
    """Its event loop runs in a thread, so that a view can wait for other requests."""

    load: Any = "cookie"
    store = staticmethod(astore_from)

    def __init__(self, store: object, options: SessionOptions | None, clock: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self.pool = ThreadPoolExecutor(64)  # a view that waits for others holds a thread
        self.loop.set_default_executor(self.pool)
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.sessions = ASGISessions(store, secret_keys=KEYS, options=options, **clock)
        self.app = self.build()

    def build(self) -> Any:
        return ASGISessionMiddleware(self.bare, store=self.sessions, load=self.load, exclude=["/untouched"])

    async def bare(self, scope: Any, _: Any, send: Any) -> None:
        session, status = scope["session"], 200
        start = {"type": "http.response.start", "headers": [(b"content-type", b"text/plain")]}
        if scope["path"] == "/stream":
            await send({**start, "status": status})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            session["late"] = 1
            await send({"type": "http.response.body", "body": b"b"})
            return
        query = dict(parse_qsl(scope["query_string"].decode()))
        try:
            body = await aplayed(VIEWS[scope["path"]](session, query), scope["meanwhile"])
        except RuntimeError:
            body, status = "broken", 500
        await send({**start, "status": status})
        await send({"type": "http.response.body", "body": body.encode()})

    def ask(self, path: str, cookie: str, meanwhile: Meanwhile) -> Reply:
        return self.wait(self.call(path, cookie, meanwhile))

    def wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    async def call(self, path: str, cookie: str, meanwhile: Meanwhile) -> Reply:
        url = urlsplit(path)
        headers = [(b"host", b"shop"), (b"user-agent", b"browser")]
        if cookie:
            headers.append((b"cookie", cookie.encode("latin-1")))
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "https",
            "method": "GET", "path": url.path, "raw_path": url.path.encode(), "root_path": "",
            "query_string": url.query.encode(), "headers": headers, "client": ("192.0.2.7", 1234),
            "server": ("shop", 443), "meanwhile": meanwhile,
        }  # fmt: skip
        messages: list[Any] = []

        said: list[Any] = [{"type": "http.request", "body": b""}]

        async def receive() -> Any:
            return said.pop() if said else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            messages.append(message)

        try:
            await self.app(scope, receive, send)
        except Exception as error:
            if not messages:  # a server would answer so
                return Reply(500, [], f"{type(error).__name__}: {error}")
        found = [(name.decode(), value.decode()) for name, value in messages[0]["headers"]]
        body = b"".join(message.get("body", b"") for message in messages)
        return Reply(messages[0]["status"], found, body.decode())

    def do(self, method: str, *arguments: Any, **named: Any) -> Any:
        return self.wait(getattr(self.sessions, method)(*arguments, **named))

    def close(self) -> None:
        super().close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.pool.shutdown()
        self.loop.close()


class StarletteSite(ASGISite):
    load = "lazy"

    def build(self) -> Any:
        async def answer(request: Request) -> Any:
            if request.url.path == "/untouched":
                return PlainTextResponse("ok")
            if request.url.path == "/broken":
                raise RuntimeError("the view is broken, and has not used its session")
            session: Any = await request.session.load()  # type: ignore[attr-defined]
            if request.url.path == "/stream":

                async def late() -> Any:
                    yield b"a"
                    session["late"] = 1
                    yield b"b"

                return StreamingResponse(late())
            view = VIEWS[request.url.path](session, dict(request.query_params))
            return PlainTextResponse(await aplayed(view, request.scope["meanwhile"]))

        middleware = Middleware(ASGISessionMiddleware, store=self.sessions, load=self.load)
        return Starlette(routes=[Route("/{name}", answer)], middleware=[middleware])


SITES: dict[str, type[Any]] = {
    "wsgi": WSGISite,
    "flask": FlaskSite,
    "asgi": ASGISite,
    "starlette": StarletteSite,
}


@contextmanager
def site(
    name: str, url: str, *, options: SessionOptions | None = None, patient: bool = True, **clock: Any
) -> Iterator[Any]:
    """`patient`: not in a hurry, as tests are on a busy machine."""
    kind = SITES[name]
    made = kind(kind.store(url, timeout=PATIENCE) if patient else url, options, clock)
    try:
        yield made
    finally:
        made.close()
