"""A cluster: several replicas of an app behind lbkit's balancer, in this process, to be broken on purpose.

    with Cluster("shop:create_app()", replicas=3) as cluster:
        client = cluster.client()
        client.post("/cart", json={"sku": 1})
        cluster[cluster.trace[-1].replica].kill()
        assert client.get("/cart").json["items"] == [1]
        print(cluster.trace.table())

ASGI replicas live on a loop in a thread of the cluster's own, so that plain functions and coroutines of any
loop can use it alike. WSGI replicas run in the thread of whoever asks.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from functools import cached_property
from random import Random
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from lbkit import asgi, wsgi
from lbkit.asgi.bridge import WSGIBridge
from lbkit.asgi.lifespan import Lifespan
from lbkit.balancer import KeyedPolicy, Mode, Policy
from lbkit.balancer.arrangement import Arrangement
from lbkit.balancer.check import CheckRules
from lbkit.balancer.members import name_of
from lbkit.errors import ConfigError, StartupError
from lbkit.interface import Interface, interface_of
from lbkit.sticky import Sticky
from lbkit.testkit.asgi import Door
from lbkit.testkit.chaos import Chaos
from lbkit.testkit.client import Visitor, aclient, client
from lbkit.testkit.faults import Fault, Faults, Injection
from lbkit.testkit.load import Load
from lbkit.testkit.origin import HOOKS, App, Apps, Origin, origin_of, origins
from lbkit.testkit.partition import NETWORK
from lbkit.testkit.portal import Portal
from lbkit.testkit.replica import ClusterReplica
from lbkit.testkit.retry import OUT, may_retry
from lbkit.testkit.row import Row
from lbkit.testkit.server_profile import profile_of
from lbkit.testkit.trace import Trace
from lbkit.testkit.watching import FileWatch
from lbkit.testkit.wsgi import Door as WSGIDoor
from lbkit.types import ASGIApp, Clock, WSGIApp

__all__ = ["Cluster"]

T = TypeVar("T")

Hook: TypeAlias = Callable[[Row], Awaitable[object]]


class Cluster:
    """Replicas web1, web2, ... of an app behind a balancer. Use it as a context manager, `async` or not.

    `app` is a recipe (`"shop:create_app()"`, `"shop/app.py"`), a factory, or app objects: a sequence of them
    or a mapping from names. Only a recipe gives each replica module globals of its own: `isolation` and
    `private` say how far that goes. An object cannot be made again, and keeps its memory over a restart.
    `timeout` is the balancer's patience in seconds with a silent replica. `seed` makes chance repeatable.

    With a `profile` such as "nginx" the balancer decides as that one does, over failures and retries as well,
    and `policy` and `sticky` are in its words. Without one it asks the next replica when one refuses, or
    fails a request that may be repeated; a replica that has refused is left alone for a second. `check`, such
    as "/health", has the balancer ask each replica whether it may get requests. With `degraded` it is enough
    that one replica starts. ASGI replicas share a loop, so that code which blocks it blocks them all; with
    `own_loops` each has one in a thread of its own, and a request takes longer by two hops.

    `server_profile` is the server that an ASGI app meets when its client has left: "strict", as the
    specification has it, "uvicorn", "hypercorn" or "granian". A process of its own has a real uvicorn.
    """

    def __init__(
        self,
        app: Apps,
        *,
        replicas: int = 3,
        profile: str | None = None,
        policy: str | Policy | KeyedPolicy | None = None,
        sticky: str | Sticky | None = None,
        check: str | CheckRules | None = None,
        isolation: str = "module",
        private: Iterable[str] = (),
        timeout: float = 5.0,
        seed: int | None = None,
        degraded: bool = False,
        own_loops: bool = False,
        server_profile: str | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        if not timeout > 0:
            raise ConfigError(f"need timeout > 0, got {timeout!r}")
        self.timeout = timeout
        self.seed = secrets.randbelow(1_000_000) if seed is None else seed
        self.rng = Random(self.seed)  # noqa: S311 (faults, not secrets)
        self.faults = Faults()
        """Those that may hit any replica."""

        self.hooks: list[Hook] = []
        """Awaited with the row of each request before it is given to the balancer."""

        self.profile = profile
        self._arrangement: Arrangement = {"profile": profile, "policy": policy, "sticky": sticky}
        self._arrangement |= {"check": check, "rng": self.rng}
        self._arrangement |= {"read_timeout": None}  # a silent replica is given up by us
        self._degraded = degraded
        self.own_loops = own_loops
        self.server_profile = profile_of(server_profile, isolation=isolation)
        self._checks: Lifespan | None = None
        began_at = clock()
        self.clock: Clock = lambda: clock() - began_at
        self.trace = Trace(epoch=time.time())
        self._isolation, self._private = isolation, tuple(private)
        self._origins, self._new = origins(app, replicas, isolation=isolation, private=self._private)
        self.interface: Interface | None = None
        self.balancer: Any = None
        self.replicas: dict[str, ClusterReplica] = {}
        """By their names. Empty until the cluster is started."""

        self.files = FileWatch(self)
        """Files that one replica wrote and another one read."""

        self._clients = 0
        self._out: dict[str, float] = {}
        self._closing: list[Callable[[], object]] = []

    # Beginning and end.

    def start(self) -> Cluster:
        """Start all replicas. Raises StartupError, with the name of the one that failed."""
        if self.replicas:
            raise ConfigError("need a cluster that was not started before: make another one")
        self.portal = Portal(name="lbkit-cluster")
        self.files.start()
        HOOKS.enter()
        NETWORK.watch()
        try:
            self._grow(self._origins)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Shut all replicas down, and end what still runs."""
        self.files.stop()
        while self._closing:
            self._closing.pop()()
        if self.portal.closed:
            return
        try:
            self._stop_checks()
            self.run(self._close())
        finally:
            self.portal.close()
            NETWORK.unwatch()
            HOOKS.leave()

    async def _close(self) -> None:
        for replica in self.replicas.values():
            await replica.close()

    def __enter__(self) -> Cluster:
        return self.start()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Cluster:
        # In a thread, because a replica's lifespan may need the loop that we are on.
        return await asyncio.get_running_loop().run_in_executor(None, self.start)

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    def _grow(self, origins: Mapping[str, Origin]) -> None:
        grown = [ClusterReplica(self, name, origin) for name, origin in origins.items()]
        for replica in grown:
            self.replicas[replica.name] = replica
            self._make(replica)
        made = [replica for replica in grown if replica.inner is not None]
        if not made:
            raise StartupError(grown[0].name, grown[0].reason or "none started")
        if self.interface is None:
            self.interface = interface_of(made[0].inner)
        self._balance()
        for replica in grown:
            self._go(replica)
        if not any(replica.listens for replica in self):
            raise StartupError(grown[0].name, grown[0].reason or "none started")

    def _go(self, replica: ClusterReplica) -> None:
        try:
            if replica.state != "failed":
                self.run(replica.go())
        except StartupError:
            if not self._degraded:
                raise
        if not replica.listens:
            self.mode(replica.name, Mode.MAINT)

    def _make(self, replica: ClusterReplica) -> None:
        try:
            replica.make_app()
        except StartupError:
            if not self._degraded:
                raise

    def _balance(self) -> None:
        """The balancer over the replicas that there are now."""
        make = wsgi.Balancer if self.is_wsgi else asgi.Balancer
        upstreams = {name: replica.upstream for name, replica in self.replicas.items()}
        states = self.balancer.pool.states if self.balancer is not None else ()
        modes = {state.replica.name: state.mode for state in states}
        self._stop_checks()
        self.balancer = make(upstreams, **self._arrangement)
        for name in upstreams.keys() & modes.keys():
            self.mode(name, modes[name])
        if self._arrangement["check"] is not None:
            self._start_checks()

    def _start_checks(self) -> None:
        if self.is_wsgi:
            self.balancer.start()
        else:
            self._checks = Lifespan("balancer", self.balancer)
            self.run(self._checks.startup({"type": "lifespan", "asgi": {"version": "3.0"}}))

    def _stop_checks(self) -> None:
        checks, self._checks = self._checks, None
        if checks is not None:
            self.run(checks.shutdown())
        elif self.is_wsgi and self.balancer is not None:
            self.balancer.close()

    # What stands here.

    @property
    def is_wsgi(self) -> bool:
        return self.interface is Interface.WSGI

    @property
    def app(self) -> Any:
        """The cluster as an app of the kind that its replicas are: WSGI or ASGI."""
        return self.wsgi if self.is_wsgi else self.asgi

    @cached_property
    def asgi(self) -> ASGIApp:
        """The cluster as an ASGI app, whatever its replicas are."""
        return WSGIBridge(self.wsgi) if self.is_wsgi else Door(self)

    @cached_property
    def wsgi(self) -> WSGIApp:
        """The cluster as a WSGI app. Refused for ASGI replicas."""
        if not self.is_wsgi:
            raise ConfigError("need WSGI replicas for a WSGI app, but these are ASGI: use cluster.asgi")
        return WSGIDoor(self)

    def __getitem__(self, name: str) -> ClusterReplica:
        try:
            return self.replicas[name]
        except KeyError:
            names = ", ".join(self.replicas) or "none: the cluster is not started"
            raise ConfigError(f"need the name of a replica ({names}), got {name!r}") from None

    def __iter__(self) -> Iterator[ClusterReplica]:
        return iter(list(self.replicas.values()))

    def __len__(self) -> int:
        return len(self.replicas)

    def __repr__(self) -> str:
        return f"<Cluster {', '.join(f'{each.name} {each.state}' for each in self)}>"

    # Clients.

    def client(self, **options: Any) -> Any:
        """A sync client with cookies of its own: Flask's for a Flask app, Starlette's TestClient for ASGI.

        `client.on("web2")` is a context in which it reaches that replica only; `client.ws(path)` opens a
        websocket, `client.ws(path, replica="web2")` on that one.
        """
        return client(self, self._visitor(), **options)

    def aclient(self, **options: Any) -> Any:
        """An `httpx.AsyncClient` with cookies of its own."""
        return aclient(self, self._visitor(), **options)

    def _visitor(self) -> Visitor:
        self._clients += 1
        return Visitor(self, f"client{self._clients}")

    def serve(self) -> str:
        """Listen on a free port of 127.0.0.1 until the cluster is closed. Returns the URL. Needs uvicorn."""
        from lbkit.testkit.server import served

        context = served(self.asgi, self.portal)
        url = context.__enter__()
        self.on_close(lambda: context.__exit__(None, None, None))
        return url

    def on_close(self, call: Callable[[], object]) -> None:
        """Have this called at the end, before the replicas are shut down."""
        self._closing.append(call)

    def load(self, call: Callable[..., Any], *arguments: Any, rate: float = 20.0, **options: Any) -> Load:
        """A context in which `call(*arguments)`, async or not, happens `rate` times a second."""
        return Load(self, call, arguments, options, rate=rate)

    # What goes wrong.

    def inject(self, fault: Fault, **which: Any) -> Injection:
        """Have any replica go wrong: see `ClusterReplica.inject`."""
        return self.faults.add(Injection(fault, self.clock(), **which))

    def chaos(self, *, seed: int | None = None, **rates: Any) -> Chaos:
        """A context in which requests are hit at random: `chaos(kill=0.02, slow=0.1, seed=7)`.

        The seed is printed when the block fails, and with it all happens again. A killed replica is started
        again after a few requests, and the last one that is up is spared.
        """
        return Chaos(self, seed=seed, rates=rates)

    def heal(self) -> None:
        """Take all faults away, and start what is down."""
        self.faults.clear()
        for replica in self:
            replica.heal()

    def scale(self, replicas: int) -> None:
        """Have so many replicas: new ones are started, the last ones drained and taken away."""
        if replicas < 1:
            raise ConfigError(f"need replicas >= 1, got replicas={replicas}")
        if self._new is None:
            raise ConfigError("need a recipe or a factory to scale: an app object cannot be made again")
        for replica in list(self)[replicas:]:
            if replica.listens:
                replica.drain()
            del self.replicas[replica.name]
        new = {name_of(number): self._new for number in range(len(self) + 1, replicas + 1)}
        if new:
            self._grow(new)
        else:
            self._balance()

    def rolling_restart(self, *, drain: float = 10.0) -> None:
        """Drain, stop and start each replica in turn, with a fresh app. `drain`: seconds for those inside."""
        for replica in self:
            replica.deploy(replica.origin, timeout=drain)

    def deploy(self, app: str | Callable[[], App], *, only: Iterable[str] = (), drain: float = 10.0) -> None:
        """Roll out another version; `only` to these replicas, and the versions are mixed."""
        origin = origin_of(app, isolation=self._isolation, private=self._private)
        for replica in [self[name] for name in only] or list(self):
            replica.deploy(origin, timeout=drain)

    # For the replicas.

    def check(self, app: object) -> None:
        """Raises ConfigError for what is no app, or not of the kind that the others are."""
        kind = interface_of(app)
        if self.interface is not None and self.interface is not kind:
            rule = f"need {self.interface.value} apps like the others"
            raise ConfigError(f"{rule}, got the {kind.value} app {app!r}")

    def mode(self, name: str, mode: Mode) -> None:
        """What the operator of the balancer wants of this replica."""
        self._out.pop(name, None)
        verbs = {Mode.READY: "ready", Mode.DRAIN: "drain", Mode.MAINT: "maintain"}
        getattr(self.balancer, verbs[mode])(name)

    def refused_by(self, name: str) -> None:
        """Leave it alone for a while, where no profile does."""
        if self.profile is not None:
            return
        self.mode(name, Mode.MAINT)
        self._out[name] = self.clock() + OUT

    def try_again(self) -> None:
        """Give those another chance that were left alone for long enough."""
        for name in [name for name, until in self._out.items() if self.clock() >= until]:
            self.mode(name, Mode.DRAIN if self[name].state == "draining" else Mode.READY)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it on the cluster's loop, and wait."""
        return self.portal.call(work)

    async def there(self, work: Coroutine[Any, Any, T]) -> T:
        """The same, for those who wait on a loop."""
        if self.portal.here:
            return await work
        return await asyncio.wrap_future(self.portal.submit(work))

    def may_retry(self, row: Row, *, repeatable: bool) -> bool:
        """Whether the next replica is asked; under a profile the balancer knows."""
        return self.profile is None and may_retry(row, replicas=len(self), repeatable=repeatable)

    async def before(self, row: Row) -> None:
        """What has to happen before a request is given to the balancer."""
        for hook in list(self.hooks):
            await hook(row)
