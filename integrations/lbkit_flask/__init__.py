"""lbkit for Flask: health endpoints outside of everything else the app does.

from typing import cast

from flask import Flask
from lbkit_flask import LBKit

app = Flask(__name__)
lbkit = LBKit(app, version="1.0.0")

@lbkit.check("database")
def database():
    db.session.execute(text("SELECT 1"))
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from lbkit import ConfigError, Departure, Health, MissingExtra, Sticky, TrustedProxies
from lbkit.sessions import SessionOptions
from lbkit.sticky import own_replica_id
from lbkit.types import WSGIApp
from lbkit.wsgi import DrainMiddleware, ForwardedMiddleware, HealthMiddleware, StickyMiddleware

try:
    from flask import Flask
except ModuleNotFoundError as error:
    raise MissingExtra("flask", extra="flask") from error

from lbkit_flask.sessions import RedisSessionInterface, Sessions

__all__ = ["LBKit", "RedisSessionInterface"]


class LBKit:
    """A Flask extension. With an app factory: `lbkit = LBKit(version="1.0.0")`, then `lbkit.init_app(app)`.

    `health` takes everything that can be set, in place of `version`:
    `LBKit(app, health=Health(Service(version="1.0.0", kubernetes=True)))`. `drain` is how the process leaves
    the pool, from the environment unless it is given: `LBKit(app, drain=Departure(DrainTimings(...)))`.

    `sticky` keeps a client with the replica that answered it, by a signed cookie that names it:
    `LBKit(app, sticky=Sticky(secret_keys=[...]), replica_id="web1")`. `replica_id` is what the balancer calls
    this process; by default LBKIT_REPLICA_ID, else the host name. `trusted` are the proxies whose word counts
    for the client's address, scheme and host: `LBKit(app, trusted=TrustedProxies(["10.0.0.0/8"]))`.

    `sessions` is where `flask.session` is kept, so that every replica sees it:
    `LBKit(app, sessions="redis://cache:6379/0", secret_keys=["newest", "older"])`; `session_options` is
    everything else about it. `lbkit.sessions` then lists and revokes the sessions of a user.
    """

    def __init__(
        self,
        app: Flask | None = None,
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
        if (kept := self._sessions) is not None:
            self.check("sessions", critical=False)(kept.check)
            self.health.session_events = lambda: kept.counts
        if app is not None:
            self.init_app(app)

    @property
    def sessions(self) -> Sessions:
        """The sessions of this app. Raises ConfigError where they are the framework's own."""
        return Sessions.there(self._sessions)

    def init_app(self, app: Flask) -> None:
        """Put the endpoints around the app: outside of its hooks, its login and its host check.

        Checks run inside the app's context, so extensions such as Flask-SQLAlchemy work in them.
        """
        if "lbkit" in app.extensions:
            raise ConfigError(f"need one LBKit for each app, got a second one for {app.name}")
        app.extensions["lbkit"] = self
        self.health.surround(app.app_context)
        if self._sessions is not None:
            app.session_interface = RedisSessionInterface(self._sessions)
        # Flask's own way for WSGI middleware.
        wrapped = HealthMiddleware(self._around(cast(WSGIApp, app.wsgi_app)), self.health)
        app.wsgi_app = wrapped  # type: ignore[method-assign]

    def _around(self, app: WSGIApp) -> WSGIApp:
        """Who the client is stands outside of what asks for it. Who may get in is counted further out."""
        if self.sticky is not None:
            app = StickyMiddleware(app, self.sticky, replica_id=self.replica_id)
        if self.trusted is not None:
            app = ForwardedMiddleware(app, self.trusted)
        return DrainMiddleware(app, self.drain)
