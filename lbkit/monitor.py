"""The health of one app: its checks and its figures, and the answers that its endpoints give.

`Health` brings the pure decisions of `lbkit.health` time and results. An answer is made from what is known
already and never runs a check itself: it starts what is due, and waits only for a first result, and that not
longer than `budget`. What was rendered is kept for a second, or until something changes.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, cast

from lbkit.errors import ConfigError
from lbkit.forwarded import TrustedProxies
from lbkit.health.accept import choose
from lbkit.health.access import Auth, Caller, Details, Gate, Level
from lbkit.health.check import DETAILED, READY, Check, CheckFunction, ComponentType
from lbkit.health.lifecycle import Lifecycle, LifecycleSource, State
from lbkit.health.outcome import Outcome, Result
from lbkit.health.reply import METHOD_NOT_ALLOWED, NOT_FOUND, OPTIONS, Reply, make_reply
from lbkit.health.report import Endpoint, Facts, Report, report
from lbkit.health.routes import Options, Route, options, routes, under_checks
from lbkit.health.standing import CheckView, Standing
from lbkit.health.status import Status
from lbkit.health.vitals import Thresholds, Vitals
from lbkit.metrics import Sampler
from lbkit.probes import Flight, Loops, Probe, Run, Ticker, is_async, shared_flight
from lbkit.service import Service
from lbkit.types import Clock

__all__ = ["Change", "Companion", "Health"]

logger = logging.getLogger("lbkit.health")

Function = TypeVar("Function", bound=CheckFunction)

FRESH = 1.0
"""Seconds that a rendered answer is given to everybody who asks, if nothing changes."""

BEATS = 4
"""Turns of the loop in the time after which the watchdog says that it is stuck."""

MOST_KEPT = 64
METRICS = Check(name="metrics", timeout=5.0, ttl=1.0, fail_ttl=1.0, max_stale=30.0, slow_ms=math.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A check went from one status to another. `error` is the class of what went wrong."""

    check: str
    before: Status
    after: Status
    error: str | None
    critical: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """A rendering, and what must still be so for it to be given again. `since`, `until`: Unix seconds."""

    reply: Reply
    state: State
    generation: int
    since: float
    until: float


class Companion(Protocol):
    """Something that lives beside the app: it begins when the app serves, and ends with it."""

    def begin(self, health: Health, /) -> None: ...

    def end(self) -> None: ...


class StartupTask:
    """Something to be done once before the process is ready, and whether it has been."""

    def __init__(self, name: str, function: CheckFunction, on_end: Callable[[str, Outcome], None]) -> None:
        self.name = name
        self.function = function
        self.flight = Flight()
        self.ended = False
        self._on_end = on_end
        self.flight.listen(self)

    def landed(self, _: Run, result: Result, /) -> None:
        self.ended = True
        self._on_end(self.name, result.outcome)


