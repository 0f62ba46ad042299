"""Replicas that come and go, through both gateways: active checks, slow start, rolling restarts."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from lbkit import StartupError, asgi, wsgi
from lbkit.balancer import Dispatch
from lbkit.balancer.check import CheckRules
from lbkit.children import Child
from lbkit.errors import ConfigError
from lbkit.types import Environ, Message, Receive, Scope, Send, StartResponse
from tests.gateways.test_balancer import send_asgi, send_wsgi
from tests.health_gateways import FakeClock, running_loop

QUICK = CheckRules(path="/health", inter=0.01, rise=2, fall=2, timeout=0.5)


class Site:
    """What a replica's health endpoint says, and what it was asked; one app of each kind."""

    made: int = 0

    def __init__(self) -> None:
        self.health: tuple[int, str] = (200, "fine")
        self.checks = 0
        self.served = 0
        self.born = self.died = 0
        self.slow = 0.0

    def wsgi(self, environ: Environ, start_response: StartResponse) -> list[bytes]:
        status, body = self._answer(environ["PATH_INFO"])
        if environ["PATH_INFO"] != "/health":
            time.sleep(self.slow)
        start_response(f"{status} As Told", [("Content-Length", str(len(body)))])
        return [body]

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        status, body = self._answer(scope["path"])
        if scope["path"] != "/health":
            await asyncio.sleep(self.slow)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self.born += 1
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.died += 1
        await send({"type": "lifespan.shutdown.complete"})

    def _answer(self, path: str) -> tuple[int, bytes]:
        if path == "/health":
            self.checks += 1
            return self.health[0], self.health[1].encode()
        self.served += 1
        return 200, b"ok"


class Live:
    """A gateway with the lifespan of its balancers."""

    def __init__(self, kind: str, loop: asyncio.AbstractEventLoop | None) -> None:
        self.kind = kind
        self.loop = loop
        self.Balancer: Any = asgi.Balancer if kind == "asgi" else wsgi.Balancer

    def app(self, site: Site) -> Any:
        return getattr(site, self.kind)

    def ask(self, balancer: Any, path: str = "/") -> httpx.Response:
        return self.send(balancer, "GET", f"http://shop.example{path}", {})

    def send(self, balancer: Any, method: str, url: str, headers: dict[str, str]) -> httpx.Response:
        request = httpx.Request(method, url, headers=headers)
        if self.loop is None:
            return send_wsgi(balancer, request)
        return send_asgi(self.loop, balancer, request)

    def names(self, balancer: Any, times: int) -> Counter[str]:
        return Counter(self.ask(balancer).headers["x-lbkit-replica"] for _ in range(times))

    def roll(self, balancer: Any, **options: Any) -> Any:
        if self.loop is None:
            return balancer.rolling_restart(**options)
        return asyncio.run_coroutine_threadsafe(balancer.rolling_restart(**options), self.loop).result(60)

    @contextmanager
    def running(self, balancer: Any) -> Iterator[None]:
        if self.loop is None:
            with balancer:
                yield
            return
        to_app: asyncio.Queue[Message] = asyncio.Queue()
        from_app: asyncio.Queue[Message] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}}
        life = asyncio.run_coroutine_threadsafe(balancer(scope, to_app.get, from_app.put), self.loop)

        def tell(what: str) -> None:
            self.loop.call_soon_threadsafe(to_app.put_nowait, {"type": what})  # type: ignore[union-attr]
            asyncio.run_coroutine_threadsafe(from_app.get(), self.loop).result(30)  # type: ignore[arg-type]

        tell("lifespan.startup")
        try:
            yield
        finally:
            tell("lifespan.shutdown")
            life.result(30)


@pytest.fixture(params=["asgi", "wsgi"])
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    if request.param == "wsgi":
        yield Live("wsgi", None)
        return
    with running_loop() as loop:
        yield Live("asgi", loop)


