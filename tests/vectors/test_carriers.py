"""The carriers do as recorded: nginx' and HAProxy's scripts, played through the balancers that serve.

The models are replayed alone next door. Here the same scripts go through `lbkit.asgi.Balancer` and
`lbkit.wsgi.Balancer` over apps that answer as the recording's replicas did, on a clock of their own, so that
what is carried cannot come to differ from what is decided.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lbkit.asgi.passage
import lbkit.wsgi.passage
from lbkit import ReplicaRefused, ReplicaReset, ReplicaTimeout, asgi, wsgi
from lbkit.balancer import Dispatch
from lbkit.balancer.exchange import Fault, Request
from lbkit.balancer.recorded import haproxy, nginx
from lbkit.balancer.replay import Differs, Play, Recording, Seen, Start
from lbkit.types import Environ, Message, Receive, Scope, Send, StartResponse

FOLDER = Path(__file__).parent / "recordings"
STARTS = {"nginx": nginx.starts, "haproxy": haproxy.starts}
PLAYED = {"req", "backend", "tick", "admin", "start", "finish"}
MOST_STEPS = 130
"""Longer ones only have more keys: the models are replayed with all of them."""


def recorded(*balancers: str, but: frozenset[str] = frozenset()) -> list[Any]:
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        steps = data["requests"]
        if data["balancer"] not in balancers or data["equivalence"] != "exact" or len(steps) > MOST_STEPS:
            continue
        ops = {step["op"] for step in steps if "op" in step}
        waits = any("wait" in step for step in steps)
        if ops and ops <= PLAYED - but and not waits and data["kind"] not in ("ha_observe", "ha_agent"):
            found.append(pytest.param(Recording(data), id=path.stem))
    return found


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Stub:
    """What a recorded replica does with a request: as its mode says, and as the request's headers ask for."""

    def __init__(self, name: str, play: Carried) -> None:
        self.name = name
        self.play = play

    def outcome(self, headers: Mapping[str, str]) -> tuple[int, list[tuple[str, str]]]:
        play, mode = self.play, self.play.modes.get(self.name, {"kind": "ok"})
        if mode["kind"] == "refuse":
            raise ReplicaRefused("refuse")
        play.cookie_seen = headers.get("cookie", "")
        if mode["kind"] == "reset":
            raise ReplicaReset("reset")
        if mode["kind"] == "hang":
            play.clock.now += play.start.read_timeout
            raise ReplicaTimeout("hang")
        play.clock.now += mode.get("ms", 0) / 1000
        wanted = {"set-cookie": headers.get("x-set-cookie"), "cache-control": headers.get("x-cache-control")}
        return mode.get("code", 200), [(name, value) for name, value in wanted.items() if value]

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        if (held := headers.get("x-held")) is not None:
            await self.play.hold(held, self.name)
        await receive()
        status, more = self.outcome(headers)
        raw = [(name.encode(), value.encode("latin-1")) for name, value in more]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": b"ok"})

    def wsgi(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        headers = {
            name[5:].lower().replace("_", "-"): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        status, more = self.outcome(headers)
        start_response(f"{status} As Told", more)
        return [b"ok"]


class Carried(Play):
    """Plays a script through a balancer. Compares what a client and the replicas can see."""

    def __init__(self, recording: Recording, start: Start) -> None:
        super().__init__(recording, start)
        self.clock = Clock(start.now)
        self.rows: list[Dispatch] = []
        self.cookie_seen = ""
        self.balancer: Any = self._balancer()

    def _balancer(self) -> Any:
        raise NotImplementedError

    def _ask(self, request: Request, headers: list[tuple[str, str]]) -> tuple[int, list[str]]:
        """The status and the Set-Cookie lines that the client gets."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        return {
            "profile": self.start.model,
            "on_dispatch": self.rows.append,
            "clock": self.clock,
            "wall": self.clock,
        }

    # -- the clock is the balancer's own

    @property
    def now(self) -> float:
        return self.clock.now if hasattr(self, "clock") else 0.0

    @now.setter
    def now(self, value: float) -> None:
        if hasattr(self, "clock"):
            self.clock.now = value

    # -- the operations

    def _req(self, op: Mapping[str, Any]) -> Seen:
        self.clock.now += op.get("gap", 0.0)
        if "gap" in op and self.start.tick is not None:
            self.start.tick(self.clock.now)
        self.cookie_seen = ""
        status, cookies = self._ask(*self._asked(op))
        return self._seen_of(self.rows[-1], status, cookies)

    def _asked(self, op: Mapping[str, Any]) -> tuple[Request, list[tuple[str, str]]]:
        headers = []
        for name, value in op.get("headers", {}).items():
            lines = value if isinstance(value, list) else [value]
            headers += [(name.lower(), self._dated(line)) for line in lines]
        joined = dict(headers)
        request = Request(
            method=op.get("method", "GET"),
            target=op.get("path", "/"),
            client=op.get("src_bind", "127.0.0.1"),
            headers=joined,
            body=bool(op.get("body")),
        )
        peer = self.start.client(request)
        return Request(request.method, request.target, peer, joined, request.body), headers

    def _seen_of(self, row: Dispatch, status: int, cookies: list[str]) -> Seen:
        tried = row.attempts
        sent = [each for each in tried if each.fault is not Fault.REFUSED]
        answered = bool(tried) and tried[-1].fault is None
        return Seen(
            picked=tried[-1].replica if answered else None,
            status=status,
            attempts=[each.replica for each in (tried if self.start.refused_count else sent)],
            set_cookie=cookies,
            backend_cookie=[self.cookie_seen] if self.cookie_seen else [],
        )

    def _compare(self, seen: Seen, picked: str | None, detail: Mapping[str, Any]) -> None:
        """Without HAProxy's log letters, and without the mark that nobody was left: no client sees those."""
        visible = {key: value for key, value in detail.items() if key != "log"}
        if visible.get("attempts") is not None:
            visible["attempts"] = [each for each in visible["attempts"] if each != "-"]
        if visible.get("status") == 0:
            visible["status"] = 502  # HAProxy closes its connection; a server's is not ours to close
        super()._compare(seen, picked, visible)


class ThroughASGI(Carried):
    def __init__(self, recording: Recording, start: Start) -> None:
        self.loop = asyncio.new_event_loop()
        self.gates: dict[str, asyncio.Event] = {}
        self.arrived: list[dict[str, object]] = []
        self.tasks: dict[object, asyncio.Task[tuple[int, list[str]]]] = {}
        super().__init__(recording, start)

    def _balancer(self) -> Any:
        return asgi.Balancer(
            {name: Stub(name, self).asgi for name in self.start.model.names}, **self.options()
        )

    def run(self) -> None:
        try:
            super().run()
        finally:
            for task in self.tasks.values():
                task.cancel()
            self._settle()
            self.loop.close()

    def _ask(self, request: Request, headers: list[tuple[str, str]]) -> tuple[int, list[str]]:
        return self.loop.run_until_complete(self._through(request, headers))

    async def _through(self, request: Request, headers: list[tuple[str, str]]) -> tuple[int, list[str]]:
        path, _, query = request.target.partition("?")
        scope = {
            "type": "http",
            "method": request.method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "client": (request.client, 1),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        }
        if request.body:
            scope["headers"].append((b"content-length", b"2"))
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"{}" if request.body else b"", "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        await self.balancer(scope, receive, send)
        cookies = [value.decode("latin-1") for name, value in sent[0]["headers"] if name == b"set-cookie"]
        return sent[0]["status"], cookies

    async def hold(self, held: str, replica: str) -> None:
        self.arrived.append({"id": json.loads(held), "picked": replica})
        await self.gates[held].wait()

    def _settle(self) -> None:
        async def some_turns() -> None:
            for _ in range(20):
                await really_sleep(0)

        self.loop.run_until_complete(some_turns())

    def _start(self, op: Mapping[str, Any]) -> Seen:
        request, headers = self._asked(op)
        held = json.dumps(op["id"])
        self.gates[held] = asyncio.Event()
        before, rows = len(self.arrived), len(self.rows)
        task = self.loop.create_task(self._through(request, [*headers, ("x-held", held)]))
        self.tasks[op["id"]] = task
        self._settle()
        if task.done() and len(self.rows) > rows:
            return self._seen_of(self.rows[-1], *task.result())
        if len(self.arrived) == before:
            return Seen(queued=True)
        return Seen(picked=str(self.arrived[-1]["picked"]))

    def _finish(self, op: Mapping[str, Any]) -> Seen:
        before = len(self.arrived)
        self.gates[json.dumps(op["id"])].set()
        self._settle()
        task = self.tasks.pop(op["id"])
        return Seen(status=task.result()[0] if task.done() else None, then_arrived=self.arrived[before:])


class ThroughWSGI(Carried):
    def _balancer(self) -> Any:
        return wsgi.Balancer(
            {name: Stub(name, self).wsgi for name in self.start.model.names}, **self.options()
        )

    def _ask(self, request: Request, headers: list[tuple[str, str]]) -> tuple[int, list[str]]:
        path, _, query = request.target.partition("?")
        environ = {
            "REQUEST_METHOD": request.method,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REMOTE_ADDR": request.client,
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(b"{}"),
            **({"CONTENT_LENGTH": "2"} if request.body else {}),
        }
        for name, value in headers:
            key = f"HTTP_{name.upper().replace('-', '_')}"
            environ[key] = f"{environ[key]}\n{value}" if key in environ else value
        told: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], _: object = None, /
        ) -> Callable[[bytes], object]:
            told.append((status, headers))
            return bytes

        body = self.balancer(environ, start_response)
        assert b"".join(body)
        if close := getattr(body, "close", None):
            close()
        ((status, given),) = told
        return int(status[:3]), [value for name, value in given if name.lower() == "set-cookie"]


