"""Who the client is, when only some proxies can be trusted.

`TrustedProxies` decides. It is told who the peer is and what the headers say, and answers with an address,
a scheme and a host that a client cannot choose:

===================================  =====================================================================
the peer                             what is believed
===================================  =====================================================================
is none of our proxies               the connection alone; every forwarding header is removed
is one of them                       the headers of one family, from the right: past each proxy of ours, up
                                     to the first address that is none of them; that is the client
is one, and a hop is no address      the last good hop: what stands left of garbage, garbage wrote
is one, and every hop is ours        the leftmost: the request began inside
===================================  =====================================================================

The scheme is the one that the nearest proxy names, if it is http or https. The host is left alone unless
`hosts` allows the one that the nearest proxy names. The other family of headers is removed, and X-Real-IP
always: a proxy that does not write a header hands it on as the client wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import product
from typing import Literal, NamedTuple, TypeAlias

from lbkit.errors import ConfigError

__all__ = ["Family", "Origin", "TrustedProxies"]

Family: TypeAlias = Literal["x-forwarded", "forwarded"]
"""X-Forwarded-For, -Proto and -Host; or RFC 7239's Forwarded."""

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

FOR, PROTO, HOST, FORWARDED = "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded"

MORE = ("port", "prefix", "server", "by", "ssl", "scheme")
X_FORWARDED = frozenset({FOR, PROTO, HOST, *(f"x-forwarded-{word}" for word in MORE)})
FAMILIES: Mapping[Family, frozenset[str]] = {"x-forwarded": X_FORWARDED, "forwarded": frozenset({FORWARDED})}
EVERY = X_FORWARDED | {FORWARDED, "x-real-ip"}

SCHEMES = frozenset({"http", "https"})
UNIX = "unix"

# Text that is longer names no address.
LONGEST = 80

# A client may write what it likes: what is remembered is bounded in number, and each of it by LONGEST.
REMEMBERED = 4096

OCTETS = {str(number): number for number in range(256)}

NODE = re.compile(
    r"(?: \[ (?P<six>[0-9A-Fa-f:.]+) (?:%[^\]]*)? \] | (?P<four>[0-9.]+) )"
    r"(?: : (?: (?P<port>[0-9]{1,5}) | _[\w.-]+ ) )?"
    r" | (?P<bare>[0-9A-Fa-f:.]+) (?:%\S*)?",
    re.VERBOSE | re.ASCII,
)
"""RFC 7239, section 6, and what is seen in X-Forwarded-For: an IPv6 address without brackets."""

