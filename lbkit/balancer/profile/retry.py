"""Retry rules, in the words of each balancer's own configuration.

========  =====================================================================================
nginx     the words of proxy_next_upstream, `tries=N`, `timeout=SECONDS`
haproxy   the words of retry-on, `redispatch[=N]`, `retries=N`
envoy     the words of retry_on, `num_retries=N`, `previous_hosts`, `max_retries=N`,
          `budget_percent=P`
caddy     the seconds of lb_try_duration, `interval=SECONDS`, `retries=N`
traefik   the attempts of its retry middleware
========  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Collection

from lbkit.balancer.caddy import Retrying
from lbkit.balancer.envoy import Retries as EnvoyRetries
from lbkit.balancer.haproxy import Retries as HaproxyRetries
from lbkit.balancer.nginx import NextUpstream
from lbkit.balancer.retry import Budget
from lbkit.errors import ConfigError

__all__ = ["of_caddy", "of_envoy", "of_haproxy", "of_nginx", "of_traefik"]

NGINX = (
    *("error", "timeout", "invalid_header", "non_idempotent", "off"),
    *(f"http_{status}" for status in (500, 502, 503, 504, 403, 404, 429)),
)
STATUSES = ("401", "403", "404", "408", "425", "429", "500", "501", "502", "503", "504")
HAPROXY = (
    "none",
    "conn-failure",
    "empty-response",
    "response-timeout",
    "junk-response",
    "all-retryable-errors",
    *STATUSES,
)
ENVOY = (
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
)


class Words:
    """A text such as `error timeout tries=2`: words that stand alone, and numbers with a name."""

    def __init__(
        self, text: str, *, words: Collection[str], numbers: Collection[str], bare: str = ""
    ) -> None:
        self.words: set[str] = set()
        self._numbers: dict[str, float] = {}
        for word in text.replace(",", " ").split():
            name, equals, value = word.partition("=")
            if bare and not equals:
                name, equals, value = bare, "=", word
            if equals and name in numbers:
                self._numbers[name] = _number(word, value)
            elif not equals and name in words:
                self.words.add(name)
            else:
                known = ", ".join([*words, *(f"{each}=N" for each in numbers)])
                raise ConfigError(f"need a word for retries ({known}), got {word!r}")

    def whole(self, name: str, default: int) -> int:
        return int(self._numbers.get(name, default))

    def number(self, name: str, default: float) -> float:
        return self._numbers.get(name, default)

    def has(self, name: str) -> bool:
        return name in self.words or name in self._numbers


def _number(word: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ConfigError(f"need a number >= 0, got {word!r}")
    return number


def of_nginx(text: str) -> NextUpstream:
    said = Words(text, words=NGINX, numbers=("tries", "timeout"))
    on = frozenset(said.words) or frozenset({"error", "timeout"})
    return NextUpstream(on=on, tries=said.whole("tries", 0), timeout=said.number("timeout", 0.0))


def of_haproxy(text: str) -> HaproxyRetries:
    said = Words(text, words=(*HAPROXY, "redispatch"), numbers=("retries", "redispatch"))
    redispatch = said.whole("redispatch", -1) if said.has("redispatch") else 0
    on = frozenset(said.words - {"redispatch"}) or frozenset({"conn-failure"})
    return HaproxyRetries(count=said.whole("retries", 3), redispatch=redispatch, on=on)


def of_envoy(text: str) -> EnvoyRetries:
    numbers = ("num_retries", "max_retries", "budget_percent")
    said = Words(text, words=(*ENVOY, "previous_hosts"), numbers=numbers)
    percent = said.number("budget_percent", 20.0) if said.has("budget_percent") else None
    return EnvoyRetries(
        on=frozenset(said.words - {"previous_hosts"}),
        count=said.whole("num_retries", 1),
        previous_hosts=said.has("previous_hosts"),
        draws=5 if said.has("previous_hosts") else 1,
        budget=Budget(most=said.whole("max_retries", 3), percent=percent),
    )


def of_caddy(text: str) -> Retrying:
    said = Words(text, words=(), numbers=("duration", "interval", "retries"), bare="duration")
    duration, interval = said.number("duration", 0.0), said.number("interval", 0.25)
    return Retrying(duration=duration, interval=interval, retries=said.whole("retries", 0))


def of_traefik(text: str) -> int:
    return Words(text, words=(), numbers=("attempts",), bare="attempts").whole("attempts", 0)
