"""One text for blocking and awaiting code: a flow decides, and yields what somebody must wait for.

    def load(key):                                    run(load("k"), lambda question: ...)
        fields = yield Question(key)                  await arun(load("k"), an_async_function)
        return fields or {}

What `ask` returns is the answer; what it raises is raised in the flow, where it had yielded. So is a
cancellation: a flow can tell that its question was never answered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar, cast

__all__ = ["arun", "run"]

T = TypeVar("T")
Y = TypeVar("Y")


def run(flow: Generator[Y, Any, T], ask: Callable[[Y], Any]) -> T:
    """Drive the flow to its end, and return what it returns."""
    resume, value = flow.send, None
    try:
        while True:
            step = resume(value)
            try:
                value, resume = ask(step), flow.send
            except BaseException as error:
                value, resume = error, flow.throw
    except StopIteration as end:
        return cast(T, end.value)


async def arun(
    flow: Generator[Y, Any, T], ask: Callable[[Y], Awaitable[Any]], *, first: Y | None = None
) -> T:
    """The same, awaited. `first` is what the flow has yielded already, if somebody had a look."""
    resume: Callable[[Any], Y] = flow.send
    step = first
    try:
        if step is None:
            step = next(flow)
        while True:
            try:
                value, resume = await ask(step), flow.send
            except BaseException as error:
                value, resume = error, flow.throw
            step = resume(value)
    except StopIteration as end:
        return cast(T, end.value)
