"""What came in, as a model sees it; and its body, kept for a balancer that may have to send it twice."""

from __future__ import annotations

from lbkit.asgi.exchange import LEFT
from lbkit.asgi.sticky import cookies
from lbkit.balancer.exchange import Request
from lbkit.balancer.hop import peer_address
from lbkit.balancer.lazy import LazyHeaders
from lbkit.types import Message, Receive, Scope

__all__ = ["KEPT", "KeptBody", "joined", "request_of", "with_cookies"]

LENGTHS = (b"content-length", b"transfer-encoding")
KEPT = 64 * 1024
"""Bytes of a request's body that are kept, so that it can be sent to another replica."""


class KeptBody:
    """What the client sends, kept up to `KEPT` bytes until an answer begins: for the next replica."""

    gone = False
    over = False
    """The whole request is with the replica that is tried now."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: list[Message] | None = []
        self._size = self._at = 0

    async def receive(self) -> Message:
        if self._kept is not None and self._at < len(self._kept):
            self._at += 1
            message = self._kept[self._at - 1]
            self.over = not message.get("more_body", False)
            return message
        message = await self._receive()
        self.over = not message.get("more_body", False)
        if message["type"] in LEFT:
            self.gone = True
        elif self._kept is not None:
            self._keep(message)
        return message

    def _keep(self, message: Message) -> None:
        self._size += len(message.get("body", b""))
        if self._kept is not None and self._size <= KEPT:
            self._kept.append(message)
            self._at += 1
        else:
            self._kept = None

    def rewind(self) -> bool:
        """Begin again. False: it was too much to be kept."""
        self._at, self.over = 0, False
        return self._kept is not None

    def forget(self) -> None:
        """An answer has begun: nobody else gets this request. What is not read yet is still to come."""
        if self._kept is not None and self._at == len(self._kept):
            self._kept = None


def request_of(scope: Scope) -> Request:
    """The request as a model sees it."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope.get("query_string", b"")
    client = scope.get("client")
    headers = scope["headers"]
    return Request(
        method=scope.get("method", "GET"),
        target=(raw + b"?" + query if query else raw).decode("latin-1"),
        client=peer_address(client[0] if client else None),
        headers=LazyHeaders(lambda: joined(headers)),
        body=any(name in LENGTHS and value != b"0" for name, value in headers),
    )


def joined(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        joined[name] = f"{joined[name]}\n{value}" if name in joined else value
    if "cookie" in joined:  # HTTP/2 splits it into several lines
        joined["cookie"] = cookies(headers)
    return joined


def with_cookies(headers: list[tuple[bytes, bytes]], text: str) -> list[tuple[bytes, bytes]]:
    """A balancer takes its own cookie out of what the replica sees."""
    rest = [header for header in headers if header[0] != b"cookie"]
    return [*rest, (b"cookie", text.encode("latin-1"))] if text else rest
