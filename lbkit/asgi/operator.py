"""An operator's orders in front of an ASGI app. See `lbkit.operator` for who may give them."""

from __future__ import annotations

import logging

from lbkit.departure import Departure
from lbkit.operator import Answer, Operator, Order, answer
from lbkit.types import ASGIApp, Receive, Scope, Send

__all__ = ["OperatorMiddleware"]

logger = logging.getLogger("lbkit.drain")


class OperatorMiddleware:
    """Takes orders; everything else goes to the app untouched."""

    def __init__(self, app: ASGIApp, departure: Departure, operator: Operator) -> None:
        self.app = app
        self.departure = departure
        self.operator = operator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        order = self._order(scope)
        if order is None:
            await self.app(scope, receive, send)
            return
        self.departure.start()
        done = self.departure.process.order(drain=order is Order.DRAIN)
        logger.warning(
            "%s ordered over HTTP by %s: %s", order.value, scope["client"][0], "done" if done else "refused"
        )
        await _send(answer(order, done=done), send)

    def _order(self, scope: Scope) -> Order | None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        client = scope.get("client")
        root: str = scope.get("root_path", "")
        return self.operator.order(
            method="POST",
            path=scope["path"].removeprefix(root),
            authorization=given[0].decode("latin-1") if len(given) == 1 else "",
            peer=client[0] if client else None,
        )


async def _send(said: Answer, send: Send) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(said.body)),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": said.status, "headers": headers})
    await send({"type": "http.response.body", "body": said.body})
