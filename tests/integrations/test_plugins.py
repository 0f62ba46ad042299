"""The three plugins: the same words, the same answers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from flask import Flask, current_app, g
from starlette.applications import Starlette
from starlette.testclient import TestClient

from lbkit.errors import ConfigError
from lbkit.monitor import Health
from lbkit.service import Service
from tests.health_gateways import Gateway, through_asgi, through_wsgi
from tests.integrations.apps import MAKERS, site_health
from tests.integrations.conformance import RULES

APPS: dict[str, Callable[[], Any]] = {
    "flask": lambda: Flask(__name__),
    "starlette": Starlette,
    "fastapi": FastAPI,
}


@pytest.fixture(params=list(APPS))
def framework(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def plugin(framework: str) -> Any:
    return importlib.import_module(f"lbkit_{framework}").LBKit


def through(framework: str) -> Any:
    return through_wsgi if framework == "flask" else through_asgi


@pytest.fixture
def ask(framework: str) -> Iterator[Gateway]:
    health = site_health()
    with through(framework)(MAKERS[framework](health)) as send:
        yield Gateway(framework, health, send)
    health.stop()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_conformance(rule: Callable[[Gateway], None], ask: Gateway) -> None:
    rule(ask)


def status_of(app: Any, framework: str, path: str = "/health/ready?verbose") -> Any:
    with through(framework)(app) as send:
        return send(httpx.Request("GET", f"http://testserver{path}")).json()


def test_init_app_serves_the_factory_pattern(framework: str, plugin: Any) -> None:
    lbkit = plugin(version="2.1.0")
    lbkit.check("database")(lambda: None)
    app = APPS[framework]()
    lbkit.init_app(app)
    answer = status_of(app, framework)
    assert answer["version"] == "2.1.0"
    assert answer["checks"]["database"]["status"] == "healthy"


def test_two_plugins_in_one_process_share_nothing(framework: str, plugin: Any) -> None:
    apps = []
    for version in ("1", "2"):
        app = APPS[framework]()
        plugin(app, version=version).check(f"only-in-{version}")(lambda: None)
        apps.append(app)
    first, second = (status_of(app, framework) for app in apps)
    assert (first["version"], list(first["checks"])) == ("1", ["only-in-1"])
    assert (second["version"], list(second["checks"])) == ("2", ["only-in-2"])


def test_a_second_plugin_on_one_app_is_refused(framework: str, plugin: Any) -> None:
    app = APPS[framework]()
    plugin(app)
    with pytest.raises(ConfigError, match="one LBKit for each app"):
        plugin(app)


def test_version_and_health_together_are_refused(plugin: Any) -> None:
    with pytest.raises(ConfigError, match="got both"):
        plugin(version="1.0.0", health=Health(Service(version="2.0.0")))


@pytest.mark.parametrize("framework", ["starlette", "fastapi"], indirect=True)
def test_an_app_that_has_started_is_refused(framework: str, plugin: Any) -> None:
    app = APPS[framework]()
    TestClient(app).get("/")
    with pytest.raises(ConfigError, match="already started"):
        plugin(app)


def test_the_fastapi_plugin_names_the_one_for_starlette() -> None:
    from lbkit_fastapi import LBKit

    with pytest.raises(ConfigError, match="lbkit_starlette"):
        LBKit(Starlette())  # type: ignore[arg-type]


def test_fastapi_shows_the_endpoints_in_its_schema() -> None:
    from lbkit_fastapi import LBKit

    app = FastAPI(title="Notes")
    LBKit(app, health=Health(Service(kubernetes=True)))

    @app.get("/notes")
    def notes() -> list[str]:
        return []

    paths = TestClient(app).get("/openapi.json").json()["paths"]
    assert {
        "/notes",
        "/health",
        "/health/ready",
        "/health/detailed",
        "/health/checks/{name}",
        "/readyz",
    } <= set(paths)
    assert paths["/health"]["get"]["tags"] == ["health"]
    assert set(paths["/health/ready"]["get"]["responses"]) == {"200", "503"}


def test_what_fastapi_documents_is_what_is_answered() -> None:
    from lbkit_fastapi import LBKit

    app = FastAPI()
    lbkit = LBKit(app, version="1.0.0")
    lbkit.check("database")(lambda: False)
    client = TestClient(app)
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/health", "/health/live", "/health/ready", "/health/startup", "/health/detailed"):
        response = client.get(path)
        answers = paths[path]["get"]["responses"][str(response.status_code)]
        schema = answers["content"]["application/json"]["schema"]
        assert set(schema["required"]) <= set(response.json())
        assert response.json()["status"] in schema["properties"]["status"]["enum"]


def test_flask_checks_run_inside_the_app_s_context() -> None:
    from lbkit_flask import LBKit

    app = Flask("shop")
    lbkit = LBKit(app)
    torn_down = []
    app.teardown_appcontext(lambda _: torn_down.append(1))

    @lbkit.check("database")
    def database() -> bool:
        g.connection = "opened for this check alone"
        return current_app.name == "shop"

    @lbkit.check("cache")
    async def cache() -> bool:
        return current_app.name == "shop"

    checks = status_of(app, "flask")["checks"]
    assert {name: check["status"] for name, check in checks.items()} == {
        "database": "healthy",
        "cache": "healthy",
    }
    # One for each check: what it opened is closed, no connection is kept by a thread of ours.
    assert len(torn_down) == 2


def test_a_starlette_app_is_starting_until_its_lifespan_is_up() -> None:
    import asyncio
    from contextlib import asynccontextmanager

    from lbkit_starlette import LBKit

    opened = asyncio.Event()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> Any:
        await opened.wait()
        yield

    app = Starlette(lifespan=lifespan)
    lbkit = LBKit(app, version="1.0.0")

    async def scenario() -> list[str]:
        to_app: asyncio.Queue[Any] = asyncio.Queue()
        from_app: asyncio.Queue[Any] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        task = asyncio.create_task(app(scope, to_app.get, from_app.put))
        states = []
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            to_app.put_nowait({"type": "lifespan.startup"})
            await asyncio.sleep(0)
            states.append((await client.get("/health")).json()["status"])
            opened.set()
            await from_app.get()
            states.append((await client.get("/health")).json()["status"])
        to_app.put_nowait({"type": "lifespan.shutdown"})
        await task
        states.append(lbkit.health.lifecycle.state.value)
        return states

    assert asyncio.run(scenario()) == ["starting", "healthy", "stopped"]


def test_an_app_may_live_more_than_once() -> None:
    from lbkit_starlette import LBKit

    app = Starlette()
    lbkit = LBKit(app)
    lbkit.check("database", interval=5.0)(lambda: None)
    for _ in range(2):
        with TestClient(app) as client:
            assert client.get("/health/ready").json()["status"] == "healthy"
        assert lbkit.health.lifecycle.state.value == "stopped"


def test_an_app_that_is_mounted_answers_below_its_mount_point() -> None:
    from starlette.routing import Mount

    from lbkit_starlette import LBKit

    inner = Starlette()
    LBKit(inner, version="1.0.0")
    outer = TestClient(Starlette(routes=[Mount("/shop", app=inner)]))
    assert outer.get("/shop/health").json()["version"] == "1.0.0"
    assert outer.get("/health").status_code == 404


def test_the_very_first_probe_finds_the_drain_ready(framework: str, plugin: Any) -> None:
    app = APPS[framework]()
    plugin(app)
    assert status_of(app, framework, "/health/ready")["drain"]["state"] == "ready"
