"""Seconds per phase, measured where the work happens."""

from __future__ import annotations

import time

import torch


class Clock:
    """seconds: phase -> wall-clock seconds since the phase before it ended.

    device: where the work is done. A GPU is waited for at the end of every phase: what it was told returns before it
    is done, and would be counted where something waits for it next.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now
