"""What a pool may look at in a request before it picks: made by a carrier, and only when something asks."""

from __future__ import annotations

from typing import Protocol

__all__ = ["RequestKey"]


class RequestKey(Protocol):
    """A request, as far as balancing goes."""

    @property
    def client(self) -> str | None:
        """The client's address, as the carrier has it: behind a `ForwardedMiddleware` nobody can forge it."""
        ...

    @property
    def path(self) -> str:
        """Without the query string."""
        ...

    def header(self, name: str, /) -> str:
        """By its name in lower case; several lines joined; empty when there is none."""
        ...
