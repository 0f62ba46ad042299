"""A WSGI app as an ASGI app: one hop to a thread and one back for an ordinary request.

The app runs on a thread (PEP 3333). Whatever it needs of the connection it asks of the loop, one
question at a time: the next piece of the request's body, or the next chunk of the answer to be sent. It
waits for the reply, so a slow client slows it down and memory stays flat. Only the last chunk is not
waited for: the client has its answer before `close()` runs, as on a WSGI server.

`a2wsgi` is the oracle: tests/gateways/test_bridge.py runs both and compares. We differ on purpose where
WSGI servers do better: a header name with an underscore is dropped (it would pass for another header),
`wsgi.input_terminated` is set (a chunked upload can be read to its end), a body cut by the client raises
instead of ending early, PATH_INFO keeps bytes that are not UTF-8, a mount is cut off the path only where
a segment ends, and several Cookie lines become one as cookies are joined.
"""

from __future__ import annotations

import asyncio
import contextvars
import io
import sys
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from queue import SimpleQueue
from threading import Lock
from typing import IO, Any
from urllib.parse import unquote_to_bytes

from lbkit.threads import DaemonThreads
from lbkit.types import Environ, ExcInfo, Message, Receive, Scope, Send, WSGIApp

__all__ = ["WSGIBridge"]


class WSGIBridge:
    """Runs a WSGI app on up to `threads` threads of its own; further requests wait in line.

    40 is what Starlette gives to endpoints that are plain functions.
    """

    def __init__(self, app: WSGIApp, *, threads: int = 40) -> None:
        self.app = app
        self._threads = DaemonThreads(limit=threads, name="lbkit-wsgi")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _no_lifespan(receive, send)
        else:
            # A WSGI app has no websockets: the handshake is refused like any other.
            await send({"type": "websocket.close", "code": 1000})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        line = Line(receive, send)
        # Fetched before a thread is taken: a client that is slow to send holds none. Not for a
        # client that waits for "100 Continue", which servers send when the body is first asked for.
        if not _expects_continue(scope):
            await line.fetch()
        if not line.gone:
            call = Call(self.app, environ_of(scope, line.body()), line)
            self._threads.submit(partial(contextvars.copy_context().run, call.run))
            await line.serve()


class Line:
    """What the app's thread asks of the loop, and the replies.

    `serve` answers on the loop; everything marked "thread" is called by the app and may block.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._questions: asyncio.Queue[tuple[Ask, Any]] = asyncio.Queue()
        self._replies: SimpleQueue[None] = SimpleQueue()
        self._one_at_a_time = Lock()
        self._hung_up = False
        self.piece = b""
        self.last_piece = False
        self.gone = False

    async def serve(self) -> None:
        """Answer the thread until its call is over. Raises what the app raised."""
        watch: asyncio.Task[None] | None = None
        try:
            while True:
                ask, what = await self._questions.get()
                if ask is Ask.END:
                    if what is not None:
                        raise what
                    return
                if ask is Ask.READ:
                    await self.fetch()
                else:
                    await self._send_all(what)
                if ask is not Ask.SEND_LAST:
                    self._replies.put(None)
                    # Servers ignore what is sent to a client that left, so an endless answer needs
                    # somebody to notice. Only then: an ordinary answer has no use for a watch.
                    if watch is None and ask is Ask.SEND and self.last_piece:
                        watch = asyncio.create_task(self._watch())
        finally:
            if watch is not None:
                watch.cancel()
            self.gone = self._hung_up = True
            self._replies.put(None)

    async def fetch(self) -> None:
        """Take the next piece of the body from the server."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
        else:
            self.piece = message.get("body", b"")
            self.last_piece = not message.get("more_body", False)

    async def _send_all(self, messages: Sequence[Message]) -> None:
        try:
            for message in messages:
                await self._send(message)
        except OSError:  # the server's way to say that the client left (ASGI 2.4)
            self.gone = True

    async def _watch(self) -> None:
        while not self.gone:
            self.gone = (await self._receive())["type"] == "http.disconnect"

    def body(self) -> IO[bytes]:
        """`wsgi.input`: a file over what is here already, or one that asks for more."""
        return io.BytesIO(self.piece) if self.last_piece else io.BufferedReader(Body(self))

    def ask(self, ask: Ask, what: object) -> bool:
        """Thread: have the loop do it and wait until it has. False when the client is gone."""
        with self._one_at_a_time:
            if self.gone or not self.tell(ask, what):
                return False
            self._replies.get()
            return not self.gone

    def tell(self, ask: Ask, what: object) -> bool:
        """Thread: have the loop do it, and do not wait. False when the loop is closed."""
        try:
            self._loop.call_soon_threadsafe(self._asked, ask, what)
        except RuntimeError:
            return False
        return True

    def _asked(self, ask: Ask, what: object) -> None:
        if self._hung_up:
            self._replies.put(None)
        else:
            self._questions.put_nowait((ask, what))


