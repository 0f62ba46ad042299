"""A bounded load in the background, so that something is under way while a test breaks things."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lbkit.errors import ConfigError

if TYPE_CHECKING:
    from lbkit.testkit.cluster import Cluster

__all__ = ["Load"]

MOST_AT_ONCE = 16
MOST_CALLS = 100_000
HIGHEST_RATE = 1000.0


class Load:
    """Use as a context manager. At its end no more calls begin, and those under way are waited for."""

    def __init__(
        self,
        cluster: Cluster,
        call: Callable[..., Any],
        arguments: Sequence[Any],
        options: Mapping[str, Any],
        *,
        rate: float,
    ) -> None:
        if not 0 < rate <= HIGHEST_RATE:
            raise ConfigError(f"need 0 < rate <= {HIGHEST_RATE:g} calls a second, got {rate!r}")
        self.answers: list[Any] = []
        self.errors: list[Exception] = []
        self._cluster = cluster
        self._call = partial(call, *arguments, **options)
        self._is_async = inspect.iscoroutinefunction(call)
        self._pause = 1 / rate
        self._over = threading.Event()
        self._begun = threading.Event()

    def __enter__(self) -> Load:
        self._thread = threading.Thread(target=self._work, name="lbkit-load", daemon=True)
        self._thread.start()
        self._begun.wait()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        crew = ThreadPoolExecutor(MOST_AT_ONCE, thread_name_prefix="lbkit-load")
        for _ in range(MOST_CALLS):
            crew.submit(self._once)
            self._begun.set()
            if self._over.wait(self._pause):
                break
        crew.shutdown(cancel_futures=True)

    def _once(self) -> None:
        try:
            answer = self._call()
            if self._is_async:
                answer = self._cluster.portal.submit(answer).result()
        except Exception as error:
            self.errors.append(error)
        else:
            self.answers.append(answer)
