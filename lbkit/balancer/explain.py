"""Why a request goes where it goes, and what moves when a replica is removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lbkit.balancer.decision import Decision, pick, release
from lbkit.balancer.exchange import Attempt, Model, Outcome, Request
from lbkit.balancer.profile import Place
from lbkit.errors import ConfigError

__all__ = ["Decision", "Moves", "decide", "moves"]

MakeModel = Callable[[Sequence[Place]], Model]


@dataclass(frozen=True, slots=True)
class Moves:
    """What the removal of a replica does to keys. Consistent: `moved` is not more than `owned`."""

    keys: int
    owned: int
    """Those of the removed replica: they have to move."""

    moved: int
    """All that go elsewhere afterwards."""


def decide(model: Model, request: Request, *, now: float = 0.0, rule: str = "") -> Decision:
    """Decide about one request, and answer it with 200 at once. One that has to wait goes away."""
    decision = pick(model, request, now=now, rule=rule)
    if decision.replica is not None:
        release(decision, Outcome(at=now, status=200))
    elif decision.turn is not None:
        decision.turn.flow.close()
    return decision


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
        here, there = _home(before, key), _home(after, key)
        owned += here == without
        moved += here != there
    return Moves(keys, owned, moved)


def _home(model: Model, request: Request) -> str | None:
    flow = model.serve(request, now=0.0)
    asked = next(flow, None)
    flow.close()
    return asked.replica if isinstance(asked, Attempt) else None


def _refuse_turns(model: Model, request: Request) -> None:
    keys = [_key(request, number) for number in range(50)]
    if any(_home(model, key) != _home(model, key) for key in keys):
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
