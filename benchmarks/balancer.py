"""What a pick costs, per policy and number of replicas, next to uhashring where it has the same ring.

    python -m benchmarks.balancer [--only TEXT] [--sizes 3,10,1000,100000]

Microseconds, each the best of some short rounds, as timeit has it: `pick` is from the request to the name of
its replica, `flow` is with the answer and the release. `-` where a profile refuses so many. The last line is
a fixed piece of Python, for comparing this machine at this minute with another one.
"""

from __future__ import annotations

import argparse
import gc
import importlib
from collections.abc import Callable, Sequence
from itertools import count
from statistics import median
from time import perf_counter

from lbkit.balancer import Pool, Replica, RoundRobin
from lbkit.balancer.exchange import Flow, Model, Outcome, Request
from lbkit.balancer.profile import PROFILES, Place
from lbkit.errors import ConfigError

SIZES = (3, 10, 1_000, 100_000)
POLICIES = (
    ("plain", "round_robin"),
    ("plain", "weighted"),
    ("plain", "least_conn"),
    ("plain", "p2c"),
    ("plain", "peak_ewma"),
    ("plain", "random"),
    ("plain", "rendezvous uri"),
    ("plain", "ketama uri"),
    ("plain", "maglev uri"),
    ("plain", "bounded uri 125"),
    ("nginx", "round_robin"),
    ("nginx", "least_conn"),
    ("nginx", "least_time header"),
    ("nginx", "ip_hash"),
    ("nginx", "hash $request_uri"),
    ("nginx", "hash $request_uri consistent"),
    ("nginx", "random two"),
    ("haproxy@2.6", "roundrobin"),
    ("haproxy@2.6", "static-rr"),
    ("haproxy@2.6", "leastconn"),
    ("haproxy@2.6", "uri"),
    ("haproxy@2.6", "uri; hash-type consistent"),
    ("haproxy@2.6", "random(2)"),
    ("envoy", "ROUND_ROBIN"),
    ("envoy", "LEAST_REQUEST"),
    ("envoy", "RING_HASH x-user"),
    ("envoy", "MAGLEV x-user"),
    ("caddy@2.6", "round_robin"),
    ("caddy@2.6", "least_conn"),
    ("caddy@2.6", "uri_hash"),
    ("traefik@3", "wrr"),
    ("traefik@3", "p2c"),
    ("traefik@3", "hrw"),
)
DONE = Outcome(at=0.5, status=200)
KEYS = 256
ROUNDS = 15
MOST_SECONDS = 1.0
"""For one cell: whoever looks at 100,000 replicas gets fewer rounds."""

Requests = list[Request]


def requests() -> Requests:
    """Different ones, made beforehand: a carrier makes them, whichever policy decides."""
    return [
        Request(target=f"/item/{n}", client=f"10.0.{n}.9", headers={"x-user": f"u{n}"}) for n in range(KEYS)
    ]


def spent(model: Model, some: Requests) -> tuple[float, float]:
    """Seconds for picking all of them, and for the answers and releases. One at a time is inside."""
    picking = finishing = 0.0
    for request in some:
        began = perf_counter()
        flow = model.serve(request, now=0.5)
        next(flow)
        picked = perf_counter()
        finish(flow)
        finishing += perf_counter() - picked
        picking += picked - began
    return picking, finishing


def finish(flow: Flow) -> None:
    try:
        flow.send(DONE)
    except StopIteration:
        return


def clock_cost() -> float:
    """Seconds that reading the clock adds to a span."""
    spans = []
    for _ in range(2000):
        began = perf_counter()
        spans.append(perf_counter() - began)
    return median(spans)


def cost(model: Model, some: Requests) -> tuple[float, float]:
    """Microseconds for one pick, and for one flow."""
    spent(model, some)  # builds rings, tables and what is looked up by key
    reading = clock_cost()
    picks, flows, used = [], [], 0.0
    gc.disable()
    for done in count(1):
        batch = some if used < MOST_SECONDS / 2 else some[:8]
        picking, finishing = spent(model, batch)
        picks.append(picking / len(batch) - reading)
        flows.append((picking + finishing) / len(batch) - 2 * reading)
        used += picking + finishing
        if done >= ROUNDS or used > MOST_SECONDS:
            break
    gc.enable()
    return min(picks) * 1e6, min(flows) * 1e6


def model_of(profile: str, policy: str, size: int) -> Model | None:
    places = [Place(name=f"web{n}", address=f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}:80") for n in range(size)]
    try:
        return PROFILES[profile].model(places, policy=policy)
    except ConfigError:
        return None


def each(batch: Callable[[str], object]) -> float:
    """Microseconds for one call of something that is no model."""
    keys = [f"/item/{n}" for n in range(KEYS)]
    rounds = []
    for _ in range(ROUNDS):
        began = perf_counter()
        for key in keys:
            batch(key)
        rounds.append((perf_counter() - began) / KEYS)
    return min(rounds) * 1e6


def of_pool(size: int) -> float:
    """What the carriers call for each request without a profile."""
    pool = Pool([Replica(f"web{number}") for number in range(size)], policy=RoundRobin())

    def pick(_: str) -> None:
        if (state := pool.pick()) is not None:
            pool.release(state)

    return each(pick)


def of_uhashring(size: int) -> float | None:
    try:
        ring = importlib.import_module("uhashring").HashRing(
            nodes=[f"10.0.0.1:{number}" for number in range(size)], hash_fn="ketama"
        )
    except ModuleNotFoundError:
        return None
    return each(ring.get_node)


def calibration() -> float:
    """Microseconds for 100 additions in a loop."""

    def loop(_: str) -> int:
        total = 0
        for number in range(100):
            total += number
        return total

    return each(loop)


def row(name: str, pairs: Sequence[tuple[float, float] | None]) -> None:
    cells = ["-".rjust(9) * 2 if pair is None else f"{pair[0]:9.2f}{pair[1]:9.2f}" for pair in pairs]
    print(name.ljust(42) + "".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--only", default="", help="a part of profile and policy")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    some = requests()
    print("microseconds for n replicas".ljust(42) + "".join(f"n={size:,}".rjust(18) for size in sizes))
    print(" " * 42 + ("pick".rjust(9) + "flow".rjust(9)) * len(sizes))
    for profile, policy in POLICIES:
        if arguments.only in f"{profile} {policy}":
            models = [model_of(profile, policy, size) for size in sizes]
            row(f"{profile} {policy}", [cost(model, some) if model else None for model in models])
    row("the pool without a profile, RoundRobin", [(of_pool(n),) * 2 for n in sizes])
    rings = [of_uhashring(size) if size <= 1_000 else None for size in sizes]
    row("uhashring, ketama", [None if ring is None else (ring, ring) for ring in rings])
    row("100 additions in a loop", [(calibration(),) * 2])
    print("\nWhat the balancer adds to a request: scripts/bench dispatch")


if __name__ == "__main__":
    main()
