"""What the drain adds to a request, and a long rolling restart that must lose nothing.

    python -m benchmarks.drain [--rounds N]
    python -m benchmarks.drain --restarts 30 [--requests 100000] [--rate 400]

The first prints what the middleware adds to a trivial app that nobody drains. The second restarts three
replicas behind HAProxy again and again under load, on 127.0.0.1 alone: uvicorn, hypercorn behind the
launcher, gunicorn with its master. The client retries nothing, and neither does HAProxy.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import sys
import tempfile
import time
from itertools import repeat
from pathlib import Path

from benchmarks._measure import Comparison, compare
from benchmarks._passage import asgi_app, asgi_calls, environ, scope, wsgi_app, wsgi_calls
from benchmarks._restarts import KINDS, rolling
from lbkit import Departure, asgi, wsgi
from lbkit.process import Process

ASGI_GOAL = 1.0
WSGI_GOAL = 1.5
"""Microseconds that the drain may add to a request."""

WAY = "with the drain"


def nobody_drains() -> Departure:
    return Departure(process=Process(environ={"LBKIT_STOP_LIMIT": "60"}))


def asgi_comparison(rounds: int) -> Comparison:
    loop, departure = asyncio.new_event_loop(), nobody_drains()
    try:
        ways = {"the app alone": asgi_app, WAY: asgi.DrainMiddleware(asgi_app, departure)}
        calls = {way: asgi_calls(loop, app, repeat(scope())) for way, app in ways.items()}
        return compare(calls, rounds=rounds)
    finally:
        departure.stop()
        loop.close()


def wsgi_comparison(rounds: int) -> Comparison:
    departure = nobody_drains()
    try:
        ways = {"the app alone": wsgi_app, WAY: wsgi.DrainMiddleware(wsgi_app, departure)}
        return compare({way: wsgi_calls(app, repeat(environ())) for way, app in ways.items()}, rounds=rounds)
    finally:
        departure.stop()


def verdict(kind: str, comparison: Comparison, goal: float) -> str:
    added, ratio = comparison.added(WAY), comparison.ratio(WAY)
    word = "met" if added <= goal else "missed"
    return f"    {kind}: {added:+.2f} us, {ratio:.2f} x the app alone; the goal is <= {goal:g} us: {word}"


def cost(rounds: int) -> None:
    print(f"Python {platform.python_version()}; medians of {rounds} rounds: us a call, and next to the app")
    both = asgi_comparison(rounds), wsgi_comparison(rounds)
    print(f"\na trivial ASGI app\n{both[0].table()}\n\na trivial WSGI app\n{both[1].table()}\n\ngoals")
    print(f"{verdict('ASGI', both[0], ASGI_GOAL)}\n{verdict('WSGI', both[1], WSGI_GOAL)}")


def long_run(*, requests: int, restarts: int, rate: float) -> int:
    """Returns how many requests were lost."""
    print(f"{requests} requests at {rate:g}/s over {restarts} restarts of {', '.join(KINDS)}, behind HAProxy")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tally = asyncio.run(rolling(Path(folder), requests=requests, restarts=restarts, rate=rate))
    lost = tally.lost.total()
    print(
        f"    {lost} of {tally.sent} lost over {tally.restarts} restarts, in {time.monotonic() - began:.0f} s"
    )
    for why, count in tally.lost.most_common():
        print(f"    {count:6} x {why}")
    return lost


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=101, help="of about 4 ms for each way (default: 101)")
    parser.add_argument("--restarts", type=int, default=0, help="the long run, with so many restarts")
    parser.add_argument("--requests", type=int, default=100_000, help="of the long run (default: 100000)")
    parser.add_argument("--rate", type=float, default=400.0, help="requests a second (default: 400)")
    given = parser.parse_args()
    if given.restarts:
        sys.exit(1 if long_run(requests=given.requests, restarts=given.restarts, rate=given.rate) else 0)
    cost(given.rounds)
