"""A client of the shop that remembers what it was told, and notices when the shop remembers something else.

For each key it knows the values that the shop may show. An answer of 200 leaves one; an answer of 503 leaves
the old one and the new one, because nobody can say whether the store has done it. There are three windows in
which more than one stays possible, all of them documented:

- Redis may still do, when it wakes up, what had been sent to it before: until the weather is `calm` again,
  what was answered with 503 may come true.
- A login or a logout that was answered with 503 may have ended the session.
- A primary that fails takes along what it had not yet sent to its replica: what was acknowledged within
  `LAG` seconds before.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import urlencode

from lbkit.types import ASGIApp, Message

__all__ = ["LAG", "Client", "Weather"]

LAG = 1.0
ABSENT = None
PAUSE = 0.1
"""After a 503, as Retry-After asks, only shorter."""


@dataclass
class Weather:
    """How things stand with Redis, as the test makes them."""

    lost_late: Callable[[], int]
    """How many times the replicas have noted that a write behind an answer's head was lost."""

    calm: bool = True
    seen: Counter[str] = field(default_factory=Counter)
    """What has happened to requests: for the test to see that something has."""

    wrong: list[str] = field(default_factory=list)
    """What must not happen."""


class Client:
    def __init__(self, name: str, app: ASGIApp, weather: Weather, rng: Random) -> None:
        self.name = name
        self.app = app
        self.weather = weather
        self.rng = rng
        self.cookie: str | None = None
        self.may: dict[str, set[Any]] = {}
        self.unsure: dict[str, set[Any]] = {}
        """What was answered with 503 and may still come true."""

        self.may_be_gone = False
        self.dead: list[tuple[float, str]] = []
        """Cookies of sessions that a login or a logout has ended, and since when."""

        self.lately: deque[tuple[float, str, set[Any]]] = deque(maxlen=200)
        self.serial = 0

    async def act(self) -> None:
        """One request, or two at once; which ones, chance decides."""
        actions = (self.look, self.put, self.put, self.fill, self.both, self.log_in, self.listen, self.talk)
        action = self.rng.choice(actions)
        if self.rng.random() < 0.03:
            action = self.log_out
        if self.dead and self.rng.random() < 0.05:
            action = self.try_dead
        if self.weather.calm and self.unsure:
            self.unsure.clear()
        await action()

    # What it does.

    async def look(self) -> None:
        status, body, _ = await self.get("/view")
        if status == 200:
            self.compare(json.loads(body))

    async def put(self) -> None:
        value = self.next_value()
        answer = await self.get("/put", last=value)
        self.learn(answer[0] == 200, answer[2], {"last": value, "count": 1})

    async def fill(self) -> None:
        item, value = self.rng.choice("abc"), self.next_value()
        answer = await self.get("/cart", **{item: value})
        self.learn(answer[0] == 200, answer[2], {f"cart.{item}": value})

    async def both(self) -> None:
        """Two requests of one session at once, for different keys: neither may undo the other."""
        if self.cookie is None:
            return await self.put()
        left, right = self.next_value(), self.next_value()
        answers = await asyncio.gather(self.get("/put", left=left), self.get("/put", right=right))
        anew = any(cookie is not None for _, _, cookie in answers)
        for (status, _, cookie), key, value in zip(answers, ("left", "right"), (left, right), strict=True):
            # Where the session had ended, each may have got one of its own: a browser keeps the last.
            done = status == 200 and not (anew and cookie is None)
            self.learn(done, cookie, {key: value, "count": 1})
            self.may_be_gone = self.may_be_gone or anew
        return None

    async def log_in(self) -> None:
        user, before = self.next_value(), self.cookie
        status, _, cookie = await self.get("/login", user=user)
        if status != 200:
            self.note("_user_id", user, done=False)
            self.may_be_gone = True
            return None
        if cookie is None:
            return self.complain("a login gave no new cookie")
        if before is not None:
            self.dead.append((time.monotonic(), before))
        if self.may_be_gone:  # then this login has begun a session with nothing in it
            self.may = {key: values | {ABSENT} for key, values in self.may.items()}
        self.learn(True, cookie, {"_user_id": user}, rotated=True)
        return None

    async def log_out(self) -> None:
        before = self.cookie
        status, _, _ = await self.get("/logout")
        if before is None:
            return
        if status != 200:
            self.may_be_gone = True
            return
        self.dead.append((time.monotonic(), before))
        self.forget()

    async def listen(self) -> None:
        """A key that is set while the answer is on its way. Were it lost, only a count could tell."""
        value, lost = self.next_value(), self.weather.lost_late()
        status, body, cookie = await self.get("/stream", late=value)
        if self.cookie is not None or cookie is not None:
            done = status == 200 and body == b"firstlast"
            self.learn(done and self.weather.lost_late() == lost, cookie, {"late": value})

    async def talk(self) -> None:
        if self.cookie is None:
            return await self.put()
        value = self.next_value()
        messages = await self.exchange("websocket", "/talk", text=value)
        said = [message.get("text") for message in messages if message["type"] == "websocket.send"]
        if not said:
            self.weather.seen["websocket refused"] += 1
        self.learn(said == ["kept"], None, {"said": value})
        return None

    async def try_dead(self) -> None:
        ended_at, cookie = self.rng.choice(self.dead)
        status, body, _ = await self.get("/view", cookie=cookie)
        if status == 200 and json.loads(body):
            self.complain(f"a session came back {time.monotonic() - ended_at:.2f} s after its end: {body!r}")

    # What it knows.

    def next_value(self) -> str:
        self.serial += 1
        return f"{self.name}-{self.serial}"

    def learn(
        self, done: bool, cookie: str | None, changes: dict[str, Any], *, rotated: bool = False
    ) -> None:
        if cookie is not None and not rotated and self.cookie != cookie:
            self.begin_anew()
        if cookie is not None:
            self.cookie = cookie
        for key, value in changes.items():
            self.note(key, value, done=done)

    def note(self, key: str, value: Any, *, done: bool) -> None:
        before = self.may.get(key, {ABSENT})
        self.lately.append((time.monotonic(), key, before))
        if key == "count":
            after = {(each or 0) + value for each in before}
            self.may[key] = after if done else before | after
        elif done:
            self.may[key] = {value} | self.unsure.get(key, set())
        else:
            self.may[key] = before | {value}
            self.unsure.setdefault(key, set()).add(value)

    def begin_anew(self) -> None:
        """The shop gave out a session where it had one for us, if we had one."""
        if self.cookie is not None and not self.may_be_gone:
            self.complain("a session is gone: the client was logged out")
        self.forget()

    def forget(self) -> None:
        self.cookie = None
        self.may.clear()
        self.unsure.clear()
        self.lately.clear()
        self.may_be_gone = False

    def compare(self, shown: dict[str, Any]) -> None:
        flat = {f"cart.{item}": amount for item, amount in shown.pop("cart", {}).items()} | shown
        if not flat and self.may_be_gone:
            self.weather.seen["gone after an unsure login or logout"] += 1
            return self.forget()
        for key in {*flat, *self.may}:
            value, may = flat.get(key), self.may.get(key, {ABSENT})
            if value not in may:
                self.complain(f"{key} is {value!r}, need one of {sorted(map(repr, may))}")
            if self.weather.calm:
                self.may[key] = {value}
        if self.weather.calm:
            self.may_be_gone = False
        return None

    def lag(self, failed_at: float) -> None:
        """A primary has failed: what it had acknowledged shortly before may not have reached its replica."""
        for at, key, before in self.lately:
            if at > failed_at - LAG:
                self.may[key] = self.may.get(key, {ABSENT}) | before
                self.may_be_gone = True
        self.dead = [(at, cookie) for at, cookie in self.dead if at < failed_at - LAG]

    def complain(self, what: str) -> None:
        self.weather.wrong.append(f"{self.name}: {what}")

    # How it asks.

    async def get(
        self, path: str, *, cookie: str | None = None, **query: str
    ) -> tuple[int, bytes, str | None]:
        """The status, the body, and the session cookie that was set."""
        messages = await self.exchange("http", path, query=query, cookie=cookie)
        status = int(messages[0]["status"]) if messages else 0
        self.weather.seen[str(status)] += 1
        if status not in (200, 503):
            self.complain(f"{path} was answered with {status}")
        if status == 503:
            await asyncio.sleep(PAUSE)
        body = b"".join(message.get("body", b"") for message in messages[1:])
        set_cookie = _cookie(messages[0]["headers"] if messages else ())
        if set_cookie is not None and (status == 503 or (not set_cookie and path != "/logout")):
            self.complain(f"{path} was answered with {status} and the cookie {set_cookie!r}")
        return status, body, set_cookie or None

    async def exchange(
        self, kind: str, path: str, *, query: Any = (), cookie: str | None = None, text: str = ""
    ) -> list[Message]:
        cookie = cookie or self.cookie
        headers = [(b"host", b"shop.example")]
        if cookie is not None:
            headers.append((b"cookie", cookie.encode()))
        scope = _scope(kind, path, urlencode(query), headers)
        sent: list[Message] = []
        over = asyncio.Event()
        script = _script(kind, text)

        async def receive() -> Message:
            if script:
                return script.pop(0)
            await over.wait()
            return {"type": f"{kind}.disconnect", "code": 1000}

        async def send(message: Message) -> None:
            sent.append(message)

        try:
            await self.app(scope, receive, send)
        finally:
            over.set()
        return sent


def _script(kind: str, text: str) -> list[Message]:
    if kind == "http":
        return [{"type": "http.request", "body": b"", "more_body": False}]
    return [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": text}]


def _scope(kind: str, path: str, query: str, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    scope = {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "https" if kind == "http" else "wss",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 4711),
        "server": ("shop.example", 443),
    }
    return scope | ({"method": "GET"} if kind == "http" else {"subprotocols": []})


def _cookie(headers: Any) -> str | None:
    """The session cookie that is set, as it is sent back; empty when it is taken away."""
    for name, value in headers:
        if name == b"set-cookie" and value.startswith(b"__Host-sid="):
            pair = value.decode().partition(";")[0]
            return pair if pair.partition("=")[2].strip('"') else ""
    return None
