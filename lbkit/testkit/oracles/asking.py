"""Ask an app the same GET once more, and read the whole answer."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterable
from typing import Any, TypeAlias

from lbkit.types import ASGIApp, Environ, Message, Scope, WSGIApp

__all__ = ["Answer", "ask_asgi", "ask_wsgi", "is_comparable"]

Answer: TypeAlias = tuple[int, bytes]
OURS = ("werkzeug.", "flask.")
"""What test clients put into a request for themselves."""


def is_comparable(served: Any) -> bool:
    """Whether this answer is one that any replica should be able to give."""
    if served.method != "GET" or not 200 <= (served.status or 0) < 300:
        return False
    headers = lowered(served.headers)
    return "no-store" not in headers.get("cache-control", "") and "set-cookie" not in headers


def ask_wsgi(app: WSGIApp, environ: Environ) -> Answer:
    inner = {key: value for key, value in environ.items() if not key.startswith(OURS)}
    said: list[str] = []
    body = app({**inner, "wsgi.input": io.BytesIO()}, lambda status, *_: said.append(status) or bytes)  # type: ignore[func-returns-value]
    try:
        content = b"".join(body)
    finally:
        if (close := getattr(body, "close", None)) is not None:
            close()
    return int(said[0][:3]), content


async def ask_asgi(app: ASGIApp, scope: Scope) -> Answer:
    said: list[Message] = []
    asked = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        for message in asked:
            return message
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        said.append(message)

    await app(scope, receive, send)
    status = next((each["status"] for each in said if each["type"] == "http.response.start"), 0)
    return status, b"".join(each.get("body", b"") for each in said)


def lowered(headers: Iterable[Any]) -> dict[str, str]:
    return {text(name).lower(): text(value).lower() for name, value in headers}


def text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
