"""A replica whose clock is off: what an app makes of that, and what stays true."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lbkit.errors import ConfigError
from lbkit.testkit import Cluster

APP = """
import asyncio, datetime, time
from time import time as now
from itsdangerous import SignatureExpired, TimestampSigner
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

signer = TimestampSigner("one key for all replicas")

async def login(request):
    return JSONResponse(signer.sign("ann").decode())

async def me(request):
    try:
        signer.unsign(request.query_params["token"], max_age=30)
    except SignatureExpired as error:
        return JSONResponse(str(error), 401)
    return JSONResponse("ann")

async def clocks(request):
    begun = asyncio.get_running_loop().time()
    try:
        await asyncio.wait_for(asyncio.Event().wait(), 0.01)
    except asyncio.TimeoutError:
        waited = asyncio.get_running_loop().time() - begun
    return JSONResponse({
        "wall": [
            time.time(), now(), time.time_ns() / 1e9, time.clock_gettime(time.CLOCK_REALTIME),
            datetime.datetime.now().timestamp(), datetime.datetime.now(datetime.timezone.utc).timestamp(),
            time.mktime(time.localtime()),
        ],
        "monotonic": time.monotonic(),
        "waited": waited,
    })

app = Starlette(routes=[Route("/login", login), Route("/me", me), Route("/clocks", clocks)])
"""
ABOUT = 30.0
"""Seconds: half of the least that a clock is set off by here. What is nearer than that, is not off."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    file = tmp_path_factory.mktemp("skew") / "tk_skew.py"
    file.write_text(APP)
    with Cluster(str(file), replicas=2, isolation="process") as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def healed(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.heal()


def ask(cluster: Cluster, name: str, path: str) -> Any:
    client = cluster.client()
    with client.on(name):
        return client.get(path)


def off(cluster: Cluster, name: str) -> float:
    """By how much its clocks are off, all of them alike."""
    before = time.time()
    wall = ask(cluster, name, "/clocks").json()["wall"]
    assert max(wall) - min(wall) < ABOUT
    return round((wall[0] - before) / 60) * 60.0


def test_a_token_that_lives_for_half_a_minute_dies_between_replicas_a_minute_apart(cluster: Cluster) -> None:
    token = ask(cluster, "web1", "/login").json()
    assert ask(cluster, "web2", f"/me?token={token}").status_code == 200
    with cluster["web2"].skew(60):
        assert ask(cluster, "web1", f"/me?token={token}").status_code == 200
        refused = ask(cluster, "web2", f"/me?token={token}")
        assert refused.status_code == 401
        assert "Signature age 6" in refused.json()
        early = ask(cluster, "web2", "/login").json()  # signed in what is the future elsewhere
        assert ask(cluster, "web1", f"/me?token={early}").status_code == 401
    assert ask(cluster, "web2", f"/me?token={token}").status_code == 200


def test_every_wall_clock_is_off_and_the_monotonic_one_and_timeouts_stay_true(cluster: Cluster) -> None:
    with cluster["web1"].skew(-3600):
        assert off(cluster, "web1") == -3600
        assert off(cluster, "web2") == 0
        seen = ask(cluster, "web1", "/clocks").json()
    assert abs(seen["monotonic"] - time.monotonic()) < ABOUT
    assert 0 < seen["waited"] < ABOUT
    assert off(cluster, "web1") == 0


def test_of_several_the_last_one_counts_and_healing_ends_them_all(cluster: Cluster) -> None:
    with cluster["web1"].skew(3600):
        with cluster["web1"].skew(7200):
            assert off(cluster, "web1") == 7200
        assert off(cluster, "web1") == 3600
    assert off(cluster, "web1") == 0
    skew = cluster["web1"].skew(600)
    cluster.heal()
    assert off(cluster, "web1") == 0
    skew.stop()


def test_a_new_process_has_the_true_clock(cluster: Cluster) -> None:
    skew = cluster["web1"].skew(3600)
    cluster["web1"].restart()
    assert off(cluster, "web1") == 0
    skew.stop()
    cluster["web1"].kill()
    with pytest.raises(ConfigError, match="need a process that runs, but that of web1 has ended"):
        cluster["web1"].skew(60)


def test_who_cannot_have_a_clock_of_its_own_says_who_can(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "tk_shared.py").write_text(APP)
    rule = "need isolation='process' to set the clock of web1 off"
    with (
        Cluster(str(tmp_path / "tk_shared.py"), replicas=1) as shared,
        pytest.raises(ConfigError, match=rule),
    ):
        shared["web1"].skew(60)
    with pytest.raises(ConfigError, match="need a number of seconds to set a clock off by, got nan"):
        cluster["web1"].skew(float("nan"))
