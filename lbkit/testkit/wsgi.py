"""How WSGI requests reach the replicas of a cluster: `Door` before the balancer, `Upstream` behind it.

A request runs in the thread that it came on, inside a copy of the context in which its replica was
started. A thread cannot be killed: when its replica is, what the app says from then on is dropped, and the
client gets a failed connection as soon as the app returns. The trace calls such an app a zombie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from threading import Event
from typing import TYPE_CHECKING

from lbkit.errors import ReplicaFault, ReplicaReset, ReplicaTimeout
from lbkit.testkit.backend import Backend
from lbkit.testkit.faults import PIECES_A_SECOND, Plan
from lbkit.testkit.marks import CLIENT, MARKS, PIN, ROW
from lbkit.testkit.retry import Again
from lbkit.testkit.row import Attempt, Row
from lbkit.types import Environ, ExcInfo, StartResponse, WSGIApp

if TYPE_CHECKING:
    from lbkit.testkit.cluster import Cluster

__all__ = ["Door", "Upstream", "Watch", "path_of"]


class Door:
    """The cluster as a WSGI app."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        cluster = self._cluster
        row = cluster.trace.begin(
            cluster.clock(), client=_client(environ), method=environ["REQUEST_METHOD"], path=path_of(environ)
        )
        row.bytes_in = int(environ.get("CONTENT_LENGTH") or 0)
        if cluster.hooks:
            cluster.run(cluster.before(row))
        pin = environ.get(PIN)
        app: WSGIApp = cluster.balancer if pin is None else cluster[pin].upstream
        watch = Watch(row, start_response, cluster.clock)
        inner = {**environ, ROW: row}

        def ask() -> Iterable[bytes]:
            cluster.try_again()
            return app(inner, watch.start)

        watch.begin(ask)
        return watch


