"""What is told to whom: classes of errors in public, redacted text to the authorised, secrets to nobody."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lbkit.errors import ConfigError
from lbkit.forwarded import TrustedProxies
from lbkit.health import Caller, Outcome, Thresholds
from lbkit.health.access import Gate, Level
from lbkit.health.redact import LONGEST, redact
from lbkit.monitor import Health
from lbkit.service import Service
from tests.health_gateways import gateway

NEVER = Thresholds(cpu=101, memory=101, disk=101)
TOKEN = "correct-horse-battery"

# A secret as people make them: never a plain word that may stand in the text by itself.
SECRETS = st.builds(
    lambda first, rest, digit: f"{first}{rest}{digit}",
    st.sampled_from("QXZ"),
    st.text(string.ascii_letters + string.digits + "-_.~!$*", min_size=6, max_size=40),
    st.sampled_from("379"),
)
KEYS = st.sampled_from(
    [
        "password",
        "PASSWORD",
        "passwd",
        "pwd",
        "PGPASSWORD",
        "db_password",
        "secret",
        "client_secret",
        "SECRET_KEY",
        "token",
        "access_token",
        "X-Auth-Token",
        "api_key",
        "api-key",
        "apikey",
        "API KEY",
        "authorization",
        "Proxy-Authorization",
        "aws_secret_access_key",
        "credential",
        "sessionid",
    ]
)
KEYED = st.sampled_from(
    [
        "{key}={secret}",
        "{key} = {secret}",
        "{key}: {secret}",
        "{key}:{secret}",
        "{key}='{secret}'",
        '{key}="{secret}"',
        '{{"{key}": "{secret}", "host": "db"}}',
        "{{'{key}': '{secret}'}}",
        "{key} => {secret}",
        "connect(host=db, {key}={secret}) failed",
        "{key}=Bearer {secret}",
    ]
)
PLACED = st.sampled_from(
    [
        "could not connect to postgres://app:{secret}@db.internal:5432/shop",
        "postgres://app:pass phrase {secret}@db/shop",
        "the server refused password {secret}",
        "redis://:{secret}@cache:6379/0 refused",
        "amqp+ssl://user@corp:{secret}@mq",
        "mongodb+srv://u:{secret}@cluster0.example.net/?retryWrites=true",
        "GET https://api.example.org/v1/items?sig={secret}&page=2 -> 403",
        "GET https://api.example.org/v1?page=2&key={secret}",
        "Authorization: Bearer {secret}",
        "authorization: Basic {secret}",
        "rejected Bearer {secret}",
        "no such file: /run/secrets/{secret}",
        "cannot open '/etc/lbkit/{secret}.pem'",
        r"cannot open C:\Users\me\{secret}\key.pem",
        r"cannot open \\server\share\{secret}",
        "token eyJ{secret}.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc",
        "-----BEGIN RSA PRIVATE KEY-----\n{secret}\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\n{secret}",
    ]
)


@given(KEYS, KEYED, SECRETS)
@example("password", "{key}={secret}", "Qp!!!!!!3")
def test_the_value_of_a_secret_name_is_never_told(key: str, template: str, secret: str) -> None:
    assert secret not in redact(template.format(key=key, secret=secret))


@given(PLACED, SECRETS)
@example("rejected Bearer {secret}", "Q0000*03")
def test_a_secret_in_a_place_for_secrets_is_never_told(template: str, secret: str) -> None:
    assert secret not in redact(template.format(secret=secret))


@given(
    st.sampled_from(
        ["AKIA{}", "ASIA{}", "ghp_{}", "github_pat_{}", "xoxb-{}", "sk_live_{}", "AIza{}", "glpat-{}"]
    ),
    st.text(string.ascii_uppercase + string.digits, min_size=16, max_size=30),
)
def test_well_known_keys_are_never_told(shape: str, rest: str) -> None:
    key = shape.format(rest)
    assert rest not in redact(f"the request was signed with {key}, which is not allowed")


@given(st.text(max_size=3000))
def test_what_is_told_is_one_short_line(text: str) -> None:
    told = redact(text)
    assert len(told) <= LONGEST
    assert told == "" or told.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "connection refused",
        "[Errno 111] Connect call failed ('10.0.0.7', 5432)",
        "replication is 40 s behind",
        'relation "orders" does not exist',
        "FATAL: too many clients already",
        "Name or service not known",
    ],
)
def test_what_is_no_secret_is_told(text: str) -> None:
    assert redact(text) == text


def test_a_megabyte_of_text_takes_no_time_worth_telling() -> None:
    # Bounded by what is read of it, not by the clock.
    assert len(redact("password=" * 150_000)) <= LONGEST


# Who may read what.


def caller(peer: str | None = "192.0.2.7", **headers: str) -> Caller:
    return Caller(peer, {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("details", "proven", "level"),
    [
        ("public", False, Level.PUBLIC),
        ("public", True, Level.FULL),
        ("authorized", False, Level.STATUS_ONLY),
        ("authorized", True, Level.FULL),
        ("never", False, Level.STATUS_ONLY),
        ("never", True, Level.STATUS_ONLY),
    ],
)
def test_the_level_of_a_caller(details: Any, proven: bool, level: Level) -> None:
    gate = Gate(details=details, auth=TOKEN)
    given_token = TOKEN if proven else "wrong-horse-battery"
    assert gate.level(caller(authorization=f"Bearer {given_token}")) is level


@pytest.mark.parametrize(
    "header", ["", "Bearer", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer ü"]
)
def test_only_the_token_itself_opens(header: str) -> None:
    assert Gate(auth=TOKEN, details="authorized").level(caller(authorization=header)) is Level.STATUS_ONLY


def test_an_auth_function_that_fails_or_says_something_odd_opens_nothing() -> None:
    def fail(_: Caller) -> bool:
        raise KeyError("user")

    odd: Callable[[Caller], Any] = lambda _: "yes"  # noqa: E731
    for auth in (fail, odd):
        assert Gate(auth=auth, details="authorized").level(caller()) is Level.STATUS_ONLY


@pytest.mark.parametrize(
    ("peer", "forwarded", "proxies", "opens"),
    [
        ("10.1.2.3", "", [], True),
        ("100.64.0.9", "", [], True),
        ("192.0.2.7", "", [], False),
        ("::ffff:10.1.2.3", "", [], True),
        # Anybody can write the header; only our own proxies are believed.
        ("192.0.2.7", "10.1.2.3", [], False),
        ("192.0.2.7", "10.1.2.3", ["192.0.2.0/24"], True),
        ("192.0.2.7", "10.1.2.3, 203.0.113.9", ["192.0.2.0/24"], False),
        ("192.0.2.7", "203.0.113.9, 10.1.2.3, 192.0.2.8", ["192.0.2.0/24"], True),
        ("10.1.2.3", "203.0.113.9", ["10.0.0.0/8"], False),
        ("192.0.2.7", "not-an-address", ["192.0.2.0/24"], False),
        (None, "10.1.2.3", ["192.0.2.0/24"], False),
        ("unix:", "", [], False),
    ],
)
def test_networks_and_proxies(peer: str | None, forwarded: str, proxies: list[str], opens: bool) -> None:
    trusted = TrustedProxies(proxies) if proxies else None
    gate = Gate(details="authorized", auth=["10.0.0.0/8", "100.64.0.0/10"], trusted_proxies=trusted)
    level = gate.level(caller(peer, x_forwarded_for=forwarded))
    assert (level is Level.FULL) is opens


@pytest.mark.parametrize(
    "options",
    [
        {"details": "all"},
        {"details": "authorized"},
        {"auth": "short"},
        {"auth": " spaces-around "},
        {"auth": []},
        {"auth": ["10.0.0.0/33"]},
        {"auth": ["10.0.0.1/8"]},
    ],
)
def test_a_gate_that_cannot_be_meant_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Gate(**options)
    assert "short" not in str(caught.value)  # an error message is no place for a token


# Through the endpoints.

CORPUS = {
    "dsn": ("postgres://app:s3cr3t-dsn@db/shop", "s3cr3t-dsn"),
    "redis": ("redis://:s3cr3t-redis@cache:6379/0 timed out", "s3cr3t-redis"),
    "token": ("Authorization: Bearer s3cr3t-token", "s3cr3t-token"),
    "key": ("AWS AKIAIOSFODNN7EXAMPLE denied", "AKIAIOSFODNN7EXAMPLE"),
    "path": ("no such file: /run/secrets/s3cr3t-path", "s3cr3t-path"),
    "query": ("GET https://api/x?api_key=s3cr3t-query failed", "s3cr3t-query"),
    "argument": ("connect(password='s3cr3t-argument')", "s3cr3t-argument"),
}
FORMATS = ("json", "health+json", "text", "html", "openmetrics")


def leaky_health(**options: Any) -> Health:
    health = Health(Service(version="1.0.0"), thresholds=NEVER, **options)
    for name, (text, _) in CORPUS.items():

        def refuse(text: str = text) -> None:
            raise ConnectionError(text)

        health.check(name)(refuse)
        health.check(f"{name}-as-outcome")(lambda text=text: Outcome.unhealthy(text))
    return health


@pytest.mark.parametrize("name", ["asgi", "wsgi"])
@pytest.mark.parametrize("authorized", [False, True])
@pytest.mark.parametrize("details", ["public", "authorized", "never"])
def test_no_secret_of_the_corpus_is_told_to_anybody(name: str, authorized: bool, details: Any) -> None:
    health = leaky_health(details=details, auth=TOKEN)
    headers = {"Authorization": f"Bearer {TOKEN}"} if authorized else {}
    paths = ["/health/detailed", "/health/ready", *(f"/health/checks/{check}" for check in CORPUS)]
    with gateway(name, health) as get:
        told = "".join(
            get(f"{path}?verbose&format={each}", headers=headers).text for path in paths for each in FORMATS
        )
    assert [secret for _, secret in CORPUS.values() if secret in told] == []
    assert TOKEN not in told


@pytest.mark.parametrize("name", ["asgi", "wsgi"])
def test_the_code_is_the_same_for_everybody_and_the_text_is_not(name: str) -> None:
    health = Health(Service(version="1.0.0"), details="authorized", auth=TOKEN, thresholds=NEVER)

    @health.check("database")
    def database() -> None:
        raise ConnectionRefusedError("port 5432 is closed; postgres://app:s3cr3t@db/shop")

    with gateway(name, health) as get:
        for path in ("/health/ready", "/health/detailed", "/health/checks/database"):
            stranger = get(path)
            wrong = get(path, headers={"Authorization": "Bearer wrong-horse-battery"})
            friend = get(path, headers={"Authorization": f"Bearer {TOKEN}"})
            assert stranger.status_code == wrong.status_code == friend.status_code == 503
            assert set(stranger.json()) == set(wrong.json()) == {"status", "timestamp", "version"}
            assert "port 5432 is closed; postgres://[redacted]@db" in friend.text
            assert "www-authenticate" not in stranger.headers


@pytest.mark.parametrize("name", ["asgi", "wsgi"])
def test_strangers_see_names_and_classes_by_default_and_no_text(name: str) -> None:
    health = Health(thresholds=NEVER)

    @health.check("database")
    def database() -> None:
        raise ConnectionRefusedError("port 5432 is closed")

    with gateway(name, health) as get:
        answer = get("/health/ready")
    assert answer.json()["checks"]["database"]["error"] == "connection"
    assert "5432" not in answer.text


@pytest.mark.parametrize("name", ["asgi", "wsgi"])
@pytest.mark.parametrize("format_", ["json", "health+json", "text", "html"])
def test_an_answer_is_never_longer_than_a_kubelet_reads(name: str, format_: str) -> None:
    health = Health(thresholds=NEVER, auth=["192.0.2.0/24"], budget=5.0)
    for number in range(200):
        health.check(f"fine-{number}", critical=False)(lambda: None)

    @health.check("broken")
    def broken() -> None:
        raise ValueError("it is broken " * 100)

    with gateway(name, health) as get:
        answer = get(f"/health/detailed?format={format_}")
    assert len(answer.content) <= 8192
    # What is wrong is the last that is left out.
    assert "broken" in answer.text
    assert "ValueError" in answer.text
    if format_ == "json":
        shown = answer.json()
        assert len(shown["checks"]) + shown["checks_left_out"] == 201


@pytest.mark.parametrize("name", ["asgi", "wsgi"])
def test_odd_requests_get_plain_answers(name: str) -> None:
    health = Health(thresholds=NEVER)
    health.check("database")(lambda: None)
    with gateway(name, health) as get:
        assert get("/health/ready", headers={"Accept": "text/html," * 1100}).headers["content-type"] == (
            "application/json"
        )
        odd = get("/health/ready?exclude=nope&exclude=<script>alert(1)</script>&format=html")
        assert odd.status_code == 200
        assert "unknown check in exclude: nope" in odd.text
        assert "<script>" not in odd.text
        for query in ("%00", "a=%ff", "&&&&", "exclude", "=", "verbose=" + "x" * 5000, "exclude=a&" * 3000):
            assert get(f"/health/ready?{query}").status_code == 200
        for path in (
            "/health/checks/",
            "/health/checks/a/b",
            "/health/checks/%00",
            "/health/checks/" + "x" * 9000,
        ):
            assert get(path).status_code == 404
        assert get("/health/ready?exclude=database&verbose").json()["checks"] == {}
