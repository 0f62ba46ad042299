"""Keeps successful health probes out of the access log: a balancer that asks twice a second writes no news.

    logging.getLogger("uvicorn.access").addFilter(HealthAccessFilter())

======================  ============================================
logger                  where it has the path and the status
======================  ============================================
uvicorn.access          the third and the fifth argument
gunicorn.access         the atoms `U` and `s`
hypercorn.access        the atoms `U` and `s`
granian.access          the fields `path` and `status`
======================  ============================================

A failed probe is news, and stays. So does everything that cannot be understood.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from lbkit.health.routes import routes, under_checks
from lbkit.service import Service

__all__ = ["HealthAccessFilter"]


class HealthAccessFilter(logging.Filter):
    """Drops the lines of successful requests for exactly the paths of `service`, and for `paths`."""

    def __init__(self, service: Service | None = None, *, paths: Iterable[str] = ()) -> None:
        super().__init__()
        service = service if service is not None else Service()
        self._paths = frozenset(routes(service)) | frozenset(paths)
        self._under_checks = under_checks(service)

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            path, status = _request(record)
        except (TypeError, ValueError, LookupError, AttributeError):
            return True
        return not (200 <= status < 400 and self._ours(path))

    def _ours(self, path: str) -> bool:
        bare = path.partition("?")[0]
        return bare in self._paths or bare.startswith(self._under_checks)


def _request(record: logging.LogRecord) -> tuple[str, int]:
    fields = record.args
    if isinstance(fields, Mapping):
        if "path" in fields:
            return str(fields["path"]), int(str(fields["status"]))
        return str(fields["U"]), int(str(fields["s"]).split(" ")[0])
    if isinstance(fields, tuple) and len(fields) == 5:
        return str(fields[2]), int(str(fields[4]))
    raise LookupError("this is no access line that we know")