def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("profile", ["nginx", "haproxy@2.6", "envoy", "traefik@3", "plain", None])
def test_who_fails_its_checks_gets_nothing_and_returns_when_it_passes(
    live: Live, profile: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    sites = [Site() for _ in range(3)]
    balancer = live.Balancer([live.app(site) for site in sites], profile=profile, check=QUICK)
    with live.running(balancer), caplog.at_level(logging.WARNING, logger="lbkit.balancer"):
        assert set(live.names(balancer, 9)) == {"web1", "web2", "web3"}
        sites[1].health = (503, "no")
        until(lambda: list(balancer.explain()) == ["web2"])
        assert "web2" not in live.names(balancer, 9)
        sites[1].health = (200, "fine")
        until(lambda: not balancer.explain())
        assert "web2" in live.names(balancer, 30)
    told = [record.getMessage() for record in caplog.records]
    assert told == ["replica web2 is down: so say the checks", "replica web2 is up: so say the checks"]
    assert sites[0].checks > 2


def test_nobody_asks_when_the_balancer_has_stopped() -> None:
    """Of 200 balancers whose replicas answer at once, 200 went on asking where `wait_for` was used."""

    async def tasks_left_behind() -> int:
        balancer = asgi.Balancer([Site().asgi] * 3, check=CheckRules(inter=0.0005))
        to_app: asyncio.Queue[Message] = asyncio.Queue()
        from_app: asyncio.Queue[Message] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}}
        life = asyncio.create_task(balancer(scope, to_app.get, from_app.put))
        for what in ("lifespan.startup", "lifespan.shutdown"):
            to_app.put_nowait({"type": what})
            await from_app.get()
            await asyncio.sleep(0.005)
        await life
        for _ in range(10):  # what was cancelled ends within a few turns of the loop
            await asyncio.sleep(0)
        return len(asyncio.all_tasks()) - 1

    assert [asyncio.run(tasks_left_behind()) for _ in range(10)] == [0] * 10


def test_a_stopped_replica_and_one_that_says_something_else_fail_their_checks(live: Live) -> None:
    sites = [Site() for _ in range(3)]
    check = CheckRules(path="/health", inter=0.01, rise=1, fall=1, body="fine", statuses=(200, 200))
    balancer = live.Balancer([live.app(site) for site in sites], profile="haproxy@2.6", check=check)
    with live.running(balancer):
        balancer.replicas["web1"].stop()
        sites[1].health = (200, "well")
        sites[2].health = (200, "I am fine")
        until(lambda: list(balancer.explain()) == ["web1", "web2"])
        assert live.names(balancer, 4) == {"web3": 4}
        balancer.replicas["web1"].start()
        until(lambda: list(balancer.explain()) == ["web2"])


def test_who_is_in_maintenance_is_not_checked(live: Live) -> None:
    sites = [Site() for _ in range(2)]
    balancer = live.Balancer([live.app(site) for site in sites], profile="nginx", check=QUICK)
    with live.running(balancer):
        until(lambda: all(site.checks > 1 for site in sites))
        balancer.maintain("web1")
        before, other = sites[0].checks, sites[1].checks
        until(lambda: sites[1].checks > other + 3)
        assert sites[0].checks <= before + 1


@pytest.mark.parametrize("said", ["ready up 50%\n", '{"status": "fine", "score": 50}'])
def test_a_degraded_replica_gets_less_by_steps_as_its_own_word_says(live: Live, said: str) -> None:
    sites = [Site() for _ in range(2)]
    balancer = live.Balancer([live.app(site) for site in sites], profile="nginx", check=QUICK)
    shares: list[float] = []
    told = balancer.judge

    def judge(name: str, *, up: bool, share: float = 1.0) -> None:
        told(name, up=up, share=share)
        shares.extend([share] * (name == "web1"))

    balancer.judge = judge
    with live.running(balancer):
        until(lambda: bool(shares))
        sites[0].health = (200, said)
        until(lambda: shares[-1] == 0.5)
        assert 0.75 in shares
        assert live.names(balancer, 30) == {"web1": 10, "web2": 20}
        sites[0].health = (200, "fine")
        until(lambda: shares[-1] == 1.0)
        assert live.names(balancer, 10)["web1"] == 5


