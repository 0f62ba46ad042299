"""The words that ASGI and WSGI share with us, as types.

ASGI: asgi.readthedocs.io, version 3. WSGI: PEP 3333.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, TypeAlias

__all__ = [
    "ASGIApp",
    "Clock",
    "Environ",
    "ExcInfo",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "StartResponse",
    "WSGIApp",
]

Clock: TypeAlias = Callable[[], float]
"""Seconds, from any fixed point: `time.monotonic`, or a test's own."""

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

Environ: TypeAlias = dict[str, Any]

if TYPE_CHECKING:
    # The standard library's own types, so that every framework's app fits.
    from _typeshed import OptExcInfo as ExcInfo
    from _typeshed.wsgi import StartResponse
    from _typeshed.wsgi import WSGIApplication as WSGIApp
else:
    ExcInfo = tuple
    StartResponse = WSGIApp = Callable
