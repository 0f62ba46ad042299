"""lbkit decides what nginx, HAProxy, Envoy, Caddy and Traefik were recorded to decide.

`recordings/` holds what the real balancers did: scripts, configurations, and the replica of each request.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from lbkit.balancer.recorded import replay
from lbkit.errors import ConfigError

RECORDINGS = sorted((Path(__file__).parent / "recordings").glob("*.json"))
SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.json"))
"""Scripts of random steps under random weights, limits, retries and cookies, played to the real programs."""

NOT_MODELLED = {"traefik_leasttime_flood": "response times of less than a millisecond"}

Data = dict[str, Any]


def load(path: Path) -> Data:
    data: Data = json.loads(path.read_text(encoding="utf-8"))
    return data


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_lbkit_decides_as_the_real_balancer_did(path: Path) -> None:
    verdict = replay(load(path))
    if path.stem in NOT_MODELLED:
        assert verdict.outcome == "not modelled"
        assert NOT_MODELLED[path.stem] in verdict.message
    else:
        assert verdict.message == "ok"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_lbkit_decides_as_the_real_balancer_did_in_a_random_script(path: Path) -> None:
    assert replay(load(path)).message == "ok"


def test_there_are_recordings_of_five_balancers() -> None:
    assert len(RECORDINGS) == 227
    assert {path.stem.partition("_")[0] for path in RECORDINGS} == {
        "nginx",
        "nginx131",
        "haproxy",
        "envoy",
        "caddy",
        "traefik",
    }


TIES = {"caddy_least_conn", "envoy_least_request_full_scan", "traefik_p2c"}
"""Their ties are random: another pick may be as good at one step, and is not at another."""

ANYBODY = {"envoy_least_request_p2c", "traefik_leasttime_flood"}
"""Two draws with replacement may give any replica, and the other one is not modelled."""


def altered(data: Data, step: int) -> Data:
    """The recording with another replica at that step."""
    names = [server["name"] for server in data["servers"]]
    copied = copy.deepcopy(data)
    copied["picked"][step] = next(name for name in names if name != data["picked"][step])
    return copied


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_a_recording_altered_in_one_step_differs(path: Path) -> None:
    data = load(path)
    steps = [step for step, picked in enumerate(data["picked"]) if picked is not None]
    if path.stem in TIES | ANYBODY or not steps or len(data["servers"]) == 1:
        return
    for step in (steps[len(steps) // 2], steps[-1]):
        verdict = replay(altered(data, step))
        assert verdict.outcome == "differs", f"step {step}"
        assert "differs at step" in verdict.message


@pytest.mark.parametrize("name", sorted(TIES))
def test_a_busier_replica_than_a_random_policy_may_pick_differs(name: str) -> None:
    data = load(RECORDINGS[0].with_name(f"{name}.json"))
    steps = [step for step, picked in enumerate(data["picked"]) if picked is not None]
    assert "differs" in {replay(altered(data, step)).outcome for step in steps}


def test_a_difference_names_the_step_and_both_replicas() -> None:
    data = load(RECORDINGS[0].with_name("nginx_wrr_5_1_1.json"))
    data["picked"][4] = "b2"  # nginx picked b3
    assert replay(data).message == "differs at step 4: real b2, lbkit b3"


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("nginx_next_default", "attempts", ["b1"]),
        ("nginx_next_default", "status", 418),
        ("nginx131_sticky_cookie", "set_cookie", ["srv=forged"]),
        ("haproxy_cookie_insert", "backend_cookie", ["SRV=forged"]),
    ],
)
def test_what_was_seen_beside_the_pick_counts_as_well(name: str, key: str, value: object) -> None:
    data = load(RECORDINGS[0].with_name(f"{name}.json"))
    step = next(at for at, seen in enumerate(data["detail"]) if seen and seen.get(key))
    data["detail"][step][key] = value
    message = replay(data).message
    assert message.startswith(f"differs at step {step}: {key}: real {value}")


@pytest.mark.parametrize(
    "name", ["haproxy_health_r2_f3", "haproxy_observe_markdown", "haproxy_agent", "haproxy_slowstart_8"]
)
def test_a_state_that_was_not_reached_differs(name: str) -> None:
    data = load(RECORDINGS[0].with_name(f"{name}.json"))
    states = data.get("states") or data["samples"]
    states[-1]["op_state"] = 3 - states[-1]["op_state"]
    assert replay(data).message.startswith(f"differs at step {len(states) - 1}: op_state")


@pytest.mark.parametrize("name", ["nginx_random_two_dist", "haproxy_random_dist"])
def test_shares_that_are_the_weights_are_not_the_shares_of_a_random_policy(name: str) -> None:
    data = load(RECORDINGS[0].with_name(f"{name}.json"))
    total = sum(server["weight"] for server in data["servers"])
    data["counts"] = {server["name"]: 18_000 * server["weight"] // total for server in data["servers"]}
    assert "the share of" in replay(data).message


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("caddy_first", "lb_policy first", "lb_policy random"),
        ("caddy_first", "lb_policy first", "lb_policy random_choose 2"),
        ("envoy_rr_1_1_1", '"ROUND_ROBIN"', '"RANDOM"'),
        ("envoy_rr_1_1_1", '"ROUND_ROBIN"', '"LEAST_REQUEST"'),
    ],
)
def test_a_random_policy_of_any_balancer_is_held_to_its_shares(name: str, old: str, new: str) -> None:
    data = load(RECORDINGS[0].with_name(f"{name}.json"))
    names = [server["name"] for server in data["servers"]]
    even = {**data, "equivalence": "distribution", "config": data["config"].replace(old, new)}
    even["counts"] = dict.fromkeys(names, 600)
    assert replay(even).message == "ok"
    assert (
        "the share of" in replay({**even, "counts": dict(zip(names, (900, 500, 400), strict=True))}).message
    )


def test_a_step_that_sleeps_lets_time_pass() -> None:
    data = load(RECORDINGS[0].with_name("caddy_rr_passive.json"))
    slept = copy.deepcopy(data)
    for before, op in zip(data["requests"], slept["requests"], strict=True):
        if before["op"] == "tick" and before["t"] > 0:
            op.clear()
            op |= {"op": "sleep", "s": 60}
    assert replay(slept).outcome == "differs"  # after a minute nobody is failed out any more


def test_a_configuration_that_cannot_be_read_is_not_modelled() -> None:
    data = load(RECORDINGS[0].with_name("traefik_sticky.json"))
    message = replay({**data, "config": '{"http": {"services": {}}}'}).message
    assert message.startswith("not modelled: its configuration (KeyError")


def test_a_date_that_nobody_can_know_is_not_compared() -> None:
    data = load(RECORDINGS[0].with_name("nginx131_sticky_cookie.json"))
    text = json.dumps(data).replace("expires=max", "expires=1h").replace("max-age=315360000", "max-age=3600")
    assert replay(json.loads(text.replace("31-Dec-37 23:55:55", "26-Nov-26 01:00:00"))).message == "ok"
    wrong = json.loads(text.replace("max-age=3600", "max-age=60"))
    assert "set_cookie" in replay(wrong).message


def test_a_balancer_or_a_directive_that_is_not_known_is_not_modelled() -> None:
    data = load(RECORDINGS[0].with_name("nginx_wrr_5_1_1.json"))
    assert replay({**data, "balancer": "pound"}).message == "not modelled: the balancer 'pound'"
    config = data["config"].replace("upstream be {", "upstream be { queue 10;")
    assert replay({**data, "config": config}).message == "not modelled: the directive 'queue'"


def test_what_is_no_recording_is_refused() -> None:
    with pytest.raises(ConfigError, match="need a recording of a balancer"):
        replay({"balancer": "nginx"})
    data = load(RECORDINGS[0])
    with pytest.raises(ConfigError, match="as many entries"):
        replay({**data, "picked": data["picked"][1:]})
