"""Several pools behind one door, through both gateways: the first route that a request meets decides."""

from __future__ import annotations

from typing import Any

import pytest

from lbkit import asgi, wsgi
from lbkit.children import Child
from lbkit.errors import ConfigError
from tests.gateways.test_lifecycle import Live, Site, live

__all__ = ["live"]

ROUTES = ["/api/* cookie:beta=1=canary", "GET,HEAD /api/*=api", "host:*.shop.example=web", "header:X-In=web"]


def door_of(live: Live, *, routes: list[str] = ROUTES, **sites: Site) -> Any:
    pools = {
        name: live.Balancer({f"{name}1": live.app(site)}, profile="nginx") for name, site in sites.items()
    }
    kind: Any = asgi.RoutedBalancer if live.kind == "asgi" else wsgi.RoutedBalancer
    return kind(pools, routes=routes)


@pytest.mark.parametrize(
    ("method", "url", "headers", "replica"),
    [
        ("GET", "http://x/api/cart", {}, "api1"),
        ("GET", "http://x/api/cart", {"Cookie": "a=b; beta=1"}, "canary1"),
        ("POST", "http://x/api/cart", {"X-In": "1"}, "web1"),
        ("GET", "http://de.shop.example:8080/", {}, "web1"),
        ("POST", "http://x/api/cart", {}, None),
        ("GET", "http://shop.example/apis", {}, None),
    ],
)
def test_a_request_goes_to_the_pool_of_its_route(
    live: Live, method: str, url: str, headers: dict[str, str], replica: str | None
) -> None:
    door = door_of(live, api=Site(), canary=Site(), web=Site())
    answer = live.send(door, method, url, headers)
    assert answer.headers.get("x-lbkit-replica") == replica
    if replica is None:
        assert (answer.status_code, answer.text) == (404, "404 Not Found: no route takes the request\n")
    else:
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ([], "need at least one route"),
        (["*=shop"], r"need the name of a pool \(api, web\), got 'shop'"),
        (["*=web"], "need a route to each pool, got none to api"),
        (["*=web", "/api/*=api"], "need routes that can be reached: the first match wins"),
    ],
)
def test_routes_that_make_no_sense_are_refused(live: Live, routes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        door_of(live, routes=routes, api=Site(), web=Site())


def test_each_pool_lives_with_the_door_and_a_failed_start_stops_the_others(live: Live) -> None:
    child = Child("tests.children_app:create_app", name="api1")
    sites = [Site(), Site()]
    balancers = {"api": live.Balancer({"api1": child}), "web": live.Balancer(map(live.app, sites))}
    kind: Any = asgi.RoutedBalancer if live.kind == "asgi" else wsgi.RoutedBalancer
    door = kind(balancers, routes=["/api/*=api", "*=web"])
    with live.running(door):
        assert child.alive
        assert live.ask(door, "/api/").json()["replica"] == "api1"
        assert live.ask(door, "/").status_code == 200
    assert not child.alive
    if live.kind == "asgi":
        assert [(site.born, site.died) for site in sites] == [(1, 1)] * 2
