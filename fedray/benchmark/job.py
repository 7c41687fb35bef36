"""The body of jobs/benchmark.py: suites one after the other, a table on the screen, rows in the report and MLflow."""

from __future__ import annotations

import importlib
import platform
import sys
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedray import report as reports
from fedray.benchmark.bench import Bench
from fedray.benchmark.settings import BenchmarkSettings
from fedray.report import Measured, Report
from fedray.tracking import Tracker
from fedray.types import FedrayError


def run(settings: BenchmarkSettings) -> int:
    """Do the job; returns the exit code. Prints `report: PATH` last. Raises FedrayError."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    console.print(Text(f"{machine()} (zoo={settings.zoo.name}), medians of {settings.repeats} alternating runs"))
    status = "failed"
    with Tracker(settings.tracking, settings.output, name=f"benchmark {settings.suite}") as tracker:
        tracker.tags(job="benchmark", zoo=settings.zoo.name, machine=machine())
        tracker.params(suite=settings.suite, tokens=settings.tokens, repeats=settings.repeats, device=settings.device)
        with console.status("") as shown:
            turn = lambda what: shown.update(f"measuring {what}")  # noqa: E731
            bench = Bench(settings, lambda row: console.print(_line(row), soft_wrap=True), turn)
            try:
                for suite in settings.suites:
                    shown.update(f"preparing {suite}")
                    importlib.import_module(f"fedray.benchmark.{suite}").measure(bench)
                if not bench.rows:
                    raise FedrayError(f"no row of suite={settings.suite} begins with {', '.join(settings.rows)}")
                status = "complete"
            except KeyboardInterrupt:
                status = "interrupted"
            finally:
                path = _leave(settings, bench, status)
        console.print(_table(bench.rows, settings.zoo.name))
        tracker.metrics({row.name: row.value for row in bench.rows})
        tracker.metrics({f"{row.name}.ratio": row.ratio for row in bench.rows})
        tracker.artifact(path)
    print(f"report: {path.absolute()}", flush=True)
    return 130 if status == "interrupted" else 0


def machine() -> str:
    """What the figures were measured on, in a line."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _leave(settings: BenchmarkSettings, bench: Bench, status: str) -> Path:
    report = Report(
        "benchmark",
        settings.zoo.name,
        settings.receiver,
        (settings.sender,),
        settings.seed,
        status,
        task=settings.suite,
        rows=tuple(bench.rows),
    )
    return reports.write(report, settings.output)


def _line(row: Measured) -> str:
    against = f", {row.ratio:.3g} x {row.against} ({_number(row.baseline)})" if row.ratio is not None else ""
    return f"{row.name}: {_number(row.value)} {row.unit}{against}"


def _table(rows: list[Measured], zoo: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"Benchmarks (zoo={zoo})", title_justify="left")
    for heading in ("name", "value", "unit", "baseline", "against", "ratio", "limit", "holds"):
        table.add_column(heading)
    for row in rows:
        limit = "" if row.limit is None else f"{row.sense} {row.limit:g}"
        holds = {True: "yes", False: "no", None: ""}[row.holds]
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        cells = (row.name, _number(row.value), row.unit, _number(row.baseline), row.against, ratio, limit, holds)
        table.add_row(*map(Text, cells))
    return table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
