"""Settings of jobs/benchmark.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fedray.schema import Schema, within
from fedray.settings.check import check_output, check_store
from fedray.settings.settings import RaySettings, TrackingSettings, ZooSettings
from fedray.types import FedrayError

SUITES = ("wire", "fuse", "request", "train")


@dataclass(frozen=True, slots=True)
class BenchmarkSettings:
    """Settings of jobs/benchmark.py."""

    suite: Literal["wire", "fuse", "request", "train", "all"] = "all"
    zoo: ZooSettings = field(default_factory=lambda: ZooSettings("shapes"))
    rows: tuple[str, ...] = ()  # the beginnings of rows' names: only these are measured; empty is all
    repeats: int = within(9, 1, 1000)  # of each side, in turns; the median counts
    threads: int | None = within(None, 1)  # of torch; None is every core
    receiver: str = "qwen3-0.6b"
    sender: str = "qwen2.5-0.5b"
    second: str = "qwen2.5-coder-0.5b"  # another sender of the same size
    tokens: int = within(128, 2, 8192)  # of the prompt
    longest: int = within(2048, 64, 8192)  # prompt of request.seconds_at_*
    device: Literal["cpu", "cuda"] = "cpu"
    ray: RaySettings = field(default_factory=RaySettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    seed: int = 0
    output: Path = field(default_factory=lambda: Path("outputs/benchmark"))

    @property
    def suites(self) -> tuple[str, ...]:
        return SUITES if self.suite == "all" else (self.suite,)

    def wants(self, name: str) -> bool:
        """Check whether a row is to be measured."""
        return not self.rows or any(name.startswith(beginning) for beginning in self.rows)


BENCHMARK = Schema(BenchmarkSettings)


def check_benchmark(settings: BenchmarkSettings) -> None:
    """Validate settings. Raises FedrayError."""
    BENCHMARK.read(settings)
    if settings.zoo.name == "hub":
        raise FedrayError("a benchmark downloads nothing: take zoo=shapes, which has the same sizes, or zoo=tiny")
    names = (settings.receiver, settings.sender, settings.second)
    if twice := [name for name in names if names.count(name) > 1]:
        raise FedrayError(f"{twice[0]} is more than one of receiver, sender and second: choose another")
    check_output(settings.output)
    check_store(settings.tracking)
