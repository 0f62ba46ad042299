"""The chat behind three replicas: everybody hears everybody, nothing comes twice, and who leaves is gone."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from lbkit.asgi import Balancer
from lbkit.types import Message
from sample_apps.starlette_chat.app import create_app
from sample_apps.starlette_chat.store import Event, Store
from sample_apps.starlette_chat.words import read_id
from tests.e2e.serving import served as lbkit_serve
from tests.sample_apps.live import LIMIT, replica, served


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "chat.sqlite3"


@pytest.fixture
def url(file: Path) -> Iterator[str]:
    with served(Balancer.from_factory(lambda: create_app(file, idle=0.2), replicas=3)) as url:
        yield url


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """For what is refused, and so leaves no trace for the next test."""
    file = tmp_path_factory.mktemp("chat") / "chat.sqlite3"
    with served(Balancer.from_factory(lambda: create_app(file), replicas=3)) as url:
        yield url


class Socket:
    """Somebody in a room over a websocket."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        assert connection.response is not None
        self.replica = connection.response.headers["x-lbkit-replica"]
        self.hello = self.next()
        assert self.hello["kind"] == "hello"

    def next(self) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads(self.connection.recv(timeout=LIMIT)))

    def say(self, text: str | bytes) -> None:
        self.connection.send(text)


class Stream:
    """Somebody in a room over server-sent events."""

    def __init__(self, answer: httpx.Response) -> None:
        assert answer.headers["content-type"].startswith("text/event-stream")
        self.replica = replica(answer)
        self.lines = answer.iter_lines()
        self.hello = self.next()
        assert self.hello["kind"] == "hello"

    def next(self) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads(self.line("data: ")))

    def line(self, start: str) -> str:
        return next(line for line in self.lines if line.startswith(start)).removeprefix(start)


@contextmanager
def socket(url: str, name: str, *, room: str = "kitchen", query: str = "") -> Iterator[Socket]:
    address = f"{url.replace('http', 'ws', 1)}/rooms/{quote(room)}/socket?name={name}{query}"
    with connect(address, open_timeout=LIMIT, close_timeout=LIMIT) as connection:
        yield Socket(connection)


@contextmanager
def stream(url: str, name: str, *, room: str = "kitchen", last: str | None = None) -> Iterator[Stream]:
    headers = {"last-event-id": last} if last is not None else {}
    with httpx.stream(
        "GET", f"{url}/rooms/{room}/events", params={"name": name}, headers=headers, timeout=LIMIT
    ) as answer:
        yield Stream(answer)


def post(url: str, text: str, *, name: str = "eve", room: str = "kitchen") -> httpx.Response:
    return httpx.post(f"{url}/rooms/{room}/messages", json={"name": name, "text": text}, timeout=LIMIT)


def texts(listener: Socket | Stream, count: int) -> list[str]:
    """The next `count` messages, without who came and went."""
    heard: list[str] = []
    while len(heard) < count:
        if (event := listener.next())["kind"] == "message":
            heard.append(event["text"])
    return heard


def until(listener: Socket | Stream, kind: str, author: str) -> None:
    while True:
        event = listener.next()
        if (event["kind"], event["author"]) == (kind, author):
            return


def people(url: str, room: str = "kitchen") -> list[str]:
    return [person["name"] for person in httpx.get(f"{url}/rooms/{room}/people", timeout=LIMIT).json()]


# ---- everybody hears everybody ----------------------------------------------------------------


def test_two_sockets_and_a_stream_on_three_replicas_hear_each_other_in_one_order(url: str) -> None:
    with socket(url, "ann") as ann, socket(url, "bob") as bob, stream(url, "cem") as cem:
        assert {ann.replica, bob.replica, cem.replica} == {"web1", "web2", "web3"}
        assert len({each.hello["via"] for each in (ann, bob, cem)}) == 3
        ann.say("from ann")
        assert [texts(each, 1) for each in (ann, bob, cem)] == [["from ann"]] * 3
        bob.say("from bob")
        post(url, "from cem", name="cem")
        heard = [texts(each, 2) for each in (ann, bob, cem)]
        assert sorted(heard[0]) == ["from bob", "from cem"]
        assert heard[0] == heard[1] == heard[2]


