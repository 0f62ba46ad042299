"""Headers that are looked at only when a policy asks: most never do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

__all__ = ["LazyHeaders"]


class LazyHeaders(Mapping[str, str]):
    """What `read` gives, once somebody wants to know."""

    __slots__ = ("_found", "_read")

    def __init__(self, read: Callable[[], dict[str, str]]) -> None:
        self._read = read
        self._found: dict[str, str] | None = None

    @property
    def found(self) -> dict[str, str]:
        if self._found is None:
            self._found = self._read()
        return self._found

    def __getitem__(self, name: str) -> str:
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)
