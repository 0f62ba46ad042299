"""How to have a WSGI server close the connection after this answer.

PEP 3333 forbids an app to send `Connection`, and each server takes it in its own way: gunicorn drops the
header, waitress answers 500, granian passes it on. The others are left alone: most close anyway.
"""

from __future__ import annotations

from lbkit.types import Environ, StartResponse

__all__ = ["close_after"]

CLOSE = [("Connection", "close")]


def close_after(environ: Environ, start_response: StartResponse) -> list[tuple[str, str]]:
    """Ask for it, before the answer starts. Returns the headers that the answer must carry for it."""
    if environ.get("SERVER_SOFTWARE") == "Granian":
        return CLOSE
    response = getattr(start_response, "__self__", None)
    if callable(force_close := getattr(response, "force_close", None)):  # gunicorn
        force_close()
    elif callable(gone := environ.get("waitress.client_disconnected")):
        _close_waitress(getattr(gone, "__self__", None))
    return []


def _close_waitress(channel: object) -> None:
    """It decides by the request's own header, so the request is made to ask for it."""
    requests = getattr(channel, "requests", None)
    headers = getattr(requests[0], "headers", None) if requests else None
    if isinstance(headers, dict):
        headers["CONNECTION"] = "close"