def test_many_messages_said_at_once_on_three_replicas_arrive_everywhere_once_and_in_one_order(
    url: str,
) -> None:
    with socket(url, "ann") as ann, socket(url, "bob") as bob, socket(url, "cem") as cem:
        everybody = {"a": ann, "b": bob, "c": cem}
        for number in range(40):
            for letter, each in everybody.items():
                each.say(f"{letter}{number}")
        heard = [texts(each, 120) for each in everybody.values()]
        assert heard[0] == heard[1] == heard[2]
        assert len(set(heard[0])) == 120
        for letter in everybody:
            assert [text for text in heard[0] if text[0] == letter] == [f"{letter}{n}" for n in range(40)]


def test_rooms_do_not_hear_each_other(url: str) -> None:
    with socket(url, "ann", room="kitchen") as ann, socket(url, "bob", room="cellar") as bob:
        ann.say("kitchen only")
        bob.say("cellar only")
        assert texts(ann, 1) == ["kitchen only"]
        assert texts(bob, 1) == ["cellar only"]


def test_who_comes_in_sees_what_was_said_before(url: str) -> None:
    with socket(url, "early") as early:
        for number in range(60):
            early.say(str(number))
        texts(early, 60)
        with socket(url, "late") as late:
            # The latest fifty, of which one is that somebody came in.
            assert texts(late, 49) == [str(number) for number in range(11, 60)]


def test_what_people_write_arrives_as_they_wrote_it(url: str) -> None:
    said = ["<b>&amp;</b>", "data: x", "two\nlines", "👩‍👩‍👧 שלום\u2028x", "x" * 2000]
    with socket(url, "ann") as ann, stream(url, "bob") as bob:
        for text in said:
            ann.say(text)
        assert texts(ann, len(said)) == said
        assert texts(bob, len(said)) == said


# ---- a break in the line ----------------------------------------------------------------------


def test_a_stream_that_breaks_resumes_on_another_replica_with_what_it_missed(url: str) -> None:
    with stream(url, "ann") as ann:
        post(url, "heard")
        assert texts(ann, 1) == ["heard"]
        last = str(
            httpx.post(f"{url}/rooms/kitchen/messages", json={"name": "eve", "text": "2"}).json()["id"]
        )
        first = ann.replica
        until_id(ann, last)
    post(url, "missed one")
    post(url, "missed two")
    with stream(url, "ann", last=last) as ann:
        assert ann.replica != first
        assert texts(ann, 2) == ["missed one", "missed two"]
        post(url, "live again")
        assert texts(ann, 1) == ["live again"]


def until_id(listener: Stream, last: str) -> None:
    while listener.line("id: ") != last:
        pass


def test_a_socket_resumes_after_the_id_it_names(url: str) -> None:
    ids = [post(url, text).json()["id"] for text in ("one", "two", "three")]
    with socket(url, "ann", query=f"&last={ids[0]}") as ann:
        assert texts(ann, 2) == ["two", "three"]


@pytest.mark.parametrize("last", ["", "junk", "-1", "1.5", "9" * 18, "9" * 5000, "\xb2"])
def test_an_id_that_we_never_gave_out_begins_anew(url: str, last: str) -> None:
    post(url, "before")
    with httpx.stream(
        "GET",
        f"{url}/rooms/kitchen/events",
        params={"name": "ann"},
        headers=[(b"last-event-id", last.encode("latin-1"))],
        timeout=LIMIT,
    ) as answer:
        assert texts(Stream(answer), 1) == ["before"]


def test_an_id_of_another_script_is_no_id() -> None:
    assert [read_id(text) for text in ("٣", "²", "1_0", " 1", "12")] == [None, None, None, None, 12]


def test_a_quiet_stream_gets_a_comment_so_that_no_proxy_thinks_it_dead(url: str) -> None:
    with stream(url, "ann") as ann:
        assert ann.line(": ") == "still here"


# ---- leaving ----------------------------------------------------------------------------------


def test_a_socket_that_closes_gives_up_its_seat_and_the_room_is_told(url: str) -> None:
    with socket(url, "ann") as ann:
        with socket(url, "bob"):
            until(ann, "joined", "bob")
            assert people(url) == ["ann", "bob"]
        until(ann, "left", "bob")
        assert people(url) == ["ann"]


def test_a_stream_that_breaks_off_gives_up_its_seat_and_the_room_is_told(url: str) -> None:
    with socket(url, "ann") as ann:
        with stream(url, "bob"):
            until(ann, "joined", "bob")
        until(ann, "left", "bob")
        assert people(url) == ["ann"]


