"""What came in, as a model or a policy sees it; and its body, kept for a balancer that may send it twice."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from lbkit.balancer.exchange import Request
from lbkit.balancer.hop import peer_address
from lbkit.balancer.lazy import LazyHeaders
from lbkit.types import Environ
from lbkit.wsgi.sticky import path
from lbkit.wsgi.upstream import target_of

__all__ = ["KEPT", "EnvironKey", "KeptBody", "put_cookies", "request_of"]

KEPT = 64 * 1024
"""Bytes of a request's body that are kept, so that it can be sent to another replica."""


class EnvironKey:
    """A request's `RequestKey`."""

    __slots__ = ("_environ",)

    def __init__(self, environ: Environ) -> None:
        self._environ = environ

    @property
    def client(self) -> str | None:
        return self._environ.get("REMOTE_ADDR")

    @property
    def path(self) -> str:
        return path(self._environ)

    def header(self, name: str, /) -> str:
        value: str = self._environ.get(f"HTTP_{name.upper().replace('-', '_')}", "")
        return value


class KeptBody:
    """What the client sends: read before the first attempt when it is small enough to be kept."""

    def __init__(self, environ: Environ) -> None:
        self._stream = environ["wsgi.input"]
        self._bytes: bytes | None = None
        length = environ.get("CONTENT_LENGTH") or ""
        chunked = "HTTP_TRANSFER_ENCODING" in environ
        if length.isdigit() and int(length) <= KEPT:
            self._bytes = self._stream.read(int(length)) if int(length) else b""
        self.kept = self._bytes is not None or not (length or chunked)
        """Whether it can be sent again."""

    def stream(self) -> Any:
        """`wsgi.input` for one attempt."""
        return self._stream if self._bytes is None else BytesIO(self._bytes)


def request_of(environ: Environ) -> Request:
    """The request as a model sees it."""
    return Request(
        method=environ["REQUEST_METHOD"],
        target=target_of(environ).decode("latin-1"),
        client=peer_address(environ.get("REMOTE_ADDR")),
        headers=LazyHeaders(lambda: _headers(environ)),
        body=environ.get("CONTENT_LENGTH", "") not in ("", "0") or "HTTP_TRANSFER_ENCODING" in environ,
    )


def _headers(environ: Environ) -> dict[str, str]:
    return {
        name[5:].lower().replace("_", "-"): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }


def put_cookies(environ: Environ, text: str) -> None:
    """A balancer takes its own cookie out of what the replica sees."""
    environ.pop("HTTP_COOKIE", None)
    if text:
        environ["HTTP_COOKIE"] = text
