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

from lbkit import ConfigError, Departure, Health, MissingExtra
from lbkit.asgi import DrainMiddleware, HealthMiddleware

try:
    from starlette.applications import Starlette
except ModuleNotFoundError as error:
    raise MissingExtra("starlette", extra="starlette") from error

__all__ = ["LBKit"]


class LBKit:
    """Wires lbkit to a Starlette app.

    With an app factory: `lbkit = LBKit(version="1.0.0")`, then `lbkit.init_app(app)`.

    `health` takes everything that can be set, in place of `version`:
    `LBKit(app, health=Health(Service(version="1.0.0", kubernetes=True)))`. `drain` is how the process leaves
    the pool, from the environment unless it is given: `LBKit(app, drain=Departure(DrainTimings(...)))`.
    """

    def __init__(
        self,
        app: Starlette | None = None,
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
        build, health, drain = app.build_middleware_stack, self.health, self.drain

        # `add_middleware` cannot put anything outside of what is added later, so we take part when Starlette
        # builds the stack. OpenTelemetry's instrumentation does the same.
        def build_middleware_stack() -> HealthMiddleware:
            return HealthMiddleware(DrainMiddleware(build(), drain), health)

        app.build_middleware_stack = build_middleware_stack  # type: ignore[method-assign]
