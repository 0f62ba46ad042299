"""Sessions for WSGI apps: they open when they are used, and are kept before the head of the answer leaves."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeVar

from lbkit.errors import ConfigError, SessionError, SessionUnavailable
from lbkit.flow import run
from lbkit.health.outcome import Outcome
from lbkit.sessions.app_sessions import CURRENT, AppSessions, Refusal
from lbkit.sessions.line import Flow, Pause, Step
from lbkit.sessions.options import SessionOptions
from lbkit.sessions.roster import SessionEntry
from lbkit.sessions.session import Session as BareSession
from lbkit.sessions.store import SyncStore
from lbkit.stores import store_from
from lbkit.types import Clock, Environ, ExcInfo, StartResponse, WSGIApp
from lbkit.wsgi.sticky import with_cookie

__all__ = ["Session", "SessionMiddleware", "Sessions"]

KEY = "lbkit.session"

T = TypeVar("T")
Headers = list[tuple[str, str]]


class Session(BareSession):
    """The session of one request. It opens itself, when it is used for the first time."""

    def __init__(self, sessions: Sessions, environ: Environ) -> None:
        self._sessions = sessions
        self._environ = environ

    def save(self) -> None:
        """Keep what has changed now. By itself that happens before the head of the answer leaves."""
        self._drive(self._sessions.flows.save(self))

    def reload(self) -> None:
        """Read again what other requests have written; what this one has changed stays changed."""
        if self._contents is None:
            self._use()
        else:
            self._drive(self._sessions.flows.reload(self))

    @contextmanager
    def lock(self, *, timeout: float = 2.0) -> Iterator[Session]:
        """`with session.lock():` read, change, write, and nobody else with the lock does meanwhile.

        What is read is fresh, and what has changed is kept at the end. Raises SessionLocked if it is not
        free within `timeout` seconds.
        """
        flows = self._sessions.flows
        token = self._drive(flows.lock(self, timeout=timeout))
        keep = False
        try:
            yield self
            keep = True
        finally:
            self._drive(flows.unlock(self, token, keep=keep))

    @property
    def _cookies(self) -> str:
        found: str = self._environ.get("HTTP_COOKIE", "")
        return found

    @property
    def _device(self) -> dict[str, str]:
        return named(self._environ.get("REMOTE_ADDR"), self._environ.get("HTTP_USER_AGENT"))

    @property
    def _on_unavailable(self) -> Literal["503", "anonymous", "raise"]:
        return self._sessions.options.on_unavailable

    def _open(self) -> None:
        self._sessions.drive(self._sessions.flows.load(self))

    def _drive(self, flow: Flow[T]) -> T:
        try:
            done = self._sessions.drive(flow)
        except SessionError as error:
            self._failure = error
            raise
        self._failure = None
        return done


class Sessions(AppSessions):
    """The sessions of one app: what its requests use, and who is logged in where.

    `store` is a URL (`memory://`, `redis://`, `rediss://`, `unix://`, `redis+sentinel://`,
    `redis+cluster://`), a redis client, or a store. `secret_keys` is a list, the newest first.
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
        self.store: SyncStore = store_from(store)
        if inspect.iscoroutinefunction(self.store.close):
            raise ConfigError(f"need a store that blocks for a WSGI app, got {self.store!r}")
        self._introduce(self.store)

    def open(self, environ: Environ) -> Session:
        return Session(self, environ)

    def list(self, user: object) -> list[SessionEntry]:
        """The sessions in which this user is logged in, the one that was used last in front."""
        return self.drive(self.flows.roster.listed(str(user), current=self._own_key()))

    def revoke(self, user: object, *, except_current: bool = False) -> int:
        """Log this user out everywhere, or everywhere else; how many sessions that were."""
        return self.drive(self.flows.roster.revoke(str(user), keep=self._spared(except_current)))

    def revoke_id(self, handle: str, *, user: object | None = None) -> bool:
        """End one session of those that are listed. Give the `user` who asks: it must be theirs."""
        return self.drive(self.flows.roster.revoke_id(handle, user=None if user is None else str(user)))

    def check(self) -> Outcome:
        """A health check, for `lbkit.check("sessions", critical=False)`: it asks the breaker.

        The store is asked only when that is open: where nobody comes, nobody else would find it back.
        """
        if not self.line.breaker.closed:
            with suppress(SessionUnavailable):
                self.drive(self.line.ask("ping"))
        return self._standing()

    def close(self) -> None:
        """Close the connections to the store."""
        self.store.close()

    def conclude_now(self, session: Session) -> None:
        """The answer is over."""
        if self.flows.unfinished(session):
            self.drive(self.conclude(session))

    def drive(self, flow: Generator[Step, Any, T]) -> T:
        return run(flow, self._ask)

    def _ask(self, step: Step) -> Any:
        return time.sleep(step.seconds) if type(step) is Pause else step(self.store)  # type: ignore[operator]


