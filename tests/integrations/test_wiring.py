"""What the plugins put around an app besides health: the route cookie, and who the client is."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi import Request as FastAPIRequest
from flask import Flask, jsonify
from flask import request as flask_request
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lbkit import ConfigError, Health, Service, Sticky, TrustedProxies
from lbkit.sticky import own_replica_id
from tests.health_gateways import through_asgi, through_wsgi

STICKY = Sticky(secret_keys=["new " * 8, "old " * 8])
OLD = Sticky(secret_keys=["old " * 8])
PEER = "192.0.2.7"  # of the gateways
CLIENT = "203.0.113.9"
TRUSTED = TrustedProxies(["192.0.2.0/24"], hosts=["shop.example"])
THROUGH_THE_PROXY = {
    "X-Forwarded-For": f"6.6.6.6, {CLIENT}",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "shop.example",
}


def make_flask() -> Flask:
    app = Flask(__name__)

    @app.get("/who")
    def who() -> Any:
        asked = flask_request
        return jsonify(
            [asked.remote_addr, asked.scheme, asked.host, app.extensions["lbkit"].drain.drain.in_flight]
        )

    return app


def seen_by_starlette(asked: Request) -> list[Any]:
    assert asked.client is not None
    in_flight = asked.app.state.lbkit.drain.drain.in_flight
    return [asked.client.host, asked.url.scheme, asked.url.netloc, in_flight]


def make_starlette() -> Starlette:
    async def who(asked: Request) -> Response:
        return JSONResponse(seen_by_starlette(asked))

    return Starlette(routes=[Route("/who", who)])


def make_fastapi() -> FastAPI:
    app = FastAPI()

    @app.get("/who")
    async def who(asked: FastAPIRequest) -> list[Any]:
        return seen_by_starlette(asked)

    return app


MAKERS: dict[str, Callable[[], Any]] = {
    "flask": make_flask,
    "starlette": make_starlette,
    "fastapi": make_fastapi,
}


class Site:
    """An app of one framework with the plugin, and a way to ask it."""

    def __init__(self, framework: str) -> None:
        self.framework = framework
        self.plugin = importlib.import_module(f"lbkit_{framework}").LBKit
        self.app = MAKERS[framework]()

    def ask(self, *paths: str, headers: dict[str, str] | None = None) -> list[httpx.Response]:
        through: Any = through_wsgi if self.framework == "flask" else through_asgi
        with through(self.app) as send:
            return [send(httpx.Request("GET", f"http://app{path}", headers=headers)) for path in paths]

    def who(self, headers: dict[str, str] | None = None) -> Any:
        return self.ask("/who", headers=headers)[0].json()

    def named(self, cookie: str | None = None) -> str | None:
        """The replica that an answer's route cookie names, None without one."""
        headers = {"Cookie": cookie} if cookie is not None else None
        (answer,) = self.ask("/who", headers=headers)
        set_cookie = answer.headers.get("set-cookie", "")
        return set_cookie.partition("lb=")[2].partition(".")[0] or None


@pytest.fixture(params=list(MAKERS))
def site(request: pytest.FixtureRequest) -> Site:
    return Site(request.param)


@pytest.mark.parametrize("way", ["at once", "init_app"])
def test_answers_name_the_replica_until_the_client_has_its_cookie(site: Site, way: str) -> None:
    settings = {"sticky": STICKY, "replica_id": "web1"}
    if way == "at once":
        site.plugin(site.app, **settings)
    else:
        site.plugin(**settings).init_app(site.app)
    genuine, foreign, aged = (
        f"lb={sticky.encode(name, 1_790_000_000)}"
        for sticky, name in [(STICKY, "web1"), (STICKY, "web2"), (OLD, "web1")]
    )
    assert site.named() == "web1"
    assert site.named(genuine) is None
    assert site.named(foreign) == "web1"
    assert site.named(aged) == "web1"  # signed with a key that goes: a new one, and no logout
    assert site.named("lb=web1.forged") == "web1"


