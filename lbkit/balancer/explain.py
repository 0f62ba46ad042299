"""Why a request goes where it goes, and what moves when a replica is removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from lbkit.balancer.exchange import Attempt, Model, Outcome, Request
from lbkit.balancer.profile import Place
from lbkit.errors import ConfigError

__all__ = ["Decision", "Moves", "decide", "moves"]

MakeModel = Callable[[Sequence[Place]], Model]


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes. `replica` is None when it goes nowhere; the client then gets `status`."""

    replica: str | None
    status: int | None
    skipped: Mapping[str, str]
    """For each replica that was no candidate, the rule that says so."""


@dataclass(frozen=True, slots=True)
class Moves:
    """What the removal of a replica does to keys. Consistent: `moved` is not more than `owned`."""

    keys: int
    owned: int
    """Those of the removed replica: they have to move."""

    moved: int
    """All that go elsewhere afterwards."""


def decide(model: Model, request: Request, *, now: float = 0.0) -> Decision:
    """Decide about one request, and answer it with 200 at once."""
    skipped = model.explain(now)
    flow = model.serve(request, now=now)
    try:
        asked = next(flow)
    except StopIteration as stop:
        return Decision(None, stop.value.status, skipped)
    if not isinstance(asked, Attempt):
        flow.close()
        return Decision(None, None, skipped)
    try:
        flow.send(Outcome(at=now, status=200))
    except StopIteration:
        return Decision(asked.replica, None, skipped)
    raise TypeError("a request that was answered goes nowhere else")


def moves(
    make: MakeModel, places: Sequence[Place], without: str, request: Request, *, keys: int = 10_000
) -> Moves:
    """Send `keys` different clients and paths to the pool with and without a replica.

    Raises ConfigError when the policy does not look at the request: then there is nothing that could move.
    """
    rest = [place for place in places if place.name != without]
    if len(rest) == len(places):
        names = ", ".join(place.name for place in places)
        raise ConfigError(f"need the name of a replica ({names}), got {without!r}")
    before, after = make(places), make(rest)
    _refuse_turns(make(places), request)
    owned = moved = 0
    for number in range(keys):
        key = _key(request, number)
        here, there = decide(before, key).replica, decide(after, key).replica
        owned += here == without
        moved += here != there
    return Moves(keys, owned, moved)


def _refuse_turns(model: Model, request: Request) -> None:
    keys = [_key(request, number) for number in range(50)]
    if any(decide(model, key).replica != decide(model, key).replica for key in keys):
        raise ConfigError(
            "need a policy that looks at the request: with this one no client has a place to lose"
        )


def _key(request: Request, number: int) -> Request:
    """The same request from another client, for another path, with other values in its headers."""
    target, question, query = request.target.partition("?")
    return replace(
        request,
        client=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
        target=f"{target}{'' if target.endswith('/') else '/'}{number}{question}{query}",
        headers={name: f"{value}{number}" for name, value in request.headers.items()},
    )
