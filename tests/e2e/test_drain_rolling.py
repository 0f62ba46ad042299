"""Real balancers before real replicas: a rolling restart loses no request, and executes none twice."""

from __future__ import annotations

import signal
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.replicas import LONG, SERVERS, Clients, Replica, balancer, free_ports, get, until

SETTINGS = {"LBKIT_PRE_STOP_DELAY": "1.0", "SLOW": "0.5"}
"""Seconds. The delay is HAProxy's inter x fall, and more for a machine that is busy with tests."""


@pytest.mark.parametrize("kind", ["haproxy", "nginx"])
@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "gunicorn gthread"])
def test_a_rolling_restart_loses_no_request(server: str, kind: str, tmp_path: Path) -> None:
    executed = tmp_path / "executed.log"
    ports = free_ports(3)

    def start(port: int) -> Replica:
        replica = Replica(SERVERS[server], port, tmp_path, EXEC_LOG=str(executed), **SETTINGS)
        stack.callback(replica.kill)
        return replica

    with ExitStack() as stack:
        replicas = [start(port) for port in ports]
        for replica in replicas:
            replica.wait_until_ready()
        front = stack.enter_context(balancer(kind, ports, tmp_path))
        with Clients(front) as clients:
            for replica in replicas:
                known = set(clients.pids)
                replica.send(signal.SIGTERM)
                assert replica.end() in (0, -signal.SIGTERM)
                again = start(replica.port)
                again.wait_until_ready()
                clients.wait_for_a_new_process(known)
    assert clients.lost == []
    assert clients.answered > 100
    times = Counter(line.split()[0] + line.split()[1] for line in executed.read_text().splitlines())
    # Four clients count from one each, so an id and its method come up to four times, and never more.
    assert max(times.values()) <= 4


def test_envoy_leaves_a_replica_alone_from_its_first_answer_on(tmp_path: Path) -> None:
    ports = free_ports(3)
    with ExitStack() as stack:
        replicas = [
            Replica(SERVERS["uvicorn"], port, tmp_path, ENVOY="1", LBKIT_PRE_STOP_DELAY=LONG)
            for port in ports
        ]
        for replica in replicas:
            stack.callback(replica.kill)
            replica.wait_until_ready()
        front = stack.enter_context(balancer("envoy", ports, tmp_path))

        def served_by(requests: int) -> Counter[str]:
            return Counter(get(front, "/fast")[1].split()[2] for _ in range(requests))

        assert sorted(served_by(9).values()) == [3, 3, 3]
        leaving = replicas[1]
        leaving.send(signal.SIGTERM)
        until(lambda: leaving.health() == 503, leaving)
        # One answer tells it, and nothing is lost: the replica still serves.
        assert served_by(3)[str(leaving.process.pid)] == 1
        assert str(leaving.process.pid) not in served_by(30)
