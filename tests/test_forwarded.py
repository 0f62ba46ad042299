"""Who the client is: the walk over the hops, the two families, and what is refused."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbkit.errors import ConfigError
from lbkit.forwarded import EVERY, Family, TrustedProxies, _dotted, spellings
from tests.forwarded_attacks import CASES, PEERS, Case

OURS = TrustedProxies(["10.0.0.0/8", "fd00::/8", "unix"], hosts=["shop.example.com", ".shop.example.com"])
RFC7239 = TrustedProxies(["10.0.0.0/8", "fd00::/8"], family="forwarded", hosts=["shop.example.com"])
PROXY, CLIENT = "10.0.0.1", "203.0.113.7"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("lbkit", [name for name in PEERS if name.startswith("lbkit")])
def test_every_attack_is_answered_rightly(lbkit: str, case: Case) -> None:
    assert PEERS[lbkit](case)


@pytest.mark.parametrize("peer", [name for name in PEERS if not name.startswith("lbkit")])
def test_no_peer_answers_every_attack_rightly(peer: str) -> None:
    assert 0 < sum(map(PEERS[peer], CASES)) < len(CASES) == 15


@pytest.mark.parametrize(
    ("chain", "address", "port"),
    [
        ("203.0.113.7", "203.0.113.7", 0),
        ("203.0.113.7:8443", "203.0.113.7", 8443),
        ("203.0.113.7:65536", PROXY, None),
        ("[2001:db8::7]", "2001:db8::7", 0),
        ("[2001:db8::7]:443", "2001:db8::7", 443),
        ("2001:DB8:0::7", "2001:db8::7", 0),
        ("fe80::1%eth0", "fe80::1", 0),
        ("[fe80::1%eth0]:443", "fe80::1", 443),
        ("fe80::1%<script>", "fe80::1", 0),
        ("::ffff:203.0.113.7", "203.0.113.7", 0),
        ("[::ffff:203.0.113.7]:80", "203.0.113.7", 80),
        ("6.6.6.6, ::ffff:10.0.0.2", "6.6.6.6", 0),
        ("10.0.0.9, 10.0.0.2", "10.0.0.9", 0),
        ("6.6.6.6,,\t203.0.113.7 ,", "203.0.113.7", 0),
        ("6.6.6.6, 203.0.113.7, fd00::2, 10.0.0.2:99", "203.0.113.7", 0),
        ("6.6.6.6, <script>, 10.0.0.2", "10.0.0.2", 0),
        ("6.6.6.6, 203.0.113.07", PROXY, None),
        ("6.6.6.6, 1.2.3", PROXY, None),
        ("6.6.6.6, 203.0.113.7:", PROXY, None),
        ("6.6.6.6, 203.0.113.7\n", PROXY, None),
        ("6.6.6.6, _hidden", PROXY, None),
        ("6.6.6.6, \u0661.2.3.4", PROXY, None),
        ("6.6.6.6, " + "1" * 4000, PROXY, None),
        ("", PROXY, None),
    ],
)
def test_the_walk_starts_at_the_right_and_stops_at_the_first_hop_that_is_not_ours(
    chain: str, address: str, port: int | None
) -> None:
    origin = OURS.origin(PROXY, {"x-forwarded-for": chain})
    assert (origin.trusted, origin.address, origin.port) == (True, address, port)


@pytest.mark.parametrize("peer", ["203.0.113.9", "2001:db8::9", "testclient", "9" * 200, "11.0.0.1"])
def test_the_word_of_a_stranger_counts_for_nothing(peer: str) -> None:
    fields = {
        "x-forwarded-for": "6.6.6.6",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "shop.example.com",
    }
    origin = OURS.origin(peer, fields)
    assert not origin.trusted
    assert origin.address in (peer, None)
    assert (origin.scheme, origin.host, origin.port) == (None, None, None)


@pytest.mark.parametrize(
    "peer", ["::ffff:10.0.0.1", "fd00::1%eth0", "10.255.255.255", None, "", "unix:", "unix"]
)
def test_a_proxy_of_ours_is_known_in_every_form_of_its_address(peer: str | None) -> None:
    assert OURS.origin(peer, {"x-forwarded-for": CLIENT}).address == CLIENT


@pytest.mark.parametrize("peer", [None, "", "unix:"])
def test_a_unix_socket_is_trusted_only_where_it_is_named(peer: str | None) -> None:
    assert not TrustedProxies(["10.0.0.0/8"]).origin(peer, {"x-forwarded-for": CLIENT}).trusted


def test_a_stranger_on_an_ipv6_socket_has_an_ipv4_address() -> None:
    assert OURS.origin("::ffff:203.0.113.9", {}).address == "203.0.113.9"


@pytest.mark.parametrize(
    ("proto", "scheme"),
    [("https", "https"), ("http", "http"), ("https, http", "http"), ("http,https", "https"), ("", None),
     ("HTTPS", None), ("javascript", None), ("https:", None), ("wss", None)],
)  # fmt: skip
def test_the_scheme_is_the_nearest_proxys_and_one_of_two(proto: str, scheme: str | None) -> None:
    assert OURS.origin(PROXY, {"x-forwarded-proto": proto}).scheme == scheme


@pytest.mark.parametrize(
    ("host", "allowed"),
    [("shop.example.com", True), ("SHOP.example.com:8443", True), ("de.shop.example.com", True),
     ("evil.example", False), ("evilshop.example.com", False), ("shop.example.com.evil.example", False),
     ("shop.example.com:99999999", False), ("shop.example.com/..", False), ("shop.example.com@evil", False),
     ("evil.example, shop.example.com", True), ("shop.example.com, evil.example", False), ("", False)],
)  # fmt: skip
def test_a_host_is_believed_only_when_it_is_allowed(host: str, allowed: bool) -> None:
    expected = host.split(", ")[-1] if allowed else None
    assert OURS.origin(PROXY, {"x-forwarded-host": host}).host == expected


def test_without_hosts_no_host_is_believed() -> None:
    assert TrustedProxies([PROXY]).origin(PROXY, {"x-forwarded-host": "shop.example.com"}).host is None


@pytest.mark.parametrize(
    ("forwarded", "address", "scheme", "host"),
    [
        ("for=203.0.113.7", CLIENT, None, None),
        ('For="[2001:db8::7]:4711"', "2001:db8::7", None, None),
        ('for="203.0.113.7:_port";proto=https;by=10.0.0.1', CLIENT, "https", None),
        ("for=203.0.113.7;proto=HTTPS;host=shop.example.com", CLIENT, "https", "shop.example.com"),
        ("for=6.6.6.6;proto=https, for=203.0.113.7;proto=http", CLIENT, "http", None),
        ("for=203.0.113.7;proto=http, for=10.0.0.2;proto=https", CLIENT, "https", None),
        ('for="6.6.6.6, for=203.0.113.7', CLIENT, None, None),
        ('for=6.6.6.6;x=", for="[2001:db8::7]:80"', "2001:db8::7", None, None),
        ('for=6.6.6.6;x="\\, for="[2001:db8::7]:80"', "2001:db8::7", None, None),
        ("for=6.6.6.6, for=unknown", PROXY, None, None),
        ("for=6.6.6.6, for=_hidden;proto=https", PROXY, "https", None),
        ("for=6.6.6.6, for=203.0.113.7;for=1.1.1.1", PROXY, None, None),
        ("for=6.6.6.6, nonsense, for=10.0.0.2", "10.0.0.2", None, None),
        ("for=6.6.6.6, nonsense", PROXY, None, None),
        ("for=6.6.6.6, proto=https", PROXY, "https", None),
        ("for=;proto=", PROXY, None, None),
        ("", PROXY, None, None),
    ],
)
def test_rfc_7239_is_read_from_the_right_and_a_quote_swallows_nothing(
    forwarded: str, address: str, scheme: str | None, host: str | None
) -> None:
    origin = RFC7239.origin(PROXY, {"forwarded": forwarded})
    assert (origin.address, origin.scheme, origin.host) == (address, scheme, host)


@pytest.mark.parametrize("family", ["x-forwarded", "forwarded"])
def test_only_one_family_is_read_and_kept(family: Family) -> None:
    proxies = TrustedProxies([PROXY], family=family)
    other = {
        "forwarded": "for=6.6.6.6;proto=https",
        "x-forwarded-for": "6.6.6.6",
        "x-forwarded-proto": "https",
    }
    for name in proxies.reads:
        other.pop(name, None)
    assert proxies.origin(PROXY, other) == (True, PROXY, None, None, None)
    assert proxies.keeps[True] >= set(proxies.reads)
    assert not proxies.keeps[True] & other.keys()
    assert not proxies.keeps[False]
    assert proxies.keeps[True] < EVERY


def test_a_header_has_a_spelling_for_each_choice_of_dash_and_underscore() -> None:
    assert spellings("a-b-c") == {"a-b-c", "a_b-c", "a-b_c", "a_b_c"}


HOPS = st.one_of(
    st.ip_addresses().map(str), st.sampled_from([PROXY, "10.0.0.2", "fd00::1"]), st.text(max_size=9)
)


@given(st.lists(HOPS), st.text(), st.text())
def test_any_chain_gives_an_address_and_what_a_client_puts_in_front_changes_nothing(
    hops: list[str], front: str, proto: str
) -> None:
    fields = {"x-forwarded-proto": proto, "forwarded": front}
    honest = OURS.origin(PROXY, {**fields, "x-forwarded-for": f"{CLIENT}, 10.0.0.2"})
    forged = OURS.origin(
        PROXY, {**fields, "x-forwarded-for": f"{','.join([*hops, front])},{CLIENT}, 10.0.0.2"}
    )
    assert forged == honest
    answer = OURS.origin(PROXY, {**fields, "x-forwarded-for": ",".join(hops)})
    assert answer.address is not None
    assert str(ip_address(answer.address)) == answer.address
    assert answer.scheme in (None, "http", "https")


@given(st.text(), st.text())
def test_any_forwarded_header_gives_an_address_and_its_front_changes_nothing(front: str, back: str) -> None:
    element = f"for={CLIENT};proto=https"
    assert RFC7239.origin(PROXY, {"forwarded": f"{front},{element}"}).address == CLIENT
    answer = RFC7239.origin(PROXY, {"forwarded": back})
    assert answer.address is not None
    assert ip_address(answer.address)


@given(
    st.ip_addresses(),
    st.ip_addresses().flatmap(lambda ip: st.integers(1, ip.max_prefixlen).map(lambda n: (ip, n))),
)
def test_a_peer_is_trusted_exactly_when_a_network_has_it(peer: object, network: tuple[object, int]) -> None:
    mask = ip_network(network, strict=False)  # type: ignore[arg-type]
    address = ip_address(str(peer))
    mapped = getattr(address, "ipv4_mapped", None) or address
    if mask.version == 6 and mask.network_address.ipv4_mapped is not None:
        return
    assert TrustedProxies([str(mask)]).origin(str(peer), {}).trusted == (mapped in mask)


@pytest.mark.parametrize(
    ("peers", "rule"),
    [
        (["*"], "need the addresses of your proxies, got '*'"),
        (["0.0.0.0/0"], "that is everyone"),
        (["::/0"], "that is everyone"),
        (["10.0.0.1/8"], "has host bits set"),
        (["proxy.internal"], "got 'proxy.internal'"),
        (["10.0.0.1:80"], "got '10.0.0.1:80'"),
        ([10], "got 10 in it"),
        ([], "need at least one trusted peer, got none"),
        ("10.0.0.0/8", "got '10.0.0.0/8'"),
        (b"10.0.0.0/8", "got b'10.0.0.0/8'"),
        (None, "got None"),
    ],
)
def test_nonsense_about_peers_is_refused_with_the_value_and_the_rule(peers: list[str], rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrustedProxies(peers)
    assert rule in str(caught.value)


def test_a_network_of_mapped_addresses_is_the_ipv4_network_it_means() -> None:
    assert TrustedProxies(["::ffff:10.0.0.0/104"]).origin("10.1.2.3", {}).trusted


def test_a_family_and_a_host_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="need family 'x-forwarded' or 'forwarded', got 'both'"):
        TrustedProxies([PROXY], family="both")  # type: ignore[arg-type]
    for host in ("*", "shop.example.com:443", "https://shop.example.com", "", "."):
        with pytest.raises(ConfigError, match="need hosts as host names such as"):
            TrustedProxies([PROXY], hosts=[host])
    with pytest.raises(ConfigError, match="need hosts as a list"):
        TrustedProxies([PROXY], hosts="shop.example.com")


def test_ten_thousand_addresses_leave_no_more_than_the_memory_holds() -> None:
    proxies = TrustedProxies([PROXY])
    for number in range(10_000):
        address = f"2001:db8::{number:x}"
        assert proxies.origin(PROXY, {"x-forwarded-for": address}).address == str(ip_address(address))
        proxies.origin(address, {"x-forwarded-for": "6.6.6.6"})
    assert proxies._node.cache_info().currsize == proxies._peer.cache_info().currsize == 4096


def test_what_is_long_is_answered_and_not_remembered() -> None:
    proxies = TrustedProxies([PROXY])
    assert proxies.origin(PROXY, {"x-forwarded-for": f"{'6.6.6.6, ' * 1000}{CLIENT}"}).address == CLIENT
    assert proxies.origin(PROXY, {"x-forwarded-for": f"{CLIENT}, {'x' * 81}"}).address == PROXY
    assert proxies.origin("9" * 81, {"x-forwarded-for": CLIENT}).address is None
    assert proxies._node.cache_info().currsize == 0
    assert proxies._peer.cache_info().currsize == 1


@given(
    st.one_of(st.ip_addresses(v=4).map(str), st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,4}){2,4}", fullmatch=True))
)
def test_an_ipv4_address_is_one_exactly_when_ipaddress_says_so(text: str) -> None:
    try:
        expected: int | None = int(ip_address(text))
    except ValueError:
        expected = None
    assert _dotted(text) == expected


def test_it_tells_what_it_trusts() -> None:
    assert repr(TrustedProxies(["unix", "10.0.0.0/8"])) == (
        "TrustedProxies(['10.0.0.0/8', 'unix'], family='x-forwarded', hosts=[])"
    )
