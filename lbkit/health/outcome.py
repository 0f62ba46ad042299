"""What one run of a check says, and what that means in public.

A check is any callable. What it returns, or raises, becomes an `Outcome`:

==================  ===========================================
None, True          healthy
False               unhealthy, `error` is "failed"
an Outcome          itself
anything else       unhealthy, `error` is "invalid"
it raises           unhealthy, `error` is the class of the error
==================  ===========================================

The class of an error is public: `timeout`, `connection`, `auth`, or `error:` and the exception's type.
Its text may hold secrets, so it goes through the redactor and to authorised callers only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lbkit.errors import ConfigError
from lbkit.health.status import Status

__all__ = ["Outcome", "Result", "error_class", "outcome_of", "outcome_of_error"]

AUTH = re.compile(r"auth|accessdenied|permission|forbidden|credential|password", re.I)
CONNECTION = re.compile(r"connect|gaierror|herror|network|unreachable|resolver|nxdomain", re.I)
# Exceptions that are about connections and do not say so: psycopg's and SQLAlchemy's, and a TLS handshake.
CONNECTION_TOO = frozenset({"OperationalError", "InterfaceError", "SSLError", "SSLCertVerificationError"})
UNSAFE = re.compile(r"\W+", re.ASCII)
LONGEST_TYPE = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """A check's answer. `output` is for people: it is redacted, and only authorised callers see it."""

    status: Status
    output: str = ""
    error: str | None = None
    """The class of what went wrong, in public: one word, no text of an exception."""

    def __post_init__(self) -> None:
        if self.status is Status.UNKNOWN or not isinstance(self.status, Status):
            raise ConfigError(f"need an outcome of HEALTHY, DEGRADED or UNHEALTHY, got {self.status!r}")

    @classmethod
    def healthy(cls, output: str = "") -> Outcome:
        return cls(Status.HEALTHY, output)

    @classmethod
    def degraded(cls, output: str = "") -> Outcome:
        """It works, but someone should look."""
        return cls(Status.DEGRADED, output)

    @classmethod
    def unhealthy(cls, output: str = "") -> Outcome:
        return cls(Status.UNHEALTHY, output, "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """An outcome with its time: `at` on the monotonic clock, `wall` as Unix seconds."""

    outcome: Outcome
    seconds: float
    at: float
    wall: float


def outcome_of(returned: object) -> Outcome:
    """What a check returned, as an Outcome. Junk is an answer too: it cannot be trusted."""
    if isinstance(returned, Outcome):
        return returned
    if returned is None or returned is True:
        return Outcome.healthy()
    if returned is False:
        return Outcome.unhealthy()
    # The type alone: the value may be a row with somebody's password in it.
    what = f"the check returned {type(returned).__name__}, need None, a bool or an Outcome"
    return Outcome(Status.UNHEALTHY, what, "invalid")


def outcome_of_error(error: BaseException) -> Outcome:
    try:
        text = str(error)
    except Exception:
        text = ""
    return Outcome(Status.UNHEALTHY, text, error_class(error))


def error_class(error: BaseException) -> str:
    """The kind of an exception in one public word, by the names of its types: no driver is imported."""
    names = [kind.__name__ for kind in type(error).__mro__[:-2]]
    if any("timeout" in name.lower() for name in names):
        return "timeout"
    if any(AUTH.search(name) for name in names):
        return "auth"
    if any(CONNECTION.search(name) or name in CONNECTION_TOO for name in names):
        return "connection"
    return f"error:{UNSAFE.sub('', type(error).__name__)[:LONGEST_TYPE] or 'unnamed'}"
