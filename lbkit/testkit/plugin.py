"""`pytest --replicas 3`: your own suite, unchanged, over three isolated replicas of your app.

pytest loads this file in each of its runs. Without `--replicas` it adds options and markers and does nothing
else. What is behind it is imported when it is asked for; then only are test clients patched, until the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest.config.argparsing import Parser

__all__ = ["pytest_addoption", "pytest_configure"]

pytest_plugins = ("lbkit.testkit.fixtures",)

MARKERS = (
    "single_replica(reason): this test is asked of one replica only",
    "stateful_ok(pattern, ...): state of this name may differ between replicas, such as shop.cache.*",
)


def pytest_addoption(parser: Parser) -> None:
    group = parser.getgroup("replicas", "does the app survive several replicas? (lbkit)")
    group.addoption(
        "--replicas", type=int, metavar="N", help="run the suite over N isolated replicas of its apps"
    )
    group.addoption(
        "--replica-isolation",
        default="auto",
        metavar="HOW",
        help="module: private copies of the first-party modules; clone: fork; process: new interpreters "
        "that import the app; none; auto: module, else clone",
    )
    group.addoption(
        "--replica-policy",
        default="round_robin",
        metavar="POLICY",
        help="round_robin (from a start that differs from test to test), random or sticky",
    )
    group.addoption(
        "--replica-seed", type=int, default=0, metavar="N", help="another start, other random picks"
    )
    group.addoption(
        "--replica-app",
        metavar="TARGET",
        help="what makes an app that tests make themselves: shop:create_app()",
    )
    group.addoption(
        "--replica-private",
        action="append",
        default=[],
        metavar="PKG[,PKG]",
        help="top-level packages of which each replica gets a copy (default: those that are not installed)",
    )
    group.addoption(
        "--replica-chaos",
        metavar="KIND=RATE[,..]",
        help="let requests go wrong at random, as --replica-seed says: kill=.05,slow=.1; also hang, error, "
        "refuse, reset, drip. none: not even the faults that markers ask for",
    )
    group.addoption("--replica-watch", dest="replica_watch", action="store_true", default=True)
    group.addoption(
        "--no-replica-watch", dest="replica_watch", action="store_false", help="do not look at memory"
    )
    group.addoption("--replica-diff", action="store_true", help="ask each GET of every replica and compare")
    group.addoption(
        "--replica-fresh",
        default="session",
        choices=("test", "session"),
        help="new copies of the modules for each test, or for the whole run",
    )
    group.addoption(
        "--replica-classify",
        default="yes",
        choices=("yes", "no"),
        help="run failed tests again in fresh processes, to tell whose fault it is (default: yes)",
    )
    group.addoption(
        "--replica-report", metavar="FILE", help="write the report: a page if it is FILE.html, or JSON"
    )
    parser.addini("replicas_private", "packages of which each replica gets a copy", type="args", default=[])
    parser.addini("replicas_allow", "state that may differ, such as shop.cache.*", type="args", default=[])
    parser.addini("replicas_receive_timeout", "seconds that a websocket's receive waits", default="2")


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if config.getoption("replicas") is not None:
        from lbkit.testkit.run import start

        start(config)
    elif (chaos := config.getoption("replica_chaos")) is not None:
        raise pytest.UsageError(f"need --replicas N, got --replica-chaos {chaos!r} without it")
