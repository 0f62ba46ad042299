"""Where a client goes by its address, and which replicas take whom."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbkit.balancer import Mode, Pool, Replica, SourceAddress
from lbkit.errors import ConfigError

NAMES = ["web3", "web1", "web2"]


@dataclass(frozen=True)
class Asked:
    client: str | None
    path: str = "/"

    def header(self, _name: str, /) -> str:
        return ""


def pool(names: list[str] = NAMES) -> Pool:
    return Pool(map(Replica, names), policy=SourceAddress())


def landed(pool: Pool, client: str | None) -> str:
    state = pool.pick(Asked(client))
    assert state is not None
    pool.release(state)
    return state.replica.name


CLIENTS = [str(IPv4Address(0xC0000200 + 977 * number)) for number in range(3000)]


def test_each_replica_gets_about_its_share_of_the_addresses() -> None:
    counts = Counter(landed(pool(), client) for client in CLIENTS)
    assert {*counts} == {*NAMES}
    assert all(900 < count < 1100 for count in counts.values())


def test_a_client_lands_where_it_did_in_another_process_with_another_order() -> None:
    """The hash is no secret of the process: a restart and a second balancer agree."""
    known = {"203.0.113.7": "web3", "203.0.113.8": "web2", "2001:db8::1": "web1"}
    assert {client: landed(pool(), client) for client in known} == known
    assert {client: landed(pool(sorted(NAMES)), client) for client in known} == known


@pytest.mark.parametrize("gone", NAMES)
def test_a_replica_that_leaves_moves_its_own_clients_alone(gone: str) -> None:
    whole, rest = pool(), pool([name for name in NAMES if name != gone])
    before = {client: landed(whole, client) for client in CLIENTS}
    moved = {client for client in CLIENTS if landed(rest, client) != before[client]}
    assert moved == {client for client, name in before.items() if name == gone}


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_the_same_client_inside_ipv6(address: IPv4Address) -> None:
    assert landed(pool(), f"::ffff:{address}") == landed(pool(), str(address))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_household_is_one_client_whatever_its_devices_call_themselves(
    net: int, one: int, other: int
) -> None:
    if net == 0:
        net = 0x20010DB800000001  # below it lies what is no household: IPv4 inside IPv6, and the loopback
    first, second = (str(IPv6Address((net << 64) | host)) for host in (one, other))
    assert landed(pool(), first) == landed(pool(), second) == landed(pool(), f"{first}%eth0")


def test_neighbouring_households_are_spread() -> None:
    clients = [str(IPv6Address((0x20010DB800000000 + number << 64) | 1)) for number in range(300)]
    assert all(count > 70 for count in Counter(landed(pool(), client) for client in clients).values())


@pytest.mark.parametrize("client", [None, "", "testclient", "1.2.3", "x" * 5000])
def test_who_has_no_address_gets_each_replica_in_turn(client: str | None) -> None:
    here = pool()
    assert [landed(here, client) for _ in range(6)] == NAMES * 2


def test_a_draining_replica_gets_no_new_clients_and_keeps_those_bound_to_it() -> None:
    here = Pool(map(Replica, NAMES))
    here.set_mode("web3", Mode.DRAIN)
    new = [here.pick() for _ in range(4)]
    assert [state.replica.name for state in new if state] == ["web1", "web2"] * 2
    bound = here.pick(stay="web3")
    assert bound is not None
    assert (bound.replica.name, bound.active) == ("web3", 1)
    assert here.down == set()


def test_a_replica_in_maintenance_loses_its_clients_at_once_and_gets_new_ones_when_it_returns() -> None:
    here = Pool(map(Replica, NAMES))
    here.set_mode("web1", Mode.MAINT)
    assert here.down == {"web1"}
    moved = here.pick(stay="web1")
    assert moved is not None
    assert moved.replica.name in {"web2", "web3"}
    here.set_mode("web1", Mode.READY)
    back = here.pick(stay="web1")
    assert back is not None
    assert (back.replica.name, here.down) == ("web1", set())


def test_a_pool_where_nobody_takes_new_clients_says_so_and_counts_nobody_in() -> None:
    here = Pool(map(Replica, NAMES))
    for name in NAMES:
        here.set_mode(name, Mode.MAINT if name == "web1" else Mode.DRAIN)
    assert here.pick() is None
    assert here.pick(stay="web1") is None
    assert [state.active for state in here.states] == [0, 0, 0]
    assert here.pick(stay="web2") is here.states[2]


def test_a_name_that_is_no_replica_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"need the name of a replica \(web3, web1, web2\), got 'web9'"):
        pool().set_mode("web9", Mode.DRAIN)


def test_a_policy_that_looks_at_the_request_is_not_asked_without_one() -> None:
    with pytest.raises(ConfigError, match="need the request's key"):
        pool().pick()
