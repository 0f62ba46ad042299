"""The fixtures: `cluster`, `lb_client`, `lb_aclient`, `lb_url`, `shared_redis`.

pytest loads this file in each of its runs: what a fixture needs is imported when it is asked for.
The app of the cluster is what the fixture `lb_app` returns. Write one of your own, or name the app as
`replica_app` in pytest's configuration. `@pytest.mark.replicas(5, timeout=0.5)` has arguments for `Cluster`.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from secrets import token_bytes
from typing import TYPE_CHECKING, Any

import pytest

from lbkit.errors import ConfigError

if TYPE_CHECKING:
    from lbkit.testkit.cluster import Cluster
    from lbkit.testkit.redis_server import RedisServer

__all__ = ["cluster", "lb_aclient", "lb_app", "lb_client", "lb_url", "shared_redis"]

MARKER = (
    "replicas(n, policy=..., isolation=..., faults=[...], timeout=...): how many replicas this test has, how "
    "they are isolated and its requests spread (round_robin, random or sticky); the fixture cluster is made "
    "with these and other arguments of Cluster, and has the faults; without it the test's own requests have "
    "them, under --replicas"
)

ROWS = 20
"""Of the trace, in the report of a test that failed."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("replica_app", "the app of the fixtures cluster and lb_client, such as shop:create_app")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def lb_app(request: pytest.FixtureRequest) -> Any:
    """What the cluster's replicas are made from: a recipe, a factory, or app objects."""
    target = request.config.getoption("replica_app", None) or request.config.getini("replica_app")
    if not target:
        raise ConfigError(
            "need the app: set replica_app = shop:create_app in pytest's configuration, give --replica-app, "
            "or write a fixture lb_app that returns it"
        )
    return target


@pytest.fixture
def cluster(request: pytest.FixtureRequest, lb_app: Any) -> Iterator[Cluster]:
    """Three replicas of `lb_app` behind the balancer, or as the marker `replicas` says."""
    from lbkit.sticky import Sticky
    from lbkit.testkit.cluster import Cluster

    marker = request.node.get_closest_marker("replicas")
    options: dict[str, Any] = dict(marker.kwargs) if marker is not None else {}
    if marker is not None and marker.args:
        options["replicas"] = marker.args[0]
    faults = options.pop("faults", ())
    if options.get("policy") == "sticky":
        options |= {"policy": None, "sticky": Sticky(secret_keys=[token_bytes(32)], secure=False)}
    with Cluster(lb_app, **options) as started:
        for fault in faults:
            started.inject(fault)
        yield started


@pytest.fixture
def lb_client(cluster: Cluster) -> Any:
    """A sync client of the cluster: Flask's for a Flask app, Starlette's TestClient for an ASGI app."""
    return cluster.client()


@pytest.fixture
def lb_aclient(cluster: Cluster) -> Any:
    """An `httpx.AsyncClient` of the cluster."""
    return cluster.aclient()


@pytest.fixture
def lb_url(cluster: Cluster) -> str:
    """The cluster on a real port of 127.0.0.1."""
    return cluster.serve()


@pytest.fixture(scope="session")
def lb_redis_server() -> Iterator[RedisServer]:
    """One redis-server for the whole session."""
    from lbkit.testkit.redis_server import redis_server

    try:
        with redis_server() as server:
            yield server
    except ConfigError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture
def shared_redis(lb_redis_server: RedisServer) -> str:
    """The URL of a real Redis, empty at the beginning of each test."""
    lb_redis_server.flush()
    return lb_redis_server.url


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the trace with a test that failed."""
    report = yield
    started = getattr(item, "funcargs", {}).get("cluster")
    trace = getattr(started, "trace", None)
    if report.when == "call" and report.failed and trace:
        report.sections.append(("lbkit trace", trace.table(last=ROWS)))
    return report
