"""One replica of a cluster: its app, how it stands, and what one can do to it.

=========  ==============================  =================================================
state      the balancer                    because
=========  ==============================  =================================================
starting   sends nothing                   its lifespan has not answered yet
up         sends requests
draining   sends bound clients only        what is inside may finish
down       finds nobody listening          it was stopped or killed
failed     finds nobody listening          it did not start: `reason` says why
=========  ==============================  =================================================
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lbkit.asgi.lifespan import Lifespan
from lbkit.asgi.replica import as_asgi
from lbkit.balancer import Mode
from lbkit.errors import ConfigError, ReplicaRefused, ReplicaReset, StartupError
from lbkit.testkit.abandoned import Abandoned
from lbkit.testkit.asgi import Upstream
from lbkit.testkit.asgi_call import Call
from lbkit.testkit.backend import Ongoing
from lbkit.testkit.breakable import Breakable
from lbkit.testkit.faults import Faults, Plan
from lbkit.testkit.hop import Hop
from lbkit.testkit.interpreter import Interpreter
from lbkit.testkit.isolation import ModuleReplica
from lbkit.testkit.origin import Made, Origin
from lbkit.testkit.partition import NETWORK
from lbkit.testkit.portal import Portal
from lbkit.testkit.row import Attempt, Row
from lbkit.testkit.server_profile import ServerProfile
from lbkit.testkit.skew import WallClock
from lbkit.testkit.spaces import Space
from lbkit.testkit.watching import MemoryElsewhere, MemoryWatch
from lbkit.testkit.wsgi import Upstream as WSGIUpstream
from lbkit.types import ASGIApp, Receive, Send, WSGIApp

if TYPE_CHECKING:
    from lbkit.testkit.cluster import Cluster

__all__ = ["ClusterReplica"]

PATIENCE = 5.0
"""Seconds that what was cut has to end."""

LAST_WORDS = 30.0
"""Seconds that a lifespan has to shut down."""

LOOK = 0.002
"""Seconds between two looks at whether it has."""


class ClusterReplica(Breakable):
    """`cluster["web1"]`. Each verb has an async twin with an a before it, for use inside a running loop."""

    def __init__(self, cluster: Cluster, name: str, origin: Origin) -> None:
        self.name = name
        self.state = "down"
        self.reason: str | None = None
        self.served = 0
        """Requests that were given to it."""

        self.down_at: float | None = None
        """When it last went down, by the cluster's clock."""

        self.dropped = 0
        """Requests that were cut when it last went down."""

        self.faults = Faults()
        self.origin = origin
        self.inner: Any = None
        """Its bare app, with the attributes that its framework gives it. Requests go to `cluster.app`."""

        self.memory: MemoryWatch | MemoryElsewhere | None = None
        """What requests have changed in it, where it has modules of its own, or a process."""

        self.wall: WallClock | None = None
        """The clock of its process, if it has one of its own."""

        self._made: Made | None = None
        self._portal: Portal | None = None
        self.asgi: ASGIApp
        self.wsgi: WSGIApp
        self.cluster = cluster
        self._calls: set[Ongoing] = set()
        self.abandoned = Abandoned()
        self._lifespan: Lifespan | None = None
        # Captured here: whatever ContextVars a test sets later are the test's own.
        self.context = contextvars.copy_context()

    def __repr__(self) -> str:
        return f"<ClusterReplica {self.name} {self.state}>"

    # What the carriers ask.

    @cached_property
    def upstream(self) -> Any:
        """The app that the balancer gets to see."""
        return WSGIUpstream(self) if self.cluster.is_wsgi else Upstream(self)

    @property
    def clock(self) -> Callable[[], float]:
        return self.cluster.clock

    @property
    def timeout(self) -> float:
        return self.cluster.timeout

    @property
    def server_profile(self) -> ServerProfile:
        return self.cluster.server_profile

    @property
    def listens(self) -> bool:
        return self.state in ("up", "draining")

    @property
    def active(self) -> int:
        """Requests inside, background tasks included."""
        return len(self._calls)

    @property
    def state_of_lifespan(self) -> Mapping[str, Any]:
        return self._lifespan.state if self._lifespan is not None else {}

    def plan(self, attempt: Attempt, row: Row) -> Plan | None:
        cluster, now = self.cluster, attempt.began_at
        plan = self.faults.decide(None, row.method, row.path, now, cluster.rng)
        plan = cluster.faults.decide(plan, row.method, row.path, now, cluster.rng)
        attempt.injected = None if plan is None else str(plan)
        return plan

    def refused(self, attempt: Attempt) -> ReplicaRefused:
        attempt.refuse(self.clock())
        self.cluster.refused_by(self.name)
        return ReplicaRefused(f"replica {self.name} refused the connection: it is {self.state}")

    def may_retry(self, row: Row, *, repeatable: bool) -> bool:
        return self.cluster.may_retry(row, repeatable=repeatable)

    def call(
        self, attempt: Attempt, plan: Plan | None, receive: Receive, send: Send, *, websocket: bool
    ) -> Call:
        return Call(self, attempt, plan, receive, send, websocket=websocket)

    def enter(self, call: Ongoing) -> None:
        self._calls.add(call)
        self.served += 1

    def leave(self, call: Ongoing) -> None:
        self._calls.discard(call)

    # Looking into it.

    def module(self, name: str) -> ModuleType:
        """The replica's own copy of a module: `cluster["web1"].module("shop.cache").CACHE`."""
        return self._isolated().module(name)

    def run(self, target: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function inside the replica: `shop.cache:clear`, or one of yours."""
        return self._isolated().run(target, *args, **kwargs)

    @property
    def space(self) -> Space | None:
        """Its own copies of the first-party modules; None when it has none."""
        made = self._made
        return made.isolated.space if made is not None and made.isolated is not None else None

    @property
    def process(self) -> Interpreter | None:
        """Its process, for `isolation="process"`: `process.send_signal(signal.SIGSTOP)` freezes it."""
        return self._made.process if self._made is not None else None

    def _isolated(self) -> ModuleReplica:
        if self._made is None or self._made.isolated is None:
            raise ConfigError(f"need a recipe such as 'shop:create_app()' to look into {self.name}")
        return self._made.isolated

    def heal(self) -> None:
        """Take away what is wrong with it, and start it if it is down."""
        self.faults.clear()
        if self.space is not None:
            NETWORK.heal(self.space)
        if self.wall is not None:
            self.wall.clear()
        self.undrain()
        self.start()

    # Life and death. What begins with an underscore runs on the cluster's loop.

    def kill(self) -> None:
        """Crash: what is inside is cut, nobody listens any more, and nothing is shut down."""
        self.cluster.run(self._kill())

    async def akill(self) -> None:
        await self.cluster.there(self._kill())

    def start(self) -> None:
        """A fresh app, and its lifespan. Raises StartupError."""
        if not self.listens:
            self.make_app()
            self.cluster.run(self.go())

    async def astart(self) -> None:
        if not self.listens:
            self.make_app()
            await self.cluster.there(self.go())

    def stop(self) -> None:
        """An orderly end at once: what is inside is cut, and the lifespan is shut down."""
        self.cluster.run(self._stop())

    async def astop(self) -> None:
        await self.cluster.there(self._stop())

    def restart(self) -> None:
        """Stop and start, with a fresh app."""
        self.stop()
        self.start()

    async def arestart(self) -> None:
        await self.astop()
        await self.astart()

    def drain(self, timeout: float = 10.0) -> int:
        """Send it no new clients, wait until what is inside is done, then stop it.

        Returns how many requests were still inside after `timeout` seconds, and were cut.
        """
        return self.cluster.run(self._drain(timeout))

    async def adrain(self, timeout: float = 10.0) -> int:
        return await self.cluster.there(self._drain(timeout))

    def undrain(self) -> None:
        """Take a drain back that is still waiting."""
        if self.state == "draining":
            self.state = "up"
            self.cluster.mode(self.name, Mode.READY)

    def deploy(self, origin: Origin, *, timeout: float = 10.0) -> None:
        """Drain it, and start it with another app."""
        if self.listens:
            self.drain(timeout)
        self.origin = origin
        self.start()

    def crash(self) -> None:
        """The process is gone, and nothing is waited for. On the cluster's loop, or where WSGI is served."""
        if self.process is not None:
            self.process.kill()
        self._down(ReplicaReset(f"replica {self.name} was killed"))
        lifespan, self._lifespan = self._lifespan, None
        if lifespan is not None:
            lifespan.cancel()
        self._leave_loop()

    def _leave_loop(self) -> None:
        """In a thread, for it takes as long as the loop is blocked."""
        portal, self._portal = self._portal, None
        if portal is not None:
            threading.Thread(target=portal.close, name=f"lbkit-{self.name}-end", daemon=True).start()

    async def _kill(self) -> None:
        calls = list(self._calls)
        self.crash()
        await self._over(calls)

    def make_app(self) -> None:
        """The first half of a start, in the caller's thread: an in-memory database may be bound to it."""
        self.state = "starting"
        try:
            made = self.context.run(self.origin.make, self.name)
            self.cluster.check(made.inner)
        except StartupError as error:
            self.state, self.reason = "failed", error.reason
            raise
        except Exception as error:
            self.state, self.reason = "failed", one_line(error)
            raise StartupError(self.name, self.reason) from error
        self._made, self.inner = made, made.inner
        self.wall = WallClock(made.process) if made.process is not None else None

    async def go(self) -> None:
        """The second half, on the cluster's loop."""
        if self._made is None:
            raise ConfigError(f"need make_app() before go(), got {self!r}")
        app = self._made.app
        if self.cluster.is_wsgi:
            self.wsgi = app  # type: ignore[assignment]
        else:
            await self._live(as_asgi(app))
        self.state, self.reason, self.down_at = "up", None, None
        self.memory = self._watched()
        self.cluster.mode(self.name, Mode.READY)

    def _watched(self) -> MemoryWatch | MemoryElsewhere | None:
        if self.process is not None:
            return MemoryElsewhere(self.process)
        space = self.space
        return MemoryWatch(space, self.inner) if space is not None and not space.own else None

    async def _live(self, app: ASGIApp) -> None:
        if self.cluster.own_loops:
            self._portal = Portal(name=f"lbkit-{self.name}")
            app = Hop(app, self._portal)
        self.asgi = app
        lifespan = Lifespan(self.name, app)
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}}
        loop = asyncio.get_running_loop()
        try:
            await self.context.run(loop.create_task, lifespan.startup(scope))
        except StartupError as error:
            self.state, self.reason = "failed", error.reason
            raise
        self._lifespan = lifespan

    async def _stop(self) -> None:
        if not self.listens:
            return
        calls = list(self._calls)
        lifespan, self._lifespan = self._lifespan, None
        self._down(ReplicaReset(f"replica {self.name} was stopped"))
        await self._over(calls)
        try:
            trouble = await asyncio.wait_for(lifespan.shutdown(), LAST_WORDS) if lifespan else None
        except asyncio.TimeoutError:
            trouble = f"its lifespan did not end in {LAST_WORDS:g} s"
        finally:
            self._leave_loop()
        if trouble:
            raise RuntimeError(f"replica {self.name} failed to shut down: {trouble}")

    async def _drain(self, timeout: float) -> int:
        if not self.listens:
            raise ConfigError(f"need a replica that is up to drain it, but {self.name} is {self.state}")
        self.state = "draining"
        self.cluster.mode(self.name, Mode.DRAIN)
        await until(lambda: not self._calls or self.state != "draining", timeout)
        if self.state != "draining":
            return 0
        self.cluster.mode(self.name, Mode.MAINT)
        await self._stop()
        return self.dropped

    async def close(self) -> None:
        """On the cluster's loop: the end of the cluster."""
        await self._stop()
        for task in list(self.abandoned.tasks):
            task.cancel()
        await until(lambda: not self.abandoned.tasks, PATIENCE)

    def _down(self, why: OSError) -> None:
        self.state, self.down_at = "down", self.clock()
        calls = list(self._calls)
        self.dropped = len(calls)
        for call in calls:
            call.kill(why)

    async def _over(self, calls: list[Ongoing]) -> None:
        """The calls that were cut have told their clients. A blocked thread cannot be told."""
        await until(lambda: not any(call in self._calls and call.told for call in calls), PATIENCE)


async def until(settled: Callable[[], bool], timeout: float) -> None:
    deadline = asyncio.get_running_loop().time() + timeout
    while not settled() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 (threads, too)
        await asyncio.sleep(LOOK)


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