really_sleep = asyncio.sleep


def play(kind: type[Carried], recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    (start,) = STARTS[recording.balancer](recording)
    carried = kind(recording, start)

    async def sleep(seconds: float) -> None:
        carried.clock.now += seconds

    def blocking_sleep(seconds: float) -> None:
        carried.clock.now += seconds

    monkeypatch.setattr(lbkit.asgi.passage.asyncio, "sleep", sleep)
    monkeypatch.setattr(lbkit.wsgi.passage, "time", SimpleNamespace(sleep=blocking_sleep, time=time.time))
    carried.run()
    assert not any(state.active for state in carried.balancer.pool.states) or carried.rows


HELD = frozenset({"start", "finish"})


@pytest.mark.parametrize("recording", recorded("nginx", "haproxy"))
def test_the_asgi_balancer_picks_as_the_real_one_did(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(ThroughASGI, recording, monkeypatch)


@pytest.mark.parametrize("recording", recorded("nginx", "haproxy", but=HELD))
def test_the_wsgi_balancer_picks_as_the_real_one_did(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(ThroughWSGI, recording, monkeypatch)


def test_most_of_the_recordings_are_played() -> None:
    assert len(recorded("nginx")) > 40
    assert len(recorded("haproxy")) > 40
    assert len(recorded("nginx", "haproxy")) > len(recorded("nginx", "haproxy", but=HELD)) >= 80


@pytest.mark.parametrize("kind", [ThroughASGI, ThroughWSGI])
def test_a_recording_that_was_altered_in_one_step_differs(
    kind: type[Carried], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.loads((FOLDER / "nginx_fail_mf1_ft2.json").read_text(encoding="utf-8"))
    step = next(at for at, picked in enumerate(data["picked"]) if picked == "b1")
    data["picked"][step] = "b2"
    with pytest.raises(Differs, match=f"differs at step {step}: real b2, lbkit b1"):
        play(kind, Recording(data), monkeypatch)
