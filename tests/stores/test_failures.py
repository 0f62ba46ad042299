"""What a store does when Redis does not answer, answers no, is replaced, or answers somebody who has left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lbkit.errors import ConfigError, StoreUnavailable
from lbkit.sessions.store import Delta, Listing, Result, SyncStore
from lbkit.stores import astore_from, store_from
from lbkit.stores.location import parse
from lbkit.stores.redis import AsyncRedisStore, RedisStore
from lbkit.stores.wire import fits
from tests.redis_servers import Cluster, Sentinels, Server, free_ports, server, until
from tests.stores.contract import HOUR, Driven, begun, fresh, held, listed, slotted


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server to be treated badly; it keeps its data."""
    with server(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as running:
        yield running


WAYS = ("direct", "redis-py", "awaited pipe", "awaited redis-py")
BOTH = ("blocking", "awaited")
PATIENCE = 5.0
"""Seconds for an answer: a busy machine is no failure."""


def opened(way: str, url: str, loop: asyncio.AbstractEventLoop, *, timeout: float = PATIENCE) -> Any:
    if way.endswith("redis-py"):  # an option makes it one for redis-py
        url = f"{url}?client_name=test"
    if way.startswith("awaited"):
        return Driven(astore_from(url, timeout=timeout), loop)
    return store_from(url, timeout=timeout)


@pytest.fixture(params=WAYS)
def store(
    request: pytest.FixtureRequest, own: Server, loop: asyncio.AbstractEventLoop
) -> Iterator[SyncStore]:
    running = opened(request.param, own.url, loop)
    yield running
    running.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_hangs_is_unavailable_and_back_when_it_is(
    own: Server, way: str, loop: asyncio.AbstractEventLoop
) -> None:
    store = opened(way, own.url, loop, timeout=0.5)
    key = begun(store, a=b"1")
    own.hold()
    with pytest.raises(StoreUnavailable):
        store.load(key)
    with pytest.raises(StoreUnavailable):
        store.commit(key, Delta(HOUR, sets={b"a": b"2"}))
    own.resume()
    assert until(lambda: held_if_there(store, key), "it answers again") in ({b"a": b"1"}, {b"a": b"2"})
    store.close()


def held_if_there(store: SyncStore, key: str) -> dict[bytes, bytes] | None:
    try:
        return held(store, key)
    except StoreUnavailable:
        return None


def test_a_server_that_is_killed_is_unavailable_and_back_with_its_data(store: SyncStore, own: Server) -> None:
    key = begun(store, a=b"1")
    own.kill()
    with pytest.raises(StoreUnavailable):
        store.load(key)
    with pytest.raises(StoreUnavailable):
        store.commit(key, Delta(HOUR, incrs={b"n": 1}))
    own.start()
    assert held(store, key) == {b"a": b"1"}
    assert store.commit(key, Delta(HOUR, incrs={b"n": 1})).counters == {b"n": 1}


def test_a_restart_between_two_requests_is_not_noticed(store: SyncStore, own: Server) -> None:
    key = begun(store, a=b"1")
    own.kill()
    own.start()
    assert held(store, key) == {b"a": b"1"}


def test_a_full_server_can_be_read_and_is_unavailable_for_writes(store: SyncStore, own: Server) -> None:
    key = begun(store, a=b"1")
    with own.client() as client:
        client.config_set("maxmemory", "1")
    with pytest.raises(StoreUnavailable, match=r"OOM|memory"):
        store.commit(key, Delta(HOUR, sets={b"b": b"2"}))
    assert held(store, key) == {b"a": b"1"}
    assert store.delete(key) == 1


@pytest.mark.parametrize("first", ["a health check", "a session"])
def test_a_server_that_evicts_sessions_is_warned_of_once(
    store: SyncStore, own: Server, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    evicting(own)
    with caplog.at_level(logging.WARNING, "lbkit.sessions"):
        for _ in range(2):
            store.ping() if first == "a health check" else begun(store, a=b"1")
    assert [record.getMessage() for record in caplog.records] == [
        "maxmemory-policy is allkeys-lru: when Redis is full, it ends sessions in use; need noeviction"
    ]


def test_a_server_that_tells_us_nothing_of_itself_is_used_without_a_word(
    store: SyncStore, own: Server, caplog: pytest.LogCaptureFixture
) -> None:
    evicting(own)
    with own.client() as client:
        client.execute_command("ACL SETUSER default -info -config")
    with caplog.at_level(logging.WARNING, "lbkit.sessions"):
        assert held(store, begun(store, a=b"1")) == {b"a": b"1"}
        store.ping()
    assert caplog.records == []


def evicting(own: Server) -> None:
    with own.client() as client:
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")


class Cutter(threading.Thread):
    """Passes everything on, until it is told to close the connection instead of passing on the next reply."""

    def __init__(self, upstream: int) -> None:
        super().__init__(daemon=True)
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cut = threading.Event()
        self.cuts = 0
        self.start()

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", self._upstream))
            for one, other, replies in ((client, upstream, False), (upstream, client, True)):
                threading.Thread(target=self._pump, args=(one, other, replies), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket, replies: bool) -> None:
        with one, other:
            try:
                while data := one.recv(65536):
                    if replies and self.cut.is_set():
                        self.cut.clear()
                        self.cuts += 1
                        break
                    other.sendall(data)
            except OSError:
                pass
            for each in (one, other):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.mark.parametrize("way", WAYS)
def test_what_may_be_done_already_is_not_done_again(
    one: Server, way: str, loop: asyncio.AbstractEventLoop
) -> None:
    cutter = Cutter(one.port)
    store = opened(way, f"redis://127.0.0.1:{cutter.port}/0", loop)
    key = begun(store, a=b"1")
    once = [
        Delta(HOUR, incrs={b"n": 1}),
        Delta(HOUR, sets={b"a": b"2"}, expect={b"a": b"1"}),
        Delta(HOUR, sets={b"a": b"3"}, drop=True),
    ]
    for delta in once:
        assert store.load(key)  # the connection stands
        cutter.cut.set()
        with pytest.raises(StoreUnavailable):
            store.commit(key, delta)
    assert held(store, key) == {b"a": b"3"}
    cutter.cut.set()
    assert held(store, key) == {b"a": b"3"}
    cutter.cut.set()
    assert store.commit(key, Delta(HOUR, sets={b"n": b"1"})).result is Result.OK
    assert cutter.cuts == len(once) + 2
    assert held(store, key) == {b"a": b"3", b"n": b"1"}
    store.close()
    cutter.close()


def test_a_failover_keeps_the_sessions_and_the_stores_find_the_new_primary(
    watched: Sentinels, loop: asyncio.AbstractEventLoop
) -> None:
    stores = [opened(way, watched.url, loop, timeout=1.0) for way in BOTH]
    keys = [begun(store, a=b"1") for store in stores for _ in range(10)]
    (key, user), now = slotted(), time.time()
    stores[0].commit(key, Delta(HOUR, {b"a": b"1"}, create=True, listing=Listing(user, now, now + 100)))
    before = watched.primary
    with before.client() as client:
        assert client.wait(1, 5000) == 1
    before.kill()
    watched.wait_for_another(before)
    for store in stores:
        until(lambda store=store: committed(store, keys[0]), "the store takes writes again")
        assert [held(store, key) for key in keys[1:]] == [{b"a": b"1"}] * 19
        assert listed(store, user, now) == {key: 100}
        assert store.commit(key, Delta(listing=Listing(user, now, now + 100))).result is Result.OK
        store.close()
    with watched.primary.client() as client:
        assert client.hget(f"lbkit:s:{keys[0]}", "b") == b"2"
    before.start()


def committed(store: SyncStore, key: str) -> bool:
    try:
        return store.commit(key, Delta(HOUR, sets={b"b": b"2"})).result is Result.OK
    except StoreUnavailable:
        return False


@pytest.mark.parametrize("way", BOTH)
def test_a_cluster_without_one_of_its_servers_serves_what_the_others_hold(
    many: Cluster, way: str, loop: asyncio.AbstractEventLoop
) -> None:
    store = opened(way, many.url, loop, timeout=1.0)
    keys = [begun(store, a=b"1") for _ in range(30)]
    held_up = many.nodes[2]
    with held_up.client() as client:
        here = {name.decode().removeprefix("lbkit:s:") for name in client.keys("lbkit:s:*")}
    assert 0 < len(here & set(keys)) < 30
    held_up.hold()
    try:
        elsewhere = [key for key in keys if key not in here]
        assert [held(store, key) for key in elsewhere] == [{b"a": b"1"}] * len(elsewhere)
        with pytest.raises(StoreUnavailable):
            store.load(next(key for key in keys if key in here))
        assert [held(store, key) for key in elsewhere] == [{b"a": b"1"}] * len(elsewhere)
    finally:
        held_up.resume()
    until(lambda: all(held_if_there(store, key) for key in keys), "all are there again")
    store.close()


@pytest.mark.parametrize(
    "url", ["redis+sentinel://127.0.0.1:{port}/sessions", "redis+cluster://127.0.0.1:{port}"]
)
@pytest.mark.parametrize("way", BOTH)
def test_nobody_there_is_unavailable(url: str, way: str, loop: asyncio.AbstractEventLoop) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        store = opened(way, url.format(port=nobody.getsockname()[1]), loop)
        with pytest.raises(StoreUnavailable):
            store.load(fresh())
        store.close()


# -- our own connections --------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_a_cancelled_read_never_hands_one_request_anothers_answer(one: Server) -> None:
    store = astore_from(one.url, timeout=PATIENCE)
    keys = [fresh() for _ in range(20)]
    for key in keys:
        await store.commit(key, Delta(HOUR, sets={b"key": key.encode()}, create=True))
    cancelled = 0
    for number in range(200):
        tasks = [asyncio.ensure_future(store.load(key)) for key in keys]
        for _ in range(number % 4):
            await asyncio.sleep(0)
        for task in tasks[number % 3 :: 3]:
            cancelled += task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for key, answer in zip(keys, answers, strict=True):
            assert isinstance(answer, asyncio.CancelledError) or answer == {b"key": key.encode()}
    assert cancelled > 500
    with one.client() as client:
        pipes = [each for each in client.client_list() if each["cmd"] == "hgetall"]
    assert len(pipes) <= 1  # nothing was thrown away for it
    await store.close()


@pytest.mark.asyncio
async def test_a_late_answer_is_nobodys(own: Server) -> None:
    """The deadline ends the connection: what comes on it later cannot be taken for an answer to another."""
    store = AsyncRedisStore(own.url)
    one, other = fresh(), fresh()
    for key in (one, other):
        await store.commit(key, Delta(HOUR, sets={b"key": key.encode()}, create=True))
    own.hold()
    results = await asyncio.gather(*(store.load(one) for _ in range(5)), return_exceptions=True)
    assert {type(result) for result in results} == {StoreUnavailable}
    own.resume()
    assert await store.load(other) == {b"key": other.encode()}
    await store.close()


@pytest.mark.asyncio
async def test_who_is_cancelled_while_it_connects_takes_the_connection_from_nobody(one: Server) -> None:
    store, key = astore_from(one.url, timeout=PATIENCE), fresh()
    first = asyncio.ensure_future(store.load(key))
    second = asyncio.ensure_future(store.load(key))
    await asyncio.sleep(0)
    first.cancel()
    assert await second is None
    await store.close()


@pytest.mark.asyncio
async def test_who_is_cancelled_while_it_connects_has_asked_all_the_same(one: Server) -> None:
    store, key = astore_from(one.url, timeout=PATIENCE), fresh()
    create = Delta(HOUR, sets={b"a": b"1"}, create=True)
    await store.commit(fresh(), create)  # the server knows the script
    await store.close()
    asking = asyncio.ensure_future(store.commit(key, create))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    found = [await store.load(key) for _ in range(2)]  # in the order of asking, on the same connection
    assert found[1] == {b"a": b"1"}
    await store.close()


@pytest.mark.asyncio
async def test_a_password_a_user_and_a_database_are_used(own: Server) -> None:
    with own.client() as client:
        client.execute_command("ACL SETUSER", "app", "on", ">pass@word", "~*", "+@all")
        client.execute_command("ACL SETUSER", "default", "off")
    key, url = fresh(), f"redis://app:pass%40word@127.0.0.1:{own.port}/3"
    assert fits(parse(url))
    store, blocking = astore_from(url, timeout=PATIENCE), store_from(url, timeout=PATIENCE)
    await store.commit(key, Delta(HOUR, sets={b"a": b"1"}, create=True))
    assert blocking.load(key) == {b"a": b"1"}
    await store.close()
    blocking.close()
    with redis.Redis.from_url(url) as client:
        assert client.hget(f"lbkit:s:{key}", "a") == b"1"
    wrong = url.replace("pass", "wrong")
    with pytest.raises(StoreUnavailable, match="WRONGPASS"):
        await astore_from(wrong, timeout=PATIENCE).load(key)
    with pytest.raises(StoreUnavailable, match="WRONGPASS"):
        store_from(wrong, timeout=PATIENCE).load(key)


@pytest.mark.parametrize("way", ["direct", "awaited pipe"])
def test_a_server_that_does_not_speak_redis_is_unavailable(way: str, loop: asyncio.AbstractEventLoop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as client:
                client.recv(1000)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                client.recv(1000)

        thread = threading.Thread(target=answer)
        thread.start()

        store = opened(way, f"redis://127.0.0.1:{listener.getsockname()[1]}", loop)
        with pytest.raises(StoreUnavailable):
            store.load("key")
        store.close()
        thread.join()


@pytest.mark.parametrize("options", ["", "?client_name=test"], ids=["pipe", "redis-py"])
def test_a_store_is_at_home_in_each_event_loop_and_leaves_nothing_open(one: Server, options: str) -> None:
    """A test client runs each request in a loop of its own, and closes nothing."""
    store = astore_from(one.url + options, timeout=PATIENCE)
    key = fresh()
    asyncio.run(_create(store, key))
    assert asyncio.run(store.load(key)) == {b"a": b"1"}
    gc.collect()  # an open socket would be a warning, and those are errors
    with one.client() as client:
        until(lambda: len(client.client_list()) == 1, "all connections are closed")


async def _create(store: Any, key: str) -> None:
    await store.commit(key, Delta(HOUR, sets={b"a": b"1"}, create=True))


def test_threads_share_a_blocking_store_and_get_their_own_answers(one: Server) -> None:
    store = store_from(one.url, timeout=PATIENCE)
    keys = [begun(store, n=b"%d" % number) for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda key: held(store, key), keys * 20))
    assert answers == [{b"n": b"%d" % number} for number in range(40)] * 20
    store.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # what servers do as well
def test_a_process_that_forks_shares_no_connection(one: Server) -> None:
    store = store_from(one.url, timeout=PATIENCE)
    key = begun(store, n=b"0")
    child = os.fork()
    if child == 0:
        done = all(store.commit(key, Delta(incrs={b"n": 1})).counters for _ in range(100))
        os._exit(0 if done else 1)
    assert all(store.commit(key, Delta(incrs={b"n": 1})).counters for _ in range(100))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert held(store, key) == {b"n": b"200"}
    store.close()


def test_a_worker_that_is_stopped_in_the_middle_leaves_no_answer_behind(own: Server) -> None:
    """Its reply is on its way: nobody else may get it."""
    store = store_from(own.url, timeout=PATIENCE)
    one, other = begun(store, n=b"1"), begun(store, n=b"2")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        own.hold()
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            store.load(one)
    finally:
        signal.signal(signal.SIGALRM, before)
        own.resume()
    assert held(store, other) == {b"n": b"2"}
    store.close()


def test_what_our_connections_do_not_speak_is_left_to_redis_py() -> None:
    assert fits(parse("redis://:pass@host:1/2"))
    assert fits(parse("unix:///run/redis.sock"))
    for url in (
        "rediss://host",
        "redis://host?socket_timeout=1",
        "redis+cluster://host",
        "redis+sentinel://host/s",
    ):
        assert not fits(parse(url)), url


# -- configuration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://cache", "need sessions as a URL that begins with memory://, redis://,"),
        ("redis:cache", "need sessions as a URL that begins with"),
        ("", "need sessions as a URL that begins with"),
        ("redis://:secret@cache:x/0", "need host:port with a port of 1 to 65535, got 'cache:x'"),
        ("redis://cache:0x/0", "port"),
        ("redis://cache:70000", "port"),
        ("redis://cache/zero", "need db as a whole number >= 0, got 'zero'"),
        ("redis://cache/0/1", "number as the path"),
        ("redis://one,two/0", "one server has one host"),
        ("redis://:secret@cache?socket_timeout=soon", "socket_timeout"),
        ("redis://cache?sokcet_timeout=1", "sokcet_timeout"),
        ("unix://", "need the path of the socket"),
        ("redis+sentinel://one,two", "need the service's name behind the sentinels"),
        ("redis+sentinel://one/main/x", "need db as a whole number"),
        ("redis+cluster://one,two/1", "a cluster has database 0 alone"),
        ("memory://?max_sessions=many", "memory:// takes"),
        ("memory://?max=1", "memory:// takes"),
        ("memory://?max_sessions=0", "max_sessions"),
    ],
)
def test_a_wrong_url_is_refused_by_name_and_without_its_password(url: str, message: str) -> None:
    for make in (store_from, astore_from):
        with pytest.raises(ConfigError) as caught:
            make(url)
        assert message in str(caught.value)
        assert "secret" not in str(caught.value)


