"""One flow, driven by a blocking and by an awaiting answerer, does the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import pytest

from lbkit.flow import arun, run

Drive = Callable[[Generator[Any, Any, Any], Callable[[Any], Any]], Any]


def awaited(flow: Generator[Any, Any, Any], ask: Callable[[Any], Any]) -> Any:
    async def answer(question: Any) -> Any:
        await asyncio.sleep(0)
        return ask(question)

    return asyncio.run(arun(flow, answer))


@pytest.fixture(params=[run, awaited])
def drive(request: pytest.FixtureRequest) -> Drive:
    found: Drive = request.param
    return found


def test_answers_come_back_in_order_and_the_result_is_returned(drive: Drive) -> None:
    def flow() -> Generator[int, int, list[int]]:
        return [(yield 1), (yield 2), (yield 3)]

    assert drive(flow(), lambda question: question * 10) == [10, 20, 30]


def test_a_flow_that_asks_nothing_ends_at_once(drive: Drive) -> None:
    def flow() -> Generator[int, int, str]:
        return "done"
        yield 1  # type: ignore[unreachable]

    assert drive(flow(), lambda _: pytest.fail("nobody was to be asked")) == "done"


def test_an_error_is_raised_where_the_flow_had_asked(drive: Drive) -> None:
    def flow() -> Generator[str, Any, list[object]]:
        try:
            yield "first"
        except KeyError as error:
            return [error.args[0], (yield "second")]
        return []

    def ask(question: str) -> str:
        if question == "first":
            raise KeyError("no first")
        return question

    assert drive(flow(), ask) == ["no first", "second"]


def test_an_error_that_the_flow_lets_pass_reaches_the_caller(drive: Drive) -> None:
    ends: list[str] = []

    def flow() -> Generator[str, Any, None]:
        try:
            yield "question"
        finally:
            ends.append("tidy")

    def ask(_: str) -> None:
        raise ValueError("no answer")

    with pytest.raises(ValueError, match="no answer"):
        drive(flow(), ask)
    assert ends == ["tidy"]


def test_a_cancellation_is_told_to_the_flow() -> None:
    told: list[str] = []

    def flow() -> Generator[str, Any, None]:
        try:
            yield "question"
        except asyncio.CancelledError:
            told.append("cancelled")
            raise

    async def never(_: str) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(arun(flow(), never))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert told == ["cancelled"]
