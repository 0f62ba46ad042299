"""The same requests to an app alone and through `lbkit serve`: the client must not be able to tell.

httpbin alone runs under gunicorn. Of the usual WSGI servers it is the closest peer: it hands the body on
as it comes and says how it was framed, as we do; waitress collects the body first and names its length.
Datasette alone runs under uvicorn, the server that `lbkit serve` uses as well.

What is not compared, and why:

=====================================  ==================================================================
left out                               because
=====================================  ==================================================================
`date`, `server`                       the clock, and the name of the server
`connection`, `transfer-encoding`      they belong to one connection; the bodies are compared in full
`x-lbkit-replica`                      only the balancer can add it
case and order of header names         HTTP gives them no meaning; the order of repeated ones is compared
the reason after the status            it has no meaning, and ASGI does not carry it
`X-Forwarded-*` in httpbin's echo      the client sends -Host, which the balancer adds, in both cases; httpbin
                                       leaves -For and -Proto out by itself
`Queries took ... ms`, `query_ms`      Datasette measures them anew each time
`ds_csrftoken`                         Datasette draws it anew each time
two lines `cookie` (not sent)          gunicorn joins them with a comma, which no cookie reader takes apart;
                                       the bridge uses `; `, as RFC 9113 says
gzip's own bytes                       they hold the time of day; what they unpack to is compared
=====================================  ==================================================================
"""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import httpx
import pytest

from tests.e2e.serving import served, started

HOST = (("host", "shop.test:8000"), ("x-forwarded-host", "shop.test:8000"))
"""One Host for both, because their ports differ and apps repeat it."""

NOT_COMPARED = {"date", "server", "connection", "transfer-encoding", "x-lbkit-replica"}

MEASURED_OR_DRAWN = [
    rb"Queries took [\d.]+ms",
    rb'"query_ms": [\d.e-]+',
    rb'(?<=name="csrftoken" value=")[^"]+',
    rb"(?<=ds_csrftoken=)[^;]+",
]

Headers = list[tuple[str, str]]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | tuple[bytes, ...] = b""
    """Several pieces are sent chunked."""

    def __str__(self) -> str:
        return f"{self.method} {self.path}"[:60]


def typed(method: str, path: str, content_type: str, body: bytes) -> Request:
    return Request(method, path, (("content-type", content_type),), body)


FORM = "application/x-www-form-urlencoded"
FILES = (
    b'--edge\r\nContent-Disposition: form-data; name="note"\r\n\r\nhi\r\n'
    b'--edge\r\nContent-Disposition: form-data; name="file"; filename="t\xc3\xa9.txt"\r\n'
    b"Content-Type: text/plain\r\n\r\none\r\ntwo\r\n--edge--\r\n"
)
FIFTY = tuple((f"x-header-{number:02}", f"value {number}") for number in range(50))

