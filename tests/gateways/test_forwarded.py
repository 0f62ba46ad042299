"""The client's address in front of an app: what is said here of one gateway is said of the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from lbkit.asgi import ForwardedMiddleware as ASGIForwarded
from lbkit.forwarded import TrustedProxies
from lbkit.wsgi import ForwardedMiddleware as WSGIForwarded
from tests.forwarded_attacks import CLIENT, HOST, PROXY, SPOOF, Headers, ask_asgi, ask_wsgi

Ask = Callable[..., dict[str, Any]]

TRUSTED = TrustedProxies(["10.0.0.0/8"], hosts=[HOST])
RFC7239 = TrustedProxies(["10.0.0.0/8"], family="forwarded", hosts=[HOST])
ALL: Headers = (
    ("Accept", "*/*"),
    ("X-Forwarded-For", f"{SPOOF}, {CLIENT}:99"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", HOST),
    ("Forwarded", f"for={SPOOF}"),
    ("X-Real-IP", SPOOF),
)


@pytest.fixture(params=["asgi", "wsgi"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """What the app sees behind the middleware, in the same words for both gateways."""

    def asgi(peer: str | None, headers: Headers, proxies: TrustedProxies = TRUSTED) -> dict[str, Any]:
        scope = ask_asgi(lambda app: ASGIForwarded(app, proxies), peer, headers)
        names = {name.decode() for name, _ in scope["headers"]}
        client, original = scope["client"], scope["lbkit.forwarded"]
        return {"client": client, "scheme": scope["scheme"], "names": names, "original": original}

    def wsgi(peer: str | None, headers: Headers, proxies: TrustedProxies = TRUSTED) -> dict[str, Any]:
        environ = ask_wsgi(lambda app: WSGIForwarded(app, proxies), peer, headers)
        names = {key[5:].replace("_", "-").lower() for key in environ if key.startswith("HTTP_")}
        address, port = environ["REMOTE_ADDR"], environ["REMOTE_PORT"]
        client = (address, int(port)) if address else None
        scheme, original = environ["wsgi.url_scheme"], environ["lbkit.forwarded"]
        return {"client": client, "scheme": scheme, "names": names, "original": original}

    return asgi if request.param == "asgi" else wsgi


def test_the_app_sees_the_client_and_the_headers_of_one_family(ask: Ask) -> None:
    seen = ask(PROXY, ALL)
    assert seen["client"] == (CLIENT, 99)
    assert seen["scheme"] == "https"
    assert seen["names"] == {"accept", "host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"}


def test_the_other_family_is_the_other_way_round(ask: Ask) -> None:
    seen = ask(PROXY, (*ALL[:4], ("Forwarded", f'for="{CLIENT}:99";proto=https')), RFC7239)
    assert seen["client"] == (CLIENT, 99)
    assert seen["scheme"] == "https"
    assert seen["names"] == {"accept", "host", "forwarded"}


def test_an_app_behind_a_stranger_sees_no_forwarding_header_at_all(ask: Ask) -> None:
    seen = ask(CLIENT, ALL)
    assert seen["client"] == (CLIENT, 51000)
    assert seen["scheme"] == "http"
    assert seen["names"] == {"accept", "host"}


def test_a_proxy_that_says_nothing_is_the_client_itself(ask: Ask) -> None:
    seen = ask(PROXY, (("Accept", "*/*"),))
    assert seen["client"] == (PROXY, 51000)
    assert seen["names"] == {"accept", "host"}


def test_a_unix_socket_has_no_address_until_a_proxy_gives_one(ask: Ask) -> None:
    unix = TrustedProxies(["unix"])
    assert ask(None, (), unix)["client"] is None
    assert ask(None, (("X-Forwarded-For", CLIENT),), unix)["client"] == (CLIENT, 0)


def test_what_the_server_saw_is_kept(ask: Ask) -> None:
    original = ask(PROXY, ALL)["original"]
    assert original.client == (PROXY, 51000)
    assert original.scheme == "http"
    values = set(original.headers.values()) if isinstance(original.headers, dict) else {
        text.decode() for _, text in original.headers
    }  # fmt: skip
    assert {HOST, SPOOF, f"for={SPOOF}", f"{SPOOF}, {CLIENT}:99"} <= values


def test_a_second_one_further_in_leaves_the_answer_of_the_first() -> None:
    headers = (("X-Forwarded-For", CLIENT), ("X-Forwarded-Proto", "https"))
    scope = ask_asgi(lambda app: ASGIForwarded(ASGIForwarded(app, TRUSTED), TRUSTED), PROXY, headers)
    assert (scope["client"], scope["scheme"]) == ((CLIENT, 0), "https")
    environ = ask_wsgi(lambda app: WSGIForwarded(WSGIForwarded(app, TRUSTED), TRUSTED), PROXY, headers)
    assert (environ["REMOTE_ADDR"], environ["wsgi.url_scheme"]) == (CLIENT, "https")


def test_a_websocket_over_https_is_wss() -> None:
    headers = (("X-Forwarded-For", CLIENT), ("X-Forwarded-Proto", "https"))
    scope = ask_asgi(lambda app: ASGIForwarded(app, TRUSTED), PROXY, headers, kind="websocket")
    assert (scope["client"][0], scope["scheme"]) == (CLIENT, "wss")


@pytest.mark.parametrize("name", ["X_Forwarded_For", "X-Forwarded_For", "x_forwarded-for", "X_Real_IP"])
def test_an_alias_with_underscores_never_reaches_an_asgi_app(name: str) -> None:
    """A bridge to WSGI further in would take it for the real header."""
    headers = ((name, SPOOF), ("X-Forwarded-For", CLIENT))
    scope = ask_asgi(lambda app: ASGIForwarded(app, TRUSTED), PROXY, headers)
    assert scope["client"][0] == CLIENT
    assert [key for key, _ in scope["headers"]] == [b"host", b"x-forwarded-for"]


def test_the_outer_scope_is_left_as_it_was() -> None:
    scope = {
        "type": "http",
        "client": (PROXY, 1),
        "scheme": "http",
        "headers": [(b"x-forwarded-for", b"1.1.1.1")],
    }
    before = {**scope, "headers": list(scope["headers"])}

    async def app(_scope: object, _receive: object, _send: object) -> None: ...

    asyncio.run(ASGIForwarded(app, TRUSTED)(scope, None, None))  # type: ignore[arg-type]
    assert scope == before


def test_a_server_that_has_replaced_the_address_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    async def app(_scope: object, _receive: object, _send: object) -> None: ...

    middleware = ASGIForwarded(app, TRUSTED)
    with caplog.at_level(logging.WARNING, "lbkit.forwarded"):
        for _ in range(3):
            scope = {"type": "http", "client": (SPOOF, 0), "scheme": "http", "headers": []}
            asyncio.run(middleware(scope, None, None))  # type: ignore[arg-type]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        f"the server has already replaced the peer's address ({SPOOF}, port 0)"
    ]


def test_uvicorns_own_proxy_headers_are_noticed(caplog: pytest.LogCaptureFixture) -> None:
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    with caplog.at_level(logging.WARNING, "lbkit.forwarded"):
        ask_asgi(
            lambda app: ProxyHeadersMiddleware(ASGIForwarded(app, TRUSTED), trusted_hosts=PROXY),
            PROXY,
            (("X-Forwarded-For", CLIENT),),
        )
    assert "--no-proxy-headers" in caplog.text


def test_werkzeugs_proxy_fix_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    from werkzeug.middleware.proxy_fix import ProxyFix

    with caplog.at_level(logging.WARNING, "lbkit.forwarded"):
        ask_wsgi(lambda app: ProxyFix(WSGIForwarded(app, TRUSTED)), PROXY, (("X-Forwarded-For", CLIENT),))
    assert "Remove ProxyFix" in caplog.text


def test_a_lifespan_passes_through() -> None:
    scope = ask_asgi(lambda app: ASGIForwarded(app, TRUSTED), None, (), kind="lifespan")
    assert "lbkit.forwarded" not in scope
