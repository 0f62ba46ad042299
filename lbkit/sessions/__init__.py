"""Sessions that no replica, no race and no outage can lose.

`Sessions` and `SessionMiddleware` are in `lbkit.wsgi.sessions` and `lbkit.asgi.sessions`.
"""

from lbkit.sessions.options import SessionOptions
from lbkit.sessions.roster import SessionEntry

__all__ = ["SessionEntry", "SessionOptions"]
