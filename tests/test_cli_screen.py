"""What `lbkit serve` shows."""

from __future__ import annotations

import pytest

from lbkit.balancer import Dispatch, Tried
from lbkit.balancer.exchange import Fault
from lbkit.cli.door import Door
from lbkit.cli.screen import access_line, announce
from lbkit.cli.target import Source
from lbkit.interface import Interface


def dispatch(**changes: object) -> Dispatch:
    usual: dict[str, object] = {
        "replica": "web2",
        "client": "127.0.0.1",
        "method": "GET",
        "path": "/cart",
        "status": 200,
        "complete": True,
        "seconds": 0.00314,
    }
    return Dispatch(**{**usual, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "12:00:01  web2  GET /cart  200  3.1 ms"),
        ({"seconds": 12.5}, "12:00:01  web2  GET /cart  200  12500.0 ms"),
        ({"method": "WEBSOCKET", "status": 101}, "12:00:01  web2  WEBSOCKET /cart  101  3.1 ms"),
        ({"complete": False}, "12:00:01  web2  GET /cart  200  3.1 ms  cut"),
        ({"status": None, "complete": False}, "12:00:01  web2  GET /cart  -  3.1 ms  cut"),
        (
            {"attempts": (Tried(replica="web1", fault=Fault.REFUSED), Tried(replica="web2", status=200))},
            "12:00:01  web1 refused, web2  GET /cart  200  3.1 ms",
        ),
        ({"replica": None, "status": 502}, "12:00:01  -  GET /cart  502  3.1 ms"),
        ({"path": "/größe/茶 1"}, "12:00:01  web2  GET /größe/茶 1  200  3.1 ms"),
        ({"path": "/a\n12:00:01  web1"}, "12:00:01  web2  GET /a%0A12:00:01  web1  200  3.1 ms"),
        ({"path": "/\x1b[2J\u202e"}, "12:00:01  web2  GET /%1B[2J%E2%80%AE  200  3.1 ms"),
    ],
)
def test_an_access_line_names_the_replica_and_is_one_line_whatever_the_client_sent(
    changes: dict[str, object], line: str
) -> None:
    assert access_line(dispatch(**changes), "12:00:01") == line


def announced(*, factory: bool, capsys: pytest.CaptureFixture[str], door: Door | None = None) -> str:
    source = Source("shop.web:it", factory, lambda: lambda _environ, _start_response: [])
    announce(source, Interface.WSGI, door or Door(replicas=2), "http://127.0.0.1:8000")
    return capsys.readouterr().out


def test_the_start_shows_each_replica_the_address_the_policy_and_how_to_stop(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = announced(factory=True, capsys=capsys)
    rows = [line.split() for line in shown.splitlines() if "web" in line]
    assert rows == [[name, "shop.web:it()", "WSGI", "its", "own"] for name in ("web1", "web2")]
    assert shown.splitlines()[-2].strip() == "http://127.0.0.1:8000   policy: round robin   stop: Ctrl-C"


def test_the_start_says_when_the_replicas_share_their_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert "share" in announced(factory=False, capsys=capsys)
    assert "share" not in announced(factory=True, capsys=capsys)


def test_the_start_shows_what_was_asked_of_the_balancer(capsys: pytest.CaptureFixture[str]) -> None:
    door = Door(
        replicas=2,
        profile="nginx",
        policy="hash $http_x[1]",
        weights=("api1=3",),
        check="/health",
        sticky=True,
        routes=("/api/*=api", "*=web"),
    )
    shown = announced(factory=True, capsys=capsys, door=door).splitlines()
    rows = [line.split()[:2] for line in shown if "shop.web:it" in line]
    assert rows == [["api1", "3"], ["api2", "1"], ["web1", "1"], ["web2", "1"]]
    assert [line.strip() for line in shown[-4:-1]] == [
        "route /api/*=api",
        "route *=web",
        "http://127.0.0.1:8000   profile: nginx   policy: hash $http_x[1]   check: /health   "
        "sticky: cookie route   stop: Ctrl-C",
    ]
