"""Never run, only type-checked: lbkit as a Starlette and a FastAPI user write it."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette

from lbkit import Dispatch, Health, ReplicaState, RoundRobin, Service, Sticky, TrustedProxies
from lbkit.asgi import Balancer, HealthMiddleware, RoutedBalancer
from lbkit_fastapi import LBKit as FastAPILBKit
from lbkit_starlette import LBKit

starlette = Starlette()
lbkit = LBKit(starlette, version="1.0.0")
fastapi = FastAPI()
sticky = Sticky(secret_keys=["new " * 8, "old " * 8], max_age=86400)
trusted = TrustedProxies(["10.0.0.0/8", "unix"], hosts=["shop.example.com"])
FastAPILBKit(fastapi, version="1.0.0", sticky=sticky, replica_id="web1", trusted=trusted)


@lbkit.check("database", critical=True, timeout=1.0)
async def database() -> bool:
    return True


class Busiest:
    """A policy of one's own: the method alone makes it one."""

    def pick(self, candidates: Sequence[ReplicaState], /) -> ReplicaState:
        return max(candidates, key=lambda state: state.active)


def show(dispatch: Dispatch) -> None:
    status: int | None = dispatch.status
    print(dispatch.replica, dispatch.method, dispatch.path, status)


def create_app() -> Starlette:
    app = Starlette()
    made = LBKit(version="1.0.0", sticky=sticky, trusted=trusted)
    made.init_app(app)
    name: str = made.replica_id
    print(name)
    return app


Balancer.from_factory(create_app, replicas=3, policy=RoundRobin(), on_dispatch=show)
Balancer([starlette, fastapi, Flask(__name__)], policy=Busiest())
Balancer({"blue": starlette, "green": starlette}, replica_header="x-served-by")
HealthMiddleware(starlette, Health(Service(version="1.0.0")))
Balancer.from_factory(
    create_app,
    profile="nginx",
    policy="least_conn",
    weights={"web1": 3},
    backups=["web3"],
    max_conns={"web1": 10},
    sticky="route",
    check="/health",
)


async def restart(balancer: Balancer) -> None:
    balancer.drain("web1")
    balancer.replicas["web2"].stop()
    for restarted in await balancer.rolling_restart(delay=1.0):
        left: int = restarted.left
        print(restarted.replica, left, balancer.explain().get("web2"))


RoutedBalancer({"web": Balancer(["http://10.0.0.11:8000", starlette])}, routes=["*=web"])
