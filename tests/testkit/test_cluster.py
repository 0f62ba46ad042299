"""A cluster and what one can do to it: one scenario through both gateways."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from lbkit.balancer.check import CheckRules
from lbkit.errors import ConfigError, StartupError
from lbkit.sticky import Sticky
from lbkit.testkit import Cluster, Fault, crash, drip, hang, refuse, reset, slow, unready
from tests.testkit.cluster_apps import OUTSIDE, Notes, flask_shop, starlette_shop

LIMIT = 20.0
SHOPS: dict[str, Callable[[Notes], Any]] = {"wsgi": flask_shop, "asgi": starlette_shop}


@pytest.fixture
def notes() -> Iterator[Notes]:
    notes = Notes()
    yield notes
    notes.go.set()


@pytest.fixture(params=SHOPS)
def cluster(request: pytest.FixtureRequest, notes: Notes) -> Iterator[Cluster]:
    with Cluster(lambda: SHOPS[request.param](notes), timeout=0.2) as cluster:
        yield cluster


def replicas(cluster: Cluster) -> list[str | None]:
    return [row.replica for row in cluster.trace]


def eventually(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not what():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def text(answer: Any) -> str:
    return str(answer.text)


def test_replicas_answer_in_turn_and_each_has_memory_of_its_own(cluster: Cluster) -> None:
    client = cluster.client()
    hits = [client.get("/").text for _ in range(4)]
    assert replicas(cluster) == ["web1", "web2", "web3", "web1"]
    assert ['"hits":1' in hit.replace(" ", "") for hit in hits] == [True, True, True, False]
    assert [row.client for row in cluster.trace] == ["client1"] * 4


def test_a_killed_replica_refuses_and_another_one_answers(cluster: Cluster) -> None:
    client = cluster.client()
    cluster["web1"].kill()
    assert [client.get("/").status_code for _ in range(3)] == [200] * 3
    refused, answered = cluster.trace[0].attempts
    assert (str(refused), answered.status) == ("web1 refused", 200)
    assert "web1" not in replicas(cluster)
    cluster["web1"].start()
    assert [client.get("/").status_code for _ in range(3)] == [200] * 3
    assert "web1" in replicas(cluster)


@pytest.mark.parametrize(
    ("fault", "attempts"),
    [
        (hang(), ["web1 timeout (hang())", "another 200"]),
        (hang(at="headers"), ["web1 timeout (hang(at='headers'))", "another 200"]),
        (refuse(), ["web1 refused (refuse())", "another 200"]),
        (reset(), ["web1 reset (reset())", "another 200"]),
        (crash(), ["web1 reset (crash())", "another 200"]),
        (slow(0.01), ["web1 200 (slow(0.01))"]),
        (drip(10_000), ["web1 200 (drip(10000))"]),
    ],
    ids=str,
)
def test_what_the_client_of_a_get_does_not_notice(
    cluster: Cluster, fault: Fault, attempts: list[str]
) -> None:
    client = cluster.client()
    with cluster["web1"].inject(fault):
        assert client.get("/").status_code == 200
    told = [str(each).replace(", zombie", "") for each in cluster.trace[0].attempts]
    assert [re.sub("web[23]", "another", each) for each in told] == attempts


@pytest.mark.parametrize("fault", [hang(), hang(at="headers"), reset()], ids=str)
def test_a_post_that_may_have_run_is_not_sent_twice(cluster: Cluster, notes: Notes, fault: Fault) -> None:
    client = cluster.client()
    with cluster["web1"].inject(fault):
        assert client.post("/").status_code == 502
    assert len(cluster.trace[0].attempts) == 1
    assert notes.told.count("POST ran") == int(cluster.trace[0].attempts[0].ran) == (str(fault) != "hang()")


def test_a_post_that_was_refused_goes_to_another_replica_with_its_body(
    cluster: Cluster, notes: Notes
) -> None:
    client = cluster.client()
    cluster["web1"].kill()
    answer = client.post("/", data="tea") if cluster.is_wsgi else client.post("/", content="tea")
    assert '"tea"' in text(answer)
    assert notes.told.count("POST ran") == 1


@pytest.mark.parametrize("fault", [reset(after_bytes=3), hang(at="body")], ids=str)
def test_half_an_answer_is_an_error_and_never_a_short_body(cluster: Cluster, fault: Fault) -> None:
    client = cluster.client()
    with (
        cluster["web1"].inject(fault),
        pytest.raises(OSError, match=r"web1 (broke|was silent)"),
    ):
        client.get("/")
    row = cluster.trace[0]
    assert (row.status, row.complete, row.lost) == (200, False, True)
    assert row.bytes_out == (3 if str(fault).startswith("reset") else 0)


def test_an_injected_status_is_answered_in_place_of_the_app(cluster: Cluster, notes: Notes) -> None:
    client = cluster.client()
    with cluster["web1"].error(503, path="/", method="GET", times=1) as injection:
        assert client.get("/").status_code == 503
    assert injection.count == 1
    assert notes.told.count("GET ran") == 0


def test_health_can_fail_alone(cluster: Cluster) -> None:
    client = cluster.client()
    with cluster["web1"].inject(unready()), client.on("web1"):
        assert client.get("/health").status_code == 503
        assert client.get("/").status_code == 200


def test_an_app_that_raises_is_traced_with_what_it_raised(notes: Notes) -> None:
    with Cluster(lambda: starlette_shop(notes)) as cluster:
        assert cluster.client(raise_server_exceptions=False).get("/fail").status_code == 500
        assert cluster.trace[0].attempts[0].fault == "raised RuntimeError: out of tea"


def test_a_drained_replica_finishes_what_is_inside(cluster: Cluster, notes: Notes) -> None:
    client, answers = cluster.client(), []
    thread = threading.Thread(target=lambda: answers.append(client.get("/slow")))
    thread.start()
    eventually(lambda: "slow began" in notes.told)
    drain = threading.Thread(target=cluster["web1"].drain, args=[LIMIT])
    drain.start()
    eventually(lambda: cluster["web1"].state == "draining")
    other = cluster.client()
    assert [other.get("/").status_code for _ in range(3)] == [200] * 3
    assert set(replicas(cluster)[1:]) == {"web2", "web3"}
    notes.go.set()
    thread.join(LIMIT)
    drain.join(LIMIT)
    assert text(answers[0]) == "done"
    assert (cluster["web1"].state, cluster["web1"].dropped) == ("down", 0)


def test_a_drain_that_runs_out_of_time_cuts_and_counts(cluster: Cluster, notes: Notes) -> None:
    cluster.timeout = LIMIT
    client = cluster.client()
    thread = threading.Thread(target=lambda: client.get("/slow"))
    thread.start()
    eventually(lambda: "slow began" in notes.told)
    assert cluster["web1"].drain(0.05) == 1
    notes.go.set()
    thread.join(LIMIT)
    assert cluster.trace[0].attempts[0].fault == "reset"


def test_a_rolling_restart_loses_nothing(cluster: Cluster) -> None:
    client = cluster.client()
    before = {replica.name: replica.inner for replica in cluster}
    with cluster.load(client.get, "/", rate=200) as load:
        cluster.rolling_restart(drain=5)
    assert not load.errors
    assert load.answers
    assert {answer.status_code for answer in load.answers} == {200}
    assert all(replica.inner is not before[replica.name] for replica in cluster)


def test_versions_can_be_mixed(cluster: Cluster, notes: Notes) -> None:
    shop = flask_shop if cluster.is_wsgi else starlette_shop
    cluster.deploy(lambda: shop(notes), only=["web2"])
    assert cluster["web1"].origin is cluster["web3"].origin is not cluster["web2"].origin
    assert cluster.client().get("/").status_code == 200


def test_a_cluster_grows_and_shrinks(cluster: Cluster) -> None:
    client = cluster.client()
    cluster.scale(5)
    assert {client.get("/").headers["x-lbkit-replica"] for _ in range(5)} == {f"web{n}" for n in range(1, 6)}
    cluster.scale(2)
    assert {client.get("/").headers["x-lbkit-replica"] for _ in range(5)} == {"web1", "web2"}


def test_a_client_that_is_bound_by_a_cookie_stays_until_its_replica_dies(notes: Notes) -> None:
    sticky = Sticky(secret_keys=["k" * 32], secure=False)
    for shop in SHOPS.values():
        with Cluster(partial(shop, notes), sticky=sticky) as cluster:
            client, other = cluster.client(), cluster.client()
            for _ in range(3):
                client.get("/")
                other.get("/")
            assert replicas(cluster) == ["web1", "web2"] * 3
            cluster["web1"].kill()
            for _ in range(3):
                client.get("/")
            home = cluster.trace[-1].replica
            assert home != "web1"
            assert [row.replica for row in cluster.trace[-3:]] == [home] * 3


def test_chaos_is_the_same_with_the_same_seed(notes: Notes) -> None:
    def run(seed: int) -> list[str]:
        with Cluster(lambda: flask_shop(notes)) as cluster:
            client = cluster.client()
            with cluster.chaos(kill=0.1, error=0.2, seed=seed):
                for _ in range(40):
                    client.get("/")
            return [", ".join(map(str, row.attempts)) for row in cluster.trace]

    assert run(7) == run(7) != run(8)
    assert any("crash()" in each for each in run(7))


def test_the_seed_of_chaos_is_told_when_the_block_fails(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError), cluster.chaos(kill=0.01, seed=4711):
        raise ZeroDivisionError
    assert capsys.readouterr().out == "chaos(kill=0.01, seed=4711) does the same again\n"


def test_the_last_replica_is_spared_by_chaos(cluster: Cluster) -> None:
    client = cluster.client()
    with cluster.chaos(kill=1.0, seed=1):
        for _ in range(4):
            client.get("/")
            assert any(replica.listens for replica in cluster)
    assert all(replica.listens for replica in cluster)


def test_what_a_test_puts_into_its_context_does_not_reach_the_replicas(cluster: Cluster) -> None:
    token = OUTSIDE.set("the test's own")
    try:
        assert "unset" in text(cluster.client().get("/"))
    finally:
        OUTSIDE.reset(token)


def test_a_real_port_answers_as_the_cluster_does(cluster: Cluster) -> None:
    url = cluster.serve()
    with httpx.Client() as client:
        assert [client.get(url).headers["x-lbkit-replica"] for _ in range(3)] == ["web1", "web2", "web3"]


def test_a_cluster_can_be_used_from_a_loop(notes: Notes) -> None:
    import asyncio

    async def work() -> None:
        async with Cluster(lambda: starlette_shop(notes)) as cluster:
            client = cluster.aclient()
            assert (await client.get("/")).status_code == 200
            await cluster["web2"].akill()
            await cluster["web3"].adrain()
            assert [(await client.get("/")).headers["x-lbkit-replica"] for _ in range(2)] == ["web1"] * 2
            await cluster["web2"].astart()
            await cluster["web3"].arestart()
            await client.aclose()

    asyncio.run(work())


def test_a_recipe_gives_each_replica_modules_of_its_own(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tk_counter.py").write_text(
        "HITS = []\n"
        "def create_app():\n"
        "    def app(environ, start_response):\n"
        "        HITS.append(1)\n"
        "        start_response('200 OK', [])\n"
        "        return [str(len(HITS)).encode()]\n"
        "    return app\n"
    )
    monkeypatch.chdir(tmp_path)
    with Cluster("tk_counter:create_app()", private=["tk_counter"]) as cluster:
        client = cluster.client()
        assert [client.get("/").text for _ in range(4)] == ["1", "1", "1", "2"]
        assert [len(replica.module("tk_counter").HITS) for replica in cluster] == [2, 1, 1]
        cluster["web1"].restart()
        assert len(cluster["web1"].module("tk_counter").HITS) == 0


def test_a_replica_that_does_not_start_is_named() -> None:
    made: list[int] = []

    def create_app() -> Any:
        made.append(1)
        if len(made) == 2:
            raise OSError("port in use")
        return flask_shop(Notes())

    with pytest.raises(StartupError, match="replica web2 failed to start: OSError: port in use"):
        Cluster(create_app).start()


def test_mistakes_are_told_with_the_rule(cluster: Cluster) -> None:
    for wrong, rule in [
        (lambda: cluster["web9"], r"need the name of a replica \(web1, web2, web3\), got 'web9'"),
        (lambda: cluster.scale(0), "need replicas >= 1, got replicas=0"),
        (lambda: cluster.chaos(explode=1), "need rates of kill, .*, got explode"),
        (lambda: cluster["web1"].module("shop"), "need a recipe such as"),
        (lambda: cluster["web1"].inject(3), "need a fault such as"),  # type: ignore[arg-type]
        (cluster.start, "need a cluster that was not started before"),
        (lambda: Cluster(flask_shop(Notes())), r"or \[app\] \* 3, got <Flask"),
        (lambda: Cluster(lambda: flask_shop(Notes()), timeout=0), "need timeout > 0, got 0"),
    ]:
        with pytest.raises(ConfigError, match=rule):
            wrong()


@pytest.mark.parametrize(("profile", "status", "attempts"), [("nginx", 200, 2), ("caddy@2.6", 502, 1)])
def test_under_a_profile_the_balancer_decides_who_is_asked_next(
    notes: Notes, profile: str, status: int, attempts: int
) -> None:
    for shop in SHOPS.values():
        with Cluster(partial(shop, notes), profile=profile, policy="round_robin") as cluster:
            client = cluster.client()
            cluster["web1"].kill()
            for _ in range(3):
                client.get("/")
            refused = cluster.trace.by(replica="web1")[0]
            assert (refused.status, len(refused.attempts)) == (status, attempts)


def reaches(cluster: Cluster, client: Any, names: set[str]) -> bool:
    """Whether three requests go to these replicas."""
    cluster.trace.clear()
    for _ in range(3):
        client.get("/")
    return set(cluster.trace.counts()) == names


def test_a_replica_whose_health_fails_gets_nothing_until_it_is_well(notes: Notes) -> None:
    rules = CheckRules(path="/", rise=1, fall=1, inter=0.01)
    for shop in SHOPS.values():
        with Cluster(partial(shop, notes), check=rules) as cluster:
            client = cluster.client()
            with cluster["web2"].error(503):
                eventually(partial(reaches, cluster, client, {"web1", "web3"}))
            eventually(partial(reaches, cluster, client, {"web1", "web2", "web3"}))
            assert {row.client for row in cluster.trace} == {"client1"}  # the checks are not in it


def test_a_cluster_may_run_with_the_replicas_that_start(notes: Notes) -> None:
    made = iter([True, False, True])

    def create_app() -> Any:
        if not next(made):
            raise OSError("port in use")
        return flask_shop(notes)

    with Cluster(create_app, degraded=True) as cluster:
        assert [replica.state for replica in cluster] == ["up", "failed", "up"]
        assert cluster["web2"].reason == "OSError: port in use"
        client = cluster.client()
        assert [client.get("/").status_code for _ in range(3)] == [200] * 3
        assert all(len(row.attempts) == 1 for row in cluster.trace)
    with pytest.raises(StartupError, match="replica web1 failed to start: StopIteration"):
        Cluster(create_app, degraded=True).start()


def test_a_client_that_is_sent_to_one_replica_is_not_sent_on(cluster: Cluster) -> None:
    client = cluster.client()
    cluster["web2"].kill()
    with client.on("web2"), pytest.raises(ConnectionRefusedError, match="web2 refused the connection"):
        client.get("/")
    assert len(cluster.trace[0].attempts) == 1
