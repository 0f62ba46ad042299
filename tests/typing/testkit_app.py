"""Never run, only type-checked: the test kit as a user writes it."""

from __future__ import annotations

from flask import Flask

from lbkit.sticky import Sticky
from lbkit.testkit import (
    Cluster,
    Row,
    assert_drained,
    assert_failover,
    assert_no_lost_requests,
    assert_spread,
    assert_survives,
    error,
    hang,
    slow,
)


def create_app() -> Flask:
    return Flask(__name__)


def test_by_hand() -> None:
    with Cluster("shop:create_app()", replicas=3, private=["shop"], timeout=0.5, seed=7) as cluster:
        client = cluster.client()
        client.get("/")
        with cluster["web1"].hang(at="headers", path="/cart", method="POST", rate=0.5, times=3) as injection:
            hits: int = injection.count
        cluster["web2"].inject(slow(0.3, jitter=0.1)).stop()
        with cluster["web2"].partition("redis://127.0.0.1:6379"):
            client.get("/")
        cluster.inject(error(503), times=hits + 1)
        cluster["web3"].kill()
        assert_failover(cluster, frm="web3", max_ms=200)
        last: Row = cluster.trace[-1]
        home: str | None = last.replica
        print(cluster.trace.by(replica=home, path="/cart*").table(last=20))
        dropped: int = cluster["web1"].drain(timeout=5)
        assert_drained(cluster["web1"], dropped=dropped)


async def test_on_a_loop() -> None:
    async with Cluster(create_app, sticky=Sticky(secret_keys=["k" * 32])) as cluster:
        client = cluster.aclient()
        await client.get("/")
        await cluster["web1"].akill()
        await cluster["web1"].arestart()
        left: int = await cluster["web2"].adrain(1.0)
        print(left)


def test_a_deploy(cluster: Cluster) -> None:
    client = cluster.client()
    with cluster.load(client.get, "/slow", rate=50) as load, cluster.chaos(kill=0.02, seed=7) as chaos:
        cluster.rolling_restart(drain=5)
        cluster.deploy("shop_v2:create_app()", only=["web1"])
        cluster.scale(5)
    print(len(load.answers), chaos.seed, hang())
    assert_no_lost_requests(cluster)
    assert_spread(cluster, tolerance=0.3)
    assert_survives(cluster, lambda: None, faults=["kill"])
