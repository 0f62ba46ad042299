"""The trace: what became of each request, as rows that are kept, found and shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, overload

from lbkit.testkit.har import har
from lbkit.testkit.row import Row

__all__ = ["Trace"]

MOST_ROWS = 100_000
"""A load that runs for an hour must not fill the memory: the older half is dropped then."""

COLUMNS = ("#", "client", "request", "replica", "status", "attempts", "ms", "in/out")


class Trace(Sequence[Row]):
    """The rows in the order in which the requests came."""

    def __init__(self, rows: Iterable[Row] = (), *, most: int = MOST_ROWS, epoch: float = 0.0) -> None:
        self.epoch = epoch
        """What the time was, in seconds since 1970, when the clock of the rows was at 0."""

        self._rows = list(rows)
        self._most = most
        self._count = len(self._rows)

    def begin(self, now: float, *, client: str, method: str, path: str) -> Row:
        """The row of a request that has just come."""
        self._count += 1
        row = Row(self._count, now, client, method, path)
        self._rows.append(row)
        if len(self._rows) > self._most:
            del self._rows[: self._most // 2]
        return row

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Trace: ...
    def __getitem__(self, index: int | slice) -> Row | Trace:
        if isinstance(index, slice):
            return Trace(self._rows[index], epoch=self.epoch)
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(list(self._rows))  # a copy: requests come in meanwhile

    def clear(self) -> None:
        self._rows.clear()

    def by(
        self,
        *,
        replica: str | None = None,
        client: str | None = None,
        method: str | None = None,
        path: str | None = None,
        status: int | None = None,
    ) -> Trace:
        """The rows that match all of these; `path` may have wildcards. `replica` matches any attempt."""
        return self.where(
            lambda row: (
                (replica is None or any(attempt.replica == replica for attempt in row.attempts))
                and client in (None, row.client)
                and (method is None or row.method == method.upper())
                and (path is None or fnmatchcase(row.path, path))
                and status in (None, row.status)
            )
        )

    def where(self, wanted: Callable[[Row], bool]) -> Trace:
        return Trace((row for row in self if wanted(row)), epoch=self.epoch)

    def counts(self) -> dict[str, int]:
        """How many requests each replica answered."""
        counts: dict[str, int] = {}
        for row in self:
            if row.replica is not None:
                counts[row.replica] = counts.get(row.replica, 0) + 1
        return counts

    def table(self, *, last: int | None = None) -> str:
        """For a person: a line for each request, the last `last` of them or all."""
        rows = list(self)[-last:] if last else list(self)
        cells = [COLUMNS, *(row.cells() for row in rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
        lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
        skipped = len(self) - len(rows)
        return "\n".join([*([f"... {skipped} earlier"] if skipped else []), *lines])

    def jsonl(self) -> str:
        """JSON lines: one object for each request."""
        return "".join(json.dumps(row.as_dict()) + "\n" for row in self)

    def har(self) -> dict[str, Any]:
        """HAR 1.2, for the network panel of a browser: an entry for each attempt, see `lbkit.testkit.har`."""
        return har(self, epoch=self.epoch)

    def write(self, path: str | Path) -> None:
        """Write it to a file: as HAR, if that is named `.har`, else the JSON lines."""
        is_har = Path(path).suffix == ".har"
        Path(path).write_text(json.dumps(self.har(), indent=1) if is_har else self.jsonl(), encoding="utf-8")
