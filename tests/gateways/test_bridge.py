"""The WSGI bridge: next to a2wsgi as its oracle, and then what a2wsgi does not do."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from threading import Barrier, Event
from typing import Any
from urllib.parse import quote
from wsgiref.validate import validator

import a2wsgi
import flask
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lbkit.asgi.bridge import WSGIBridge
from lbkit.types import ASGIApp, Environ, Message, Scope, StartResponse, WSGIApp
from tests.gateways.connection import HUNG, body_of, connected, exchange, http_scope, run, websocket_scope

CHUNK = b"chunk"


class Boom(Exception):
    pass


def answer(*chunks: bytes, status: str = "200 OK", headers: Iterable[tuple[str, str]] = ()) -> WSGIApp:
    def app(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response(status, list(headers))
        return list(chunks)

    return app


class Body:
    """The body of an answer that counts what becomes of it. `chunks` may hold an error to raise."""

    def __init__(self, *chunks: bytes | Exception, endless: bool = False) -> None:
        self.chunks = chunks
        self.endless = endless
        self.made = self.closed = 0
        self.closed_event = Event()

    def __call__(self, _: Environ, start_response: StartResponse) -> Body:
        start_response("200 OK", [])
        return self

    def __iter__(self) -> Iterator[bytes]:
        while True:
            for chunk in self.chunks:
                if isinstance(chunk, Exception):
                    raise chunk
                self.made += 1
                yield chunk
            if not self.endless:
                return

    def close(self) -> None:
        self.closed += 1
        self.closed_event.set()


def ask(app: WSGIApp, *pieces: bytes, scope: Scope | None = None, bridge: Any = WSGIBridge) -> list[Message]:
    return run(exchange(bridge(app), scope or http_scope(), *pieces))


def told(messages: list[Message]) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """What an HTTP client can see of an answer."""
    assert messages[0]["type"] == "http.response.start"
    assert {each["type"] for each in messages[1:]} == {"http.response.body"}
    assert [each.get("more_body", False) for each in messages[1:]] == [True] * (len(messages) - 2) + [False]
    return messages[0]["status"], messages[0]["headers"], body_of(messages)


# ---------------------------------------------------------------- next to a2wsgi

flask_app = flask.Flask(__name__)


@flask_app.route("/<path:path>", methods=["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
def flask_echo(path: str) -> flask.Response:
    """The body is read by its declared length: `wsgi.input_terminated`, which differs, plays no part."""
    request = flask.request
    found = {"path": path, "args": request.args.to_dict(flat=False), "url": request.url}
    headers = dict(request.headers.items())
    response = flask.jsonify(found, headers, request.get_data(as_text=True))
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


@flask_app.get("/stream/<int:count>")
def flask_stream(count: int) -> flask.Response:
    return flask.Response((f"{number}\n" for number in range(count)), mimetype="text/plain")


def reader(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return [environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))]


def lines(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"%d " % len(line) for line in iter(environ["wsgi.input"].readline, b"")]


def writer(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
    write = start_response("207 Multi-Status", [("X-Way", "write"), ("X-Way", "twice")])
    write(b"one ")
    write(b"two ")
    return [b"three"]


def generator(_: Environ, start_response: StartResponse) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Length", "9")])
    yield b"abc"
    yield b""
    yield b"defghi"


APPS: dict[str, WSGIApp] = {
    "flask": flask_app,
    "reader": reader,
    "lines": lines,
    "writer": writer,
    "generator": generator,
    "list": answer(b"a", b"", b"bc", headers=[("ETag", '"x"'), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]),
    "empty": answer(),
    "204": answer(status="204 No Content"),
    "304": answer(status="304 Not Modified", headers=[("ETag", '"x"')]),
    "418": answer(b"teapot", status="418 I'm a teapot", headers=[("X-Latin", "caf\xe9")]),
    "500": answer(b"oops", status="500 Internal Server Error", headers=[("Content-Length", "4")]),
}

PATHS = st.one_of(
    st.sampled_from(["/", "/a", "/a/b", "/stream/5", "//a", "/a/"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="%?#"), max_size=12).map(
        lambda text: f"/{text}"
    ),
)
VALUES = st.text("abcdefXYZ0189 ,;=/\xe9\"'<>", max_size=20).map(str.strip)
NAMES = st.sampled_from(["accept", "cookie", "x-a", "x-forwarded-for", "content-type", "user-agent", "x-b-c"])
METHODS = st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"])


@st.composite
def requests(draw: st.DrawFn) -> tuple[Scope, list[bytes]]:
    path, pieces = draw(PATHS), draw(st.lists(st.binary(max_size=300), min_size=1, max_size=4))
    drawn = {
        name: value.encode("latin-1") for name, value in draw(st.lists(st.tuples(NAMES, VALUES), max_size=5))
    }
    headers = [(b"host", b"shop.example"), *((name.encode(), value) for name, value in drawn.items())]
    length = sum(map(len, pieces))
    if length or draw(st.booleans()):
        headers.append((b"content-length", b"%d" % length))
    scope = http_scope(
        path,
        method=draw(METHODS),
        headers=headers,
        query_string=draw(st.sampled_from([b"", b"a=1", b"a=1&a=2&b=%C3%A9", b"%", b"a+b"])),
        http_version=draw(st.sampled_from(["1.0", "1.1", "2"])),
        scheme=draw(st.sampled_from(["http", "https"])),
        client=draw(st.sampled_from([("192.0.2.7", 4711), ("2001:db8::7", 1), None])),
        server=draw(st.sampled_from([("127.0.0.1", 8000), None])),
        raw_path=draw(st.sampled_from([None, quote(path).encode()])),
    )
    return scope, pieces


@pytest.fixture(scope="module")
def both() -> Iterator[Callable[[WSGIApp, Scope, list[bytes]], list[Any]]]:
    """Ask the bridge and a2wsgi the same; one loop for all, as a server has."""
    made: dict[int, tuple[WSGIBridge, a2wsgi.WSGIMiddleware]] = {}
    loop = asyncio.new_event_loop()

    def ask(app: WSGIApp, scope: Scope, pieces: list[bytes]) -> list[Any]:
        pair = made.setdefault(id(app), (WSGIBridge(app), a2wsgi.WSGIMiddleware(app, workers=1)))
        return [
            told(loop.run_until_complete(exchange(bridge, {**scope}, *pieces)))  # type: ignore[arg-type]
            for bridge in pair
        ]

    yield ask
    for _, theirs in made.values():
        theirs.executor.shutdown()
    loop.close()


@pytest.mark.parametrize("app", APPS.values(), ids=APPS.keys())
@given(request=requests())
@example(request=(http_scope("/stream/5", raw_path=None), [b""]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_client_cannot_tell_the_bridge_from_a2wsgi(
    both: Callable[..., list[Any]], app: WSGIApp, request: tuple[Scope, list[bytes]]
) -> None:
    ours, theirs = both(app, *request)
    assert ours == theirs


OWN_KEYS = {"asgi.scope", "wsgi.input", "wsgi.errors", "wsgi.input_terminated"}
"""What one has and the other has not, or what is an object of its own in each."""


@given(request=requests(), root=st.sampled_from(["", "/shop", "/caf\xe9"]))
@settings(max_examples=300, deadline=None)
def test_an_app_sees_the_same_environ_under_both(
    both: Callable[..., list[Any]], request: tuple[Scope, list[bytes]], root: str
) -> None:
    scope, pieces = request
    seen.clear()
    both(environ_recorder, {**scope, "root_path": root, "path": root + scope["path"]}, pieces)
    ours, theirs = seen
    assert {key: value for key, value in ours.items() if key not in OWN_KEYS} == {
        key: value for key, value in theirs.items() if key not in OWN_KEYS
    }


seen: list[Environ] = []


def environ_recorder(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    seen.append(environ)
    start_response("204 No Content", [])
    return []


class TestDifferencesOnPurpose:
    """Where WSGI servers do better than a2wsgi. The last line of each test says what a2wsgi does."""

    def test_a_header_name_with_an_underscore_does_not_pass_for_another_header(self) -> None:
        scope = http_scope(headers=[(b"x-forwarded-for", b"192.0.2.7"), (b"x_forwarded_for", b"10.0.0.1")])
        assert environ_under(WSGIBridge, scope)["HTTP_X_FORWARDED_FOR"] == "192.0.2.7"
        assert environ_under(a2wsgi.WSGIMiddleware, scope)["HTTP_X_FORWARDED_FOR"] == "192.0.2.7,10.0.0.1"

    def test_a_chunked_upload_can_be_read_to_its_end_by_flask(self) -> None:
        scope = http_scope("/a", method="POST", headers=[(b"transfer-encoding", b"chunked")])
        bodies = [
            json.loads(told(ask(flask_app, CHUNK, CHUNK, scope=scope, bridge=bridge))[2])[2]
            for bridge in (WSGIBridge, a2wsgi.WSGIMiddleware)
        ]
        assert bodies == ["chunkchunk", ""]

    def test_a_body_cut_by_the_client_raises_instead_of_ending_early(self) -> None:
        caught: list[BaseException] = []

        def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            try:
                caught.append(EOFError(environ["wsgi.input"].read()))
            except OSError as error:
                caught.append(error)
            start_response("400 Bad Request", [])
            return []

        async def work(bridge: ASGIApp) -> None:
            async with connected(bridge, http_scope(method="POST")) as client:
                client.body(b"half", more=True)
                client.put("http.disconnect")
                await client.end()

        run(work(WSGIBridge(app)))
        assert isinstance(caught.pop(), ConnectionResetError)
        run(work(a2wsgi.WSGIMiddleware(app)))  # type: ignore[arg-type]
        assert caught.pop().args == (b"half",)

    def test_a_path_keeps_bytes_that_are_not_utf_8(self) -> None:
        scope = http_scope("/\ufffd", raw_path=b"/%FF")
        assert environ_under(WSGIBridge, scope)["PATH_INFO"] == "/\xff"
        assert environ_under(a2wsgi.WSGIMiddleware, scope)["PATH_INFO"] == "/\xef\xbf\xbd"

    def test_cookies_of_several_lines_are_joined_as_cookies_are(self) -> None:
        """HTTP/2 sends each cookie on a line of its own (RFC 9113, section 8.2.3)."""
        scope = http_scope(headers=[(b"cookie", b"a=1"), (b"cookie", b"b=2")])
        assert environ_under(WSGIBridge, scope)["HTTP_COOKIE"] == "a=1; b=2"
        assert environ_under(a2wsgi.WSGIMiddleware, scope)["HTTP_COOKIE"] == "a=1,b=2"

    def test_a_mount_is_cut_off_only_where_a_segment_ends(self) -> None:
        scope = http_scope("/apple", root_path="/app")
        assert environ_under(WSGIBridge, scope)["PATH_INFO"] == "/apple"
        assert environ_under(a2wsgi.WSGIMiddleware, scope)["PATH_INFO"] == "le"

    def test_errors_go_to_standard_error(self) -> None:
        assert environ_under(WSGIBridge, http_scope())["wsgi.errors"] is sys.stderr
        assert environ_under(a2wsgi.WSGIMiddleware, http_scope())["wsgi.errors"] is sys.stdout

    def test_an_answer_of_one_list_is_one_message_and_its_start(self) -> None:
        assert [each["type"][14:] for each in ask(answer(b"all of it"))] == ["start", "body"]
        theirs = ask(answer(b"all of it"), bridge=a2wsgi.WSGIMiddleware)
        assert [each["type"][14:] for each in theirs] == ["start", "body", "body"]


def environ_under(bridge: Any, scope: Scope) -> Environ:
    seen.clear()
    ask(environ_recorder, scope=scope, bridge=bridge)
    return seen.pop()


# ---------------------------------------------------------------- a conforming server


def checked(app: WSGIApp) -> WSGIApp:
    """wsgiref's validator: an AssertionError, or a warning, for each breach of PEP 3333 by either side."""
    inner = validator(app)

    def outer(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            return Watched(inner(environ, start_response))
        except AssertionError as error:
            breaches.append(error)
            raise

    return outer


class Watched:
    def __init__(self, body: Iterable[bytes]) -> None:
        self.body = body

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self.body
        except AssertionError as error:
            breaches.append(error)
            raise

    def close(self) -> None:
        self.body.close()  # type: ignore[attr-defined]


breaches: list[AssertionError] = []

TEXT = ("Content-Type", "text/plain")


@pytest.mark.parametrize(
    ("app", "scope"),
    [
        (answer(b"x", headers=[TEXT]), http_scope()),
        (answer(headers=[TEXT]), http_scope("/a", root_path="")),
        (answer(b"x", headers=[TEXT]), http_scope("/shop/a", root_path="/shop")),
        (answer(b"x", headers=[TEXT]), http_scope("/shop", root_path="/shop")),
        (answer(status="204 No Content"), http_scope(client=None, server=None)),
        (answer(b"x", headers=[TEXT]), http_scope(server=("/run/app.sock", None))),
        (
            answer(headers=[TEXT]),
            http_scope(method="HEAD", headers=[(b"content-type", b"a/b"), (b"host", b"x")]),
        ),
    ],
)
def test_an_app_that_checks_its_server_finds_no_fault(
    app: WSGIApp, scope: Scope, capsys: pytest.CaptureFixture[str]
) -> None:
    breaches.clear()
    told(ask(checked(app), b"body", scope=scope))
    assert breaches == []
    gc.collect()
    assert capsys.readouterr().err == ""  # where the validator complains of a body that was not closed


def test_an_app_that_checks_its_server_finds_no_fault_in_a_body_in_pieces() -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"]
        got = [body.read(3), body.readline(), body.readline(2), *body.readlines(), body.read(1), b""]
        environ["wsgi.errors"].write("")
        start_response("200 OK", [TEXT])
        return [b"|".join(got)]

    breaches.clear()
    pieces = [b"on", b"e tw", b"o\nthr", b"ee\nfour\n", b"five"]
    assert told(ask(checked(app), *pieces))[2] == b"one| two\n|th|ree\n|four\n|five||"
    assert breaches == []


# ---------------------------------------------------------------- the answer


def test_close_is_called_once_after_the_last_byte_and_the_client_does_not_wait_for_it() -> None:
    async def work() -> None:
        let_close, body = Event(), Body(CHUNK)
        close = body.close

        def slow_close() -> None:
            let_close.wait(HUNG)
            close()

        body.close = slow_close  # type: ignore[method-assign]
        async with connected(WSGIBridge(body), http_scope()) as client:
            client.body()
            assert (await client.get())["type"] == "http.response.start"
            assert (await client.get())["body"] == CHUNK
            assert (await client.get())["more_body"] is False
            assert body.closed == 0
            let_close.set()
            await client.end()
            assert body.closed == 1

    run(work())


@pytest.mark.parametrize("fail_at", [0, 1, 2])
def test_close_is_called_when_the_body_raises(fail_at: int) -> None:
    body = Body(*[CHUNK] * fail_at, Boom("in the body"))
    with pytest.raises(Boom, match="in the body"):
        ask(body)
    assert (body.made, body.closed) == (fail_at, 1)


def test_an_error_of_close_is_the_error_of_the_call() -> None:
    class Failing(Body):
        def close(self) -> None:
            raise Boom("in close")

    async def work() -> None:
        async with connected(WSGIBridge(Failing(CHUNK)), http_scope()) as client:
            client.body()
            messages = [await client.get() for _ in range(3)]
            assert told(messages)[2] == CHUNK
            with pytest.raises(Boom, match="in close"):
                await client.end()

    run(work())


def test_a_chunk_leaves_before_the_next_one_is_made() -> None:
    async def work() -> None:
        go = Event()

        def app(_: Environ, start_response: StartResponse) -> Iterator[bytes]:
            start_response("200 OK", [])
            yield b"first"
            assert go.wait(HUNG)
            yield b"second"

        async with connected(WSGIBridge(app), http_scope()) as client:
            client.body()
            await client.get()
            assert (await client.get())["body"] == b"first"
            go.set()
            assert (await client.get())["body"] == b"second"
            await client.end()

    run(work())


def test_a_client_that_does_not_read_holds_the_app_back() -> None:
    async def work() -> None:
        body = Body(*[CHUNK] * 50)
        async with connected(WSGIBridge(body), http_scope(), window=1) as client:
            client.body()
            for taken in range(30):
                await client.get()
                # One lies in the window, one waits before it, and no other is made until that is taken.
                assert body.made <= taken + 3

    run(work())


def test_write_sends_at_once() -> None:
    async def work() -> None:
        go = Event()

        def app(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
            write = start_response("200 OK", [])
            write(b"one")
            assert go.wait(HUNG)
            write(b"two")
            return [b"three"]

        async with connected(WSGIBridge(app), http_scope()) as client:
            client.body()
            await client.get()
            assert (await client.get())["body"] == b"one"
            go.set()
            assert body_of(await client.messages()) == b"twothree"

    run(work())


def test_start_response_again_with_exc_info_before_the_first_byte_changes_the_answer() -> None:
    def app(_: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "999"), ("X-A", "1")])
        yield b""
        try:
            raise Boom("changed my mind")
        except Boom as error:
            start_response("500 Oops", [("X-B", "2")], (Boom, error, error.__traceback__))
        yield b"sorry"

    assert told(ask(app)) == (500, [(b"x-b", b"2")], b"sorry")


