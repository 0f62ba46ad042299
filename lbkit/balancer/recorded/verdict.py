"""What became of replaying one recording: `ok`, `differs at step N: ...` or `not modelled: why`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lbkit.balancer.recorded import caddy, envoy, haproxy, nginx, traefik
from lbkit.balancer.replay import Differs, NotModelled, Play, Recording, Start, same_shares
from lbkit.errors import ConfigError

__all__ = ["Verdict", "replay"]

SPECIAL: dict[str, Callable[[Recording], None]] = {**nginx.SPECIAL, **haproxy.SPECIAL}
"""Kinds of recordings that are no script of requests."""

STARTS: dict[str, Callable[[Recording], Iterator[Start]]] = {
    "nginx": nginx.starts,
    "haproxy": haproxy.starts,
    "envoy": envoy.starts,
    "caddy": caddy.starts,
    "traefik": traefik.starts,
}


@dataclass(frozen=True, slots=True)
class Verdict:
    name: str
    outcome: str
    """`ok`, `differs` or `not modelled`."""

    message: str


def replay(data: Mapping[str, Any], *, name: str = "") -> Verdict:
    """Replay one recording, given as its JSON. Raises ConfigError for what is no recording."""
    recording = Recording(data)
    name = name or str(data.get("name", "recording"))
    try:
        _play(recording)
    except Differs as differs:
        return Verdict(name, "differs", str(differs))
    except NotModelled as reason:
        return Verdict(name, "not modelled", f"not modelled: {reason}")
    return Verdict(name, "ok", "ok")


def _play(recording: Recording) -> None:
    if special := SPECIAL.get(recording.kind):
        _readably(special, recording)
        return
    starts = STARTS.get(recording.balancer)
    if starts is None:
        raise NotModelled(f"the balancer {recording.balancer!r}")
    if recording.equivalence == "distribution":
        start = next(_readable(starts(recording)))
        same_shares(recording, start.model, (server["name"] for server in recording.servers))
        return
    _any_of(recording, _readable(starts(recording)))


def _readable(starts: Iterator[Start]) -> Iterator[Start]:
    """What none of the parsers understands is no difference: it is not modelled, and says so."""
    try:
        yield from starts
    except (ConfigError, LookupError, TypeError, ValueError) as error:
        raise NotModelled(f"its configuration ({type(error).__name__}: {error})") from error


def _readably(special: Callable[[Recording], None], recording: Recording) -> None:
    try:
        special(recording)
    except (ConfigError, LookupError, TypeError, ValueError) as error:
        raise NotModelled(f"its configuration ({type(error).__name__}: {error})") from error


def _any_of(recording: Recording, starts: Iterator[Start]) -> None:
    """Play every possible start until one is the same to the end; else report the one that came furthest."""
    furthest: Differs | None = None
    for start in starts:
        try:
            Play(recording, start).run()
        except Differs as differs:
            if furthest is None or differs.step > furthest.step:
                furthest = differs
        else:
            return
    if furthest is not None:
        raise furthest
