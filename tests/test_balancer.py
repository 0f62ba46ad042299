"""What the balancer decides: names, pools, turns, counts, and what it tells a replica about the client."""

from __future__ import annotations

from collections import Counter
from threading import Barrier, Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbkit.balancer import Pool, Replica, ReplicaState, RoundRobin
from lbkit.balancer.members import make, named
from lbkit.errors import ConfigError, StartupError

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"


def pool_of(*names: str) -> Pool:
    return Pool(map(Replica, names))


@given(st.text(LETTERS, min_size=1, max_size=63))
def test_a_replica_may_have_any_name_that_fits_a_header_and_a_cookie(name: str) -> None:
    assert Replica(name).name == name


@pytest.mark.parametrize(
    "name",
    ["web.1", "", "x" * 64, "wéb", "web 1", "web1\n", "web\r\nset-cookie: a", "web/1", "٣", None, 7, b"web1"],
)
def test_a_name_that_would_break_a_header_or_a_cookie_is_refused_with_the_rule(name: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Replica(name)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message == f"need a replica name of 1 to 63 letters, digits, '_' or '-', got {name!r}"


@given(st.text())
def test_no_accepted_name_holds_a_character_outside_the_rule(name: str) -> None:
    try:
        accepted = Replica(name).name
    except ConfigError:
        assert not (0 < len(name) <= 63 and set(name) <= set(LETTERS))
    else:
        assert set(accepted) <= set(LETTERS)


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ConfigError, match="need at least one replica, got none"):
        Pool([])


def test_replicas_of_the_same_name_are_refused_and_each_such_name_is_told_once() -> None:
    with pytest.raises(ConfigError) as caught:
        pool_of("z", "b", "a", "z", "b", "z")
    assert str(caught.value) == "need a name of its own for each replica, got b, z more than once"


@given(
    names=st.lists(st.text(LETTERS, min_size=1, max_size=8), min_size=1, max_size=7, unique=True),
    cycles=st.integers(1, 5),
    over=st.integers(0, 20),
)
def test_round_robin_gives_every_replica_its_turn_in_the_order_of_the_pool(
    names: list[str], cycles: int, over: int
) -> None:
    pool = pool_of(*names)
    turns = [pool.pick().replica.name for _ in range(cycles * len(names) + over % len(names))]
    assert turns == (names * (cycles + 1))[: len(turns)]
    assert Counter(turns[: cycles * len(names)]) == dict.fromkeys(names, cycles)


@given(st.integers(1, 9), st.integers(0, 8), st.integers(1, 4))
def test_any_run_of_n_turns_over_n_replicas_reaches_each_of_them_once(
    n: int, skipped: int, runs: int
) -> None:
    states = [ReplicaState(Replica(f"web{number}")) for number in range(n)]
    policy = RoundRobin()
    for _ in range(skipped):
        policy.pick(states)
    for _ in range(runs):
        assert {policy.pick(states) for _ in range(n)} == set(states)


def test_two_pools_do_not_share_their_turns() -> None:
    first, second = pool_of("b", "a"), pool_of("b", "a")
    assert [first.pick().replica.name, first.pick().replica.name] == ["b", "a"]
    assert second.pick().replica.name == "b"


class Last:
    """A policy as a user writes one: a class with this method, and nothing to inherit."""

    def pick(self, candidates: object, /) -> ReplicaState:
        assert isinstance(candidates, tuple)
        return candidates[-1]  # type: ignore[no-any-return]


def test_a_pool_asks_the_policy_it_was_given() -> None:
    pool = Pool(map(Replica, ["b", "a"]), policy=Last())
    assert [pool.pick().replica.name for _ in range(3)] == ["a"] * 3
    assert [state.active for state in pool.states] == [0, 3]


@given(st.lists(st.one_of(st.none(), st.integers(0, 50)), max_size=60))
def test_a_pool_knows_how_many_requests_each_replica_holds(steps: list[int | None]) -> None:
    """None picks; a number releases one of those that are out."""
    pool = pool_of("c", "a", "b")
    out: list[ReplicaState] = []
    for step in steps:
        if step is None:
            out.append(pool.pick())
        elif out:
            pool.release(out.pop(step % len(out)))
        held = Counter(state.replica.name for state in out)
        assert {state.replica.name: state.active for state in pool.states} == {
            name: held[name] for name in ("c", "a", "b")
        }


def test_eight_threads_get_exact_turns_and_leave_nothing_behind() -> None:
    threads, each = 8, 3000
    pool = pool_of("b", "c", "a")
    turns: list[Counter[str]] = []
    together = Barrier(threads)

    def work() -> None:
        mine: Counter[str] = Counter()
        held = []
        together.wait(timeout=30)
        for _ in range(each):
            held.append(pool.pick())
            mine[held[-1].replica.name] += 1
            if len(held) == 5:
                for state in held:
                    pool.release(state)
                held.clear()
        turns.append(mine)

    workers = [Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    total = threads * each // 3
    assert sum(turns, Counter()) == {"a": total, "b": total, "c": total}
    assert [state.active for state in pool.states] == [0, 0, 0]


def test_a_sequence_of_apps_is_named_web1_and_on_and_a_mapping_keeps_its_names() -> None:
    assert named(["x", "y"]) == {"web1": "x", "web2": "y"}
    assert list(named({"green": 1, "blue": 2}).items()) == [("green", 1), ("blue", 2)]


def test_one_app_where_several_are_needed_is_told_how_to_write_it() -> None:
    with pytest.raises(ConfigError, match=r"need a sequence of apps, such as \[app\] \* 3, got 7"):
        named(7)  # type: ignore[call-overload]


def test_a_factory_is_called_once_for_each_replica() -> None:
    made: list[object] = []

    def factory() -> object:
        made.append(object())
        return made[-1]

    apps = make(factory, replicas=3)
    assert list(apps) == ["web1", "web2", "web3"]
    assert list(apps.values()) == made


def test_a_factory_that_raises_is_reported_with_the_replica_it_failed_for() -> None:
    calls = iter([object(), object()])

    def factory() -> object:
        for app in calls:
            return app
        raise LookupError("no third database")

    with pytest.raises(StartupError) as caught:
        make(factory, replicas=5)
    assert caught.value.replica == "web3"
    assert caught.value.reason == "LookupError: no third database"
    assert isinstance(caught.value.__cause__, LookupError)


@pytest.mark.parametrize("replicas", [0, -1])
def test_fewer_than_one_replica_is_refused(replicas: int) -> None:
    with pytest.raises(ConfigError, match=f"need replicas >= 1, got replicas={replicas}"):
        make(object, replicas=replicas)
