"""Seconds per phase, measured where the work happens."""

from __future__ import annotations

import time


class Clock:
    """seconds: phase -> wall-clock seconds since the phase before it ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now
