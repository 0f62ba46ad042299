"""An operator's order over HTTP: who may give it, and that everybody else learns nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask
from starlette.applications import Starlette

from lbkit import ConfigError, Departure, Health, Service
from lbkit.operator import Operator, Order
from lbkit.process import Process
from lbkit_flask import LBKit as FlaskLBKit
from lbkit_starlette import LBKit as StarletteLBKit

TOKEN = "0123456789abcdef"
RIGHT = f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("method", "path", "authorization", "peer", "order"),
    [
        ("POST", "/health/drain", RIGHT, "127.0.0.1", Order.DRAIN),
        ("POST", "/health/undrain", RIGHT, "::1", Order.UNDRAIN),
        ("GET", "/health/drain", RIGHT, "127.0.0.1", None),
        ("POST", "/health/drain", "", "127.0.0.1", None),
        ("POST", "/health/drain", RIGHT + "0", "127.0.0.1", None),
        ("POST", "/health/drain", RIGHT[:-1], "127.0.0.1", None),
        ("POST", "/health/drain", f"Basic {TOKEN}", "127.0.0.1", None),
        ("POST", "/health/drain", "Bearer \udcff", "127.0.0.1", None),
        ("POST", "/health/drain", RIGHT, "192.0.2.7", None),
        ("POST", "/health/drain", RIGHT, None, None),
        ("POST", "/health/drains", RIGHT, "127.0.0.1", None),
    ],
)
def test_only_a_post_with_the_token_from_a_known_peer_is_an_order(
    method: str, path: str, authorization: str, peer: str | None, order: Order | None
) -> None:
    operator = Operator(token=TOKEN)
    assert operator.order(method=method, path=path, authorization=authorization, peer=peer) is order


def test_a_token_that_can_be_guessed_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError, match="need a token of at least 16 characters, got 6") as error:
        Operator(token="secret")
    assert "secret" not in str(error.value)
    assert TOKEN not in repr(Operator(token=TOKEN))


def test_peers_are_a_collection_and_not_one_text() -> None:
    with pytest.raises(ConfigError, match="need a collection of addresses as peers"):
        Operator(token=TOKEN, peers="127.0.0.1")


def departure(**more: Any) -> Departure:
    return Departure(environ={}, process=Process(environ={}), **more)


def flask_client(drain: Departure) -> httpx.Client:
    app = Flask(__name__)
    FlaskLBKit(app, health=Health(Service(health_path="/up")), drain=drain)
    return httpx.Client(transport=httpx.WSGITransport(app), base_url="http://replica")


class Starlettes:
    """The same few calls, awaited."""

    def __init__(self, drain: Departure) -> None:
        self.app = Starlette()
        StarletteLBKit(self.app, health=Health(Service(health_path="/up")), drain=drain)

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(self.app), base_url="http://replica"
            ) as client:
                return await client.request(method, path, **more)

        return asyncio.run(ask())


@pytest.mark.parametrize("make", [flask_client, Starlettes])
def test_an_order_drains_and_undrains_and_anything_else_finds_nothing(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    drain = departure(operator=Operator(token=TOKEN))
    client = make(drain)
    headers = {"Authorization": RIGHT}
    assert client.request("GET", "/up").status_code == 200
    assert client.request("POST", "/up/drain").status_code == 404
    assert client.request("GET", "/up/drain", headers=headers).status_code == 404
    assert not drain.is_draining()

    assert client.request("POST", "/up/drain", headers=headers).json() == {"state": "draining"}
    assert client.request("GET", "/up").status_code == 503
    assert client.request("GET", "/up/live").status_code == 200
    assert client.request("GET", "/up/ready").json()["drain"]["reason"] == "operator"

    assert client.request("POST", "/up/undrain", headers=headers).json() == {"state": "ready"}
    assert client.request("GET", "/up").status_code == 200

    drain.drain.begin(drain.clock())
    refused = client.request("POST", "/up/undrain", headers=headers)
    assert (refused.status_code, refused.json()["state"]) == (409, "draining")
    drain.stop()


def test_without_a_token_there_is_nothing_to_find(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    drain = departure()
    answer = flask_client(drain).request("POST", "/up/drain", headers={"Authorization": RIGHT})
    assert answer.status_code == 404
    assert not drain.is_draining()
    drain.stop()
