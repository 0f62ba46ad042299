"""The three sites of tests/integrations/apps.py as module-level apps, for servers that know no factories."""

from __future__ import annotations

import logging
import os
import threading

from lbkit.access_log import HealthAccessFilter
from lbkit.service import Service
from lbkit.side_port import SidePort
from lbkit.wsgi import HealthMiddleware
from tests.integrations.apps import make_fastapi, make_flask, make_starlette, site_health

for server in ("uvicorn", "gunicorn", "hypercorn", "granian"):
    logging.getLogger(f"{server}.access").addFilter(HealthAccessFilter(Service(kubernetes=True)))

flask_app = make_flask()
starlette_app = make_starlette()
fastapi_app = make_fastapi()


# A site whose every worker thread can be held up, with a side port.

hold = threading.Event()
port = os.environ.get("SIDE_PORT")
busy_health = site_health(beside=[SidePort(int(port))] if port else [])


def busy_pages(environ, start_response):  # type: ignore[no-untyped-def]
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/hold":
        print("held", flush=True)
        hold.wait(60)
    elif environ["PATH_INFO"] == "/release":
        hold.set()
    return [b"done"]


busy_app = HealthMiddleware(busy_pages, busy_health)
