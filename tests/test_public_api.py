"""The names that are promised to users. A change here is a change for them: it belongs into the changelog."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

PUBLIC = {
    "lbkit": {
        "Change", "Check", "ConfigError", "Departure", "Dispatch", "DrainTimings", "Health", "KeyedPolicy",
        "LbkitError", "MissingExtra", "Mode", "Outcome", "Policy", "Pool", "Reject", "Replica",
        "ReplicaRefused", "ReplicaReset", "ReplicaState", "ReplicaTimeout", "RequestKey", "RoundRobin",
        "Service", "SourceAddress", "StartupError", "Status", "Sticky", "TargetError", "Tried",
        "TrustedProxies",
    },
    "lbkit.balancer": {
        "Dispatch", "KeyedPolicy", "Mode", "Policy", "Pool", "Replica", "ReplicaState", "RequestKey",
        "RoundRobin", "SourceAddress", "Tried",
    },
    "lbkit.balancer.routes": {"Route", "Routes"},
    "lbkit.balancer.decision": {"Decision", "pick", "release"},
    "lbkit.balancer.check": {"CheckRules", "Health"},
    "lbkit.asgi": {
        "Balancer", "DrainMiddleware", "ForwardedMiddleware", "HealthMiddleware",
        "RoutedBalancer", "SessionMiddleware",
        "Sessions", "StickyMiddleware",
    },
    "lbkit.wsgi": {
        "Balancer", "DrainMiddleware", "ForwardedMiddleware", "HealthMiddleware",
        "RoutedBalancer", "SessionMiddleware",
        "Sessions", "StickyMiddleware",
    },
    "lbkit.testkit": {
        "Attempt", "Cluster", "ClusterReplica", "Fault", "Row", "Trace", "WebsocketClosed",
        "assert_at_most_once", "assert_drained", "assert_failover", "assert_no_local_files",
        "assert_no_lost_requests", "assert_stateless",
        "assert_rebalanced", "assert_same_everywhere", "assert_spread", "assert_sticky", "assert_survives",
        "crash", "drip", "error", "flap", "hang", "refuse", "reset", "slow", "unready",
    },
    "lbkit.sessions": {"SessionEntry", "SessionOptions"},
    "lbkit.stores": {"AsyncMemoryStore", "MemoryStore", "astore_from", "store_from"},
    "lbkit_flask": {"LBKit", "RedisSessionInterface"},
    "lbkit_starlette": {"LBKit", "session"},
    "lbkit_fastapi": {"LBKit", "session"},
}  # fmt: skip


@pytest.mark.parametrize("module", PUBLIC)
def test_a_module_promises_exactly_these_names(module: str) -> None:
    imported = importlib.import_module(module)
    assert set(imported.__all__) == PUBLIC[module]
    assert all(getattr(imported, name).__module__ for name in imported.__all__)


@pytest.mark.parametrize("module", PUBLIC)
def test_every_promised_name_explains_itself(module: str) -> None:
    imported = importlib.import_module(module)
    silent = [name for name in imported.__all__ if not (getattr(imported, name).__doc__ or "").strip()]
    assert not silent


def test_the_two_gateways_promise_the_same_names() -> None:
    assert PUBLIC["lbkit.asgi"] == PUBLIC["lbkit.wsgi"]


@pytest.mark.parametrize(
    "module", ["lbkit", "lbkit.asgi", "lbkit.wsgi", "lbkit.sessions", "lbkit.stores", "lbkit.testkit"]
)
def test_importing_the_library_imports_no_framework(module: str) -> None:
    frameworks = (
        "{'flask','werkzeug','starlette','fastapi','redis','click','uvicorn','httpx','prometheus_client'}"
    )
    code = f"import sys, {module}; print(sorted({frameworks} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
