"""lbkit for any ASGI app. The classes have the same names in `lbkit.wsgi`."""

from lbkit.asgi.balancer import Balancer
from lbkit.asgi.drain import DrainMiddleware
from lbkit.asgi.forwarded import ForwardedMiddleware
from lbkit.asgi.health import HealthMiddleware
from lbkit.asgi.routed import RoutedBalancer
from lbkit.asgi.sessions import SessionMiddleware, Sessions
from lbkit.asgi.sticky import StickyMiddleware

__all__ = [
    "Balancer",
    "DrainMiddleware",
    "ForwardedMiddleware",
    "HealthMiddleware",
    "RoutedBalancer",
    "SessionMiddleware",
    "Sessions",
    "StickyMiddleware",
]
