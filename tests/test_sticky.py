"""The route cookie: what is genuine, what is not and why, and who stays where."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import TimestampSigner

from lbkit.errors import ConfigError
from lbkit.sticky import Keep, Move, Reason, Route, Stick, Sticky, kept_private, own_replica_id

OLD, NEW, OTHER = "old " * 8, "new " * 8, "other " * 8
NOW = 1_790_000_000
NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,63}", fullmatch=True)
TIMES = st.integers(0, 2**40).map(float)

sticky = Sticky(secret_keys=[NEW, OLD])
VALUE = sticky.encode("web1", NOW)


class Dated(TimestampSigner):
    def get_timestamp(self) -> int:
        return NOW


def cookie(value: str) -> str:
    return f"session=abc; lb={value}; theme=dark"


@given(NAMES, TIMES)
def test_what_is_written_is_read(name: str, now: float) -> None:
    assert sticky.decode(sticky.encode(name, now), now) == Route(name, int(now), 0)


@given(NAMES, st.integers(2**24, 2**40))
def test_the_cookie_is_itsdangerous_timestamp_signer_byte_for_byte(name: str, now: int) -> None:
    class Then(TimestampSigner):
        def get_timestamp(self) -> int:
            return now

    signer = Then(NEW, salt="lbkit.sticky")
    assert signer.sign(name).decode() == sticky.encode(name, now)
    assert signer.unsign(sticky.encode(name, now), max_age=1).decode() == name


def test_no_flipped_bit_decodes() -> None:
    flipped = [
        VALUE[:at] + chr(ord(VALUE[at]) ^ (1 << bit)) + VALUE[at + 1 :]
        for at in range(len(VALUE))
        for bit in range(8)
    ]
    assert len(set(flipped)) == 8 * len(VALUE)
    assert {type(sticky.decode(value, NOW)) for value in flipped} == {Reason}


def test_a_second_spelling_of_a_signature_is_no_signature() -> None:
    """The last character has two idle bits: itsdangerous takes four texts for one."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    other = VALUE[:-1] + alphabet[alphabet.index(VALUE[-1]) + 1]
    assert Dated(NEW, salt="lbkit.sticky").validate(other)
    assert sticky.decode(other, NOW) is Reason.FORGED


@given(st.binary(min_size=16, max_size=40), NAMES, st.data())
def test_no_truncation_and_no_flipped_bit_of_any_cookie_decodes(key: bytes, name: str, data: Any) -> None:
    codec = Sticky(secret_keys=[key])
    value = codec.encode(name, NOW)
    assert all(isinstance(codec.decode(value[:end], NOW), Reason) for end in range(len(value)))
    assert all(isinstance(codec.decode(value[start:], NOW), Reason) for start in range(1, len(value)))
    at, bit = data.draw(st.integers(0, len(value) - 1)), data.draw(st.integers(0, 7))
    flipped = value[:at] + chr(ord(value[at]) ^ (1 << bit)) + value[at + 1 :]
    assert isinstance(codec.decode(flipped, NOW), Reason)


@given(st.text())
def test_any_text_is_an_answer(text: str) -> None:
    assert isinstance(sticky.decode(text, NOW), Reason)
    assert isinstance(sticky.read(text, NOW), Reason)
    assert isinstance(sticky.read(f"lb={text}", NOW), Reason)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", Reason.MALFORMED),
        ("web1", Reason.MALFORMED),
        ("web1.aaaaaa." + "A" * 27, Reason.FORGED),
        ("web1.aaaaa." + "A" * 27, Reason.MALFORMED),
        ("web2" + VALUE[4:], Reason.FORGED),
        (f'"{VALUE}"', Reason.MALFORMED),
        (VALUE + "\n", Reason.MALFORMED),
        (VALUE + "=", Reason.MALFORMED),
        ("wéb1" + VALUE[4:], Reason.MALFORMED),
        ("shop.web1" + VALUE[4:], Reason.MALFORMED),
        ("x" * 200, Reason.MALFORMED),
        ("x" * 201, Reason.OVERSIZED),
        ("web1" * 5000, Reason.OVERSIZED),
        (Sticky(secret_keys=[OTHER]).encode("web1", NOW), Reason.FORGED),
        (Dated(NEW).sign("web1").decode(), Reason.FORGED),
    ],
)
def test_what_is_not_ours_is_told_apart(value: str, reason: Reason) -> None:
    assert sticky.decode(value, NOW) is reason