def test_somebody_with_two_windows_on_two_replicas_leaves_with_the_last(url: str) -> None:
    with socket(url, "ann") as ann:
        with socket(url, "bob") as one:
            with socket(url, "bob") as two:
                assert one.replica != two.replica
            one.say("still here")
            assert texts(ann, 1) == ["still here"]
            assert set(people(url)) == {"ann", "bob"}
        until(ann, "left", "bob")


def test_a_replica_that_shuts_down_ends_its_streams_and_gives_up_its_seats(file: Path) -> None:
    """As ASGI servers do that stop an app while it still has connections. No server: no timeouts."""

    async def scenario() -> tuple[list[Message], list[tuple[str, str]]]:
        app = create_app(file)
        to_app: asyncio.Queue[Message] = asyncio.Queue()
        from_app: asyncio.Queue[Message] = asyncio.Queue()
        alive = asyncio.create_task(app({"type": "lifespan", "state": {}}, to_app.get, from_app.put))
        await to_app.put({"type": "lifespan.startup"})
        assert (await from_app.get())["type"] == "lifespan.startup.complete"

        sent: asyncio.Queue[Message] = asyncio.Queue()
        never: asyncio.Queue[Message] = asyncio.Queue()
        listening = asyncio.create_task(app(request("/rooms/hall/events", b"name=ann"), never.get, sent.put))
        while b"hello" not in (await sent.get()).get("body", b""):
            pass
        await to_app.put({"type": "lifespan.shutdown"})
        assert (await from_app.get())["type"] == "lifespan.shutdown.complete"
        await asyncio.gather(alive, listening)
        messages = [sent.get_nowait() for _ in range(sent.qsize())]
        with closing(Store(file, instance="other")) as store:
            return messages, store.people("hall")

    messages, left_behind = asyncio.run(asyncio.wait_for(scenario(), LIMIT))
    assert messages[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert left_behind == []


def request(path: str, query: bytes) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query,
        "headers": [(b"host", b"test")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }


def test_ctrl_c_with_open_connections_ends_in_good_order(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_FILE", str(file))
    target = str(Path(__file__).parents[2] / "sample_apps" / "starlette_chat" / "app.py")
    with lbkit_serve(f"{target}:create_app", "--replicas", "3") as (process, url):
        url = url.rstrip("/")
        with socket(url, "ann") as ann, stream(url, "bob") as bob:
            ann.say("last words")
            assert texts(bob, 1) == texts(ann, 1) == ["last words"]
            assert process.interrupt() == 0
            with pytest.raises(ConnectionClosed) as closed:
                until(ann, "message", "nobody")
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
        assert "Traceback" not in str(process)
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("SELECT count(*) FROM seats").fetchone() == (0,)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stores(file: Path, clock: Clock) -> Iterator[tuple[Store, Store]]:
    one, two = (Store(file, instance=name, clock=clock) for name in ("one", "two"))
    with closing(one), closing(two):
        yield one, two


def test_the_seats_of_a_replica_that_was_killed_expire(stores: tuple[Store, Store], clock: Clock) -> None:
    killed, lives = stores
    killed.join("k", "hall", "ann")
    lives.join("l", "hall", "bob")
    for clock.now in (1005.0, 1010.0, 1015.0):
        lives.beat()
        assert lives.people("hall") == [("ann", "one"), ("bob", "two")]
    clock.now = 1020.0
    lives.beat()
    assert lives.people("hall") == [("bob", "two")]
    left = lives.latest("hall")[-1]
    assert (left.kind, left.author, left.via) == ("left", "ann", "one")


def test_after_the_whole_machine_slept_nobody_is_taken_for_dead(
    stores: tuple[Store, Store], clock: Clock
) -> None:
    one, two = stores
    one.join("1", "hall", "ann")
    two.join("2", "hall", "bob")
    clock.now += 3600
    one.beat()
    two.beat()
    clock.now += 5
    one.beat()
    assert one.people("hall") == [("ann", "one"), ("bob", "two")]


def test_old_events_make_room_for_new_ones(file: Path) -> None:
    with closing(Store(file, instance="one", keep=3)) as store:
        for text in "abcde":
            store.say("hall", "ann", text)
        assert [event.text for event in store.after("hall", 0)] == ["c", "d", "e"]


def test_a_transaction_that_fails_leaves_nothing_behind_and_blocks_nobody(
    stores: tuple[Store, Store],
) -> None:
    one, two = stores
    one.join("seat", "hall", "ann")
    with pytest.raises(sqlite3.IntegrityError):
        one.join("seat", "hall", "bob")
    said = two.say("hall", "cem", "hello")
    assert [event.author for event in one.latest("hall")] == ["ann", "cem"]
    assert one.latest("hall")[-1] == said
    assert isinstance(said, Event)


# ---- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ({"name": "ann"}, "need a text message"),
        ({"name": "ann", "text": " "}, "need a text of 1 to 2000 characters, got 0"),
        ({"name": "ann", "text": "x" * 2001}, "got 2001"),
        ({"name": "ann", "text": "bell \x07"}, "without control characters"),
        ({"name": "ann", "text": 5}, "got int"),
        ({"name": " ", "text": "x"}, "need a name of 1 to 32"),
        ({"name": "x" * 33, "text": "x"}, "need a name of 1 to 32"),
        ({"name": "two\nlines", "text": "x"}, "need a name of 1 to 32"),
        ({"name": None, "text": "x"}, "need a name of 1 to 32"),
        ([], "need a JSON object"),
        ({"name": "ann", "text": "x" * 20_000}, "need a body of at most"),
    ],
)
def test_a_message_that_breaks_a_rule_is_refused_with_the_rule(strict: str, body: Any, rule: str) -> None:
    answer = httpx.post(f"{strict}/rooms/kitchen/messages", json=body, timeout=LIMIT)
    assert answer.status_code == 400
    assert rule in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "kind", "rule"),
    [
        (b"{}", "text/plain", "application/json"),
        (b"{", "application/json", "body of JSON"),
        (b"\xff", "application/json; charset=utf-8", "body of JSON"),
        (b"[" * 10_000, "application/json", "body of JSON"),
        (b'{"name": "ann", "text": "\\ud800"}', "application/json", "control characters"),
    ],
)
def test_a_body_that_is_no_message_is_the_clients_mistake(
    strict: str, body: bytes, kind: str, rule: str
) -> None:
    headers = {"content-type": kind}
    answer = httpx.post(f"{strict}/rooms/kitchen/messages", content=body, headers=headers, timeout=LIMIT)
    assert answer.status_code == 400
    assert rule in answer.json()["error"]


