"""Ports beside the app's own: health answered by a thread of ours when every worker of the server is busy.

`SidePort` speaks HTTP and `AgentPort` HAProxy's agent-check. Both answer from the same results as the
endpoints in front of the app. Give them to `Health(beside=[...])`. They begin with an ASGI app's lifespan,
else with the first request; where nobody asks but here, call `health.start()` in each worker (gunicorn: in
`post_worker_init`).

Of several workers on one host, the first gets the port and speaks for all; when it ends, the next takes over.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from lbkit.errors import ConfigError
from lbkit.health.access import Caller
from lbkit.health.agent import agent_line
from lbkit.health.report import Endpoint
from lbkit.health.routes import Route
from lbkit.monitor import Health
from lbkit.probes import wait

__all__ = ["AgentPort", "SidePort"]

logger = logging.getLogger("lbkit.health")

RETRY = 1.0
"""Seconds between two tries to get a port that a sibling has."""

SLOWEST_CLIENT = 5.0
NOT_OURS = b"404 Not Found: this port answers health alone\n"


class Port:
    """A listener on a daemon thread, between `begin` and `end`."""

    def __init__(self, port: int, *, host: str = "127.0.0.1") -> None:
        """`port` 0 is any free one: see `address`. Loopback alone, unless `host` says otherwise."""
        if not 0 <= port < 65536:
            raise ConfigError(f"need 0 <= port < 65536, got port={port}")
        self._wanted = (host, port)
        self._ended = threading.Event()
        self._server: socketserver.TCPServer | None = None
        self._listening = threading.Event()

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port while this process listens, None while it does not."""
        server = self._server
        return None if server is None else server.server_address[:2]  # type: ignore[return-value]

    def begin(self, health: Health) -> None:
        """Listen, or wait in line for the port."""
        self._ended = threading.Event()
        self._listening = threading.Event()
        way = (health, self._ended, self._listening)
        threading.Thread(target=self._run, args=way, name="lbkit-port", daemon=True).start()
        self._listening.wait(RETRY)

    def end(self) -> None:
        """Stop listening. Answers that are under way are not waited for."""
        self._ended.set()
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()

    def _run(self, health: Health, ended: threading.Event, listening: threading.Event) -> None:
        told = False
        while not ended.is_set():
            try:
                server = self._make(health)
            except OSError as error:
                listening.set()
                if not told:
                    logger.info("port %s:%d is taken, waiting in line for it (%s)", *self._wanted, error)
                    told = True
                ended.wait(RETRY)
                continue
            with server:
                self._server = server
                listening.set()
                server.serve_forever(poll_interval=0.1)
            return

    def _make(self, health: Health) -> socketserver.TCPServer:
        raise NotImplementedError


class SidePort(Port):
    """The health endpoints over HTTP, and nothing else."""

    def _make(self, health: Health) -> socketserver.TCPServer:
        handler = type("Handler", (_HTTPHandler,), {"health": health})
        return _HTTPServer(self._wanted, handler)


class AgentPort(Port):
    """HAProxy's agent-check: `server web1 ... agent-check agent-port 9002`.

    `degraded_percent` is the weight of a replica that is degraded.
    """

    def __init__(self, port: int, *, host: str = "127.0.0.1", degraded_percent: int = 80) -> None:
        super().__init__(port, host=host)
        if not 1 <= degraded_percent <= 100:
            raise ConfigError(f"need 1 <= degraded_percent <= 100, got degraded_percent={degraded_percent}")
        self._degraded_percent = degraded_percent

    def _make(self, health: Health) -> socketserver.TCPServer:
        facts = {"health": health, "degraded_percent": self._degraded_percent}
        return _AgentServer(self._wanted, type("Handler", (_AgentHandler,), facts))


class _HTTPServer(socketserver.ThreadingMixIn, HTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        # HTTPServer's own looks the host's name up, which may take as long as DNS does.
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        logger.debug("a prober of the side port left early", exc_info=True)


class _AgentServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        logger.debug("an agent-check left early", exc_info=True)


class _HTTPHandler(BaseHTTPRequestHandler):
    health: Health
    protocol_version = "HTTP/1.1"
    timeout = SLOWEST_CLIENT
    # One segment for the head and the body: two would wait for each other's acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def __getattr__(self, name: str) -> Any:
        """`do_GET`, `do_HEAD` and all others are one: the answer knows the methods."""
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def version_string(self) -> str:
        return "lbkit"

    def log_message(self, *_: Any) -> None:
        return

    def _answer(self) -> None:
        health = self.health
        path, _, query = self.path.partition("?")
        route = health.route(path)
        if route is None:
            self._send(404, (("Content-Length", str(len(NOT_OURS))),), NOT_OURS)
            return
        accept = self.headers.get("Accept", "")
        level = health.level(self._caller()) if health.gate.asks else health.gate.unproven
        if self.command in ("GET", "HEAD"):
            wait(health.awaited(route), budget=health.budget)
        reply = health.answer(route, self.command, query, accept, level)
        self._send(reply.code, reply.wsgi_headers, reply.body(health.wall()))

    def _send(self, code: int, headers: tuple[tuple[str, str], ...], body: bytes) -> None:
        self.send_response(code)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _caller(self) -> Caller:
        return Caller(self.client_address[0], {name.lower(): value for name, value in self.headers.items()})


class _AgentHandler(socketserver.BaseRequestHandler):
    health: Health
    degraded_percent: int

    def handle(self) -> None:
        wait(self.health.awaited(Route(Endpoint.READY)), budget=self.health.budget)
        line = agent_line(self.health.report(Endpoint.READY), degraded_percent=self.degraded_percent)
        connection: socket.socket = self.request
        connection.settimeout(SLOWEST_CLIENT)
        connection.sendall(line.encode())
