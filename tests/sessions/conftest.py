from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.redis_servers import Server, server


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("sessions")) as running:
        yield running


@pytest.fixture
def redis_url(redis_server: Server) -> str:
    """An empty database."""
    with redis_server.client() as client:
        client.flushdb()
    return redis_server.url