def test_a_store_shows_where_it_is_and_no_password() -> None:
    for make in (store_from, astore_from):
        shown = repr(make("redis://user:secret@cache:1/2?client_name=secret"))
        assert "redis://***@cache:1/2" in shown
        assert "secret" not in shown


@pytest.mark.parametrize("where", [None, 7, object(), redis.asyncio.Redis()])
def test_what_is_neither_url_nor_client_is_refused(where: Any) -> None:
    with pytest.raises(ConfigError, match="need"):
        RedisStore(where)


def test_a_client_that_blocks_is_refused_where_nothing_may_block() -> None:
    with pytest.raises(ConfigError, match=r"need a client like redis.asyncio.Redis\(...\) here"):
        AsyncRedisStore(redis.Redis())


@pytest.mark.parametrize("prefix", ["a*", "a b", "é", "x" * 65, "{}", "a{}{b}:"])
def test_a_prefix_that_is_a_pattern_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="need a prefix"):
        store_from("redis://cache", prefix=prefix)


def test_a_timeout_is_more_than_nothing() -> None:
    for timeout in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="timeout"):
            store_from("redis://cache", timeout=timeout)
        with pytest.raises(ConfigError, match="timeout"):
            astore_from("redis://cache", timeout=timeout)


# -- TLS -------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that it signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(timezone.utc)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    signed = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    paths = tmp_path / "cert.pem", tmp_path / "key.pem"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
    return paths


@pytest.mark.parametrize("way", BOTH)
def test_rediss_is_tls_with_a_certificate_that_is_checked(
    certificate: tuple[Path, Path], tmp_path: Path, way: str, loop: asyncio.AbstractEventLoop
) -> None:
    (port,) = free_ports(1)
    tls = f"--tls-port {port} --tls-cert-file {certificate[0]} --tls-key-file {certificate[1]}"
    with server(tmp_path / "redis", *tls.split(), "--tls-auth-clients", "no"):
        url = f"rediss://127.0.0.1:{port}/0"
        trusting = opened(way, f"{url}?ssl_ca_certs={certificate[0]}", loop)
        assert held(trusting, begun(trusting, a=b"1")) == {b"a": b"1"}
        trusting.close()
        doubting = opened(way, url, loop)
        with pytest.raises(StoreUnavailable, match="certificate"):
            doubting.load(fresh())
        doubting.close()
