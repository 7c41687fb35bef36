"""Memory for what arrives, used again: the first touch of fresh pages costs more than the copy into them."""

from __future__ import annotations

import threading
import weakref

import numpy as np

KEPT_BYTES = 512 << 20  # at most, of buffers that nobody uses at the moment
FRESH_BYTES = 1 << 20  # below it the allocator has warm memory of its own


class Shelf:
    """Lends flat byte arrays; one that nobody holds any more, nor any view or tensor of it, is lent again."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._free: list[np.ndarray] = []
        self._lock = threading.RLock()  # a borrower may be collected while we hold it

    @property
    def free_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._free)

    def take(self, nbytes: int) -> np.ndarray:
        """A writable uint8 array of `nbytes`, its content arbitrary."""
        if nbytes < FRESH_BYTES:
            return np.empty(nbytes, np.uint8)
        with self._lock:
            fitting = [buffer for buffer in self._free if nbytes <= buffer.nbytes <= 2 * nbytes]
            buffer = min(fitting, key=lambda found: found.nbytes, default=None)
            if buffer is not None:
                self._free = [other for other in self._free if other is not buffer]
        if buffer is None:
            buffer = np.empty(nbytes, np.uint8)
        lent = buffer[:nbytes]
        weakref.finalize(lent, self._back, buffer).atexit = False
        return lent

    def _back(self, buffer: np.ndarray) -> None:
        with self._lock:
            self._free.append(buffer)
            while self.free_bytes > self._kept_bytes:
                self._free.pop(0)
