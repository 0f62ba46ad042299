"""Which asyncio task runs this request, and how a cancellation of it is taken back.

The first is asked once in each request, so its price matters. From Python 3.12 on, `asyncio.current_task` is
C and cheap. Before that it is Python, and finding the running loop is a system call (`getpid`): both together
are a third of all that the drain adds to a request. So the loop that ran in this thread last is asked first.
If it does not run now, it has no current task.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

__all__ = ["forgive", "running_task"]

Task = asyncio.Task[Any]


def _running_task() -> Task | None:
    """The task that calls; None where none of asyncio's does, as under trio."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


if sys.version_info >= (3, 12):
    running_task = _running_task
else:
    _current_tasks: dict[Any, Task] = vars(asyncio.tasks)["_current_tasks"]

    class Here(threading.local):
        loop: asyncio.AbstractEventLoop | None = None

    here = Here()

    def running_task() -> Task | None:
        task = _current_tasks.get(here.loop)
        if task is None and (task := _running_task()) is not None:
            here.loop = task.get_loop()
        return task


def forgive(task: Task | None) -> int:
    """Our own cancellation has done its work, and is taken back. How many others are still asked for?

    They are counted from Python 3.11 on; before, it is 0.
    """
    uncancel = getattr(task, "uncancel", None)
    return 0 if uncancel is None else uncancel()
