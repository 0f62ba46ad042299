"""The conformance list over real servers, and what only a real server can show."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.servers import ASGI, WSGI, free_port, serving, until
from tests.e2e.serving import LIMIT, Process, started
from tests.integrations.conformance import RULES

PAIRS = [(server, framework) for server in ASGI for framework in ("starlette", "fastapi")]
PAIRS += [(server, "flask") for server in WSGI]


@pytest.mark.parametrize(("server", "framework"), PAIRS, ids=lambda part: str(part))
def test_conformance(server: str, framework: str) -> None:
    with serving(server, f"{framework}_app") as (process, client):

        def ask(path: str, *, method: str = "GET", headers: dict[str, str] | None = None) -> httpx.Response:
            return client.request(method, path, headers=headers)

        for rule in RULES:
            try:
                rule(ask)
            except AssertionError as error:
                raise AssertionError(f"{rule.__name__}: {error}\n{process}") from error


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "granian-asgi", "gunicorn-asgi", "gunicorn-sync"])
def test_good_probes_are_not_in_the_access_log_and_bad_ones_are(server: str) -> None:
    app = "starlette_app" if server in ASGI else "flask_app"
    with serving(server, app) as (process, client):
        for _ in range(200):
            assert client.get("/health").status_code == 200
        client.get("/no-probe-this")
        assert client.get("/health/checks/search").status_code == 503
        until(lambda: [line for line in logged(process) if "/health/checks/search" in line], of=process)
        probes = [line for line in logged(process) if "/health" in line]
        assert len(probes) == 1, probes
        assert [line for line in logged(process) if "/no-probe-this" in line]


def logged(process: Process) -> list[str]:
    return [*process.out, *process.err]


def test_a_side_port_answers_while_every_worker_thread_is_busy() -> None:
    side = free_port()
    with (
        serving("gunicorn-gthread", "busy_app", SIDE_PORT=str(side)) as (process, client),
        ThreadPoolExecutor(9) as pool,
    ):
        # The server is full: eight requests are held, so a ninth cannot be answered in band.
        held = [pool.submit(client.get, "/hold") for _ in range(8)]
        until(lambda: "".join(logged(process)).count("held") == 8, of=process)
        in_band = pool.submit(httpx.get, f"{client.base_url}/health", timeout=LIMIT)
        for path in ("/health", "/health/ready", "/health/live"):
            assert httpx.get(f"http://127.0.0.1:{side}{path}", timeout=LIMIT).status_code == 200
        assert not in_band.done()
        assert not any(answer.done() for answer in held)
        process.kill()


def test_a_hung_check_holds_up_neither_the_other_routes_nor_the_exit() -> None:
    with serving("uvicorn", "tests.e2e.health_hung:app") as (process, client):
        ready = client.get("/health/ready")
        assert (ready.status_code, ready.json()["checks"]["database"]["status"]) == (503, "unknown")
        # Both would wait for a thread of the app's pool, or of the loop's, if the check had one of those.
        assert client.get("/plain").text == "plain"
        assert client.get("/lookup").text == "looked up"
        assert process.interrupt() in (0, 130, -2)


RELOADED = """
from flask import Flask
from lbkit_flask import LBKit

def create_app():
    app = Flask(__name__)
    LBKit(app, version="{version}")
    return app
"""


def test_an_app_factory_under_flask_s_reloader_tells_its_new_version(tmp_path: Path) -> None:
    port, site = free_port(), tmp_path / "site_of_flask.py"
    site.write_text(RELOADED.format(version="1.0.0"))
    command = [sys.executable, "-m", "flask", "--app", "site_of_flask", "run", "--debug", f"--port={port}"]

    def version() -> str | None:
        try:
            return str(httpx.get(f"http://127.0.0.1:{port}/health", timeout=LIMIT).json()["version"])
        except httpx.TransportError:
            return None

    with started(command, cwd=tmp_path) as process:
        until(lambda: version() == "1.0.0", of=process)
        site.write_text(RELOADED.format(version="2.0.0-rc1"))
        until(lambda: version() == "2.0.0-rc1", of=process)
