"""lbkit for FastAPI: health endpoints outside of everything else the app does, and in its OpenAPI schema.

from fastapi import FastAPI
from lbkit_fastapi import LBKit

app = FastAPI()
lbkit = LBKit(app, version="1.0.0")

@lbkit.check("database")
async def database():
    await pool.execute("SELECT 1")
"""

from __future__ import annotations

from collections.abc import Iterable

from lbkit import ConfigError, Departure, Health, MissingExtra, Sticky, TrustedProxies
from lbkit.asgi import Sessions
from lbkit.sessions import SessionOptions

try:
    from fastapi import FastAPI
except ModuleNotFoundError as error:
    raise MissingExtra("fastapi", extra="fastapi") from error

from lbkit_fastapi.schema import document
from lbkit_starlette import LBKit as StarletteLBKit
from lbkit_starlette import session

__all__ = ["LBKit", "session"]


class LBKit:
    """Wires lbkit to a FastAPI app.

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
    everything else about it. With `lazy_sessions` it is loaded where it is asked for, by
    `Depends(lbkit_fastapi.session)`, and not for each request that has a cookie. `lbkit.sessions` then lists
    and revokes the sessions of a user.
    """

    def __init__(
        self,
        app: FastAPI | None = None,
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
        self._starlette = StarletteLBKit(
            version=version,
            health=health,
            drain=drain,
            sticky=sticky,
            replica_id=replica_id,
            trusted=trusted,
            sessions=sessions,
            secret_keys=secret_keys,
            session_options=session_options,
            lazy_sessions=lazy_sessions,
        )
        self.replica_id = self._starlette.replica_id
        self.health = self._starlette.health
        self.drain = self._starlette.drain
        self.check = self.health.check
        self.startup_task = self.health.startup_task
        self.on_change = self.health.on_change
        if app is not None:
            self.init_app(app)

    @property
    def sessions(self) -> Sessions:
        """The sessions of this app. Raises ConfigError where there are none."""
        return self._starlette.sessions

    def init_app(self, app: FastAPI) -> None:
        """As for Starlette; and the endpoints appear in the app's OpenAPI schema."""
        if not isinstance(app, FastAPI):
            raise ConfigError(f"need a FastAPI app, got {app!r}: for Starlette there is lbkit_starlette")
        self._starlette.init_app(app)
        app.state.lbkit = self
        document(app, self.health.service)
