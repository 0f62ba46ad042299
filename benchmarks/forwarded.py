"""Who answers 15 attacks on the client's address rightly, and what that costs a request.

    python -m benchmarks.forwarded [--rounds N]

The table of tests/forwarded_attacks.py, answered by lbkit and its peers. Then what each adds to a trivial
app, for one client and for 10,000 in turn, which no cache of ours holds.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

from benchmarks._measure import Batch, Comparison, compare
from benchmarks._passage import Headers, asgi_app, asgi_calls, environs, scopes, wsgi_app, wsgi_calls
from tests.forwarded_attacks import (
    CASES,
    PEERS,
    PROXY,
    hypercorn,
    lbkit_asgi,
    lbkit_wsgi,
    proxy_fix,
    uvicorn,
)

GOAL = 5.0
"""Microseconds that TrustedProxies may add to a request."""

CLIENTS = 10_000

Wrap = Callable[[Any], Any]


def alone(app: Any) -> Any:
    return app


ASGI: dict[str, Wrap] = {
    "the app alone": alone,
    "lbkit": lbkit_asgi,
    "uvicorn, the proxies' network": uvicorn("10.0.0.0/8"),
    "uvicorn, '*'": uvicorn("*"),
    "hypercorn ProxyFix": hypercorn,
}
WSGI: dict[str, Wrap] = {"the app alone": alone, "lbkit": lbkit_wsgi, "werkzeug ProxyFix": proxy_fix(1)}


def through_the_proxy(clients: int) -> Iterator[Headers]:
    """What so many clients send, in turn, for ever."""
    for number in cycle(range(clients)):
        address = f"203.0.{number >> 8}.{number & 255}"
        yield {"x-forwarded-for": address, "x-forwarded-proto": "https"}


def scores() -> str:
    right = {name: [answers(case) for case in CASES] for name, answers in PEERS.items()}
    width, letters = max(map(len, right)), "abcdefghij"
    rows = [
        f"    {letter}  {name:{width}}  {sum(each):2} of {len(each)}"
        for letter, (name, each) in zip(letters, right.items(), strict=False)
    ]
    cases = [
        f"    {' '.join('.' if each[number] else letter for letter, each in columns)}   {case.name}"
        for columns in [list(zip(letters, right.values(), strict=False))]
        for number, case in enumerate(CASES)
    ]
    return "\n".join([*rows, "\n    wrong in", *cases])


def asgi_comparison(loop: asyncio.AbstractEventLoop, clients: int, rounds: int) -> Comparison:
    def calls(wrap: Wrap) -> Batch:
        return asgi_calls(loop, wrap(asgi_app), scopes(through_the_proxy(clients), peer=PROXY))

    return compare({name: calls(wrap) for name, wrap in ASGI.items()}, rounds=rounds)


def wsgi_comparison(clients: int, rounds: int) -> Comparison:
    def calls(wrap: Wrap) -> Batch:
        return wsgi_calls(wrap(wsgi_app), environs(through_the_proxy(clients), peer=PROXY))

    return compare({name: calls(wrap) for name, wrap in WSGI.items()}, rounds=rounds)


def verdict(kind: str, comparison: Comparison, peer: str) -> str:
    added, theirs = comparison.least_added("lbkit"), comparison.least_added(peer)
    word = "met" if added <= GOAL else "missed"
    beside = f"{added / theirs:.2f} x what {peer} adds ({theirs:.2f} us)"
    return f"    {kind}: adds {added:5.2f} us, {beside}; the goal is <= {GOAL:g} us: {word}"


def report(rounds: int) -> None:
    loop = asyncio.new_event_loop()
    print(f"15 attacks\n{scores()}\n\nPython {platform.python_version()}; medians of {rounds} rounds")
    verdicts = []
    for clients in (1, CLIENTS):
        crowd = "one client" if clients == 1 else f"{clients:,} clients in turn"
        by_asgi, by_wsgi = asgi_comparison(loop, clients, rounds), wsgi_comparison(clients, rounds)
        print(f"\nASGI, {crowd}\n{by_asgi.table()}\n\nWSGI, {crowd}\n{by_wsgi.table()}")
        verdicts.append(verdict(f"ASGI, {crowd}", by_asgi, "uvicorn, the proxies' network"))
        verdicts.append(verdict(f"WSGI, {crowd}", by_wsgi, "werkzeug ProxyFix"))
    print("\ngoals, in the quietest rounds\n" + "\n".join(verdicts))
    loop.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=101, help="of about 4 ms for each way (default: 101)")
    report(parser.parse_args().rounds)
