"""The drain through both gateways: what a client sees, and what counts as in flight."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

import pytest

from lbkit import Departure, DrainTimings, Reject, asgi, wsgi
from lbkit.process import Process
from lbkit.types import Environ, Message, StartResponse
from tests.gateways.connection import (
    Connection,
    body_of,
    connected,
    exchange,
    http_scope,
    run,
    websocket_scope,
)
from tests.health_gateways import FakeClock

TIMINGS = DrainTimings(pre_stop_delay=4.0, drain_timeout=20.0)
EVENT_STREAM = "text/event-stream; charset=utf-8"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def departure(clock: FakeClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Departure]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # what a server would have there
    made = Departure(TIMINGS, environ={}, process=Process(environ={}, clock=clock))
    yield made
    made.stop()
    signal.signal(signal.SIGTERM, before)


def start(type_: str = "text/plain") -> Message:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", type_.encode())]}


async def hello(_: Any, __: Any, send: Any) -> None:
    await send(start())
    await send({"type": "http.response.body", "body": b"hello"})


def wsgi_hello(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


class Answer:
    """What a WSGI server gets to see of one request."""

    def __init__(self, app: Any, **environ: Any) -> None:
        self.status = ""
        self.headers: dict[str, str] = {}
        self.body = app({"REQUEST_METHOD": "GET", "PATH_INFO": "/", **environ}, self._start)

    def _start(self, status: str, headers: list[tuple[str, str]], _: Any = None) -> Any:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers}
        return lambda *_: None

    def read(self) -> bytes:
        return b"".join(self.body)


def ask(
    gateway: str, departure: Departure, *, method: str = "GET", mark: bool = False
) -> tuple[int, dict[str, str]]:
    """One small request to the end; its status and its headers."""
    if gateway == "wsgi":
        more = {"HTTP_X_LB_RETRY_503": "1"} if mark else {}
        app = wsgi.DrainMiddleware(wsgi_hello, departure)
        answer = Answer(app, REQUEST_METHOD=method, SERVER_SOFTWARE="Granian", **more)
        answer.read()
        return int(answer.status[:3]), answer.headers
    headers = [(b"x-lb-retry-503", b"1")] if mark else []
    app_ = asgi.DrainMiddleware(hello, departure)
    first = run(exchange(app_, http_scope("/", method=method, headers=headers)))[0]
    return first["status"], {name.decode(): value.decode() for name, value in first["headers"]}


GATEWAYS = pytest.mark.parametrize("gateway", ["asgi", "wsgi"])


@GATEWAYS
def test_a_draining_replica_serves_and_closes_its_connections(gateway: str, departure: Departure) -> None:
    status, headers = ask(gateway, departure)
    assert (status, "connection" in headers) == (200, False)
    departure.drain.begin(0.0)
    status, headers = ask(gateway, departure)
    assert (status, headers["connection"]) == (200, "close")


@GATEWAYS
@pytest.mark.parametrize(
    ("reject", "method", "mark", "status"),
    [
        (Reject.MARKED, "GET", True, 503),
        (Reject.MARKED, "GET", False, 200),
        (Reject.MARKED, "POST", True, 200),
        (Reject.ALWAYS, "HEAD", False, 503),
        (Reject.NEVER, "GET", True, 200),
    ],
)
def test_a_passive_balancer_is_told_with_what_it_may_send_again(
    gateway: str, departure: Departure, reject: Reject, method: str, mark: bool, status: int
) -> None:
    departure.reject = reject
    assert ask(gateway, departure, method=method, mark=mark)[0] == 200
    departure.drain.begin(0.0)
    assert ask(gateway, departure, method=method, mark=mark)[0] == status


@pytest.mark.parametrize("reject", Reject)
def test_over_http_2_no_answer_has_a_connection_header(reject: Reject, departure: Departure) -> None:
    departure.reject = reject
    departure.drain.begin(0.0)
    scope = http_scope("/", http_version="2")
    first = run(exchange(asgi.DrainMiddleware(hello, departure), scope))[0]
    assert first["status"] == (503 if reject is Reject.ALWAYS else 200)
    assert b"connection" not in dict(first["headers"])


def test_a_background_task_counts_until_it_is_over(departure: Departure) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await hello(scope, receive, send)
        await release.wait()

    async def scenario() -> None:
        nonlocal release
        release = asyncio.Event()
        async with connected(asgi.DrainMiddleware(app, departure), http_scope()) as client:
            assert [(await client.get())["type"], (await client.get())["type"]][1] == "http.response.body"
            assert departure.drain.in_flight == 1
            release.set()
            await client.end()
        assert departure.drain.in_flight == 0

    release: asyncio.Event
    run(scenario())


@pytest.mark.parametrize("way", ["read", "close", "both", "fail"])
def test_a_wsgi_request_is_counted_out_once_however_its_body_ends(departure: Departure, way: str) -> None:
    def body() -> Iterator[bytes]:
        yield b"one"
        if way == "fail":
            raise ZeroDivisionError
        yield b"two"

    def app(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return body()

    answer = Answer(wsgi.DrainMiddleware(app, departure))
    assert departure.drain.in_flight == 1
    if way == "fail":
        with pytest.raises(ZeroDivisionError):
            answer.read()
    if way in ("read", "both"):
        answer.read()
    if way in ("close", "both"):
        answer.body.close()
    assert departure.drain.in_flight == 0


def test_a_wsgi_app_that_raises_is_counted_out(departure: Departure) -> None:
    def app(_: Environ, __: StartResponse) -> Iterable[bytes]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Answer(wsgi.DrainMiddleware(app, departure))
    assert departure.drain.in_flight == 0


def test_a_server_still_sees_that_a_wsgi_body_is_one_piece(departure: Departure) -> None:
    answer = Answer(wsgi.DrainMiddleware(wsgi_hello, departure))
    assert len(answer.body) == 1
    assert answer.read() == b"hello"
    assert departure.drain.in_flight == 0


def test_a_server_gets_its_own_file_wrapper_back_and_its_close_counts_out(
    departure: Departure, tmp_path: Path
) -> None:
    (tmp_path / "picture").write_bytes(b"x" * 20_000)
    made: list[FileWrapper] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        made.append(environ["wsgi.file_wrapper"]((tmp_path / "picture").open("rb")))
        return made[0]

    answer = Answer(wsgi.DrainMiddleware(app, departure), **{"wsgi.file_wrapper": FileWrapper})
    assert answer.body is made[0]
    assert (len(answer.read()), departure.drain.in_flight) == (20_000, 1)
    answer.body.close()
    assert (made[0].filelike.closed, departure.drain.in_flight) == (True, 0)


def test_an_event_stream_gets_a_last_event_and_a_clean_end(departure: Departure, clock: FakeClock) -> None:
    cleaned: list[str] = []

    async def app(_: Any, __: Any, send: Any) -> None:
        await send(start(EVENT_STREAM))
        try:
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            await asyncio.Event().wait()
        finally:
            cleaned.append("yes")

    async def scenario() -> None:
        async with connected(asgi.DrainMiddleware(app, departure), http_scope()) as client:
            await client.get()
            await client.get()
            departure.drain.begin(clock())
            clock.now += 4.0
            last = await client.get()
            assert last["body"].startswith(b"event: shutdown\nretry: ")
            assert not last["more_body"]
            await client.end()
            assert client.silent
        assert cleaned == ["yes"]
        assert departure.drain.in_flight == 0

    run(scenario())


def test_what_an_ended_stream_still_sends_goes_nowhere(departure: Departure, clock: FakeClock) -> None:
    async def app(_: Any, __: Any, send: Any) -> None:
        await send(start(EVENT_STREAM))
        try:
            await asyncio.Event().wait()
        finally:
            await send({"type": "http.response.body", "body": b"data: too late\n\n", "more_body": True})

    async def scenario() -> None:
        async with connected(asgi.DrainMiddleware(app, departure), http_scope()) as client:
            await client.get()
            departure.drain.begin(clock())
            clock.now += 4.0
            assert body_of([await client.get()]).startswith(b"event: shutdown")
            await client.end()
            assert client.silent

    run(scenario())


def test_a_slow_answer_that_is_no_event_stream_is_left_to_finish(
    departure: Departure, clock: FakeClock
) -> None:
    async def scenario() -> None:
        release = asyncio.Event()

        async def app(_: Any, __: Any, send: Any) -> None:
            await send(start("application/octet-stream"))
            await release.wait()
            await send({"type": "http.response.body", "body": b"all of it"})

        async with connected(asgi.DrainMiddleware(app, departure), http_scope()) as client:
            await client.get()
            departure.drain.begin(clock())
            clock.now += 10.0
            departure.process.tick()
            release.set()
            assert (await client.get())["body"] == b"all of it"
            await client.end()

    run(scenario())


def test_what_runs_at_the_deadline_is_cancelled(departure: Departure, clock: FakeClock) -> None:
    async def app(_: Any, __: Any, ___: Any) -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with connected(asgi.DrainMiddleware(app, departure), http_scope()) as client:
            await asyncio.sleep(0)
            departure.drain.begin(clock())
            clock.now += 20.0
            with pytest.raises(asyncio.CancelledError):
                await client.end()
        assert departure.drain.in_flight == 0

    run(scenario())


async def closed(client: Connection, departure: Departure, clock: FakeClock) -> None:
    """The time of the streams comes, and the client of a websocket is told so."""
    departure.drain.begin(clock())
    clock.now += 4.0
    close = await client.get()
    assert (close["type"], close["code"]) == ("websocket.close", 1012)


def test_a_websocket_is_closed_with_1012_and_its_app_is_told(departure: Departure, clock: FakeClock) -> None:
    told: list[Message] = []

    async def app(_: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        told.append(await receive())

    async def scenario() -> None:
        async with connected(asgi.DrainMiddleware(app, departure), websocket_scope()) as client:
            client.put("websocket.connect")
            await client.get()
            await closed(client, departure, clock)
            client.put("websocket.disconnect", code=1005)  # what a server says then
            await client.end()
        assert told[0]["code"] == 1012
        assert departure.drain.in_flight == 0

    run(scenario())


def test_an_app_that_waits_for_a_message_is_told_although_its_server_says_nothing(
    departure: Departure, clock: FakeClock
) -> None:
    told: list[Message] = []
    asked_for: list[int] = []

    async def app(_: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        told.append(await asyncio.wait_for(receive(), 3600))  # from 3.12 on in this task, before in another
        asked_for.append(getattr(asyncio.current_task(), "cancelling", int)())

    async def scenario() -> None:
        async with connected(asgi.DrainMiddleware(app, departure), websocket_scope()) as client:
            await client.get()
            await closed(client, departure, clock)
            await client.end()

    run(scenario())
    assert [(each["type"], each["code"]) for each in told] == [("websocket.disconnect", 1012)]
    assert asked_for == [0]


def test_who_is_cancelled_by_somebody_else_while_it_waits_for_a_message_stays_cancelled(
    departure: Departure,
) -> None:
    async def app(_: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await receive()

    async def scenario() -> None:
        async with connected(asgi.DrainMiddleware(app, departure), websocket_scope()) as client:
            await client.get()
            client.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await client.end()
        assert departure.drain.in_flight == 0

    run(scenario())


def test_what_a_client_said_before_the_end_is_still_heard(departure: Departure, clock: FakeClock) -> None:
    told: list[Message] = []
    busy = asyncio.Event()

    async def app(_: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await busy.wait()
        told.extend([await receive(), await receive()])

    async def scenario() -> None:
        async with connected(asgi.DrainMiddleware(app, departure), websocket_scope()) as client:
            await client.get()
            client.put("websocket.receive", text="save this")
            await closed(client, departure, clock)
            client.put("websocket.disconnect", code=1005)
            busy.set()
            await client.end()

    run(scenario())
    assert [(each.get("text"), each.get("code")) for each in told] == [("save this", None), (None, 1012)]


def test_a_websocket_whose_app_does_not_listen_is_cancelled(departure: Departure, clock: FakeClock) -> None:
    async def app(_: Any, __: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with connected(asgi.DrainMiddleware(app, departure), websocket_scope()) as client:
            await client.get()
            await closed(client, departure, clock)
            await client.end()

    run(scenario())


def test_a_wsgi_event_stream_gets_a_last_event_and_a_clean_end(
    departure: Departure, clock: FakeClock
) -> None:
    def app(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", EVENT_STREAM)])
        while True:
            yield b"data: tick\n\n"

    stream = iter(Answer(wsgi.DrainMiddleware(app, departure)).body)
    assert next(stream) == b"data: tick\n\n"
    departure.drain.begin(clock())
    assert next(stream) == b"data: tick\n\n"
    clock.now += 4.0
    departure.process.tick()
    clock.now += 1.0
    rest = list(stream)
    assert rest[-1].startswith(b"event: shutdown\nretry: ")
    assert departure.drain.in_flight == 0


class Gunicorn:
    """As much of its response object as we use."""

    closes = False

    def force_close(self) -> None:
        self.closes = True

    def start_response(self, *_: Any) -> Any:
        return lambda *_: None


def test_a_stream_that_is_ended_leaves_no_connection_for_gunicorn_to_wait_on(
    departure: Departure, clock: FakeClock
) -> None:
    def app(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", EVENT_STREAM)])
        while True:
            yield b"data: tick\n\n"

    response = Gunicorn()
    stream = iter(wsgi.DrainMiddleware(app, departure)({"REQUEST_METHOD": "GET"}, response.start_response))
    next(stream)
    departure.drain.begin(clock())
    clock.now += 4.0
    departure.process.tick()
    assert not response.closes
    assert list(stream)[-1].startswith(b"event: shutdown")
    assert response.closes


def test_the_event_is_set_while_draining_for_threads_and_for_coroutines(departure: Departure) -> None:
    async def scenario() -> None:
        waiting = asyncio.create_task(_await(departure))
        await asyncio.sleep(0)
        assert departure.process.order(drain=True)
        departure.process.tick()
        await waiting

    departure.start()
    assert not departure.event.is_set()
    run(scenario())
    assert departure.event.wait(timeout=0)
    assert departure.is_draining()
    assert departure.process.order(drain=False)
    departure.process.tick()
    assert not departure.event.is_set()


async def _await(departure: Departure) -> None:
    await departure.event


def test_a_replica_drained_by_an_operator_is_never_handed_over(
    departure: Departure, clock: FakeClock
) -> None:
    departure.start()
    departure.process.order(drain=True)
    clock.now += 1000.0
    departure.process.tick()
    assert departure.view() | {"hook": ""} == {
        "state": "draining", "since": 1000.0, "reason": "operator", "in_flight": 0, "deadline_in": None,
        "armed": departure.view()["armed"], "hook": "",
    }  # fmt: skip


def test_hold_counts_a_job_outside_of_requests(departure: Departure) -> None:
    departure.start()
    with departure.hold("nightly report"):
        assert departure.view()["in_flight"] == 1
    assert departure.view()["in_flight"] == 0
