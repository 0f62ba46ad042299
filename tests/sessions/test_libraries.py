"""Other people's code on our sessions, unchanged: Flask-Login, Flask-WTF, flash, Authlib, Starlette apps."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from authlib.integrations.base_client.errors import MismatchingStateError
from authlib.integrations.flask_client import OAuth as FlaskOAuth
from authlib.integrations.starlette_client import OAuth as StarletteOAuth
from flask import Flask, flash, get_flashed_messages, redirect, render_template_string, request, session
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user, logout_user
from flask_wtf import CSRFProtect
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse
from starlette.routing import Route

from lbkit.asgi import SessionMiddleware
from lbkit.stores import astore_from, store_from
from lbkit_flask import RedisSessionInterface
from tests.sessions.sites import KEYS, NAME, PATIENCE

HTTPS = "https://localhost"
FORM = "<input name='csrf_token' value='{{ csrf_token() }}'>"


class User(UserMixin):
    def __init__(self, name: str) -> None:
        self.id = name


@pytest.fixture
def flask_app(redis_url: str) -> Flask:
    app = Flask("shop")
    app.secret_key = "for Flask-WTF and Flask-Login"
    app.session_interface = RedisSessionInterface(store_from(redis_url, timeout=PATIENCE), secret_keys=KEYS)
    return app


def sessions_of(app: Flask) -> Any:
    interface: Any = app.session_interface
    return interface.sessions


def with_login(app: Flask) -> Any:
    manager = LoginManager(app)
    manager.user_loader(User)

    @app.get("/login/<name>")
    def login(name: str) -> str:
        login_user(User(name), remember="remember" in request.args)
        return "in"

    @app.get("/logout")
    def logout() -> str:
        logout_user()
        return "out"

    @app.get("/cart/<item>")
    def cart(item: str) -> str:
        session.setdefault("cart", []).append(item)
        return "ok"

    @app.get("/account")
    @login_required
    def account() -> str:
        return f"{current_user.id} has {session.get('cart')}"

    return app.test_client()


@pytest.mark.parametrize("protection", ["basic", "strong"])
def test_flask_login_logs_in_rotates_and_logs_out(flask_app: Flask, protection: str) -> None:
    flask_app.config["SESSION_PROTECTION"] = protection
    client = with_login(flask_app)

    def get(path: str) -> Any:
        return client.get(path, base_url=HTTPS)

    get("/cart/tea")
    before = client.get_cookie(NAME, domain="localhost").value
    assert get("/account").status_code == 401
    assert get("/login/alice").text == "in"
    after = client.get_cookie(NAME, domain="localhost").value
    assert after != before
    assert get("/account").text == "alice has ['tea']"
    assert get("/account").headers.getlist("Set-Cookie") == []
    assert len(sessions_of(flask_app).list("alice")) == 1

    other = flask_app.test_client()
    other.set_cookie(NAME, before, domain="localhost", secure=True)
    assert other.get("/account", base_url=HTTPS).status_code == 401

    assert get("/logout").text == "out"
    assert get("/account").status_code == 401
    other.set_cookie(NAME, after, domain="localhost", secure=True)
    assert other.get("/account", base_url=HTTPS).status_code == 401


# From Python 3.12 on there is a warning for what Flask-Login does with the time.
@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
def test_flask_login_remembers_and_a_revocation_ends_the_session(flask_app: Flask) -> None:
    client = with_login(flask_app)
    client.get("/login/alice?remember=1", base_url=HTTPS)
    assert client.get_cookie("remember_token", domain="localhost") is not None
    assert sessions_of(flask_app).revoke("alice") == 1
    # The remember token is Flask-Login's own: it logs in again, in a session that is new.
    assert client.get("/account", base_url=HTTPS).text == "alice has None"
    assert len(sessions_of(flask_app).list("alice")) == 1


def test_flask_wtf_takes_the_token_that_it_gave(flask_app: Flask) -> None:
    CSRFProtect(flask_app)

    @flask_app.route("/form", methods=["GET", "POST"])
    def form() -> str:
        return "obeyed" if request.method == "POST" else render_template_string(FORM)

    client, stranger = flask_app.test_client(), flask_app.test_client()
    token = re.findall(r"value='([^']+)'", client.get("/form", base_url=HTTPS).text)[0]
    headers = {"Referer": f"{HTTPS}/form"}
    data = {"csrf_token": token}
    assert client.post("/form", data=data, headers=headers, base_url=HTTPS).text == "obeyed"
    assert stranger.post("/form", data=data, headers=headers, base_url=HTTPS).status_code == 400
    assert client.post("/form", headers=headers, base_url=HTTPS).status_code == 400


def test_a_flashed_message_is_shown_once(flask_app: Flask) -> None:
    @flask_app.get("/say")
    def say() -> Any:
        flash("one", "error")
        flash("two")
        return redirect("/show")

    @flask_app.get("/show")
    def show() -> Any:
        return get_flashed_messages(with_categories=True)

    client = flask_app.test_client()
    assert client.get("/say", base_url=HTTPS, follow_redirects=True).json == [
        ["error", "one"],
        ["message", "two"],
    ]
    assert client.get("/show", base_url=HTTPS).json == []


def test_flasks_own_session_transaction_and_permanent(flask_app: Flask) -> None:
    @flask_app.get("/")
    def index() -> Any:
        return dict(session)

    client = flask_app.test_client()
    with client.session_transaction(base_url=HTTPS) as opened:
        opened["cart"] = ["tea"]
        opened.permanent = True
    assert client.get("/", base_url=HTTPS).json == {"cart": ["tea"], "_permanent": True}
    cookie = client.get_cookie(NAME, domain="localhost")
    assert cookie is not None
    assert cookie.max_age == 30 * 86400


class TokenEndpoint(BaseHTTPRequestHandler):
    """What an OAuth provider says when it is asked for a token."""

    def do_POST(self) -> None:
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        body = json.dumps({"access_token": f"token for {asked['code'][0]}", "token_type": "Bearer"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """It has nothing to say."""


@pytest.fixture
def provider() -> Iterator[dict[str, str]]:
    """A provider's settings, as Authlib wants them."""
    with ThreadingHTTPServer(("127.0.0.1", 0), TokenEndpoint) as endpoint:
        thread = threading.Thread(target=endpoint.serve_forever)
        thread.start()
        yield {
            "client_id": "shop",
            "client_secret": "secret",
            "authorize_url": "https://id.example/authorize",
            "access_token_url": f"http://127.0.0.1:{endpoint.server_port}/token",
        }
        endpoint.shutdown()
        thread.join()


