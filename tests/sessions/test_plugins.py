"""`LBKit(app, sessions=...)` in each framework, FastAPI's dependency, and websockets."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, WebSocket
from flask import Flask
from flask import session as flask_session
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket as StarletteWebSocket
from starlette.websockets import WebSocketDisconnect

import lbkit_fastapi
import lbkit_flask
import lbkit_starlette
from lbkit import ConfigError
from lbkit.asgi import SessionMiddleware, Sessions
from lbkit.asgi.sessions import Session
from lbkit.health.access import Level
from lbkit.sessions import SessionOptions
from lbkit.stores import astore_from, store_from
from tests.redis_servers import Server, until
from tests.sessions.sites import KEYS, NAME, PATIENCE

HTTPS = "https://localhost"


def counted(session: Any) -> dict[str, Any]:
    session["n"] = session.get("n", 0) + 1
    return dict(session)


def patient(options: dict[str, Any], store: Any) -> dict[str, Any]:
    """A store that gives a busy machine time; only the text of a URL is looked at."""
    url = options.get("sessions")
    if not (isinstance(url, str) and url.startswith("redis:")):
        return options
    return {**options, "sessions": store(url, timeout=PATIENCE)}


def flask_client(**options: Any) -> tuple[Any, Any]:
    app = Flask("shop")
    lbkit = lbkit_flask.LBKit(app, **patient(options, store_from))

    @app.get("/")
    def index() -> Any:
        return counted(flask_session)

    client = app.test_client()
    return lbkit, lambda path: client.get(path, base_url=HTTPS).get_json()


def starlette_client(**options: Any) -> tuple[Any, Any]:
    async def index(request: Request) -> Any:
        return JSONResponse(counted(request.session))

    app = Starlette(routes=[Route("/", index)])
    lbkit = lbkit_starlette.LBKit(app, **patient(options, astore_from))
    client = TestClient(app, base_url=HTTPS)
    return lbkit, lambda path: client.get(path).json()


def fastapi_client(**options: Any) -> tuple[Any, Any]:
    app = FastAPI()
    lbkit = lbkit_fastapi.LBKit(app, lazy_sessions=True, **patient(options, astore_from))

    @app.get("/")
    def index(session: Annotated[Session, Depends(lbkit_fastapi.session)]) -> Any:
        return counted(session)

    client = TestClient(app, base_url=HTTPS)
    return lbkit, lambda path: client.get(path).json()


CLIENTS = {"flask": flask_client, "starlette": starlette_client, "fastapi": fastapi_client}


@pytest.fixture(params=CLIENTS)
def make(request: pytest.FixtureRequest) -> Any:
    return CLIENTS[request.param]


def test_a_plugin_needs_two_words_for_sessions(make: Any, redis_url: str, redis_server: Server) -> None:
    _, get = make(sessions=redis_url, secret_keys=KEYS)
    assert [get("/")["n"] for _ in range(3)] == [1, 2, 3]
    with redis_server.client() as client:
        before = client.info("commandstats")["cmdstat_hgetall"]["calls"]
        ready = get("/health/ready?verbose")
        assert client.info("commandstats")["cmdstat_hgetall"]["calls"] == before
    assert ready["checks"]["sessions"]["status"] == "healthy"
    assert ready["checks"]["sessions"]["critical"] is False


def test_what_happens_to_sessions_is_counted_for_prometheus(make: Any, redis_url: str) -> None:
    lbkit, get = make(sessions=redis_url, secret_keys=KEYS)
    get("/")
    route = lbkit.health.route("/health/detailed")
    rendered = lbkit.health.answer(route, "GET", "format=openmetrics", "", Level.FULL)
    families = {family.name: family for family in text_string_to_metric_families(rendered.body(0.0).decode())}
    (sample,) = families["lbkit_session_events"].samples
    assert (sample.name, sample.labels, sample.value) == (
        "lbkit_session_events_total",
        {"event": "created"},
        1.0,
    )


def test_a_store_that_is_down_degrades_and_does_not_fail(make: Any) -> None:
    lbkit, get = make(sessions="redis://127.0.0.1:1/0", secret_keys=KEYS)
    for _ in range(3):
        lbkit.sessions.line.breaker.failed(lbkit.sessions.line.clock())
    ready = get("/health/ready?verbose")
    assert (ready["status"], ready["checks"]["sessions"]["status"]) == ("degraded", "degraded")
    assert get("/health")["status"] == "healthy"


def test_a_plugin_without_sessions_leaves_the_frameworks_own(make: Any) -> None:
    lbkit, _ = make()
    with pytest.raises(ConfigError, match="need sessions='redis"):
        lbkit.sessions.list("alice")
    with pytest.raises(ConfigError, match="need sessions, such as sessions="):
        make(secret_keys=KEYS)
    with pytest.raises(ConfigError, match="need at least one secret key"):
        make(sessions="memory://")


def test_options_and_ready_made_sessions_are_taken(make: Any, redis_url: str) -> None:
    options = SessionOptions(cookie="shop", secure=False, tag_users=True)
    lbkit, get = make(sessions=redis_url, secret_keys=KEYS, session_options=options)
    assert lbkit.sessions.options is options
    assert lbkit.sessions.cookie.name == "shop"
    assert get("/")["n"] == 1
    again, _ = make(sessions=lbkit.sessions)
    assert again.sessions is lbkit.sessions


# Websockets, which are a session's longest requests.


async def talk(websocket: StarletteWebSocket) -> None:
    session: Any = websocket.session
    session["before"] = 1
    await websocket.accept()
    while (word := await websocket.receive_text()) != "bye":
        session["word"] = word
        if word == "save":
            await session.save()
        if word == "login":
            session["user_id"] = "alice"
        await websocket.send_text(word)
    await websocket.close()


async def refuse(websocket: StarletteWebSocket) -> None:
    websocket.session["n"] = "refused"
    await websocket.close()


async def look(request: Request) -> Any:
    return JSONResponse(dict(request.session))


@pytest.fixture
def client(redis_url: str) -> Any:
    routes = [WebSocketRoute("/talk", talk), WebSocketRoute("/refuse", refuse), Route("/look", look)]
    app = Starlette(routes=routes)
    sessions = Sessions(astore_from(redis_url, timeout=PATIENCE), secret_keys=KEYS)
    app.add_middleware(SessionMiddleware, store=sessions)
    with TestClient(app, base_url=HTTPS) as made:
        made.sessions = sessions  # type: ignore[attr-defined]
        yield made


def kept_in_the_end(client: Any, pair: str, expected: dict[str, Any]) -> None:
    """Leaving cancels the app: what it wrote is kept all the same, but nobody waits for that."""
    look = partial(client.get, "/look", headers={"cookie": pair})
    until(lambda: look().json() == expected, f"the session holds {expected}")


def test_a_websocket_begins_a_session_when_it_is_accepted(client: Any) -> None:
    with client.websocket_connect("wss://localhost/talk") as websocket:
        cookies = [value for name, value in websocket.extra_headers if name == b"set-cookie"]
        assert len(cookies) == 1
        pair = cookies[0].decode().partition(";")[0]
        reader = {"cookie": pair}
        assert client.get("/look", headers=reader).json() == {"before": 1}
        websocket.send_text("hello")
        assert websocket.receive_text() == "hello"
        assert client.get("/look", headers=reader).json() == {"before": 1}  # kept at the end, or by save()
        websocket.send_text("save")
        assert websocket.receive_text() == "save"
        assert client.get("/look", headers=reader).json() == {"before": 1, "word": "save"}
        websocket.send_text("last")
        websocket.receive_text()
        websocket.send_text("bye")
    kept_in_the_end(client, pair, {"before": 1, "word": "last"})


def test_a_websocket_that_is_dropped_keeps_what_it_wrote(client: Any) -> None:
    with (
        contextlib.suppress(WebSocketDisconnect),  # the app does not catch it, and the client may be told
        client.websocket_connect("wss://localhost/talk") as websocket,
    ):
        pair = dict(websocket.extra_headers)[b"set-cookie"].decode().partition(";")[0]
        websocket.send_text("hello")
        websocket.receive_text()
    kept_in_the_end(client, pair, {"before": 1, "word": "hello"})


def test_a_login_in_an_open_websocket_is_refused_for_it_could_not_change_the_id(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with client.websocket_connect("wss://localhost/talk") as websocket:
        pair = dict(websocket.extra_headers)[b"set-cookie"].decode().partition(";")[0]
        websocket.send_text("login")
        websocket.receive_text()
        websocket.send_text("bye")
    assert "user_id" not in client.get("/look", headers={"cookie": pair}).json()
    assert "a new id needs a cookie" in caplog.text


def test_a_websocket_that_is_refused_begins_no_session(client: Any, redis_server: Server) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("wss://localhost/refuse"):
        pass
    with redis_server.client() as redis:
        assert redis.keys("*") == []


def test_a_websocket_whose_session_cannot_be_reached_is_turned_away(redis_url: str) -> None:
    from starlette.testclient import WebSocketDenialResponse

    app = Starlette(routes=[WebSocketRoute("/talk", talk)])
    app.add_middleware(SessionMiddleware, store="redis://127.0.0.1:1/0", secret_keys=KEYS)
    sessions = Sessions(astore_from(redis_url, timeout=PATIENCE), secret_keys=KEYS)
    cookie = f"{NAME}={sessions.cookie.sign('A' * 43, 1_800_000_000)}"
    client = TestClient(app, base_url=HTTPS, headers={"cookie": cookie})
    with (
        pytest.raises(WebSocketDenialResponse) as denied,
        client.websocket_connect("wss://localhost/talk"),
    ):
        pass
    assert (denied.value.status_code, denied.value.headers["retry-after"]) == (503, "1")


def test_fastapi_gives_the_session_to_a_websocket(redis_url: str) -> None:
    app = FastAPI()
    store = astore_from(redis_url, timeout=PATIENCE)
    lbkit_fastapi.LBKit(app, sessions=store, secret_keys=KEYS, lazy_sessions=True)

    @app.websocket("/talk")
    async def talk(websocket: WebSocket, session: Annotated[Session, Depends(lbkit_fastapi.session)]) -> None:
        session["n"] = session.get("n", 0) + 1
        await websocket.accept()
        await websocket.send_json(dict(session))
        await websocket.close()

    client = TestClient(app, base_url=HTTPS)
    with client.websocket_connect("wss://localhost/talk") as websocket:
        pair = dict(websocket.extra_headers)[b"set-cookie"].decode().partition(";")[0]
        assert websocket.receive_json() == {"n": 1}
    with client.websocket_connect("wss://localhost/talk", headers={"cookie": pair}) as websocket:
        assert websocket.receive_json() == {"n": 2}
