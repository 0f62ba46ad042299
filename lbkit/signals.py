"""Who takes SIGTERM in this process, and how we come before them.

A server installs its handler, and we put ours in front of it: ours begins the drain and returns, and when
it is time the old handler runs, in the main thread, as if the signal had just come. Three cases:

==============================  =============================================================
the server's handler            and ours
==============================  =============================================================
`signal.signal` (uvicorn)       the same, in front of it
none (waitress, werkzeug)       the same; the default action is restored and the signal repeated
`loop.add_signal_handler`       the same, on an asyncio loop (hypercorn -w 0)
==============================  =============================================================

A worker of a server with several processes is left alone: a reload sends it the same SIGTERM, and its
siblings would go on. There the process that gets the operator's signal must drain.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["Chain", "LoopChain", "SignalChain", "chain", "supervisor", "worker_of"]

TERM = signal.SIGTERM


class Chain:
    """Our handler in front of another. `wants_old` is asked at each SIGTERM, in the main thread."""

    def __init__(self, wants_old: Callable[[], bool]) -> None:
        self._wants_old = wants_old
        self._pid = os.getpid()

    @property
    def armed(self) -> bool:
        """Whether the handler is really ours, in this very process."""
        return os.getpid() == self._pid

    def remove(self) -> None:
        """Put the old handler back, if the handler is ours."""
        raise NotImplementedError

    def repeat(self) -> None:
        """Have the old handler run, in the main thread: it is time."""
        os.kill(os.getpid(), TERM)

    def _is_for_us(self) -> bool:
        # A fork has inherited the handler; its SIGTERM is none of ours.
        return os.getpid() == self._pid and not self._wants_old()


class SignalChain(Chain):
    """In front of a handler that was set with `signal.signal`, or of the default action."""

    def __init__(self, wants_old: Callable[[], bool]) -> None:
        super().__init__(wants_old)
        self._old: Any = signal.getsignal(TERM)
        self._handler = self._handle
        signal.signal(TERM, self._handler)

    @property
    def armed(self) -> bool:
        return os.getpid() == self._pid and signal.getsignal(TERM) == self._handler

    def remove(self) -> None:
        if self.armed and threading.current_thread() is threading.main_thread():
            signal.signal(TERM, self._old)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_for_us():
            return
        if callable(self._old):
            self._old(number, frame)
        else:
            # The exit status of an untouched process, which whoever started it may look at.
            signal.signal(TERM, signal.SIG_DFL)
            os.kill(os.getpid(), TERM)


class LoopChain(Chain):
    """In front of a handler that was set with `loop.add_signal_handler`."""

    def __init__(self, wants_old: Callable[[], bool], loop: asyncio.AbstractEventLoop, old: Any) -> None:
        super().__init__(wants_old)
        self._loop = loop
        self._old = old
        loop.add_signal_handler(TERM, self._handle)
        self._ours = _loop_handler(loop)

    @property
    def armed(self) -> bool:
        return os.getpid() == self._pid and _loop_handler(self._loop) is self._ours

    def remove(self) -> None:
        if self.armed and not self._loop.is_closed():
            self._loop.add_signal_handler(TERM, self._old._run)

    def _handle(self) -> None:
        if not self._is_for_us():
            self._old._run()


def chain(wants_old: Callable[[], bool]) -> Chain | None:
    """Put us in front of SIGTERM's handler, if this process and this thread can; else None."""
    if threading.current_thread() is not threading.main_thread() or worker_of() is not None:
        return None
    loop = _running_loop()
    if loop is not None and (old := _loop_handler(loop)) is not None:
        return LoopChain(wants_old, loop, old)
    handler = signal.getsignal(TERM)
    # None: set from C, as uWSGI does. Ignored: somebody wants this process to outlive the signal. And
    # asyncio's own stub stands for a handler of a loop that we cannot see (uvloop).
    if handler is None or handler is signal.SIG_IGN or _is_stub(handler):
        return None
    return SignalChain(wants_old)


def worker_of() -> str | None:
    """What this process is a worker of, if another one gets the operator's signal."""
    if "uwsgi" in sys.modules:
        return "uWSGI"
    if os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn"):
        return "gunicorn"
    if multiprocessing.parent_process() is not None:
        return "a process manager"
    return None


def supervisor() -> int:
    """The process that gets the operator's signal: our parent if we are a worker, else ourselves."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        return parent.pid
    return os.getpid() if worker_of() is None else os.getppid()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _loop_handler(loop: asyncio.AbstractEventLoop) -> Any:
    """asyncio keeps them in a private dict, and has no other way to ask for one."""
    handlers = getattr(loop, "_signal_handlers", None)
    return handlers.get(TERM) if isinstance(handlers, dict) else None


def _is_stub(handler: Any) -> bool:
    module = getattr(handler, "__module__", None) or ""
    return module.startswith(("asyncio", "uvloop"))
