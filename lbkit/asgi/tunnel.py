"""A websocket to a replica at a URL or a unix socket: the messages of both ends, handed on as they come."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from lbkit.balancer.address import Address
from lbkit.balancer.hop import named_by_connection
from lbkit.errors import MissingExtra, ReplicaRefused, ReplicaReset
from lbkit.types import Receive, Scope, Send

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

__all__ = ["tunnel"]

OWN = (
    "host",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-protocol",
    "sec-websocket-version",
)
"""What each of the two connections has for itself."""

Connection: TypeAlias = "AbstractAsyncContextManager[ClientConnection]"

NORMAL = 1000
GONE = 1006
"""The other end is gone without a word (RFC 6455, section 7.1.5)."""


async def tunnel(
    scope: Scope, receive: Receive, send: Send, *, address: Address, target: str, connect: float
) -> None:
    """Carry one websocket. Raises ReplicaRefused or ReplicaReset when there is no answer to its handshake."""
    await receive()  # websocket.connect
    library = _library()
    try:
        async with _connection(scope, address, target, connect) as far:
            await send({"type": "websocket.accept", "subprotocol": far.subprotocol, "headers": []})
            await _both_ways(far, receive, send)
    except library.exceptions.InvalidStatus as refusal:
        await _refuse(scope, send, refusal.response.status_code, refusal.response.body or b"")
    except (ConnectionRefusedError, FileNotFoundError) as error:
        raise ReplicaRefused(f"{target}: {error}") from error
    except (OSError, library.exceptions.WebSocketException) as error:
        raise ReplicaReset(f"{target}: {error or type(error).__name__}") from error


def _connection(scope: Scope, address: Address, target: str, connect: float) -> Connection:
    client = _library().asyncio.client
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    host = next((value for name, value in headers if name == "host"), "") or address.host
    dropped = named_by_connection(value for name, value in headers if name == "connection").union(OWN)
    options: dict[str, Any] = {
        "additional_headers": [header for header in headers if header[0] not in dropped],
        "subprotocols": scope.get("subprotocols") or None,
        "user_agent_header": None,
        "compression": None,
        "max_size": None,
        "ping_interval": None,  # both ends have pings of their own
        "open_timeout": connect,
        "proxy": None,
    }
    scheme = "wss" if address.scheme == "https" else "ws"
    uri = f"{scheme}://{host}{target}"
    if address.path:
        return cast("Connection", client.unix_connect(address.path, uri, **options))
    return cast("Connection", client.connect(uri, host=address.host, port=address.port, **options))


async def _both_ways(far: ClientConnection, receive: Receive, send: Send) -> None:
    up, down = asyncio.create_task(_up(far, receive)), asyncio.create_task(_down(far, send))
    try:
        await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        up.cancel()
        with suppress(asyncio.CancelledError):
            await up
        # The client has left: what the replica still says is for nobody, but its close is waited for.
        await down


async def _up(far: ClientConnection, receive: Receive) -> None:
    """From the client to the replica, until the client leaves."""
    with suppress(_library().exceptions.ConnectionClosed):
        while (message := await receive())["type"] == "websocket.receive":
            text = message.get("text")
            await far.send(text if text is not None else message["bytes"])
        code = message.get("code", NORMAL)
        await far.close(NORMAL if code in (GONE, 1005) else code, message.get("reason") or "")


async def _down(far: ClientConnection, send: Send) -> None:
    """From the replica to the client, until the replica closes. Raises ReplicaReset when it is gone."""
    closed = _library().exceptions.ConnectionClosed
    with suppress(closed):
        while True:
            message = await far.recv()
            kind = "text" if isinstance(message, str) else "bytes"
            await send({"type": "websocket.send", kind: message})
    code = far.close_code or NORMAL
    if code == GONE:
        raise ReplicaReset("the websocket was cut")
    with suppress(OSError, RuntimeError):  # the client may have left first
        await send({"type": "websocket.close", "code": code, "reason": far.close_reason or ""})


async def _refuse(scope: Scope, send: Send, status: int, body: bytes) -> None:
    """The replica refuses the handshake: with its own answer, where the server can give one."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1000})
        return
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


def _library() -> ModuleType:
    try:
        import websockets
        import websockets.asyncio.client
        import websockets.exceptions
    except ModuleNotFoundError as error:
        raise MissingExtra("websockets", extra="upstream") from error
    return websockets
