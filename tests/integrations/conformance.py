"""What every plugin must do, whatever the framework and the server. Each rule is given a way to ask an app.

test_plugins.py asks in process, e2e/test_health_servers.py asks real servers. The app is one of apps.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import httpx

from tests.integrations.apps import SECRET


class Ask(Protocol):
    def __call__(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None
    ) -> httpx.Response: ...


PATHS = (
    "/health",
    "/health/live",
    "/health/ready",
    "/health/startup",
    "/health/detailed",
    "/readyz",
    "/livez",
)


def the_app_itself_turns_the_prober_away(ask: Ask) -> None:
    assert ask("/").status_code in (307, 302, 400, 401)


def every_endpoint_answers_200_to_a_prober_that_the_app_would_turn_away(ask: Ask) -> None:
    for path in PATHS:
        assert ask(path).status_code == 200, path
        assert ask(path, headers={"Host": "10.1.2.3:8080"}).status_code == 200, path


def head_has_the_headers_of_get_and_no_body(ask: Ask) -> None:
    for path in PATHS:
        head = ask(path, method="HEAD")
        assert head.status_code == 200, path
        assert head.content == b""
        assert int(head.headers["content-length"]) > 0
        assert head.headers["content-type"] == "application/json"


def options_is_204_and_tells_what_is_allowed(ask: Ask) -> None:
    for path in PATHS:
        answer = ask(path, method="OPTIONS")
        assert answer.status_code == 204, path
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS"
        assert answer.content == b""


def another_method_is_405(ask: Ask) -> None:
    for path in PATHS:
        answer = ask(path, method="POST")
        assert answer.status_code == 405, path
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS"


def health_has_exactly_three_keys(ask: Ask) -> None:
    answer = ask("/health").json()
    assert set(answer) == {"status", "timestamp", "version"}
    assert answer["status"] == "healthy"
    assert answer["version"] == "1.0.0"
    assert abs(answer["timestamp"] - time.time()) < 60


def the_details_show_the_checks_and_the_figures(ask: Ask) -> None:
    answer = ask("/health/detailed").json()
    assert answer["status"] == "degraded"
    assert {name: check["status"] for name, check in answer["checks"].items()} == {
        "database": "healthy",
        "cache": "healthy",
        "search": "unhealthy",
    }
    assert answer["checks"]["search"]["error"] == "connection"
    assert set(answer["metrics"]) == {"cpu_percent", "memory_percent", "disk_percent"}


def no_secret_is_told(ask: Ask) -> None:
    for path in (*PATHS, "/health/ready?verbose", "/health/checks/search"):
        for accept in ("*/*", "text/html", "text/plain", "application/health+json"):
            assert SECRET not in ask(path, headers={"Accept": accept}).text, (path, accept)


def a_path_that_is_not_ours_goes_to_the_app(ask: Ask) -> None:
    for path in ("/health/", "/health/nothing", "/healthz"):
        assert "x-content-type-options" not in ask(path).headers, path


RULES: tuple[Callable[[Ask], None], ...] = (
    the_app_itself_turns_the_prober_away,
    every_endpoint_answers_200_to_a_prober_that_the_app_would_turn_away,
    head_has_the_headers_of_get_and_no_body,
    options_is_204_and_tells_what_is_allowed,
    another_method_is_405,
    health_has_exactly_three_keys,
    the_details_show_the_checks_and_the_figures,
    no_secret_is_told,
    a_path_that_is_not_ours_goes_to_the_app,
)
