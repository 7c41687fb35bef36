"""A forward pass on a thread of its own, that stops where it needs something from outside."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

from fedray.types import FedrayError

P = TypeVar("P")
R = TypeVar("R")
_END = object()


class _Left(RuntimeError):
    """Nobody will go on with the pass."""


class Parked(Generic[P, R]):
    """work(park) runs until it is through or calls `park(post)`, which waits for the value that `resume` is given.

    One of caller and thread works at a time. `post` is what the thread has just parked with, None once it is through;
    `result` is what work returned then. Whatever failed in the thread is raised in `begin` or `resume`.
    """

    def __init__(self, work: Callable[[Callable[[P], Any]], R]) -> None:
        self._to_thread: SimpleQueue[Any] = SimpleQueue()
        self._to_caller: SimpleQueue[P | None] = SimpleQueue()
        self._thread = Thread(target=self._run, args=(work,), daemon=True, name="fedattn")
        self._error: Exception | None = None
        self.post: P | None = None
        self.result: R | None = None

    def begin(self) -> None:
        self._thread.start()
        self._wait()

    def resume(self, value: Any) -> None:
        self._to_thread.put(value)
        self._wait()

    def end(self) -> None:
        """Let the thread leave where it is parked, or where it will next be."""
        self._to_thread.put(_END)

    def _wait(self) -> None:
        self.post = self._to_caller.get()
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame, and all of the pass: not in a circle
        if self.post is None and self.result is None:
            raise FedrayError("the forward pass has ended: its session was released, or its thread says why on stderr")

    def _run(self, work: Callable[[Callable[[P], Any]], R]) -> None:
        try:
            self.result = work(self._park)
        except _Left:  # kept, its traceback would keep the whole pass in memory
            pass
        except (FedrayError, RuntimeError, ValueError) as error:  # what a member's call may fail with
            self._error = error
        finally:
            self._to_caller.put(None)

    def _park(self, post: P) -> Any:
        self._to_caller.put(post)
        value = self._to_thread.get()
        if value is _END:
            raise _Left
        return value
