"""lbkit for any WSGI app. The classes have the same names in `lbkit.asgi`."""

from lbkit.wsgi.balancer import Balancer
from lbkit.wsgi.drain import DrainMiddleware
from lbkit.wsgi.forwarded import ForwardedMiddleware
from lbkit.wsgi.health import HealthMiddleware
from lbkit.wsgi.routed import RoutedBalancer
from lbkit.wsgi.sessions import SessionMiddleware, Sessions
from lbkit.wsgi.sticky import StickyMiddleware

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