class Body(io.RawIOBase):
    """The body of a request that is still coming in, as the raw file below `io.BufferedReader`. Thread."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill some of the buffer; 0 at the end. An OSError when the client leaves in the middle."""
        line = self._line
        while not line.piece and not line.last_piece:
            if not line.ask(Ask.READ, None):
                raise ConnectionResetError("the client left before its request was complete")
        size = min(len(buffer), len(line.piece))
        buffer[:size], line.piece = line.piece[:size], line.piece[size:]
        return size


class Ask(Enum):
    READ = "the next piece of the request's body"
    SEND = "send these messages, and say when the server has taken them"
    SEND_LAST = "send these messages, which end the answer"
    END = "the call is over: with an error, or None"


class Call:
    """One run of the WSGI app, all of it on one thread."""

    def __init__(self, app: WSGIApp, environ: Environ, line: Line) -> None:
        self.app = app
        self.environ = environ
        self.line = line
        self._start: Message | None = None
        self._unsent: Message | None = None
        self._left: int | None = None
        self._ended = False

    def run(self) -> None:
        try:
            self._respond()
        except Exception as error:
            self.line.tell(Ask.END, error)
        except BaseException as error:  # an app's sys.exit() ends its request, not our server
            self.line.tell(Ask.END, RuntimeError(f"the app raised {error!r}"))
        else:
            self.line.tell(Ask.END, None)

    def _respond(self) -> None:
        body = self.app(self.environ, self.start_response)
        try:
            if self._start is not None and self._left is None and isinstance(body, (list, tuple)):
                self._left = sum(map(len, body))
            if all(map(self._chunk, body)):
                self._finish()
        finally:
            if close := getattr(body, "close", None):
                close()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], None]:
        """PEP 3333. A second call is for errors, and only until the first byte is out."""
        error = exc_info[1] if exc_info is not None else None
        if error is not None:
            if self._start is not None and self._unsent is None:
                raise error
        elif self._start is not None:
            raise RuntimeError("start_response was called a second time without exc_info")
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        self._start = self._unsent = {
            "type": "http.response.start",
            "status": int(status[:3]),
            "headers": raw,
        }
        self._left = next((int(value) for name, value in raw if name == b"content-length"), None)
        return self._write

    def _write(self, data: bytes) -> None:
        if not self._chunk(data):
            raise ConnectionResetError("the client left before the answer was complete")

    def _chunk(self, data: bytes) -> bool:
        """Send a piece of the answer. False when the client is gone, and the app need not go on."""
        if not data or self._ended:
            return True
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
            if not self._left:
                return self._last(data)
        return self.line.ask(Ask.SEND, self._messages(data, more=True))

    def _finish(self) -> None:
        if not self._ended:
            self._last(b"")

    def _last(self, data: bytes) -> bool:
        self._ended = True
        return self.line.tell(Ask.SEND_LAST, self._messages(data, more=False))

    def _messages(self, data: bytes, *, more: bool) -> list[Message]:
        if self._start is None:
            raise RuntimeError("the app gave a body and never called start_response")
        start, self._unsent = self._unsent, None
        body: Message = {"type": "http.response.body", "body": data, "more_body": more}
        return [body] if start is None else [start, body]


def environ_of(scope: Scope, body: IO[bytes]) -> Environ:
    """PEP 3333's environ. Its strings are bytes in disguise, one character for each byte."""
    mount, path = _split(_path_bytes(scope), scope.get("root_path", "").encode())
    server_host, server_port = scope.get("server") or ("localhost", None)
    environ: Environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": mount.decode("latin-1"),
        "PATH_INFO": path.decode("latin-1"),
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "SERVER_NAME": server_host,
        "SERVER_PORT": str(server_port or 80),
        "SERVER_PROTOCOL": f"HTTP/{scope.get('http_version', '1.1')}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,  # it is one of several replicas
        "wsgi.run_once": False,
    }
    if client := scope.get("client"):
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = client[0], str(client[1])
    _add_headers(environ, scope["headers"])
    return environ


def _add_headers(environ: Environ, headers: Sequence[tuple[bytes, bytes]]) -> None:
    for raw_name, raw_value in headers:
        if b"_" in raw_name:
            continue  # X_Forwarded_For would arrive as X-Forwarded-For
        name, value = raw_name.decode("latin-1").upper().replace("-", "_"), raw_value.decode("latin-1")
        if name not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            name = f"HTTP_{name}"
        if name in environ:
            value = f"{environ[name]}{'; ' if name == 'HTTP_COOKIE' else ','}{value}"
        environ[name] = value


def _split(path: bytes, mount: bytes) -> tuple[bytes, bytes]:
    """The mount and the path below it: /shop and /cart for /shop/cart, but /shopping is not below /shop."""
    below = path[len(mount) :]
    return mount, below if path.startswith(mount) and below[:1] in (b"", b"/") else path


def _path_bytes(scope: Scope) -> bytes:
    """The path as the client sent it, if `raw_path` is still the same path: a mount may have cut it."""
    raw = unquote_to_bytes(scope.get("raw_path") or b"")
    return raw if raw.decode(errors="replace") == scope["path"] else scope["path"].encode()


def _expects_continue(scope: Scope) -> bool:
    return any(name == b"expect" and value.lower() == b"100-continue" for name, value in scope["headers"])


async def _no_lifespan(receive: Receive, send: Send) -> None:
    for phase in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{phase}.complete"})
