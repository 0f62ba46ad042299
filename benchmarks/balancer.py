"""What one pick costs, per policy and number of replicas, next to uhashring where it has the same ring.

    python -m benchmarks.balancer [--picks N]

Microseconds for a whole request through a model: pick, answer, release. `-` where a profile refuses so many.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable

from lbkit.balancer import Pool, Replica, RoundRobin
from lbkit.balancer.exchange import Outcome, Request
from lbkit.balancer.profile import PROFILES, Place

SIZES = (3, 10, 1_000, 100_000)
POLICIES = (
    ("plain", "round_robin"),
    ("nginx", "round_robin"),
    ("nginx", "least_conn"),
    ("nginx", "hash $request_uri"),
    ("nginx", "hash $request_uri consistent"),
    ("nginx", "random two"),
    ("haproxy@2.6", "roundrobin"),
    ("haproxy@2.6", "leastconn"),
    ("haproxy@2.6", "uri"),
    ("haproxy@2.6", "uri; hash-type consistent"),
    ("envoy", "ROUND_ROBIN"),
    ("envoy", "LEAST_REQUEST"),
    ("envoy", "RING_HASH x-user"),
    ("envoy", "MAGLEV x-user"),
    ("caddy@2.6", "round_robin"),
    ("caddy@2.6", "uri_hash"),
    ("traefik@3", "wrr"),
    ("traefik@3", "p2c"),
)
DONE = Outcome(at=0.5, status=200)
MOST_SECONDS = 0.3


def cost(pick: Callable[[int], object], picks: int) -> float:
    """Microseconds for one call: the best of three rounds, after one call that may build a ring."""
    pick(0)
    best = float("inf")
    for _ in range(3):
        began, number = time.perf_counter(), 0
        while number < picks and time.perf_counter() - began < MOST_SECONDS:
            pick(number)
            number += 1
        best = min(best, (time.perf_counter() - began) / number)
    return best * 1e6


def through_a_model(profile: str, policy: str, size: int) -> Callable[[int], object] | None:
    if size > 10_000 and profile != "plain":
        return None
    places = [Place(name=f"web{number}", address=f"10.0.0.1:{number}") for number in range(size)]
    model = PROFILES[profile].model(places, policy=policy)

    def pick(number: int) -> None:
        flow = model.serve(Request(target=f"/{number}", headers={"x-user": str(number)}), now=0.5)
        next(flow)
        try:
            flow.send(DONE)
        except StopIteration:
            return

    return pick


def through_the_pool(size: int) -> Callable[[int], object]:
    """What the carriers call for each request."""
    pool = Pool([Replica(f"web{number}") for number in range(size)], policy=RoundRobin())

    def pick(_: int) -> None:
        if (state := pool.pick()) is not None:
            pool.release(state)

    return pick


def with_uhashring(size: int) -> Callable[[int], object] | None:
    try:
        ring = importlib.import_module("uhashring").HashRing(
            nodes=[f"10.0.0.1:{number}" for number in range(size)], hash_fn="ketama"
        )
    except ModuleNotFoundError:
        return None
    return lambda number: ring.get_node(f"/{number}")


def row(name: str, makers: list[Callable[[int], object] | None], picks: int) -> None:
    cells = [f"{cost(pick, picks):10.2f}" if pick else f"{'-':>10}" for pick in makers]
    print(f"{name:42}{''.join(cells)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--picks", type=int, default=5_000)
    picks = parser.parse_args().picks
    print(f"{'microseconds for one pick, replicas:':42}{''.join(f'{size:10,}' for size in SIZES)}")
    row("the pool of the carriers, RoundRobin", [through_the_pool(size) for size in SIZES], picks)
    for profile, policy in POLICIES:
        row(f"{profile} {policy}", [through_a_model(profile, policy, size) for size in SIZES], picks)
    row("uhashring, ketama", [with_uhashring(size) if size <= 1_000 else None for size in SIZES], picks)
    print("\nWhat the balancer adds to a request: scripts/bench dispatch")


if __name__ == "__main__":
    main()
