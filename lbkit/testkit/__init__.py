"""Proof on a laptop: an app as several isolated replicas inside one test process, and what breaks then.

    with Cluster("shop:create_app()", replicas=3) as cluster:
        client = cluster.client()
        ...
        assert_spread(cluster)

`isolation` makes the replicas, `plugin` is `pytest --replicas N`. Names are imported when they are asked for:
pytest loads the plugin in each of its runs, also in those that never ask for replicas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lbkit.testkit.assertions import (
        assert_at_most_once,
        assert_drained,
        assert_failover,
        assert_no_local_files,
        assert_no_lost_requests,
        assert_rebalanced,
        assert_same_everywhere,
        assert_spread,
        assert_stateless,
        assert_sticky,
        assert_survives,
    )
    from lbkit.testkit.cluster import Cluster
    from lbkit.testkit.faults import (
        Fault,
        crash,
        drip,
        error,
        flap,
        hang,
        refuse,
        reset,
        slow,
        unready,
    )
    from lbkit.testkit.replica import ClusterReplica
    from lbkit.testkit.row import Attempt, Row
    from lbkit.testkit.trace import Trace
    from lbkit.testkit.websocket import WebsocketClosed

__all__ = [
    "Attempt",
    "Cluster",
    "ClusterReplica",
    "Fault",
    "Row",
    "Trace",
    "WebsocketClosed",
    "assert_at_most_once",
    "assert_drained",
    "assert_failover",
    "assert_no_local_files",
    "assert_no_lost_requests",
    "assert_rebalanced",
    "assert_same_everywhere",
    "assert_spread",
    "assert_stateless",
    "assert_sticky",
    "assert_survives",
    "crash",
    "drip",
    "error",
    "flap",
    "hang",
    "refuse",
    "reset",
    "slow",
    "unready",
]

HOMES = {
    "cluster": ("Cluster",),
    "replica": ("ClusterReplica",),
    "row": ("Attempt", "Row"),
    "trace": ("Trace",),
    "websocket": ("WebsocketClosed",),
    "faults": ("Fault", *(each for each in __all__ if each.islower() and not each.startswith("assert_"))),
    "assertions": tuple(name for name in __all__ if name.startswith("assert_")),
}
MODULE_OF = {name: f"lbkit.testkit.{module}" for module, names in HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(MODULE_OF[name]), name)
