"""How long a training will take, from its first steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

MEASURED = 5  # steps, behind a first one that still warms up


class Pace:
    """Foretell a training's seconds, once: after so many steps, by the median of theirs. clock: in seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._times = clock, list[float]()
        self.step_s = self.whole_s = 0.0  # of a step, and of all from the first that was seen; 0: not foretold yet

    def after(self, step: int, of: int) -> bool:
        """Note that a step is taken; returns whether the rest can be foretold now, for the first time."""
        if self.whole_s:
            return False
        self._times.append(self._clock())
        if len(self._times) <= MEASURED:
            return False
        self.step_s = statistics.median(b - a for a, b in zip(self._times, self._times[1:], strict=False))
        self.whole_s = self.step_s * (of - step + len(self._times))
        return True


def duration(seconds: float) -> str:
    """Write a duration in the unit that a person would.

    >>> duration(4300)
    '72 minutes'
    """
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds" if seconds >= 1.5 else "a second"
