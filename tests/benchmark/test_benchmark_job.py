"""jobs/benchmark.py: rows with their baselines and limits, on the screen, in the report, and only those asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedray.benchmark.bench import Bench
from fedray.benchmark.clock import in_turns
from fedray.benchmark.settings import BenchmarkSettings, check_benchmark
from fedray.jobs import benchmark
from fedray.reporting import report as reports
from fedray.reporting.report import Measured, Report, Who
from fedray.settings.settings import RaySettings, TrackingSettings, ZooSettings
from fedray.types import FedrayError

QUIET = TrackingSettings(enabled=False)


def test_ways_run_in_turns_and_the_median_counts() -> None:
    asked: list[str] = []
    seconds = in_turns({"a": lambda: asked.append("a"), "b": lambda: asked.append("b")}, 3, warm=1)
    assert asked == ["a", "b"] * 4 and seconds.keys() == {"a", "b"} and min(seconds.values()) >= 0


def test_a_row_knows_its_ratio_and_whether_it_holds() -> None:
    bench = Bench(BenchmarkSettings())
    bench.row("wire.x", 3.0, "s", baseline=2.0, against="copy", at_most=2.0)
    bench.row("wire.y", 3.0, "s", baseline=2.0, at_least=2.0)
    bench.row("wire.z", 3.0, "s", at_least=2.0)
    bench.row("wire.w", 3.0, "s")
    assert [row.ratio for row in bench.rows] == [1.5, 1.5, None, None]
    assert [row.holds for row in bench.rows] == [True, False, True, None]


def test_only_rows_that_are_asked_for_are_kept() -> None:
    bench = Bench(BenchmarkSettings(rows=("wire.b",)))
    assert bench.wants("wire.a", "wire.bytes") and not bench.wants("wire.a")
    bench.row("wire.a", 1.0, "s")
    bench.row("wire.bytes", 1.0, "byte")
    assert [row.name for row in bench.rows] == ["wire.bytes"]


def test_rows_come_back_from_the_report(tmp_path: Path) -> None:
    row = Measured("wire.x", 3.0, "s", 2.0, 1.5, 2.0, "at most", "copy")
    reports.write(Report("benchmark", "shapes", 0, "complete", Who("a", ("b",)), rows=(row,)), tmp_path)
    assert reports.read(tmp_path).rows == (row,) and reports.read(tmp_path).evaluated == ()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_wire_from_actor_to_actor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = BenchmarkSettings("wire", repeats=1, tracking=QUIET, output=tmp_path)
    assert benchmark.run(settings) == 0
    rows = {row.name: row for row in reports.read(tmp_path).rows if isinstance(row, Measured)}
    assert {"wire.actor_to_actor", "wire.over_plain_tensors", "wire.finite_check"} <= rows.keys()
    assert all(row.value > 0 and row.ratio for row in rows.values() if row.unit == "s")
    assert "wire.over_plain_tensors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (BenchmarkSettings(repeats=0), "repeats must be from 1"),
        (BenchmarkSettings(sender="qwen3-0.6b"), "more than one of receiver"),
        (BenchmarkSettings(ray=RaySettings(), tokens=1), "tokens must be from 2"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings: BenchmarkSettings, says: str) -> None:
    with pytest.raises(FedrayError, match=says):
        check_benchmark(settings)


def test_a_training_step_is_counted_in_tokens(tmp_path: Path) -> None:
    settings = BenchmarkSettings("train", ZooSettings("tiny"), repeats=1, tokens=24, tracking=QUIET, output=tmp_path)
    assert benchmark.run(settings) == 0
    (row,) = reports.read(tmp_path).rows
    assert isinstance(row, Measured) and (row.name, row.unit) == ("train.tokens_per_s", "token/s")
    assert row.value > 0 and row.ratio == pytest.approx(row.value / (row.baseline or 0))
