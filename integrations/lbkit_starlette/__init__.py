"""lbkit for Starlette: health endpoints outside of everything else the app does.

from starlette.applications import Starlette
from lbkit_starlette import LBKit

app = Starlette(routes=[...])
lbkit = LBKit(app, version="1.0.0")

@lbkit.check("database")
async def database():
    await pool.execute("SELECT 1")
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from lbkit import ConfigError, Departure, Health, MissingExtra, Sticky, TrustedProxies
from lbkit.asgi import (
    DrainMiddleware,
    ForwardedMiddleware,
    HealthMiddleware,
    SessionMiddleware,
    Sessions,
    StickyMiddleware,
)
from lbkit.sessions import SessionOptions
from lbkit.sticky import own_replica_id
from lbkit.types import ASGIApp

try:
    from starlette.applications import Starlette
except ModuleNotFoundError as error:
    raise MissingExtra("starlette", extra="starlette") from error

from lbkit_starlette.session import session

__all__ = ["LBKit", "session"]


class LBKit:
    """Wires lbkit to a Starlette app.

    With an app factory: `lbkit = LBKit(version="1.0.0")`, then `lbkit.init_app(app)`.

    `health` takes everything that can be set, in place of `version`:
    `LBKit(app, health=Health(Service(version="1.0.0", kubernetes=True)))`. `drain` is how the process leaves
    the pool, from the environment unless it is given: `LBKit(app, drain=Departure(DrainTimings(...)))`.

    `sticky` keeps a client with the replica that answered it, by a signed cookie that names it:
    `LBKit(app, sticky=Sticky(secret_keys=[...]), replica_id="web1")`. `replica_id` is what the balancer calls
    this process; by default LBKIT_REPLICA_ID, else the host name. `trusted` are the proxies whose word counts
    for the client's address, scheme and host: `LBKit(app, trusted=TrustedProxies(["10.0.0.0/8"]))`.

    `sessions` is where `request.session` is kept, so that every replica sees it:
    `LBKit(app, sessions="redis://cache:6379/0", secret_keys=["newest", "older"])`; `session_options` is
    everything else about it. With `lazy_sessions` it is loaded by `await lbkit_starlette.session(request)`,
    and not for each request that has a cookie. `lbkit.sessions` lists and revokes the sessions of a user.
    """

    def __init__(
        self,
        app: Starlette | None = None,
        *,
        version: str | None = None,
        health: Health | None = None,
        drain: Departure | None = None,
        sticky: Sticky | None = None,
        replica_id: str | None = None,
        trusted: TrustedProxies | None = None,
        sessions: object = None,
        secret_keys: Iterable[str | bytes] = (),
        session_options: SessionOptions | None = None,
        lazy_sessions: bool = False,
    ) -> None:
        self.replica_id = own_replica_id(replica_id)
        self.sticky = sticky
        self.trusted = trusted
        self.health = Health.of(version=version, health=health, replica_id=replica_id, trusted=trusted)
        self.drain = Departure() if drain is None else drain
        self.drain.speak_for(self.health)
        self.check = self.health.check
        self.startup_task = self.health.startup_task
        self.on_change = self.health.on_change
        self._sessions = Sessions.of(sessions, secret_keys, session_options)
        self._lazy_sessions = lazy_sessions
        if (kept := self._sessions) is not None:
            self.check("sessions", critical=False)(kept.check)
            self.health.session_events = lambda: kept.counts
        if app is not None:
            self.init_app(app)

    @property
    def sessions(self) -> Sessions:
        """The sessions of this app. Raises ConfigError where they are the framework's own."""
        return Sessions.there(self._sessions)

    def init_app(self, app: Starlette) -> None:
        """Put the endpoints around the app: outside of its middleware, whatever is added before or after.

        Raises ConfigError for an app that has served a request or has started its lifespan.
        """
        if getattr(app.state, "lbkit", None) is not None:
            raise ConfigError(f"need one LBKit for each app, got a second one for {app!r}")
        if app.middleware_stack is not None:
            raise ConfigError(
                "the app has already started: call LBKit(app) or init_app(app) where the app is made"
            )
        app.state.lbkit = self
        build = app.build_middleware_stack

        # `add_middleware` cannot put anything outside of what is added later, so we take part when Starlette
        # builds the stack. OpenTelemetry's instrumentation does the same.
        def build_middleware_stack() -> HealthMiddleware:
            return HealthMiddleware(self._around(build()), self.health)

        app.build_middleware_stack = build_middleware_stack  # type: ignore[method-assign]

    def _around(self, app: ASGIApp) -> ASGIApp:
        """Who the client is stands outside of what asks for it. Who may get in is counted further out."""
        if self._sessions is not None:
            load: Literal["cookie", "lazy"] = "lazy" if self._lazy_sessions else "cookie"
            app = SessionMiddleware(app, store=self._sessions, load=load)
        if self.sticky is not None:
            app = StickyMiddleware(app, self.sticky, replica_id=self.replica_id)
        if self.trusted is not None:
            app = ForwardedMiddleware(app, self.trusted)
        return DrainMiddleware(app, self.drain)
