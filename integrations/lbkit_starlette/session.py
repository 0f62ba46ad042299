"""The session of a request, loaded and with its own type."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from lbkit.asgi.sessions import Session

__all__ = ["session"]


async def session(connection: HTTPConnection) -> Session:
    """`await session(request)`; in FastAPI `Annotated[Session, Depends(session)]`. In websockets, too."""
    found: Session = connection.scope["session"]
    return await found.load()
