"""Runs checks: one run at a time of each, however many ask, and no answer waits longer than its deadline.

A `Flight` is the run of one callable that everybody shares, across event loops, threads and replicas. A
`Probe` is one check of one app: it launches its flight when a result is due and keeps its standing.

A callable cannot be stopped. So a run that is late is reported as a timeout while it goes on, and it keeps
the flight, and with it its one thread or task, until it really ends: a check that hangs costs one thread.
Blocking checks run on daemon threads of their own, so they starve nobody's pool and never hold up the exit.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import time
import weakref
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from contextvars import Context
from dataclasses import replace
from threading import Event, Lock, Thread
from typing import Protocol

from lbkit.health.check import Check, CheckFunction
from lbkit.health.outcome import Outcome, Result, outcome_of, outcome_of_error
from lbkit.health.standing import (
    TIMEOUT,
    CheckView,
    Standing,
    advance,
    due,
    first_wanted,
    next_run,
    overdue,
    settled_until,
    view,
)
from lbkit.types import Clock

__all__ = ["Flight", "Loops", "Probe", "Run", "Ticker", "is_async", "shared_flight", "wait", "wait_async"]

SHORTEST_NAP, LONGEST_NAP = 0.005, 1.0
LAST_WORDS = 0.2
"""Seconds that coroutine checks have to take their cancellation, when our own loop is closed."""


class Listener(Protocol):
    def landed(self, run: Run, result: Result, /) -> None:
        """Called with each result, on the thread that produced it."""
        ...


class Run:
    """One run of a callable. `landed` is done when there is something to report: a result, or a timeout."""

    def __init__(self, started_at: float) -> None:
        self.started_at = started_at
        self.over = False
        """The callable has ended: there is nothing left to be late."""

        self.landed: Future[None] = Future()
        self.task: asyncio.Task[None] | None = None

    def land(self) -> bool:
        """Whether this was the first landing."""
        try:
            self.landed.set_result(None)
        except Exception:
            return False
        return True


class Loops:
    """Where coroutine checks run: on the app's event loop, or on a loop of ours when there is none."""

    def __init__(self, *, name: str = "lbkit-loop", beat: float | None = None) -> None:
        """`beat`: seconds after which the app's loop is to show that it turns; see `silence`."""
        self._name = name
        self._beat = beat
        self._heard_at = 0.0
        self._lock = Lock()
        self._app: asyncio.AbstractEventLoop | None = None
        self._own: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()

    def adopt(self) -> None:
        """The loop that is running now is the app's. Does nothing where there is none."""
        try:
            app = asyncio.get_running_loop()
        except RuntimeError:  # trio, say: our own loop serves it
            app = None
        before, self._app = self._app, app
        if app is not None and app is not before and self._beat is not None:
            self._listen(app, self._beat)

    def silence(self) -> float:
        """Seconds since the app's loop has last turned; 0 when it has none, or when nobody listens to it."""
        app = self._app
        if app is None or self._beat is None or app.is_closed():
            return 0.0
        return time.monotonic() - self._heard_at

    def _listen(self, app: asyncio.AbstractEventLoop, beat: float) -> None:
        self._heard_at = time.monotonic()
        if app is self._app:
            app.call_later(beat, self._listen, app, beat, context=Context())

    def call(self, function: Callable[..., object], *args: object) -> asyncio.AbstractEventLoop:
        """Call a function on the loop, from any thread, in an empty context: a check is nobody's request."""
        app = self._app
        if app is not None and app.is_running():
            try:
                app.call_soon_threadsafe(function, *args, context=Context())
            except RuntimeError:  # closed since
                self._app = None
            else:
                return app
        own = self._ours()
        own.call_soon_threadsafe(function, *args, context=Context())
        return own

    def close(self) -> None:
        self._app = None
        with self._lock:
            own, self._own = self._own, None
        if own is not None and self._pid == os.getpid():
            own.call_soon_threadsafe(own.stop)

    def _ours(self) -> asyncio.AbstractEventLoop:
        if (
            self._pid != os.getpid()
        ):  # a fork copies no threads, and may have copied the lock while it was held
            self._pid, self._lock, self._own = os.getpid(), Lock(), None
        with self._lock:
            if self._own is None:
                self._own = asyncio.new_event_loop()
                Thread(target=_turn, args=(self._own,), name=self._name, daemon=True).start()
            return self._own


