"""Health through both gateways: what is said here of one is said of the other."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from lbkit.health import Outcome, Status, Thresholds
from lbkit.monitor import Health
from lbkit.service import Service
from tests.health_gateways import BODY, FakeClock, Gateway, gateway

UNREACHABLE = Thresholds(cpu=101, memory=101, disk=101)


@pytest.fixture(params=["asgi", "wsgi"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def health() -> Health:
    return Health(Service(version="1.0.0"), thresholds=UNREACHABLE)


@pytest.fixture
def get(name: str, health: Health) -> Iterator[Gateway]:
    with gateway(name, health) as get:
        yield get


def test_health_is_three_keys_and_asks_no_dependency(get: Gateway) -> None:
    calls = []
    get.health.check("database")(lambda: calls.append(1))
    before = time.time()
    response = get("/health")
    assert response.status_code == 200
    assert list(response.json()) == ["status", "timestamp", "version"]
    assert response.json()["status"] == "healthy"
    assert response.json()["version"] == "1.0.0"
    assert before - 0.001 <= response.json()["timestamp"] <= time.time() + 0.001
    assert calls == []


def test_an_answer_that_was_kept_still_tells_its_own_time(get: Gateway) -> None:
    first, second = get("/health").json(), get("/health").json()
    deadline = time.monotonic() + 5
    while second["timestamp"] == first["timestamp"] and time.monotonic() < deadline:
        second = get("/health").json()
    assert second["timestamp"] > first["timestamp"]


def test_detailed_has_the_documented_shape(get: Gateway) -> None:
    get.health.check("database")(lambda: None)

    @get.health.check("search", critical=False)
    def search() -> None:
        raise ConnectionRefusedError("search.internal:9200")

    response = get("/health/detailed")
    answer = response.json()
    assert response.status_code == 200
    assert list(answer)[:3] == ["status", "timestamp", "version"]
    assert answer["status"] == "degraded"
    assert answer["state"] == "ready"
    assert set(answer["metrics"]) == {"cpu_percent", "memory_percent", "disk_percent"}
    assert all(0 <= value <= 100 for value in answer["metrics"].values())
    assert set(answer["metrics_source"]) == {
        "cpu",
        "memory",
        "cpu_limit",
        "memory_limit_bytes",
        "throttled_percent",
    }
    database, found = answer["checks"]["database"], answer["checks"]["search"]
    assert database["status"] == "healthy"
    assert database["critical"] is True
    assert isinstance(database["response_time_ms"], float)
    assert found["status"] == "unhealthy"
    assert found["error"] == "connection"
    assert found["critical"] is False
    assert found["consecutive_failures"] == 1
    assert "search.internal" not in response.text


def test_a_critical_failure_fails_readiness_and_the_details_and_not_health(
    get: Gateway,
) -> None:
    get.health.check("database")(lambda: False)
    assert get("/health/ready").status_code == 503
    assert get("/health/ready").json()["checks"]["database"]["error"] == "failed"
    assert get("/health/detailed").status_code == 503
    assert get("/health").status_code == 200
    assert get("/health/live").status_code == 200


def test_a_failure_that_is_not_critical_leaves_the_replica_in_the_pool(get: Gateway) -> None:
    get.health.check("search", critical=False)(lambda: False)
    assert get("/health/ready").status_code == 200
    assert get("/health/ready").json()["status"] == "degraded"


def test_readiness_looks_only_at_the_checks_of_its_group(get: Gateway) -> None:
    calls = []
    get.health.check("report", groups={"detailed"})(lambda: calls.append(1) or False)
    assert get("/health/ready").status_code == 200
    assert calls == []
    assert get("/health/detailed").status_code == 503


def test_a_coroutine_check_runs(get: Gateway) -> None:
    @get.health.check("database")
    async def database() -> Outcome:
        return Outcome.degraded("replication is 40 s behind")

    answer = get("/health/ready").json()
    assert answer["checks"]["database"]["status"] == "degraded"


@pytest.mark.parametrize(
    ("method", "code", "length"), [("GET", 200, True), ("HEAD", 200, False), ("OPTIONS", 204, False)]
)
def test_get_head_and_options_are_answered(get: Gateway, method: str, code: int, length: bool) -> None:
    response = get("/health", method=method)
    assert response.status_code == code
    assert bool(response.content) is length
    if method == "OPTIONS":
        assert response.headers["allow"] == "GET, HEAD, OPTIONS"
        assert "content-length" not in response.headers
    else:
        assert int(response.headers["content-length"]) == len(get("/health").content)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE", "NONSENSE"])
def test_other_methods_are_refused(get: Gateway, method: str) -> None:
    response = get("/health/ready", method=method)
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize(
    "path",
    ["/", "/healthy", "/health/", "/health/unknown", "/livez", "/healthz", "/api/health", "/health/checks"],
)
def test_every_other_path_is_the_app_s(get: Gateway, path: str) -> None:
    assert get(path).content == BODY
    assert get(path, method="POST").content == BODY


def test_answers_are_not_stored_and_not_sniffed(get: Gateway) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/health/startup", "/health/detailed"):
        headers = get(path).headers
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-type"] == "application/json"


def test_one_check_can_be_asked_for(get: Gateway) -> None:
    get.health.check("database")(lambda: None)
    get.health.check("search", critical=False)(lambda: False)
    assert get("/health/checks/database").status_code == 200
    assert get("/health/checks/search").status_code == 503
    assert get("/health/checks/search").json()["error"] == "failed"
    assert get("/health/checks/unknown").status_code == 404


def test_aliases_answer_when_they_are_switched_on(name: str) -> None:
    health = Health(Service(kubernetes=True, dockerflow=True))
    health.check("database")(lambda: False)
    with gateway(name, health) as get:
        codes = {
            path: get(path).status_code for path in ("/livez", "/readyz", "/startupz", "/__lbheartbeat__")
        }
        assert codes == {"/livez": 200, "/readyz": 503, "/startupz": 200, "/__lbheartbeat__": 200}
        assert get("/__heartbeat__").status_code == 503


def test_health_may_depend_on_the_checks_where_a_site_has_one_path_only(name: str) -> None:
    health = Health(Service(health_role="ready"))
    health.check("database")(lambda: False)
    with gateway(name, health) as get:
        assert get("/health").status_code == 503


def test_a_draining_replica_fails_readiness_at_once_and_still_serves(get: Gateway) -> None:
    assert get("/health").status_code == 200
    get.health.lifecycle.drain()
    for path in ("/health", "/health/ready"):
        response = get(path)
        assert response.status_code == 503
        assert response.json()["status"] == "draining"
        assert response.headers["retry-after"] == "1"
    assert get("/health/live").status_code == 200
    assert get("/").content == BODY
    get.health.lifecycle.resume()
    assert get("/health").status_code == 200


def test_haproxy_s_soft_drain_and_envoy_s_ejection_can_be_asked_for(name: str) -> None:
    health = Health(Service(drain_status=404), envoy=True)
    with gateway(name, health) as get:
        assert "x-envoy-immediate-health-check-fail" not in get("/health").headers
        health.lifecycle.drain()
        assert get("/health").status_code == 404
        assert get("/health/ready").status_code == 404
        assert get("/health").headers["x-envoy-immediate-health-check-fail"] == "true"


def test_only_an_app_that_declares_itself_broken_fails_liveness(get: Gateway) -> None:
    get.health.check("database")(lambda: False)
    get.health.lifecycle.drain()
    assert get("/health/live").status_code == 200
    get.health.broken("deadlock")
    response = get("/health/live")
    assert response.status_code == 503
    assert response.json()["error"] == "deadlock"


def test_an_app_is_starting_until_its_startup_tasks_have_ended(get: Gateway) -> None:
    warm = threading.Event()
    get.health.startup_task(lambda: warm.wait(10) and None)
    assert get("/health").json()["status"] == "starting"
    assert get("/health").status_code == 503
    assert get("/health/startup").status_code == 503
    assert get("/health/ready").status_code == 503
    assert get("/health/live").status_code == 200
    assert get("/").content == BODY
    warm.set()
    until(lambda: get("/health").status_code == 200)
    assert get("/health/startup").status_code == 200


def test_a_startup_task_that_fails_keeps_the_app_out_of_the_pool(get: Gateway) -> None:
    @get.health.startup_task
    async def warm_up() -> None:
        raise ValueError("secret-model-path")

    until(lambda: get("/health/startup").json()["status"] == "unhealthy")
    response = get("/health/startup")
    assert response.status_code == 503
    assert response.json()["error"] == "error:ValueError"
    assert "secret" not in response.text
    assert get("/health").status_code == 503
    assert get("/health/live").status_code == 200


def test_a_startup_that_has_passed_stays_passed(get: Gateway) -> None:
    assert get("/health/startup").status_code == 200
    get.health.lifecycle.drain()
    get.health.check("database")(lambda: False)
    assert get("/health/startup").status_code == 200


@pytest.mark.parametrize("flavour", ["sync", "async"])
def test_64_cold_probes_at_once_call_the_dependency_once(get: Gateway, flavour: str) -> None:
    calls, gate = [], threading.Event()
    if flavour == "sync":

        @get.health.check("database", timeout=20)
        def database() -> None:
            calls.append(1)
            gate.wait(10)
    else:

        @get.health.check("database", timeout=20)
        async def database_too() -> None:
            calls.append(1)
            await asyncio.get_running_loop().run_in_executor(None, gate.wait, 10)

    get.health.budget = 10.0
    with ThreadPoolExecutor(64) as pool:
        answers = [pool.submit(get, "/health/ready") for _ in range(64)]
        until(lambda: len(calls) == 1)
        gate.set()
        assert {answer.result().status_code for answer in answers} == {200}
    assert len(calls) == 1


def test_eight_replicas_with_one_key_call_their_shared_dependency_once(name: str) -> None:
    calls, gate = [], threading.Event()

    def database() -> None:
        calls.append(1)
        gate.wait(10)

    with ExitStack() as stack:
        replicas = []
        for _ in range(8):
            health = Health(Service(), budget=10)
            health.check("database", flight_key="the shared database", timeout=20)(database)
            replicas.append(stack.enter_context(gateway(name, health)))
        with ThreadPoolExecutor(64) as pool:
            answers = [pool.submit(replicas[number % 8], "/health/ready") for number in range(64)]
            until(lambda: len(calls) == 1)
            gate.set()
            assert {answer.result().status_code for answer in answers} == {200}
        # One that was not asked meanwhile has the result, too.
        assert replicas[3]("/health/ready?verbose").json()["checks"]["database"]["status"] == "healthy"
    assert len(calls) == 1


def test_two_healths_without_a_key_share_nothing(name: str) -> None:
    calls = []

    def database() -> None:
        calls.append(1)

    for _ in range(2):
        health = Health()
        health.check("database")(database)
        with gateway(name, health) as get:
            assert get("/health/ready").status_code == 200
    assert len(calls) == 2


def test_a_check_that_hangs_bounds_the_answer_and_keeps_one_thread(name: str) -> None:
    release = threading.Event()
    health = Health(budget=0.2)
    calls = []

    @health.check("database", timeout=0.3, fail_ttl=0.0)
    def database() -> None:
        calls.append(1)
        release.wait(60)

    with gateway(name, health) as get:
        try:
            # The check is still on at each of these answers, so each of them was bounded.
            first = get("/health/ready")
            assert first.json()["checks"]["database"]["status"] == "unknown"
            assert first.status_code == 503
            until(lambda: get("/health/ready").json()["checks"]["database"].get("error") == "timeout")
            for _ in range(16):
                assert get("/health/ready").status_code == 503
            until(lambda: get("/health/ready").json()["checks"]["database"]["consecutive_failures"] >= 2)
            assert get("/health/ready").json()["checks"]["database"]["hung_for_ms"] >= 300
            assert len(calls) == 1
            assert [t.name for t in threading.enumerate()].count("lbkit-check") == 1
        finally:
            release.set()
        # Its late success was a timeout when it mattered; the next run counts.
        until(lambda: get("/health/ready").status_code == 200)
        assert len(calls) >= 2


def test_a_coroutine_check_that_hangs_is_cancelled_at_its_timeout(get: Gateway) -> None:
    cancelled = threading.Event()

    @get.health.check("database", timeout=0.1)
    async def database() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    response = get("/health/ready")
    assert response.json()["checks"]["database"]["error"] == "timeout"
    assert cancelled.wait(5)


def test_a_result_is_shown_while_it_is_renewed(name: str) -> None:
    clock = FakeClock()
    health = Health(clock=clock, wall=clock.wall)
    results: list[Status] = []
    gate = threading.Event()
    gate.set()

    @health.check("database", ttl=5, max_stale=30)
    def database() -> Outcome:
        gate.wait(10)
        return Outcome(results[-1])

    results.append(Status.HEALTHY)
    with gateway(name, health) as get:
        assert get("/health/ready").status_code == 200
        gate.clear()
        results.append(Status.UNHEALTHY)
        clock.now += 6
        # Due again, and under way: the answer does not wait for it.
        assert get("/health/ready").status_code == 200
        gate.set()
        until(lambda: get("/health/ready").status_code == 503)


def until(happens: object, *, seconds: float = 10) -> None:
    """Ask again until it is so; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not happens():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