@pytest.mark.parametrize(
    ("age", "answer"),
    [
        (-3600, Reason.FUTURE),
        (-61, Reason.FUTURE),
        (-60, None),
        (0, None),
        (100, None),
        (100.5, Reason.EXPIRED),
    ],
)
def test_a_cookie_lives_for_max_age_and_forgives_a_minute_of_clock(age: float, answer: Reason | None) -> None:
    codec = Sticky(secret_keys=[NEW], max_age=100)
    assert codec.decode(codec.encode("web1", NOW), NOW + age) == (answer or Route("web1", NOW, 0))


def test_without_max_age_a_cookie_is_good_for_as_long_as_its_key() -> None:
    assert sticky.decode(VALUE, NOW + 10**9) == Route("web1", NOW, 0)


def test_during_a_rollout_of_a_new_key_both_sides_accept_both_cookies() -> None:
    before, during, after = (Sticky(secret_keys=keys) for keys in ([OLD], [OLD, NEW], [NEW, OLD]))
    for writer in (before, during, after):
        for reader in (during, after):
            assert isinstance(reader.decode(writer.encode("web1", NOW), NOW), Route)
    assert before.decode(during.encode("web1", NOW), NOW) == Route("web1", NOW, 0)
    assert Sticky(secret_keys=[NEW]).decode(before.encode("web1", NOW), NOW) is Reason.FORGED


def test_a_cookie_of_an_old_key_or_past_half_of_its_life_is_renewed() -> None:
    stick = Stick(Sticky(secret_keys=[NEW, OLD], max_age=100), ["web1"])
    retired = Sticky(secret_keys=[OLD]).encode("web1", NOW)
    assert stick.decide(cookie(retired), NOW) == Keep("web1", renew=True)
    assert stick.decide(cookie(VALUE), NOW + 50) == Keep("web1")
    ageing = stick.decide(cookie(VALUE), NOW + 51)
    assert ageing == Keep("web1", renew=True)
    assert stick.settle(ageing, "web1", NOW + 51) == stick.sticky.set_cookie("web1", NOW + 51)


@pytest.mark.parametrize(
    ("header", "answer"),
    [
        ("", Reason.ABSENT),
        ("session=abc", Reason.ABSENT),
        (f"slb={VALUE}", Reason.ABSENT),
        (f"a=1;lb={VALUE}", Route("web1", NOW, 0)),
        (f"lb={VALUE} ; b=2", Route("web1", NOW, 0)),
        (f"LB={VALUE}", Reason.ABSENT),
        (f"lb=; lb=junk; lb={VALUE}", Route("web1", NOW, 0)),
        (f"lb={sticky.encode('web2', NOW)}; lb={VALUE}", Route("web2", NOW, 0)),
        (f"lb={'x' * 300}; lb=junk", Reason.OVERSIZED),
        ("lb", Reason.ABSENT),
        ("lb=", Reason.MALFORMED),
        (";;;lb=;;;", Reason.MALFORMED),
        ("; ".join(["lb=junk"] * 8 + [f"lb={VALUE}"]), Reason.MALFORMED),
    ],
)
def test_of_several_cookies_the_first_genuine_one_counts(header: str, answer: Route | Reason) -> None:
    assert sticky.read(header, NOW) == answer


def test_four_kilobytes_of_fifty_cookies_are_read() -> None:
    many = [f"name{number}={'v' * 75}" for number in range(50)]
    header = "; ".join([*many[:25], f"lb={VALUE}", *many[25:]])
    assert len(header) > 4000
    assert sticky.read(header, NOW) == Route("web1", NOW, 0)


def test_a_client_stays_with_its_replica_and_moves_when_that_is_gone_or_down() -> None:
    stick = Stick(sticky, ["web2", "web1"])
    assert stick.decide(cookie(VALUE), NOW) == Keep("web1")
    assert stick.decide(cookie(VALUE), NOW, down={"web1"}) == Move(Reason.DOWN)
    assert Stick(sticky, ["web2", "web3"]).decide(cookie(VALUE), NOW) == Move(Reason.UNKNOWN)