def test_start_response_again_with_exc_info_after_the_first_byte_raises_it() -> None:
    def app(_: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"out"
        try:
            raise Boom("too late")
        except Boom as error:
            start_response("500 Oops", [], (Boom, error, error.__traceback__))
        yield b"never"

    async def work() -> list[Message]:
        async with connected(WSGIBridge(app), http_scope()) as client:
            client.body()
            messages = [await client.get(), await client.get()]
            with pytest.raises(Boom, match="too late"):
                await client.end()
            assert client.silent
            return messages

    assert [each.get("body") for each in run(work())] == [None, b"out"]


@pytest.mark.parametrize("exc_info", [(), (None,)])
def test_start_response_twice_without_exc_info_is_an_error(exc_info: tuple[None, ...]) -> None:
    def app(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        start_response("200 OK", [], *exc_info)
        return []

    with pytest.raises(RuntimeError, match="a second time without exc_info"):
        ask(app)


@pytest.mark.parametrize("chunks", [[], [b""], [b"x"]])
def test_a_body_without_start_response_is_an_error(chunks: list[bytes]) -> None:
    with pytest.raises(RuntimeError, match="never called start_response"):
        ask(lambda _, __: iter(chunks))


def test_a_generator_may_call_start_response_when_it_is_first_asked() -> None:
    def app(_: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("201 Created", [("X-A", "1")])
        yield b"a"

    assert told(ask(app)) == (201, [(b"x-a", b"1")], b"a")


@pytest.mark.parametrize(
    ("chunks", "length", "body"),
    [
        ([b"abc"], "3", b"abc"),
        ([b"abc", b"def"], "4", b"abcd"),  # a byte more would begin the next answer on this connection
        ([b"abcdef"], "0", b""),
        ([b"ab", b"", b"c"], "3", b"abc"),
        ([b"ab"], "5", b"ab"),  # the server knows, and cuts
        ([], "5", b""),
    ],
)
@pytest.mark.parametrize("kind", [list, tuple, iter])
def test_no_byte_goes_out_beyond_the_content_length(
    chunks: list[bytes], length: str, body: bytes, kind: Callable[[list[bytes]], Iterable[bytes]]
) -> None:
    def app(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", length)])
        return kind(chunks)

    assert told(ask(app)) == (200, [(b"content-length", length.encode())], body)


def test_a_head_request_keeps_the_content_length_of_the_page() -> None:
    app = answer(headers=[("Content-Length", "7")])
    assert told(ask(app, scope=http_scope(method="HEAD"))) == (200, [(b"content-length", b"7")], b"")


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_an_answer_without_a_body_is_a_start_and_an_empty_end(status: str) -> None:
    messages = ask(answer(status=status))
    assert told(messages) == (int(status[:3]), [], b"")
    assert len(messages) == 2


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_an_app_that_exits_ends_its_request_and_not_the_server(error: BaseException) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/exit":
            raise error
        start_response("200 OK", [])
        return [b"still here"]

    bridge = WSGIBridge(app, threads=1)
    with pytest.raises(RuntimeError, match=f"the app raised {type(error).__name__}"):
        run(exchange(bridge, http_scope("/exit")))
    assert told(run(exchange(bridge, http_scope())))[2] == b"still here"


def test_an_app_that_raises_before_it_answers_raises_in_the_call() -> None:
    def app(*_: Any) -> Iterable[bytes]:
        raise Boom

    with pytest.raises(Boom):
        ask(app)


@pytest.mark.parametrize("status", ["", "abc", "2xx OK"])
def test_a_status_that_is_none_is_an_error_in_the_app(status: str) -> None:
    with pytest.raises(ValueError, match="invalid literal for int"):
        ask(answer(status=status))


# ---------------------------------------------------------------- the request


@given(
    data=st.binary(max_size=400).map(lambda data: data.replace(b"\x01", b"\n")),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.integers(0, 50)),
            st.tuples(st.just("readline")),
            st.tuples(st.just("readline"), st.integers(0, 20)),
            st.tuples(st.just("readlines"), st.integers(1, 60)),
            st.tuples(st.just("__next__")),
        ),
        max_size=8,
    ),
)
@settings(max_examples=150, deadline=None)
def test_the_input_reads_as_a_file_does_however_it_is_cut_into_pieces(
    data: bytes, cuts: list[int], steps: list[tuple[Any, ...]]
) -> None:
    def read(file: Any) -> list[Any]:
        got: list[Any] = []
        for name, *arguments in steps:
            try:
                got.append(getattr(file, name)(*arguments))
            except StopIteration:
                got.append("end")
        return [*got, file.read(), file.read(), file.read(5), file.readline()]

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        results.append(read(environ["wsgi.input"]))
        start_response("204 No Content", [])
        return []

    results: list[Any] = []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(edges)]
    ask(app, *pieces)
    assert results == [read(io.BytesIO(data))]


