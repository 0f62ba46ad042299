"""A trace as HAR 1.2, the HTTP Archive that the network panel of a browser imports.

There is one entry for each attempt, as if the balancer were the browser and each replica a host: the column
with the domain names the replica, the waterfall shows who was asked after whom. A request that no replica was
asked has the host `balancer`. What HAR has no word for has a name that begins with an underscore:

=====================================  =====================================================================
`_replica`, `_dispatch`, `_client`     who was asked; the number of the request, and whose it is
`_attempt`, `_attempts`                which of how many
`_outcome`                             `answered`, `retried` elsewhere, `lost`, `left` by the client, `open`
`_client_status`                       the status that the client got in the end
`_fault`, `_injected`                  why there is no answer, or half a one; the faults that were injected
`_ran`, `_zombie`                      whether the app was called, and ran on without anybody who listens
=====================================  =====================================================================

The trace has no headers and no bodies. Sizes and times that it does not have are -1.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from http.client import responses
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import quote

from lbkit.testkit.row import Attempt, Row

__all__ = ["har"]

UNKNOWN = -1
NOBODY = "balancer"


def har(rows: Iterable[Row], *, epoch: float) -> dict[str, Any]:
    """`epoch`: what the time was, in seconds since 1970, when the clock of the rows was at 0."""
    entries = [entry for row in rows for entry in _entries(row, epoch)]
    return {
        "log": {
            "version": "1.2",
            "creator": {"name": "lbkit", "version": _version()},
            "pages": [],
            "entries": sorted(entries, key=lambda entry: entry["startedDateTime"]),
        }
    }


def _entries(row: Row, epoch: float) -> list[dict[str, Any]]:
    count = len(row.attempts)
    return [
        _entry(row, attempt, number, count, epoch) for number, attempt in enumerate(row.attempts, start=1)
    ] or [_entry(row, None, 0, 0, epoch)]


def _entry(row: Row, attempt: Attempt | None, number: int, count: int, epoch: float) -> dict[str, Any]:
    began_at = row.began_at if attempt is None else attempt.began_at
    began = datetime.fromtimestamp(epoch + began_at, timezone.utc)
    timings = _timings(row, attempt, began_at, last=number == count)
    return {
        "startedDateTime": began.isoformat(timespec="microseconds"),
        "time": timings["send"] + timings["wait"] + timings["receive"],
        "request": _request(row, attempt, last=number == count),
        "response": _response(row, attempt, last=number == count),
        "cache": {},
        "timings": timings,
        "_resourceType": "websocket" if row.method == "WEBSOCKET" else "fetch",
        "_replica": attempt.replica if attempt is not None else None,
        "_dispatch": row.id,
        "_client": row.client,
        "_attempt": number,
        "_attempts": count,
        "_outcome": _outcome(row, last=number == count),
        "_client_status": row.status,
        "_fault": attempt.fault if attempt is not None else None,
        "_injected": attempt.injected if attempt is not None else None,
        "_ran": attempt is not None and attempt.ran,
        "_zombie": attempt is not None and attempt.zombie,
    }


def _request(row: Row, attempt: Attempt | None, *, last: bool) -> dict[str, Any]:
    websocket = row.method == "WEBSOCKET"
    host = attempt.replica if attempt is not None else NOBODY
    return {
        "method": "GET" if websocket else row.method,
        "url": f"{'ws' if websocket else 'http'}://{host}{quote(row.path, safe='/:@!$&()*+,;=~')}",
        "httpVersion": "HTTP/1.1",
        "cookies": [],
        "headers": [],
        "queryString": [],
        "headersSize": UNKNOWN,
        "bodySize": row.bytes_in if last else UNKNOWN,
    }


def _response(row: Row, attempt: Attempt | None, *, last: bool) -> dict[str, Any]:
    status = (row.status if attempt is None else attempt.status) or 0
    size = row.bytes_out if last and status else UNKNOWN
    return {
        "status": status,
        "statusText": responses.get(status, "") if status else (attempt and attempt.fault) or "no answer",
        "httpVersion": "HTTP/1.1",
        "cookies": [],
        "headers": [],
        "content": {"size": size, "mimeType": "x-unknown"},
        "redirectURL": "",
        "headersSize": UNKNOWN,
        "bodySize": size,
    }


def _timings(row: Row, attempt: Attempt | None, began_at: float, *, last: bool) -> dict[str, float]:
    """Milliseconds. When the answer came is known of a row's last attempt; of the others, when they ended."""
    answered = last and (attempt is None or attempt.status is not None)
    ended_at = row.done_at if attempt is None else attempt.ended_at
    first_byte_at = row.first_byte_at if answered else ended_at
    last_byte_at = row.last_byte_at if answered and row.complete else ended_at
    waited = _ms(began_at, first_byte_at)
    return {
        "blocked": UNKNOWN,
        "dns": UNKNOWN,
        "connect": UNKNOWN,
        "send": 0,
        "wait": waited,
        "receive": max(0.0, round(_ms(began_at, last_byte_at) - waited, 3)),
        "ssl": UNKNOWN,
    }


def _ms(since: float, until: float | None) -> float:
    return 0.0 if until is None else max(0.0, round((until - since) * 1000, 3))


def _outcome(row: Row, *, last: bool) -> str:
    if not last:
        return "retried"
    if row.open:
        return "open"
    return "left" if row.disconnected else "lost" if row.lost else "answered"


def _version() -> str:
    try:
        return version("lbkit-web")
    except PackageNotFoundError:  # run from its source
        return "0"
