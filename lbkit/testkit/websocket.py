"""A websocket client for plain functions, that never waits for ever and knows which replica holds it."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import TimeoutError as FutureTimeout
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from lbkit.testkit.marks import CLIENT, PIN
from lbkit.testkit.row import Row
from lbkit.types import Message, Scope

if TYPE_CHECKING:
    from lbkit.testkit.cluster import Cluster

__all__ = ["Websocket", "WebsocketClosed", "limited"]


class WebsocketClosed(ConnectionError):
    """The other side has closed, or has refused the handshake."""

    def __init__(self, code: int, reason: str, replica: str | None) -> None:
        why = f" ({reason})" if reason else ""
        super().__init__(f"closed with {code}{why} by {replica or 'the balancer'}")
        self.code = code
        self.reason = reason
        self.replica = replica


class Websocket:
    """Made by `client.ws(path)`, and used as a context manager."""

    def __init__(
        self, cluster: Cluster, request: Any, *, client: str, pin: str | None, timeout: float
    ) -> None:
        self._cluster = cluster
        self._scope = _scope(request)
        self._scope[CLIENT] = client
        if pin is not None:
            self._scope[PIN] = pin
        self._timeout = timeout
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: asyncio.Queue[Message] = asyncio.Queue()
        self._sent = 0
        self._row: Row | None = None
        self.subprotocol: str | None = None
        self.closed: WebsocketClosed | None = None

    @property
    def replica(self) -> str | None:
        """The replica that holds it."""
        return self._row.replica if self._row is not None else None

    def __enter__(self) -> Websocket:
        self._cluster.run(self._begin())
        answer = self._get(self._timeout)
        self.subprotocol = answer.get("subprotocol")
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()
        self._cluster.run(self._end())

    def send_text(self, text: str) -> None:
        self._put({"type": "websocket.receive", "text": text})

    def send_bytes(self, data: bytes) -> None:
        self._put({"type": "websocket.receive", "bytes": data})

    def send_json(self, value: object) -> None:
        self.send_text(json.dumps(value, separators=(",", ":")))

    def receive_text(self, *, timeout: float | None = None) -> str:
        """The next message. Raises WebsocketClosed, or TimeoutError with the name of the replica."""
        return cast(str, self._receive(timeout).get("text"))

    def receive_bytes(self, *, timeout: float | None = None) -> bytes:
        return cast(bytes, self._receive(timeout).get("bytes"))

    def receive_json(self, *, timeout: float | None = None) -> Any:
        return json.loads(self.receive_text(timeout=timeout))

    def close(self, code: int = 1000) -> None:
        if self.closed is None:
            self.closed = WebsocketClosed(code, "", None)
            self._tell({"type": "websocket.disconnect", "code": code})

    def _receive(self, timeout: float | None) -> Message:
        return self._get(self._timeout if timeout is None else timeout)

    def _get(self, timeout: float) -> Message:
        if self.closed is not None:
            raise self.closed
        message = self._cluster.run(self._next(timeout))
        if message["type"] == "websocket.close":
            self.closed = WebsocketClosed(
                message.get("code", 1000), message.get("reason") or "", self.replica
            )
            raise self.closed
        return message

    def _put(self, message: Message) -> None:
        if self.closed is not None:
            raise self.closed
        self._sent += 1
        self._tell(message)

    def _tell(self, message: Message) -> None:
        self._cluster.portal.loop.call_soon_threadsafe(self._to_app.put_nowait, message)

    # On the cluster's loop.

    async def _begin(self) -> None:
        self._to_app.put_nowait({"type": "websocket.connect"})
        self._task = asyncio.create_task(self._run())
        # The row is made in the first step of the call.
        before = len(self._cluster.trace)
        while len(self._cluster.trace) == before and not self._task.done():  # noqa: ASYNC110
            await asyncio.sleep(0)
        self._row = next(
            (row for row in reversed(self._cluster.trace) if row.client == self._scope[CLIENT]), None
        )

    async def _run(self) -> None:
        code = 1006
        try:
            await self._cluster.asgi(self._scope, self._to_app.get, self._from_app.put)
            code = 1005
        except Exception as error:
            await self._from_app.put({"type": "websocket.close", "code": 1011, "reason": f"{error!r}"})
        else:
            await self._from_app.put({"type": "websocket.close", "code": code})

    async def _next(self, timeout: float) -> Message:
        try:
            return await asyncio.wait_for(self._from_app.get(), timeout)
        except asyncio.TimeoutError:
            raise silence(self._cluster, self._row, timeout) from None

    async def _end(self) -> None:
        done, _ = await asyncio.wait({self._task}, timeout=self._timeout)
        if not done:
            self._task.cancel()
            await asyncio.wait({self._task})


def silence(cluster: Cluster, row: Row | None, timeout: float) -> TimeoutError:
    """Why nothing may have come: the others who talk on this path are held elsewhere."""
    if row is None:
        return TimeoutError(f"no message in {timeout:g} s")
    others = cluster.trace.by(method="WEBSOCKET", path=row.path).where(
        lambda other: other.open and other.bytes_in > 0 and other is not row
    )
    told = f"no message on {row.path} in {timeout:g} s: this websocket is held by {row.replica}"
    if names := sorted({other.replica for other in others if other.replica}):
        told += f"; messages were sent on {', '.join(names)} only"
    return TimeoutError(told)


def limited(session: Any, cluster: Cluster, client: str, *, timeout: float) -> Any:
    """Starlette's own websocket session, one that does not wait for a message for ever."""

    forever = session.receive

    def receive() -> Any:
        if not hasattr(session, "_send_rx"):  # a Starlette that keeps its messages elsewhere
            return forever()
        message = session.portal.start_task_soon(session._send_rx.receive)
        try:
            return message.result(timeout)
        except FutureTimeout:
            message.cancel()
            held = cluster.trace.by(method="WEBSOCKET", client=client, path=session.scope["path"])
            raise silence(cluster, held[-1] if held else None, timeout) from None

    session.receive = receive
    return session


def _scope(request: Any) -> Scope:
    """The handshake that this request of an httpx client would be."""
    url = request.url
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": url.path,
        "raw_path": url.raw_path.partition(b"?")[0],
        "query_string": url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": ("testclient", 50000),
        "server": (url.host, url.port or 80),
        "subprotocols": [],
        "extensions": {},
        "state": {},
    }
