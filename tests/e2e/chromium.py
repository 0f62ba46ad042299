"""A real Chromium, steered over its own protocol: chromedevtools.github.io/devtools-protocol."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from tests.programs import program

LIMIT = 60.0


class Tab:
    """One page. `events` is everything that the browser told meanwhile."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = count(1)
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, message
                found: dict[str, Any] = message["result"]
                return found

    def open(self, url: str, *, width: int = 1000, height: int = 800, dark: bool = False) -> None:
        """Load a page in a window of that size, and wait until it is loaded."""
        self.events.clear()
        phone = width < 500
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._receive()

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self, path: Path) -> None:
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def told(self, *methods: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event["method"] in methods]

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv(timeout=LIMIT))
        if "method" in message:
            self.events.append(message)
        return message


@contextmanager
def chromium(profile: Path) -> Iterator[Tab]:
    """A browser without a window, and a tab in it."""
    command = [
        program("chromium"),
        "--headless=new",
        "--no-sandbox",  # containers, where tests run as root, have none
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        port = _port(browser)
        pages = httpx.get(f"http://127.0.0.1:{port}/json/list", timeout=LIMIT).json()
        page = next(each for each in pages if each["type"] == "page")
        with connect(page["webSocketDebuggerUrl"], max_size=None, open_timeout=LIMIT) as socket:
            yield Tab(socket)
    finally:
        browser.kill()
        browser.communicate()


def _port(browser: subprocess.Popen[str]) -> int:
    assert browser.stderr is not None
    told = []
    for line in browser.stderr:
        told.append(line)
        if match := re.search(r"ws://127\.0\.0\.1:(\d+)/", line):
            return int(match.group(1))
    raise AssertionError(f"chromium ended: {''.join(told)}")
