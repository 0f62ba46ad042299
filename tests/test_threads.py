"""Threads that are made when they are needed, and never more than the limit."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from itertools import count
from queue import SimpleQueue
from threading import Barrier, Event
from uuid import uuid4

import pytest

from lbkit.errors import ConfigError
from lbkit.threads import DaemonThreads

HUNG = 30.0
"""Seconds after which a step counts as hung. Nothing waits this long unless it is."""


@pytest.fixture
def make() -> Callable[[int], DaemonThreads]:
    """DaemonThreads of a limit, each under a name of its own."""
    names = (f"test-{uuid4().hex}" for _ in count())
    return lambda limit: DaemonThreads(limit=limit, name=next(names))


def alive(threads: DaemonThreads) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith(f"{threads.name}-")]


def run(threads: DaemonThreads, call: Callable[[], object] = lambda: None) -> object:
    answer: SimpleQueue[object] = SimpleQueue()
    threads.submit(lambda: answer.put(call()))
    return answer.get(timeout=HUNG)


@pytest.mark.parametrize("limit", [0, -3])
def test_fewer_than_one_thread_is_refused(limit: int) -> None:
    with pytest.raises(ConfigError, match=f"need limit >= 1, got limit={limit}"):
        DaemonThreads(limit=limit, name="x")


def test_a_thread_is_made_with_the_first_call_and_not_before(make: Callable[[int], DaemonThreads]) -> None:
    threads = make(4)
    assert alive(threads) == []
    assert run(threads, lambda: threading.current_thread().daemon) is True
    assert len(alive(threads)) == 1


def test_calls_run_at_once_up_to_the_limit_and_the_rest_wait_in_line(
    make: Callable[[int], DaemonThreads],
) -> None:
    threads = make(3)
    inside, go, done = Barrier(4), Event(), SimpleQueue[int]()

    def hold(number: int) -> None:
        if number < 3:
            inside.wait(HUNG)
        go.wait(HUNG)
        done.put(number)

    for number in range(8):
        threads.submit(lambda number=number: hold(number))  # type: ignore[misc]
    inside.wait(HUNG)  # three are inside at the same time
    assert len(alive(threads)) == 3
    assert done.empty()
    go.set()
    assert sorted(done.get(timeout=HUNG) for _ in range(8)) == list(range(8))
    assert len(alive(threads)) == 3


def test_waiting_calls_run_in_the_order_they_came(make: Callable[[int], DaemonThreads]) -> None:
    threads = make(1)
    go, order = Event(), SimpleQueue[int]()
    threads.submit(lambda: go.wait(HUNG))
    for number in (3, 1, 2, 0):
        threads.submit(lambda number=number: order.put(number))  # type: ignore[misc]
    go.set()
    assert [order.get(timeout=HUNG) for _ in range(4)] == [3, 1, 2, 0]


def test_ten_thousand_calls_from_eight_threads_all_run_once(make: Callable[[int], DaemonThreads]) -> None:
    threads = make(5)
    done: SimpleQueue[int] = SimpleQueue()

    def submit(start: int) -> None:
        for number in range(start, start + 1250):
            threads.submit(lambda number=number: done.put(number))  # type: ignore[misc]

    givers = [threading.Thread(target=submit, args=(start,)) for start in range(0, 10_000, 1250)]
    for giver in givers:
        giver.start()
    for giver in givers:
        giver.join()
    assert sorted(done.get(timeout=HUNG) for _ in range(10_000)) == list(range(10_000))
    assert len(alive(threads)) <= 5


def test_an_idle_thread_keeps_nothing_of_the_last_call_alive(make: Callable[[int], DaemonThreads]) -> None:
    class Request:
        pass

    threads = make(1)
    request = Request()
    gone = Event()
    weakref.finalize(request, gone.set)
    threads.submit(partial(id, request))
    del request
    run(threads)  # the thread has left the first call behind
    gc.collect()
    assert gone.wait(HUNG)


def test_the_threads_end_with_the_object_once_every_call_has_run(
    make: Callable[[int], DaemonThreads],
) -> None:
    threads = make(3)
    inside, go, done = Barrier(4), Event(), SimpleQueue[int]()

    def hold(number: int) -> None:
        if number < 3:
            inside.wait(HUNG)
        go.wait(HUNG)
        done.put(number)

    for number in range(7):
        threads.submit(lambda number=number: hold(number))  # type: ignore[misc]
    inside.wait(HUNG)
    crew = alive(threads)
    assert len(crew) == 3
    del threads
    gc.collect()
    go.set()
    for thread in crew:
        thread.join(HUNG)
        assert not thread.is_alive()
    assert sorted(done.get_nowait() for _ in range(7)) == list(range(7))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_it_works_in_a_forked_child_even_if_the_fork_caught_its_lock_and_all_threads_busy() -> None:
    script = """
import os, sys, threading
from queue import SimpleQueue
from lbkit.threads import DaemonThreads

threads = DaemonThreads(limit=1, name="t")
go, busy = threading.Event(), threading.Event()
threads.submit(lambda: (busy.set(), go.wait(30)))
busy.wait(30)
with threads._crew._lock:  # as another thread in the middle of submit would
    child = os.fork()
    if child == 0:
        answer = SimpleQueue()
        threads.submit(lambda: answer.put(os.getpid()))
        os._exit(0 if answer.get(timeout=30) == os.getpid() else 1)
_, status = os.waitpid(child, 0)
go.set()
answer = SimpleQueue()
threads.submit(lambda: answer.put("parent"))
assert answer.get(timeout=30) == "parent"
sys.exit(os.waitstatus_to_exitcode(status))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], timeout=60, check=False)
    assert done.returncode == 0


def test_a_hung_call_does_not_keep_the_process_alive() -> None:
    script = """
import threading
from lbkit.threads import DaemonThreads

inside = threading.Event()
DaemonThreads(limit=1, name="t").submit(lambda: (inside.set(), threading.Event().wait()))
inside.wait(30)
print("leaving")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], timeout=60, check=True, capture_output=True, text=True
    )
    assert done.stdout == "leaving\n"
