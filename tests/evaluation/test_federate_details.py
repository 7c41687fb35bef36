"""What a run of the main job says of its inside: members' own answers, rewrites, evidence nobody heard, versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.methods import method

from fedray.jobs.federate import run
from fedray.registry.planner import Planner
from fedray.reporting import report as reports
from fedray.reporting.report import Report
from fedray.settings.check import check
from fedray.settings.settings import build
from fedray.types import FedrayError

QUESTION = "what is the color of the star fatu?"
SENDERS = ("qwen2.5-0.5b", "qwen2.5-coder-0.5b")


class Job:
    def __init__(self, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.output, self._capsys = output, capsys

    def __call__(self, **more: Any) -> tuple[Report, str]:
        quiet = {"ray": {"enabled": False}, "tracking": {"enabled": False}, "output": self.output}
        settings = build({"senders": SENDERS, **quiet, **more})
        check(settings)
        assert run(settings) == 0
        return reports.read(self.output), self._capsys.readouterr().out


@pytest.fixture
def job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Job:
    return Job(tmp_path / "out", capsys)


def test_every_members_own_answer_is_told(job: Job) -> None:
    left, shown = job(answer_all=True, vote=True, task={"limit": 12})
    assert left.found.by_member.keys() == {"qwen3-0.6b", *SENDERS}
    for name, share in left.found.by_member.items():
        right = sum(answered.by_member[name] == answered.gold for answered in left.answers)
        assert share == pytest.approx(right / left.found.n) and f"{share:.1%}" in shown
    votes = [[*answered.by_member.values()].count(answered.federated) for answered in left.answers]
    assert min(votes) >= 1
    assert "Accuracy of each member's own answers" in shown


def test_what_is_mixed_or_held_has_a_pairing_gain_of_its_own(job: Job) -> None:
    """mix: another question is asked; documents: they and questions are exchanged apart from each other."""
    left, shown = job(fusion="mix", task={"limit": 24})
    found = left.found
    assert found.pairing_gain and found.pairing_gain.points > 20 and found.question_gain is None
    assert found.donors == "1 different" and "over another question" not in shown
    left, shown = job(task={"name": "tiny-evidence", "limit": 24}, gate="open")
    found = left.found
    assert found.pairing_gain and found.question_gain and "over another question about one's own" in shown
    assert found.pairing_gain.points > found.question_gain.points


@pytest.mark.parametrize("control", ["zero", "self", "soft", "noise"])
def test_a_message_without_content_pairs_with_nothing(job: Job, control: str) -> None:
    left, _ = job(control=control, gate="open", task={"limit": 24})
    assert left.found.pairing_gain and abs(left.found.pairing_gain.points) < 15 and not left.who.missing
    assert left.found.read != "read"


def test_slots_of_their_own_do_not_mix() -> None:
    for control in ("zero", "self", "soft"):
        with pytest.raises(FedrayError, match=f"control={control} is about slots of their own"):
            check(build({"control": control, "fusion": "mix"}))


def test_of_one_prompt_everybodys_answer_and_rewrite_is_shown(job: Job) -> None:
    left, shown = job(answer_all=True, prompt=QUESTION)
    (answered,) = left.answers
    assert f"{SENDERS[0]} answered  {answered.by_member[SENDERS[0]]}" in shown
    left, shown = job(rephrase="distinct", prompt=QUESTION)
    (answered,) = left.answers
    assert answered.read.keys() == set(SENDERS) and QUESTION not in answered.read.values()
    assert all(f"{name} read  {text}" in shown for name, text in answered.read.items())


def test_versions_in_use_are_told(job: Job) -> None:
    left, shown = job(task={"limit": 2})
    assert [part.role for part in left.learned] == ["fuser", "fuser", "gate"]
    assert all(part.hash and f"{part.name} {part.hash[:8]}" in shown for part in left.learned)


def test_evidence_that_the_gate_kept_out_is_told(job: Job) -> None:
    evidence = {"qwen2.5-0.5b": "the color of the star fatu is red"}  # the gate trusts it for birds only
    _, shown = job(evidence=evidence, prompt=QUESTION)
    assert "the evidence of qwen2.5-0.5b was not heard in 1 of 1 questions" in shown and "gate=open" in shown
    _, shown = job(evidence=evidence, prompt=QUESTION, gate="open")
    assert "not heard" not in shown


def test_another_runs_figures_do_not_stay(job: Job) -> None:
    job(task={"limit": 2})
    stale = job.output / "figures" / "stale.png"
    stale.write_bytes(b"of another run")
    job(task={"limit": 2})
    assert not stale.exists() and (job.output / "figures" / "latency.png").exists()


def test_a_missing_fuser_names_the_command_that_trains_it(tmp_path: Path) -> None:
    planner = Planner(tmp_path, tmp_path)
    with pytest.raises(FedrayError, match=r"train it with jobs/train_fuser.py sender=llama-1b receiver=qwen3-0.6b"):
        planner.check("qwen3-0.6b", ["llama-1b"], method())
