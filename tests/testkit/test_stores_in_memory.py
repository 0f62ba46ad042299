"""Stores of libraries that count or keep in the memory of one process: the state watch knows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbkit.testkit.findings import Oracle
from tests.testkit.suites import run

APP = """
import asyncio
import flask
{imports}

store = {store}

def create_app():
    app = flask.Flask(__name__)
    {init}

    @app.get("/")
    def index():
        {use}
        return "yes"

    return app
"""
STORES = {
    "limits": {
        "imports": "import limits",
        "store": "limits.strategies.FixedWindowRateLimiter(limits.storage.MemoryStorage())",
        "use": "store.hit(limits.RateLimitItemPerMinute(5), 'ann')",
    },
    "cachelib": {
        "imports": "import cachelib",
        "store": "cachelib.SimpleCache()",
        "use": "store.set('a', 1)",
    },
    "flask_caching": {
        "imports": "import flask_caching",
        "store": "flask_caching.Cache(config={'CACHE_TYPE': 'SimpleCache'})",
        "init": "store.init_app(app)",
        "use": "store.set('a', 1)",
    },
    "aiocache": {
        "imports": "import aiocache",
        "store": "aiocache.SimpleMemoryCache()",
        "use": "asyncio.run(store.set('a', 1))",
    },
}


@pytest.mark.parametrize(
    ("library", "what"),
    [
        ("limits", "held.store (MemoryStorage in memory, 0 → 1)"),
        ("cachelib", "held.store (SimpleCache in memory, 0 → 1)"),
        ("flask_caching", 'flask.app.extensions["cache"] (SimpleCache in memory, 0 → 1)'),
        ("aiocache", "held.store (SimpleMemoryCache in memory, 0 → 1)"),
    ],
)
def test_a_store_of_a_library_that_one_process_keeps_is_seen(tmp_path: Path, library: str, what: str) -> None:
    (tmp_path / "held.py").write_text(APP.format(**{"init": "", **STORES[library]}))
    (tmp_path / "test_held.py").write_text(
        "from held import create_app\n"
        "def test_it():\n    assert create_app().test_client().get('/').text == 'yes'\n"
    )
    ran = run(tmp_path)
    assert ran.outcomes == {"passed": 1}, ran.output
    (state,) = ran.found(Oracle.STATE)
    assert state.what == what
