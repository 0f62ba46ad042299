"""Never run, only type-checked: health as a user writes it, with everything that can be set."""

from __future__ import annotations

import logging

from flask import Flask

from lbkit import Change, Health, Outcome, Service, Status, TrustedProxies, asgi, checks, wsgi
from lbkit.access_log import HealthAccessFilter
from lbkit.health import Caller, Report, Thresholds
from lbkit.healthcheck import Verdict, ask
from lbkit.side_port import AgentPort, SidePort
from lbkit.types import Environ, Receive, Scope, Send, StartResponse
from lbkit_flask import LBKit


def may_read(caller: Caller) -> bool:
    return caller.headers.get("x-team") == "ops"


health = Health(
    Service(version="1.0.0", name="shop", kubernetes=True, drain_status=404, health_role="ready"),
    details="authorized",
    auth=may_read,
    trusted_proxies=TrustedProxies(["10.0.0.0/8"]),
    thresholds=Thresholds(cpu=95.0, breach=Status.DEGRADED),
    metrics_in_readiness=False,
    watchdog=5.0,
    beside=[SidePort(9001), AgentPort(9002, degraded_percent=50)],
)
flask = Flask(__name__)
lbkit = LBKit(flask, health=health)


@lbkit.check("database", critical=True, timeout=0.5, ttl=2.0, fails=2, passes=2, groups={"ready"})
def database() -> None:
    return None


@lbkit.check("queue", interval=5.0, max_stale=60.0, shared_grace=20.0, flight_key="queue")
async def queue() -> Outcome:
    return Outcome.degraded("412 jobs wait")


lbkit.check("search", critical=False)(checks.http("http://search:9200/", timeout=0.5))
lbkit.check("cache")(checks.redis("redis://cache:6379/0"))


@lbkit.startup_task
def warm_up() -> None:
    return None


@lbkit.on_change
def tell(change: Change) -> None:
    before: Status = change.before
    print(change.check, before.value, change.after.value, change.error)


async def asgi_app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204})


def wsgi_app(environ: Environ, start_response: StartResponse) -> list[bytes]:
    start_response("204 No Content", [])
    return []


one = asgi.HealthMiddleware(asgi_app, health)
other = wsgi.HealthMiddleware(wsgi_app, health)
report: Report = health.report()
status: str = report.status
verdict: Verdict = ask("http://127.0.0.1:9001/health/live", timeout=1.0)
logging.getLogger("uvicorn.access").addFilter(HealthAccessFilter(health.service, paths=["/ping"]))
