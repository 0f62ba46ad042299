"""Lines as each server writes them: probes that passed are dropped, everything else stays."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from lbkit.access_log import HealthAccessFilter
from lbkit.service import Service

SHAPES = {
    "uvicorn.access": lambda path, status: ("127.0.0.1:5", "GET", path, "1.1", status),
    "gunicorn.access": lambda path, status: ({"U": path.partition("?")[0], "s": str(status), "m": "GET"},),
    "hypercorn.access": lambda path, status: ({"U": path, "s": status},),
    "granian.access": lambda path, status: ({"path": path, "status": status, "method": "GET"},),
}


def line(server: str, path: str, status: int) -> logging.LogRecord:
    arguments: Any = SHAPES[server](path, status)
    return logging.LogRecord(server, logging.INFO, "server.py", 1, "%s", arguments, None)


@pytest.mark.parametrize("server", SHAPES)
def test_of_a_thousand_good_probes_and_a_bad_one_the_bad_one_is_written(server: str) -> None:
    written: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(record)

    logger = logging.Logger(server)
    logger.addHandler(Keep())
    logger.addFilter(HealthAccessFilter())
    for _ in range(1000):
        logger.handle(line(server, "/health", 200))
    logger.handle(line(server, "/health", 503))
    assert len(written) == 1


@pytest.mark.parametrize("server", SHAPES)
@pytest.mark.parametrize(
    ("path", "status", "stays"),
    [
        ("/health/ready?verbose", 200, False),
        ("/health/checks/database", 200, False),
        ("/health/ready", 304, False),
        ("/health/ready", 404, True),
        ("/health", 500, True),
        ("/healthy", 200, True),
        ("/api/health", 200, True),
        ("/shop?next=/health", 200, True),
        ("/livez", 200, True),
        ("/", 200, True),
    ],
)
def test_only_exact_paths_are_ours(server: str, path: str, status: int, stays: bool) -> None:
    assert HealthAccessFilter().filter(line(server, path, status)) is stays


def test_the_paths_of_the_service_count_and_more_may_be_named() -> None:
    here = HealthAccessFilter(Service(health_path="/up", kubernetes=True), paths=["/ping"])
    dropped = [path for path in ("/up", "/up/ready", "/livez", "/ping", "/health") if not here.filter(
        line("uvicorn.access", path, 200)
    )]  # fmt: skip
    assert dropped == ["/up", "/up/ready", "/livez", "/ping"]


@pytest.mark.parametrize(
    "arguments",
    [
        None,
        (),
        ("one",),
        ("a", "GET", "/health", "1.1", "not a number"),
        ("a", "GET", None, "1.1", None),
        ({"U": "/health"},),
        ({"s": "200"},),
        ({"path": "/health", "status": None},),
        7,
    ],
)
def test_what_cannot_be_understood_stays(arguments: Any) -> None:
    record = logging.LogRecord("some.access", logging.INFO, "x.py", 1, "text", None, None)
    record.args = arguments
    assert HealthAccessFilter().filter(record) is True
