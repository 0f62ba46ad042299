"""The hash functions by which balancers spread keys, each bit for bit that of the source it names."""

from __future__ import annotations

from hashlib import md5
from zlib import crc32

__all__ = [
    "Ending",
    "crc32",
    "djb2",
    "fnv1a32",
    "fnv1a64",
    "full_hash",
    "ip_hash",
    "md5_hex",
    "murmur2",
    "sdbm",
    "wt6",
    "xxh64",
]

M32 = 0xFFFFFFFF
M64 = 0xFFFFFFFFFFFFFFFF


def md5_hex(text: str) -> str:
    return md5(text.encode(), usedforsecurity=False).hexdigest()


def ip_hash(octets: bytes, seed: int = 89) -> int:
    """nginx 1.22, ngx_http_upstream_ip_hash_module.c."""
    for octet in octets:
        seed = (seed * 113 + octet) % 6271
    return seed


def sdbm(data: bytes) -> int:
    """HAProxy 2.6, src/hash.c."""
    value = 0
    for byte in data:
        value = (byte + (value << 6) + (value << 16) - value) & M32
    return value


def djb2(data: bytes) -> int:
    """HAProxy 2.6, src/hash.c: addition, not the xor of other versions."""
    value = 5381
    for byte in data:
        value = ((value << 5) + value + byte) & M32
    return value


def wt6(data: bytes) -> int:
    """HAProxy 2.6, src/hash.c: two halves that change places, turned by steps the data decides."""
    h0, h1 = 0xA53C965A, 0x5CA6953A
    step0, step1 = 6, 18
    for byte in data:
        h0 = ~(h0 ^ byte) & M32
        h1 = ~(h1 + byte) & M32
        h0, h1 = _rotl32(h1, step0), _rotl32(h0, step1)
        turn = ((h0 >> 16) ^ h1) & 0xFFFF
        step0, step1 = turn & 0x1F, turn >> 11
    return h0 ^ h1


def _rotl32(value: int, turn: int) -> int:
    return ((value << turn) | (value >> (32 - turn))) & M32


def full_hash(a: int) -> int:
    """HAProxy 2.6, include/haproxy/intops.h: Jenkins' six shifts, then a multiplication."""
    a = (a + 0x7ED55D16 + (a << 12)) & M32
    a = (a ^ 0xC761C23C) ^ (a >> 19)
    a = (a + 0x165667B1 + (a << 5)) & M32
    a = ((a + 0xD3A2646C) ^ (a << 9)) & M32
    a = (a + 0xFD7046C5 + (a << 3)) & M32
    a = (a ^ 0xB55A4F09) ^ (a >> 16)
    return (a * 3221225473) & M32


def fnv1a32(data: bytes) -> int:
    """Go's hash/fnv New32a, which Caddy 2.6 uses."""
    value = 2166136261
    for byte in data:
        value = ((value ^ byte) * 16777619) & M32
    return value


def fnv1a64(data: bytes) -> int:
    """Go's hash/fnv New64a, which Traefik 3 uses."""
    value = 14695981039346656037
    for byte in data:
        value = ((value ^ byte) * 1099511628211) & M64
    return value


class Ending(dict[int, int]):
    """The end of a text that is hashed by FNV-1a with many beginnings: one multiplication for each of them.

    A byte is xored into the lowest byte of the state alone, and a multiplication carries nothing down. So of
    the state in which a beginning leaves off, the upper part is only multiplied, and what happens to the
    lowest byte is one of 256 cases, which are this mapping.
    """

    __slots__ = ("_data", "_prime", "factor", "mask")

    def __init__(self, data: bytes, *, bits: int) -> None:
        super().__init__()
        self._data = data
        self.mask = M32 if bits == 32 else M64
        self._prime = 16777619 if bits == 32 else 1099511628211
        self.factor = pow(self._prime, len(data), 1 << bits)

    def __missing__(self, low: int) -> int:
        value = low
        for byte in self._data:
            value = (value ^ byte) * self._prime & self.mask
        self[low] = value
        return value

    def after(self, state: int) -> int:
        """The hash of a whole text whose beginning has this hash."""
        low = state & 0xFF
        return (state - low) * self.factor + self[low] & self.mask


P1, P2, P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P4, P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def xxh64(data: bytes, seed: int = 0) -> int:
    """xxHash, 64 bits: the specification of the algorithm, section "XXH64"."""
    size, at = len(data), 0
    if size >= 32:
        lanes = [(seed + P1 + P2) & M64, (seed + P2) & M64, seed & M64, (seed - P1) & M64]
        while at + 32 <= size:
            for i in range(4):
                lanes[i] = _xx_round(lanes[i], int.from_bytes(data[at : at + 8], "little"))
                at += 8
        value = sum(_rotl(lane, turn) for lane, turn in zip(lanes, (1, 7, 12, 18), strict=True)) & M64
        for lane in lanes:
            value = ((value ^ _xx_round(0, lane)) * P1 + P4) & M64
    else:
        value = (seed + P5) & M64
    return _xx_avalanche(_xx_tail((value + size) & M64, data[at:]))


def _xx_tail(value: int, rest: bytes) -> int:
    at = 0
    while at + 8 <= len(rest):
        value ^= _xx_round(0, int.from_bytes(rest[at : at + 8], "little"))
        value = (_rotl(value, 27) * P1 + P4) & M64
        at += 8
    if at + 4 <= len(rest):
        value ^= (int.from_bytes(rest[at : at + 4], "little") * P1) & M64
        value = (_rotl(value, 23) * P2 + P3) & M64
        at += 4
    for byte in rest[at:]:
        value = (_rotl(value ^ ((byte * P5) & M64), 11) * P1) & M64
    return value


def _xx_avalanche(value: int) -> int:
    value = ((value ^ (value >> 33)) * P2) & M64
    value = ((value ^ (value >> 29)) * P3) & M64
    return value ^ (value >> 32)


def _xx_round(lane: int, word: int) -> int:
    return (_rotl((lane + word * P2) & M64, 31) * P1) & M64


def _rotl(value: int, turn: int) -> int:
    return ((value << turn) | (value >> (64 - turn))) & M64


MURMUR = 0xC6A4A7935BD1E995


def murmur2(data: bytes, seed: int = 0xC70F6907) -> int:
    """MurmurHash2 64A with the seed of libstdc++, which Envoy's MURMUR_HASH_2 keeps."""
    value = (seed ^ (len(data) * MURMUR)) & M64
    whole = len(data) & ~7
    for at in range(0, whole, 8):
        word = (int.from_bytes(data[at : at + 8], "little") * MURMUR) & M64
        word = ((word ^ (word >> 47)) * MURMUR) & M64
        value = ((value ^ word) * MURMUR) & M64
    if whole < len(data):
        value = ((value ^ int.from_bytes(data[whole:], "little")) * MURMUR) & M64
    value = ((value ^ (value >> 47)) * MURMUR) & M64
    return value ^ (value >> 47)
