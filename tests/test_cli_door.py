"""What `lbkit serve` is asked for of its balancer, and what it refuses before it imports the app."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from lbkit.asgi import Balancer, RoutedBalancer
from lbkit.cli import main
from lbkit.cli.door import Door
from lbkit.types import Receive, Scope, Send


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--profile nginy", "need a profile (nginx, nginx@1.22, haproxy@2.6, "),
        ("--profile nginx --policy fair", "need a method of nginx (round_robin, ip_hash, "),
        ("--policy fair", "need a policy (round_robin, weighted, "),
        ("--weight web1", "need --weight NAME=VALUE, such as --weight web1=3, got 'web1'"),
        ("--weight web9=2", "need the name of a replica (web1, web2, web3), got 'web9'"),
        ("--weight web1=x", "need a whole number for a weight, got 'x'"),
        ("--weight web1=0", "need 1 <= weight <= 65535, got weight=0 for web1"),
        ("--weight web1=99999", "need 1 <= weight <= 65535, got weight=99999 for web1"),
        ("--profile caddy@2.6 --weight web1=2", "caddy@2.6 has no weights"),
        ("--check health", "need the path of a check that begins with '/', got 'health'"),
        ("--sticky --policy p2c", "need a --profile, such as nginx, for --sticky beside --policy"),
        ("--sticky --weight web1=2", "need a --profile, such as nginx, for --sticky beside --weight"),
        ("--profile nginx@1.22 --sticky", "need nginx 1.31 or later for sticky"),
        ("--route /api", "need a route CONDITION=POOL, such as '/api/*=api'"),
        ("--route *=a --route /b=b", "need routes that can be reached: the first match wins"),
        ("--route /a=a --weight web1=2", "need the name of a replica (a1, a2, a3), got 'web1'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(options: str, line: str) -> None:
    result = CliRunner().invoke(main, ["serve", "never.imported:app", *options.split()])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"Error: {line}")


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    raise NotImplementedError


def test_what_was_asked_is_what_the_balancer_gets() -> None:
    door = Door(replicas=2, profile="nginx", weights=("web2=5",), sticky=True, check="/well")
    balancer = door.open(lambda: app, on_dispatch=print)
    assert isinstance(balancer, Balancer)
    model = balancer._carrier.backend.model  # type: ignore[union-attr]
    assert [(peer.name, peer.weight) for peer in model.peers] == [("web1", 1), ("web2", 5)]  # type: ignore[attr-defined]
    assert (balancer._watch.check.path, balancer._watch.check.rise) == ("/well", 1)  # type: ignore[union-attr]


def test_sticky_turns_are_kept_by_our_own_signed_cookie() -> None:
    balancer = Door(replicas=2, sticky=True).open(lambda: app, on_dispatch=print)
    assert isinstance(balancer, Balancer)
    assert balancer.stick is not None
    assert balancer._carrier is None


def test_each_route_has_a_pool_of_its_own() -> None:
    door = Door(replicas=1, routes=("/api/*=api", "header:X-Beta=beta", "*=web"), weights=("api1=2",))
    routed = door.open(lambda: app, on_dispatch=print)
    assert isinstance(routed, RoutedBalancer)
    assert {pool: list(each.replicas) for pool, each in routed.pools.items()} == {
        "api": ["api1"], "beta": ["beta1"], "web": ["web1"],
    }  # fmt: skip
