"""One decision at a time: pick, release, and why every other replica was not picked.

`serve` of a model is a flow, which suits who carries requests. `pick` and `release` are the same flow as two
calls, which suits who asks or simulates. Time passes with the model's own `tick`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lbkit.balancer.exchange import Answer, Attempt, Flow, Model, Outcome, Relay, Request, Wait

__all__ = ["Decision", "pick", "release"]


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes. `replica` is None when it goes nowhere: the client waits, or gets `status`."""

    replica: str | None
    status: int | None
    skipped: Mapping[str, str]
    """For each other replica, the rule for which it was not picked."""

    asked: Attempt | Wait | Relay | None = None
    """What has to be done: an attempt, or to wait in the queue."""

    tried: tuple[str, ...] = ()
    """By this request, before."""

    turn: Turn | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Turn:
    """A request on its way through a model."""

    model: Model
    flow: Flow
    rule: str


def pick(model: Model, request: Request, *, now: float, rule: str = "") -> Decision:
    """Decide about a request and count it in. Pair every pick that names a replica with one `release`.

    `rule`: whom the policy picks (`Profile.rule`), for those who could have been picked and were not.
    """
    skipped = _reasons(model, now, rule)
    flow = model.serve(request, now=now)
    try:
        asked = next(flow)
    except StopIteration as stop:
        return Decision(None, stop.value.status, skipped)
    return _decided(asked, skipped, (), Turn(model, flow, rule))


def release(decision: Decision, outcome: Outcome | None) -> Decision | Answer:
    """The request has ended with that outcome: what the client gets, or where it goes next.

    None: the client has gone before there was one; nothing is counted against the replica, the status is 0.
    """
    turn, replica = decision.turn, decision.replica
    if turn is None or replica is None:
        raise TypeError("need a decision that names a replica: there is nothing to release")
    tried = (*decision.tried, replica)
    if outcome is None:
        turn.flow.close()
        return Answer(status=0, replica=None, attempts=tried)
    try:
        asked = turn.flow.send(outcome)
        if isinstance(asked, Relay):
            asked = turn.flow.send(None)  # its last byte has left as well
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer
    skipped = _reasons(turn.model, outcome.at, turn.rule)
    return _decided(asked, skipped | dict.fromkeys(tried, "tried by this request already"), tried, turn)


def _decided(
    asked: Attempt | Wait | Relay, skipped: Mapping[str, str], tried: tuple[str, ...], turn: Turn
) -> Decision:
    replica = asked.replica if isinstance(asked, Attempt) else None
    others = {name: reason for name, reason in skipped.items() if name != replica}
    return Decision(replica, None, others, asked, tried, turn)


def _reasons(model: Model, now: float, rule: str) -> dict[str, str]:
    """Before the pick: whom the state of the pool rules out; the others are passed over by the policy."""
    model.tick(now)
    reasons = model.explain(now)
    passed_over = f"passed over: the policy picks {rule}" if rule else "passed over by the policy"
    return {name: reasons.get(name, passed_over) for name in model.names}
