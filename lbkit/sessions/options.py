"""What can be chosen about sessions. Durations are float seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lbkit.cookie import SameSite
from lbkit.errors import ConfigError

__all__ = ["SessionOptions"]

DAY = 86_400.0

CHOICES = {
    "on_unavailable": ("503", "anonymous", "raise"),
    "commit_errors": ("503", "log"),
    "conflict": ("last", "raise"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How sessions live and end, and what their cookie looks like."""

    idle: float = DAY
    """A session ends when it has not been used for so long."""

    absolute: float | None = 30 * DAY
    """It ends at this age, however it is used."""

    remember: float = 30 * DAY
    """The life of the cookie, and in place of `idle`, where the app sets `session.permanent`."""

    renewal: float | None = None
    """Give the session a new id when the last is so old. Requests that are under way with it go on."""

    renewal_grace: float = 30.0
    """For so long does the old id still lead to the session."""

    watch: tuple[str, ...] = ("_user_id", "user_id")
    """Keys that say who is logged in. When one changes, the session gets a new id and the old one ends; the
    first that is set is the user whose sessions are listed and revoked."""

    conflict: Literal["last", "raise"] = "last"
    """Two requests change one key: the last writer wins, or gets SessionConflict (409)."""

    on_unavailable: Literal["503", "anonymous", "raise"] = "503"
    """The store does not answer, and the request uses its session: answer 503, go on with an empty session
    that keeps nothing (`session.available` is False), or let SessionUnavailable pass."""

    commit_errors: Literal["503", "log"] = "503"
    """The view has done its work, and the session cannot be kept: tell the client, or only the log."""

    save_on_error: bool = True
    """Keep what a request has put into its session when it is answered with 5xx."""

    soft_limit: int = 64 * 1024
    """A session of more bytes is logged, with its biggest keys."""

    hard_limit: int = 2 * 1024 * 1024
    """A session of more bytes is refused, before anything is sent to the store: SessionTooLarge."""

    tag_users: bool = False
    """Put a tag behind the id of who is logged in: 11 characters of a keyed hash of the user. All sessions of
    a user then lie in one slot of a cluster, with their index, and a login writes both as one, in one trip.
    Who sees two such cookies can tell whether they are of one user, though not of which."""

    encrypt: bool = False
    """Encrypt each value, by a key made of the id and the secret key. Needs the extra `crypto`."""

    cookie: str | None = None
    """The cookie's name; by default `__Host-sid`, and `sid` where that is not allowed."""

    secure: bool = True
    """Over https only. Browsers take localhost for secure."""

    same_site: SameSite = "Lax"
    path: str = "/"
    domain: str | None = None

    commit_deadline: float = 5.0
    """An ASGI app that is cancelled, because its client has left, still keeps its session for so long."""

    def __post_init__(self) -> None:
        for name in ("idle", "remember", "renewal_grace", "commit_deadline", "absolute", "renewal"):
            value = getattr(self, name)
            if value is None and name in ("absolute", "renewal"):
                continue
            if not (isinstance(value, (int, float)) and value > 0):
                raise ConfigError(f"need {name} in seconds, more than 0, got {name}={value!r}")
        if not 0 < self.soft_limit <= self.hard_limit:
            got = f"soft_limit={self.soft_limit}, hard_limit={self.hard_limit}"
            raise ConfigError(f"need 0 < soft_limit <= hard_limit, got {got}")
        if not (isinstance(self.watch, tuple) and all(isinstance(key, str) for key in self.watch)):
            raise ConfigError(f"need watch as a tuple of keys, got watch={self.watch!r}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"need {name} to be one of {known}, got {name}={getattr(self, name)!r}")

    @property
    def touch_after(self) -> float:
        """Seconds after which a use of the session is noted: not each reader has to write."""
        return min(60.0, self.idle / 10)
