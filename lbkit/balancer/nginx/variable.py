"""The variables of nginx that stand for the request: $http_NAME, $cookie_NAME, $arg_NAME, $uri, ..."""

from __future__ import annotations

import re
from collections.abc import Callable

from lbkit.balancer.exchange import Request
from lbkit.errors import ConfigError

__all__ = ["compiled", "evaluate"]

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")

FIXED: dict[str, Callable[[Request], str]] = {
    "remote_addr": lambda request: request.client,
    "request_uri": lambda request: request.target,
    "uri": lambda request: request.target.partition("?")[0],
    "args": lambda request: request.target.partition("?")[2],
    "query_string": lambda request: request.target.partition("?")[2],
    "request_method": lambda request: request.method,
    "host": lambda request: request.header("host").partition(":")[0].lower(),
}


def evaluate(text: str, request: Request) -> str:
    return compiled(text)(request)


def compiled(text: str) -> Callable[[Request], str]:
    """What makes a string of a request. Raises ConfigError for a variable that does not stand for it."""
    parts = VARIABLE.split(text)
    if len(parts) == 4 and not parts[0] and not parts[3]:
        return _variable(parts[1] or parts[2])
    literals = parts[0::3]
    variables = [_variable(braced or bare) for braced, bare in zip(parts[1::3], parts[2::3], strict=True)]

    def value(request: Request) -> str:
        texts = [each(request) for each in variables]
        return literals[0] + "".join(a + b for a, b in zip(texts, literals[1:], strict=True))

    return value


def _variable(name: str) -> Callable[[Request], str]:
    if name in FIXED:
        return FIXED[name]
    kind, _, rest = name.partition("_")
    header = rest.replace("_", "-").lower()
    if kind == "http" and rest:
        return lambda request: request.header(header)
    if kind == "cookie" and rest:
        return lambda request: _first(request.cookies(), rest.lower())
    if kind == "arg" and rest:
        return lambda request: _first(_arguments(request), rest.lower())
    raise ConfigError(
        f"need a variable that stands for the request ($http_NAME, $cookie_NAME, ...), got ${name}"
    )


def _arguments(request: Request) -> list[tuple[str, str]]:
    """As sent: nginx does not decode them."""
    parts = (part.partition("=") for part in request.target.partition("?")[2].split("&"))
    return [(name, value) for name, equals, value in parts if equals]


def _first(pairs: list[tuple[str, str]], name: str) -> str:
    """nginx compares these names without regard to case."""
    return next((value for key, value in pairs if key.lower() == name), "")
