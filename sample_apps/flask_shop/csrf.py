"""CSRF: a form is obeyed only when it carries the token of the session it was made for.

The token lives in the signed session cookie, so whichever replica receives the form can
check it, as long as all replicas sign with one key. A token made by `os.urandom` at
import time would be another one in each replica, and two of three forms would fail.
"""

from __future__ import annotations

import hmac
import secrets

from flask import Flask, abort, request, session

__all__ = ["protect", "renew", "token"]

SAFE = ("GET", "HEAD", "OPTIONS", "TRACE")


def protect(app: Flask) -> None:
    """Refuse every unsafe request without a valid token; give templates `csrf_token()`."""
    app.before_request(_check)
    app.jinja_env.globals["csrf_token"] = token


def token() -> str:
    if "csrf" not in session:
        renew()
    return str(session["csrf"])


def renew() -> None:
    """Forget the forms made before a login or a logout."""
    session["csrf"] = secrets.token_urlsafe(24)


def _check() -> None:
    if request.method in SAFE or request.routing_exception:
        return
    sent, expected = request.form.get("csrf_token", ""), session.get("csrf", "")
    # As bytes: compare_digest raises on text that is not ASCII.
    if not expected or not hmac.compare_digest(sent.encode(), expected.encode()):
        abort(400, "This form is not from this session. Go back, reload the page, and send it again.")
