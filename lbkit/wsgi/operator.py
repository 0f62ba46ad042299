"""An operator's orders in front of a WSGI app. See `lbkit.operator` for who may give them."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from lbkit.departure import Departure
from lbkit.operator import Operator, Order, answer
from lbkit.types import Environ, StartResponse, WSGIApp

__all__ = ["OperatorMiddleware"]

logger = logging.getLogger("lbkit.drain")


class OperatorMiddleware:
    """Takes orders; everything else goes to the app untouched."""

    def __init__(self, app: WSGIApp, departure: Departure, operator: Operator) -> None:
        self.app = app
        self.departure = departure
        self.operator = operator

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        peer = environ.get("REMOTE_ADDR")
        order = self.operator.order(
            method=environ["REQUEST_METHOD"],
            path=environ.get("PATH_INFO", ""),
            authorization=environ.get("HTTP_AUTHORIZATION", ""),
            peer=peer,
        )
        if order is None:
            return self.app(environ, start_response)
        self.departure.start()
        done = self.departure.process.order(drain=order is Order.DRAIN)
        logger.warning("%s ordered over HTTP by %s: %s", order.value, peer, "done" if done else "refused")
        said = answer(order, done=done)
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(said.body))),
            ("Cache-Control", "no-store"),
        ]
        start_response(f"{said.status} {said.phrase}", headers)
        return [said.body]
