"""How to have an ASGI server close the connection after this answer.

Most servers take `connection: close` from the head of an answer, or close all that is idle when they stop.
gunicorn's own ASGI worker does neither: it keeps the connection for its keep-alive of 2 seconds, and does not
exit before. ASGI has no word for it, so the object whose method `receive` is must know: it has the request
and the protocol.
"""

from __future__ import annotations

from lbkit.types import Receive

__all__ = ["close_after", "close_now"]


def close_after(receive: Receive) -> None:
    """Ask for it before the head of the answer is sent."""
    request = getattr(_receiver(receive), "request", None)
    if request is not None and hasattr(request, "must_close"):
        request.must_close = True


def close_now(receive: Receive) -> None:
    """The head promised to keep the connection, and the body is over. What is still to be written, is."""
    transport = getattr(getattr(_receiver(receive), "protocol", None), "transport", None)
    if transport is not None:
        transport.close()


def _receiver(receive: Receive) -> object:
    """gunicorn's `BodyReceiver`; None on other servers, and where somebody has wrapped `receive`."""
    receiver = getattr(receive, "__self__", None)
    return receiver if type(receiver).__module__.startswith("gunicorn.") else None
