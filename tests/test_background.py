"""The loop in a thread of its own: several works on their way, in order, and none left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from fedray.federation.event_loop import Background


@pytest.fixture
def loop() -> Iterator[Background]:
    loop = Background()
    yield loop
    loop.close()


class Work:
    """Works that note who is on its way with whom; the first of every pair ends when the second has begun."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.together: list[set[int]] = []
        self.cancelled: list[int] = []

    async def __call__(self, number: int, wait_for: asyncio.Event | None = None) -> int:
        self.running.add(number)
        self.together.append(self.running.copy())
        try:
            await (asyncio.sleep(0) if wait_for is None else wait_for.wait())
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        finally:
            self.running.discard(number)
        if number == 3:
            raise ValueError("three")
        return number


@pytest.mark.parametrize("at_a_time", [1, 2, 5])
def test_works_come_in_their_order_and_so_many_together(loop: Background, at_a_time: int) -> None:
    work, begun = Work(), []

    def works():
        for number in range(7):
            begun.append(number)
            yield work(number)

    found = []
    for future in loop.in_order(works(), at_a_time):
        assert future.done() and len(begun) <= len(found) + at_a_time
        found.append("failed" if future.exception() else future.result())
    assert found == [0, 1, 2, "failed", 4, 5, 6]
    assert max(map(len, work.together)) <= at_a_time


def test_the_second_is_on_its_way_while_the_first_is_waited_for(loop: Background) -> None:
    second = asyncio.Event()

    async def first() -> str:
        await second.wait()
        return "first"

    async def other() -> str:
        second.set()
        return "other"

    assert [future.result() for future in loop.in_order([first(), other()], 2)] == ["first", "other"]


def test_what_is_left_early_is_cancelled(loop: Background) -> None:
    work, never = Work(), asyncio.Event()
    works = loop.in_order((work(number, never if number else None) for number in range(4)), 3)
    assert next(works).result() == 0
    works.close()  # pyright: ignore[reportAttributeAccessIssue]
    loop.run(asyncio.sleep(0))
    assert sorted(work.cancelled) == [1, 2] and not work.running
