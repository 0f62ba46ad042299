"""Who the client is, and the route cookie, under each real server and what it does to headers first."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.e2e.servers import ASGI, WSGI, answers, serving, until
from tests.e2e.serving import started

CLIENT = "203.0.113.9"
NAMED = {
    "x-forwarded-for": f"6.6.6.6, {CLIENT}",
    "x-forwarded-proto": "https",
    "x-forwarded-host": "shop.example",
}
MORE = {server: ["--no-proxy-headers"] for server in ("uvicorn", "uvicorn-wsgi")}
ALIASING = ("granian-wsgi", "hypercorn-wsgi", "uvicorn-wsgi")
"""They hand `X_Forwarded_For` on as the real header, and no WSGI app can tell."""


@pytest.mark.parametrize("server", [*ASGI, "gunicorn-sync", "waitress", *ALIASING])
def test_the_client_is_known_and_bound_under_every_server(server: str) -> None:
    app = "flask_app" if server in WSGI else "starlette_app"
    with serving(server, f"tests.e2e.forwarded_sites:{app}", *MORE.get(server, [])) as (_, client):
        first = client.get("/who", headers=NAMED)
        assert first.json() == [CLIENT, "https", "shop.example"]
        assert first.headers["set-cookie"].startswith("lb=web1.")
        second = client.get("/who", headers=NAMED)
        assert "cookie" in second.request.headers
        assert "set-cookie" not in second.headers
        split = client.get("/who", headers=[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", CLIENT)])
        assert split.json()[0] == CLIENT
        assert "set-cookie" not in client.get("/health").headers
        if server not in ALIASING:
            alias = client.get("/who", headers={"x_forwarded_for": "6.6.6.6"})
            assert alias.json()[0] == "127.0.0.1"


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])  # granian sends no header of a websocket's app
def test_a_websocket_knows_its_client_and_binds_it_with_the_handshake(server: str) -> None:
    with serving(server, "tests.e2e.forwarded_sites:starlette_app", *MORE.get(server, [])) as (_, client):
        url = f"ws://{client.base_url.netloc.decode()}/ws"
        with connect(url, additional_headers=NAMED) as first:
            assert json.loads(first.recv()) == [CLIENT, "wss"]
            assert first.response is not None
            cookie = first.response.headers["set-cookie"]
        assert cookie.startswith("lb=web1.")
        with connect(url, additional_headers={"cookie": cookie.partition(";")[0]}) as second:
            assert second.response is not None
            assert "set-cookie" not in second.response.headers


def test_a_server_that_does_the_work_first_is_named_in_the_log() -> None:
    with serving("uvicorn", "tests.e2e.forwarded_sites:starlette_app") as (process, client):
        client.get("/who", headers=NAMED)
        process.wait_for("the server has already replaced the peer's address.*--no-proxy-headers")


@pytest.mark.parametrize(("server", "option"), [("uvicorn", "--uds={path}"), ("gunicorn", "-bunix:{path}")])
def test_a_proxy_on_a_unix_socket_is_one_of_ours_where_that_is_said(
    server: str, option: str, tmp_path: Path
) -> None:
    path = tmp_path / "web.sock"
    app = "starlette_app" if server == "uvicorn" else "flask_app"
    words = [server, f"tests.e2e.forwarded_sites:{app}", option.format(path=path), *MORE.get(server, [])]
    with (
        started([sys.executable, "-m", *words]) as process,
        httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://app") as client,
    ):
        until(lambda: path.exists() and answers(client), of=process)
        assert client.get("/who", headers=NAMED).json() == [CLIENT, "https", "shop.example"]
