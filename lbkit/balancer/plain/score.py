"""Scores for rendezvous: how well a key and a replica go together."""

from __future__ import annotations

from hashlib import blake2b
from math import log

__all__ = ["hashed", "score"]

M64 = 0xFFFFFFFFFFFFFFFF


def hashed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def score(key: int, replica: int, weight: int) -> float:
    """Of the hashes of both: weight / -ln(a number between 0 and 1), so that shares are the weights."""
    value = key ^ replica  # and the end of splitmix64: every bit changes half of the bits
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & M64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & M64
    return weight / -log(((value ^ value >> 31) + 1) / (M64 + 3))
