"""The line to the store: a call goes out if the breaker lets it, and what happens is counted."""

from __future__ import annotations

from collections.abc import Callable, Generator
from operator import methodcaller
from threading import Lock
from typing import Any, NamedTuple, TypeAlias, TypeVar

from lbkit.errors import SessionUnavailable, StoreUnavailable
from lbkit.sessions.breaker import Breaker
from lbkit.types import Clock

__all__ = ["Flow", "Last", "Line", "Pause", "Step"]

T = TypeVar("T")


class Pause(NamedTuple):
    """Yielded by a flow that wants to wait for a while."""

    seconds: float


class Last(NamedTuple):
    """Yielded in place of the call when nothing that must be done comes after it."""

    call: Callable[[Any], Any]

    def __call__(self, store: Any) -> Any:
        return self.call(store)


Step: TypeAlias = Callable[[Any], Any] | Last | Pause
"""What a flow yields: a call to be made to the store, or a pause."""

Flow: TypeAlias = Generator[Step, Any, T]


class Line:
    """One for each store and process. `clock` is any that only rises."""

    def __init__(self, *, clock: Clock, breaker: Breaker) -> None:
        self.breaker = breaker
        self.clock = clock
        self._counts: dict[str, int] = {}
        self._lock = Lock()

    @property
    def counts(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    def count(self, name: str) -> None:
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + 1

    def ask(self, method: str, *arguments: object, last: bool = False, **named: object) -> Flow[Any]:
        """What the store's method returns. Raises SessionUnavailable, and nothing else on purpose."""
        call: Callable[[Any], Any] = methodcaller(method, *arguments, **named)
        breaker = self.breaker
        if not (breaker.closed or breaker.admits(self.clock())):
            self.count("refused")
            raise SessionUnavailable("the session store has failed again and again: it is left alone a while")
        try:
            answer = yield Last(call) if last else call
        except StoreUnavailable as error:
            breaker.failed(self.clock())
            self.count("unavailable")
            raise SessionUnavailable(f"the session store does not answer: {error}") from error
        except BaseException:
            breaker.released()
            raise
        breaker.succeeded()
        return answer
