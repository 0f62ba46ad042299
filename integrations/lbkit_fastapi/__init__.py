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

from fastapi import FastAPI
from starlette.applications import Starlette

from lbkit.errors import ConfigError
from lbkit_fastapi.schema import document
from lbkit_starlette import LBKit as StarletteLBKit

__all__ = ["LBKit"]


class LBKit(StarletteLBKit):
    """Wires lbkit to a FastAPI app.

    With an app factory: `lbkit = LBKit(version="1.0.0")`, then `lbkit.init_app(app)`.

    `health` takes everything that can be set, in place of `version`:
    `LBKit(app, health=Health(Service(version="1.0.0", kubernetes=True)))`.
    """

    def init_app(self, app: Starlette) -> None:
        """As for Starlette; and the endpoints appear in the app's OpenAPI schema."""
        if not isinstance(app, FastAPI):
            raise ConfigError(f"need a FastAPI app, got {app!r}: for Starlette there is lbkit_starlette")
        super().init_app(app)
        document(app, self.health.service)
