"""The frame of every job: what was found is kept before it is shown, however the work ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from scarce import full_disk

from fedray.reporting import report as reports
from fedray.reporting.job import Job, Status
from fedray.reporting.report import Report
from fedray.reporting.screen import Screen
from fedray.types import FedrayError


@dataclass(frozen=True)
class Told:
    output: Path


class Errand(Job[Told, Screen]):
    """Notes what the frame asks of it, in order."""

    name = "errand"

    def __init__(self, output: Path, work: Callable[[], None] = lambda: None, *, private: bool = False) -> None:
        super().__init__(Told(output), Screen("tiny"), private=private)
        self.do, self.asked = work, list[str]()

    def work(self) -> None:
        self.asked.append("work")
        self.do()

    def report(self, status: Status) -> Report | None:
        return Report("errand", "tiny", 0, status)

    def keep(self, report: Report) -> None:
        self.asked.append(f"keep {reports.read(self.settings.output).status}")

    def show(self, report: Report) -> None:
        self.asked.append(f"show {report.status}")


def fail(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_it_is_kept_and_then_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errand = Errand(tmp_path)
    assert errand.run() == 0
    assert errand.asked == ["work", "keep complete", "show complete"]
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {tmp_path / 'report.json'}"


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "interrupted"), (FedrayError("no fuser"), "failed"), (RuntimeError("a bug"), "failed")],
)
def test_it_is_kept_however_the_work_ends(tmp_path: Path, error: BaseException, status: str) -> None:
    errand = Errand(tmp_path, fail(error))
    if status == "interrupted":
        assert errand.run() == 130
    else:
        with pytest.raises(type(error), match=str(error)):
            errand.run()
    assert errand.asked == ["work", f"keep {status}", f"show {status}"]
    assert reports.read(tmp_path).status == status


@pytest.mark.parametrize(
    "trouble", [UnicodeEncodeError("ascii", "±", 0, 1, "no"), BrokenPipeError(), KeyboardInterrupt()]
)
def test_a_screen_that_fails_costs_no_report(tmp_path: Path, trouble: BaseException) -> None:
    errand = Errand(tmp_path)
    errand.show = lambda report: fail(trouble)()
    with pytest.raises(type(trouble)):
        errand.run()
    assert reports.read(tmp_path).status == "complete"


def test_a_report_that_no_disk_takes_is_still_shown(tmp_path: Path) -> None:
    errand = Errand(tmp_path)
    with full_disk(10), pytest.raises(FedrayError, match=r"report.json cannot be written"):
        errand.run()
    assert errand.asked == ["work", "show complete"]


def test_the_first_failure_is_the_one_that_is_told(tmp_path: Path) -> None:
    errand = Errand(tmp_path, fail(FedrayError("the checkpoint takes no more")))
    with full_disk(10), pytest.raises(FedrayError, match="the checkpoint takes no more"):
        errand.run()


def test_a_private_report_is_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    usual = (tmp_path / "usual").stat().st_mode
    for private in (False, True, False):
        Errand(tmp_path, private=private).run()
        mode = (tmp_path / "report.json").stat().st_mode
        assert mode & 0o777 == 0o600 if private else mode == usual


def test_a_report_holds_no_password(tmp_path: Path) -> None:
    there = Report("errand", "tiny", 0, "failed", task="http://me:se@cret@host/x.jsonl")
    reports.write(there, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["task"] == "http://***@host/x.jsonl"
