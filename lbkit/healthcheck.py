"""Ask a health endpoint once: for Docker's HEALTHCHECK, in an image that has no curl.

    HEALTHCHECK --interval=10s --timeout=3s CMD ["python", "-m", "lbkit", "probe", "http://127.0.0.1:8000/health/live"]

It needs nothing but the standard library. Exit code 0: healthy; 1: not healthy, or no answer; 2: a mistake in
the command. What it prints is one line, which `docker inspect` shows.
"""

from __future__ import annotations

import argparse
import http.client
import json
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

from lbkit.errors import ConfigError

__all__ = ["Verdict", "ask", "main"]

LONGEST_BODY = 64 * 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    healthy: bool
    text: str
    """One line: the status code, and what the answer says."""


def ask(url: str, *, timeout: float = 2.0, method: str = "GET", verify: bool = True) -> Verdict:
    """Ask once, within `timeout` seconds altogether. A 2xx answer is healthy; no redirect is followed."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"need a URL such as http://127.0.0.1:8000/health/live, got {url!r}")
    if not timeout > 0:
        raise ConfigError(f"need timeout > 0 seconds, got timeout={timeout}")
    target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    deadline = time.monotonic() + timeout
    connection = _connection(parts.scheme, parts.hostname, _port(parts), timeout, verify)
    try:
        connection.request(method, target, headers={"Accept": "application/json", "Connection": "close"})
        response = connection.getresponse()
        body = _read(connection, response, deadline)
    except (OSError, http.client.HTTPException) as error:
        return Verdict(False, f"no answer: {_reason(error)}")
    finally:
        connection.close()
    return Verdict(200 <= response.status < 300, f"{response.status} {_said(body)}".rstrip())


def main(arguments: Sequence[str]) -> int:
    """The command line of `lbkit probe`. Returns the exit code."""
    parser = _Parser(prog="lbkit probe", description="Ask a health endpoint once, for Docker's HEALTHCHECK.")
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8000/health/live")
    parser.add_argument("--timeout", type=float, default=2.0, help="seconds, altogether (2)")
    parser.add_argument("--insecure", action="store_true", help="take any TLS certificate")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    asked = parser.parse_args(arguments)
    try:
        verdict = ask(asked.url, timeout=asked.timeout, verify=not asked.insecure)
    except ConfigError as error:
        parser.error(str(error))
    if not asked.quiet:
        sys.stdout.write(f"{verdict.text}\n")
    return 0 if verdict.healthy else 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as the other commands have it."""
        self.exit(2, f"Error: {message}\n")


def _connection(
    scheme: str, host: str, port: int | None, timeout: float, verify: bool
) -> http.client.HTTPConnection:
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=timeout)
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)


def _port(parts: Any) -> int | None:
    try:
        port: int | None = parts.port
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return port


def _read(
    connection: http.client.HTTPConnection, response: http.client.HTTPResponse, deadline: float
) -> bytes:
    """The body, as far as it comes in time: a server that drips must not hold the probe up."""
    body = b""
    while len(body) < LONGEST_BODY:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if connection.sock is not None:
            connection.sock.settimeout(left)
        piece = response.read1(LONGEST_BODY)
        if not piece:
            break
        body += piece
    return body


def _said(body: bytes) -> str:
    """The status in the answer, and the checks that are not well."""
    try:
        answer = json.loads(body)
        checks = answer.get("checks", {})
        bad = [
            f"{name}: {check.get('error', check['status'])}"
            for name, check in checks.items()
            if check["status"] != "healthy"
        ]
        words = ", ".join([str(answer["status"]), *bad])
    except (ValueError, LookupError, AttributeError, TypeError):
        words = body[:80].decode("utf-8", "replace")
    return "".join(char for char in words if char.isprintable())[:400]


def _reason(error: Exception) -> str:
    return "timeout" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