def test_the_app_has_the_first_piece_before_the_client_sends_the_second() -> None:
    async def work() -> None:
        got: asyncio.Queue[bytes] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            for size in (5, 6):
                loop.call_soon_threadsafe(got.put_nowait, environ["wsgi.input"].read(size))
            start_response("204 No Content", [])
            return []

        async with connected(WSGIBridge(app), http_scope(method="POST")) as client:
            client.body(b"first", more=True)
            assert await asyncio.wait_for(got.get(), HUNG) == b"first"
            client.body(b"second")
            assert await asyncio.wait_for(got.get(), HUNG) == b"second"
            await client.end()

    run(work())


def test_an_app_that_reads_no_body_leaves_the_rest_of_it_with_the_server() -> None:
    async def work() -> None:
        async with connected(
            WSGIBridge(answer(b"no", status="413 Too Large")), http_scope(method="PUT")
        ) as client:
            for _ in range(5):
                client.body(CHUNK, more=True)
            assert told(await client.messages()) == (413, [], b"no")
            assert client.asked == 1

    run(work())


def test_an_app_that_reads_half_a_body_can_answer() -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [environ["wsgi.input"].read(7)]

    assert told(ask(app, CHUNK, CHUNK, CHUNK))[2] == b"chunkch"


def test_a_client_that_waits_for_100_continue_is_not_asked_until_the_app_reads() -> None:
    async def work() -> None:
        go = Event()

        def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            assert go.wait(HUNG)
            body = environ["wsgi.input"].read() if environ["PATH_INFO"] == "/read" else b"refused"
            start_response("200 OK", [])
            return [body]

        bridge = WSGIBridge(app)
        headers = [(b"expect", b"100-Continue"), (b"content-length", b"5")]
        async with connected(bridge, http_scope("/read", method="PUT", headers=headers)) as client:
            client.body(CHUNK)
            for _ in range(20):
                await asyncio.sleep(0)
            assert client.asked == 0  # the server sends "100 Continue" when it is asked
            go.set()
            assert body_of(await client.messages()) == CHUNK
        async with connected(bridge, http_scope("/refuse", method="PUT", headers=headers)) as client:
            assert body_of(await client.messages()) == b"refused"
            assert client.asked == 0

    run(work())