HOSTNAME = re.compile(r"(?P<name>[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)


# Tuples, because requests make them and a frozen dataclass costs a microsecond more.
class Origin(NamedTuple):
    """Where a request comes from. None: as the connection has it."""

    trusted: bool
    """Is the peer one of our proxies?"""

    address: str | None = None
    """An IPv4 or IPv6 address in its shortest form: no port, no zone, no IPv4 inside IPv6."""

    port: int | None = None
    """The client's port, 0 when the proxy does not tell."""

    scheme: str | None = None
    host: str | None = None


STRANGER = Origin(trusted=False)


Hop: TypeAlias = tuple[str, int, bool]
"""Address, port, and whether it is a proxy of ours."""


class TrustedProxies:
    """The proxies whose word is taken, by address; everyone else's is not.

    `peers` are addresses, networks in CIDR notation, or "unix" for whoever connects through a unix socket:
    `TrustedProxies(["10.0.0.0/8", "fd00::/8", "unix"])`. `family` says which headers they write. `hosts`
    are the host names that a proxy may name: "shop.example.com", or ".example.com" for all below it.
    """

    def __init__(
        self, peers: Iterable[str], *, family: Family = "x-forwarded", hosts: Iterable[str] = ()
    ) -> None:
        texts = _texts(peers, "peers", 'a list such as ["10.0.0.0/8"]')
        if not texts:
            raise ConfigError("need at least one trusted peer, got none")
        if family not in FAMILIES:
            raise ConfigError(f"need family 'x-forwarded' or 'forwarded', got {family!r}")
        self.family: Family = family
        self.unix = UNIX in texts
        self.networks = tuple(_network(text) for text in texts if text != UNIX)
        self.hosts = frozenset(map(_host, _texts(hosts, "hosts", 'a list such as ["shop.example.com"]')))
        self.reads = (FOR, PROTO, HOST) if family == "x-forwarded" else (FORWARDED,)
        """The headers that `origin` wants to know, in lower case."""

        self.keeps = {True: FAMILIES[family], False: frozenset[str]()}
        """The headers in `EVERY` that the app may see, by whether the peer is trusted."""

        self._prefixes = {bits: _prefixes(self.networks, bits) for bits in (32, 128)}
        # There are few proxies; and most clients have an IPv4 address, which is read as fast as remembered.
        self._peer = lru_cache(REMEMBERED)(self._hop)
        self._node = lru_cache(REMEMBERED)(self._parsed)

    def __repr__(self) -> str:
        peers = [str(network) for network in self.networks] + [UNIX] * self.unix
        return f"TrustedProxies({peers}, family={self.family!r}, hosts={sorted(self.hosts)})"

    def origin(self, peer: str | None, fields: Mapping[str, str]) -> Origin:
        """Who the client is. `fields` has the headers in `reads`, several lines joined with a comma.

        `peer` is the address of the connection, None or "" for a unix socket. Never raises.
        """
        get = fields.get
        if self.family == "forwarded":
            return self.judge(peer, get(FORWARDED))
        return self.judge(peer, get(FOR), get(PROTO), get(HOST))

    def judge(
        self, peer: str | None, chain: str | None, proto: str | None = None, host: str | None = None
    ) -> Origin:
        """As `origin`, for a carrier that has the texts at hand: those of `reads`, in that order."""
        known = self._peer(peer) if peer and len(peer) <= LONGEST else None
        if known is not None:
            address, _, trusted = known
            return self._told(address, chain, proto, host) if trusted else Origin(False, address)
        if self.unix and (not peer or peer.startswith(UNIX)):
            return self._told(None, chain, proto, host)
        return STRANGER

    def _told(self, address: str | None, chain: str | None, proto: str | None, host: str | None) -> Origin:
        """What a proxy of ours says, whose address this is."""
        port: int | None = None
        if chain:
            nodes: Sequence[str | None]
            if self.family == "forwarded":
                nodes, proto, host = _elements(chain)
            else:
                nodes = chain.split(",")
            if (hop := self._walk(nodes)) is not None:
                address, port, _ = hop
        if proto and proto not in SCHEMES:
            proto = _last(proto)
        named = host and _last(host)
        return Origin(
            True,
            address,
            port,
            proto if proto in SCHEMES else None,
            named if named and self.allows(named) else None,
        )

    def _walk(self, nodes: Sequence[str | None]) -> Hop | None:
        """The client, given the hops as they are written: the nearest one last."""
        best = None
        for node in reversed(nodes):
            if node is not None and not (node := node.strip(" \t")):
                continue  # RFC 9110, section 5.6.1.2: an empty element of a list means nothing
            hop = self._hop(node) if node is not None and len(node) <= LONGEST else None
            if hop is None:
                break
            best = hop
            if not hop[2]:
                break
        return best

    def allows(self, host: str) -> bool:
        """May a proxy name this host, with or without a port?"""
        match = HOSTNAME.fullmatch(host.lower())
        if not match or not self.hosts:
            return False
        name = match["name"]
        parents = (name[at:] for at, letter in enumerate(name) if letter == ".")
        return name in self.hosts or not self.hosts.isdisjoint(parents)

    def _hop(self, text: str) -> Hop | None:
        """What a hop's text says; None for what is no address."""
        number = _dotted(text)
        return self._node(text) if number is None else (text, 0, self._ours(number, 32))

    def _parsed(self, text: str) -> Hop | None:
        match = NODE.fullmatch(text)
        port = int(match["port"] or 0) if match else 0
        address = address_of(match["six"] or match["four"] or match["bare"]) if match else None
        if address is None or port > 65535:
            return None
        return str(address), port, self._ours(int(address), address.max_prefixlen)

    def _ours(self, number: int, bits: int) -> bool:
        for shift, prefixes in self._prefixes[bits]:  # noqa: SIM110  # any() takes three times as long
            if number >> shift in prefixes:
                return True
        return False


def spellings(name: str) -> set[str]:
    """A header's name with each '-' as '-' or '_': CGI, and so WSGI, cannot tell them apart."""
    return {"".join(letters) for letters in product(*("-_" if letter == "-" else letter for letter in name))}


def address_of(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _dotted(text: str) -> int | None:
    """The number of an IPv4 address, which is what most hops are. It takes ipaddress five times as long."""
    try:
        a, b, c, d = text.split(".")
        return OCTETS[a] << 24 | OCTETS[b] << 16 | OCTETS[c] << 8 | OCTETS[d]
    except (ValueError, KeyError):
        return None


def _prefixes(networks: Iterable[Network], bits: int) -> list[tuple[int, frozenset[int]]]:
    """What is left of the addresses in these networks when they are shifted, for each length of a network."""
    lengths: dict[int, set[int]] = {}
    for network in networks:
        if network.max_prefixlen == bits:
            shift = bits - network.prefixlen
            lengths.setdefault(shift, set()).add(int(network.network_address) >> shift)
    return [(shift, frozenset(prefixes)) for shift, prefixes in lengths.items()]


def _last(text: str) -> str:
    return text[text.rfind(",") + 1 :].strip(" \t")


def _elements(text: str) -> tuple[list[str | None], str, str]:
    """The nodes of a Forwarded header, the nearest last, None for garbage; the nearest proto and host.

    A comma ends an element even between quotes. No address, scheme or host has one, and a client that opens
    a quote and never closes it would otherwise swallow what our proxy wrote behind it.
    """
    elements = [_pairs(element) for element in text.split(",") if element.strip(" \t")]
    nodes = [pairs.get("for") if pairs is not None else None for pairs in elements]
    nearest = (elements[-1] if elements else None) or {}
    return nodes, nearest.get("proto", "").lower(), nearest.get("host", "")


def _pairs(element: str) -> dict[str, str] | None:
    """`for=1.2.3.4;proto=https` as a dict; None when it is malformed or names a parameter twice."""
    pairs: dict[str, str] = {}
    for pair in filter(None, (part.strip(" \t") for part in element.split(";"))):
        name, equals, value = pair.partition("=")
        name = name.lower()
        quoted = len(value) >= 2 and value[0] == value[-1] == '"'
        value = value[1:-1] if quoted else value
        if not equals or not name or name in pairs or '"' in value or "\\" in value:
            return None
        pairs[name] = value
    return pairs


def _texts(given: Iterable[str], name: str, example: str) -> list[str]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise ConfigError(f"need {name} as {example}, got {given!r}")
    texts = list(given)
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise ConfigError(f"need {name} as {example}, got {wrong[0]!r} in it")
    return texts


def _network(text: str) -> Network:
    if text == "*":
        raise ConfigError("need the addresses of your proxies, got '*': whoever connects could be anyone")
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ConfigError(f"need peers as addresses, networks or 'unix', got {text!r}: {error}") from None
    if network.prefixlen == 0:
        raise ConfigError(f"need the addresses of your proxies, got {text!r}: that is everyone")
    return _unmapped(network)


def _unmapped(network: Network) -> Network:
    """::ffff:10.0.0.0/104 as 10.0.0.0/8: addresses are compared in that form."""
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        inside = network.network_address.ipv4_mapped
        if inside is not None:
            return IPv4Network((inside, network.prefixlen - 96))
    return network


def _host(text: str) -> str:
    name = text.lower()
    match = HOSTNAME.fullmatch(name.removeprefix("."))
    if not match or match["name"] != name.removeprefix("."):
        rule = "host names such as shop.example.com or .example.com, without a port"
        raise ConfigError(f"need hosts as {rule}, got {text!r}")
    return name
