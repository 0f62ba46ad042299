"""Real Redis for tests, on loopback: a server to be held, killed and restarted; a cluster; Sentinels."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import redis

from tests.programs import program

__all__ = ["Cluster", "Sentinels", "Server", "cluster", "free_ports", "sentinels", "server", "until"]

PATIENCE = 20.0


def until(condition: Callable[[], Any], what: str, *, patience: float = PATIENCE) -> Any:
    """What the condition returns once that is true."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except (redis.RedisError, OSError):
            pass
        time.sleep(0.02)
    raise AssertionError(f"not within {patience:g} s: {what}")


def free_ports(count: int) -> list[int]:
    """Ports that are free, and stay distinct."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class Server:
    """One redis-server in a folder of its own."""

    def __init__(self, folder: Path, *options: str, port: int | None = None, sentinel: bool = False) -> None:
        self.folder = folder
        self.port = port or free_ports(1)[0]
        self._options = options
        self._sentinel = sentinel
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> Any:
        return redis.Redis(port=self.port, socket_timeout=2, socket_connect_timeout=2, protocol=2)

    def start(self) -> None:
        """Start it, with the data that it left if it keeps some."""
        command = [program("redis-server")]
        if self._sentinel:
            command += [str(self.folder / "sentinel.conf"), "--sentinel"]
        else:
            command += ["--save", "", "--dir", str(self.folder)]
        command += ["--port", str(self.port), "--bind", "127.0.0.1", "--loglevel", "warning", *self._options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        with self.client() as client:
            until(client.ping, f"{' '.join(command)} answers")

    def hold(self) -> None:
        """It keeps its connections and answers none."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self.resume()
            self._process.kill()
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            os.kill(self._process.pid, number)


@contextmanager
def server(folder: Path, *options: str) -> Iterator[Server]:
    running = Server(folder, *options)
    try:
        yield running
    finally:
        running.kill()


class Cluster:
    def __init__(self, nodes: list[Server]) -> None:
        self.nodes = nodes

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)


@contextmanager
def cluster(folder: Path, *, size: int = 3) -> Iterator[Cluster]:
    """So many primaries, which share the slots between them."""
    ports = free_ports(2 * size)
    with ExitStack() as stack:
        nodes = []
        for port, bus in zip(ports[::2], ports[1::2], strict=True):
            options = (
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                str(bus),
                "--cluster-node-timeout",
                "2000",
            )
            nodes.append(Server(folder / str(port), *options, port=port))
            stack.callback(nodes[-1].kill)
        _join(nodes, ports[1::2])
        yield Cluster(nodes)


def _join(nodes: list[Server], buses: list[int]) -> None:
    share = 16384 // len(nodes) + 1
    for number, node in enumerate(nodes):
        with node.client() as client:
            last = min((number + 1) * share, 16384) - 1
            client.execute_command("CLUSTER ADDSLOTSRANGE", number * share, last)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            if number:
                client.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port, buses[0])
    for node in nodes:
        with node.client() as client:
            until(lambda client=client: _complete(client, len(nodes)), "the cluster is complete")


def _complete(client: Any, size: int) -> bool:
    told = client.execute_command("CLUSTER INFO")
    return told["cluster_state"] == "ok" and told["cluster_known_nodes"] == str(size)


class Sentinels:
    """Two servers, one of which is the primary, and three Sentinels that watch them."""

    service = "sessions"

    def __init__(self, servers: list[Server], watchers: list[Server]) -> None:
        self.servers = servers
        self.watchers = watchers

    @property
    def url(self) -> str:
        return (
            "redis+sentinel://"
            + ",".join(f"127.0.0.1:{each.port}" for each in self.watchers)
            + f"/{self.service}/0"
        )

    @property
    def primary(self) -> Server:
        with self.watchers[0].client() as client:
            address = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self.service)
        return next(each for each in self.servers if each.port == int(address[1]))

    def wait_for_another(self, before: Server) -> None:
        until(
            lambda: self.primary is not before and _role(self.primary) == "master",
            "another server is the primary",
        )

    def wait_for_replica(self) -> None:
        """Until the other server follows the primary, and the Sentinels know."""
        primary = self.primary
        (other,) = (each for each in self.servers if each is not primary)
        until(lambda: _follows(other, primary), "the other server follows")
        with self.watchers[0].client() as client:
            until(lambda: _usable(client, self.service), "the Sentinel knows a replica")


def _role(node: Server) -> str:
    with node.client() as client:
        return str(client.info("replication")["role"])


def _follows(node: Server, primary: Server) -> bool:
    with node.client() as client:
        told = client.info("replication")
        return (
            told["role"] == "slave"
            and told["master_port"] == primary.port
            and told["master_link_status"] == "up"
        )


def _usable(client: Any, service: str) -> bool:
    told = client.execute_command("SENTINEL REPLICAS", service)
    flat = [
        each if isinstance(each, dict) else dict(zip(each[::2], each[1::2], strict=True)) for each in told
    ]
    return any(_text(each, "flags") == "slave" and _text(each, "master-link-status") == "ok" for each in flat)


def _text(row: dict[Any, Any], name: str) -> str:
    value = row.get(name, row.get(name.encode(), ""))
    return value.decode() if isinstance(value, bytes) else str(value)


@contextmanager
def sentinels(folder: Path, *options: str, down_after: float = 1.0) -> Iterator[Sentinels]:
    """`down_after`: seconds without an answer until the Sentinels take the primary for down."""
    ports = free_ports(5)
    with ExitStack() as stack:
        primary = Server(folder / "primary", *options, port=ports[0])
        stack.callback(primary.kill)
        replica = Server(
            folder / "replica", *options, "--replicaof", f"127.0.0.1 {primary.port}", port=ports[1]
        )
        stack.callback(replica.kill)
        until(lambda: _follows(replica, primary), "the replica follows")
        watchers = []
        for port in ports[2:]:
            watchers.append(_watcher(folder / str(port), port, primary, down_after))
            stack.callback(watchers[-1].kill)
        running = Sentinels([primary, replica], watchers)
        running.wait_for_replica()
        yield running


def _watcher(folder: Path, port: int, primary: Server, down_after: float) -> Server:
    name = Sentinels.service
    folder.mkdir(parents=True)
    (folder / "sentinel.conf").write_text(
        f"sentinel monitor {name} 127.0.0.1 {primary.port} 2\n"
        f"sentinel down-after-milliseconds {name} {down_after * 1000:.0f}\n"
        f"sentinel failover-timeout {name} 3000\n"
    )
    return Server(folder, port=port, sentinel=True)
