"""What a replica is told about the request: the environ that the server gave, with the hop in it."""

from __future__ import annotations

from lbkit.balancer.hop import FORWARDED, add_client
from lbkit.types import Environ

__all__ = ["inner_environ", "path_of"]

FOR, PROTO, HOST = (f"HTTP_{name.upper().replace('-', '_')}" for name in FORWARDED)


def inner_environ(environ: Environ) -> Environ:
    inner = environ.copy()
    inner["wsgi.multiprocess"] = True  # it is one of several replicas
    inner[FOR] = add_client(environ.get(FOR, ""), environ.get("REMOTE_ADDR"))
    inner[PROTO] = environ["wsgi.url_scheme"]
    if host := environ.get("HTTP_HOST"):
        inner[HOST] = host
    elif HOST in inner:
        del inner[HOST]
    return inner


def path_of(environ: Environ) -> str:
    path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return path.encode("latin-1").decode("utf-8", "replace")