HTTPBIN = [
    # Methods
    Request("GET", "/get"),
    Request("HEAD", "/get"),
    Request("OPTIONS", "/get"),
    Request("HEAD", "/bytes/100?seed=1"),
    Request("POST", "/post"),
    Request("PUT", "/put"),
    Request("PATCH", "/patch"),
    Request("DELETE", "/delete"),
    Request("TRACE", "/anything"),
    Request("POST", "/get"),
    Request("PROPFIND", "/anything"),
    # Bodies
    typed("POST", "/post", FORM, b"a=1&a=2&b=%C3%A9+x"),
    typed("POST", "/post", "multipart/form-data; boundary=edge", FILES),
    typed("POST", "/post", "application/json", b'{"name": "t\xc3\xa9", "n": [1, 2.5, null]}'),
    typed("POST", "/post", "application/json", b"{not json"),
    typed("POST", "/post", "application/octet-stream", bytes(range(256)) * 40),
    typed("PUT", "/put", "text/plain; charset=utf-8", "größe".encode()),
    typed("PATCH", "/patch", "application/json", b"[]"),
    typed("DELETE", "/delete", FORM, b"id=7"),
    typed("POST", "/anything/deep/er", FORM, b"x=" + b"y" * 200_000),
    Request("GET", "/anything", (("content-length", "5"),), b"hello"),
    # Encodings
    Request("GET", "/gzip", (("accept-encoding", "gzip"),)),
    Request("GET", "/deflate", (("accept-encoding", "deflate"),)),
    Request("GET", "/encoding/utf8"),
    Request("GET", "/html"),
    Request("GET", "/json"),
    Request("GET", "/xml"),
    Request("GET", "/image/png"),
    Request("GET", "/robots.txt"),
    # Streams
    Request("GET", "/stream/20"),
    Request("HEAD", "/stream/20"),
    Request("GET", "/bytes/100000?seed=1"),
    Request("GET", "/stream-bytes/50000?seed=2&chunk_size=777"),
    Request("GET", "/drip?numbytes=5&duration=0.1&delay=0&code=203"),
    Request("GET", "/delay/1"),
    # Redirects
    Request("GET", "/redirect/2"),
    Request("GET", "/relative-redirect/1"),
    Request("GET", "/absolute-redirect/1"),
    Request("GET", "/redirect-to?url=http%3A%2F%2Fexample.test%2Fa%3Fb%3Dc&status_code=308"),
    # Cookies
    Request("GET", "/cookies", (("cookie", "a=1; b=two"),)),
    Request("GET", "/cookies/set?one=1&two=2"),
    Request("GET", "/cookies/delete?one", (("cookie", "one=1"),)),
    # Ranges and conditions
    Request("GET", "/range/1024", (("range", "bytes=100-199"),)),
    Request("GET", "/range/1024", (("range", "bytes=1000-"),)),
    Request("GET", "/range/1024", (("range", "bytes=5000-6000"),)),
    Request("GET", "/range/1024?chunk_size=100"),
    Request("GET", "/etag/abc", (("if-none-match", '"abc"'),)),
    Request("GET", "/etag/abc", (("if-match", '"other"'),)),
    Request("GET", "/cache", (("if-modified-since", "Wed, 21 Oct 2015 07:28:00 GMT"),)),
    # Errors
    *(Request("GET", f"/status/{code}") for code in (204, 304, 400, 401, 402, 404, 405, 406, 418, 429)),
    *(Request("GET", f"/status/{code}") for code in (500, 501, 502, 503, 504, 599)),
    Request("GET", "/basic-auth/user/secret"),
    Request("GET", "/basic-auth/user/secret", (("authorization", "Basic dXNlcjpzZWNyZXQ="),)),
    Request("GET", "/no/such/page"),
    # Paths and queries
    Request("GET", "/anything/größe/茶"),
    Request("GET", "/anything/%E8%8C%B6?q=%E8%8C%B6&q=b+c"),
    Request("GET", "/anything/a%2Fb%20c%3Fd"),
    Request("GET", "/anything/%ff%fe"),
    Request("GET", "/anything//double///slash/"),
    Request("GET", "/anything/../up/./here"),
    Request("GET", "/anything;semi=colon,comma'quote(x)"),
    Request("GET", "/anything?"),
    Request("GET", "/anything?=&&a=&b"),
    Request("GET", "/anything?x=%00%0a%7f"),
    # Headers
    Request("GET", "/headers", FIFTY),
    Request("GET", "/headers", (("x-twice", "one"), ("x-other", "o"), ("x-twice", "two"))),
    Request("GET", "/headers", (("x-empty", ""), ("x-spaces", "a  b"), ("x-latin", "caf\xe9"))),
    Request("GET", "/headers", (("x_under_score", "hidden"), ("x-long", "l" * 6000))),
    Request("GET", "/user-agent", (("user-agent", ""),)),
    Request("GET", "/response-headers?X-A=1&X-B=2&X-A=3"),
    Request("POST", "/post", (("expect", "100-continue"), ("content-type", FORM)), b"a=1"),
]

DATASETTE = [
    Request("GET", "/"),
    Request("HEAD", "/"),
    Request("GET", "/shop"),
    Request("GET", "/shop/goods"),
    Request("GET", "/shop/goods.json"),
    Request("GET", "/shop/goods.json?_shape=array&_sort_desc=price"),
    Request("GET", "/shop/goods.json?name__contains=%E8%8C%B6"),
    Request("GET", "/shop/goods.csv"),
    Request("GET", "/shop/goods.csv?_stream=on&_header=off"),
    Request("GET", "/shop/goods/1.json"),
    Request("GET", "/shop/goods/99"),
    Request("GET", "/shop.json?sql=select+sum(price)+as+total+from+goods"),
    Request("GET", "/shop.json?sql=select+nonsense"),
    Request("GET", "/shop.json?sql=drop+table+goods"),
    Request("GET", "/shop.db"),
    Request("GET", "/shop/t~C3~A9"),
    Request("GET", "/größe"),
    Request("GET", "/shop/goods/"),
    Request("GET", "/-/versions.json"),
    Request("GET", "/-/static/app.css"),
    Request("HEAD", "/-/static/app.css"),
    Request("GET", "/-/static/app.css", (("range", "bytes=0-9"),)),
    Request("GET", "/-/static/../../secret"),
    Request("GET", "/-/messages", (("cookie", "ds_messages=broken"),)),
    Request("POST", "/-/messages", (("content-type", FORM),), b"message=hi"),
    Request("POST", "/shop/goods", (), (b"chunk", b"ed")),
    Request("OPTIONS", "/shop.json"),
    Request("PUT", "/shop"),
    Request("DELETE", "/shop/goods/1"),
]

