"""Retries: when a request that failed is given to another replica.

One rule, and the data of each balancer for it. A request that a replica may have run already is run again
only where that balancer does so, and then with a warning.

=========  =======================================  ==============================  =====================
           by default                               a request that was sent         and then no more than
=========  =======================================  ==============================  =====================
nginx      error, timeout                           again, unless POST, LOCK or     tries and seconds
                                                    PATCH
HAProxy    conn-failure                             again, POST too, where          `retries` 3
                                                    `retry-on` names more
Envoy      never                                    again, POST too                 `num_retries` 1, budget
Caddy 2.6  never                                    GET only                        `lb_try_duration`
Traefik    never                                    never                           `attempts`
=========  =======================================  ==============================  =====================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lbkit.balancer.exchange import Outcome, Request
from lbkit.errors import ConfigError

__all__ = ["NO_LIMIT", "Budget", "RetryRules", "twice"]

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PROPFIND", "COPY", "MKCOL"})
"""RFC 9110, section 9.2.2, and WebDAV's: running them a second time changes nothing more."""

NO_LIMIT = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many requests may be tried again at the same time: Envoy's circuit breaker and its retry budget.

    Without `percent`: `most` of them. With it: that share of the requests under way, but at least `most`.
    """

    most: int = 3
    percent: float | None = None

    def __post_init__(self) -> None:
        if self.most < 0 or not 0 <= (self.percent or 0) <= 100:
            got = f"most={self.most}, percent={self.percent}"
            raise ConfigError(f"need most >= 0 and 0 <= percent <= 100, got {got}")

    def allows(self, *, retrying: int, active: int) -> bool:
        """May one more be tried again, when `retrying` of the `active` requests already are?"""
        share = 0 if self.percent is None else int(active * self.percent / 100)
        return retrying < max(self.most, share)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRules:
    """`causes` gives the words that the balancer has for an outcome: one of those in `on` has to be there."""

    causes: Callable[[Outcome], frozenset[str]]
    on: frozenset[str]
    retries: int = NO_LIMIT
    seconds: float = 0.0
    """Since the first attempt, after which no other one is begun; 0 for no limit."""

    again: Callable[[Request], bool] = lambda _: True
    """Whether a request that a replica may have run already is sent once more."""

    budget: Budget | None = None

    def allows(self, request: Request, outcome: Outcome, *, done: int, elapsed: float) -> bool:
        """Is there another try, after `done` retries and `elapsed` seconds?"""
        if done >= self.retries or not self.causes(outcome) & self.on:
            return False
        if self.seconds and elapsed >= self.seconds:
            return False
        return not outcome.sent or self.again(request)


def twice(request: Request, first: str, second: str) -> str:
    """The warning for an attempt at `second` when `first` may have run the request; empty for none."""
    if not first or request.method in IDEMPOTENT:
        return ""
    return (
        f"{request.method} {request.target} goes to {second} after {first} may have run it already: "
        "it may be run twice"
    )
