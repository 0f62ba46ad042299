"""What goes wrong with the requests of one test: the same each time, and the last replica is spared."""

from __future__ import annotations

import pytest

from lbkit.errors import ConfigError
from lbkit.testkit.chaos import BACK_AFTER, KINDS, rates_of, told
from lbkit.testkit.danger import Danger
from lbkit.testkit.faults import Fault, Plan, crash, error, refuse
from lbkit.testkit.settings import Settings


def danger(test: str = "test_it", *, seed: int = 0, replicas: int = 3, **rates: float) -> Danger:
    return Danger(test, replicas=replicas, rates=rates, seed=seed)


def plan(danger: Danger, index: int = 0, *, others: int = 2) -> Plan | None:
    return danger.plan(index, "GET", "/", 0.0, others=others)


def struck(danger: Danger, kind: str, requests: int = 200) -> list[bool]:
    """Which of so many requests to the first replica a kind of fault has hit."""
    plans = [plan(danger) for _ in range(requests)]
    return [each is not None and kind in each.names for each in plans]


def test_a_test_meets_the_same_faults_each_time() -> None:
    assert struck(danger(slow=0.3), "slow") == struck(danger(slow=0.3), "slow")
    others = (danger("test_other", slow=0.3), danger(seed=1, slow=0.3))
    assert all(struck(other, "slow") != struck(danger(slow=0.3), "slow") for other in others)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"kill"}))
def test_the_dice_of_one_kind_do_not_depend_on_the_other_kinds(kind: str) -> None:
    alone = struck(danger(**{kind: 0.2}), kind)
    rest = dict.fromkeys(KINDS.keys() - {kind, "kill", "refuse"}, 0.5)
    assert struck(danger(**{**rest, kind: 0.2}), kind) == alone
    assert 20 < sum(alone) < 60


def test_who_is_killed_is_away_for_a_few_requests_and_then_back() -> None:
    deadly = danger(kill=1.0)
    deadly.begin()
    deadly_plan = plan(deadly, 1)
    assert deadly_plan is not None
    assert deadly_plan.crash
    away = []
    for _ in range(BACK_AFTER + 2):
        deadly.begin()
        away.append(1 not in deadly.up())
    assert away == [True] * BACK_AFTER + [False] * 2


def test_who_is_up_is_told_in_turn() -> None:
    deadly = danger(kill=1.0, replicas=4)
    deadly.begin()
    plan(deadly, 2)
    assert list(deadly.up(1)) == [1, 3, 0]


@pytest.mark.parametrize("asked", [crash(), None], ids=["by a marker", "by chaos"])
def test_the_last_replica_is_spared(asked: Fault | None) -> None:
    faults, rates = ([asked], {}) if asked is not None else ([], {"kill": 1.0})
    deadly = Danger("test_it", replicas=3, rates=rates, faults=faults)
    deadly.begin()
    plans = [plan(deadly, index, others=2 - index) for index in (0, 1, 2)]
    assert [each is not None and each.crash for each in plans] == [True, True, False]
    assert sum(deadly.hits.values()) == 2


def test_chaos_has_nobody_refuse_who_is_the_last_that_a_request_can_go_to() -> None:
    assert plan(danger(refuse=1.0), others=1) is not None
    assert plan(danger(refuse=1.0), others=0) is None
    asked = Danger("test_it", replicas=3, rates={}, faults=[refuse()])
    assert plan(asked, others=0) is not None


def test_what_is_killed_cannot_be_slow_as_well() -> None:
    deadly = danger(kill=1.0, slow=1.0)
    assert str(plan(deadly)) == "kill"
    assert deadly.hits == {"kill": 1}


def test_faults_of_a_marker_are_told_as_they_were_asked_for() -> None:
    asked = Danger("test_it", replicas=3, rates={"slow": 1.0}, faults=[error(503)])
    assert str(plan(asked)) == "slow, error(503)"
    assert asked.hits == {"slow": 1, "error(503)": 1}


def test_rates_are_read_as_they_are_told() -> None:
    assert rates_of("kill=.05, slow=1,error=0") == {"kill": 0.05, "slow": 1.0, "error": 0.0}
    assert told(rates_of("slow=.10,kill=5e-2,hang=1")) == "slow=0.1,kill=0.05,hang=1"
    assert rates_of(told({"kill": 1 / 3})) == {"kill": 1 / 3}


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "kill",
        "kill=",
        "kill=x",
        "kill=1.5",
        "kill=-.1",
        "kill=nan",
        "kil=.1",
        "kill=.1,",
        "kill=.1,kill=.2",
    ],
)
def test_nonsense_is_refused_with_the_value_and_the_rule(wrong: str) -> None:
    rule = r"need KIND=RATE\[,KIND=RATE\], each of kill, hang, slow, .* once, with 0 <= RATE <= 1, got '"
    with pytest.raises(ConfigError, match=rule):
        rates_of(wrong)


def test_chaos_needs_replicas() -> None:
    with pytest.raises(ConfigError, match=r"need replicas to hit, got .* --replica-isolation none"):
        Settings(chaos={"kill": 0.1}, isolation="none")
