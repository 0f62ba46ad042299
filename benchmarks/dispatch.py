"""What one request costs on its way through the balancer, next to what else a request costs.

    python -m benchmarks.dispatch [--rounds N]

Trivial apps, so that nothing hides the price: two lines of ASGI, two lines of WSGI. Then the same for a
Starlette route and a Flask view, in-process test clients, and the WSGI bridge next to a2wsgi.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
from itertools import repeat

import a2wsgi
import flask
import httpx
import werkzeug.test
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from benchmarks._measure import Batch, Comparison, compare
from benchmarks._passage import BODY, asgi_app, environs, scopes, wsgi_app
from benchmarks._passage import asgi_calls as calls_of_asgi
from benchmarks._passage import wsgi_calls as calls_of_wsgi
from lbkit import asgi, wsgi
from lbkit.asgi.bridge import WSGIBridge
from lbkit.balancer import Dispatch
from lbkit.types import ASGIApp, WSGIApp

PROFILES = ("nginx", "haproxy@2.6", "envoy")
"""Under these the same request goes through a model: attempts, retries, what is kept of it."""

ASGI_GOAL = 6.0
WSGI_GOAL = 3.0
"""Microseconds that the balancer may add to a direct call."""


async def starlette_page(_: Request) -> PlainTextResponse:
    return PlainTextResponse(BODY)


starlette_app = Starlette(routes=[Route("/", starlette_page)])
flask_app = flask.Flask(__name__)


@flask_app.get("/")
def flask_page() -> bytes:
    return BODY


def asgi_calls(loop: asyncio.AbstractEventLoop, app: ASGIApp) -> Batch:
    return calls_of_asgi(loop, app, scopes(repeat({})))


def wsgi_calls(app: WSGIApp) -> Batch:
    return calls_of_wsgi(app, environs(repeat({})))


def asgi_client_calls(loop: asyncio.AbstractEventLoop, app: ASGIApp) -> Batch:
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example")

    async def calls(count: int) -> None:
        for _ in range(count):
            await client.get("/")

    return lambda count: loop.run_until_complete(calls(count))


def wsgi_client_calls(client: werkzeug.test.Client) -> Batch:
    def calls(count: int) -> None:
        for _ in range(count):
            client.get("/").get_data()

    return calls


def ignore(_: Dispatch) -> None:
    pass


def asgi_comparison(loop: asyncio.AbstractEventLoop, rounds: int) -> Comparison:
    balancer = asgi.Balancer([asgi_app] * 3)
    return compare(
        {
            "direct": asgi_calls(loop, asgi_app),
            "through the balancer": asgi_calls(loop, balancer),
            "... without a replica header": asgi_calls(
                loop, asgi.Balancer([asgi_app] * 3, replica_header=None)
            ),
            "... with on_dispatch": asgi_calls(loop, asgi.Balancer([asgi_app] * 3, on_dispatch=ignore)),
            **{
                f"... as {profile}": asgi_calls(loop, asgi.Balancer([asgi_app] * 3, profile=profile))
                for profile in PROFILES
            },
            "httpx.ASGITransport": asgi_client_calls(loop, asgi_app),
            "httpx.ASGITransport, balancer": asgi_client_calls(loop, balancer),
        },
        rounds=rounds,
    )


def wsgi_comparison(rounds: int) -> Comparison:
    balancer = wsgi.Balancer([wsgi_app] * 3)
    return compare(
        {
            "direct": wsgi_calls(wsgi_app),
            "through the balancer": wsgi_calls(balancer),
            "... without a replica header": wsgi_calls(wsgi.Balancer([wsgi_app] * 3, replica_header=None)),
            "... with on_dispatch": wsgi_calls(wsgi.Balancer([wsgi_app] * 3, on_dispatch=ignore)),
            **{
                f"... as {profile}": wsgi_calls(wsgi.Balancer([wsgi_app] * 3, profile=profile))
                for profile in PROFILES
            },
            "werkzeug's test client": wsgi_client_calls(werkzeug.test.Client(wsgi_app)),
            "werkzeug's test client, balancer": wsgi_client_calls(werkzeug.test.Client(balancer)),
        },
        rounds=rounds,
    )


def starlette_comparison(loop: asyncio.AbstractEventLoop, rounds: int) -> Comparison:
    balancer = asgi.Balancer([starlette_app] * 3)
    return compare(
        {"direct": asgi_calls(loop, starlette_app), "through the balancer": asgi_calls(loop, balancer)},
        rounds=rounds,
    )


def flask_comparison(rounds: int) -> Comparison:
    return compare(
        {
            "direct": wsgi_calls(flask_app),
            "through the balancer": wsgi_calls(wsgi.Balancer([flask_app] * 3)),
            "Flask's test client": wsgi_client_calls(flask_app.test_client()),
        },
        rounds=rounds,
    )


def bridge_comparison(loop: asyncio.AbstractEventLoop, app: WSGIApp, rounds: int) -> Comparison:
    theirs = a2wsgi.WSGIMiddleware(app)
    try:
        return compare(
            {
                "direct, no thread": wsgi_calls(app),
                "lbkit's bridge": asgi_calls(loop, WSGIBridge(app)),
                "a2wsgi": asgi_calls(loop, theirs),  # type: ignore[arg-type]
            },
            rounds=rounds,
        )
    finally:
        theirs.executor.shutdown()


def verdict(kind: str, comparison: Comparison, goal: float) -> str:
    added = comparison.added("through the balancer")
    word = "met" if added <= goal else "missed"
    return f"    {kind}: the balancer adds {added:5.2f} us; the goal is <= {goal:g} us: {word}"


def report(rounds: int) -> None:
    loop = asyncio.new_event_loop()
    print(
        f"Python {platform.python_version()}; medians of {rounds} rounds: us a call, and next to the direct one"  # noqa: E501
    )
    asgi_costs, wsgi_costs = asgi_comparison(loop, rounds), wsgi_comparison(rounds)
    print(f"\na trivial ASGI app\n{asgi_costs.table()}")
    print(f"\na trivial WSGI app\n{wsgi_costs.table()}")
    print(f"\na Starlette route\n{starlette_comparison(loop, rounds).table()}")
    print(f"\na Flask view\n{flask_comparison(rounds).table()}")
    for name, app in (("a trivial WSGI app", wsgi_app), ("a Flask view", flask_app.wsgi_app)):
        bridge = bridge_comparison(loop, app, rounds)
        print(f"\n{name} under an ASGI server\n{bridge.table()}")
        print(f"    a2wsgi costs {bridge.ratio('a2wsgi', to=bridge.ways[1]):.2f} x the bridge")
    print(f"\ngoals\n{verdict('ASGI', asgi_costs, ASGI_GOAL)}\n{verdict('WSGI', wsgi_costs, WSGI_GOAL)}")
    loop.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=101, help="of about 4 ms for each way (default: 101)")
    report(parser.parse_args().rounds)