def test_no_health_endpoint_sets_a_cookie(site: Site) -> None:
    site.plugin(site.app, sticky=STICKY, replica_id="web1", health=Health(Service(health_path="/status")))
    paths = ("/status", "/status/live", "/status/ready", "/status/detailed", "/who")
    answers = site.ask(*paths)
    assert ["set-cookie" in answer.headers for answer in answers] == [False, False, False, False, True]


def test_the_app_sees_the_client_that_a_trusted_proxy_names(site: Site) -> None:
    site.plugin(site.app, trusted=TRUSTED)
    assert site.who(THROUGH_THE_PROXY) == [CLIENT, "https", "shop.example", 1]
    assert site.who() == [PEER, "http", "app", 1]


def test_the_app_sees_a_stranger_for_what_he_is(site: Site) -> None:
    site.plugin(site.app, trusted=TrustedProxies(["10.0.0.0/8"], hosts=["shop.example"]), sticky=STICKY)
    assert site.who(THROUGH_THE_PROXY) == [PEER, "http", "app", 1]


def test_without_either_the_app_is_left_alone(site: Site) -> None:
    site.plugin(site.app)
    (answer,) = site.ask("/who", headers=THROUGH_THE_PROXY)
    assert answer.json()[:3] == [PEER, "http", "app"]
    assert "set-cookie" not in answer.headers


def test_a_request_is_counted_while_it_runs_and_not_after(site: Site) -> None:
    lbkit = site.plugin(site.app, sticky=STICKY, trusted=TRUSTED)
    assert site.who()[3] == 1
    assert lbkit.drain.drain.in_flight == 0


def test_the_one_who_is_asked_about_errors_is_the_client_and_not_its_proxy(site: Site) -> None:
    """Else whoever comes through the proxy would be from the proxy's network."""
    lbkit = site.plugin(
        site.app, trusted=TRUSTED, health=Health(details="authorized", auth=["192.0.2.0/24", "10.0.0.0/8"])
    )
    lbkit.check("database")(lambda: None)
    path = "/health/ready?verbose"
    (outside,) = site.ask(path, headers=THROUGH_THE_PROXY)
    (inside,) = site.ask(path, headers={"X-Forwarded-For": "10.1.1.1"})
    assert ["checks" in answer.json() for answer in (outside, inside)] == [False, True]


def service_id(site: Site) -> str | None:
    (answer,) = site.ask("/health", headers={"Accept": "application/health+json"})
    found: str | None = answer.json().get("serviceId")
    return found


def test_the_id_comes_from_the_argument(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBKIT_REPLICA_ID", "web7")
    assert site.plugin(site.app, replica_id="web1", sticky=STICKY).replica_id == "web1"
    assert (site.named(), service_id(site)) == ("web1", "web1")


def test_the_id_comes_from_the_environment(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBKIT_REPLICA_ID", "web7")
    assert site.plugin(site.app, sticky=STICKY).replica_id == "web7"
    assert (site.named(), service_id(site)) == ("web7", "web7")


def test_the_id_comes_from_the_host_name(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LBKIT_REPLICA_ID", raising=False)
    monkeypatch.setattr(platform, "node", lambda: "shop web 3.example.com")
    assert site.plugin(site.app, sticky=STICKY).replica_id == "shop-web-3"
    assert (site.named(), service_id(site)) == ("shop-web-3", None)


@pytest.mark.parametrize("host", ["", ".", "x" * 64, "wéb", "web1", "10.0.0.1"])
def test_every_host_name_makes_an_id(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: host)
    made = own_replica_id(environ={})
    assert own_replica_id(made) == made


@pytest.mark.parametrize("bad", ["web1.eu", "", "web 1", "x" * 64])
def test_an_id_that_breaks_the_rule_is_refused_where_it_is_given(site: Site, bad: str) -> None:
    with pytest.raises(ConfigError, match="need a replica name of 1 to 63 letters, digits"):
        site.plugin(site.app, replica_id=bad)


def test_two_names_for_one_replica_are_refused(site: Site) -> None:
    with pytest.raises(
        ConfigError, match="one name for a replica, got replica_id='web1' and instance='web2'"
    ):
        site.plugin(site.app, replica_id="web1", health=Health(Service(instance="web2")))
    site.plugin(site.app, replica_id="web1", health=Health(Service(instance="web1")))