CHUNKED = [
    Request("POST", "/post", (("content-type", FORM),), (b"a=1&", b"b=2&", b"c=" + b"3" * 100_000)),
    Request("PUT", "/put", (), (b"x" * 70_000,) * 3),
    Request("POST", "/anything", (("content-type", "application/json"),), (b'{"a":', b" 1}")),
]

HTTPBIN_ON_GUNICORN = """
    # httpbin answers a chunked request with 501 unless its server calls itself gunicorn.
    import httpbin

    def app(environ, start_response):
        return httpbin.app({**environ, "SERVER_SOFTWARE": "gunicorn/0"}, start_response)
"""

TABLES = """
    from datasette.app import Datasette

    def create_app():
        return Datasette(["shop.db"], secret="the same in all processes").app()
"""

GUNICORN = ("gunicorn", "--bind", "127.0.0.1:0", "--worker-class", "gthread", "--threads", "4")
UVICORN = ("uvicorn", "--port", "0", "--factory", "--no-access-log", "--no-proxy-headers")

Pair = tuple[str, str]
"""The URL of the app alone, and of `lbkit serve`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("apps")
    (folder / "named_gunicorn.py").write_text(dedent(HTTPBIN_ON_GUNICORN))
    (folder / "tables.py").write_text(dedent(TABLES))
    with closing(sqlite3.connect(folder / "shop.db")) as database:
        database.execute("create table goods (id integer primary key, name text, price real)")
        rows = [(number, f"茶 <{number}>", number / 4) for number in range(1, 251)]
        database.executemany("insert into goods values (?, ?, ?)", rows)
        database.commit()
    return folder


def pair(alone: tuple[str, ...], target: str, folder: Path) -> Iterator[Pair]:
    with started([sys.executable, "-m", *alone, target], cwd=folder) as process:
        url = process.wait_for(r"http://[\d.:]+").group()
        with served(target, cwd=folder) as (_, balanced):
            yield url, balanced


@pytest.fixture(scope="module")
def httpbin(folder: Path) -> Iterator[Pair]:
    yield from pair(GUNICORN, "httpbin:app", folder)


@pytest.fixture(scope="module")
def chunked_httpbin(folder: Path) -> Iterator[Pair]:
    yield from pair(GUNICORN, "named_gunicorn:app", folder)


@pytest.fixture(scope="module")
def datasette(folder: Path) -> Iterator[Pair]:
    yield from pair(UVICORN, "tables:create_app", folder)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Headers
    body: bytes


def ask(url: str, request: Request) -> Answer:
    body = iter(request.body) if isinstance(request.body, tuple) else request.body
    # A fresh connection each time: what one answer leaves behind must not touch the next.
    with httpx.Client(timeout=30) as client:
        sent = client.build_request(
            request.method,
            url + request.path,
            headers=[(name.encode(), value.encode("latin-1")) for name, value in HOST + request.headers],
            content=body or None,
        )
        answer = client.send(sent)
    headers = [
        (name.lower(), steady(value.encode()).decode()) for name, value in answer.headers.multi_items()
    ]
    headers = sorted((each for each in headers if each[0] not in NOT_COMPARED), key=lambda each: each[0])
    return Answer(answer.status_code, headers, steady(answer.content))


def steady(body: bytes) -> bytes:
    """Without what is measured or drawn anew for each answer."""
    for pattern in MEASURED_OR_DRAWN:
        body = re.sub(pattern, b"", body)
    return body


def assert_same(urls: Pair, request: Request) -> None:
    alone, balanced = (ask(url, request) for url in urls)
    assert balanced == alone


@pytest.mark.parametrize("request_", HTTPBIN, ids=str)
def test_httpbin_answers_through_the_balancer_as_it_does_alone(httpbin: Pair, request_: Request) -> None:
    assert_same(httpbin, request_)


@pytest.mark.parametrize("request_", CHUNKED, ids=str)
def test_a_chunked_upload_arrives_through_the_balancer_as_it_does_alone(
    chunked_httpbin: Pair, request_: Request
) -> None:
    assert_same(chunked_httpbin, request_)


@pytest.mark.parametrize("request_", DATASETTE, ids=str)
def test_datasette_answers_through_the_balancer_as_it_does_alone(datasette: Pair, request_: Request) -> None:
    assert_same(datasette, request_)