def test_a_client_that_sends_slowly_holds_no_thread() -> None:
    async def work() -> None:
        bridge = WSGIBridge(reader, threads=1)
        scope = http_scope(method="POST", headers=[(b"content-length", b"5")])
        async with connected(bridge, scope) as slow, connected(bridge, scope) as quick:
            quick.body(b"quick")
            assert body_of(await quick.messages()) == b"quick"
            slow.body(b"slow!")
            assert body_of(await slow.messages()) == b"slow!"

    run(work())


# ---------------------------------------------------------------- clients that leave


def test_a_client_that_left_before_its_body_came_never_reaches_the_app() -> None:
    async def work() -> list[Message]:
        async with connected(WSGIBridge(body), http_scope()) as client:
            client.put("http.disconnect")
            return await client.messages()

    body = Body(CHUNK)
    assert run(work()) == []
    assert body.made == body.closed == 0


def test_a_client_gone_in_the_middle_of_its_upload_raises_in_read_and_frees_the_thread() -> None:
    caught: list[BaseException] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            caught.append(error)
            raise
        start_response("200 OK", [])
        return []

    async def work() -> None:
        bridge = WSGIBridge(app, threads=1)
        async with connected(bridge, http_scope(method="POST")) as client:
            client.body(b"half", more=True)
            client.put("http.disconnect")
            with pytest.raises(ConnectionResetError, match="left before its request was complete"):
                await client.end()
            assert client.silent
        assert told(await exchange(bridge, http_scope()))[0] == 200

    run(work())
    assert len(caught) == 1


