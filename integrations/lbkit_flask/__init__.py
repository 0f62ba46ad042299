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

from typing import cast

from lbkit import ConfigError, Departure, Health, MissingExtra
from lbkit.types import WSGIApp
from lbkit.wsgi import DrainMiddleware, HealthMiddleware

try:
    from flask import Flask
except ModuleNotFoundError as error:
    raise MissingExtra("flask", extra="flask") from error

__all__ = ["LBKit"]


class LBKit:
    """A Flask extension. With an app factory: `lbkit = LBKit(version="1.0.0")`, then `lbkit.init_app(app)`.

    `health` takes everything that can be set, in place of `version`:
    `LBKit(app, health=Health(Service(version="1.0.0", kubernetes=True)))`. `drain` is how the process leaves
    the pool, from the environment unless it is given: `LBKit(app, drain=Departure(DrainTimings(...)))`.
    """

    def __init__(
        self,
        app: Flask | None = None,
        *,
        version: str | None = None,
        health: Health | None = None,
        drain: Departure | None = None,
    ) -> None:
        self.health = Health.of(version=version, health=health)
        self.drain = Departure() if drain is None else drain
        self.drain.speak_for(self.health)
        self.check = self.health.check
        self.startup_task = self.health.startup_task
        self.on_change = self.health.on_change
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Put the endpoints around the app: outside of its hooks, its login and its host check.

        Checks run inside the app's context, so extensions such as Flask-SQLAlchemy work in them.
        """
        if "lbkit" in app.extensions:
            raise ConfigError(f"need one LBKit for each app, got a second one for {app.name}")
        app.extensions["lbkit"] = self
        self.health.surround(app.app_context)
        # Flask's own way for WSGI middleware.
        wrapped = HealthMiddleware(DrainMiddleware(cast(WSGIApp, app.wsgi_app), self.drain), self.health)
        app.wsgi_app = wrapped  # type: ignore[method-assign]
