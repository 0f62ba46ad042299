"""The status page as a person sees it, in a real Chromium: light, dark, and on a phone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest

from lbkit.health import Outcome, Thresholds
from lbkit.monitor import Health
from lbkit.service import Service
from lbkit.wsgi import HealthMiddleware
from tests.e2e.chromium import Tab, chromium
from tests.health_gateways import wsgi_app

TOKEN = "correct-horse-battery"
# Where to leave the pictures, for somebody to look at.
PICTURES = os.environ.get("LBKIT_SCREENSHOTS")


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def served(health: Health) -> Iterator[str]:
    app: Any = HealthMiddleware(wsgi_app, health)
    server = make_server("127.0.0.1", 0, app, server_class=Server, handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def health() -> Health:
    health = Health(
        Service(name="shop", version="1.4.2", instance="web2"),
        thresholds=Thresholds(disk=1),
        auth=["127.0.0.0/8"],
    )
    health.check("database")(lambda: None)
    health.check("sessions-redis-primary")(lambda: None)

    @health.check("search", critical=False)
    def search() -> None:
        raise ConnectionRefusedError("redis://admin:s3cr3t@search.internal:6379/0 refused the connection")

    health.check("queue")(lambda: Outcome.degraded("412 jobs wait; the oldest for 40 s"))
    return health


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium(tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


def background(tab: Tab) -> int:
    """How bright the page is behind everything, from 0 to 255."""
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    channels = [int(part) for part in colour.strip("rgb()").split(",")]
    return sum(channels) // 3


LOWEST_CONTRAST = """
(() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = parse(c).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 :
    Math.pow((v + .055) / 1.055, 2.4)); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (parse(c)[3] !== 0) return c; } return 'rgb(255, 255, 255)'; };
  const ratio = e => { const a = light(getComputedStyle(e).color), b = light(behind(e));
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); };
  const texts = [...document.querySelectorAll('main *')].filter(e => !e.closest('svg') && e.innerText &&
    [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
  return Math.min(...texts.map(ratio));
})()
"""


@pytest.mark.parametrize(
    ("name", "width", "dark"), [("light", 1000, False), ("dark", 1000, True), ("phone", 360, False)]
)
def test_the_page_is_readable(
    tab: Tab, health: Health, tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    with served(health) as url:
        tab.open(f"{url}/health/detailed?format=html", width=width, dark=dark)
        folder = Path(PICTURES) if PICTURES else tmp_path
        tab.screenshot(folder / f"health-{name}.png")
        text = tab.evaluate("document.body.innerText")
        assert "database" in text
        assert "412 jobs wait; the oldest for 40 s" in text
        assert "s3cr3t" not in text
        assert (background(tab) < 60) is dark
        # Nothing sticks out at the side, not even on a phone.
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        # 4.5 to 1 is what WCAG asks for small text.
        assert tab.evaluate(LOWEST_CONTRAST) >= 4.5
        # The bars are as long as they say.
        shares = tab.evaluate(
            "[...document.querySelectorAll('svg')].map(s => 100 * s.querySelector('.fill')"
            ".getBoundingClientRect().width / s.getBoundingClientRect().width)"
        )
        told = tab.evaluate("[...document.querySelectorAll('.figure')].map(f => parseFloat(f.innerText))")
        assert len(shares) == 3
        assert shares == pytest.approx(told, abs=0.6)
        # The longest figure there is stands on one line.
        assert tab.evaluate(
            "(() => { const [f, g] = document.querySelectorAll('.figure'); f.innerText = '100.0 %';"
            " return f.clientHeight === g.clientHeight && f.scrollWidth <= f.parentElement.clientWidth; })()"
        )


def test_the_page_loads_nothing_else_and_breaks_no_rule_of_its_policy(tab: Tab, health: Health) -> None:
    with served(health) as url:
        tab.open(f"{url}/health/detailed?format=html")
        asked = {request["request"]["url"] for request in tab.told("Network.requestWillBeSent")}
        # Chromium asks for /favicon.ico by itself; the page has no part in it.
        assert {each for each in asked if not each.endswith("/favicon.ico")} == {
            f"{url}/health/detailed?format=html"
        }
        # That the page itself came with a 503 is a line of the log, too.
        complaints = [entry["entry"] for entry in tab.told("Log.entryAdded")]
        assert [entry for entry in complaints if entry["source"] != "network"] == []
        assert tab.told("Runtime.exceptionThrown", "Runtime.consoleAPICalled") == []


def test_a_browser_that_just_opens_the_address_gets_the_page(tab: Tab, health: Health) -> None:
    with served(health) as url:
        for path, shown in (
            ("/health", "healthy"),
            ("/health/ready", "degraded"),
            ("/health/live", "healthy"),
        ):
            tab.open(f"{url}{path}")
            assert tab.evaluate("document.contentType") == "text/html"
            assert tab.evaluate("document.querySelector('header .pill').innerText") == shown
