"""X-Forwarded-For at one hop, as nginx and HAProxy write it."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbkit.balancer.hop import WEB_SCHEMES, add_client, checked_header
from lbkit.errors import ConfigError

ADDRESSES = st.ip_addresses().map(str)


@pytest.mark.parametrize(
    ("earlier", "client", "chain"),
    [
        ("", "192.0.2.7", "192.0.2.7"),
        ("203.0.113.9", "192.0.2.7", "203.0.113.9, 192.0.2.7"),
        ("203.0.113.9, 10.0.0.1", "192.0.2.7", "203.0.113.9, 10.0.0.1, 192.0.2.7"),
        ("127.0.0.1", "192.0.2.7", "127.0.0.1, 192.0.2.7"),  # forged, and it stays before the truth
        ("<script>, , x", "192.0.2.7", "<script>, , x, 192.0.2.7"),  # not ours to judge
        ("", "2001:db8::7", "2001:db8::7"),
        ("2001:db8::9", "fe80::1%eth0", "2001:db8::9, fe80::1%eth0"),
        ("", None, "unknown"),
        ("203.0.113.9", None, "203.0.113.9, unknown"),  # a unix socket: the forged one is not the last
        ("", "", "unknown"),
    ],
)
def test_x_forwarded_for_is_what_came_in_and_then_the_peer(
    earlier: str, client: str | None, chain: str
) -> None:
    assert add_client(earlier, client) == chain


@given(st.lists(st.text("0123456789abcdef.:, <>", max_size=20)), ADDRESSES)
def test_the_last_entry_is_the_peer_whatever_the_client_wrote(forged: list[str], peer: str) -> None:
    chain = add_client(", ".join(forged), peer)
    assert chain.split(",")[-1].strip() == peer
    assert ipaddress.ip_address(chain.split(",")[-1].strip()) == ipaddress.ip_address(peer)


@given(st.lists(ADDRESSES, min_size=1, max_size=6))
def test_each_hop_adds_one_entry_and_keeps_those_before(peers: list[str]) -> None:
    chain = ""
    for hops, peer in enumerate(peers, start=1):
        chain = add_client(chain, peer)
        assert chain.split(", ") == peers[:hops]


def test_a_websocket_is_forwarded_as_the_web_scheme_below_it() -> None:
    assert WEB_SCHEMES == {"http": "http", "https": "https", "ws": "http", "wss": "https"}


@pytest.mark.parametrize("name", ["x-lbkit-replica", "X-Served-By", "_", "a.b!#$%&'*+^`|~9", None])
def test_a_header_may_have_any_name_of_rfc_9110_or_none(name: str | None) -> None:
    assert checked_header(name) == name


@pytest.mark.parametrize("name", ["", "x served", "x:y", "a\r\nb", "a\n", "x-réplique", '"x"', "x\x00"])
def test_what_is_no_header_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="need a header name such as 'x-served-by', or None") as caught:
        checked_header(name)
    assert str(caught.value).endswith(f"got {name!r}")
