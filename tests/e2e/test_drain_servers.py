"""The drain on real servers: who takes SIGTERM, what a second one does, how streams end, who else drains."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.e2e.replicas import (
    EXEC,
    LIMIT,
    LONG,
    MASTER,
    SERVERS,
    WSGI,
    Replica,
    free_ports,
    get,
    lbkit,
    until,
)
from tests.programs import program

GUNICORN = SERVERS["gunicorn sync --preload"]
Start = Callable[..., Replica]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    replicas: list[Replica] = []

    def one(command: list[str], **settings: str) -> Replica:
        replicas.append(Replica(command, free_ports(1)[0], tmp_path, **settings))
        replicas[-1].wait_until_ready()
        return replicas[-1]

    yield one
    for replica in replicas:
        replica.kill()


def drain_of(replica: Replica) -> dict[str, object]:
    # An answer is given again for a second; to a question that is new, it is made anew.
    drain = json.loads(get(replica.port, f"/health/ready?{time.monotonic()}")[1])["drain"]
    assert isinstance(drain, dict)
    return drain


def hook_of(server: str) -> str:
    if SERVERS[server][: len(EXEC)] == EXEC:
        return "launcher"
    return "gunicorn" if server.startswith("gunicorn") else "process"


@pytest.mark.parametrize("server", SERVERS)
def test_sigterm_fails_readiness_and_a_second_one_hands_over(server: str, start: Start) -> None:
    replica = start(SERVERS[server], LBKIT_PRE_STOP_DELAY=LONG)
    assert (drain_of(replica)["armed"], drain_of(replica)["hook"]) == (True, hook_of(server))
    until(lambda: "drain armed" in str(replica), replica)
    replica.send(signal.SIGTERM)
    # Each of several workers must say so, so a good many are asked.
    until(lambda: all(replica.health() == 503 for _ in range(20)), replica)
    assert replica.health("/health/live") == 200
    assert (drain_of(replica)["state"], drain_of(replica)["reason"]) == ("draining", "signal")
    assert closes_after_an_answer(replica)
    replica.send(signal.SIGTERM)
    # A clean end, with the exit code that the server has without us.
    assert replica.end() == (-signal.SIGTERM if server in ("uvicorn", "waitress") else 0), replica


def closes_after_an_answer(replica: Replica) -> bool:
    """Ask as a balancer that would keep the connection."""
    connection = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=LIMIT)
    connection.request("GET", "/fast?id=1")
    answer = connection.getresponse()
    assert answer.read().startswith(b"ok 1 ")
    connection.close()
    return answer.will_close


@pytest.mark.parametrize("server", ["waitress", "gunicorn gthread"])
def test_a_request_in_flight_holds_the_hand_over_back(server: str, start: Start, tmp_path: Path) -> None:
    a_request_in_flight_is_answered(start(SERVERS[server], LBKIT_PRE_STOP_DELAY="0.1"), tmp_path)


def test_uwsgi_drains_behind_the_launcher_and_says_so_when_it_is_not_there(
    start: Start, tmp_path: Path
) -> None:
    # --die-on-term: without us, SIGTERM ends uWSGI at once, and its requests with it.
    options = ["--master", "--processes=2", "--threads=4", "--need-app", "--die-on-term", "--module", WSGI]
    uwsgi = [program("uwsgi"), "--http-socket=127.0.0.1:{port}", *options]
    replica = start([*EXEC, *uwsgi], LBKIT_PRE_STOP_DELAY="0.1")
    assert drain_of(replica)["hook"] == "launcher"
    a_request_in_flight_is_answered(replica, tmp_path)
    bare = start(uwsgi)
    assert drain_of(bare)["armed"] is False
    words = "drain not armed in a worker of uWSGI: start the server through lbkit exec"
    until(lambda: words in str(bare), bare)


@pytest.mark.parametrize("server", ["hypercorn", "granian asgi", "granian wsgi"])
def test_who_cannot_use_the_launcher_may_drain_in_the_worker(
    server: str, start: Start, tmp_path: Path
) -> None:
    settings = {"LBKIT_PRE_STOP_DELAY": "0.1", "LBKIT_IN_WORKERS": "1"}
    replica = start(SERVERS[server][len(EXEC) :], **settings)
    assert drain_of(replica)["hook"] == "process"
    a_request_in_flight_is_answered(replica, tmp_path)


def a_request_in_flight_is_answered(replica: Replica, folder: Path) -> None:
    with held(replica) as answers:
        replica.send(signal.SIGTERM)
        until(lambda: replica.health() == 503, replica)
        (folder / "gate").touch()
        replica.end()
    assert answers[0][0] == 200
    assert answers[0][1].startswith("ok held ")
    (folder / "gate").unlink()


@contextmanager
def held(replica: Replica) -> Iterator[list[tuple[int, str]]]:
    """A request that is in flight until the gate is there. Yields what will be its answer."""
    answers: list[tuple[int, str]] = []
    thread = threading.Thread(target=lambda: answers.append(get(replica.port, "/held")))
    thread.start()
    until(lambda: drain_of(replica)["in_flight"] == 1, replica)
    yield answers
    thread.join(LIMIT)


@pytest.mark.parametrize(
    "server",
    [
        "uvicorn",
        "uvicorn --workers 2",
        "hypercorn",
        "hypercorn -w 0",
        "granian asgi",
        "gunicorn uvicorn",
        "gunicorn asgi",
        "gunicorn gthread",
        "granian wsgi",
    ],
)
def test_streams_that_have_no_end_are_ended_well_and_the_process_leaves(server: str, start: Start) -> None:
    # With that deadline, the process is here to the end of the test unless its streams have ended.
    replica = start(SERVERS[server], LBKIT_PRE_STOP_DELAY="0.5", LBKIT_DRAIN_TIMEOUT=LONG)
    connection = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=LIMIT)
    connection.request("GET", "/sse")
    stream = connection.getresponse()
    assert stream.readline() == b"data: tick\n"
    codes: list[int] = []
    # One whose app is waiting for a message when the time comes, and one whose app has something to say.
    kinds = () if server in ("gunicorn gthread", "granian wsgi") else (True, False)
    chats = [
        threading.Thread(target=listen, args=(replica.port, codes), kwargs={"silent": silent})
        for silent in kinds
    ]
    for chat in chats:
        chat.start()
    until(lambda: drain_of(replica)["in_flight"] == 1 + len(chats), replica)
    replica.send(signal.SIGTERM)
    # http.client raises IncompleteRead when the chunked body is cut.
    assert b"event: shutdown\nretry: 1000\n" in stream.read()
    connection.close()
    assert replica.end() in (0, -signal.SIGTERM), replica
    for chat in chats:
        chat.join(LIMIT)
    assert codes == [1012] * len(chats)


@pytest.mark.parametrize("server", ["gunicorn asgi", "gunicorn gthread"])
@pytest.mark.parametrize("path", ["/sse", "/fast?id=1"])
def test_the_server_itself_closes_the_connection_of_a_client_that_would_keep_it(
    server: str, path: str, start: Start
) -> None:
    """Both wait for their keep-alive before they exit, and this client never closes."""
    patient = ["--keep-alive=3600", "--graceful-timeout=3600"]
    command = [*SERVERS[server][:-1], *patient, SERVERS[server][-1]]
    stream = path == "/sse"
    replica = start(command, LBKIT_PRE_STOP_DELAY="0.5" if stream else LONG, LBKIT_DRAIN_TIMEOUT=LONG)
    with socket.create_connection(("127.0.0.1", replica.port), timeout=LIMIT) as client:
        if stream:
            client.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert client.recv(1)
            replica.send(signal.SIGTERM)
        else:
            replica.send(signal.SIGTERM)
            until(lambda: all(replica.health() == 503 for _ in range(20)), replica)
            client.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        received = bytearray()
        while piece := client.recv(65536):
            received += piece
        assert (b"event: shutdown" if stream else b"ok 1 ") in received
        if not stream:
            replica.send(signal.SIGTERM)  # hand over now
        assert replica.end() == 0, replica


@pytest.mark.parametrize("server", ["hypercorn", "gunicorn gthread"])
def test_with_the_accept_filter_whoever_got_in_is_answered_and_the_others_are_refused(
    server: str, start: Start
) -> None:
    """Both stop accepting while their socket still listens; nothing told this client to stay away."""
    replica = start(SERVERS[server], LBKIT_PRE_STOP_DELAY="0.3", LBKIT_ACCEPT_FILTER="1")
    outcomes: Counter[str] = Counter()
    threads = [threading.Thread(target=knock, args=(replica.port, outcomes)) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: outcomes["answered"] > 20, replica)
    replica.send(signal.SIGTERM)
    replica.end()
    for thread in threads:
        thread.join(LIMIT)
    assert outcomes.keys() == {"answered", "refused"}


def knock(port: int, outcomes: Counter[str]) -> None:
    """Connect anew for each request, until nobody listens there any more."""
    while not outcomes["refused"]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
        try:
            connection.connect()
        except ConnectionRefusedError:
            outcomes["refused"] += 1
            return
        try:
            connection.request("POST", "/fast?id=1")
            outcomes["answered" if connection.getresponse().read() else "empty"] += 1
        except (OSError, http.client.HTTPException) as error:
            outcomes[type(error).__name__] += 1
        finally:
            connection.close()


@pytest.mark.parametrize("server", ["uvicorn", "granian asgi", "gunicorn gthread"])
def test_a_request_that_never_ends_does_not_hold_the_process_beyond_the_deadline(
    server: str, start: Start
) -> None:
    command = SERVERS[server]
    if "gunicorn" in server:  # a thread cannot be cut, so it is for the server to end it
        command = [*command[:-1], "--graceful-timeout=1", command[-1]]
    replica = start(command, LBKIT_PRE_STOP_DELAY="0.1", LBKIT_DRAIN_TIMEOUT="0.5")
    with held(replica) as answers:
        replica.send(signal.SIGTERM)
        assert replica.end() in (0, -signal.SIGTERM), replica
    assert answers[0][0] != 200
    assert ("cut at the deadline of the drain: /held" in str(replica)) is ("gunicorn" not in server)


def listen(port: int, codes: list[int], *, silent: bool) -> None:
    """Until the server closes the websocket: with which code?"""
    with connect(f"ws://127.0.0.1:{port}/ws", proxy=None) as socket:
        try:
            while True:
                if not silent:
                    socket.send("still there?")
                socket.recv(LIMIT)
        except ConnectionClosed as closed:
            codes.append(closed.rcvd.code if closed.rcvd is not None else 1006)


def test_a_reload_of_gunicorn_does_not_make_health_flap(start: Start) -> None:
    replica = start([*SERVERS["gunicorn gthread"]], LBKIT_PRE_STOP_DELAY=LONG)
    before = {get(replica.port, "/fast?id=1")[1].split()[2] for _ in range(40)}
    codes: list[int] = []

    def all_are_new() -> bool:
        codes.append(replica.health())
        return (
            get(replica.port, "/fast?id=1")[1].split()[2:] not in [[pid] for pid in before]
            and len(codes) > 50
        )

    replica.send(signal.SIGHUP)
    until(all_are_new, replica)
    assert 503 not in codes


def test_a_worker_without_a_hook_says_so(start: Start) -> None:
    replica = start([word for word in SERVERS["gunicorn gthread"] if word not in MASTER[:2]])
    assert drain_of(replica)["armed"] is False
    assert "drain not armed in a worker of gunicorn: start gunicorn with -c" in str(replica)


def test_a_delay_that_does_not_fit_is_told_at_the_start(start: Start) -> None:
    settings = {"LBKIT_PRE_STOP_DELAY": "40", "LBKIT_STOP_LIMIT": "30"}
    for command in (SERVERS["gunicorn gthread"], SERVERS["hypercorn"], SERVERS["uvicorn"]):
        assert "pre_stop_delay=40 does not fit into the 30 s before SIGKILL" in str(
            start(command, **settings)
        )


def test_an_operator_drains_every_worker_and_takes_it_back(start: Start, tmp_path: Path) -> None:
    replica = start(GUNICORN)
    assert "ready, 0 requests in flight" in lbkit(tmp_path, "status").stdout
    assert lbkit(tmp_path, "drain").returncode == 0
    until(lambda: replica.health() == 503, replica)
    until(lambda: [replica.health() for _ in range(60)] == [503] * 60, replica)
    assert "draining (operator)" in lbkit(tmp_path, "status").stdout
    assert lbkit(tmp_path, "undrain").returncode == 0
    until(lambda: [replica.health() for _ in range(60)] == [200] * 60, replica)


def test_an_operator_waits_until_the_replica_is_empty(start: Start, tmp_path: Path) -> None:
    replica = start(SERVERS["gunicorn gthread"], LBKIT_PRE_STOP_DELAY="0.1")
    with held(replica) as answers:
        assert "1 request in flight" in lbkit(tmp_path, "status").stdout
        waiting = threading.Thread(target=lambda: done.append(lbkit(tmp_path, "drain", "--wait")))
        done: list[subprocess.CompletedProcess[str]] = []
        waiting.start()
        until(lambda: replica.health() == 503, replica)
        (tmp_path / "gate").touch()
        waiting.join(LIMIT)
    assert done[0].stdout.splitlines()[0].endswith("drains: 1 request in flight")
    assert (done[0].returncode, done[0].stdout.splitlines()[-1]) == (0, "0 requests in flight")
    assert answers[0][0] == 200


def test_a_signals_drain_cannot_be_taken_back_by_an_operator(start: Start, tmp_path: Path) -> None:
    replica = start(SERVERS["hypercorn"], LBKIT_PRE_STOP_DELAY=LONG)
    replica.send(signal.SIGTERM)
    until(lambda: replica.health() == 503, replica)
    refused = lbkit(tmp_path, "undrain")
    assert (refused.returncode, "cannot be taken back" in refused.stderr) == (2, True)


def test_without_an_app_the_operator_is_told_where_we_looked(tmp_path: Path) -> None:
    refused = lbkit(tmp_path, "drain")
    assert (refused.returncode, str(tmp_path / "lbkit") in refused.stderr) == (2, True)
