"""One replica of an app, with a route cookie: python -m tests.e2e.sticky_replica NAME PORT SECRET"""

from __future__ import annotations

import json
import sys
from typing import Any

import uvicorn

from lbkit.asgi import ForwardedMiddleware, StickyMiddleware
from lbkit.forwarded import TrustedProxies
from lbkit.sticky import Sticky


async def app(scope: Any, _receive: Any, send: Any) -> None:
    """Tells who answers, and who asks in the eyes of the app."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    seen = {"replica": sys.argv[1], "client": scope["client"][0], "scheme": scope["scheme"]}
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(seen).encode()})


if __name__ == "__main__":
    _, name, port, secret = sys.argv
    stuck = StickyMiddleware(app, Sticky(secret_keys=[secret], secure=False), replica_id=name)
    seen = ForwardedMiddleware(stuck, TrustedProxies(["127.0.0.0/8"]))
    uvicorn.run(seen, host="127.0.0.1", port=int(port), proxy_headers=False, access_log=False, lifespan="off")
