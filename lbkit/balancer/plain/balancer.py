"""A balancer that is nobody's: the field's policies under their own names, for pools that emulate no product.

===================  ==========================================================================
policy               who is picked, and the source
===================  ==========================================================================
round_robin          each in turn
weighted             smooth weighted round robin: each by its weight, spread out (nginx)
least_conn           the fewest requests per weight; equal ones in turn
p2c                  of two that are drawn, the less busy one (Mitzenmacher 2001; Finagle)
peak_ewma            of two that are drawn, the quicker one: a peak counts at once and is
                     forgotten slowly (Finagle, PeakEwma)
random               drawn by weight
source               by the client's address: rendezvous
rendezvous KEY       the highest score of key and replica (Thaler and Ravishankar 1998)
ketama KEY           clockwise on a ring, 160 points for each unit of weight (libketama, as nginx)
maglev KEY           a table that all fill in turn (Maglev, NSDI 2016)
bounded KEY PERCENT  rendezvous, but nobody above PERCENT of a fair share (arXiv 1608.01350)
===================  ==========================================================================

KEY is `uri`, `path`, `source`, `header NAME`, `cookie NAME` or a text with nginx' variables; a request
without it takes its turn. Nothing is tried again, a replica is out only when a check or an operator says so,
and a backup gets requests when nobody else can take one.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from lbkit.balancer.exchange import (
    Answer,
    Fault,
    Flow,
    Outcome,
    Relay,
    Request,
    Standing,
    Wait,
    named,
    received,
)
from lbkit.balancer.plain.member import Member
from lbkit.balancer.plain.policy import ByKey, policy_named
from lbkit.errors import ConfigError

__all__ = ["Plain"]

SCALE = 100


class Plain:
    """`policy` as the table has it, such as `least_conn` or `rendezvous header x-user`."""

    def __init__(
        self, members: Sequence[Member], *, policy: str = "round_robin", rng: Random | None = None
    ) -> None:
        if not members:
            raise ConfigError("need at least one replica, got none")
        self.members = list(members)
        self.names = tuple(member.name for member in members)
        self._limits = any(member.limit for member in members)
        self._policy = policy_named(policy, rng or Random())
        self._timed = policy == "peak_ewma"
        self._sort()
        if isinstance(self._policy, ByKey):
            self._policy.prepare(self._candidates)

    def serve(self, request: Request, *, now: float) -> Flow:
        candidates = self._candidates if not self._limits else self._with_room()
        if not candidates:
            return Answer(status=503, replica=None, attempts=("-",))
        member = self._policy.pick(request, candidates, now)
        member.active += 1
        try:
            outcome = received((yield member.attempt))
            if self._timed:
                member.latency.observe(max(outcome.at - now, outcome.seconds), outcome.at)
            answer = self._answer(member.name, outcome)
            if outcome.open:
                yield Relay(answer)
            return answer
        finally:
            member.active -= 1

    def _answer(self, name: str, outcome: Outcome) -> Answer:
        if outcome.fault is not None:
            status = 504 if outcome.fault is Fault.TIMEOUT else 502
            return Answer(status=status, replica=None, attempts=(name,))
        return Answer(status=outcome.status, replica=name, attempts=(name,), set_cookie=outcome.set_cookie)

    def explain(self, now: float) -> dict[str, str]:
        """For each replica that gets no new client now, the rule that skips it."""
        reasons = {member.name: member.skipped() for member in self.members}
        if any(not member.backup and not reasons[member.name] for member in self.members):
            rest = [each.name for each in self.members if each.backup and not reasons[each.name]]
            reasons.update(dict.fromkeys(rest, "backup: another one is up"))
        return {name: reason for name, reason in reasons.items() if reason}

    def tell(self, name: str, standing: Standing) -> None:
        """A share counts in hundredths of the weight."""
        member = named(self.members, name)
        member.up, member.mode = standing.up, standing.mode
        if standing.share != member.share:
            member.share = standing.share
            for each in self.members:  # all on a finer scale, so that the shares are kept
                each.weight = max(1, round(each.whole * SCALE * each.share))
        self._sort()

    def tick(self, now: float) -> None:
        """Latencies decay when somebody looks at them."""

    def woken(self) -> list[Wait]:
        """There is no queue."""
        return []

    def _sort(self) -> None:
        """A new tuple for each change: rings and tables are kept for as long as it is the same one."""
        primaries = tuple(member for member in self.members if member.open and not member.backup)
        self._spares = tuple(member for member in self.members if member.open and member.backup)
        self._primaries = primaries
        self._candidates = primaries or self._spares

    def _with_room(self) -> Sequence[Member]:
        for group in (self._primaries, self._spares):
            if room := tuple(each for each in group if not each.limit or each.active < each.limit):
                return room if len(room) < len(group) else group
        return ()
