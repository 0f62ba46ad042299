"""Sessions for ASGI apps: `request.session` of Starlette and FastAPI, kept before an answer's head leaves.

Nothing can be awaited inside of `request.session["cart"]`, so somebody must have loaded it: the middleware,
for each request with a genuine cookie, or with `load="lazy"` the app, by `await request.session.load()`.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Generator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, TypeVar, cast

from lbkit.asgi.sticky import STARTS, cookies, with_cookie
from lbkit.errors import ConfigError, SessionError, SessionNotLoaded, SessionUnavailable
from lbkit.flow import arun
from lbkit.health.outcome import Outcome
from lbkit.sessions.app_sessions import CURRENT, AppSessions, Refusal
from lbkit.sessions.line import Flow, Last, Pause, Step
from lbkit.sessions.options import SessionOptions
from lbkit.sessions.roster import SessionEntry
from lbkit.sessions.session import Session as BareSession
from lbkit.sessions.store import AsyncStore
from lbkit.stores import astore_from
from lbkit.types import ASGIApp, Clock, Message, Receive, Scope, Send

__all__ = ["Session", "SessionMiddleware", "Sessions"]

T = TypeVar("T")

ACCEPTED = 101
TRY_AGAIN = 1013
VARY = (b"vary", b"Cookie")


class Session(BareSession):
    """The session of one request or websocket."""

    def __init__(self, sessions: Sessions, scope: Scope) -> None:
        self._sessions = sessions
        self._scope = scope

    async def load(self) -> Session:
        """Have the session ready to be used. A second time does nothing. Returns the session itself."""
        if self._contents is None:
            if self._loaded is None and self._outage is None:
                await self._sessions.drive(self._sessions.flows.load(self))
            self._use()
        return self

    async def save(self) -> None:
        """Keep what has changed now: in a websocket after `accept`, that is the way to do it early."""
        try:
            await self._sessions.carry(self._sessions.flows.save(self))
        except SessionError as error:
            self._failure = error
            raise
        self._failure = None

    async def reload(self) -> None:
        """Read again what other requests have written; what this one has changed stays changed."""
        if self._contents is None:
            await self.load()
        else:
            await self._sessions.drive(self._sessions.flows.reload(self))

    @asynccontextmanager
    async def lock(self, *, timeout: float = 2.0) -> AsyncIterator[Session]:
        """`async with session.lock():` read, change, write, and nobody else with the lock does meanwhile.

        What is read is fresh, and what has changed is kept at the end. Raises SessionLocked if it is not
        free within `timeout` seconds.
        """
        await self.load()
        flows = self._sessions.flows
        token = await self._sessions.drive(flows.lock(self, timeout=timeout))
        keep = False
        try:
            yield self
            keep = True
        finally:
            await self._sessions.carry(flows.unlock(self, token, keep=keep), brief=False)

    @property
    def _cookies(self) -> str:
        return cookies(self._scope["headers"])

    @property
    def _device(self) -> dict[str, str]:
        client = self._scope.get("client")
        agent = b"".join(value for name, value in self._scope["headers"] if name == b"user-agent")
        found = {"ip": client[0] if client else "", "agent": agent.decode("latin-1")[:200]}
        return {name: value for name, value in found.items() if value}

    @property
    def _on_unavailable(self) -> Literal["503", "anonymous", "raise"]:
        return self._sessions.options.on_unavailable

    def _open(self) -> None:
        """Without a cookie there is nothing to wait for."""
        flow = self._sessions.flows.load(self)
        try:
            next(flow)
        except StopIteration:
            return
        flow.close()
        raise SessionNotLoaded("the session is not loaded: `await request.session.load()` first")


class Sessions(AppSessions):
    """The sessions of one app: what its requests use, and who is logged in where.

    `store` is a URL (`memory://`, `redis://`, `rediss://`, `unix://`, `redis+sentinel://`,
    `redis+cluster://`), a redis.asyncio client, or a store. `secret_keys` is a list, the newest first.
    """

    def __init__(
        self,
        store: object,
        *,
        secret_keys: Iterable[str | bytes],
        options: SessionOptions | None = None,
        wall: Clock = time.time,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(secret_keys=secret_keys, options=options, wall=wall, clock=clock)
        self.store: AsyncStore = astore_from(store)
        if not inspect.iscoroutinefunction(self.store.close):
            raise ConfigError(f"need a store that is awaited for an ASGI app, got {self.store!r}")
        self._introduce(self.store)
        self._commits: set[asyncio.Task[Any]] = set()

    def open(self, scope: Scope) -> Session:
        return Session(self, scope)

    async def list(self, user: object) -> list[SessionEntry]:
        """The sessions in which this user is logged in, the one that was used last in front."""
        return await self.drive(self.flows.roster.listed(str(user), current=self._own_key()))

    async def revoke(self, user: object, *, except_current: bool = False) -> int:
        """Log this user out everywhere, or everywhere else; how many sessions that were."""
        return await self.drive(self.flows.roster.revoke(str(user), keep=self._spared(except_current)))

    async def revoke_id(self, handle: str, *, user: object | None = None) -> bool:
        """End one session of those that are listed. Give the `user` who asks: it must be theirs."""
        asker = None if user is None else str(user)
        return await self.drive(self.flows.roster.revoke_id(handle, user=asker))

    async def check(self) -> Outcome:
        """A health check, for `lbkit.check("sessions", critical=False)`: it asks the breaker.

        The store is asked only when that is open: where nobody comes, nobody else would find it back.
        """
        if not self.line.breaker.closed:
            with suppress(SessionUnavailable):
                await self.drive(self.line.ask("ping"))
        return self._standing()

    async def close(self) -> None:
        """Let what is being kept be kept, then close the connections to the store."""
        if self._commits:
            await asyncio.wait(self._commits, timeout=self.options.commit_deadline)
        await self.store.close()

    async def drive(self, flow: Generator[Step, Any, T]) -> T:
        return await arun(flow, self._ask)

    async def carry(self, flow: Flow[T], *, brief: bool = True) -> T:
        """As `drive`, to its end even if the request is cancelled: a client that leaves undoes nothing."""
        try:
            first = next(flow)
        except StopIteration as end:  # most requests have nothing to keep, and need no task for it
            return end.value  # type: ignore[no-any-return]
        if brief and self.store.detached and isinstance(first, Last):
            return await arun(flow, self._ask, first=first)
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._commits.add(asyncio.create_task(self._carried(flow, first, done)))
        return await done

    async def _carried(self, flow: Flow[T], first: Step, done: asyncio.Future[T]) -> None:
        """A task of its own. `done` is cancelled with the request; this is not."""
        task = cast(asyncio.Task[None], asyncio.current_task())
        timer = task.get_loop().call_later(self.options.commit_deadline, task.cancel)
        try:
            result = await arun(flow, self._ask, first=first)
        except asyncio.CancelledError:
            late = SessionUnavailable("the session store did not answer before the deadline")
            if not done.done():
                done.set_exception(late)
        except BaseException as error:
            if not done.done():
                done.set_exception(error)
        else:
            if not done.done():
                done.set_result(result)
        finally:
            timer.cancel()
            self._commits.discard(task)

    def _ask(self, step: Step) -> Awaitable[Any]:
        return asyncio.sleep(step.seconds) if type(step) is Pause else step(self.store)  # type: ignore[operator]


class SessionMiddleware:
    """Puts the session into `scope["session"]`, where Starlette's `request.session` finds it.

    `load="cookie"` loads it for each request that comes with a genuine cookie, but for the paths in
    `exclude` and what is below them; `load="lazy"` leaves that to `await request.session.load()`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: object,
        secret_keys: Iterable[str | bytes] = (),
        options: SessionOptions | None = None,
        load: Literal["cookie", "lazy"] = "cookie",
        exclude: Sequence[str] = (),
    ) -> None:
        if load not in ("cookie", "lazy"):
            raise ConfigError(f"need load 'cookie' or 'lazy', got {load!r}")
        if isinstance(exclude, str):
            raise ConfigError(f"need exclude as a list of paths, got {exclude!r}")
        self.app = app
        self.sessions = (
            store
            if isinstance(store, Sessions)
            else Sessions(store, secret_keys=secret_keys, options=options)
        )
        self._eager = load == "cookie"
        self._exact = frozenset(exclude)
        self._below = tuple(f"{path}/" for path in exclude)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._live(scope, receive, send)
            return
        sessions = self.sessions
        session = scope["session"] = Session(sessions, scope)
        if self._eager and not self._excluded(scope["path"]):
            await sessions.drive(sessions.flows.load(session))
        answer = Answer(sessions, session, send, scope)
        token = CURRENT.set(session)
        try:
            await self.app(scope, receive, answer.send)
        except Exception as error:
            session._void = session._void or not sessions.options.save_on_error
            if not (isinstance(error, SessionError) and await answer.refuse_for(error)):
                raise
        finally:
            CURRENT.reset(token)
            # An app that has failed before it answered gets no new session: there is no cookie for it.
            if (session._departed or session._key is not None) and sessions.flows.unfinished(session):
                session._departed = True
                await sessions.carry(sessions.conclude(session))

    def _excluded(self, path: str) -> bool:
        return path in self._exact or path.startswith(self._below)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        finally:
            if scope["type"] == "lifespan":
                await self.sessions.close()


