"""What can go wrong, and whose fault it is.

LbkitError
├── ConfigError (ValueError)      a value given to us breaks a rule: the message names both
│   └── TargetError               `lbkit serve` was pointed at something that is no app
├── MissingExtra (ImportError)    a library is not installed: the message names the extra
├── StartupError (RuntimeError)   a replica did not start: the message names the replica
├── ReplicaFault                  a replica did not answer: what stands for it may raise one of these
│   ├── ReplicaRefused (ConnectionRefusedError)   it took no connection: nothing was sent
│   ├── ReplicaReset (ConnectionResetError)       the connection broke after the request was sent
│   └── ReplicaTimeout (TimeoutError)             no answer began in time
├── SessionError
│   ├── SessionTypeError (TypeError)   a session cannot hold that: the message names the key and the type
│   ├── SessionTooLarge (ValueError)   more than `hard_limit` bytes: the message names the biggest keys
│   ├── SessionConflict                somebody else has changed a key meanwhile
│   ├── SessionNotLoaded               an ASGI app must `await request.session.load()` first
│   ├── SessionLocked                  the lock was not free in time
│   └── SessionUnavailable             the store of the sessions does not answer
└── StoreUnavailable              what a store raises when it cannot be asked
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "LbkitError",
    "MissingExtra",
    "ReplicaFault",
    "ReplicaRefused",
    "ReplicaReset",
    "ReplicaTimeout",
    "SessionConflict",
    "SessionError",
    "SessionLocked",
    "SessionNotLoaded",
    "SessionTooLarge",
    "SessionTypeError",
    "SessionUnavailable",
    "StartupError",
    "StoreUnavailable",
    "TargetError",
]


class LbkitError(Exception):
    """Every error that lbkit raises on purpose."""


class ConfigError(LbkitError, ValueError):
    """A value given by the developer breaks a rule. The message gives the value and the rule."""


class TargetError(ConfigError):
    """A TARGET such as `shop.web:app` cannot be turned into an app."""


class MissingExtra(LbkitError, ImportError):
    """A library that this feature needs is not installed."""

    def __init__(self, library: str, *, extra: str) -> None:
        super().__init__(f"{library} is not installed; it comes with: pip install 'lbkit-web[{extra}]'")
        self.library = library
        self.extra = extra


class StartupError(LbkitError, RuntimeError):
    """A replica did not start."""

    def __init__(self, replica: str, reason: str) -> None:
        super().__init__(f"replica {replica} failed to start: {reason}")
        self.replica = replica
        self.reason = reason


class ReplicaFault(LbkitError):
    """A replica did not answer. Raised in its place by what carries a request to it, before the answer."""


class ReplicaRefused(ReplicaFault, ConnectionRefusedError):
    """The replica took no connection, so that it has seen nothing of the request."""


class ReplicaReset(ReplicaFault, ConnectionResetError):
    """The connection broke before an answer began. The replica may have run the request."""


class ReplicaTimeout(ReplicaFault, TimeoutError):
    """No answer began in time. The replica may still be running the request."""


class SessionError(LbkitError):
    """Something about a session."""


class SessionTypeError(SessionError, TypeError):
    """A session cannot hold such a value. Nothing was stored, and what was there is as it was."""

    def __init__(self, key: object, where: str, kind: str) -> None:
        super().__init__(f"session[{key!r}]{where}: cannot hold {kind}")
        self.key = key
        self.kind = kind


class SessionTooLarge(SessionError, ValueError):
    """A session is larger than `hard_limit` allows. Nothing was stored."""


class SessionConflict(SessionError):
    """A key that this request relied on was changed by another one. Nothing was stored; try again."""

    def __init__(self, key: str) -> None:
        super().__init__(f"session[{key!r}] was changed by another request")
        self.key = key


class SessionNotLoaded(SessionError):
    """A session was used before it was loaded, where that cannot be done without waiting."""


class SessionLocked(SessionError):
    """Somebody else held the session's lock for longer than we were ready to wait."""


class SessionUnavailable(SessionError):
    """The sessions cannot be asked at the moment. No cookie was touched, so nobody is logged out."""


class StoreUnavailable(LbkitError):
    """A store does not answer, or cannot take what it is given."""