@pytest.mark.parametrize(("profile", "early"), [("haproxy@2.6", 6), ("envoy", 9)])
def test_a_replica_that_comes_back_rises_slowly(live: Live, profile: str, early: int) -> None:
    clock = FakeClock()
    options = {"profile": profile, "slow_start": 100.0, "clock": clock, "wall": clock}
    balancer = live.Balancer([live.app(Site()) for _ in range(2)], **options)
    assert live.names(balancer, 100)["web1"] == 50
    balancer.maintain("web1")
    balancer.ready("web1")
    assert live.names(balancer, 101)["web1"] == pytest.approx(early, abs=2)
    clock.now += 50
    assert live.names(balancer, 150)["web1"] == pytest.approx(50, abs=4)
    clock.now += 50
    assert live.names(balancer, 100)["web1"] == pytest.approx(50, abs=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slow_start": 5}, "plain has no slow_start"),
        ({"profile": "caddy@2.6", "slow_start": 5}, "caddy@2.6 has no slow_start"),
        ({"profile": "envoy", "slow_start": -1}, "need slow_start >= 0, got slow_start=-1"),
        ({"check": "health"}, "need the path of a check that begins with '/', got 'health'"),
    ],
)
def test_what_makes_no_sense_is_refused(live: Live, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        live.Balancer([live.app(Site())], **options)


# -- rolling restarts


class Load:
    """Three clients that ask until they are told to stop, and count what they get."""

    def __init__(self, live: Live, balancer: Any) -> None:
        self.statuses: Counter[int] = Counter()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(3)
        self._live, self._balancer = live, balancer

    def __enter__(self) -> Load:
        self._asking = [self._pool.submit(self._ask) for _ in range(3)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for asking in self._asking:
            for status in asking.result(30):
                self.statuses[status] += 1
        self._pool.shutdown()

    def _ask(self) -> list[int]:
        got = []
        while not self._stop.is_set() and len(got) < 3000:
            got.append(self._live.ask(self._balancer).status_code)
        return got


@pytest.mark.parametrize("profile", ["nginx", "haproxy@2.6", None])
def test_a_rolling_restart_under_load_loses_no_request(live: Live, profile: str | None) -> None:
    sites: list[Site] = []

    def factory() -> Any:
        site = Site()
        site.slow = 0.005
        sites.append(site)
        return live.app(site)

    rows: list[Dispatch] = []
    balancer = live.Balancer.from_factory(factory, profile=profile, on_dispatch=rows.append)
    with live.running(balancer):
        with Load(live, balancer) as load:
            done = live.roll(balancer)
        assert [(each.replica, each.left) for each in done] == [("web1", 0), ("web2", 0), ("web3", 0)]
        assert len(sites) == 6
        assert not balancer.explain()
        before = [site.served for site in sites]
        live.names(balancer, 9)
        assert [site.served for site in sites][:3] == before[:3]
        assert all(site.served > then for site, then in zip(sites[3:], before[3:], strict=True))
    assert set(load.statuses) == {200}
    assert len(rows) == sum(site.served for site in sites) == sum(load.statuses.values()) + 9
    assert all(len(row.attempts) == 1 for row in rows)
    if live.kind == "asgi":
        assert [(site.born, site.died) for site in sites] == [(1, 1)] * 6


@pytest.mark.parametrize("begins_up", [True, False])
def test_the_next_replica_leaves_when_the_one_before_passes_its_checks(live: Live, begins_up: bool) -> None:
    check = CheckRules(inter=30.0, rise=1, fall=1, begins_up=begins_up)
    sites = [Site(), Site()]
    balancer = live.Balancer([live.app(site) for site in sites], profile="nginx", check=check)
    with live.running(balancer):
        until(lambda: all(site.checks for site in sites) and not balancer.explain())
        live.roll(balancer)
        until(lambda: [site.checks for site in sites] == [2, 2])  # asked at once, not after 30 s
        assert not balancer.explain()


def test_a_replica_that_is_not_well_after_its_restart_stops_the_rolling_restart(live: Live) -> None:
    check = CheckRules(inter=0.02, rise=1, fall=1, begins_up=False)
    sites = [Site(), Site()]
    balancer = live.Balancer([live.app(site) for site in sites], profile="nginx", check=check)
    maintain = balancer.maintain

    def break_it(name: str) -> None:
        maintain(name)
        sites[0].health = (503, "no")

    with live.running(balancer):
        until(lambda: all(site.checks for site in sites) and not balancer.explain())
        balancer.maintain = break_it
        with pytest.raises(StartupError, match=r"it has not passed its checks within 0\.3 s"):
            live.roll(balancer, timeout=0.3)
        assert list(balancer.explain()) == ["web1"]
        assert live.names(balancer, 4) == {"web2": 4}


def test_a_replica_that_does_not_finish_in_time_is_replaced_and_told_of(live: Live) -> None:
    slow, other = Site(), Site()
    slow.slow = 1.0
    balancer = live.Balancer([live.app(slow), live.app(other)], profile="nginx")
    with live.running(balancer), ThreadPoolExecutor(1) as pool:
        asking = pool.submit(live.ask, balancer)
        until(lambda: balancer.replicas["web1"].active == 1)
        slow.slow = 0.0
        done = live.roll(balancer, timeout=0.3)
        assert [each.left for each in done] == [1, 0]
        assert asking.result(10).status_code == 200


def test_bound_clients_stay_during_the_delay_and_move_after_it(live: Live) -> None:
    balancer = live.Balancer([live.app(Site()) for _ in range(2)], profile="nginx", sticky="route")
    modes: list[str] = []
    drain, maintain = balancer.drain, balancer.maintain
    balancer.drain = lambda name: (modes.append(f"drain {name}"), drain(name))
    balancer.maintain = lambda name: (modes.append(f"maintain {name}"), maintain(name))
    with live.running(balancer):
        live.roll(balancer, delay=0.1)
    assert modes == ["drain web1", "maintain web1", "drain web2", "maintain web2"]


def test_the_last_replica_is_not_restarted(live: Live) -> None:
    alone = live.Balancer([live.app(Site())])
    with pytest.raises(ConfigError, match="need another replica that takes requests while web1 restarts"):
        live.roll(alone)
    assert not alone.explain()


def test_a_factory_that_fails_leaves_one_replica_out_and_the_others_as_they_were(live: Live) -> None:
    sites: list[Site] = []

    def factory() -> Any:
        if len(sites) == 3:
            raise RuntimeError("no database")
        sites.append(Site())
        return live.app(sites[-1])

    balancer = live.Balancer.from_factory(factory, profile="nginx")
    with live.running(balancer):
        with pytest.raises(StartupError, match="replica web1 failed to start: RuntimeError: no database"):
            live.roll(balancer)
        assert list(balancer.explain()) == ["web1"]
        assert set(live.names(balancer, 6)) == {"web2", "web3"}


def test_children_beside_apps_in_one_pool_restart_as_new_processes_under_load(live: Live) -> None:
    children = [Child("tests.children_app:create_app") for _ in range(2)]
    balancer = live.Balancer([*children, live.app(Site())], profile="nginx")
    with live.running(balancer):
        pids = [child.pid for child in children]
        with Load(live, balancer) as load:
            done = live.roll(balancer)
        assert [each.left for each in done] == [0, 0, 0]
        assert all(child.pid not in (None, pid) for child, pid in zip(children, pids, strict=True))
        assert set(live.names(balancer, 6)) == {"web1", "web2", "web3"}
        assert [child.name for child in children] == ["web1", "web2"]
    assert set(load.statuses) == {200}
    assert not any(child.alive for child in children)
