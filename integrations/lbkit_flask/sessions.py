"""Flask's `session`, kept where all replicas see it."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from functools import partial
from typing import Any, TypeVar, cast

from flask import Flask, Request, Response, has_request_context, session
from flask.sessions import SessionInterface, SessionMixin
from werkzeug.exceptions import Conflict, ServiceUnavailable

from lbkit.errors import SessionConflict, SessionUnavailable
from lbkit.sessions import SessionOptions
from lbkit.sessions.app_sessions import Refusal
from lbkit.sticky import kept_private
from lbkit.wsgi.sessions import Session as WSGISession
from lbkit.wsgi.sessions import Sessions as WSGISessions

__all__ = ["RedisSessionInterface", "Session", "Sessions"]

T = TypeVar("T")


class Unavailable(SessionUnavailable, ServiceUnavailable):
    """For Flask this is the answer 503, with the app's own page if it has one."""

    def __init__(self) -> None:
        # What went wrong is for the log, and not for the client.
        ServiceUnavailable.__init__(self, "Sessions cannot be reached. Please try again.", retry_after=1)

    def get_headers(self, *arguments: Any, **named: Any) -> list[tuple[str, str]]:
        return [*super().get_headers(*arguments, **named), ("Cache-Control", "no-store")]


class Changed(SessionConflict, Conflict):
    """For Flask this is the answer 409."""

    def __init__(self, key: str) -> None:
        Conflict.__init__(self, "Another request has changed the session meanwhile. Please try again.")
        self.key = key


class Session(WSGISession, SessionMixin):  # type: ignore[override]  # `new` is no attribute here
    """What `flask.session` stands for in a request."""

    def _open(self) -> None:
        super()._open()
        if self._outage is not None and self._on_unavailable != "raise":
            self._outage = unavailable(self._outage)

    def _drive(self, flow: Generator[Any, Any, T]) -> T:
        try:
            return super()._drive(flow)
        except SessionUnavailable as error:
            if self._on_unavailable == "raise":
                raise
            raise unavailable(error) from error
        except SessionConflict as error:
            raise Changed(error.key) from error


class Sessions(WSGISessions):
    """The sessions of a Flask app: `revoke`, `list`, `revoke_id`, and `counts`."""

    def open(self, environ: dict[str, Any]) -> Session:
        return Session(self, environ)

    def current(self) -> Session | None:
        if not has_request_context():
            return None
        return cast(Session, session._get_current_object())  # type: ignore[attr-defined]


class RedisSessionInterface(SessionInterface):
    """`app.session_interface = RedisSessionInterface("redis://...", secret_keys=[...])`.

    `store` is what `lbkit.wsgi.Sessions` takes, or `Sessions` that exist already.
    """

    def __init__(
        self,
        store: object,
        *,
        secret_keys: Iterable[str | bytes] = (),
        options: SessionOptions | None = None,
    ) -> None:
        if isinstance(store, Sessions):
            self.sessions = store
        else:
            self.sessions = Sessions(store, secret_keys=secret_keys, options=options)

    def open_session(self, app: Flask, request: Request) -> SessionMixin:  # noqa: ARG002
        return Session(self.sessions, request.environ)

    def save_session(self, app: Flask, session: SessionMixin, response: Response) -> None:  # noqa: ARG002
        """Flask calls it when its own hooks are through, before the head of the answer leaves."""
        opened, sessions = cast(Session, session), self.sessions
        if sessions.passes(opened):
            # What is used later, while the body is made, is kept at its end.
            if response.is_streamed:
                response.call_on_close(partial(sessions.conclude_now, opened))
            return
        refusal = sessions.drive(sessions.depart(opened, response.status_code))
        if refusal is not None:
            _replace(response, refusal)
            return
        headers = response.headers
        if sessions.used(opened):
            response.call_on_close(partial(sessions.conclude_now, opened))
            if "Vary" in headers:
                response.vary.add("Cookie")
            else:
                headers["Vary"] = "Cookie"
        if (cookie := sessions.cookie_due(opened)) is not None:
            found, method = headers.get("Cache-Control", ""), opened._environ["REQUEST_METHOD"]
            private = kept_private(method, response.status_code, found, expires="Expires" in headers)
            if private is not None:
                headers["Cache-Control"] = private
            headers.add("Set-Cookie", cookie)


def unavailable(error: SessionUnavailable) -> Unavailable:
    found = Unavailable()
    found.__cause__ = error
    return found


def _replace(response: Response, refusal: Refusal) -> None:
    """The answer is another one now, whatever it was."""
    if (close := getattr(response.response, "close", None)) is not None:
        close()
    response.headers.clear()
    response.headers.extend(refusal.headers)
    response.status = f"{refusal.status} {refusal.reason}"
    response.response = [refusal.body]
