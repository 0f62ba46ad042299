"""Routes: which pool a request goes to, and which routes are refused because nothing ever reaches them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbkit.balancer.exchange import Request
from lbkit.balancer.routes import Route, Routes
from lbkit.errors import ConfigError


def pool(routes: Routes, target: str = "/", method: str = "GET", **headers: str) -> str | None:
    request = Request(method, target, headers={key.replace("_", "-"): text for key, text in headers.items()})
    found = routes.match(request)
    return found.pool if found else None


def test_the_first_route_that_matches_wins() -> None:
    routes = Routes(["/api/v1/*=old", "/api/*=api", "*=web"])
    assert [pool(routes, target) for target in ("/api/v1/x", "/api/x", "/api", "/")] == [
        "old",
        "api",
        "web",
        "web",
    ]


def test_a_request_that_meets_no_route_belongs_to_no_pool() -> None:
    assert pool(Routes(["/api/*=api"]), "/shop") is None


@pytest.mark.parametrize(
    ("route", "request_", "matches"),
    [
        ("/cart=a", Request(target="/cart?x=/other"), True),
        ("/cart=a", Request(target="/cart/"), False),
        ("/api/*=a", Request(target="/api/"), True),
        ("/api/*=a", Request(target="/%61pi/x"), True),  # as the replica sees it
        ("/api/*=a", Request(target="/apis"), False),
        ("/api/*=a", Request(target="/?/api/"), False),
        ("host:shop.example=a", Request(headers={"host": "SHOP.example.:8080"}), True),
        ("host:shop.example=a", Request(headers={"host": "evil-shop.example"}), False),
        ("host:*.example=a", Request(headers={"host": "a.shop.example"}), True),
        ("host:*.example=a", Request(headers={"host": "example"}), False),
        ("host:*.example=a", Request(headers={"host": "badexample"}), False),
        ("host:[::1]=a", Request(headers={"host": "[::1]:80"}), True),
        ("host:shop.example=a", Request(), False),
        ("GET,HEAD=a", Request("HEAD"), True),
        ("GET,HEAD=a", Request("POST"), False),
        ("header:X-Beta=a", Request(headers={"x-beta": ""}), True),
        ("header:X-Beta=1=a", Request(headers={"x-beta": "0\n1"}), True),
        ("header:X-Beta=1=a", Request(headers={"x-beta": "10"}), False),
        ("cookie:beta=1=a", Request(headers={"cookie": "a=2; beta=1"}), True),
        ("cookie:beta=1=a", Request(headers={"cookie": "betabeta=1"}), False),
        ("cookie:beta=a", Request(headers={"cookie": "beta=0"}), True),
        ("POST /api/* host:x.org cookie:b=1=a", Request("POST", "/api/", headers={"host": "x.org"}), False),
    ],
)
def test_a_route_takes_what_meets_all_of_its_conditions(route: str, request_: Request, matches: bool) -> None:
    parsed = Route.parse(route)
    assert parsed.matches(request_) is matches
    assert (Routes([parsed]).match(request_) is parsed) is matches


def test_a_route_in_code_says_the_same_as_its_text() -> None:
    route = Route(pool="api", path="/api/*", methods=frozenset({"GET"}), headers={"X-Beta": "1"})
    assert Route.parse(route.text) == route
    assert route.text == "GET /api/* header:x-beta=1=api"


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("*=web", "/api/*=api"),
        ("/api/*=api", "/api/v1/*=old"),
        ("/api/*=api", "/api/cart=old"),
        ("/cart=a", "/cart=b"),
        ("host:*.org=a", "host:*.shop.org=b"),
        ("host:*.org=a", "host:shop.org /x=b"),
        ("GET,HEAD=a", "GET=b"),
        ("header:x=a", "header:X=1=b"),
        ("cookie:c=1=a", "cookie:c=1 cookie:d=b"),
    ],
)
def test_a_route_that_nothing_reaches_is_refused_with_both_routes_named(earlier: str, later: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Routes([earlier, later])
    message = str(caught.value)
    assert "the first match wins" in message
    assert repr(earlier) in message
    assert repr(later) in message


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("/*=a", "*=b"),  # `OPTIONS *` has no path
        ("/api=a", "/api/*=b"),
        ("/api/v1/*=a", "/api/*=b"),
        ("GET /api/*=a", "/api/*=b"),
        ("GET=a", "GET,POST=b"),
        ("host:shop.org=a", "host:*.org=b"),
        ("host:*.org=a", "host:org=b"),
        ("header:x=1=a", "header:x=b"),
        ("header:x=1=a", "header:x=2=b"),
        ("cookie:c /api/*=a", "/api/*=b"),
    ],
)
def test_a_route_that_something_reaches_is_not_refused(earlier: str, later: str) -> None:
    assert len(Routes([earlier, later]).routes) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "need a route CONDITION=POOL"),
        ("/api/*", "need a route CONDITION=POOL"),
        ("=api", "need a route CONDITION=POOL"),
        ("/api/*=", "need a route CONDITION=POOL"),
        ("api=api", "need a condition /PATH, .*got 'api'"),
        ("host:=api", "need a condition"),
        ("port:80=api", "need a condition"),
        ("/a/*/b=api", "a '\\*' at its end only"),
        ("/a /b=api", "need one path, got '/a' and '/b'"),
        ("host:a host:b=api", "need one host"),
        ("GET POST=api", "need one list of methods"),
        ("cookie:a=1 cookie:a=2=api", "need cookie 'a' once"),
        ("host:shop:80=api", "need a host without a port"),
        ("host:*=api", "need a host without a port"),
        ("/x=a b", "need a pool's name"),
        ("header:a(b)=api", "need a header's or cookie's name"),
    ],
)
def test_a_text_that_is_no_route_is_answered_with_the_rule(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Route.parse(text)


def test_a_route_to_a_pool_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"need the name of a pool \(web, api\), got 'apo'"):
        Routes(["/api/*=apo"], pools=["web", "api"])
    with pytest.raises(ConfigError, match="need at least one route"):
        Routes([])


Conditions = st.lists(
    st.sampled_from(
        [
            "/a",
            "/a/*",
            "/a/b",
            "/a/b/*",
            "host:x.org",
            "host:*.org",
            "GET",
            "GET,POST",
            "header:x",
            "cookie:c=1",
        ]
    ),
    unique_by=lambda word: word[0] if word[0] in "/GP" else word[:5],
    max_size=3,
)
Requests = st.builds(
    Request,
    st.sampled_from(["GET", "POST"]),
    st.sampled_from(["/a", "/a/", "/a/b", "/a/b/c", "/b"]),
    headers=st.fixed_dictionaries(
        {},
        optional={
            "host": st.sampled_from(["x.org", "y.org", "org"]),
            "x": st.just("1"),
            "cookie": st.just("c=1"),
        },
    ),
)


@given(Conditions, Conditions, st.lists(Requests, max_size=20))
def test_a_route_that_covers_another_takes_all_of_its_requests(
    outer: list[str], inner: list[str], requests: list[Request]
) -> None:
    wide, narrow = (Route.parse(f"{' '.join(words) or '*'}=pool") for words in (outer, inner))
    if wide.covers(narrow):
        assert all(wide.matches(each) for each in requests if narrow.matches(each))
