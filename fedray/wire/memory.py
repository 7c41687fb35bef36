"""Pool memory for what arrives, and copy into it: touching fresh pages costs more than that copy."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

KEPT_BYTES = 512 << 20  # at most, of free buffers
FRESH_BYTES = 1 << 20  # below it the allocator has warm memory of its own
PIECE = 1 << 20  # bytes that one thread copies at a time; a multiple of every number's size


class Shelf:
    """A pool of flat byte arrays; one that nobody holds any more, nor any view or tensor of it, is lent again."""

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._free: list[np.ndarray] = []
        self._lock = threading.RLock()  # a borrower may be collected while we hold it

    @property
    def free_bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._free)

    def take(self, nbytes: int) -> np.ndarray:
        """Allocate a writable uint8 array of `nbytes`, its content arbitrary."""
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


_EXPONENT = {torch.float32: (32, 0x7F80_0000), torch.bfloat16: (16, 0x7F80), torch.float16: (16, 0x7C00)}


def copy_finite(out: Tensor, buffers: Sequence[np.ndarray]) -> bool:
    """Copy flat uint8 buffers, one after the other, into a tensor on a CPU; returns whether every number is finite.

    Each piece is checked right after its copy, as integers: what is not finite has all bits of the exponent set, and
    so is at least that large, as a signed integer if it is positive and as an unsigned one if it is negative. By NumPy,
    which releases the GIL: torch would start its own threads for every piece.
    """
    bits, infinite = _EXPONENT[out.dtype]
    signed, unsigned = f"i{bits // 8}", f"u{bits // 8}"
    room, pieces = out.view(torch.uint8).numpy().reshape(-1), []
    for buffer in buffers:
        place, room = room[: buffer.nbytes], room[buffer.nbytes :]
        pieces += [(place[i : i + PIECE], buffer[i : i + PIECE]) for i in range(0, buffer.nbytes, PIECE)]

    def copy(some: list[tuple[np.ndarray, np.ndarray]]) -> bool:
        finite = True
        for place, arrived in some:
            np.copyto(place, arrived)
            finite &= bool(place.view(signed).max() < infinite)
            finite &= bool(place.view(unsigned).max() < infinite | 1 << bits - 1)
        return finite

    threads = torch.get_num_threads() if out.nbytes >= FRESH_BYTES else 1
    return copy(pieces) if threads == 1 else all(_pool(threads).map(copy, (pieces[i::threads] for i in range(threads))))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "copy")
