"""lbkit for any WSGI app. The classes have the same names in `lbkit.asgi`."""

from lbkit.wsgi.balancer import Balancer

__all__ = ["Balancer"]
