"""Replay a recording of a real balancer in virtual time, and say whether lbkit decides the same.

A recording is a script (requests, held requests, failing replicas, seconds that pass) together with what
the real balancer did at each step. The model of that balancer plays the same script; every step is compared.

==============================================  ===================================================
a recording's equivalence                       how it is compared
==============================================  ===================================================
exact                                           step by step
rotation, edf-seed, insertion order             step by step, for one of the unknown starting points
argmin-set, p2c                                 each pick is one that the rule allows in that state
distribution                                    the shares, within 4 standard errors
==============================================  ===================================================
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from random import Random
from typing import Any, TypeVar

from lbkit.balancer.chance import Chance
from lbkit.balancer.exchange import Answer, Attempt, Fault, Flow, Model, Outcome, Relay, Request, Wait
from lbkit.balancer.haproxy.cookie import stamp
from lbkit.errors import ConfigError

__all__ = ["Differs", "Guided", "NotModelled", "Play", "Recording", "Seen", "Start", "same_shares"]

T = TypeVar("T")
OK: Mapping[str, Any] = {"kind": "ok"}
MOMENT = 0.001
"""Seconds that a request takes at least: a window of a second is not over a second later, to the tick."""

AT_ONCE = ("refuse", "reset")
"""What nobody can hold a request at."""

DATE = re.compile(r"\{\{date:(-?\d+)\}\}")


class NotModelled(Exception):
    """The recording asks for something that no model of ours decides. The message says what."""


class Differs(Exception):
    """The real balancer and the model part ways."""

    def __init__(self, step: int, real: object, ours: object, what: str = "") -> None:
        self.step = step
        what = f"{what}: " if what else ""
        super().__init__(f"differs at step {step}: {what}real {_said(real)}, lbkit {_said(ours)}")


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording, as its JSON has it. Raises ConfigError for a file that is none."""

    data: Mapping[str, Any]

    def __post_init__(self) -> None:
        needed = ("balancer", "version", "kind", "servers", "equivalence", "requests", "picked", "config")
        missing = [key for key in needed if key not in self.data]
        if missing:
            raise ConfigError(
                f"need a recording of a balancer, with {', '.join(needed)}; got none of: {missing}"
            )
        if len(self.data["requests"]) != len(self.data["picked"]):
            raise ConfigError("need as many entries in picked as in requests")

    def __getattr__(self, name: str) -> Any:
        try:
            return self.data[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def detail(self) -> Sequence[Mapping[str, Any] | None]:
        return self.data.get("detail") or [None] * len(self.data["picked"])

    @property
    def servers(self) -> list[dict[str, Any]]:
        return list(self.data["servers"])


class Guided(Chance):
    """Chance that takes the real balancer's choices whenever the rule allows them."""

    def __init__(self) -> None:
        super().__init__(Random(1))
        self._wanted: list[str] = []
        self._refusing: frozenset[str] = frozenset()

    def want(self, tried: Iterable[str], *, refusing: Iterable[str] = ()) -> None:
        """Whom it tried in the step that comes. A try that was refused is seen by nobody."""
        self._wanted = list(tried)
        self._refusing = frozenset(refusing)

    def one(self, options: Sequence[T]) -> T:
        names = [getattr(option, "name", option) for option in options]
        if self._wanted and self._wanted[0] in names:
            return options[names.index(self._wanted.pop(0))]
        refused = [option for option, name in zip(options, names, strict=True) if name in self._refusing]
        return refused[0] if refused else super().one(options)

    def share(self, options: Sequence[tuple[int, T]], names: Callable[[T], Collection[str]]) -> T:
        wanted = self._wanted[:1] or self._refusing
        fitting = [option for _, option in options if set(names(option)) & set(wanted)]
        return fitting[0] if fitting else super().share(options, names)

    def two(self, count: int, decide: Callable[[int, int], T]) -> T:
        if not (self._wanted or self._refusing):
            return super().two(count, decide)
        results = [decide(a, b) for a in range(count) for b in range(count)]
        return self.one(results)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A model in one of the states in which the real balancer may have begun, and how to drive it."""

    model: Model
    read_timeout: float = 1.0
    """Seconds after which a replica that hangs is given up."""

    client: Callable[[Request], str] = lambda request: request.client
    admin: Callable[[str], None] | None = None
    woken: Callable[[], list[Wait]] = list
    status: Callable[[str, bool], None] | None = None
    tick: Callable[[float], None] | None = None
    guide: Guided | None = None
    now: float = 0.5
    """When the script begins: in the middle of a second."""

    mask: re.Pattern[str] | None = None
    """What of a Set-Cookie line the recording cannot tell beforehand: the time of day."""

    refused_count: bool = True
    """Whether `attempts` lists servers that refused the connection (HAProxy's recordings do not)."""


@dataclass(slots=True)
class Seen:
    """What a step of the model looked like, under the names that `detail` has."""

    picked: str | None = None
    status: int | None = None
    attempts: list[str] | None = None
    set_cookie: list[str] | None = None
    backend_cookie: list[str] | None = None
    log: str = ""
    queued: bool = False
    then_arrived: list[dict[str, object]] = field(default_factory=list)


@dataclass(slots=True)
class Held:
    """A request under way: `start` opened it, `finish` will end it."""

    name: object
    flow: Flow
    request: Request
    attempt: Attempt | None = None
    wait: Wait | None = None
    mode: Mapping[str, Any] = field(default_factory=dict)
    """How the replica was when the request came to it."""

    sent: list[str] = field(default_factory=list)
    answer: Answer | None = None


class Play:
    """Plays a recording's script to one `Start`. Raises Differs at the first step that is not the same."""

    def __init__(self, recording: Recording, start: Start) -> None:
        self.recording = recording
        self.start = start
        self.now = start.now
        self.modes: dict[str, Mapping[str, Any]] = {}
        self.held: dict[object, Held] = {}
        self.step = 0
        self.first = True
        """Whether the next request is the first one of the script's connection."""

    def run(self) -> None:
        expected = zip(self.recording.requests, self.recording.picked, self.recording.detail, strict=True)
        for self.step, (op, picked, detail) in enumerate(expected):
            if self.start.guide is not None:
                refusing = [name for name, mode in self.modes.items() if mode["kind"] == "refuse"]
                tried = (detail or {}).get("attempts") or ([picked] if picked else [])
                self.start.guide.want(tried, refusing=refusing)
            if detail and "unix_time" in detail:
                self.now = float(detail["unix_time"])
            seen = getattr(self, f"_{op['op']}", self._unknown)(op)
            self._compare(seen, picked, detail or {})

    # -- the operations of a script

    def _unknown(self, op: Mapping[str, Any]) -> Seen:
        raise NotModelled(f"the operation {op['op']!r}")

    def _tick(self, op: Mapping[str, Any]) -> Seen:
        """Requests are sent in the middle of a second, so that a clock of whole seconds is unambiguous."""
        self.now = max(self.now, op["t"] + 0.5)
        if self.start.tick is not None:
            self.start.tick(self.now)
        return Seen()

    def _sleep(self, op: Mapping[str, Any]) -> Seen:
        """So many seconds pass, under whichever name the script has them."""
        seconds = next((op[key] for key in ("s", "seconds", "t") if key in op), op.get("ms", 0) / 1000)
        self.now += float(seconds)
        if self.start.tick is not None:
            self.start.tick(self.now)
        return Seen()

    def _backend(self, op: Mapping[str, Any]) -> Seen:
        self.modes[op["name"]] = op["mode"]
        return Seen()

    def _admin(self, op: Mapping[str, Any]) -> Seen:
        if self.start.admin is None:
            raise NotModelled(f"the command {op['cmd']!r}")
        self.start.admin(op["cmd"])
        return Seen()

    def _status(self, op: Mapping[str, Any]) -> Seen:
        if self.start.status is None:
            raise NotModelled("a replica's status, set from outside")
        self.start.status(op["name"], op["up"])
        return Seen()

    def _req(self, op: Mapping[str, Any]) -> Seen:
        if "gap" in op:
            self.now += op["gap"]
            if self.start.tick is not None:
                self.start.tick(self.now)
        held = self._open(op, first=self.first or "src_bind" in op)
        while held.answer is None:
            if held.attempt is None:
                self._give_up(held)
            else:
                self._send(held, self._outcome(held, held.attempt))
        self.first = held.answer.status == 0
        return self._seen(held, held.answer)

    def _start(self, op: Mapping[str, Any]) -> Seen:
        held = self._open(op)
        self.held[op["id"]] = held
        if held.wait is not None and "wait" in op:
            self._give_up(held)
        while held.attempt is not None and held.mode["kind"] in AT_ONCE:
            self._send(held, self._outcome(held, held.attempt))
        if held.answer is not None:
            return self._seen(held, held.answer)
        if held.wait is not None:
            return Seen(queued=True)
        return Seen(picked=held.attempt.replica if held.attempt else None)

    def _finish(self, op: Mapping[str, Any]) -> Seen:
        held = self.held.pop(op["id"])
        while held.attempt is not None:
            self._send(held, self._outcome(held, held.attempt))
        arrived = self._wake()
        return Seen(status=held.answer.status if held.answer else 0, then_arrived=arrived)

    # -- one request

    def _open(self, op: Mapping[str, Any], *, first: bool = True) -> Held:
        """`first`: of its connection. What is held has one of its own."""
        self.now += MOMENT
        headers = {name.lower(): self._dated(value) for name, value in op.get("headers", {}).items()}
        request = Request(
            method=op.get("method", "GET"),
            target=op.get("path", "/"),
            client=op.get("src_bind", "127.0.0.1"),
            headers=headers,
            body=bool(op.get("body")),
            first=first,
        )
        request = replace(request, client=self.start.client(request))
        flow = self.start.model.serve(request, now=self.now)
        held = Held(op.get("id"), flow, request)
        self._advance(held, lambda: next(flow))
        return held

    def _dated(self, value: str | list[str]) -> str:
        """A script writes `{{date:-60}}` for the instant 60 s ago, in the digits of HAProxy's cookies."""
        text = value if isinstance(value, str) else "\n".join(value)
        return DATE.sub(lambda match: stamp(self.now + int(match[1])), text)

    def _send(self, held: Held, outcome: Outcome | None) -> None:
        self._advance(held, lambda: held.flow.send(outcome))

    def _give_up(self, held: Held) -> None:
        if held.wait is not None:
            self.now = max(self.now, held.wait.until)
        self._advance(held, lambda: held.flow.throw(TimeoutError()))

    def _advance(self, held: Held, move: Callable[[], Attempt | Wait | Relay]) -> None:
        held.attempt = held.wait = None
        try:
            asked = move()
        except StopIteration as stop:
            held.answer = stop.value
            return
        if isinstance(asked, Wait):
            held.wait = asked
        elif isinstance(asked, Attempt):
            held.attempt = asked
            held.request = asked.request or held.request
            held.mode = self.modes.get(asked.replica, OK)

    def _outcome(self, held: Held, asked: Attempt) -> Outcome:
        name = asked.replica
        mode = held.mode
        self.now += asked.after
        if mode["kind"] == "refuse":
            return Outcome(at=self.now, fault=Fault.REFUSED)
        if asked.body_lost:
            return Outcome(at=self.now, fault=Fault.RESET)
        held.sent.append(name)
        if mode["kind"] == "reset":
            return Outcome(at=self.now, fault=Fault.RESET)
        if mode["kind"] == "hang":
            self.now += self.start.read_timeout
            return Outcome(at=self.now, fault=Fault.TIMEOUT)
        return self._reply(held.request, mode)

    def _reply(self, request: Request, mode: Mapping[str, Any]) -> Outcome:
        """The recorded replicas did what these request headers say."""
        cookie = request.header("x-set-cookie")
        headers = {"cache-control": request.header("x-cache-control")}
        return Outcome(
            at=self.now,
            status=mode.get("code", 200),
            seconds=mode.get("ms", 0) / 1000,
            set_cookie=(cookie,) if cookie else (),
            headers={name: value for name, value in headers.items() if value},
        )

    def _wake(self) -> list[dict[str, object]]:
        arrived: list[dict[str, object]] = []
        for wait in self.start.woken():
            held = next(held for held in self.held.values() if held.wait is wait)
            self._send(held, None)
            arrived.append({"id": held.name, "picked": held.attempt.replica if held.attempt else None})
        return arrived

    def _seen(self, held: Held, answer: Answer) -> Seen:
        return Seen(
            picked=answer.replica,
            status=answer.status,
            attempts=list(answer.attempts) if self.start.refused_count else held.sent,
            set_cookie=list(answer.set_cookie),
            backend_cookie=[held.request.header("cookie")] if held.request.header("cookie") else [],
            log=answer.log,
        )

    # -- the comparison

    def _compare(self, seen: Seen, picked: str | None, detail: Mapping[str, Any]) -> None:
        if seen.picked != picked:
            raise Differs(self.step, picked, seen.picked)
        for key in ("status", "attempts", "set_cookie", "backend_cookie", "queued", "then_arrived"):
            if detail.get(key) is not None and self._masked(detail[key]) != self._masked(getattr(seen, key)):
                raise Differs(self.step, detail[key], getattr(seen, key), key)
        log = detail.get("log")
        if log and seen.log != f"{log['retries']} {log['tsc']}":
            raise Differs(self.step, f"{log['retries']} {log['tsc']}", seen.log, "log")

    def _masked(self, value: Any) -> Any:
        if self.start.mask is None or not isinstance(value, list):
            return value
        return [self.start.mask.sub("", each) if isinstance(each, str) else each for each in value]


def same_shares(recording: Recording, model: Model, names: Iterable[str], *, draws: int = 20_000) -> None:
    """Raise Differs unless each replica's share is the recorded one, within 4 standard errors."""
    counts: dict[str | None, int] = dict.fromkeys([*names, None], 0)
    for _ in range(draws):
        flow = model.serve(Request(), now=0.5)
        asked = next(flow)
        counts[asked.replica if isinstance(asked, Attempt) else None] += 1
        _finished(flow)
    real_total = sum(recording.counts.values())
    for name, real in recording.counts.items():
        share, ours = real / real_total, counts[name] / draws
        margin = 4 * sqrt(share * (1 - share) * (1 / real_total + 1 / draws))
        if abs(share - ours) > margin:
            raise Differs(0, f"{share:.3f}", f"{ours:.3f}", f"the share of {name}")


def _finished(flow: Flow) -> None:
    try:
        flow.send(Outcome(at=0.5, status=200))
    except StopIteration:
        return
    raise TypeError("a request that was answered goes nowhere else")


def _said(value: object) -> str:
    return "nobody" if value is None else str(value)
