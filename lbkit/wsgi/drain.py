"""Graceful drain in front of a WSGI app: counts what is in flight, and lets streams end well.

A request is inside until its body has been read to the end or closed, whichever comes first: PEP 3333
ends a request at `close()`, but asgiref, Starlette and uvicorn run WSGI apps and never call it, and
werkzeug's own server calls it late. While draining, connections close after the answer. Near the end of
the delay an event stream gets a last event after its next one; a thread that waits cannot be woken.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, cast

from lbkit.departure import Departure
from lbkit.drain import rejects, spread
from lbkit.types import Environ, ExcInfo, StartResponse, WSGIApp
from lbkit.wsgi.connection import close_after
from lbkit.wsgi.operator import OperatorMiddleware

__all__ = ["DrainMiddleware"]

LAST_EVENT = b"event: shutdown\nretry: 1000\ndata:\n\n"
REFUSAL = b"503 Service Unavailable: this replica is leaving the pool\n"
REFUSAL_HEADERS = [
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Content-Length", str(len(REFUSAL))),
    ("Retry-After", "1"),
    ("Cache-Control", "no-store"),
]


class DrainMiddleware:
    """Put it around the whole app, and the health endpoints around it: probes must not count.

    Make it in the main thread: a server without a SIGTERM handler of its own (waitress, werkzeug) has no
    later moment at which we could take the signal.
    """

    def __init__(self, app: WSGIApp, departure: Departure) -> None:
        operator = departure.operator
        self.app = app if operator is None else OperatorMiddleware(app, departure, operator)
        self.departure = departure
        self._drain = departure.drain
        departure.on_streams_end(self._end_streams)
        departure.arm()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if self.departure.cold:
            self.departure.start()
        drain = self._drain
        if drain.draining and self._rejects(environ):
            headers = [*REFUSAL_HEADERS, *self.departure.parting, *close_after(environ, start_response)]
            start_response("503 Service Unavailable", headers)
            return [REFUSAL]
        exchange = Exchange(self.departure, environ, start_response)
        drain.inside[exchange] = environ
        try:
            body = self.app(environ, exchange.start_response)
        except BaseException:
            drain.inside.pop(exchange, None)
            raise
        exchange.body = body
        # A server may send Content-Length for a body of one piece: it must still see that it is one.
        if isinstance(body, (list, tuple)):
            return SizedBody(exchange, body)
        return _file(body, exchange) if _is_file(body, environ) else exchange

    def _rejects(self, environ: Environ) -> bool:
        marked = environ.get("HTTP_X_LB_RETRY_503") == "1"
        return rejects(self.departure.reject, method=environ["REQUEST_METHOD"], marked=marked)

    def _end_streams(self, seconds: float) -> None:
        """On the drain's thread. Streams that have been told already are left alone."""
        streams = [ticket for ticket in self._drain.tickets() if isinstance(ticket, Exchange)]
        streams = [stream for stream in streams if stream.ends_at is None and stream.endless]
        for index, stream in enumerate(streams):
            after = spread(index, len(streams), seconds=seconds, chance=random.random())  # noqa: S311
            stream.ends_at = self.departure.clock() + after


class Exchange:
    """One request on its way, and the body of its answer. Counted out once, however it ends."""

    __slots__ = ("_departure", "_drain", "_environ", "_headers", "_start_response", "body", "ends_at")

    def __init__(self, departure: Departure, environ: Environ, start_response: StartResponse) -> None:
        self._departure = departure
        self._drain = departure.drain
        self._environ = environ
        self._start_response = start_response
        self._headers: list[tuple[str, str]] = []
        self.body: Iterable[bytes] = ()
        self.ends_at: float | None = None

    def start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: ExcInfo | tuple[None, None, None] | None = None,
        /,
    ) -> Callable[[bytes], object]:
        self._headers = headers
        if self._drain.draining:
            close = close_after(self._environ, self._start_response)
            headers = [*headers, *self._departure.parting, *close]
        if exc_info is None:  # a server written to the letter may take two arguments alone
            return self._start_response(status, headers)
        return self._start_response(status, headers, exc_info)

    @property
    def endless(self) -> bool:
        return any(
            name.lower() == "content-type" and value.lstrip().lower().startswith("text/event-stream")
            for name, value in self._headers
        )

    def __iter__(self) -> Iterator[bytes]:
        drain, clock = self._drain, self._departure.clock
        try:
            for chunk in self.body:
                yield chunk
                if drain.draining and self.ends_at is not None and clock() >= self.ends_at:
                    # The head promised to keep the connection, and gunicorn waits two seconds on it.
                    close_after(self._environ, self._start_response)
                    yield LAST_EVENT
                    break
        finally:
            drain.inside.pop(self, None)

    def close(self) -> None:
        try:
            if (close := getattr(self.body, "close", None)) is not None:
                close()
        finally:
            # A body that is closed unread (HEAD, a client that hung up) never enters __iter__.
            self._drain.inside.pop(self, None)


class SizedBody:
    """The same for a body whose number of pieces is known."""

    __slots__ = ("_exchange", "_size")

    def __init__(self, exchange: Exchange, body: Sized) -> None:
        self._exchange = exchange
        self._size = len(body)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._exchange)

    def close(self) -> None:
        self._exchange.close()


def _is_file(body: Iterable[bytes], environ: Environ) -> bool:
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)


def _file(body: Any, exchange: Exchange) -> Iterable[bytes]:
    """A server sends its own file wrapper by sendfile, so it must get that very object back, and close it."""
    close = getattr(body, "close", None)

    def counted() -> None:
        exchange.body = ()  # what is closed below is not closed twice
        exchange.close()
        if close is not None:
            close()

    body.close = counted
    return cast("Iterable[bytes]", body)
