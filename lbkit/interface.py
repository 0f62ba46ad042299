"""Is this object an ASGI or a WSGI app? The answer comes from its signature alone; nothing is called.

=============================================  =========
callable with                                  interface
=============================================  =========
a coroutine function of three parameters       ASGI
a plain function that needs three parameters   ASGI (it returns the awaitable)
a plain function that needs two                WSGI
anything else                                  refused, with the reason
=============================================  =========
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum

from lbkit.errors import ConfigError

__all__ = ["Interface", "interface_of"]

RULE = "an ASGI app takes (scope, receive, send), a WSGI app (environ, start_response)"


class Interface(Enum):
    ASGI = "ASGI"
    WSGI = "WSGI"


def interface_of(app: object) -> Interface:
    """Tell ASGI from WSGI. Raises ConfigError for what is neither, or could be both."""
    if not callable(app):
        raise ConfigError(f"{app!r} is not callable: {RULE}")
    if inspect.isclass(app):
        raise ConfigError(
            f"{app.__qualname__} is a class: give an instance of it, or a function that makes one"
        )
    if _takes(app, 3) and (_is_async(app) or _needs(app) == 3):
        return Interface.ASGI
    # What could be called with less is a factory with options, not an app.
    if _takes(app, 2) and _needs(app) == 2 and not _is_async(app):
        return Interface.WSGI
    raise ConfigError(f"{app!r} is neither ASGI nor WSGI by its parameters: {RULE}")


def _is_async(app: Callable[..., object]) -> bool:
    return inspect.iscoroutinefunction(app) or inspect.iscoroutinefunction(type(app).__call__)


def _takes(app: Callable[..., object], count: int) -> bool:
    try:
        inspect.signature(app).bind(*[None] * count)
    except (TypeError, ValueError):  # ValueError: a builtin without a signature
        return False
    return True


def _needs(app: Callable[..., object]) -> int:
    parameters = inspect.signature(app).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(each.kind in positional and each.default is each.empty for each in parameters)
