"""The same shop as it is often written: right on one replica, wrong on three. To try the test kit on.

==================  =================================  ==========================================
what                where                              what happens on three replicas
==================  =================================  ==========================================
the key             random, made at import             logged out on two of three requests
the carts           a dict of this module              a cart that comes and goes
==================  =================================  ==========================================
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import Any

from flask import Flask, Response, g, request, session

from . import app as right

SECRET_KEY = os.urandom(24)

CARTS: dict[str, dict[str, int]] = {}


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """The shop of app.py with two mistakes; a SECRET_KEY in `config` leaves one."""
    app = right.create_app({"SECRET_KEY": SECRET_KEY, **(config or {})})

    @app.before_request
    def fetch() -> None:
        g.visitor = request.cookies.get("visitor") or secrets.token_hex(8)
        session["cart"] = dict(CARTS.get(g.visitor, {}))

    @app.after_request
    def store(response: Response) -> Response:
        CARTS[g.visitor] = session.pop("cart", {})
        response.set_cookie("visitor", g.visitor, samesite="Lax", httponly=True)
        return response

    # Before the shop's own: what checks the form's token looks at the session, too.
    app.before_request_funcs[None].insert(0, app.before_request_funcs[None].pop())
    return app