@pytest.mark.parametrize("by", ["message", "error"])
def test_a_client_gone_in_the_middle_of_an_endless_answer_closes_it_and_frees_the_thread(by: str) -> None:
    async def work() -> None:
        body = Body(CHUNK, endless=True)
        bridge = WSGIBridge(
            lambda *request: body(*request) if request[0]["PATH_INFO"] == "/" else [], threads=1
        )
        async with connected(bridge, http_scope()) as client:
            client.body()
            for _ in range(3):
                await client.get()
            assert body.closed == 0
            if by == "message":
                client.put("http.disconnect")
            client.broken = by == "error"
            await client.end()
            assert body.closed == 1
        with pytest.raises(RuntimeError, match="never called start_response"):
            await exchange(bridge, http_scope("/other"))  # the one thread is free again

    run(work())


def test_a_client_gone_in_the_middle_of_write_raises_in_the_app() -> None:
    caught: list[BaseException] = []

    def app(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", [])
        try:
            while True:
                write(CHUNK)
        except OSError as error:
            caught.append(error)
        return []

    async def work() -> None:
        async with connected(WSGIBridge(app), http_scope()) as client:
            client.body()
            for _ in range(3):
                await client.get()
            client.put("http.disconnect")
            await client.end()

    run(work())
    (error,) = caught
    assert "left before the answer was complete" in str(error)


def test_a_cancelled_call_closes_the_body_and_frees_the_thread() -> None:
    async def work() -> None:
        body = Body(CHUNK, endless=True)
        bridge = WSGIBridge(body, threads=1)
        async with connected(bridge, http_scope()) as client:
            client.body()
            await client.get()
            client.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await client.task
        assert await asyncio.to_thread(body.closed_event.wait, HUNG)
        assert body.closed == 1

    run(work())


def test_a_cancelled_call_ends_a_read_that_waits_for_the_client() -> None:
    async def work() -> None:
        reading, ended = Event(), Event()

        def app(environ: Environ, _: StartResponse) -> Iterable[bytes]:
            reading.set()
            try:
                environ["wsgi.input"].read()
            finally:
                ended.set()
            return []

        async with connected(WSGIBridge(app), http_scope(method="POST")) as client:
            client.body(b"half", more=True)
            assert await asyncio.to_thread(reading.wait, HUNG)
            client.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await client.task
        assert await asyncio.to_thread(ended.wait, HUNG)

    run(work())


def test_an_error_of_the_server_in_send_ends_the_call_and_closes_the_body() -> None:
    async def work() -> None:
        body = Body(CHUNK, endless=True)

        async def receive() -> Message:
            return {"type": "http.request", "body": b""} if body.made == 0 else await asyncio.Future()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                raise RuntimeError("Response content longer than Content-Length")

        with pytest.raises(RuntimeError, match="longer than Content-Length"):
            await asyncio.wait_for(WSGIBridge(body)(http_scope(), receive, send), HUNG)
        assert await asyncio.to_thread(body.closed_event.wait, HUNG)

    run(work())


# ---------------------------------------------------------------- threads and context


def test_forty_slow_requests_run_at_once() -> None:
    together = Barrier(40)

    def app(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
        together.wait(HUNG)  # passes only when all forty are inside
        start_response("200 OK", [])
        return [threading.current_thread().name.encode()]

    async def work() -> set[bytes]:
        bridge = WSGIBridge(app)
        return {
            body_of(each)
            for each in await asyncio.gather(*[exchange(bridge, http_scope()) for _ in range(40)])
        }

    assert len(run(work())) == 40


def test_requests_beyond_the_threads_wait_in_line_and_are_all_answered() -> None:
    inside, most = 0, 0
    lock = threading.Lock()

    def app(_: Environ, start_response: StartResponse) -> Iterator[bytes]:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        start_response("200 OK", [])
        yield b"a"
        yield b"b"
        with lock:
            inside -= 1

    async def work() -> list[bytes]:
        bridge = WSGIBridge(app, threads=3)
        return [
            body_of(each)
            for each in await asyncio.gather(*[exchange(bridge, http_scope()) for _ in range(60)])
        ]

    assert run(work()) == [b"ab"] * 60
    assert 1 <= most <= 3


def test_the_whole_call_is_on_one_thread_and_the_loop_stays_free() -> None:
    names: list[str] = []

    class Here(Body):
        def __iter__(self) -> Iterator[bytes]:
            names.append(threading.current_thread().name)
            yield CHUNK
            names.append(threading.current_thread().name)

        def close(self) -> None:
            names.append(threading.current_thread().name)

    ask(Here())
    assert len(names) == 3
    assert len(set(names)) == 1
    assert names[0] != threading.main_thread().name


def test_context_variables_reach_the_app_and_do_not_leak_out() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    def app(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        before = variable.get()
        variable.set("inside")
        return [before.encode()]

    async def work() -> None:
        variable.set("outside")
        bridge = WSGIBridge(app, threads=1)
        for _ in range(2):
            assert body_of(await exchange(bridge, http_scope())) == b"outside"
        assert variable.get() == "outside"

    run(work())


def test_fewer_than_one_thread_is_refused() -> None:
    with pytest.raises(ValueError, match="need limit >= 1, got limit=0"):
        WSGIBridge(answer(), threads=0)


# ---------------------------------------------------------------- what is not http


def test_a_websocket_handshake_is_refused() -> None:
    async def work() -> list[Message]:
        async with connected(WSGIBridge(answer()), websocket_scope()) as client:
            client.put("websocket.connect")
            return await client.messages()

    assert run(work()) == [{"type": "websocket.close", "code": 1000}]


def test_a_lifespan_is_accepted_for_an_app_that_has_none() -> None:
    async def work() -> list[Message]:
        async with connected(
            WSGIBridge(answer()), {"type": "lifespan", "asgi": {"version": "3.0"}}
        ) as client:
            client.put("lifespan.startup")
            assert await client.get() == {"type": "lifespan.startup.complete"}
            assert not client.task.done()
            client.put("lifespan.shutdown")
            return await client.messages()

    assert run(work()) == [{"type": "lifespan.shutdown.complete"}]
