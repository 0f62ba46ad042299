"""The session as a dependency."""

from __future__ import annotations

from fastapi.requests import HTTPConnection

from lbkit.asgi.sessions import Session

__all__ = ["session"]


async def session(connection: HTTPConnection) -> Session:
    """`session: Annotated[Session, Depends(session)]`: the session, loaded; in websockets, too."""
    found: Session = connection.scope["session"]
    return await found.load()