def test_a_client_that_moved_stays_where_it_landed_when_its_old_replica_returns() -> None:
    stick = Stick(sticky, ["web1", "web2"])
    moved = stick.settle(stick.decide(cookie(VALUE), NOW, down={"web1"}), "web2", NOW)
    assert moved is not None
    assert stick.decide(moved, NOW) == Keep("web2")


def test_a_client_that_has_its_cookie_gets_no_other() -> None:
    stick = Stick(sticky, ["web1", "web2"])
    keep = stick.decide(cookie(VALUE), NOW)
    assert stick.settle(keep, "web1", NOW) is None
    assert stick.settle(keep, "web2", NOW) == sticky.set_cookie("web2", NOW)
    assert stick.settle(Move(Reason.FORGED), "web1", NOW) == sticky.set_cookie("web1", NOW)


def test_moves_are_counted_by_their_reason_and_stays_are_not() -> None:
    stick = Stick(sticky, ["web1"])
    headers = ["", cookie(VALUE), cookie("junk"), cookie("web1" + ".aaaaaa." + "A" * 27), cookie("x" * 999)]
    headers += [cookie(sticky.encode("web9", NOW))]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda header: stick.decide(header, NOW), headers * 500))
    assert {reason for reason, count in stick.moves.items() if count} == {
        Reason.ABSENT, Reason.MALFORMED, Reason.FORGED, Reason.OVERSIZED, Reason.UNKNOWN,
    }  # fmt: skip
    assert set(stick.moves.values()) == {0, 500}


def test_an_opaque_cookie_shows_no_name_and_is_followed_all_the_same() -> None:
    hidden = Sticky(secret_keys=[NEW, OLD], opaque=True)
    value = hidden.encode("web1", NOW)
    assert "web" not in value
    assert value.startswith(f"{hidden.tag('web1')}.")
    assert hidden.tag("web1") != hidden.tag("web2") != hidden.tag("web2", key=1)
    stick = Stick(hidden, ["web2", "web1"])
    assert stick.decide(cookie(value), NOW) == Keep("web1")
    retired = Sticky(secret_keys=[OLD], opaque=True).encode("web1", NOW)
    assert stick.decide(cookie(retired), NOW) == Keep("web1", renew=True)


@given(st.lists(NAMES, min_size=1, max_size=20, unique=True), st.booleans())
def test_every_replica_of_a_pool_is_found_by_its_cookie(names: list[str], opaque: bool) -> None:
    codec = Sticky(secret_keys=[NEW], opaque=opaque)
    stick = Stick(codec, names)
    assert [stick.decide(cookie(codec.encode(name, NOW)), NOW) for name in names] == [Keep(n) for n in names]


