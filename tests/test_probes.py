"""Checks as they run: one at a time, on threads of their own, however they behave."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lbkit.errors import ConfigError
from lbkit.health import Outcome, Status, Thresholds
from lbkit.health.report import Endpoint
from lbkit.health.routes import Route
from lbkit.monitor import Change, Health
from lbkit.probes import Flight, Loops, shared_flight, wait
from lbkit.service import Service
from tests.health_gateways import FakeClock, running_loop

READY = Route(Endpoint.READY)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def health() -> Iterator[Health]:
    health = Health(Service(version="1.0.0"), thresholds=Thresholds(cpu=101, memory=101, disk=101))
    yield health
    health.stop()


def until(happens: Callable[[], object], *, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


def ask(health: Health, endpoint: Endpoint = Endpoint.READY) -> Any:
    """The report, once the first results are in."""
    wait(health.awaited(Route(endpoint)), budget=health.budget)
    return health.report(endpoint)


def seen(health: Health, name: str = "database") -> Any:
    return next(view for view in ask(health).views if view.check.name == name)


# However a check behaves.


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, RecursionError])
@pytest.mark.parametrize("flavour", ["sync", "async"])
def test_whatever_a_check_raises_is_an_answer(
    health: Health, kind: type[BaseException], flavour: str
) -> None:
    if flavour == "sync":

        @health.check("database")
        def database() -> None:
            raise kind("secret")
    else:

        @health.check("database")
        async def database_too() -> None:
            raise kind("secret")

    view = seen(health)
    assert (view.status, view.error) == (Status.UNHEALTHY, f"error:{kind.__name__}")


def test_a_check_that_cancels_itself_has_failed(health: Health) -> None:
    @health.check("database")
    async def database() -> None:
        raise asyncio.CancelledError

    assert seen(health).error == "error:CancelledError"


@pytest.mark.parametrize("junk", ["ok", 1, {}, object(), NotImplemented, lambda: None])
def test_junk_is_not_taken_for_health(health: Health, junk: object) -> None:
    health.check("database")(lambda: junk)
    assert seen(health).error == "invalid"


def test_a_plain_function_may_give_a_coroutine(health: Health) -> None:
    async def later() -> bool:
        await asyncio.sleep(0)
        return True

    health.check("database")(lambda: later())
    assert seen(health).status is Status.HEALTHY


def test_an_object_with_an_asynchronous_call_is_a_coroutine_check(health: Health) -> None:
    class Ping:
        async def __call__(self) -> bool:
            return True

    health.check("database")(Ping())
    assert seen(health).status is Status.HEALTHY


def test_a_name_is_taken_once(health: Health) -> None:
    health.check("database")(lambda: None)
    with pytest.raises(ConfigError, match="'database' twice"):
        health.check("database")(lambda: None)


def test_a_group_that_is_a_text_is_refused(health: Health) -> None:
    with pytest.raises(ConfigError, match="set of names, got the text 'ready'"):
        health.check("database", groups="ready")


@pytest.mark.parametrize("junk", [None, 7, "database"])
def test_a_check_that_cannot_be_called_is_refused(health: Health, junk: Any) -> None:
    with pytest.raises(ConfigError, match="need a function"):
        health.check("database")(junk)
    with pytest.raises(ConfigError, match="need a function"):
        health.startup_task(junk)


def test_where_no_thread_can_be_had_the_check_has_failed(
    health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The one thing here that cannot be made real without harming the machine.
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    health.check("database")(lambda: None)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert seen(health).error == "error:RuntimeError"


# Who runs it.


def test_a_blocking_check_has_a_daemon_thread_of_its_own(health: Health) -> None:
    threads: list[threading.Thread] = []
    health.check("database")(lambda: threads.append(threading.current_thread()))
    seen(health)
    assert threads[0].daemon
    assert threads[0].name == "lbkit-check"


def test_a_coroutine_check_runs_on_the_app_s_loop_when_there_is_one(health: Health) -> None:
    loops: list[Any] = []

    @health.check("database", ttl=0)
    async def database() -> None:
        loops.append(asyncio.get_running_loop())

    seen(health)
    assert loops[0].is_running()  # our own: there is no app yet
    with running_loop() as loop:
        asyncio.run_coroutine_threadsafe(started(health), loop).result(timeout=5)
        until(lambda: seen(health) and loops[-1] is loop)
    # And when the app's is gone, on ours again.
    until(lambda: seen(health) and loops[-1] is not loop)


async def started(health: Health) -> None:
    health.start()


def test_a_check_sees_nothing_of_the_request_that_started_it(health: Health) -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    users: list[str] = []

    @health.check("sync")
    def sync() -> None:
        users.append(user.get())

    @health.check("async")
    async def asynchronous() -> None:
        users.append(user.get())

    user.set("alice")
    ask(health)
    assert users == ["nobody", "nobody"]


def test_a_loop_that_goes_away_with_a_check_on_it_holds_nothing_up(health: Health) -> None:
    calls: list[int] = []

    @health.check("database", timeout=30, ttl=0)
    async def database() -> None:
        calls.append(1)
        if len(calls) == 1:
            await asyncio.sleep(60)

    with running_loop() as loop:
        asyncio.run_coroutine_threadsafe(started(health), loop).result(timeout=5)
        health.report(Endpoint.READY)
        until(lambda: calls)
    assert seen(health).status is Status.HEALTHY
    assert len(calls) > 1


def test_a_forked_worker_runs_its_own_checks(health: Health) -> None:
    hold = threading.Event()
    parent = os.getpid()

    @health.check("database", timeout=20)
    def database() -> None:
        if os.getpid() == parent:
            hold.wait(20)  # on its way when the worker is forked, which copies no thread

    health.start()
    health.report(Endpoint.READY)
    read, write = os.pipe()
    child = fork()
    if child == 0:
        try:
            cold = health.cold
            health.start()
            os.write(write, f"{cold} {seen(health).status.value}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        assert answer.read() == "True healthy"
    os.waitpid(child, 0)
    hold.set()


def fork() -> int:
    import warnings

    with warnings.catch_warnings():
        # Python 3.12 warns of forks with threads on, which is what this is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


# Sharing.


def test_who_comes_while_a_run_is_on_joins_it() -> None:
    calls, gate = [], threading.Event()
    flight, loops = Flight(), Loops()

    def call() -> None:
        calls.append(1)
        gate.wait(10)

    runs = {id(flight.launch(call, timeout=20, loops=loops)) for _ in range(64)}
    gate.set()
    assert len(runs) == 1
    assert len(calls) == 1


def test_a_shared_flight_lives_as_long_as_somebody_holds_it() -> None:
    first = shared_flight("key", Flight)
    assert shared_flight("key", Flight) is first
    number = id(first)
    del first
    gc.collect()
    again = shared_flight("key", Flight)
    assert id(again) != number or again.run is None


def test_a_replica_that_is_gone_is_not_asked_for_its_old_connection() -> None:
    def serve(answer: bool) -> Any:
        health = Health()
        health.check("database", flight_key="one database", ttl=0, fail_ttl=0)(lambda: answer)
        return health

    old = serve(False)
    assert seen(old).status is Status.UNHEALTHY
    new = serve(True)
    assert seen(new).status is Status.HEALTHY


# Times.


def test_a_pass_is_believed_for_its_ttl_and_a_failure_for_less(clock: FakeClock) -> None:
    health = Health(clock=clock, wall=clock.wall)
    answers, calls = [True], []

    @health.check("database", ttl=5.0, fail_ttl=1.0)
    def database() -> bool:
        calls.append(clock.now)
        return answers[-1]

    for _ in range(10):
        seen(health)
    assert len(calls) == 1
    clock.now += 5.0
    answers.append(False)
    until(lambda: seen(health).status is Status.UNHEALTHY)
    clock.now += 0.9
    assert seen(health).status is Status.UNHEALTHY
    assert len(calls) == 2
    clock.now += 0.2
    answers.append(True)
    until(lambda: seen(health).status is Status.HEALTHY)
    assert len(calls) == 3


def test_a_prober_that_comes_seldom_gets_a_new_result_and_no_stale_one(clock: FakeClock) -> None:
    health = Health(clock=clock, wall=clock.wall)
    calls: list[int] = []
    health.check("database", ttl=5.0, max_stale=30.0)(lambda: calls.append(1))
    for expected in range(1, 5):
        view = seen(health)
        assert (view.status, view.stale, len(calls)) == (Status.HEALTHY, False, expected)
        clock.now += 300  # an ALB may poll as seldom as this


def test_a_source_that_has_stopped_turns_red_within_max_stale_and_an_interval(clock: FakeClock) -> None:
    health = Health(clock=clock, wall=clock.wall)
    hold = threading.Event()
    calls: list[int] = []

    # So many failures are forgiven that only its age can give it away.
    @health.check("feed", interval=5.0, timeout=10_000.0, max_stale=30.0, fails=1000)
    def feed() -> None:
        calls.append(1)
        if len(calls) > 1:
            hold.wait(30)

    assert seen(health, "feed").status is Status.HEALTHY
    try:
        clock.now += 30
        assert seen(health, "feed").status is Status.HEALTHY
        clock.now += 5.1
        health.budget = 0.0
        view = seen(health, "feed")
        assert (view.status, view.error) == (Status.UNHEALTHY, "stale")
        assert ask(health).code == 503
    finally:
        hold.set()


def test_background_checks_run_without_being_asked(health: Health) -> None:
    calls: list[float] = []
    down: list[bool] = []

    @health.check("feed", interval=0.02)
    def feed() -> bool:
        calls.append(time.monotonic())
        return not down

    health.start()
    until(lambda: len(calls) >= 5)
    assert [thread.name for thread in threading.enumerate()].count("lbkit-ticker") == 1
    health.stop()
    until(lambda: "lbkit-ticker" not in {thread.name for thread in threading.enumerate()})


def test_background_checks_registered_later_run_too(health: Health) -> None:
    calls: list[int] = []
    health.check("first", interval=0.02)(lambda: calls.append(1))
    health.start()
    health.check("second", interval=0.02)(lambda: calls.append(2))
    until(lambda: calls.count(1) > 2 and calls.count(2) > 2)


def test_a_background_check_that_is_down_is_asked_less_and_less(health: Health) -> None:
    calls: list[float] = []
    health.check("feed", interval=0.01)(lambda: calls.append(time.monotonic()) or False)
    health.start()
    until(lambda: len(calls) >= 6)
    gaps = [after - before for before, after in itertools.pairwise(calls)]
    # 0.02, 0.04, 0.08, ... each within a tenth, and never early.
    assert all(gap >= 0.01 * 2.0**number * 0.9 for number, gap in enumerate(gaps, start=1))


def test_a_background_check_that_hangs_is_counted_without_a_reader(health: Health) -> None:
    changes: list[Change] = []
    health.on_change(changes.append)
    hold = threading.Event()
    health.check("feed", interval=0.02, timeout=0.05)(lambda: hold.wait(30) and None)
    health.start()
    try:
        until(lambda: changes)
        assert (changes[0].after, changes[0].error) == (Status.UNHEALTHY, "timeout")
    finally:
        hold.set()


# Telling.


def test_listeners_hear_of_transitions_only(clock: FakeClock) -> None:
    health = Health(clock=clock, wall=clock.wall)
    answers = iter([True, True, False, False, False, True, True])
    changes: list[tuple[str, str]] = []

    @health.on_change
    def hear(change: Change) -> None:
        changes.append((change.before.value, change.after.value))
        raise RuntimeError("a listener that fails harms nobody")

    calls: list[int] = []

    @health.check("database", ttl=1, fail_ttl=1)
    def database() -> bool:
        calls.append(1)
        return next(answers)

    for number in range(1, 8):
        ask(health)
        until(lambda number=number: seen(health).age_ms == 0 and len(calls) == number)  # type: ignore[misc]
        clock.now += 1
    assert changes == [("unknown", "healthy"), ("healthy", "unhealthy"), ("unhealthy", "healthy")]


def test_the_log_tells_changes_and_slowness_and_no_secret(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="lbkit.health")
    health = Health(clock=clock, wall=clock.wall)
    steps: list[Callable[[], None]] = []
    done: list[int] = []

    def refuse() -> None:
        raise ConnectionError("postgres://app:s3cr3t@db/shop")

    def noop() -> None:
        return None

    def take_long() -> None:
        clock.now += 0.4

    @health.check("database", ttl=1, fail_ttl=1, slow_ms=250)
    def database() -> None:
        try:
            steps[-1]()
        finally:
            done.append(1)

    for number, step in enumerate((noop, refuse, refuse, noop, take_long, take_long), start=1):
        steps.append(step)
        until(lambda number=number: seen(health).age_ms == 0 and len(done) == number)  # type: ignore[misc]
        clock.now += 1
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "check database: healthy -> unhealthy (connection)"),
        ("INFO", "check database: unhealthy -> healthy"),
        ("WARNING", "check database has become slow: 400 ms"),
    ]


# Leaving.


SCRIPT = """
import threading, time
from lbkit.monitor import Health
from lbkit.health.report import Endpoint

health = Health()
begun = threading.Event()

@health.check("database", timeout=0.1)
def database():
    begun.set()
    time.sleep(600)

@health.check("cache", timeout=0.1)
async def cache():
    time.sleep(600)

health.check("feed", interval=1.0)(lambda: None)
health.start()
health.report(Endpoint.READY)
begun.wait()
print("bye", flush=True)
"""


def test_a_check_that_hangs_does_not_hold_up_the_exit() -> None:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False
    )
    # The checks would take ten minutes: that it returned at all is the proof.
    assert (done.stdout, done.stderr, done.returncode) == ("bye\n", "", 0)


def test_an_outcome_needs_a_verdict() -> None:
    with pytest.raises(ConfigError):
        Outcome(Status.UNKNOWN)
    with pytest.raises(ConfigError):
        Outcome("healthy")  # type: ignore[arg-type]