@pytest.mark.parametrize("room", ["Kitchen", "a b", "x" * 33, "ü"])
def test_a_room_that_breaks_the_rule_is_refused_on_every_way_in(strict: str, room: str) -> None:
    assert post(strict, "x", room=room).status_code == 400
    assert httpx.get(f"{strict}/rooms/{room}/people").status_code == 400
    assert httpx.get(f"{strict}/rooms/{room}/events?name=ann").status_code == 400
    with pytest.raises(ConnectionClosed, match="need a room"), socket(strict, "ann", room=room):
        pass


def test_a_socket_without_a_name_is_told_why_it_is_closed(strict: str) -> None:
    with pytest.raises(ConnectionClosed) as closed, socket(strict, ""):
        pass
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason[:11]) == (1008, "need a name")


def test_a_frame_that_is_no_message_is_refused_and_the_connection_lives(url: str) -> None:
    with socket(url, "ann") as ann:
        for junk in (b"\x00\x01", "", "x" * 2001, "\x07"):
            ann.say(junk)
        ann.say("fine")
        refused = 0
        while (event := ann.next())["kind"] != "message":
            refused += event["kind"] == "refused"
        assert (refused, event["text"]) == (4, "fine")


def open_from(url: str, origin: str) -> dict[str, Any]:
    """What a page of `origin` hears first."""
    address = f"{url.replace('http', 'ws', 1)}/rooms/kitchen/socket?name=ann"
    with connect(address, origin=cast(Origin, origin), open_timeout=LIMIT) as connection:
        return Socket(connection).hello


def test_a_page_of_our_own_may_open_a_socket(url: str) -> None:
    assert open_from(url, url)["kind"] == "hello"


@pytest.mark.parametrize("origin", ["https://example.com", "null", "http://127.0.0.1"])
def test_a_page_of_another_site_may_not_open_a_socket(strict: str, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        open_from(strict, origin)
    assert refused.value.response.status_code == 403


def test_health_says_when_the_file_that_all_share_is_away(url: str, file: Path) -> None:
    post(url, "x")
    file.rename(file.with_name("away"))
    assert [httpx.get(f"{url}/health/ready", timeout=LIMIT).status_code for _ in range(3)] == [503] * 3
    assert httpx.get(f"{url}/health", timeout=LIMIT).status_code == 200
