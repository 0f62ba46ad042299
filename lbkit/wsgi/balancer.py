"""The mini balancer as a WSGI app: one door, several replicas behind it.

It hands on the environ, the body and the chunks of the answer, and collects nothing. What it says itself:

==========================================  ==================================================
the replica                                 the client gets
==========================================  ==================================================
raises, or returns, before it answers       502
raises in the middle of its answer          a cut answer: the error goes on to the server
==========================================  ==================================================

Under a profile `lbkit.wsgi.passage` carries the request, and the model of that product decides.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, cast

from lbkit.balancer import Dispatch, KeyedPolicy, Policy, Pool, Replica, ReplicaState, Tried
from lbkit.balancer.affinity import choose
from lbkit.balancer.arrangement import Arrangement, arranged, rules_of
from lbkit.balancer.check import CheckRules
from lbkit.balancer.exchange import Fault, Model, fault_of
from lbkit.balancer.hop import checked_header
from lbkit.balancer.members import Member, address_of, made, make, named
from lbkit.balancer.operated import Operated
from lbkit.balancer.rolling import Restarted, rolling
from lbkit.children import Child
from lbkit.sticky import Stick, Sticky
from lbkit.types import Clock, Environ, ExcInfo, StartResponse, WSGIApp
from lbkit.wsgi.environ import inner_environ, path_of
from lbkit.wsgi.passage import Carrier
from lbkit.wsgi.replica import ChildApp, Runnable, as_wsgi, refused
from lbkit.wsgi.request import EnvironKey
from lbkit.wsgi.sticky import with_cookie
from lbkit.wsgi.upstream import Upstream
from lbkit.wsgi.watch import Watch

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = ["Balancer"]

logger = logging.getLogger("lbkit.balancer")

BAD_GATEWAY = b"502 Bad Gateway: the replica failed before it answered\n"


UNAVAILABLE = b"503 Service Unavailable: no replica takes new clients\n"


class Balancer(Operated[Carrier]):
    """Dispatches each request to one of several replicas of a WSGI app.

    `apps` is a sequence (the replicas are then web1, web2, ...) or a mapping from names to apps, URLs and
    children; `[app] * 3` is one object three times over, and such replicas share all their memory.
    `replica_header` is the response header that names the replica, None for none. `on_dispatch` is
    called at the end of each request and must not raise. With `sticky` a client stays with the replica that
    it landed on: the balancer issues and honours the signed cookie. A replica sees the client's own address
    in REMOTE_ADDR, and X-Forwarded-For, -Proto and -Host as a real balancer adds them.

    With a `profile` it decides as that product does: `policy`, `retry` and the cookie named `sticky` are
    in its words, `weights`, `backups` and `max_conns` (requests inside, 0: no limit) are by name;
    `max_fails` and `fail_timeout` (seconds) take out a replica that fails its requests. A profile may
    also be a model of your own, such as `lbkit.balancer.nginx.Nginx([...])`. `read_timeout`: seconds
    until an answer has to begin, once the request is there. `check`: the path, or the rules, by which
    replicas are asked whether they are well, between `start` and `close`. `slow_start`: seconds in which
    one that comes back gets its weight. `rng` rolls the dice, where the product does. Raises ConfigError
    for what that product does not have.
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
        read_timeout: float | None = None,
        check: str | CheckRules | None = None,
        slow_start: float = 0.0,
        sticky: str | Sticky | None = None,
        replica_header: str | None = "X-Lbkit-Replica",
        on_dispatch: Callable[[Dispatch], object] | None = None,
        rng: Random | None = None,
        allow_linear: bool = False,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
    ) -> None:
        given, header = named(apps), checked_header(replica_header)
        model = arranged(
            {name: address_of(name, app) for name, app in given.items()},
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
        for name, app in given.items():
            if isinstance(app, Child):
                app.called(name)
        members = {name: as_wsgi(app, read_timeout=read_timeout) for name, app in given.items()}
        self.named = {name: [(header, name)] if header is not None else [] for name in members}
        self.pool = Pool(map(Replica, members), policy=policy if not isinstance(policy, str) else None)
        self.replicas: dict[str, Member[WSGIApp]] = {
            state.replica.name: Member(state, members[state.replica.name], refuse=refused)
            for state in self.pool.states
        }
        """A handle for each replica, by its name: `replicas["web1"].stop()`."""

        self.on_dispatch = on_dispatch
        self.clock = clock
        self.wall = wall
        self.stick = Stick(sticky, members) if isinstance(sticky, Sticky) else None
        """Who stays, and how many moved for which reason; None when clients are not sticky."""

        self._asks = self.stick is not None or self.pool.keyed
        self._rules = rules_of(check, profile=profile)
        self._carrier = Carrier(self, model, read_timeout=read_timeout) if model is not None else None
        self._watch = Watch(self, self._rules) if self._rules is not None else None
        self._factory: Callable[[], Runnable] | None = None

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

    def start(self) -> None:
        """Start the replicas that are processes of their own, and the checks.

        The replicas before one that fails are stopped again.
        """
        try:
            for member in self.replicas.values():
                if isinstance(member.own, ChildApp):
                    member.own.start()
        except BaseException:
            self.close()
            raise
        if self._watch is not None:
            self._watch.start()

    def close(self) -> None:
        """Stop the checks and the replicas that are processes of their own; hang up on those at a URL."""
        if self._watch is not None:
            self._watch.stop()
        for member in self.replicas.values():
            if isinstance(member.own, (ChildApp, Upstream)):
                member.own.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def rolling_restart(self, *, delay: float = 0.0, timeout: float = 30.0) -> tuple[Restarted, ...]:
        """Restart one replica after another, and lose no request.

        Each leaves: for `delay` seconds it keeps its bound clients, then it gets nothing; when what is inside
        is done, or `timeout` is over, a fresh app from the factory takes its place (of a process of its own:
        a new process; an app object: the same again; a URL: nothing). Raises StartupError when that fails:
        the replica then stays in maintenance, and the others as they are.
        """
        moves = rolling(self, delay=delay, timeout=timeout)
        try:
            while True:
                move = next(moves)
                if isinstance(move, str):
                    self._replace(move)
                else:
                    time.sleep(move)
        except StopIteration as stop:
            return cast("tuple[Restarted, ...]", stop.value)

    def _replace(self, name: str) -> None:
        member = self.replicas[name]
        if isinstance(member.own, ChildApp):
            member.own.close()
            member.own.start()
        elif self._factory is not None:
            member.replace(as_wsgi(made(self._factory, name)))

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if self._carrier is not None:
            return self._carrier.carry(environ, start_response)
        state, cookie = self._choose(environ) if self._asks else (self.pool.pick(), None)
        if state is None:
            if self.on_dispatch is not None:
                self.on_dispatch(untaken(environ))
            return unavailable(environ, start_response)
        exchange = Exchange(self, state, environ, start_response)
        exchange.set_cookie = cookie
        try:
            exchange.body = self.replicas[state.replica.name].app(inner_environ(environ), exchange.start)
        except Exception as error:
            exchange.error = error  # answered, like one that the body raises, when the server reads
        except BaseException:
            exchange.close()
            raise
        return exchange.answer()

    def _choose(self, environ: Environ) -> tuple[ReplicaState | None, str | None]:
        return choose(self.pool, self.stick, EnvironKey(environ), self.wall())


class Exchange:
    """One request and its answer on their way through. As an iterable: the body of the answer.

    PEP 3333 ends a request at `close()`, but asgiref, Starlette and uvicorn run WSGI apps and never
    call it, so running out counts too. And a body closed unread (HEAD, a client that hung up) never
    enters `__iter__`, so that alone is not enough.
    """

    status: str | None = None
    complete = False
    error: Exception | None = None
    fault: Fault | None = None
    set_cookie: str | None = None
    body: Iterable[bytes] = ()
    _started: tuple[str, list[tuple[str, str]]] | None = None
    _server_write: Callable[[bytes], object] | None = None
    _ended = False

    def __init__(
        self, balancer: Balancer, state: ReplicaState, environ: Environ, start_response: StartResponse
    ) -> None:
        self._balancer = balancer
        self._environ = environ
        self._start_response = start_response
        self._began_at = balancer.clock() if balancer.on_dispatch is not None else 0.0
        self.state = state

    def start(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        """The replica's `start_response`. The server's own is called with the first byte of the body."""
        error = exc_info[1] if exc_info is not None else None
        if error is None and self._started is not None:
            raise RuntimeError("start_response was called a second time without exc_info")
        if error is not None and self._server_write is not None:
            raise error
        self._started = (status, headers)
        return self._write

    def answer(self) -> Iterable[bytes]:
        """What the server gets to read: the app's own list if that is its answer, else this object.

        With a list the replica has nothing left to do, and some servers take the Content-Length
        from a list of one.
        """
        if self._started is None or type(self.body) is not list:
            return self
        try:
            self._begin()
            self.complete = True
        finally:
            self._end()
        return self.body

    def __iter__(self) -> Iterator[bytes]:
        try:
            if self.error is not None:
                raise self.error
            for chunk in self.body:
                if chunk:
                    self._begin()
                    yield chunk
            self._begin()
            self.complete = True
        except Exception as error:
            if self._server_write is not None:
                raise  # half an answer is out: only the server can cut the connection
            yield self._bad_gateway(error)
        finally:
            self._end()

    def _begin(self) -> Callable[[bytes], object]:
        """Hand status and headers to the server, once."""
        if self._server_write is None:
            if self._started is None:
                raise RuntimeError("the app gave a body and never called start_response")
            self.status, headers = self._started
            headers = headers + self._balancer.named[self.state.replica.name]
            if self._balancer.stick is not None:
                headers = self._stuck(self._balancer.stick.sticky.cookie, headers)
            self._server_write = self._start_response(self.status, headers)
        return self._server_write

    def _stuck(self, cookie: str, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The balancer's word is the last: a replica's own route cookie is taken out."""
        own = f"{cookie}="
        headers = [
            (name, value)
            for name, value in headers
            if not (name.lower() == "set-cookie" and value.startswith(own))
        ]
        if self.set_cookie is None:
            return headers
        return with_cookie(self.status or "", headers, self._environ["REQUEST_METHOD"], self.set_cookie)

    def _write(self, data: bytes) -> None:
        self._begin()(data)

    def close(self) -> None:
        """Called by the server at the end, whether the body was read or not."""
        try:
            if close := getattr(self.body, "close", None):
                close()
        finally:
            self._end()

    def _bad_gateway(self, error: Exception) -> bytes:
        self.fault = fault_of(error)
        what = f"{self._environ['REQUEST_METHOD']} {path_of(self._environ)}"
        logger.error("replica %s failed before it answered %s", self.state.replica.name, what, exc_info=error)
        self.set_cookie = None  # nobody is bound to a replica by an answer that it did not give
        length = str(len(BAD_GATEWAY))
        self._started = (
            "502 Bad Gateway",
            [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", length)],
        )
        self._begin()
        self.complete = True
        return BAD_GATEWAY

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._balancer.pool.release(self.state)
        if self._balancer.on_dispatch is not None:
            self._balancer.on_dispatch(self._summary())

    def _summary(self) -> Dispatch:
        seconds = self._balancer.clock() - self._began_at
        status = int(self.status[:3]) if self.status else None
        own = None if self.fault is not None else status
        tried = Tried(replica=self.state.replica.name, status=own, fault=self.fault, seconds=seconds)
        return Dispatch(
            replica=self.state.replica.name,
            client=self._environ.get("REMOTE_ADDR"),
            method=self._environ["REQUEST_METHOD"],
            path=path_of(self._environ),
            status=status,
            complete=self.complete,
            seconds=seconds,
            attempts=(tried,),
        )


def untaken(environ: Environ) -> Dispatch:
    """The line of a request that no replica takes."""
    return Dispatch(
        replica=None,
        client=environ.get("REMOTE_ADDR"),
        method=environ["REQUEST_METHOD"],
        path=path_of(environ),
        status=503,
        complete=True,
        seconds=0.0,
    )


def unavailable(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer when no replica takes the request: each one drains or is out."""
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(UNAVAILABLE)))]
    start_response("503 Service Unavailable", [*headers, ("Retry-After", "1")])
    return [b"" if environ["REQUEST_METHOD"] == "HEAD" else UNAVAILABLE]