class Answer:
    """One answer on its way: its head takes the cookie along, or is replaced by a refusal."""

    __slots__ = ("_refused", "_scope", "_send", "_session", "_sessions", "_streams")

    def __init__(self, sessions: Sessions, session: Session, send: Send, scope: Scope) -> None:
        self._sessions = sessions
        self._session = session
        self._send = send
        self._scope = scope
        self._refused = self._streams = False

    def send(self, message: Message) -> Awaitable[None]:
        """Not a coroutine: for a request that has not used its session it saves a frame."""
        session = self._session
        if session._contents is None and session._outage is None and session._failure is None:
            if message["type"] in STARTS:
                session._departed = True
            return self._send(message)
        return self._carry(message)

    async def refuse_for(self, error: SessionError) -> bool:
        """Answer for an app that has let the error pass. False where it is too late for that, or not ours."""
        if self._refused:
            return True
        refusal = self._sessions.refusal(error)
        if refusal is None or self._session._departed:
            return False
        await self._refuse(refusal)
        return True

    async def _carry(self, message: Message) -> None:
        if self._refused:
            return
        kind = message["type"]
        if kind in STARTS:
            status = message.get("status", ACCEPTED)
            refusal = await self._sessions.carry(self._sessions.depart(self._session, status))
            if refusal is not None:
                await self._refuse(refusal)
                return
            message = self._told(message)
        elif kind == "http.response.body":
            await self._body(message)
        await self._send(message)

    async def _body(self, message: Message) -> None:
        """Before the last piece, so that a client who has it all also finds what was kept."""
        if message.get("more_body"):
            self._streams = True
        elif self._streams and self._session.modified:
            await self._sessions.carry(self._sessions.conclude(self._session))

    async def _refuse(self, refusal: Refusal) -> None:
        self._refused = self._session._departed = True
        kind = "http.response"
        if self._scope["type"] == "websocket":
            kind = "websocket.http.response"
            if kind not in self._scope.get("extensions", ()):  # the server can only say 403
                await self._send({"type": "websocket.close", "code": TRY_AGAIN})
                return
        headers = [(name.lower().encode(), value.encode()) for name, value in refusal.headers]
        await self._send({"type": f"{kind}.start", "status": refusal.status, "headers": headers})
        await self._send({"type": f"{kind}.body", "body": refusal.body})

    def _told(self, message: Message) -> Message:
        session = self._session
        headers = message.get("headers", ())
        if session._contents is not None and not _varies(headers):
            message = {**message, "headers": [*headers, VARY]}
        if session._cookie_due is not None:
            message = with_cookie(message, self._scope.get("method", "GET"), session._cookie_due)
        return message


def _varies(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Does the answer say already that it is made for one cookie?"""
    for name, value in headers:
        if name.lower() == b"vary" and (b"cookie" in value.lower() or value.strip() == b"*"):
            return True
    return False
