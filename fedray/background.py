"""Protocols are asynchronous, people are not: an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from fedray.types import FedrayError

T = TypeVar("T")
STOP_S = 5.0  # how long the thread may take to end; work that blocks it longer is left to the end of the process


class Background:
    """Runs what is awaited from synchronous code, inside a running event loop (a notebook's) as well."""

    def __init__(self) -> None:
        opened: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=asyncio.run, args=(_live(opened),), name="fedray protocols", daemon=True)
        self._thread.start()
        self._loop, self._closing = opened.result()

    def run(self, work: Awaitable[T]) -> T:
        """The result of what is awaited. What interrupts the caller cancels the work."""

        async def awaited() -> T:
            return await work

        if not self._thread.is_alive():
            if asyncio.iscoroutine(work):
                work.close()
            raise FedrayError("this federation is closed; open another")
        future = asyncio.run_coroutine_threadsafe(awaited(), self._loop)
        try:
            return future.result()
        finally:
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


async def _live(opened: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
    closing = asyncio.Event()
    opened.set_result((asyncio.get_running_loop(), closing))
    await closing.wait()
