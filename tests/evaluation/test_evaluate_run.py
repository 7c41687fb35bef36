"""An evaluation of real LLMs of random weights, in this process: what is left behind, and what is not asked again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scarce import full_disk

from fedray.errors import MemberFailed
from fedray.evaluation.settings import EvaluateSettings, build_evaluation
from fedray.federation.federation import Federation
from fedray.jobs.evaluate import run
from fedray.methods.method import NO_GATE, T2T, Gate, Method, TextToText
from fedray.protocols import ALONE
from fedray.questions.tasks import load_task
from fedray.reporting import report
from fedray.reporting.report import Evaluated, Report
from fedray.types import Answer, FedrayError, Plan, Request

A, B = "llama-1b", "qwen2.5-1.5b"
BLOCKS = {"prefixes": {"senders": "prefixes", "protocol": ["c2c", "t2t"]}}


class Counting(Federation):
    """Counts what it is asked, and does on each request what it is told."""

    asked = 0
    on_request: Callable[[int, Plan], None] = staticmethod(lambda number, plan: None)

    def run(self, request: Request, plan: Plan | None = None) -> Answer:
        assert plan is not None
        type(self).asked += 1
        type(self).on_request(type(self).asked, plan)
        return super().run(request, plan)


class Job:
    """Runs the job, and says how much it asked."""

    def __init__(self, folder: Path, federation: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
        self.output, self.federation, self.capsys = folder / "out", federation, capsys

    def settings(self, **changes: Any) -> EvaluateSettings:
        values: dict[str, Any] = {
            **self.federation,
            "blocks": BLOCKS,
            "task": {"limit": 6, "batch_size": 4},
            "order_limit": 4,
            "latency_requests": 2,
            "ray": False,
            "tracking": {"enabled": False},
            "t2t": {"max_tokens": 2},
            "output": self.output,
        }
        return build_evaluation({**values, **changes})

    def __call__(
        self, on_request: Callable[[int, Plan], None] = lambda number, plan: None, **changes: Any
    ) -> tuple[int, Report, int]:
        """Exit code, report, and the requests that were made."""
        Counting.asked, Counting.on_request = 0, staticmethod(on_request)
        code = run(self.settings(**changes), Counting)
        self.shown = self.capsys.readouterr().out
        assert self.shown.splitlines()[-1] == f"report: {self.output / 'report.json'}"
        return code, report.read(self.output), Counting.asked


@pytest.fixture
def job(tmp_path: Path, random_federation: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> Job:
    return Job(tmp_path, random_federation, capsys)


def measured(row: Evaluated) -> Evaluated:
    """A row without what no two runs share."""
    return replace(row, cost=replace(row.cost, seconds={}, wall_s=0.0, tokens_per_s=None))


@pytest.mark.usefixtures("full_size")
def test_rows_say_who_answered_how_and_how_well(job: Job) -> None:
    code, left, asked = job()
    assert code == 0 and left.job == "evaluate" and left.status == "complete" and left.who.order
    assert left.who.order.by == "validation" and set(left.who.order.senders) == {A, B} and left.who.order.n == 4
    ways = [(row.way, row.who.senders) for row in left.rows]
    first, both = left.who.order.senders[:1], left.who.order.senders
    assert ways == [
        ("standalone", ()),
        ("c2c (gate open)", first),
        ("t2t (2 tokens)", first),
        ("c2c (gate open)", both),
        ("t2t (2 tokens)", both),
    ]
    assert asked == 3 * 1 + 5 * (2 + 2), "the order in one batch per case, each case in two and two times alone"
    alone, c2c, t2t = left.rows[0], left.rows[3], left.rows[4]
    assert alone.how == ALONE and alone.is_alone and alone.who.type is None and alone.p_value == 1.0
    assert (c2c.how.fuser.kind, c2c.how.fusion.operator, c2c.how.gate.kind, c2c.who.type) == (
        "mlp",
        "concat",
        "open",
        "heterogeneous cache",
    )
    assert c2c.how == Method(gate=Gate("open"), t2t=T2T(max_tokens=2))
    assert (
        t2t.how == Method(TextToText(), gate=NO_GATE, t2t=T2T(max_tokens=2)) and t2t.who.type == "heterogeneous token"
    )
    assert left.how == job.settings().method, "what the blocks start from"
    for row in left.rows:
        assert (
            row.found.n == 6
            and row.task == "tiny"
            and row.seeds == (0,)
            and not row.found.failed
            and not row.who.missing
        )
        assert row.found.accuracy_alone == alone.accuracy and row.found.rescued - row.found.harmed == round(
            row.gain_points * 6 / 100
        )
        assert row.cost.requests == 2 and row.cost.seconds["total"] == row.seconds and row.seconds.p50
    assert f"prefill[{A}]" in c2c.cost.seconds and f"hint[{A}]" in t2t.cost.seconds
    assert alone.cost.bytes_per_token == 0 < t2t.cost.bytes_per_token < 16 < c2c.cost.bytes_per_token
    assert t2t.cost.bytes_per_token_analytic == 8
    gate_open = c2c.cost.bytes_per_token_analytic
    assert gate_open and c2c.cost.bytes_per_token == pytest.approx(gate_open, rel=0.35), "other tokens, the same caches"
    assert {(c.a, c.b) for c in left.comparisons} == {("t2t (2 tokens)", "c2c (gate open)")} and len(
        left.comparisons
    ) == 2
    assert left.contributions == (), "nobody was left out but the last"
    table = (job.output / "table.md").read_text()
    assert "all 2" in table and "zoo=tiny" in table and "c2c (gate" in job.shown
    assert {p.name for p in (job.output / "figures").iterdir()} >= {"figure3c.png"}


def test_a_finished_run_asks_nothing_again(job: Job) -> None:
    _, left, _ = job()
    _, again, asked = job()
    assert asked == 0 and again == left


def test_a_killed_run_goes_on_with_the_row_it_was_at(job: Job) -> None:
    def killed(number: int, plan: Plan) -> None:
        if number == 10:
            raise KeyboardInterrupt

    code, left, asked = job(killed)
    assert code == 130 and left.status == "interrupted" and asked == 10
    assert [row.way for row in left.rows] == ["standalone"], "what was done can be read"
    code, whole, asked = job()
    assert code == 0 and asked == 4 * 4 and whole.status == "complete"
    job.output = job.output.with_name("other")
    _, fresh, _ = job()
    assert list(map(measured, whole.rows)) == list(map(measured, fresh.rows))
    assert whole.comparisons == fresh.comparisons and whole.who.order == fresh.who.order


def test_what_decides_a_row_is_in_its_key(job: Job) -> None:
    small: dict[str, Any] = {"blocks": {"all": {}}, "latency_requests": 0, "order": "given"}
    _, _, first = job(**small)
    assert first == 4
    for change, asked in (
        ({"task": {"limit": 6, "batch_size": 5}}, 0),  # the same batches, and so the same donors
        ({"task": {"limit": 6, "batch_size": 2}}, 3),  # others
        ({"donors": {"answer": "any"}}, 2),
        ({"donors": {"count": 0}}, 2),
        ({"donors": {"count": 0}, "task": {"limit": 6, "batch_size": 2}}, 0),  # batches decide nothing else
        ({"gate": "random"}, 2),  # the receiver alone knows no gate
        ({"seed": 1}, 4),
        ({"task": {"limit": 4, "batch_size": 4}}, 2),
        ({"task": {"limit": 6, "batch_size": 4, "split": "validation"}}, 4),
        ({"latency_requests": 1}, 6),
        ({}, 0),
    ):
        assert job(**{**small, **change})[2] == asked, change


def test_rows_have_their_pairing_gain_from_the_ledger_too(job: Job) -> None:
    small: dict[str, Any] = {"blocks": {"all": {"protocol": ["c2c", "t2t", "ensemble"]}}, "order": "given"}
    _, left, _ = job(**small, donors={"answer": "any"})
    alone, c2c, t2t, ensemble = (row.found for row in left.evaluated)
    assert alone.system_gain is None and ensemble.system_gain and ensemble.pairing_gain is None
    for found, row in ((c2c, left.evaluated[1]), (t2t, left.evaluated[2])):
        assert found.system_gain and found.pairing_gain and found.harm and row.gain_points == found.system_gain.points
        assert found.system_gain.points - found.pairing_gain.points == pytest.approx(-found.harm.points)
        count, answer = found.donors.split()
        assert 1 <= int(count) <= 3 and answer == "any"
        assert str(found.pairing_gain) in (job.output / "table.md").read_text()
    _, again, asked = job(**small, donors={"answer": "any"})
    assert asked == 0 and again.rows == left.rows


def test_too_few_donors_are_refused_before_anything_loads(job: Job) -> None:
    with pytest.raises(FedrayError, match=r"donors\.count=9 is more than"):
        run(job.settings(donors={"count": 9}), lambda settings: pytest.fail("it loads"))


def test_seeds_are_drawn_anew_and_counted_together(job: Job) -> None:
    _, left, asked = job(seeds=[3, 4], blocks={"all": {"protocol": ["t2t"]}}, order="given")
    assert asked == 2 * (2 * 2 + 2), "seconds are measured with the first seed only"
    row = left.rows[1]
    assert row.seeds == (3, 4) and row.found.n == 12 and row.cost.requests == 2
    questions = [load_task(job.settings(), seed) for seed in (3, 4)]
    assert [q.id for q in questions[0]] == [q.id for q in questions[1]] and questions[0] != questions[1]


def test_a_failed_request_counts_as_wrong_and_is_asked_again(job: Job) -> None:
    def refuse(number: int, plan: Plan) -> None:
        if plan.method.protocol.name == "t2t" and number == 3:
            raise MemberFailed("llama-1b died")

    small: dict[str, Any] = {"blocks": {"all": {"protocol": ["t2t"]}}, "latency_requests": 0, "order": "given"}
    _, left, _ = job(refuse, **small)
    row = left.rows[1]
    assert row.found.failed == 3 and row.found.n == 6 and row.who.missing[0].reason == "llama-1b died"
    assert "3 questions failed" in (job.output / "table.md").read_text()
    _, left, asked = job(**small)
    assert asked == 2 and not left.rows[1].found.failed


def test_a_missing_fuser_is_refused_before_anything_loads(job: Job) -> None:
    def load(settings: object) -> Federation:
        raise AssertionError("nothing may load")

    with pytest.raises(FedrayError, match=f"no fuser=mlp fusion=concat for {A} -> {B}"):
        run(job.settings(blocks={"x": {"senders": A, "receivers": [B]}}), load)
    assert not job.output.exists()


def test_a_gate_for_other_senders_is_refused_before_anything_is_asked(job: Job) -> None:
    Counting.asked = 0
    with pytest.raises(FedrayError, match=f"no fusion=concat gate of qwen3-0.6b for .*{A}.*train one"):
        run(job.settings(gate="learned", blocks={"alone": {"senders": "none"}, "all": {}}), Counting)
    assert Counting.asked == 0 and not (job.output / "report.json").exists()


@pytest.mark.slow
def test_questions_that_no_rewrite_stood_for_are_counted_and_leak_nothing(job: Job) -> None:
    """LLMs of random weights rephrase nothing."""
    small: dict[str, Any] = {"latency_requests": 0, "order": "given"}
    _, left, _ = job(blocks={"all": {"protocol": ["c2c", "t2t"], "rephrase": ["shared", "distinct"]}}, **small)
    alone, *rephrased = left.rows
    assert not alone.leakage and alone.found.unrephrased == 0 and len(rephrased) == 4
    for row in rephrased:
        assert row.found.unrephrased == row.found.n == 6 and row.accuracy == alone.accuracy
        assert all(told.figures["rewrites"] == told.figures["jaccard"] == 0 for told in row.leakage) and row.leakage
    table = (job.output / "table.md").read_text()
    assert "6 of 6 questions kept no whole rewrite" in table and "What rephrasing gives away" in table
    assert "What rephrasing gives away" in job.shown


@pytest.mark.usefixtures("full_size")
@pytest.mark.parametrize(
    ("bytes_left", "names"), [(500, r"rows/\w+.json"), (15_000, "figure3c.png")], ids=["a row", "a figure"]
)
def test_a_full_disk_is_one_sentence_and_loses_nothing(job: Job, bytes_left: int, names: str) -> None:
    small: dict[str, Any] = {"blocks": {"all": {"protocol": ["c2c", "t2t"]}}, "order": "given"}
    Counting.asked = 0
    with full_disk(bytes_left), pytest.raises(FedrayError, match=f"{names} cannot be written .* make room"):
        run(job.settings(**small), Counting)
    kept = len(list((job.output / "rows").iterdir()))
    assert not [path for path in job.output.rglob(".*") if path.is_file()], "no half of a file is left"
    code, left, asked = job(**small)
    assert code == 0 and left.status == "complete" and asked == 4 * (3 - kept)
    assert kept == (0 if bytes_left == 500 else 3)


def test_questions_without_answers_are_refused_before_anything_loads(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("what is it?\n")
    with pytest.raises(FedrayError, match=r'give question mine.txt:1 "choices" and an "answerKey"'):
        run(job.settings(questions=path, blocks={"all": {}}), Counting)
    rows = [{"question": f"{w}?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"} for w in "xy"]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(rows))
    _, left, _ = job(questions=path, blocks={"all": {}})
    assert left.found.n == 2 and left.rows[1].who.senders == (A, B) and left.task == str(path)


def test_a_damaged_row_is_named(job: Job) -> None:
    small: dict[str, Any] = {"blocks": {"all": {}}, "latency_requests": 0, "order": "given"}
    job(**small)
    path = sorted((job.output / "rows").iterdir())[0]
    path.write_text("{")
    with pytest.raises(FedrayError, match=f"{path.name} cannot be read .* delete it"):
        run(job.settings(**small), Counting)
    assert report.read(job.output).status == "failed"


def test_mlflow_has_a_child_for_every_row(job: Job, store: str) -> None:
    import mlflow

    _, left, _ = job(tracking={"uri": store}, blocks={"all": {"protocol": ["c2c", "t2t"]}}, order="given")
    assert left.tracking
    client = mlflow.MlflowClient(store)
    parent = client.get_run(left.tracking.run_id)
    assert parent.info.status == "FINISHED" and parent.data.tags["job"] == "evaluate"
    assert "| 2 | " in parent.data.tags["mlflow.note.content"], "the table stands on the run's page"
    (curve,) = client.get_metric_history(left.tracking.run_id, "accuracy_by_senders/tiny/t2t _2 tokens_")
    assert (curve.step, curve.value) == (2, left.rows[2].accuracy)
    found = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{left.tracking.run_id}'", order_by=["start_time"]
    )
    assert {child.data.params["protocol"] for child in found} == {"standalone", "c2c", "t2t"}
    c2c = next(child for child in found if child.data.params["protocol"] == "c2c")
    row = left.rows[1]
    assert c2c.info.status == "FINISHED" and c2c.data.params["senders"] == f"{A},{B}"
    assert c2c.data.metrics["accuracy"] == row.accuracy and c2c.data.tags["type"] == "heterogeneous cache"
    assert c2c.data.metrics["seconds/total/p50"] == pytest.approx(row.seconds.p50)
    assert {f.path for f in client.list_artifacts(left.tracking.run_id)} >= {"report.json", "table.md", "rows.json"}