class SessionMiddleware:
    """Puts the session into `environ["lbkit.session"]`. For Flask there is an interface in `lbkit_flask`."""

    def __init__(
        self,
        app: WSGIApp,
        *,
        store: object,
        secret_keys: Iterable[str | bytes] = (),
        options: SessionOptions | None = None,
    ) -> None:
        self.app = app
        self.sessions = (
            store
            if isinstance(store, Sessions)
            else Sessions(store, secret_keys=secret_keys, options=options)
        )

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        session = environ[KEY] = self.sessions.open(environ)
        answer = Answer(self.sessions, session, start_response, environ["REQUEST_METHOD"])
        token = CURRENT.set(session)
        try:
            body = self.app(environ, answer.start_response)
        except SessionError as error:
            refusal = self.sessions.refusal(error)
            if refusal is None or answer.started:
                raise
            return answer.refuse(refusal)
        finally:
            CURRENT.reset(token)
        return answer.around(body)


class Answer:
    """One answer on its way: its head takes the cookie along, or is replaced by a refusal."""

    def __init__(
        self, sessions: Sessions, session: Session, start_response: StartResponse, method: str
    ) -> None:
        self._sessions = sessions
        self._session = session
        self._start_response = start_response
        self._method = method
        self._refusal: Refusal | None = None
        self._body: Iterable[bytes] = ()
        self.started = False

    def start_response(
        self, status: str, headers: Headers, exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        self.started = True
        session = self._session
        self._refusal = self._sessions.drive(self._sessions.depart(session, int(status[:3])))
        if self._refusal is not None:
            self._start(self._refusal)
            return lambda _: None
        if self._sessions.used(session):
            headers = varied(headers)
        if (cookie := self._sessions.cookie_due(session)) is not None:
            headers = with_cookie(status, headers, self._method, cookie)
        if exc_info is None:
            return self._start_response(status, headers)
        return self._start_response(status, headers, exc_info)

    def refuse(self, refusal: Refusal) -> Iterable[bytes]:
        self._start(refusal)
        return [refusal.body]

    def around(self, body: Iterable[bytes]) -> Iterable[bytes]:
        self._body = body
        return self

    def __iter__(self) -> Iterator[bytes]:
        if (refusal := self._refused()) is not None:
            yield refusal.body
            return
        for chunk in self._body:
            # An app that is a generator starts its answer here, and may find that it is refused.
            if (refusal := self._refused()) is not None:
                yield refusal.body
                return
            yield chunk
        self._conclude()

    def close(self) -> None:
        try:
            if (close := getattr(self._body, "close", None)) is not None:
                close()
        finally:
            self._conclude()

    def _refused(self) -> Refusal | None:
        return self._refusal

    def _conclude(self) -> None:
        self._sessions.conclude_now(self._session)

    def _start(self, refusal: Refusal) -> None:
        self._start_response(f"{refusal.status} {refusal.reason}", list(refusal.headers))


def varied(headers: Headers) -> Headers:
    """With `Vary: Cookie`: what was made with a session is not for others."""
    for name, value in headers:
        if name.lower() == "vary" and ("cookie" in value.lower() or value.strip() == "*"):
            return headers
    return [*headers, ("Vary", "Cookie")]


def named(ip: str | None, agent: str | None) -> dict[str, str]:
    """Who is at the other end, as far as it is known; the agent's words cut short."""
    found = {"ip": ip, "agent": agent[:200] if agent else None}
    return {name: value for name, value in found.items() if value}
