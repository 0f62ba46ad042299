"""A replica at a URL or a unix socket, as a WSGI app: http goes through, streamed both ways.

It speaks through httpcore, the engine of httpx. What fails before the answer is told as the balancer
understands it: see `lbkit.asgi.upstream`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from http.client import responses
from types import ModuleType
from typing import IO, TYPE_CHECKING
from urllib.parse import quote_from_bytes

from lbkit.balancer.address import Address
from lbkit.balancer.hop import SERVERS_OWN, named_by_connection
from lbkit.errors import MissingExtra, ReplicaRefused, ReplicaReset, ReplicaTimeout
from lbkit.types import Environ, StartResponse

if TYPE_CHECKING:
    import httpcore

__all__ = ["Upstream", "target_of"]

IDLE = 4.0
"""Seconds that an idle connection is kept: less than servers keep theirs."""

CONNECT = 5.0
"""Seconds to connect in."""

PIECE = 64 * 1024

Headers = list[tuple[str, str]]


class Upstream:
    """A WSGI app that hands each request to the server at `url`, and its answer back.

    `read_timeout`: seconds without a byte of the answer, None for no limit.
    """

    def __init__(
        self, url: str, *, idle: float = IDLE, connect: float = CONNECT, read_timeout: float | None = None
    ) -> None:
        self.address = Address.parse(url)
        self.url = url
        self._timeout = {"connect": connect, "read": read_timeout}
        self._pool: httpcore.ConnectionPool = _library().ConnectionPool(
            max_connections=None,  # who gets how many requests is the balancer's to say
            keepalive_expiry=idle,
            uds=self.address.path or None,
        )

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        response = self._asked(environ)
        status = f"{response.status} {responses.get(response.status, 'Unknown')}"
        try:
            start_response(status, _answered(response.headers))
        except BaseException:
            response.close()
            raise
        return Answer(response)

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()

    def _asked(self, environ: Environ) -> httpcore.Response:
        library, at = _library(), self.address
        headers, content = _headers(environ), _content(environ)
        if "HTTP_TRANSFER_ENCODING" in environ and content is not None:
            # A length beside it is not to be believed (RFC 9112, section 6.1): it would cut elsewhere.
            headers = [header for header in headers if header[0] != "content-length"]
            headers.append(("transfer-encoding", "chunked"))
        request = library.Request(
            environ["REQUEST_METHOD"],
            library.URL(scheme=at.scheme, host=at.host, port=at.port, target=target_of(environ)),
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            content=content,
            extensions={"timeout": self._timeout},
        )
        try:
            self._refuse_early()
            return self._pool.handle_request(request)
        except (library.ConnectError, library.ConnectTimeout) as error:
            raise ReplicaRefused(f"{self.url}: {error or type(error).__name__}") from error
        except library.ReadTimeout as error:
            raise ReplicaTimeout(f"{self.url}: no answer in time") from error
        except (library.NetworkError, library.ProtocolError, library.TimeoutException) as error:
            raise ReplicaReset(f"{self.url}: {error or type(error).__name__}") from error

    def _refuse_early(self) -> None:
        """httpcore leaves a unix socket open that was not connected, so a dead one must not get so far."""
        at_hand = any(each.is_idle() and not each.has_expired() for each in self._pool.connections)
        if at_hand or not self.address.path:
            return
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(self._timeout["connect"])
            try:
                probe.connect(self.address.path)
            except OSError as error:
                raise ReplicaRefused(f"{self.url}: {error}") from error


class Answer:
    """The body of the answer, as it comes in."""

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        library = _library()
        try:
            yield from self._response.iter_stream()
        except (library.NetworkError, library.ProtocolError, library.TimeoutException) as error:
            raise ReplicaReset(f"the answer was cut: {error or type(error).__name__}") from error

    def close(self) -> None:
        self._response.close()


def _headers(environ: Environ) -> Headers:
    headers = [
        (name[5:].lower().replace("_", "-"), value)
        for name, value in environ.items()
        if name.startswith("HTTP_")
    ]
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers.append((name.lower().replace("_", "-"), environ[name]))
    if "HTTP_HOST" not in environ:
        headers.append(("host", ""))
    return _end_to_end(headers)


def _content(environ: Environ) -> Iterator[bytes] | None:
    """What is left to read of the request; None when it has no body."""
    stream: IO[bytes] = environ["wsgi.input"]
    if "HTTP_TRANSFER_ENCODING" in environ:
        return iter(lambda: stream.read(PIECE), b"") if environ.get("wsgi.input_terminated") else None
    length = environ.get("CONTENT_LENGTH")
    return _read(stream, int(length)) if length else None


def _read(stream: IO[bytes], left: int) -> Iterator[bytes]:
    while left and (piece := stream.read(min(PIECE, left))):
        left -= len(piece)
        yield piece


def _answered(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    texts = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    return [(name, value) for name, value in _end_to_end(texts) if name.lower() not in SERVERS_OWN]


def _end_to_end(headers: Headers) -> Headers:
    dropped = named_by_connection(value for name, value in headers if name.lower() == "connection")
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def target_of(environ: Environ) -> bytes:
    """The path as it was sent, where the server tells it, and the query string."""
    raw = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if raw and raw.startswith("/"):
        return str(raw).encode("latin-1")
    path = (environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1") or b"/"
    query = environ.get("QUERY_STRING", "")
    target = quote_from_bytes(path, safe="/:@!$&'()*+,;=~")
    return (f"{target}?{query}" if query else target).encode("latin-1")


def _library() -> ModuleType:
    try:
        import httpcore
    except ModuleNotFoundError as error:
        raise MissingExtra("httpcore", extra="upstream") from error
    return httpcore
