"""What a request costs on its way through the test kit: round robin and trace, and a whole cluster.

    python -m benchmarks.testkit [--rounds N]

A cluster runs each request in a task of its own, counts its bytes and can break it; a test client costs 10
to 100 times as much.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
from itertools import repeat
from time import process_time
from typing import Any

import flask
import flask.testing
import werkzeug.test

from benchmarks import _shop
from benchmarks._measure import Batch, Comparison, compare
from benchmarks._passage import asgi_app, asgi_calls, environs, scopes, wsgi_app, wsgi_calls
from lbkit import asgi
from lbkit.balancer import Pool, Replica
from lbkit.testkit import Attempt, Cluster, Trace
from lbkit.testkit.frameworks import put_under
from lbkit.testkit.kit import Kit
from lbkit.testkit.oracles.state import StateWatch
from lbkit.testkit.settings import Settings

CORE_GOAL = 3.0
"""A pick, the rows of the trace and a release, next to a direct ASGI call: about 1 us on a quiet machine."""

ISOLATION_GOAL = 40.0
"""Microseconds that module isolation may add to a request of Flask's test client."""


def core(cluster: Cluster) -> Batch:
    """What round robin and the trace do for one request, without anything that carries it."""
    pool, trace, clock = Pool(map(Replica, ("web1", "web2", "web3"))), Trace(), cluster.clock

    def calls(count: int) -> None:
        for _ in range(count):
            row = trace.begin(clock(), client="client1", method="GET", path="/")
            state = pool.pick()
            assert state is not None
            attempt = Attempt(state.replica.name, clock())
            row.attempts.append(attempt)
            attempt.status = row.status = 200
            row.first_byte_at = row.last_byte_at = row.done_at = attempt.ended_at = clock()
            pool.release(state)
        trace.clear()

    return calls


def on_its_loop(cluster: Cluster, app: Any) -> Batch:
    """Calls on the cluster's own loop, as a server on it would make them."""

    async def calls(count: int) -> None:
        batch = scopes(repeat({}))
        for _ in range(count):
            await app(next(batch), receive, send)
        cluster.trace.clear()

    return lambda count: cluster.run(calls(count))


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(_: Any) -> None:
    pass


def of_clients(client: Any) -> Batch:
    def calls(count: int) -> None:
        for _ in range(count):
            client.get("/").get_data()

    return calls


def asgi_comparison(rounds: int) -> Comparison:
    with Cluster([asgi_app] * 3) as cluster:
        return compare(
            {
                "direct": on_its_loop(cluster, asgi_app),
                "lbkit.asgi.Balancer": on_its_loop(cluster, asgi.Balancer([asgi_app] * 3)),
                "a cluster": on_its_loop(cluster, cluster.asgi),
            },
            rounds=rounds,
        )


def wsgi_comparison(rounds: int) -> Comparison:
    with Cluster([wsgi_app] * 3) as cluster:
        return compare(
            {
                "direct": wsgi_calls(wsgi_app, environs(repeat({}))),
                "a cluster": wsgi_calls(cluster.wsgi, environs(repeat({}))),
            },
            rounds=rounds,
        )


def flask_comparison(rounds: int) -> Comparison:
    app = flask.Flask(__name__)
    app.add_url_rule("/", view_func=lambda: "hello")
    with Cluster([app] * 3) as cluster:
        return compare(
            {
                "Flask's test client": of_clients(app.test_client()),
                "cluster.client()": of_clients(cluster.client()),
                "werkzeug's over the cluster": of_clients(werkzeug.test.Client(cluster.wsgi)),
            },
            rounds=rounds,
        )


def replicas_comparison(rounds: int) -> Comparison:
    """What `pytest --replicas 3` adds to a request of Flask's client: isolation, then the state watch."""

    class Plain(flask.testing.FlaskClient):
        run_wsgi_app = werkzeug.test.Client.run_wsgi_app  # as it is before the kit is under it

    plain = Plain(_shop.app, flask.Response, use_cookies=True)
    kit, watched = (Kit(Settings(replicas=3, private=("benchmarks",))) for _ in range(2))
    watched.watchers.append(StateWatch(watched))
    try:
        return compare(
            {
                "Flask's test client": of_clients(plain),
                "over isolated replicas": over(kit),
                "and with the state watch": over(watched),
            },
            rounds=rounds,
            clock=process_time,
        )
    finally:
        kit.close()
        watched.close()


def over(kit: Kit) -> Batch:
    put_under(kit)

    class Over(flask.testing.FlaskClient):
        run_wsgi_app = werkzeug.test.Client.run_wsgi_app

    kit.patches.remove()
    client = Over(_shop.app, flask.Response, use_cookies=True)
    kit.begin_test("a test")

    def calls(count: int) -> None:
        for _ in range(count):
            client.get("/")
        kit.turn.rows.clear()

    return calls


def core_comparison(rounds: int) -> Comparison:
    loop = asyncio.new_event_loop()
    direct = asgi_calls(loop, asgi_app, scopes(repeat({})))
    with Cluster([asgi_app] * 3) as cluster:
        result = compare(
            {"a direct ASGI call": direct, "round robin and trace": core(cluster)}, rounds=rounds
        )
    loop.close()
    return result


def hop_comparison(rounds: int) -> Comparison:
    """A client on a loop of its own: each message goes from one loop to the other."""
    loop = asyncio.new_event_loop()
    with Cluster([asgi_app] * 3) as cluster:
        result = compare(
            {
                "direct": asgi_calls(loop, asgi_app, scopes(repeat({}))),
                "a cluster, from another loop": asgi_calls(loop, cluster.asgi, scopes(repeat({}))),
            },
            rounds=rounds,
        )
    loop.close()
    return result


def report(rounds: int) -> None:
    print(f"Python {platform.python_version()}; medians of {rounds} rounds: us a call, next to the first")
    costs = core_comparison(rounds)
    print(f"\nthe core\n{costs.table()}")
    print(f"\na trivial ASGI app\n{asgi_comparison(rounds).table()}")
    print(f"\na trivial ASGI app, from another loop\n{hop_comparison(rounds).table()}")
    print(f"\na trivial WSGI app\n{wsgi_comparison(rounds).table()}")
    print(f"\na Flask view\n{flask_comparison(rounds).table()}")
    isolated = replicas_comparison(rounds)
    print(f"\nunder pytest --replicas 3 (processor time)\n{isolated.table()}")
    ratio = costs.ratio("round robin and trace")
    word = "met" if ratio <= CORE_GOAL else "missed"
    told = f"round robin and trace cost {ratio:.2f} x a direct call"
    print(f"\ngoals\n    {told}; the goal is <= {CORE_GOAL:g}: {word}")
    added = isolated.added("over isolated replicas")
    word = "met" if added <= ISOLATION_GOAL else "missed"
    told = f"isolation adds {added:.0f} us to a request of Flask's client"
    print(f"    {told}; the goal is <= {ISOLATION_GOAL:g}: {word}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=101, help="of about 4 ms for each way (default: 101)")
    report(parser.parse_args().rounds)
