"""The mini balancer as an ASGI app: one door, several replicas behind it.

It hands messages on and never collects them, so bodies stream both ways. A disconnect and a
cancellation reach the replica as the server raised them; a background task runs inside the
replica's own call. What it says itself:

==========================================  ==================================================
the replica                                 the client gets
==========================================  ==================================================
raises, or returns, before it answers       502 (a websocket: 502 or 403, as the server can)
raises in the middle of its answer          a cut answer: the error goes on to the server
==========================================  ==================================================

Under a profile `lbkit.asgi.passage` carries the request, and the model of that product decides.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import TYPE_CHECKING, cast

from lbkit.asgi.exchange import Cookie, Exchange, ScopeKey, inner_scope, unavailable, untaken
from lbkit.asgi.lifespan import Lifespans
from lbkit.asgi.passage import Carrier
from lbkit.asgi.replica import ASGIMember, Runnable, as_asgi
from lbkit.asgi.watch import Watch
from lbkit.balancer import Dispatch, KeyedPolicy, Policy, Pool, Replica, ReplicaState
from lbkit.balancer.affinity import choose
from lbkit.balancer.arrangement import Arrangement, arranged, rules_of
from lbkit.balancer.check import CheckRules
from lbkit.balancer.exchange import Model
from lbkit.balancer.hop import checked_header
from lbkit.balancer.members import address_of, made, make, named
from lbkit.balancer.operated import Operated
from lbkit.balancer.rolling import Restarted, rolling
from lbkit.sticky import Stick, Sticky
from lbkit.types import Clock, Receive, Scope, Send

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Balancer"]

logger = logging.getLogger("lbkit.balancer")


class Balancer(Operated[Carrier]):
    """Dispatches each request to one of several replicas of an app, ASGI or WSGI.

    `apps` is a sequence (the replicas are then web1, web2, ...) or a mapping from names to apps, URLs and
    children; `[app] * 3` is one object three times over, and such replicas share all their memory.
    `replica_header` is the response header that names the replica, None for none. `on_dispatch` is
    called at the end of each request and must not raise. With `sticky` a client stays with the replica that
    it landed on: the balancer issues and honours the signed cookie. A replica sees the client's own address
    in `scope["client"]`, and X-Forwarded-For, -Proto and -Host as a real balancer adds them.

    With a `profile` it decides as that product does: `policy`, `retry` and the cookie named `sticky` are
    in its words, `weights`, `backups` and `max_conns` (requests inside, 0: no limit) are by name;
    `max_fails` and `fail_timeout` (seconds) take out a replica that fails its requests. A profile may
    also be a model of your own, such as `lbkit.balancer.nginx.Nginx([...])`. `read_timeout`: seconds
    until an answer has to begin, once the request is there. `check`: the path, or the rules, by which
    replicas are asked whether they are well, while the lifespan lasts. `slow_start`: seconds in which one
    that comes back gets its weight. `rng` rolls the dice, where the product does. Raises ConfigError for
    what that product does not have.
    """

    def __init__(
        self,
        apps: Mapping[str, Runnable] | Iterable[Runnable],
        *,
        profile: str | Model | None = None,
        policy: str | Policy | KeyedPolicy | None = None,
        weights: Mapping[str, int] | None = None,
        backups: Iterable[str] = (),
        max_conns: int | Mapping[str, int] = 0,
        max_fails: int | None = None,
        fail_timeout: float | None = None,
        retry: str = "",
        read_timeout: float | None = 60.0,
        check: str | CheckRules | None = None,
        slow_start: float = 0.0,
        sticky: str | Sticky | None = None,
        replica_header: str | None = "x-lbkit-replica",
        on_dispatch: Callable[[Dispatch], object] | None = None,
        rng: Random | None = None,
        allow_linear: bool = False,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
    ) -> None:
        members, header = named(apps), checked_header(replica_header)
        model = arranged(
            {name: address_of(name, app) for name, app in members.items()},
            profile=profile,
            policy=policy,
            weights=weights,
            backups=backups,
            max_conns=max_conns,
            max_fails=max_fails,
            fail_timeout=fail_timeout,
            retry=retry,
            slow_start=slow_start,
            sticky=sticky,
            rng=rng,
            allow_linear=allow_linear,
        )
        own = policy if not isinstance(policy, str) else None
        self.pool = Pool(map(Replica, members), policy=own)
        self.on_dispatch = on_dispatch
        self.clock = clock
        self.wall = wall
        self.stick = Stick(sticky, members) if isinstance(sticky, Sticky) else None
        """Who stays, and how many moved for which reason; None when clients are not sticky."""

        self.replicas = {
            state.replica.name: ASGIMember(state, members[state.replica.name], header)
            for state in self.pool.states
        }
        """A handle for each replica, by its name: `replicas["web1"].stop()`."""

        self._asks = self.stick is not None or self.pool.keyed
        self._rules = rules_of(check, profile=profile)
        self._carrier = Carrier(self, model, read_timeout=read_timeout) if model is not None else None
        self._watch = Watch(self, self._rules) if self._rules is not None else None
        self._factory: Callable[[], Runnable] | None = None
        self._scope: Scope | None = None

    @classmethod
    def from_factory(
        cls,
        factory: Callable[[], Runnable],
        *,
        replicas: int = 3,
        **arrangement: Unpack[Arrangement],
    ) -> Balancer:
        """A fresh app for each replica. When the factory raises: StartupError with the replica's name."""
        balancer = cls(make(factory, replicas=replicas), **arrangement)
        balancer._factory = factory
        return balancer

    async def rolling_restart(self, *, delay: float = 0.0, timeout: float = 30.0) -> tuple[Restarted, ...]:
        """Restart one replica after another, and lose no request.

        Each leaves: for `delay` seconds it keeps its bound clients, then it gets nothing; when what is inside
        is done, or `timeout` is over, its lifespan ends and that of a fresh app from the factory begins (of a
        process of its own: a new process; an app object: the same again; a URL: nothing). Raises StartupError
        when that fails: the replica then stays in maintenance, and the others as they are.
        """
        moves = rolling(self, delay=delay, timeout=timeout)
        try:
            while True:
                move = next(moves)
                if isinstance(move, str):
                    await self._replace(move)
                else:
                    await asyncio.sleep(move)
        except StopIteration as stop:
            return cast("tuple[Restarted, ...]", stop.value)

    async def _replace(self, name: str) -> None:
        member = self.replicas[name]
        if reason := await member.lifespan.shutdown():
            logger.error("replica %s failed to shut down: %s", name, reason)
        member.replace(as_asgi(made(self._factory, name)) if self._factory is not None else member.own)
        if self._scope is not None:
            await member.lifespan.startup(self._scope)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        if self._carrier is not None:
            await self._carrier.carry(scope, receive, send)
            return
        began_at = self.clock() if self.on_dispatch is not None else 0.0
        state, cookie = self._choose(scope) if self._asks else (self.pool.pick(), None)
        if state is None:
            await unavailable(scope, send)
            if self.on_dispatch is not None:
                self.on_dispatch(untaken(scope))
            return
        member = self.replicas[state.replica.name]
        exchange = Exchange(receive, send, member)
        if self.stick is not None:
            exchange.cookie = Cookie(self.stick.sticky.cookie, scope, cookie)
        try:
            await member.app(inner_scope(scope, member.lifespan.state), exchange.receive, exchange.send)
        except Exception as error:
            if exchange.status is not None:
                raise  # half an answer is out: only the server can cut the connection
            await exchange.bad_gateway(scope, error)
        else:
            if exchange.status is None:
                await exchange.bad_gateway(scope, None)
        finally:
            self.pool.release(state)
            if self.on_dispatch is not None:
                self.on_dispatch(exchange.summary(scope, self.clock() - began_at))

    def _choose(self, scope: Scope) -> tuple[ReplicaState | None, str | None]:
        return choose(self.pool, self.stick, ScopeKey(scope), self.wall())

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        lifespans = Lifespans(lambda: {name: each.lifespan for name, each in self.replicas.items()})
        await lifespans.live(
            scope, receive, send, beside=self._watch.run if self._watch is not None else None
        )