class Flight:
    """The runs against one dependency: one at a time, shared by everyone who asks meanwhile.

    Who launches brings the callable, so that a replica that has gone leaves nothing behind.
    """

    def __init__(self, *, clock: Clock = time.monotonic, wall: Clock = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self._lock = Lock()
        self._pid = os.getpid()
        self._run: Run | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: list[weakref.ref[Listener]] = []

    def listen(self, listener: Listener) -> None:
        """Tell `listener` each result, as long as somebody else holds it."""
        alive = [reference for reference in self._listeners if reference() is not None]
        self._listeners = [*alive, weakref.ref(listener)]

    @property
    def run(self) -> Run | None:
        """The run that is going on. None after a fork, and when its event loop is gone."""
        run = self._run
        if run is None:
            return None
        lost = self._pid != os.getpid() or (self._loop is not None and self._loop.is_closed())
        if lost:
            self._forget()
            return None
        return run

    def launch(self, call: CheckFunction, *, timeout: float | None, loops: Loops) -> Run:
        """Start a run, or join the one that is on. A coroutine is cancelled after `timeout` seconds."""
        going = self.run
        if going is not None:
            return going
        if self._pid != os.getpid():
            self._forget()
        with self._lock:
            if self._run is not None:
                return self._run
            run = self._run = Run(self._clock())
            self._loop = None
        self._take_off(run, call, timeout, loops)
        return run

    def _take_off(self, run: Run, call: CheckFunction, timeout: float | None, loops: Loops) -> None:
        try:
            if is_async(call):
                self._loop = loops.call(self._fly, run, call, timeout)
            else:
                way = (run, call, timeout, loops)
                Thread(target=self._block, args=way, name="lbkit-check", daemon=True).start()
        except BaseException as error:
            self._land(run, outcome_of_error(error))
            self._release(run)

    def _block(self, run: Run, call: CheckFunction, timeout: float | None, loops: Loops) -> None:
        """On a thread of its own."""
        try:
            returned = call()
            if inspect.isawaitable(returned):  # a plain function that gives a coroutine
                self._loop = loops.call(self._fly, run, lambda: returned, timeout)
                return
            outcome = outcome_of(returned)
        except BaseException as error:
            outcome = outcome_of_error(error)
        run.over = True
        self._land(run, outcome)
        self._release(run)

    def _fly(self, run: Run, call: Callable[[], object], timeout: float | None) -> None:
        """On the loop. The task is kept, or it could be collected while it runs."""
        run.task = asyncio.get_running_loop().create_task(self._supervise(run, call, timeout))

    async def _supervise(self, run: Run, call: Callable[[], object], timeout: float | None) -> None:
        task = asyncio.ensure_future(_outcome(call))
        try:
            left = None if timeout is None else max(0.0, run.started_at + timeout - self._clock())
            await asyncio.wait({task}, timeout=left)
            if task.done():
                run.over = True
                self._land(run, task.result())
                return
            self._land(run, TIMEOUT)
            task.cancel()
            await asyncio.wait({task})
        finally:
            # Also when the loop shuts down with the check still on: then there is no result.
            task.cancel()
            self._release(run)

    def _land(self, run: Run, outcome: Outcome) -> None:
        """The first landing counts. What a late run brings is dropped: it was a timeout when it mattered."""
        if run is not self._run or run.landed.done():
            return
        now = self._clock()
        result = Result(outcome=outcome, seconds=now - run.started_at, at=now, wall=self._wall())
        for reference in self._listeners:
            if (listener := reference()) is not None:
                listener.landed(run, result)
        run.land()

    def _release(self, run: Run) -> None:
        with self._lock:
            if self._run is run:
                self._run = self._loop = None
        run.land()

    def _forget(self) -> None:
        self._lock = Lock()
        self._pid = os.getpid()
        self._run = self._loop = None


class Probe:
    """One check of one app. Reading it never blocks and never raises."""

    def __init__(
        self,
        check: Check,
        function: CheckFunction,
        flight: Flight,
        *,
        loops: Loops,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
        on_result: Callable[[Probe, Standing, Standing], None],
    ) -> None:
        self.check = check
        self.function = function
        self.flight = flight
        self.standing = Standing(status=check.initial)
        self._loops = loops
        self._clock = clock
        self._wall = wall
        self._on_result = on_result
        self._lock = Lock()
        self._pid = os.getpid()
        flight.listen(self)

    def look(self, now: float) -> None:
        """Start a run if a result is due, and count the run that is late. To be called before `view`."""
        run = self.flight.run
        if run is None:
            if due(self.check, self.standing, now):
                self.launch()
        elif not run.over and overdue(self.check, self.standing, run_started_at=run.started_at, now=now):
            self._time_out(run, now)

    def launch(self) -> Run:
        return self.flight.launch(self.function, timeout=self.check.timeout, loops=self._loops)

    def awaited(self, now: float) -> tuple[Run, float] | None:
        """The run that an answer must wait for, and how many seconds at most. None when it need not wait."""
        run = self.flight.run
        if run is None or run.landed.done() or not first_wanted(self.check, self.standing, now):
            return None
        left = run.started_at + self.check.timeout - now
        return (run, left) if left > 0 else None

    def view(self, now: float) -> CheckView:
        return view(self.check, self.standing, run_started_at=self._started_at(), now=now)

    def settled_until(self, now: float) -> float:
        return settled_until(self.check, self.standing, run_started_at=self._started_at(), now=now)

    def _started_at(self) -> float | None:
        run = self.flight.run
        return None if run is None else run.started_at

    def landed(self, run: Run, result: Result, /) -> None:
        late = result.outcome is TIMEOUT or result.seconds >= self.check.timeout
        if late:
            result = replace(result, outcome=TIMEOUT)
        self._observe(result, unless_since=run.started_at if late else None)

    def _time_out(self, run: Run, now: float) -> None:
        late = Result(outcome=TIMEOUT, seconds=now - run.started_at, at=now, wall=self._wall())
        self._observe(late, unless_since=None, still=run)

    def _observe(self, result: Result, *, unless_since: float | None, still: Run | None = None) -> None:
        if self._pid != os.getpid():
            self._pid, self._lock = os.getpid(), Lock()
        with self._lock:
            before = self.standing
            counted = (
                before.result is not None and unless_since is not None and before.result.at >= unless_since
            )
            # Many readers may find the same run late at once; it is counted for one of them.
            settled = still is not None and not overdue(
                self.check, before, run_started_at=still.started_at, now=result.at
            )
            if counted or settled:
                return
            after = self.standing = advance(self.check, before, result)
        self._on_result(self, before, after)


class Ticker:
    """Starts the runs of background checks, on one daemon thread, until it is stopped.

    Each run is off its interval by up to a tenth: replicas that started together must not ask together.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        *,
        clock: Clock = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._probes = probes
        self._clock = clock
        self._chance = chance
        self._stopped = Event()
        self._jitters: dict[str, tuple[Result | None, float]] = {}
        Thread(target=self._turn, name="lbkit-ticker", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _turn(self) -> None:
        while not self._stopped.is_set():
            self._stopped.wait(self._tick())

    def _tick(self) -> float:
        """Start what is due; return the seconds until something may be due again."""
        now = self._clock()
        naps = [self._attend(probe, now) for probe in self._probes]
        return max(SHORTEST_NAP, min(LONGEST_NAP, *naps))

    def _attend(self, probe: Probe, now: float) -> float:
        probe.look(now)
        run = probe.flight.run
        if run is not None:
            left = run.started_at + probe.check.timeout - now
            return left if left > 0 else probe.check.timeout
        ahead = next_run(probe.check, probe.standing, jitter=self._jitter(probe)) - now
        if ahead <= 0:
            probe.launch()
            return SHORTEST_NAP
        return ahead

    def _jitter(self, probe: Probe) -> float:
        """Drawn once for each result."""
        result, jitter = self._jitters.get(probe.check.name, (None, 0.0))
        if result is not probe.standing.result:
            jitter = 2 * self._chance() - 1
            self._jitters[probe.check.name] = (probe.standing.result, jitter)
        return jitter


_flights: weakref.WeakValueDictionary[Hashable, Flight] = weakref.WeakValueDictionary()
_flights_lock = Lock()


def shared_flight(key: Hashable, make: Callable[[], Flight]) -> Flight:
    """The flight of that key in this process. It lives as long as a check holds it."""
    with _flights_lock:
        flight = _flights.get(key)
        if flight is None:
            flight = _flights[key] = make()
        return flight


def wait(waits: Iterable[tuple[Run, float]], *, budget: float) -> None:
    """Block until each of these runs has landed or its own time is up, `budget` seconds at most."""
    waits = list(waits)
    if waits:
        wait_for_futures([run.landed for run, _ in waits], timeout=_longest(waits, budget))


async def wait_async(waits: Iterable[tuple[Run, float]], *, budget: float) -> None:
    """As `wait`, without blocking the loop. Returns at once where no asyncio loop runs."""
    waits = [(run, left) for run, left in waits if not run.landed.done()]
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    missing = len(waits)
    landed = asyncio.Event()

    def count() -> None:
        nonlocal missing
        missing -= 1
        if missing <= 0:
            landed.set()

    def on_done(_: Future[None]) -> None:
        try:
            loop.call_soon_threadsafe(count)
        except RuntimeError:  # the asker's loop is closed: nobody waits any more
            return

    for run, _ in waits:
        run.landed.add_done_callback(on_done)
    if waits:
        try:
            await asyncio.wait_for(landed.wait(), _longest(waits, budget))
        except asyncio.TimeoutError:
            return


def _longest(waits: list[tuple[Run, float]], budget: float) -> float:
    return min(budget, max(left for _, left in waits))


async def _outcome(call: Callable[[], object]) -> Outcome:
    """A task must not raise SystemExit: asyncio would stop the app's loop with it."""
    try:
        returned = call()
        if isinstance(returned, Awaitable):
            returned = await returned
        return outcome_of(returned)
    except BaseException as error:
        return outcome_of_error(error)


def is_async(call: object) -> bool:
    """Whether calling it gives a coroutine."""
    method = getattr(type(call), "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(method)


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        if left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.wait(left, timeout=LAST_WORDS))
    finally:
        loop.close()