class Watch:
    """Notes in the row what passes between the balancer and the client. As an iterable: the body."""

    body: Iterable[bytes] = ()
    _ask: Callable[[], Iterable[bytes]]

    def __init__(self, row: Row, start_response: StartResponse, clock: Callable[[], float]) -> None:
        self._row = row
        self._start_response = start_response
        self._clock = clock

    def begin(self, ask: Callable[[], Iterable[bytes]]) -> None:
        """Ask the balancer, once more for each replica that has failed and may be replaced."""
        self._ask = ask
        while True:
            try:
                self.body = ask()
                return
            except Again:
                continue
            except BaseException:
                self._done()
                raise

    def start(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        write = self._start_response(status, headers, *([exc_info] if exc_info else []))
        self._row.status = int(status[:3])
        self._row.first_byte_at = self._clock()

        def counted(data: bytes) -> object:
            self._row.bytes_out += len(data)
            return write(data)

        return counted

    def __iter__(self) -> Iterator[bytes]:
        row = self._row
        while row.open:
            try:
                for chunk in self.body:
                    row.bytes_out += len(chunk)
                    yield chunk
            except Again:
                self.begin(self._ask)
            else:
                row.last_byte_at = self._clock()
                self._done()

    def close(self) -> None:
        """Whether the body was read or not."""
        try:
            if close := getattr(self.body, "close", None):
                close()
        finally:
            if self._row.open and not self._row.complete:
                self._left()
            self._done()

    def _left(self) -> None:
        """Closed unread: a HEAD request is answered by its headers, anybody else has left."""
        if self._row.method == "HEAD" and self._row.status is not None:
            self._row.last_byte_at = self._clock()
        else:
            self._row.disconnected = not self._broken

    def _done(self) -> None:
        if self._row.open:
            self._row.done_at = self._clock()

    @property
    def _broken(self) -> bool:
        attempts = self._row.attempts
        return bool(attempts) and attempts[-1].fault is not None


class Upstream:
    """A replica as the balancer sees it: an app that can refuse, break and hang like a process."""

    def __init__(self, replica: Backend) -> None:
        self._replica = replica

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        row = environ.get(ROW)
        if row is None:  # a check of the balancer, and no client's request
            unseen = Row.unseen(path_of(environ), self._replica.clock())
            return self._serve(environ, start_response, unseen)
        try:
            return self._serve(environ, start_response, row)
        except ReplicaFault:
            if PIN not in environ and self._replica.may_retry(row, repeatable=unread(environ, row)):
                raise Again from None
            raise

    def _serve(self, environ: Environ, start_response: StartResponse, row: Row) -> Iterable[bytes]:
        replica = self._replica
        attempt = row.ask(replica.name, replica.clock())
        plan = replica.plan(attempt, row)
        if not replica.listens or (plan is not None and plan.refuse):
            raise replica.refused(attempt)
        inner = {key: value for key, value in environ.items() if key not in MARKS}
        call = Call(replica, attempt, plan, start_response)
        replica.enter(call)
        try:
            if plan is not None and plan.crash:
                replica.crash()
            call.run(inner)
        except BaseException:
            call.end()
            raise
        return call


class Call:
    """One request inside one replica. As an iterable: the body of its answer."""

    told = False
    _ended = False

    def __init__(
        self,
        replica: Backend,
        attempt: Attempt,
        plan: Plan | None,
        start_response: StartResponse,
    ) -> None:
        self._replica = replica
        self._attempt = attempt
        self._plan = plan
        self._start_response = start_response
        self._context = replica.context.copy()
        self._dead = Event()
        self._error: OSError | None = None
        self._left = plan.reset_after if plan is not None else None
        self._body: Iterable[bytes] = ()

    def kill(self, error: OSError) -> None:
        """The process is gone. From any thread."""
        self._error = error
        self._dead.set()

    def run(self, environ: Environ) -> None:
        plan = self._plan
        if plan is not None:
            self._dead.wait(plan.delay)
            self._check()
            if plan.hang == "before":
                self._hang()
            if plan.status is not None:
                self._body = self._refuse(plan.status, environ["REQUEST_METHOD"])
                return
        self._attempt.ran = True
        try:
            self._body = self._context.run(self._replica.wsgi, environ, self._start)
        except Exception as error:
            self._raised(error)
        self._attempt.zombie = self._error is not None
        self._check()

    def _start(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        self._check()
        plan = self._plan
        if plan is not None and plan.hang == "headers":
            self._hang()
        if self._left == 0:
            self._break()
        self._attempt.status = int(status[:3])
        write = self._start_response(status, headers, *([exc_info] if exc_info else []))
        if plan is not None and plan.hang == "body":
            write(b"")  # the headers are out, as a server's would be

        def checked(data: bytes) -> object:
            for piece in self._harmed(data):
                write(piece)
            return None

        return checked

    def __iter__(self) -> Iterator[bytes]:
        chunks = iter(self._body)
        try:
            while (chunk := self._next(chunks)) is not None:
                yield from self._harmed(chunk)
            if self._left is not None:  # shorter than the fault has patience for: it still breaks
                self._break()
        finally:
            self.end()

    def _next(self, chunks: Iterator[bytes]) -> bytes | None:
        try:
            chunk: bytes | None = self._context.run(next, chunks, None)
        except Exception as error:
            self._raised(error)
        self._check()
        return chunk

    def _harmed(self, chunk: bytes) -> Iterator[bytes]:
        """What is left of the chunk, if it comes through at all."""
        self._check()
        plan = self._plan
        if plan is None or not chunk:
            yield chunk
            return
        if plan.hang == "body":
            self._hang()
        if self._left is not None and len(chunk) >= self._left:
            yield chunk[: self._left]
            self._break()
        if self._left is not None:
            self._left -= len(chunk)
        yield from self._dripped(chunk, plan.bytes_per_second)

    def _dripped(self, chunk: bytes, rate: float | None) -> Iterator[bytes]:
        size = len(chunk) if rate is None else max(1, int(rate / PIECES_A_SECOND))
        for start in range(0, len(chunk), size):
            if start and rate is not None:
                self._dead.wait(size / rate)
                self._check()
            yield chunk[start : start + size]

    def _refuse(self, status: int, method: str) -> list[bytes]:
        body = f"{status} as injected into {self._replica.name}\n".encode()
        headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
        self._start(f"{status} Injected", headers)
        return [b"" if method == "HEAD" else body]

    def _check(self) -> None:
        """Raise what happened to the connection meanwhile."""
        if self._error is not None:
            self._attempt.fault = "timeout" if isinstance(self._error, ReplicaTimeout) else "reset"
            raise self._error

    def _hang(self) -> None:
        self._dead.wait(self._replica.timeout)
        if self._error is None:
            seconds = f"{self._replica.timeout:g} s"
            self._error = ReplicaTimeout(f"replica {self._replica.name} was silent for {seconds}")
        self._check()

    def _break(self) -> None:
        self._error = self._error or ReplicaReset(f"replica {self._replica.name} broke the connection")
        self._check()

    def _raised(self, error: Exception) -> None:
        self._attempt.zombie = self._error not in (None, error)
        self._check()
        self._attempt.fault = f"raised {type(error).__name__}: {error}"
        raise error

    def close(self) -> None:
        try:
            if close := getattr(self._body, "close", None):
                self._context.run(close)
        finally:
            self.end()

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._attempt.ended_at = self._replica.clock()
            self._replica.leave(self)


def unread(environ: Environ, row: Row) -> bool:
    """Whether the body of a request that has failed can be sent once more."""
    return row.attempts[-1].fault == "refused" or int(environ.get("CONTENT_LENGTH") or 0) == 0


def _client(environ: Environ) -> str:
    if CLIENT in environ:
        return str(environ[CLIENT])
    host, port = environ.get("REMOTE_ADDR"), environ.get("REMOTE_PORT")
    return "-" if host is None else host if port is None else f"{host}:{port}"


def path_of(environ: Environ) -> str:
    path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return path.encode("latin-1").decode("utf-8", "replace")
