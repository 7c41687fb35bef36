"""The interface of a suite of rows: settings, a clock, and the rows measured so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedray.benchmark.clock import in_turns
from fedray.benchmark.settings import BenchmarkSettings
from fedray.reporting.report import Measured


class Bench:
    """One run of the job. on_row: receives every row; on_round: every round of a measurement."""

    def __init__(
        self,
        settings: BenchmarkSettings,
        on_row: Callable[[Measured], None] = lambda row: None,
        on_round: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.settings = settings
        self.rows: list[Measured] = []
        self._on_row, self._on_round = on_row, on_round

    def wants(self, *names: str) -> bool:
        """Check whether any of these rows is to be measured."""
        return any(map(self.settings.wants, names))

    def seconds(
        self,
        what: str,
        ways: Mapping[str, Callable[[], Any]],
        *,
        warm: int = 1,
        before: Mapping[str, Callable[[], Any]] | None = None,
    ) -> dict[str, float]:
        """Measure the median seconds of each way, in turns; before: what prepares a way, unmeasured."""
        s = self.settings
        return in_turns(ways, s.repeats, s.device, warm=warm, before=before, done=lambda: self._on_round(what))

    def compare(
        self,
        name: str,
        what: str,
        ways: Mapping[str, Callable[[], Any]],
        against: str,
        *,
        warm: int = 1,
        before: Mapping[str, Callable[[], Any]] | None = None,
        **limit: float | None,
    ) -> dict[str, float]:
        """Measure two ways, add the row of the first with the second as its baseline, and return the seconds of both.

        limit: at_most or at_least, as of `row`.
        """
        found = self.seconds(what, ways, warm=warm, before=before)
        value, baseline = found.values()
        self.row(name, value, "s", baseline=baseline, against=against, **limit)
        return found

    def row(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        baseline: float | None = None,
        against: str = "",
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Add a row. against: what the baseline is; at_most, at_least: where its ratio (or, without a baseline, its
        value) should lie."""
        if not self.settings.wants(name):
            return
        limit, sense = (at_most, "at most") if at_most is not None else (at_least, "at least")
        ratio = value / baseline if baseline else None
        row = Measured(name, value, unit, baseline, ratio, limit, "" if limit is None else sense, against)
        self.rows.append(row)
        self._on_row(row)