def state_of(location: str) -> str:
    return parse_qs(urlsplit(location).query)["state"][0]


def test_authlib_finds_its_state_again_in_flask(flask_app: Flask, provider: dict[str, str]) -> None:
    """Two tabs log in at once: each state is a key of its own."""
    oauth = FlaskOAuth(flask_app)
    oauth.register("idp", **provider)
    flask_app.testing = True

    @flask_app.get("/login")
    def login() -> Any:
        return oauth.idp.authorize_redirect(f"{HTTPS}/callback")

    @flask_app.get("/callback")
    def callback() -> Any:
        return oauth.idp.authorize_access_token()["access_token"]

    client, stranger = flask_app.test_client(), flask_app.test_client()
    states = [state_of(client.get("/login", base_url=HTTPS).headers["Location"]) for _ in range(2)]
    for number, state in enumerate(states):
        path = f"/callback?code=c{number}&state={state}"
        with pytest.raises(MismatchingStateError):
            stranger.get(path, base_url=HTTPS)
        assert client.get(path, base_url=HTTPS).text == f"token for c{number}"
    with client.session_transaction(base_url=HTTPS) as opened:
        assert not [key for key in opened if key.startswith("_state_")]


def test_authlib_finds_its_state_again_in_starlette(redis_url: str, provider: dict[str, str]) -> None:
    oauth = StarletteOAuth()
    oauth.register("idp", **provider)

    async def login(request: Request) -> Any:
        return await oauth.idp.authorize_redirect(request, f"{HTTPS}/callback")

    async def callback(request: Request) -> Any:
        token = await oauth.idp.authorize_access_token(request)
        return JSONResponse({"token": token["access_token"], "left": sorted(request.session)})

    middleware = [
        Middleware(SessionMiddleware, store=astore_from(redis_url, timeout=PATIENCE), secret_keys=KEYS)
    ]
    app = Starlette(routes=[Route("/login", login), Route("/callback", callback)], middleware=middleware)

    async def visit() -> Any:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=HTTPS) as client:
            state = state_of((await client.get("/login")).headers["location"])
            path = f"/callback?code=c1&state={state}"
            async with httpx.AsyncClient(transport=transport, base_url=HTTPS) as stranger:
                with pytest.raises(MismatchingStateError):
                    await stranger.get(path)
            return (await client.get(path)).json()

    assert asyncio.run(visit()) == {"token": "token for c1", "left": []}


async def add(request: Request) -> Any:
    """As Starlette's documentation and its users write it."""
    request.session.update({"visits": request.session.get("visits", 0) + 1})
    request.session.setdefault("cart", []).append(request.query_params["item"])
    if "user" not in request.session:
        session = request.session
        session |= {"user": None}
    return RedirectResponse("/show")


async def show(request: Request) -> Any:
    return JSONResponse(dict(request.session))


async def clear(request: Request) -> Any:
    request.session.clear()
    return PlainTextResponse("bye")


def test_an_app_of_starlettes_middleware_runs_with_ours_in_its_place(redis_url: str) -> None:
    routes = [Route("/add", add), Route("/show", show), Route("/clear", clear)]
    app = Starlette(routes=routes)
    app.add_middleware(SessionMiddleware, store=astore_from(redis_url, timeout=PATIENCE), secret_keys=KEYS)

    async def visit() -> list[Any]:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url=HTTPS, follow_redirects=True
        ) as client:
            first = (await client.get("/add?item=tea")).json()
            second = (await client.get("/add?item=milk")).json()
            await client.get("/clear")
            return [first, second, (await client.get("/show")).json(), dict(client.cookies)]

    first, second, third, cookies = asyncio.run(visit())
    assert first == {"visits": 1, "cart": ["tea"], "user": None}
    assert second == {"visits": 2, "cart": ["tea", "milk"], "user": None}
    assert (third, cookies) == ({}, {})
