"""What the route cookie costs a request of a client that has it already.

    python -m benchmarks.sticky [--rounds N]

Over a trivial app alone: one client, whose signature is checked once; 10,000 clients in turn, which no cache
holds; and itsdangerous reading the same cookie, where it costs anything to compare with.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import time
from collections.abc import Callable, Iterator
from itertools import cycle

from itsdangerous import TimestampSigner

from benchmarks._measure import Batch, Comparison, compare
from benchmarks._passage import Headers, asgi_app, asgi_calls, environs, scopes, wsgi_app, wsgi_calls
from lbkit import Sticky, asgi, wsgi
from lbkit.sticky import SALT

GOAL = 15.0
"""Microseconds that the middleware may add to a request of a pinned client."""

CLIENTS = 10_000
KEY = "a key of the benchmark, 32 bytes"


def pinned(count: int) -> list[str]:
    """Cookies of so many clients that belong to this replica, each another text."""
    sticky, now = Sticky(secret_keys=[KEY]), time.time()
    return [sticky.encode("web1", now - number) for number in range(count)]


def headers(cookies: list[str]) -> Iterator[Headers]:
    for cookie in cycle(cookies):
        yield {"cookie": f"session=abc; lb={cookie}"}


def asgi_comparison(loop: asyncio.AbstractEventLoop, cookies: list[str], rounds: int) -> Comparison:
    app = asgi.StickyMiddleware(asgi_app, Sticky(secret_keys=[KEY]), replica_id="web1")
    ways = {
        "the app alone": asgi_calls(loop, asgi_app, scopes(headers(cookies))),
        "pinned": asgi_calls(loop, app, scopes(headers(cookies))),
        "itsdangerous alone": itsdangerous(cookies),
    }
    return compare(ways, rounds=rounds)


def wsgi_comparison(cookies: list[str], rounds: int) -> Comparison:
    app = wsgi.StickyMiddleware(wsgi_app, Sticky(secret_keys=[KEY]), replica_id="web1")
    ways = {
        "the app alone": wsgi_calls(wsgi_app, environs(headers(cookies))),
        "pinned": wsgi_calls(app, environs(headers(cookies))),
        "itsdangerous alone": itsdangerous(cookies),
    }
    return compare(ways, rounds=rounds)


def itsdangerous(cookies: list[str]) -> Batch:
    unsign: Callable[[str], bytes] = TimestampSigner(KEY, salt=SALT).unsign

    def calls(count: int) -> None:
        for number in range(count):
            unsign(cookies[number % len(cookies)])

    return calls


def verdict(kind: str, comparison: Comparison) -> str:
    added = comparison.least_added("pinned")
    word = "met" if added <= GOAL else "missed"
    return f"    {kind}: adds {added:5.2f} us; the goal is <= {GOAL:g} us: {word}"


def report(rounds: int) -> None:
    loop = asyncio.new_event_loop()
    print(f"Python {platform.python_version()}; medians of {rounds} rounds")
    verdicts = []
    for clients in (1, CLIENTS):
        crowd = "one client" if clients == 1 else f"{clients:,} clients in turn"
        cookies = pinned(clients)
        for kind, costs in (
            (f"ASGI, {crowd}", asgi_comparison(loop, cookies, rounds)),
            (f"WSGI, {crowd}", wsgi_comparison(cookies, rounds)),
        ):
            print(f"\n{kind}\n{costs.table()}")
            verdicts.append(verdict(kind, costs))
    print("\ngoals, in the quietest rounds\n" + "\n".join(verdicts))
    loop.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=101, help="of about 4 ms for each way (default: 101)")
    report(parser.parse_args().rounds)
