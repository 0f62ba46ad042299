"""The hash functions give the values that their authors publish."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lbkit.balancer.envoy.policy import mt19937
from lbkit.balancer.hashing import fnv1a32, fnv1a64, full_hash, sdbm, xxh64


@pytest.mark.parametrize(
    ("function", "data", "value"),
    [
        (xxh64, b"", 0xEF46DB3751D8E999),
        (xxh64, b"abc", 0x44BC2CF5AD770999),
        (xxh64, b"Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),
        (fnv1a32, b"a", 0xE40C292C),
        (fnv1a64, b"a", 0xAF63DC4C8601EC8C),
        (sdbm, b"", 0),
    ],
)
def test_a_published_value_comes_out(function: Callable[[bytes], int], data: bytes, value: int) -> None:
    assert function(data) == value


def test_the_mersenne_twister_begins_as_the_standard_of_cpp_says() -> None:
    draw = mt19937(5489)
    assert [draw() for _ in range(10_000)][-1] == 4123659995  # [rand.predef]


def test_the_avalanche_sends_neighbours_far_apart() -> None:
    assert len({full_hash(number) >> 24 for number in range(256)}) > 128
