"""The session as an app sees it: a mapping, with what can be said about the session besides.

It is opened by the first call that needs it, so a request that does not use its session costs nothing. The
`Session` of `lbkit.wsgi` opens itself; the one of `lbkit.asgi` must be awaited first, or is opened by the
middleware. What is done when, is said in `lbkit.sessions.flows`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Literal, TypeVar, overload

from lbkit.errors import SessionError, SessionUnavailable
from lbkit.sessions.contents import Contents
from lbkit.sessions.cookie import Presented

__all__ = ["Session"]

PERMANENT = "_permanent"

T = TypeVar("T")


class Session(MutableMapping[str, Any]):
    """Keys are text; values are what JSON has, and tuples, sets, bytes, dates, Decimal, UUID."""

    # Defaults of the class, because most requests never get further than to have a session. Private, because
    # in a template `session.device` is the attribute, and only then the key.
    _contents: Contents | None = None
    """None until the app has used the session."""

    _loaded: Contents | None = None
    _key: str | None = None
    """What the store calls the session; None as long as it is not stored. No secret: it is a hash."""

    _presented: Presented | None = None
    _sid: str | None = None
    """The id; None as long as there is none, or it is none of this request's business."""

    _outage: SessionUnavailable | None = None
    _root: str | None = None
    """The id by which values are encrypted: that of the session before it was renewed."""

    _failure: SessionError | None = None
    """What the app was told when it asked for more than reading and writing."""

    _cookie_due: str | None = None
    """The Set-Cookie that the answer must carry."""

    _departed = False
    """The head of the answer has left: no cookie can follow it."""

    _void = False
    """What has changed is not to be kept."""

    _cleared = False
    _rotating = False
    _touching = False
    _outage_told = False
    """Has the app used the session, and learned of the outage?"""

    # The one thing a carrier must know how to do.

    @abstractmethod
    def _open(self) -> None:
        """Put `loaded` or `outage` in place."""

    @property
    def _cookies(self) -> str:
        """The request's Cookie header."""
        return ""

    @property
    def _device(self) -> dict[str, str]:
        """Who is at the other end: `ip` and `agent`, shown in the list of a user's sessions."""
        return {}

    @property
    def _on_unavailable(self) -> Literal["503", "anonymous", "raise"]:
        return "503"

    # A mapping.

    def __getitem__(self, key: str) -> Any:
        return (self._contents or self._use()).get(key)

    @overload
    def get(self, key: str) -> Any: ...
    @overload
    def get(self, key: str, default: T) -> Any | T: ...
    def get(self, key: str, default: object = None) -> Any:
        try:
            return (self._contents or self._use()).get(key)
        except KeyError:
            return default

    def __setitem__(self, key: str, value: Any) -> None:
        (self._contents or self._use()).set(key, value)

    def __delitem__(self, key: str) -> None:
        (self._contents or self._use()).delete(key)

    def __contains__(self, key: object) -> bool:
        return key in (self._contents or self._use())

    def __iter__(self) -> Iterator[str]:
        return iter(self._contents or self._use())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None

    def __eq__(self, other: object) -> bool:
        return dict(self) == (dict(other) if isinstance(other, Mapping) else other)

    __hash__ = None  # type: ignore[assignment]  # as a dict has none

    def __repr__(self) -> str:
        """Without what it holds: a repr ends up in logs."""
        if self._contents is None:
            return f"<{type(self).__name__}, not used yet>"
        return f"<{type(self).__name__}, {len(self)} keys{', new' if self._key is None else ''}>"

    def __ior__(self, other: Mapping[str, Any]) -> Session:
        self.update(other)
        return self

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def clear(self) -> None:
        """End the session: log out. Its id is void at once, for requests that are under way, too.

        What is put in afterwards begins another session, with an id of its own.
        """
        (self._contents or self._use()).clear()
        self._cleared = True

    # What a session can do besides.

    @property
    def new(self) -> bool:
        """Not stored yet."""
        if self._contents is None:
            self._use()
        return self._key is None

    @property
    def available(self) -> bool:
        """False when the store did not answer, and the app is to go on without."""
        if self._contents is None:
            self._use()
        return self._outage is None

    @property
    def accessed(self) -> bool:
        return self._contents is not None

    @accessed.setter
    def accessed(self, value: bool) -> None:
        """Flask says so for everybody who has but looked at the proxy. We know better."""

    @property
    def modified(self) -> bool:
        """Is there anything to keep? Changes inside of lists and dicts are seen, too."""
        return self._contents is not None and (self._touching or self._cleared or self._contents.changed)

    @modified.setter
    def modified(self, value: bool) -> None:
        """True counts as a use of the session, which then lasts longer. What has changed is known anyhow."""
        if self._contents is None:
            self._use()
        self._touching = bool(value)

    @property
    def permanent(self) -> bool:
        """Does it last longer than the browser is open? See `SessionOptions.remember`."""
        return bool(self.get(PERMANENT, False))

    @permanent.setter
    def permanent(self, value: bool) -> None:
        self[PERMANENT] = bool(value)

    def rotate(self) -> None:
        """Give the session a new id, and end the old one: after a login, and whenever rights change.

        Happens by itself when a key of `SessionOptions.watch` changes.
        """
        if self._contents is None:
            self._use()
        self._rotating = True

    def incr(self, key: str, by: int = 1) -> None:
        """Add to a counter in the store, so that of two requests at once each one counts."""
        (self._contents or self._use()).add(key, by)

    def expect(self, key: str) -> None:
        """Keep nothing if another request changes this key before we are done: SessionConflict, 409."""
        (self._contents or self._use()).expect(key)

    def _begin(self, key: str | None, contents: Contents) -> None:
        """What the flows have found."""
        self._key = key
        self._loaded = contents

    def _settle(self) -> None:
        """What was asked for besides changes is done."""
        self._cleared = self._rotating = self._touching = False

    def _use(self) -> Contents:
        """The first use. When the store does not answer, the second finds an empty session: an error page
        may ask who is logged in."""
        if self._loaded is None and self._outage is None:
            self._open()
        if self._outage is not None:
            policy, told, self._outage_told = self._on_unavailable, self._outage_told, True
            if policy == "raise" or (policy == "503" and not told):
                raise self._outage
        self._contents = self._loaded or Contents({})
        return self._contents