class Health:
    """Everything that is known about the health of one app.

    Two of these share nothing, unless checks are given the same `flight_key`. `lifecycle` tells whether the
    process is starting, ready or draining; put another `LifecycleSource` in its place to own that yourself.
    """

    def __init__(
        self,
        service: Service | None = None,
        *,
        details: Details = "public",
        auth: Auth | None = None,
        trusted_proxies: TrustedProxies | None = None,
        thresholds: Thresholds | None = None,
        metrics_in_readiness: bool = False,
        disk_path: str = "/",
        budget: float = 0.8,
        retry_after: int = 1,
        envoy: bool = False,
        watchdog: float | None = None,
        beside: Sequence[Companion] = (),
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
    ) -> None:
        """`budget`: seconds that an answer waits for the first result of a check, less than a kubelet's 1.

        `envoy`: tell Envoy to eject this replica at once while it drains, with
        `x-envoy-immediate-health-check-fail`. `watchdog`: liveness fails when the app's event loop has not
        turned for that many seconds, which only a `SidePort` can tell meanwhile. `beside`: what begins and
        ends with the app, such as a `SidePort`.
        """
        if watchdog is not None and not watchdog > 0:
            raise ConfigError(f"need watchdog > 0 seconds, got watchdog={watchdog}")
        if not 0 <= budget <= 60:
            raise ConfigError(f"need 0 <= budget <= 60 seconds, got budget={budget}")
        self.service = service if service is not None else Service()
        self.lifecycle = Lifecycle()
        self.source: LifecycleSource = self.lifecycle
        self.drain_view: Callable[[], Mapping[str, object]] | None = None
        """What `/health/ready` and `/health/detailed` show as `drain`; None for nothing."""

        self.session_events: Callable[[], Mapping[str, int]] | None = None
        """What `/health/detailed` counts about sessions, as OpenMetrics; None for nothing."""

        self.gate = Gate(details=details, auth=auth, trusted_proxies=trusted_proxies)
        self.thresholds = thresholds if thresholds is not None else Thresholds()
        self.budget = budget
        self._metrics_in_readiness = metrics_in_readiness
        self._retry_after = retry_after
        self.envoy = envoy
        self._watchdog = watchdog
        self._beside = tuple(beside)
        self._clock = clock
        self._wall = self.wall = wall
        self._born = clock()
        self._loops = Loops(beat=None if watchdog is None else watchdog / BEATS)
        self._routes = routes(self.service)
        self._under_checks = under_checks(self.service)
        self._probes: dict[str, Probe] = {}
        self._listeners: list[Callable[[Change], object]] = []
        self._broken: str | None = None
        self._kept: dict[Hashable, Kept] = {}
        self._generation = 0
        self._warm_in: int | None = None
        self._context: Callable[[], AbstractContextManager[object]] = nullcontext
        self._tasks: list[StartupTask] = []
        self._ticker: Ticker | None = None
        self._start_failure: str | None = None
        self._vitals: Vitals | None = None
        self._sampler = Sampler(disk_path=disk_path, clock=clock)
        self._metrics = self._probe(METRICS, self._sample, on_result=lambda *_: self._forget_kept())

    @classmethod
    def of(
        cls,
        *,
        version: str | None = None,
        health: Health | None = None,
        replica_id: str | None = None,
        trusted: TrustedProxies | None = None,
    ) -> Health:
        """The health that a plugin was given, or a new one for that version. Raises ConfigError for both.

        It learns what else the plugin was given, unless it knows better: the replica's id, and whose word
        counts for who a caller is.
        """
        if health is None:
            health = cls(Service(version="unknown" if version is None else version))
        elif version is not None:
            raise ConfigError(f"need version or health, got both: version={version!r} belongs into Service")
        health._introduce(replica_id)
        if health.gate.trusted_proxies is None:
            health.gate.trusted_proxies = trusted
        return health

    def _introduce(self, replica_id: str | None) -> None:
        instance = self.service.instance
        if instance is None:
            # The host name is told to nobody who did not ask for it.
            instance = replica_id if replica_id is not None else os.environ.get("LBKIT_REPLICA_ID") or None
            self.service = replace(self.service, instance=instance)
        elif replica_id not in (None, instance):
            got = f"replica_id={replica_id!r} and instance={instance!r}"
            raise ConfigError(f"need one name for a replica, got {got}")

    # What an app declares.

    def check(
        self,
        name: str,
        *,
        critical: bool = True,
        groups: Iterable[str] = (READY, DETAILED),
        timeout: float = 1.0,
        ttl: float = 5.0,
        fail_ttl: float = 1.0,
        interval: float | None = None,
        max_stale: float = 30.0,
        fails: int = 1,
        passes: int = 1,
        initial: Status = Status.UNKNOWN,
        slow_ms: float = 250.0,
        shared: bool = True,
        shared_grace: float = 0.0,
        flight_key: Hashable | None = None,
        component_type: ComponentType = "datastore",
    ) -> Callable[[Function], Function]:
        """Register the decorated function as a check. Times are in seconds; see `lbkit.health.Check`.

        Raises ConfigError for a name that is taken, and for values that break a rule.
        """
        if isinstance(groups, str):
            raise ConfigError(f"{name}: need groups as a set of names, got the text {groups!r}")
        check = Check(
            name=name,
            critical=critical,
            groups=frozenset(groups),
            timeout=timeout,
            ttl=ttl,
            fail_ttl=fail_ttl,
            interval=interval,
            max_stale=max_stale,
            fails=fails,
            passes=passes,
            initial=initial,
            slow_ms=slow_ms,
            shared=shared,
            shared_grace=shared_grace,
            flight_key=flight_key,
            component_type=component_type,
        )

        def register(function: Function) -> Function:
            self.add(check, function)
            return function

        return register

    def add(self, check: Check, function: CheckFunction) -> None:
        """Register a check without a decorator."""
        if check.name in self._probes:
            raise ConfigError(f"need a name of its own for each check, got {check.name!r} twice")
        if not callable(function):
            raise ConfigError(
                f"check {check.name}: need a function or a coroutine function, got {function!r}"
            )
        self._probes[check.name] = self._probe(check, function, on_result=self._observed)
        self._routes[f"{self._under_checks}{check.name}"] = Route(Endpoint.CHECK, check.name)
        self._forget_kept()
        if not self.cold:
            self._tick_if_needed()

    def startup_task(self, function: Function) -> Function:
        """Run the decorated function once the app's lifespan is up; the app is starting until it has ended.

        Probes are answered meanwhile. If it raises, `/health/startup` fails for good: only a restart helps.
        """
        if not callable(function):
            raise ConfigError(f"need a function or a coroutine function as startup task, got {function!r}")
        name = f"startup-{len(self._tasks) + 1}"
        self._tasks.append(StartupTask(name, self._surrounded(function), self._task_ended))
        self.lifecycle.expect(name)
        return function

    def surround(self, context: Callable[[], AbstractContextManager[object]]) -> None:
        """Run each check and startup task inside a context of its own, such as Flask's `app_context`."""
        self._context = context

    def accompany(self, companion: Companion) -> None:
        """Have something begin and end with the app, as what is given as `beside` does."""
        self._beside = (*self._beside, companion)

    def on_change(self, listener: Callable[[Change], object]) -> Callable[[Change], object]:
        """Call `listener` when the status of a check changes, and only then. It must not block."""
        self._listeners.append(listener)
        return listener

    def broken(self, reason: str) -> None:
        """Declare that only a restart can help: liveness fails from now on. `reason` is one public word."""
        self._broken = reason
        self._forget_kept()

    # What a carrier asks.

    def route(self, path: str) -> Route | None:
        """What a path asks for; None when it is not ours."""
        route = self._routes.get(path)
        if route is not None or not path.startswith(self._under_checks):
            return route
        return Route(Endpoint.CHECK, path[len(self._under_checks) :])

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What each path of ours begins with, so that a carrier may see at a glance that another is not."""
        return tuple({f"/{path.split('/')[1]}" for path in self._routes})

    @property
    def cold(self) -> bool:
        """Whether `start` is still to be called in this process; a forked worker is cold again."""
        return self._warm_in != os.getpid()

    def start(self) -> None:
        """The process serves now. To be called from the app's event loop if it has one; twice is fine."""
        self._loops.adopt()
        if not self.cold:
            return
        self._warm_in = os.getpid()
        self._tick_if_needed()
        for companion in self._beside:
            companion.begin(self)
        for task in self._tasks:
            if not task.ended:
                task.flight.launch(task.function, timeout=None, loops=self._loops)

    def stop(self) -> None:
        """Stop what runs in the background; `start` starts it again."""
        if not self.cold:
            for companion in self._beside:
                companion.end()
        self._warm_in = None
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None
        self._loops.close()

    def level(self, caller: Caller) -> Level:
        return self.gate.level(caller)

    def awaited(self, route: Route) -> list[tuple[Run, float]]:
        """Start what is due; return the runs that an answer must wait for, and the seconds left to each."""
        now = self._clock()
        probes = self._wanted(route)
        for probe in probes:
            probe.look(now)
        return [wait for probe in probes if (wait := probe.awaited(now)) is not None]

    def answer(
        self, route: Route, method: str, query: str, accept: str, level: Level, *, question: Hashable = None
    ) -> Reply:
        """The answer as things are known now, kept to be recalled. Never blocks, never raises."""
        if method not in ("GET", "HEAD"):
            return OPTIONS if method == "OPTIONS" else METHOD_NOT_ALLOWED
        if route.check is not None and route.check not in self._probes:
            return NOT_FOUND
        return self._make(route, query, accept, level, question)

    def report(self, endpoint: Endpoint = Endpoint.DETAILED) -> Report:
        """What an endpoint would say now, as a value. Starts what is due and waits for nothing."""
        return self._report(Route(endpoint), Options())[0]

    def recall(self, question: Hashable, wall: float) -> Reply | None:
        """What was rendered a moment ago for the same question, if it holds at `wall`, in Unix seconds.

        A question is whatever the carrier makes of path, query, Accept and the right to read.
        """
        kept = self._kept.get(question)
        if kept is None or kept.generation != self._generation:
            return None
        # A clock that was set back must not keep anything longer.
        fresh = kept.since <= wall < kept.until
        return kept.reply if fresh and kept.state is self.source.state else None

    def _make(self, route: Route, query: str, accept: str, level: Level, question: Hashable) -> Reply:
        generation = self._generation
        asked = options(query)
        now, wall = self._clock(), self._wall()
        said, until = self._report(route, asked)
        reply = make_reply(
            said,
            format_=choose(accept, asked.format),
            level=level,
            wall=wall,
            max_age=int(max(0.0, min(until - now, 3600.0))),
            headers=self._extra_headers(said),
        )
        # While draining, each answer tells how much is in flight at that instant.
        if question is not None and until > now and said.state is not State.DRAINING:
            self._keep(question, Kept(reply, said.state, generation, wall, wall + min(until - now, FRESH)))
        return reply

    def _keep(self, question: Hashable, kept: Kept) -> None:
        if len(self._kept) >= MOST_KEPT:
            self._kept.clear()
        self._kept[question] = kept

    def _report(self, route: Route, asked: Options) -> tuple[Report, float]:
        """The report, and until when it holds if no result comes in."""
        now = self._clock()
        probes = self._wanted(route)
        for probe in probes:
            probe.look(now)
        views = tuple(probe.view(now) for probe in probes if probe is not self._metrics)
        said = report(
            route.endpoint,
            self._facts(views, now),
            self.service,
            exclude=asked.exclude,
            verbose=asked.verbose,
        )
        return said, min((probe.settled_until(now) for probe in probes), default=math.inf)

    def _facts(self, views: tuple[CheckView, ...], now: float) -> Facts:
        measured = self._metrics.view(now)
        return Facts(
            state=self.source.state,
            views=views,
            # Old figures are no figures: a disk that hangs must not look half empty for ever.
            vitals=None if measured.stale else self._vitals,
            thresholds=self.thresholds,
            started=self.lifecycle.started,
            start_failure=self._start_failure,
            broken=self._broken or self._wedged(),
            metrics_in_readiness=self._metrics_in_readiness,
            uptime=now - self._born,
            drain=None if self.drain_view is None else self.drain_view(),
            session_events=None if self.session_events is None else self.session_events(),
        )

    def _wedged(self) -> str | None:
        wedged = self._watchdog is not None and self._loops.silence() > self._watchdog
        return "event-loop" if wedged else None

    def _wanted(self, route: Route) -> list[Probe]:
        """The probes that an endpoint depends on."""
        endpoint = route.endpoint
        if endpoint is Endpoint.HEALTH and self.service.health_role == "ready":
            endpoint = Endpoint.READY
        if endpoint is Endpoint.CHECK:
            return [self._probes[route.check]] if route.check in self._probes else []
        if endpoint is Endpoint.DETAILED:
            return [*self._in_group(DETAILED), self._metrics]
        if endpoint is Endpoint.READY:
            ready = self._in_group(READY)
            return [*ready, self._metrics] if self._metrics_in_readiness else ready
        return []

    def _in_group(self, group: str) -> list[Probe]:
        return [probe for probe in self._probes.values() if group in probe.check.groups]

    def _extra_headers(self, said: Report) -> tuple[tuple[str, str], ...]:
        headers: list[tuple[str, str]] = []
        if said.code == 503:
            headers.append(("Retry-After", str(self._retry_after)))
        if self.envoy and said.state in (State.DRAINING, State.STOPPED):
            headers.append(("X-Envoy-Immediate-Health-Check-Fail", "true"))
        return tuple(headers)

    def _sample(self) -> None:
        self._vitals = self._sampler.sample()

    def _probe(
        self,
        check: Check,
        function: CheckFunction,
        *,
        on_result: Callable[[Probe, Standing, Standing], None],
    ) -> Probe:
        def make() -> Flight:
            return Flight(clock=self._clock, wall=self._wall)

        flight = make() if check.flight_key is None else shared_flight(check.flight_key, make)
        return Probe(
            check,
            self._surrounded(function),
            flight,
            loops=self._loops,
            clock=self._clock,
            wall=self._wall,
            on_result=on_result,
        )

    def _tick_if_needed(self) -> None:
        """Start the thread of the background checks, if there are any and if it is not on in this process."""
        probes = [probe for probe in self._probes.values() if probe.check.interval is not None]
        if self._ticker is not None:
            self._ticker.stop()
        self._ticker = Ticker(probes, clock=self._clock) if probes else None

    def _surrounded(self, function: CheckFunction) -> CheckFunction:
        if is_async(function):

            async def awaited() -> object:
                with self._context():
                    return await cast(Awaitable[object], function())

            return awaited

        def called() -> object:
            with self._context():
                return function()

        return called

    def _task_ended(self, name: str, outcome: Outcome) -> None:
        if outcome.status is Status.UNHEALTHY:
            self._start_failure = outcome.error
            logger.error("%s failed, and the app stays in its start: %s", name, outcome.error)
        else:
            self.lifecycle.done(name)
        self._forget_kept()

    def _observed(self, probe: Probe, before: Standing, after: Standing) -> None:
        self._forget_kept()
        result = after.result
        if _slow(probe.check, after) and not _slow(probe.check, before):
            logger.warning("check %s has become slow: %s", probe.check.name, _milliseconds(after))
        if before.status is after.status or result is None:
            return
        change = Change(
            check=probe.check.name,
            before=before.status,
            after=after.status,
            error=result.outcome.error,
            critical=probe.check.critical,
        )
        _log(change)
        for listener in tuple(self._listeners):
            try:
                listener(change)
            except Exception:
                logger.exception("a listener failed at %s", change)

    def _forget_kept(self) -> None:
        self._generation += 1


def _slow(check: Check, standing: Standing) -> bool:
    return standing.result is not None and standing.result.seconds * 1000 > check.slow_ms


def _milliseconds(standing: Standing) -> str:
    return "no time yet" if standing.result is None else f"{standing.result.seconds * 1000:.0f} ms"


def _log(change: Change) -> None:
    words = (change.check, change.before.value, change.after.value)
    if change.after is Status.HEALTHY:
        if change.before is not Status.UNKNOWN:
            logger.info("check %s: %s -> %s", *words)
    else:
        logger.warning("check %s: %s -> %s (%s)", *words, change.error or "degraded")
