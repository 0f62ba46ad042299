"""Every sample starts and answers, alone and as three replicas, with a page that needs nothing else."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lbkit.asgi import Balancer
from sample_apps.fastapi_notes.app import create_app as notes
from sample_apps.flask_shop.app import create_app as shop
from sample_apps.starlette_chat.app import create_app as chat
from tests.programs import program
from tests.sample_apps.live import LIMIT, replica, served

CHECKS = {shop: "catalogue", chat: "bus", notes: "database"}


@pytest.fixture(params=CHECKS, ids=lambda factory: factory.__module__.split(".")[1])
def create_app(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHAT_FILE", "NOTES_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.fixture
def client(create_app: Any) -> Iterator[httpx.Client]:
    balancer = Balancer.from_factory(create_app, replicas=3)
    with served(balancer) as url, httpx.Client(base_url=url, timeout=LIMIT) as client:
        yield client


def test_a_sample_answers_alone(create_app: Any) -> None:
    with served(Balancer([create_app()], replica_header=None)) as url:
        page = httpx.get(url, timeout=LIMIT)
        health = httpx.get(f"{url}/health", timeout=LIMIT)
    assert page.status_code == health.status_code == 200
    assert "x-lbkit-replica" not in page.headers


def test_each_of_three_replicas_shows_the_page_and_its_health(create_app: Any, client: httpx.Client) -> None:
    pages = [client.get("/") for _ in range(3)]
    assert [replica(page) for page in pages] == ["web1", "web2", "web3"]
    assert {page.status_code for page in pages} == {200}
    for _ in range(3):
        health = client.get("/health").json()
        assert (health["status"], health["version"]) == ("healthy", "1.0.0")
        checks = client.get("/health/detailed").json()["checks"]
        assert {name: check["status"] for name, check in checks.items()} == {CHECKS[create_app]: "healthy"}


def test_a_page_loads_nothing_from_elsewhere_and_all_it_names_is_there(client: httpx.Client) -> None:
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    named = set(re.findall(r'(?:src|href)="([^"#]+)"', page.text))
    assert {"/health", "/health/detailed"} <= named
    for path in named:
        assert path.startswith("/")
        answer = client.get(path)
        # A machine whose CPU is busy, with tests for instance, is unhealthy in detail.
        assert answer.status_code == 200 or (path, answer.status_code) == ("/health/detailed", 503)
        foreign = re.findall(r"https?://(?!www\.w3\.org/2000/svg)\S+", answer.text)
        # FastAPI's own docs page is the exception, and the README says so.
        assert foreign == [] or path == "/docs"


def test_every_field_of_a_page_has_a_label(create_app: Any, client: httpx.Client) -> None:
    paths = ["/", "/login", "/products/kettle"] if create_app is shop else ["/"]
    for path in paths:
        page = client.get(path).text
        labelled = set(re.findall(r'<label[^>]* for="([^"]+)"', page))
        bare = re.sub(r"<label.*?</label>", "", page, flags=re.DOTALL)
        for field in re.findall(r"<(?:input|textarea)[^>]*>", bare):
            name = re.search(r'id="([^"]+)"', field)
            assert 'type="hidden"' in field or "aria-label" in field or (name and name[1] in labelled), field


def test_in_a_real_browser_the_page_names_the_replica_that_answered(
    client: httpx.Client, tmp_path: Path
) -> None:
    command = [program("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=4000"]
    shown = subprocess.run(
        [*command, "--dump-dom", str(client.base_url)], capture_output=True, text=True, timeout=90, check=True
    )
    footer = shown.stdout.partition("<footer>")[2]
    assert re.search(r"\bweb[123]\b", footer), footer
