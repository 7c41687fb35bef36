"""Measure seconds, bytes and memory: python jobs/benchmark.py suite=wire zoo=shapes"""

from __future__ import annotations

from fedray.benchmark.settings import BenchmarkSettings
from fedray.command_line import BENCHMARKS, launch


def benchmark(settings: BenchmarkSettings) -> int:
    from fedray.jobs.benchmark import run  # torch and Ray are imported after the settings are checked

    return run(settings)


if __name__ == "__main__":
    launch(benchmark, "benchmark", form=BENCHMARKS)
