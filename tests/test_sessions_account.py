"""How long a session lasts, and how long its user's index must know of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lbkit.sessions import SessionOptions
from lbkit.sessions.account import Account
from lbkit.sessions.contents import Contents
from lbkit.sessions.store import TOUCHED, USER

GAPS = st.lists(st.floats(0.0, 999.0), max_size=30)


@given(GAPS, st.floats(1e9, 2e9), st.sampled_from([(1000.0, 10.0), (10.0, 1000.0), (999.9, 1000.0)]))
def test_a_session_that_is_used_for_ever_is_in_the_index_for_as_long_and_little_longer(
    gaps: list[float], now: float, lasts: tuple[float, float]
) -> None:
    account = Account(SessionOptions(absolute=None, idle=lasts[0], remember=lasts[1]))
    ends_at, extended = account.ends_at(now, now), 0
    fields = {USER: b"alice", TOUCHED: b"%d" % now}
    began_at = now
    for gap in gaps:
        now += gap
        if account.extends(fields, now):
            ends_at, extended = account.ends_at(now, began_at), extended + 1
        fields[TOUCHED] = b"%d" % now
        assert now + 1000 <= ends_at <= now + 1500
    assert extended <= 2 + (now - began_at) / 500


def test_one_with_an_absolute_age_and_one_of_nobody_need_no_later_end() -> None:
    fields = {USER: b"alice", TOUCHED: b"0"}
    assert Account(SessionOptions(absolute=None)).extends(fields, 1e9)
    assert not Account(SessionOptions()).extends(fields, 1e9)
    assert not Account(SessionOptions(absolute=None)).extends({TOUCHED: b"0"}, 1e9)
    assert Account(SessionOptions(absolute=50)).ends_at(1e9, 1e9 - 20) == 1e9 + 30


def test_a_permanent_session_lasts_longer_and_none_longer_than_its_absolute_age() -> None:
    account, permanent = Account(SessionOptions(idle=10, remember=100, absolute=150)), Contents({})
    permanent.set("_permanent", True)
    assert account.ttl(Contents({}), 0.0, 0.0) == 10
    assert account.ttl(permanent, 20.0, 0.0) == 100
    assert account.ttl(permanent, 120.0, 0.0) == 30
