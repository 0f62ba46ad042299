"""Which apps are the replicas, what they are called, and the handle by which each is stopped and started."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from lbkit.balancer.address import Address
from lbkit.balancer.replica import Mode, Replica, ReplicaState
from lbkit.errors import ConfigError, StartupError

__all__ = ["Member", "address_of", "made", "make", "named"]

T = TypeVar("T")


class Member(Generic[T]):
    """A replica of a balancer: `balancer.replicas["web1"]`.

    What it does to the replica holds for every request from then on; those inside are left alone.
    """

    def __init__(self, state: ReplicaState, app: T, *, refuse: T) -> None:
        self.name = state.replica.name
        self.state = state
        self.own = app
        """The replica's app itself."""

        self.app = app
        """What requests are given to: the app, what was put around it, or what refuses in its place."""

        self._refuse = refuse
        self._wrapper: Callable[[T], T] | None = None
        self.stopped = False

    def stop(self) -> None:
        """Refuse every connection, as the port of a process that is gone. The balancer is not told."""
        self.stopped = True
        self._put_together()

    def start(self) -> None:
        """Take connections again."""
        self.stopped = False
        self._put_together()

    def wrap(self, wrapper: Callable[[T], T] | None) -> None:
        """Put something around the app, such as a fault; None takes it away again.

        It may raise `ReplicaRefused`, `ReplicaReset` or `ReplicaTimeout` in place of an answer.
        """
        self._wrapper = wrapper
        self._put_together()

    def replace(self, app: T) -> None:
        """Serve with another app from now on: a fresh one after a restart."""
        self.own = app
        self._put_together()

    def _put_together(self) -> None:
        app = self.own if self._wrapper is None else self._wrapper(self.own)
        self.app = self._refuse if self.stopped else app

    @property
    def active(self) -> int:
        """Requests that were sent here and have not ended."""
        return self.state.active

    @property
    def mode(self) -> Mode:
        return self.state.mode


def named(apps: Mapping[str, T] | Iterable[T]) -> dict[str, T]:
    """The apps under their names: the mapping's own, or web1, web2, ... for a plain sequence."""
    if isinstance(apps, Mapping):
        return dict(apps)
    try:
        return {name_of(number): app for number, app in enumerate(apps, start=1)}
    except TypeError as error:
        raise ConfigError(f"need a sequence of apps, such as [app] * 3, got {apps!r}") from error


def address_of(name: str, app: object) -> str:
    """The text that rings and tables hash: a URL's host and port, else the replica's name."""
    if not isinstance(app, str):
        return name
    address = Address.parse(app)
    return f"unix:{address.path}" if address.path else f"{address.host}:{address.port}"


def make(factory: Callable[[], T], *, replicas: int) -> dict[str, T]:
    """Call the factory once for each replica. Raises StartupError with the name of the one it failed for."""
    if replicas < 1:
        raise ConfigError(f"need replicas >= 1, got replicas={replicas}")
    return {name: made(factory, name) for name in map(name_of, range(1, replicas + 1))}


def name_of(number: int) -> str:
    return Replica(f"web{number}").name


def made(factory: Callable[[], T], name: str) -> T:
    """The app for the replica of that name. Raises StartupError when the factory raises."""
    try:
        return factory()
    except Exception as error:
        raise StartupError(name, f"{type(error).__name__}: {error}") from error