@pytest.mark.parametrize(
    ("settings", "attributes"),
    [
        ({}, "Path=/; Secure; HttpOnly; SameSite=Lax"),
        ({"secure": False}, "Path=/; HttpOnly; SameSite=Lax"),
        ({"max_age": 3600}, "Path=/; Max-Age=3600; Secure; HttpOnly; SameSite=Lax"),
        ({"same_site": "None"}, "Path=/; Secure; HttpOnly; SameSite=None"),
        (
            {"path": "/shop", "domain": "example.com", "same_site": "Strict"},
            "Path=/shop; Domain=example.com; Secure; HttpOnly; SameSite=Strict",
        ),
    ],
)
def test_the_cookie_has_the_attributes_that_were_asked_for(settings: Any, attributes: str) -> None:
    value, _, rest = Sticky(secret_keys=[NEW], **settings).set_cookie("web1", NOW).partition("; ")
    assert value == f"lb={VALUE}"
    assert rest == attributes


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"secret_keys": NEW}, "need secret_keys as a list, the newest first, got one str"),
        ({"secret_keys": NEW.encode()}, "got one bytes"),
        ({"secret_keys": None}, "got one NoneType"),
        ({"secret_keys": []}, "need at least one secret key, got none"),
        ({"secret_keys": [NEW, "short"]}, "need secret keys of 16 bytes or more, got 5 at 1"),
        ({"secret_keys": [NEW, None]}, "need secret keys as text or bytes, got NoneType at 1"),
        ({"cookie": "a b"}, "got 'a b'"),
        ({"cookie": ""}, "need a cookie name of 1 to 64"),
        ({"cookie": "AWSALBAPP-0"}, "that AWS does not reserve"),
        ({"max_age": 0}, "got max_age=0"),
        ({"max_age": 1.5}, "got max_age=1.5"),
        ({"max_age": True}, "got max_age=True"),
        ({"same_site": "lax"}, "got 'lax'"),
        ({"same_site": "None", "secure": False}, "need secure=True with same_site='None'"),
        ({"path": "shop"}, "need path as a path that begins with '/', got 'shop'"),
        ({"path": "/; Domain=evil"}, "got '/; Domain=evil'"),
        ({"domain": "example.com:80"}, "need domain as a host name"),
        ({"domain": "example.com\r\nX: y"}, "need domain as a host name"),
        ({"cookie": "__Host-lb", "path": "/shop"}, "need path='/' and no domain"),
        ({"cookie": "__Secure-lb", "secure": False}, "need secure=True for the cookie __Secure-lb"),
        ({"quiet": "/health"}, "need quiet as a list of paths"),
        ({"quiet": ["health"]}, "need quiet as a path"),
    ],
)
def test_nonsense_is_refused_with_the_value_and_the_rule(settings: Any, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Sticky(**{"secret_keys": [NEW], **settings})
    assert rule in str(caught.value)
    assert "new new" not in str(caught.value)


def test_a_replica_id_with_a_dot_is_refused_where_it_is_given() -> None:
    for name in ("web.1", "", "x" * 64, "wéb"):
        with pytest.raises(ConfigError, match="need a replica name of 1 to 63 letters, digits"):
            Stick(sticky, [name])


def test_the_replica_id_is_the_one_given_then_the_environments_then_the_host_name() -> None:
    assert own_replica_id("web1", environ={"LBKIT_REPLICA_ID": "web2"}) == "web1"
    assert own_replica_id(environ={"LBKIT_REPLICA_ID": "web2"}) == "web2"
    assert "." not in own_replica_id(environ={})
    with pytest.raises(ConfigError, match=r"got 'web\.2'"):
        own_replica_id(environ={"LBKIT_REPLICA_ID": "web.2"})


def test_a_repr_shows_no_key() -> None:
    assert repr(sticky) == "Sticky(cookie='lb', 2 keys, max_age=None)"


@pytest.mark.parametrize(
    ("path", "speaks"),
    [("/", True), ("/health", False), ("/health/ready", False), ("/healthy", True), ("/shop/health", True)],
)
def test_health_paths_set_no_cookie(path: str, speaks: bool) -> None:
    assert sticky.speaks_on(path) is speaks


@pytest.mark.parametrize(
    ("method", "status", "cache_control", "expires", "sent"),
    [
        ("GET", 200, "", False, "private"),
        ("HEAD", 404, "", False, "private"),
        ("GET", 200, "public, max-age=60", False, "private, max-age=60"),
        (
            "GET",
            200,
            "Public, S-MaxAge=60, max-age=60, proxy-revalidate",
            False,
            "private, max-age=60",
        ),
        (
            "GET",
            200,
            "max-age=60,s-maxage=600, must-revalidate",
            False,
            "private, max-age=60, must-revalidate",
        ),
        ("GET", 302, "", True, "private"),
        ("GET", 302, "max-age=60", False, "private, max-age=60"),
        ("GET", 304, "", False, "private"),
        ("GET", 200, 'private="x-user"', False, 'private, private="x-user"'),
        ("GET", 200, 'no-cache="a, b"', False, 'private, no-cache="a, b"'),
        ("GET", 302, "", False, None),
        ("GET", 500, "", False, None),
        ("GET", 101, "", False, None),
        ("GET", 200, "no-store", False, None),
        ("GET", 200, "max-age=0, No-Cache", False, None),
        ("GET", 200, "private, max-age=60", False, None),
        ("POST", 200, "", False, None),
    ],
)
def test_an_answer_with_the_cookie_is_kept_from_shared_caches_if_they_would_store_it(
    method: str, status: int, cache_control: str, expires: bool, sent: str | None
) -> None:
    assert kept_private(method, status, cache_control, expires=expires) == sent
