"""What an ASGI app meets of its server when its client has left. Servers differ, and from the specification.

===========  ===================  ================  ======================  =====================
profile      http: spec_version   a send after it   websocket: version      a send after it
===========  ===================  ================  ======================  =====================
`strict`     2.4                  OSError           2.4                     OSError
`uvicorn`    2.3                  is dropped        2.4                     OSError
`hypercorn`  2.1                  is dropped        2.3                     is dropped
`granian`    2.3                  is dropped        2.3                     is dropped
===========  ===================  ================  ======================  =====================

Apps look at the version: below 2.4 Starlette's StreamingResponse listens for the disconnect and is cancelled,
from there on it counts on the OSError. `receive` says that the client has left, whoever serves.
"""

from __future__ import annotations

from dataclasses import dataclass

from lbkit.errors import ConfigError

__all__ = ["SERVER_PROFILES", "ServerProfile", "profile_of"]


@dataclass(frozen=True, slots=True)
class ServerProfile:
    name: str
    http: str
    """The version of the specification that it names in the scope."""

    websocket: str
    raises: frozenset[str]
    """The types of scope in which a send to a client that has left is an OSError."""

    def asgi(self, kind: str) -> dict[str, str]:
        """`scope["asgi"]`."""
        return {"version": "3.0", "spec_version": self.websocket if kind == "websocket" else self.http}


SERVER_PROFILES = {
    each.name: each
    for each in (
        ServerProfile("strict", "2.4", "2.4", frozenset({"http", "websocket"})),
        ServerProfile("uvicorn", "2.3", "2.4", frozenset({"websocket"})),
        ServerProfile("hypercorn", "2.1", "2.3", frozenset()),
        ServerProfile("granian", "2.3", "2.3", frozenset()),
    )
}


def profile_of(name: str | None, *, isolation: str) -> ServerProfile:
    """Raises ConfigError for one that there is not, or not where replicas have a real server."""
    if isolation == "process" and name not in (None, "uvicorn"):
        raise ConfigError(
            f"need server_profile='uvicorn' for isolation='process', which runs it, got {name!r}"
        )
    if name is not None and name not in SERVER_PROFILES:
        raise ConfigError(f"need a server_profile of {', '.join(SERVER_PROFILES)}, got {name!r}")
    return SERVER_PROFILES[name or ("uvicorn" if isolation == "process" else "strict")]
