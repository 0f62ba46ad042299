"""Assertions about a cluster: what each lets pass, what it does not, and the rows that it shows then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flask
import pytest

from lbkit.errors import ConfigError
from lbkit.sticky import Sticky
from lbkit.testkit import (
    Cluster,
    assert_at_most_once,
    assert_drained,
    assert_failover,
    assert_no_lost_requests,
    assert_rebalanced,
    assert_same_everywhere,
    assert_spread,
    assert_sticky,
    assert_survives,
    error,
    hang,
    reset,
    slow,
)


def shop(*, carts: dict[str, list[int]] | None = None) -> flask.Flask:
    """With carts in a dict of its own, or in one that is given: the database of the test."""
    app = flask.Flask("shop")
    app.secret_key = "one-for-all"
    store: dict[str, list[int]] = {} if carts is None else carts

    @app.post("/cart")
    def add() -> dict[str, Any]:
        store.setdefault("ann", []).append(1)
        return {"items": store["ann"]}

    @app.get("/cart")
    def show() -> dict[str, Any]:
        return {"items": store.get("ann", []), "at": len(flask.request.headers.get("x-now", ""))}

    return app


@pytest.fixture
def carts() -> dict[str, list[int]]:
    return {}


@pytest.fixture
def cluster(carts: dict[str, list[int]]) -> Iterator[Cluster]:
    """A shop as it should be."""
    with Cluster(lambda: shop(carts=carts), timeout=0.2) as cluster:
        yield cluster


@pytest.fixture
def wrong() -> Iterator[Cluster]:
    """One that keeps its carts in a dict."""
    with Cluster(shop) as cluster:
        yield cluster


def fails(match: str) -> Any:
    return pytest.raises(AssertionError, match=match)


def test_a_spread_is_even_within_a_request_or_the_tolerance(cluster: Cluster) -> None:
    client = cluster.client()
    for _ in range(7):
        client.get("/cart")
    assert_spread(cluster)
    with client.on("web2"):
        for _ in range(5):
            client.get("/cart")
    with fails(r"need 4.0 requests each, give or take 1.0, got web1 3, web2 7, web3 2\n"):
        assert_spread(cluster)
    assert_spread(cluster, tolerance=0.8)


def test_two_requests_prove_no_spread(cluster: Cluster) -> None:
    client = cluster.client()
    client.get("/cart")
    client.get("/cart")
    with fails("need at least 3 requests to see a spread, got web1 1, web2 1, web3 0"):
        assert_spread(cluster)


def test_a_client_that_wanders_is_not_sticky(cluster: Cluster) -> None:
    client = cluster.client()
    with fails("need at least 2 requests of this client"):
        assert_sticky(client)
    client.get("/cart")
    client.get("/cart")
    with fails("need one replica for all requests of client1, got web1, web2") as failure:
        assert_sticky(client)
    assert str(failure.value).count("GET /cart") == 2  # the rows that prove it


def test_a_client_with_a_cookie_is_sticky_and_moves_once(carts: dict[str, list[int]]) -> None:
    sticky = Sticky(secret_keys=["k" * 32], secure=False)
    with Cluster(lambda: shop(carts=carts), sticky=sticky) as cluster:
        client = cluster.client()
        for _ in range(3):
            client.get("/cart")
        assert_sticky(client)
        cluster["web1"].kill()
        with fails("got no request"):
            assert_rebalanced(client, after="web1")
        for _ in range(3):
            client.get("/cart")
        assert_rebalanced(client, after=cluster["web1"])


def test_a_client_that_wanders_is_not_rebalanced(cluster: Cluster) -> None:
    client = cluster.client()
    client.get("/cart")
    cluster["web1"].kill()
    for _ in range(3):
        client.get("/cart")
    with fails("need one other replica for client1 since web1 left, got web2, web3|got web3, web2"):
        assert_rebalanced(client, after="web1")


def test_a_lost_request_is_shown(cluster: Cluster) -> None:
    with fails("need at least one request, got none"):
        assert_no_lost_requests(cluster)
    client = cluster.client()
    client.get("/cart")
    assert_no_lost_requests(cluster)
    with cluster["web2"].error(503):
        client.get("/cart")
    with fails(r"lost 1 of 2 requests\n") as failure:
        assert_no_lost_requests(cluster)
    assert "web2 503 (error(503))" in str(failure.value)


def test_a_failover_is_an_answer_in_place_of_the_dead(cluster: Cluster) -> None:
    client = cluster.client()
    client.post("/cart")
    home = str(cluster.trace[-1].replica)
    with fails("need a request since web1 went down or failed, got none"):
        assert_failover(cluster, frm=home)
    cluster[home].kill()
    assert client.get("/cart").json["items"] == [1]
    assert_failover(cluster, frm=home, max_ms=5000)
    with fails("need an answer in 0 ms, 1 of 1 took longer"):
        assert_failover(cluster, frm=home, max_ms=0)


def test_a_failure_that_reaches_the_client_is_no_failover(cluster: Cluster) -> None:
    client = cluster.client()
    with cluster["web1"].hang():
        client.post("/cart")
    with fails("1 of 1 requests were not answered in place of web1"):
        assert_failover(cluster, frm="web1")


def test_a_replica_is_drained_when_nothing_was_cut(cluster: Cluster) -> None:
    client = cluster.client()
    client.get("/cart")
    with fails("need web1 to be down, but it is up"):
        assert_drained(cluster["web1"])
    cluster["web1"].drain()
    assert_drained(cluster["web1"])


def test_a_crash_is_no_drain(cluster: Cluster) -> None:
    client = cluster.client()
    with cluster.inject(reset(), times=1):
        client.get("/cart")
    with cluster.chaos(kill=1.0, seed=1):
        client.get("/cart")
        down = next(replica for replica in cluster if not replica.listens)
        with fails(f"need at most 0 requests dropped by {down.name}, got 1"):
            assert_drained(down)
        assert_drained(down, dropped=1)


@pytest.mark.parametrize("fault", [hang(), hang(at="headers"), slow(0.01), error(503), reset()], ids=str)
def test_a_post_runs_at_most_once_whatever_happens(
    cluster: Cluster, carts: dict[str, list[int]], fault: Any
) -> None:
    client = cluster.client()
    with cluster["web1"].inject(fault, path="/cart"):
        client.post("/cart")
    assert_at_most_once(cluster, "POST", "/cart")
    assert len(carts.get("ann", [])) <= 1


def test_a_get_that_ran_twice_is_shown(cluster: Cluster) -> None:
    with fails("need a request GET /cart, got none"):
        assert_at_most_once(cluster, "GET", "/cart")
    with cluster["web1"].reset():
        cluster.client().get("/cart")
    with fails("1 of 1 requests GET /cart ran more than once"):
        assert_at_most_once(cluster, "GET", "/cart")


def test_a_page_that_is_not_the_same_everywhere_shows_the_difference(
    cluster: Cluster, wrong: Cluster
) -> None:
    client = cluster.client()
    client.post("/cart")
    assert_same_everywhere(client, "/cart")
    client = wrong.client()
    client.post("/cart")
    with fails(r"GET /cart is not the same everywhere: web1 says '.*1.*', web2 says '.*\[\].*'"):
        assert_same_everywhere(client, "/cart")


def test_a_clock_on_a_page_is_no_difference() -> None:
    def clocks() -> flask.Flask:
        app, ticks = flask.Flask("clocks"), iter(range(1000))
        app.add_url_rule("/", view_func=lambda: f"<p>at {next(ticks)}</p> nonce-{id(app)}")
        return app

    with Cluster(clocks) as cluster:
        client = cluster.client()
        with fails("nonce"):
            assert_same_everywhere(client, "/")
        assert_same_everywhere(client, "/", ignore=r"nonce-\d+")


def buy(client: Any) -> None:
    assert client.post("/cart").status_code == 200
    assert client.get("/cart").json["items"] == [1]
    assert client.get("/cart").json["items"] == [1]


def test_a_scenario_survives_each_fault_at_each_step(cluster: Cluster, carts: dict[str, list[int]]) -> None:
    assert_survives(cluster, buy, reset=carts.clear)
    assert all(replica.listens for replica in cluster)
    assert len(cluster.trace) == 3 * (
        1 + 3 * 2
    )  # alone, then with each fault before the second and the third


def test_a_scenario_that_needs_its_replica_is_told_the_step(wrong: Cluster) -> None:
    def forgetful(client: Any) -> None:
        with client.on("web1"):
            client.post("/cart")
        wrong["web1"].start()  # as an operator would
        with client.on("web1"):
            assert client.get("/cart").json["items"]

    with fails("the scenario does not survive with kill of web1 before request 2: ") as failure:
        assert_survives(wrong, forgetful, faults=["kill"])
    assert "POST /cart" in str(failure.value)


def test_a_scenario_that_fails_by_itself_is_not_blamed_on_a_fault(wrong: Cluster) -> None:
    with fails("the scenario does not survive without any fault: AssertionError"):
        assert_survives(wrong, buy)


def test_mistakes_are_told_with_the_rule(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match="need a client of cluster"):
        assert_sticky(object())
    with pytest.raises(ConfigError, match="need faults of kill, drain, restart, stop, got explode"):
        assert_survives(cluster, buy, faults=["explode"])
