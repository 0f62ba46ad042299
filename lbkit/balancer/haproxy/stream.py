"""One request on its way through a backend of HAProxy, and when it is tried again."""

from __future__ import annotations

from dataclasses import dataclass, field

from lbkit.balancer.exchange import Fault, Outcome, Request, Wait
from lbkit.balancer.haproxy.cookie import Persistence
from lbkit.balancer.haproxy.node import Node
from lbkit.balancer.retry import RetryRules

__all__ = ["Pending", "Retries", "Stream"]

RETRYABLE = frozenset({"conn-failure", "empty-response", "response-timeout", "500", "502", "503", "504"})
"""`retry-on all-retryable-errors`, as far as there are such errors here."""

CAUSES = {
    Fault.REFUSED: frozenset({"conn-failure"}),
    Fault.RESET: frozenset({"empty-response"}),
    Fault.TIMEOUT: frozenset({"response-timeout"}),
}


def _causes(outcome: Outcome) -> frozenset[str]:
    """The words of `retry-on` for an outcome."""
    return frozenset({str(outcome.status)}) if outcome.fault is None else CAUSES[outcome.fault]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """`retries`, `option redispatch` and `retry-on`, as data."""

    count: int = 3
    redispatch: int = 0
    """Every how many retries another server is asked: 0 never, -1 on the last one."""

    on: frozenset[str] = frozenset({"conn-failure"})
    """POST is retried like anything else once this names more than `conn-failure`."""

    pause: float = 1.0
    """Seconds before the same server is asked again after a refused connection: min(timeout connect, 1 s)."""

    def rules(self) -> RetryRules:
        on = self.on | RETRYABLE if "all-retryable-errors" in self.on else self.on
        return RetryRules(causes=_causes, on=on, retries=self.count)

    def elsewhere(self, done: int) -> bool:
        if self.redispatch < 0:
            return done % (self.count + 1 + self.redispatch) == 0
        return self.redispatch > 0 and done % self.redispatch == 0


@dataclass(slots=True)
class Stream:
    """One request on its way."""

    request: Request
    ck: Persistence | None = None
    bound: Node | None = None
    avoid: Node | None = None
    before: Node | None = None
    """Where it was when it was redispatched."""

    retries: int = 0
    moved: bool = False
    pause: float = 0.0
    risked: str = ""
    """The first server that may have run the request without an answer."""

    attempts: list[str] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Pending:
    """A stream that waits for a slot: of `node`, or of any server. No two are the same one."""

    wait: Wait
    node: Node | None
    given: Node | None = None
