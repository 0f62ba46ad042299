"""Active checks of the WSGI balancer: a thread for each replica, which asks its own health endpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable
from io import BytesIO
from queue import Empty, SimpleQueue
from threading import Event, Thread

from lbkit.balancer.check import CheckRules
from lbkit.balancer.checked import LOOK, Checked, Reply
from lbkit.balancer.members import Member
from lbkit.balancer.operated import Served
from lbkit.balancer.replica import Mode, ReplicaState
from lbkit.threads import DaemonThreads
from lbkit.types import Environ, ExcInfo, WSGIApp

__all__ = ["Watch"]

LONGEST = 8 * 1024
"""Bytes of an answer that are looked at."""

HUNG = 10
"""Checks of one replica that may hang at the same time; while so many do, it fails the next ones unasked."""


class Watch:
    """Asks each replica between `start` and `stop`, and tells the balancer."""

    def __init__(self, balancer: Served[Member[WSGIApp]], check: CheckRules) -> None:
        self.balancer = balancer
        self.check = check
        self._stopped = Event()
        self._watching: list[Thread] = []

    def start(self) -> None:
        if self._watching:
            return
        self._stopped = Event()
        for member in self.balancer.replicas.values():
            thread = Thread(
                target=self._watch,
                args=(member, self._stopped),
                name=f"lbkit-check-{member.name}",
                daemon=True,
            )
            self._watching.append(thread)
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._watching:
            thread.join()
        self._watching.clear()

    def _watch(self, member: Member[WSGIApp], stopped: Event) -> None:
        """Who is in maintenance is left alone."""
        state, checked = member.state, Checked(self.check)
        self.balancer.judge(member.name, up=checked.up)
        threads = DaemonThreads(limit=HUNG, name=f"lbkit-check-{member.name}")
        while not stopped.is_set():
            if state.life != checked.life:
                checked = Checked(self.check, life=state.life)
            reply = self._ask(member, threads) if state.mode is not Mode.MAINT else None
            if state.mode is not Mode.MAINT and state.life == checked.life:
                checked.heard(reply)
                self.balancer.judge(member.name, up=checked.up, share=checked.share)
            self._pause(checked, state, stopped)

    def _pause(self, checked: Checked, state: ReplicaState, stopped: Event) -> None:
        """Until the next check, which is at once for a replica that comes back."""
        left = checked.next_after
        while left > 0 and state.life == checked.life and not stopped.wait(min(left, LOOK)):
            left -= LOOK

    def _ask(self, member: Member[WSGIApp], threads: DaemonThreads) -> Reply | None:
        replies: SimpleQueue[Reply | None] = SimpleQueue()
        threads.submit(lambda: replies.put(_asked(member.app, self._environ())))
        try:
            return replies.get(timeout=self.check.timeout)
        except Empty:
            return None

    def _environ(self) -> Environ:
        path, _, query = self.check.path.partition("?")
        return {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_HOST": "localhost",
            "HTTP_USER_AGENT": "lbkit-check",
            "HTTP_ACCEPT": "application/json, text/plain",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
        }


def _asked(app: WSGIApp, environ: Environ) -> Reply | None:
    statuses: list[str] = []

    def start_response(
        status: str, _: list[tuple[str, str]], __: ExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        statuses.append(status)
        return bytes

    try:
        body = app(environ, start_response)
        try:
            text = b"".join(body)[:LONGEST]
        finally:
            close: Callable[[], object] | None = getattr(body, "close", None)
            if close is not None:
                close()
    except Exception:
        return None  # whatever it was: that is what a check is for
    return Reply(int(statuses[-1][:3]), text.decode(errors="replace")) if statuses else None
