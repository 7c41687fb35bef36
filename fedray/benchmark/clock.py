"""Seconds of several ways of doing the same, in turns, so that whatever else the machine does meets all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch


def in_turns(
    ways: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    warm: int = 1,
    device: str = "cpu",
    before: Mapping[str, Callable[[], Any]] | None = None,
    done: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Median seconds of each way; every one runs `warm` times unmeasured, then `repeats` times, one after the other.

    before: what readies a way, unmeasured; done: hears of every round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-warm, repeats):
        for name, way in ways.items():
            if before and name in before:
                before[name]()
            _settle(device)
            started = time.perf_counter()
            way()
            _settle(device)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
        done()
    return {name: median(found) for name, found in seconds.items()}


def _settle(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
