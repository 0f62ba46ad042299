"""Never run, only type-checked: lbkit as a Flask user writes it."""

from __future__ import annotations

from flask import Flask

from lbkit import Change, Health, Outcome, Service, Sticky, TrustedProxies
from lbkit.wsgi import Balancer, HealthMiddleware
from lbkit_flask import LBKit

app = Flask(__name__)
lbkit = LBKit(app, version="1.0.0")


@lbkit.check("database")
def database() -> None: ...


@lbkit.check("search", critical=False, timeout=0.5, ttl=10.0, groups={"detailed"})
def search() -> bool:
    return True


@lbkit.check("queue", interval=5.0)
async def queue() -> Outcome:
    return Outcome.healthy()


@lbkit.startup_task
def warm_up() -> None: ...


@lbkit.on_change
def tell(change: Change) -> None:
    print(change.check, change.before, change.after)


def create_app() -> Flask:
    made = Flask(__name__)
    lbkit.init_app(made)
    return made


LBKit(Flask("other"), health=Health(Service(version="1.0.0", kubernetes=True)))
LBKit(
    Flask("pinned"),
    sticky=Sticky(secret_keys=["key " * 8]),
    replica_id="web1",
    trusted=TrustedProxies(["10.0.0.0/8"], family="forwarded"),
)
HealthMiddleware(app.wsgi_app, Health())
balancer = Balancer.from_factory(create_app, replicas=3)
Balancer([app] * 3, replica_header=None)
Balancer({"blue": app, "green": create_app()})
names: tuple[str, ...] = tuple(replica.name for replica in balancer.pool.replicas)
