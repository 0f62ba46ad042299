"""The route cookie on its way: what is said here of one gateway is said of the other."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.validate import validator

import httpx
import pytest

from lbkit.asgi import StickyMiddleware as ASGISticky
from lbkit.errors import ConfigError
from lbkit.sticky import Reason, Sticky
from lbkit.wsgi import StickyMiddleware as WSGISticky

OLD, NEW = "old " * 8, "new " * 8
NOW = 1_790_000_000.0
STICKY = Sticky(secret_keys=[NEW, OLD])
GENUINE = re.compile(
    r"lb=(?P<id>[a-z0-9]+)\.[\w-]+\.[\w-]{27}; Path=/; Secure; HttpOnly; SameSite=Lax", re.ASCII
)

Reply = tuple[int, list[tuple[str, str]]]
Ask = Callable[..., httpx.Response]


class Site:
    """A replica behind the middleware, and what its app saw."""

    def __init__(self, name: str, gateway: str, reply: Reply, sticky: Sticky = STICKY) -> None:
        self.calls = 0
        self.reply = reply
        self.gateway = gateway
        self.middleware: Any
        if gateway == "asgi":
            self.middleware = ASGISticky(self._asgi, sticky, replica_id=name, wall=lambda: NOW)
        else:
            self.middleware = WSGISticky(self._wsgi, sticky, replica_id=name, wall=lambda: NOW)

    async def _asgi(self, scope: Any, _receive: Any, send: Any) -> None:
        self.calls += 1
        status, headers = self.reply
        lines = [(name.lower().encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": status, "headers": lines})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else b"hello"})

    def _wsgi(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.calls += 1
        status, headers = self.reply
        start_response(f"{status} Whatever", [("Content-Type", "text/plain"), *headers])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else b"hello"]

    def __call__(self, path: str = "/", *, method: str = "GET", cookie: str | None = None) -> httpx.Response:
        headers = {"cookie": cookie} if cookie is not None else {}
        return self.ask(httpx.Request(method, f"https://shop.example{path}", headers=headers))

    def ask(self, request: httpx.Request) -> httpx.Response:
        if self.gateway == "wsgi":
            with httpx.Client(transport=httpx.WSGITransport(validator(self.middleware))) as client:
                return client.send(request)

        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.middleware)) as client:
                return await client.send(request)

        return asyncio.run(ask())


@pytest.fixture(params=["asgi", "wsgi"])
def gateway(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def site(gateway: str) -> Site:
    return Site("web1", gateway, (200, []))


def named(response: httpx.Response) -> list[str]:
    """The replicas that the answer's route cookies name."""
    cookies = response.headers.get_list("set-cookie")
    return [match["id"] for cookie in cookies if (match := GENUINE.fullmatch(cookie))]


def test_the_first_answer_names_the_replica_and_the_next_ones_say_nothing(site: Site) -> None:
    first = site()
    assert named(first) == ["web1"]
    cookie = first.headers["set-cookie"].partition(";")[0]
    second = site(cookie=f"session=abc; {cookie}")
    assert "set-cookie" not in second.headers
    assert "cache-control" not in second.headers
    assert (second.text, site.calls) == ("hello", 2)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (STICKY.encode("web2", NOW), Reason.UNKNOWN),
        (Sticky(secret_keys=["x" * 16]).encode("web1", NOW), Reason.FORGED),
        ("web1", Reason.MALFORMED),
        ("x" * 5000, Reason.OVERSIZED),
    ],
)
def test_a_client_that_landed_here_is_told_so_whatever_its_cookie_said(
    site: Site, value: str, reason: Reason
) -> None:
    assert named(site(cookie=f"lb={value}")) == ["web1"]
    assert site.middleware.stick.moves[reason] == 1


def test_a_cookie_of_the_old_key_is_renewed_with_the_new_one(site: Site) -> None:
    answer = site(cookie=f"lb={Sticky(secret_keys=[OLD]).encode('web1', NOW)}")
    assert answer.headers["set-cookie"] == STICKY.set_cookie("web1", NOW)


def test_two_replicas_in_the_middle_of_a_key_rollout_accept_each_others_cookies(gateway: str) -> None:
    before = Site("web1", gateway, (200, []), Sticky(secret_keys=[OLD, NEW]))
    after = Site("web1", gateway, (200, []), Sticky(secret_keys=[NEW, OLD]))
    value = f"lb={Sticky(secret_keys=[NEW]).encode('web1', NOW)}"
    assert named(before(cookie=value)) == ["web1"]  # kept, and renewed with the key that signs here
    assert named(after(cookie=value)) == []
    assert before.middleware.stick.moves[Reason.FORGED] == after.middleware.stick.moves[Reason.FORGED] == 0


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
@pytest.mark.parametrize("status", [200, 302, 404, 500])
def test_every_method_and_every_status_carries_the_cookie(gateway: str, method: str, status: int) -> None:
    assert named(Site("web1", gateway, (status, []))(method=method)) == ["web1"]


@pytest.mark.parametrize("path", ["/health", "/health/ready"])
def test_a_prober_gets_no_cookie(site: Site, path: str) -> None:
    assert named(site(path)) == []
    assert named(site("/healthy")) == ["web1"]


