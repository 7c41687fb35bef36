"""Protocols are asynchronous, people are not: an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from fedray.types import FedrayError

T = TypeVar("T")
WAITING = 64  # threads for what blocks: each member that somebody waits for takes one
STOP_S = 5.0  # how long the thread may take to end; work that blocks it longer is left to the end of the process


class Background:
    """Runs what is awaited from synchronous code, inside a running event loop (a notebook's) as well."""

    def __init__(self) -> None:
        opened: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=asyncio.run, args=(_live(opened),), name="fedray protocols", daemon=True)
        self._thread.start()
        self._loop, self._closing = opened.result()

    def start(self, work: Awaitable[T]) -> Future[T]:
        """What is awaited, on its way. Raises FedrayError where this is closed."""

        async def awaited() -> T:
            return await work

        if not self._thread.is_alive():
            if asyncio.iscoroutine(work):
                work.close()
            raise FedrayError("this federation is closed; open another")
        return asyncio.run_coroutine_threadsafe(awaited(), self._loop)

    def run(self, work: Awaitable[T]) -> T:
        """The result of what is awaited. What interrupts the caller cancels the work."""
        future = self.start(work)
        try:
            return future.result()
        finally:
            future.cancel()

    def in_order(self, works: Iterable[Awaitable[T]], at_a_time: int) -> Iterator[Future[T]]:
        """Each work as it is done, in their order; `at_a_time` of them are on their way together.

        What interrupts the caller, or leaves early, cancels those that are on their way.
        """
        begun: deque[Future[T]] = deque()
        try:
            for work in works:
                begun.append(self.start(work))
                if len(begun) == at_a_time:
                    yield _done(begun)
            while begun:
                yield _done(begun)
        finally:
            for future in begun:
                future.cancel()

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """The items one by one; an iterator that is left early closes its source."""
        end: Any = object()
        try:
            while (item := self.run(anext(items, end))) is not end:
                yield item
        finally:
            if isinstance(items, AsyncGenerator) and self._thread.is_alive():
                self.run(items.aclose())

    @property
    def closed(self) -> bool:
        return not self._thread.is_alive()

    def close(self) -> None:
        """Cancel what still runs and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(STOP_S)


def _done(begun: deque[Future[T]]) -> Future[T]:
    """The first of them, once it is done."""
    wait([begun[0]])
    return begun.popleft()


async def _live(opened: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
    closing = asyncio.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(WAITING, "fedray waiting"))
    opened.set_result((asyncio.get_running_loop(), closing))
    await closing.wait()
