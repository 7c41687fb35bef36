"""Seconds of several ways of doing the same, in turns, so that other load on the machine affects all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch


def in_turns(
    ways: Mapping[str, Callable[[], Any]],
    repeats: int,
    device: str = "cpu",
    *,
    warm: int = 1,
    before: Mapping[str, Callable[[], Any]] | None = None,
    done: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Measure the median seconds of each way; every one runs `warm` times unmeasured, then `repeats` times, in turns.

    before: what prepares a way, unmeasured; done: called after every round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-warm, repeats):
        for name, way in ways.items():
            if before and name in before:
                before[name]()
            _synchronize(device)
            started = time.perf_counter()
            way()
            _synchronize(device)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - started)
        done()
    return {name: median(found) for name, found in seconds.items()}


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
