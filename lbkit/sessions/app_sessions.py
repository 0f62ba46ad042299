"""The sessions of one app, but for the waiting: what `Sessions` of `lbkit.wsgi` and of `lbkit.asgi` share.

What the client is told when the store does not answer, by `SessionOptions.on_unavailable`:

==================================  =========================  ==========================================
the request                         "503"                      "anonymous"
==================================  =========================  ==========================================
does not use its session            its answer                 its answer
uses it, and the app fails          503                        its answer: the session was empty
uses it, and the app copes          its answer                 its answer
puts something in, and says "done"  503: that would be untrue  its answer, and a line in the log
==================================  =========================  ==========================================

With "raise" nothing is done about it here. No answer touches the cookie.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import NamedTuple, TypeVar, cast

from lbkit.cookie import signing_keys
from lbkit.errors import ConfigError, LbkitError, SessionConflict, SessionError, SessionUnavailable
from lbkit.health.outcome import Outcome
from lbkit.sessions.breaker import Breaker
from lbkit.sessions.cookie import SessionCookie
from lbkit.sessions.encryption import Encryption
from lbkit.sessions.flows import SessionFlows
from lbkit.sessions.line import Flow, Line
from lbkit.sessions.options import SessionOptions
from lbkit.sessions.session import Session
from lbkit.types import Clock

__all__ = ["CURRENT", "AppSessions", "Refusal"]

S = TypeVar("S", bound="AppSessions")

logger = logging.getLogger("lbkit.sessions")

CURRENT: ContextVar[Session | None] = ContextVar("lbkit_session", default=None)
"""The session of the request that is being answered."""


class Refusal(NamedTuple):
    """What the client gets in place of the app's answer."""

    status: int
    reason: str
    body: bytes
    headers: tuple[tuple[str, str], ...]


def _refusal(status: int, reason: str, why: str, *more: tuple[str, str]) -> Refusal:
    body = f"{status} {reason}: {why}\n".encode()
    headers = (
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        *more,
    )
    return Refusal(status, reason, body, headers)


UNAVAILABLE = _refusal(
    503, "Service Unavailable", "sessions cannot be reached; please try again", ("Retry-After", "1")
)
CONFLICT = _refusal(409, "Conflict", "another request has changed the session meanwhile; please try again")


class AppSessions:
    """`secret_keys`: the newest first; the newest signs, and all of them verify."""

    def __init__(
        self,
        *,
        secret_keys: Iterable[str | bytes],
        options: SessionOptions | None,
        wall: Clock,
        clock: Clock,
    ) -> None:
        self.options = options = options or SessionOptions()
        keys = signing_keys(secret_keys)
        self.cookie = SessionCookie(
            secret_keys=keys,
            name=options.cookie,
            secure=options.secure,
            same_site=options.same_site,
            path=options.path,
            domain=options.domain,
        )
        self.line = Line(clock=clock, breaker=Breaker())
        encryption = Encryption(secret_keys=keys) if options.encrypt else None
        self.flows = SessionFlows(self.cookie, options, line=self.line, wall=wall, encryption=encryption)

    @classmethod
    def of(
        cls: Callable[..., S],
        store: object,
        secret_keys: Iterable[str | bytes],
        options: SessionOptions | None,
    ) -> S | None:
        """Those that are given, or new ones in the store that is given; None for None."""
        if isinstance(store, cast(type, cls)):
            return cast(S, store)
        if store is None:
            if secret_keys or options is not None:
                raise ConfigError(
                    'need sessions, such as sessions="redis://...", for secret_keys and options'
                )
            return None
        return cls(store, secret_keys=secret_keys, options=options)

    @classmethod
    def there(cls: type[S], sessions: S | None) -> S:
        """They, if an app has some. Raises ConfigError if not."""
        if sessions is None:
            raise ConfigError("need sessions='redis://...' in LBKit: this app's are the framework's own")
        return sessions

    def _introduce(self, store: object) -> None:
        """A store of one process wants to know of cookies that another one has given out."""
        self.flows.missed = getattr(store, "missed", None)

    @property
    def counts(self) -> dict[str, int]:
        """How often what has happened in this process: created, rotated, renewed, ended, missed, conflicts,
        unavailable, refused, revocations, lost_gone, lost_unavailable, lost_late."""
        return self.line.counts

    def _standing(self) -> Outcome:
        """Degraded and no worse: all replicas share the store, and would leave the balancer together."""
        if self.line.breaker.closed:
            return Outcome.healthy()
        return Outcome.degraded("the session store does not answer")

    def current(self) -> Session | None:
        """The session of the request that is being answered."""
        return CURRENT.get()

    def passes(self, session: Session) -> bool:
        """Has the app not used its session? Then the head of the answer may leave as it is."""
        unused = session._contents is None and session._outage is None and session._failure is None
        if unused:
            session._departed = True
        return unused

    def used(self, session: Session) -> bool:
        """Was the answer made with what the session holds? Then it is for nobody else."""
        return session._contents is not None

    def cookie_due(self, session: Session) -> str | None:
        """The Set-Cookie that the answer must carry, after `depart`."""
        return session._cookie_due

    def depart(self, session: Session, status: int) -> Flow[Refusal | None]:
        """The head of the answer is about to leave: keep the session, or say what to answer instead."""
        refusal = self._overruled(session, status)
        if refusal is not None or (status >= 500 and not self.options.save_on_error):
            session._void = True
        try:
            if not session._void:
                yield from self.flows.save(session)
        except BaseException as error:
            # What was refused once is not kept behind the client's back.
            session._void = True
            if not isinstance(error, (SessionUnavailable, SessionConflict)):
                raise
            refusal = self._failed(error)
        finally:
            session._departed = True
        return refusal

    def conclude(self, session: Session) -> Flow[None]:
        """The answer is over: keep what is `unfinished`. It is too late to tell anybody."""
        try:
            yield from self.flows.finish(session)
        except LbkitError as error:
            session._void = True
            if session.modified:
                self.line.count("lost_late")
                logger.error("what was put into a session after the answer's head is lost: %s", error)

    def refusal(self, error: SessionError) -> Refusal | None:
        """What to answer when the app has let this error pass."""
        if self.options.on_unavailable != "raise":
            if isinstance(error, SessionUnavailable):
                return UNAVAILABLE
            if isinstance(error, SessionConflict):
                return CONFLICT
        return None

    def _overruled(self, session: Session, status: int) -> Refusal | None:
        if status == 500 and session._failure is not None:
            return self.refusal(session._failure)
        if session._outage is None or not session._outage_told or self.options.on_unavailable != "503":
            return None
        promised = status < 400 and session.modified
        return UNAVAILABLE if status == 500 or promised else None

    def _failed(self, error: SessionError) -> Refusal | None:
        options = self.options
        if isinstance(error, SessionUnavailable):
            if options.on_unavailable == "raise":
                raise error
            logger.error("what a request has put into its session could not be kept: %s", error)
            if options.commit_errors == "log" or options.on_unavailable == "anonymous":
                self.line.count("lost_unavailable")
                return None
        return UNAVAILABLE if isinstance(error, SessionUnavailable) else CONFLICT

    def _own_key(self) -> str | None:
        """What the store calls the session of this request. It need not be loaded for that."""
        session = self.current()
        if session is None or session._loaded is not None:
            return None if session is None else session._key
        presented = self.cookie.read(session._cookies)
        return None if presented is None else presented.key

    def _spared(self, except_current: bool) -> str | None:
        if except_current and self.current() is None:
            raise SessionError("except_current=True is for a request: there is no session now")
        return self._own_key() if except_current else None