def test_an_answer_that_a_shared_cache_would_store_is_kept_from_it(gateway: str) -> None:
    site = Site("web1", gateway, (200, [("Cache-Control", "public, max-age=60"), ("X-Other", "1")]))
    first = site()
    assert first.headers.get_list("cache-control") == ["private, max-age=60"]
    assert first.headers["x-other"] == "1"
    pinned = site(cookie=first.headers["set-cookie"].partition(";")[0])
    assert pinned.headers["cache-control"] == "public, max-age=60"


def test_the_apps_own_cookies_and_headers_stay(gateway: str) -> None:
    site = Site("web1", gateway, (500, [("Set-Cookie", "session=abc; Path=/"), ("Vary", "Accept")]))
    answer = site()
    assert answer.headers.get_list("set-cookie") == ["session=abc; Path=/", STICKY.set_cookie("web1", NOW)]
    assert answer.headers["vary"] == "Accept"
    assert "cache-control" not in answer.headers


def test_fifty_cookies_in_four_kilobytes_are_read(site: Site) -> None:
    others = [f"name{number}={'v' * 75}" for number in range(50)]
    pinned = f"lb={STICKY.encode('web1', NOW)}"
    assert named(site(cookie="; ".join([*others, pinned]))) == []


def test_bytes_that_are_no_ascii_are_an_answer() -> None:
    garbage = b"lb=w\xffb1.\x80; lb="
    assert socket([(b"cookie", garbage)], [{"type": "websocket.accept"}])[0]["headers"] == [COOKIE]
    started: list[Any] = []
    middleware: Any = WSGISticky(_answering, STICKY, replica_id="web1", wall=lambda: NOW)
    environ = {"REQUEST_METHOD": "GET", "HTTP_COOKIE": garbage.decode("latin-1")}
    middleware(environ, lambda _status, headers: started.extend(headers))
    assert started == [("Cache-Control", "private"), ("Set-Cookie", STICKY.set_cookie("web1", NOW))]


def _answering(_environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    return []


def test_a_second_start_response_after_an_error_carries_one_cookie() -> None:
    def app(_environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        try:
            raise ValueError
        except ValueError as error:
            start_response(
                "500 Oops", [("Content-Type", "text/plain")], (ValueError, error, error.__traceback__)
            )
        return [b"oops"]

    middleware: Any = WSGISticky(app, STICKY, replica_id="web1", wall=lambda: NOW)
    transport = httpx.WSGITransport(validator(middleware), raise_app_exceptions=False)
    with httpx.Client(transport=transport) as client:
        answer = client.get("https://shop.example/")
    assert (answer.status_code, named(answer)) == (500, ["web1"])


def socket(headers: list[tuple[bytes, bytes]], answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the server gets from a websocket app that sends these answers."""
    sent: list[dict[str, Any]] = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        for answer in answers:
            await send(answer)

    async def send(message: Any) -> None:
        sent.append(message)

    middleware: Any = ASGISticky(app, STICKY, replica_id="web1", wall=lambda: NOW)
    scope = {"type": "websocket", "path": "/ws", "headers": headers}
    asyncio.run(middleware(scope, None, send))
    return sent


COOKIE = (b"set-cookie", STICKY.set_cookie("web1", NOW).encode())


@pytest.mark.parametrize("kind", ["websocket.accept", "websocket.http.response.start"])
def test_a_websocket_gets_its_cookie_with_the_answer_to_its_handshake(kind: str) -> None:
    assert socket([], [{"type": kind}])[0]["headers"] == [COOKIE]
    other = (b"x-other", b"1")
    assert socket([], [{"type": kind, "headers": [other]}])[0]["headers"] == [other, COOKIE]


def test_a_pinned_websocket_and_its_later_messages_are_not_touched() -> None:
    pinned = [(b"cookie", f"lb={STICKY.encode('web1', NOW)}".encode())]
    accept, data = {"type": "websocket.accept"}, {"type": "websocket.send", "text": "hello"}
    through = socket(pinned, [accept, data])
    assert through[0] is accept
    assert socket([], [accept, data])[1] is data


def test_a_cookie_header_on_several_lines_is_one() -> None:
    """HTTP/2 sends each cookie on a line of its own."""
    lines = [
        (b"cookie", b"a=1"),
        (b"cookie", f"lb={STICKY.encode('web1', NOW)}".encode()),
        (b"cookie", b"b=2"),
    ]
    accept = {"type": "websocket.accept"}
    assert socket(lines, [accept])[0] is accept


def test_a_lifespan_passes_through() -> None:
    seen: list[str] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(ASGISticky(app, STICKY, replica_id="web1")({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]


@pytest.mark.parametrize("middleware", [ASGISticky, WSGISticky])
def test_the_replica_id_comes_from_the_environment_and_a_dot_in_it_is_refused(
    middleware: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LBKIT_REPLICA_ID", "web7")
    assert middleware(None, STICKY).replica_id == "web7"
    with pytest.raises(ConfigError, match=r"need a replica name of 1 to 63 letters.* got 'web1\.eu'"):
        middleware(None, STICKY, replica_id="web1.eu")
