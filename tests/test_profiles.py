"""Profiles: balancers by name, what they have and what they refuse; `lbkit replay` and `lbkit explain`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner, Result

from benchmarks.spread import PICTURE, picture
from lbkit.balancer.exchange import Attempt, Request
from lbkit.balancer.explain import decide
from lbkit.balancer.profile import PROFILES, Place, profile_named
from lbkit.cli import main
from lbkit.errors import ConfigError

RECORDINGS = Path(__file__).parent / "vectors" / "recordings"
PLACES = [Place(name=f"web{number}") for number in (1, 2, 3)]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


FILLED = {"KEY": "$uri", "NAME": "x-user", "HEADER": "x-user", "N": "2", "PERCENT": "125"}


def filled(policy: str) -> str:
    for word, value in FILLED.items():
        policy = policy.replace(f" {word}", f" {value}").replace(f"({word})", f"({value})")
    return policy


@pytest.mark.parametrize(
    ("name", "policy"), [(name, policy) for name, each in PROFILES.items() for policy in each.policies]
)
def test_every_policy_that_a_profile_lists_decides(name: str, policy: str) -> None:
    model = PROFILES[name].model(PLACES, policy=filled(policy), rng=Random(1))
    request = Request(target="/cart?x-user=ada", headers={"x-user": "ada"})
    for _ in range(5):
        assert decide(model, request).replica in {"web1", "web2", "web3"}


def test_the_dice_of_a_profile_are_those_that_it_is_given() -> None:
    sequences = []
    for _ in range(2):
        model = profile_named("caddy@2.6").model(PLACES, policy="random", rng=Random(4))
        sequences.append([decide(model, Request()).replica for _ in range(20)])
    assert sequences[0] == sequences[1]


@pytest.mark.parametrize(
    ("name", "places", "policy", "message"),
    [
        ("nginx", [], "", "need at least one replica, got none"),
        ("nginx", [PLACES[0], PLACES[0]], "", "got web1 more than once"),
        ("nginx", PLACES, "fair", "need a method of nginx .*'fair'"),
        ("nginx@1.22", PLACES, "least_time header", "need nginx 1.31 or later"),
        ("haproxy@2.6", PLACES, "fair", "need an algorithm of HAProxy .*'fair'"),
        ("haproxy@2.6", [Place(name="web1", weight=257)], "", "need 0 <= weight <= 256"),
        ("envoy", PLACES, "MAGLEV", "need the header that MAGLEV hashes"),
        ("envoy", PLACES, "FAIR", "need a policy of Envoy .*'FAIR'"),
        ("caddy@2.6", PLACES, "fair", "need a policy of Caddy .*'fair'"),
        ("caddy@2.6", [Place(name="web1", weight=3)], "", "has no weights"),
        ("traefik@3", PLACES, "fair", "need a strategy of Traefik .*'fair'"),
        ("traefik@3", [Place(name="web1", backup=True)], "", "has no backups"),
        ("envoy", [Place(name="web1", max_conns=3)], "", "envoy has no max_conns: need max_conns=0"),
        ("haproxy@2.6", [Place(name="web1", max_fails=3)], "", "has no max_fails"),
        ("nginx", [Place(name="web1", slow_start=3.0)], "", "nginx has no slow_start"),
        ("nginx", [Place(name="web1", backup=True)], "", "at least one server that is not a backup"),
        (
            "nginx",
            [PLACES[0], Place(name="web2", backup=True)],
            "ip_hash",
            "need a method that takes backups",
        ),
        ("nginx", [Place(name="web1", weight=60_000)], "hash $uri consistent", "at most 50000 for a ring"),
        (
            "caddy@2.6",
            [PLACES[0], Place(name="web2", max_fails=2)],
            "",
            "need one max_fails for the whole pool",
        ),
        ("caddy@2.6", PLACES, "header", "need the name that header looks at"),
        ("haproxy@2.6", PLACES, "uri; hash-type md5", "need a hash-type of HAProxy .*'md5'"),
        ("haproxy@2.6", PLACES, "uri len many", "need a whole number after 'len'"),
        ("plain", PLACES, "fair", "need a policy .round_robin, .*'fair'"),
    ],
)
def test_what_the_real_balancer_does_not_have_is_refused(
    name: str, places: list[Place], policy: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        profile_named(name).model(places, policy=policy)


@pytest.mark.parametrize("rule", ["max_conns", "max_fails", "fail_timeout", "slow_start"])
def test_a_limit_that_is_none_is_refused(rule: str) -> None:
    with pytest.raises(ConfigError, match=f"need {rule} >= 0, got {rule}=-1 for web1"):
        Place(name="web1", **{rule: -1})  # type: ignore[arg-type]


def test_a_profile_says_how_close_to_the_real_one_it_is() -> None:
    assert repr(profile_named("haproxy@2.6")) == "<Profile haproxy@2.6: exact, for one thread group>"


@pytest.mark.parametrize("name", PROFILES)
def test_every_policy_has_a_rule_that_people_can_read(name: str) -> None:
    profile = profile_named(name)
    assert all(profile.rule(filled(policy)) == rule for policy, rule in profile.rules.items())


@pytest.mark.parametrize("weight", [0, -1, 65536])
def test_a_weight_that_is_none_is_refused(weight: int) -> None:
    with pytest.raises(ConfigError, match=f"need 1 <= weight <= 65535, got weight={weight} for web1"):
        Place(name="web1", weight=weight)


def test_an_unknown_profile_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"need a profile \(nginx, nginx@1.22, haproxy@2.6, .*got 'nginy'"):
        profile_named("nginy")


def test_a_hundred_thousand_replicas_under_a_linear_policy_have_to_be_asked_for() -> None:
    places = [Place(name=f"web{number}") for number in range(100_000)]
    with pytest.raises(ConfigError, match="looks at every one of them"):
        profile_named("nginx").model(places)
    assert next(profile_named("plain").model(places).serve(Request(), now=0.5)) == Attempt("web0")
    model = profile_named("nginx").model(places, allow_linear=True)
    assert next(model.serve(Request(), now=0.5)) == Attempt("web0")


def test_backups_wait_until_no_other_replica_is_usable() -> None:
    for name in ("nginx", "haproxy@2.6"):
        places = [Place(name="web1"), Place(name="web2"), Place(name="web3", backup=True)]
        model = profile_named(name).model(places)
        assert {decide(model, Request()).replica for _ in range(6)} == {"web1", "web2"}
        down = [Place(name="web1", down=True), Place(name="web2", down=True), places[2]]
        assert decide(profile_named(name).model(down), Request()).replica == "web3"


def test_the_picture_in_the_readme_shows_what_the_profiles_decide() -> None:
    assert PICTURE.read_text(encoding="utf-8") == picture()


# -- lbkit replay


def test_replay_says_what_became_of_each_recording_and_counts() -> None:
    result = invoke("replay", str(RECORDINGS))
    lines = result.output.splitlines()
    assert result.exit_code == 0
    assert lines[-1] == "reproduced 226 of 227, differs 0, not modelled 1"
    assert "nginx_wrr_5_1_1: ok" in lines
    assert any(line.startswith("traefik_leasttime_flood: not modelled: ") for line in lines)


def test_replay_fails_when_one_recording_differs(tmp_path: Path) -> None:
    shutil.copy(RECORDINGS / "caddy_first.json", tmp_path)
    data = json.loads((RECORDINGS / "nginx_wrr_5_1_1.json").read_text())
    data["picked"][4] = "b2"
    (tmp_path / "altered.json").write_text(json.dumps(data))
    result = invoke("replay", str(tmp_path / "altered.json"), str(tmp_path / "caddy_first.json"))
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        "altered: differs at step 4: real b2, lbkit b3",
        "caddy_first: ok",
        "reproduced 1 of 2, differs 1, not modelled 0",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "Expecting property name"), ("[]", "need a JSON object, got list"), ("{}", "need a recording")],
)
def test_replay_refuses_what_is_no_recording(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    result = invoke("replay", str(tmp_path / "x.json"))
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr


def test_replay_refuses_a_folder_without_recordings(tmp_path: Path) -> None:
    result = invoke("replay", str(tmp_path))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


# -- lbkit explain


def test_explain_says_where_a_request_goes_and_why_not_elsewhere() -> None:
    result = invoke("explain", "/cart", "--policy", "hash $request_uri", "--down", "web2")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "nginx (exact, for one worker process), hash $request_uri",
        "GET /cart -> web3",
        "  not web1: passed over: the policy picks where the hash of the key falls among the weights",
        "  not web2: down",
    ]


def test_explain_shows_a_sequence() -> None:
    result = invoke("explain", "--weight", "web1=5", "--times", "7")
    picked = [line.split()[-1] for line in result.output.splitlines() if " -> " in line]
    assert picked == ["web1", "web1", "web2", "web1", "web3", "web1", "web1"]


def test_explain_says_what_moves_when_a_replica_is_removed() -> None:
    ring = invoke("explain", "--policy", "hash $request_uri consistent", "--without", "web2").output
    assert "keys move (only its own; 1/3 is 33.3 %)" in ring
    modulo = invoke("explain", "--profile", "haproxy@2.6", "--policy", "uri", "--without", "web2").output
    moved = float(modulo.splitlines()[-1].split()[2])
    assert moved > 60


def test_explain_says_what_the_client_gets_when_all_are_down() -> None:
    names = [word for number in (1, 2, 3) for word in ("--down", f"web{number}")]
    assert "GET / -> nobody: the client gets 502" in invoke("explain", *names).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "nginy"], "need a profile"),
        (["--policy", "fair"], "need a method of nginx"),
        (["--weight", "web9=3"], "need the name of a replica (web1, web2, web3), got 'web9'"),
        (["--weight", "web1"], "need --weight NAME=VALUE"),
        (["--weight", "web1=much"], "need a whole number for a weight, got 'much'"),
        (["--down", "web9"], "need the name of a replica"),
        (["--header", "ada"], "need --header NAME:VALUE"),
        (["--client", "ada"], "need an address for --client, such as 10.0.0.1, got 'ada'"),
        (["--without", "web9"], "need the name of a replica"),
        (["--without", "web1"], "need a policy that looks at the request"),
        (["--policy", "hash $nonsense"], "need a variable that stands for the request"),
    ],
)
def test_explain_refuses_nonsense_in_one_line(arguments: list[str], message: str) -> None:
    result = invoke("explain", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
