"""The body of jobs/benchmark.py: run suites; a table on the screen, rows in the report and MLflow."""

from __future__ import annotations

import importlib
import platform
from pathlib import Path

import torch

from fedray.benchmark.bench import Bench
from fedray.benchmark.settings import BenchmarkSettings
from fedray.reporting.job import Job, Status
from fedray.reporting.report import Measured, Report, Who
from fedray.reporting.screen import Screen
from fedray.schema import attributes
from fedray.types import FedrayError


class Benchmark(Job[BenchmarkSettings, Screen]):
    """One run of the suites."""

    name = "benchmark"

    def __init__(self, settings: BenchmarkSettings) -> None:
        screen, title = Screen(settings.zoo.name), f"benchmark {settings.suite}"
        super().__init__(settings, screen, title, settings.tracking)
        self.rows: list[Measured] = []

    def work(self) -> None:
        settings, tracker = self.settings, self.tracker
        torch.set_num_threads(settings.threads or torch.get_num_threads())
        self.screen.line(f"{machine()} (zoo={settings.zoo.name}), medians of {settings.repeats} alternating runs")
        tracker.tags(job="benchmark", zoo=settings.zoo.name, machine=machine())
        tracker.params(**attributes(settings, "suite", "tokens", "repeats", "device"))
        with self.screen.console.status("") as shown:
            line, update = self.screen.line, shown.update
            bench = Bench(settings, lambda row: line(_line(row)), lambda what: update(f"measuring {what}"))
            self.rows = bench.rows
            for suite in settings.suites:
                shown.update(f"preparing {suite}")
                importlib.import_module(f"fedray.benchmark.{suite}").measure(bench)
        if not self.rows:
            raise FedrayError(f"no row of suite={settings.suite} begins with {', '.join(settings.rows)}")

    def report(self, status: Status) -> Report:
        settings = self.settings
        who, rows = Who(settings.receiver, (settings.sender,)), tuple(self.rows)
        return Report(self.name, settings.zoo.name, settings.seed, status, who, task=settings.suite, rows=rows)

    def keep(self, report: Report) -> None:
        self.tracker.metrics({row.name: row.value for row in self.rows})
        self.tracker.metrics({f"{row.name}.ratio": row.ratio for row in self.rows})

    def show(self, report: Report) -> None:
        headings = ("name", "value", "unit", "baseline", "against", "ratio", "limit", "holds")
        self.screen.table("Benchmarks", headings, map(_cells, self.rows))


def run(settings: BenchmarkSettings) -> int:
    """Run the job; returns the exit code. Prints `report: PATH` last. Raises FedrayError."""
    return Benchmark(settings).run()


def machine() -> str:
    """Describe the machine in a line."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _line(row: Measured) -> str:
    against = f", {row.ratio:.3g} x {row.against} ({_number(row.baseline)})" if row.ratio is not None else ""
    return f"{row.name}: {_number(row.value)} {row.unit}{against}"


def _cells(row: Measured) -> tuple[str, ...]:
    limit = "" if row.limit is None else f"{row.sense} {row.limit:g}"
    holds = {True: "yes", False: "no", None: ""}[row.holds]
    ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
    return row.name, _number(row.value), row.unit, _number(row.baseline), row.against, ratio, limit, holds


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
