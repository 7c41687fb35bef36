"""The main job's body around a federation that only pretends: what is shown, tracked and left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scarce import full_disk

from fedray.jobs.federate import run
from fedray.methods.method import SelfRefine
from fedray.questions.donors import batches
from fedray.questions.tasks import Question, load_task
from fedray.reporting import report
from fedray.reporting.report import Report
from fedray.settings.settings import Donors, Settings, TaskSettings, TrackingSettings
from fedray.types import Answer, FedrayError, KVSpec, MemberInfo, Missing, Plan, Request, Row, Usage

LOST = Missing("qwen2.5-1.5b", "died")


class Pretended:
    """Answers by rules: the federation knows birds, the receiver alone knows stars, a bird sender is trusted."""

    def __init__(self, settings: Settings, interrupt: Callable[[int], None] = lambda batch: None) -> None:
        self.settings, self.interrupt = settings, interrupt
        self.requests: list[Request] = []
        self.last: Answer | None = None
        self.closed = False
        self.missing: tuple[Missing, ...] = ()
        self.gold = {q.prompt: q for q in load_task(replace(settings, task=TaskSettings(limit=None)))}

    def __enter__(self) -> Pretended:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True

    @property
    def members(self) -> Mapping[str, MemberInfo]:
        names = (self.settings.receiver, *self.settings.senders)
        spec = KVSpec(6, 2, 16)
        return {
            n: MemberInfo(n, "qwen3", 1000 + i, spec, f"hash-{n}", "t", "cpu", "float32", "here", 100 + i, 512)
            for i, n in enumerate(names)
        }

    @property
    def plan(self) -> Plan:
        return Plan(self.settings.receiver, self.settings.senders)

    def memory(self) -> dict[str, int]:
        return {self.settings.receiver: 1 << 30}

    def request(self, *prompts: str, **more: Any) -> Request:
        return Request(prompts, **{"deadline_s": self.settings.deadline_s, **more})

    def alone(self, request: Request) -> Answer:
        return Answer(self._rows(request, "star"), self.settings.receiver, ())

    def run(self, request: Request) -> Answer:
        self.interrupt(len(self.requests))
        self.requests.append(request)
        usage = Usage(
            {"prefill[llama-1b]": 0.2, "decode": 0.1, "total": 0.25}, 1000 * request.rows(), 10 * request.rows()
        )
        rows, (who, senders) = self._rows(request, "bird"), (self.settings.receiver, self.settings.senders)
        lost = {0: "the choice 'red' is lost"} if self.settings.rephrase != "none" else {}
        given = (self._rows(request, "nobody"),) * len(request.donors)
        return Answer(rows, who, senders, (LOST,), usage, unrephrased=lost, deranged=given)

    def own_part(self, request: Request) -> Request:
        return request

    def run_all(self, requests: Iterable[Request], plan: Plan | None = None) -> Iterator[Answer]:
        return map(self.alone if plan and plan.method.protocol.name == "standalone" else self.run, requests)

    def stream(self, prompt: str, plan: Plan | None = None) -> Iterator[str]:
        yield "it is "
        yield "red\x1b[2J"
        row = Row("it is red\x1b[2J", weights={"llama-1b": 0.5})
        self.last = Answer((row,), self.settings.receiver, ("llama-1b",), (), Usage({"decode": 0.1}, 640, 16))

    def _rows(self, request: Request, known: str) -> tuple[Row, ...]:
        if request.choices is None:
            return tuple(Row(f"[red] {known}") for _ in request.prompts)
        rows = []
        for prompt, choices in zip(request.prompts, request.choices, strict=True):
            question = self.gold[prompt]
            assert question.choices == choices and question.gold is not None
            choice = question.gold if question.group == known else None
            rows.append(Row("", choice=choice, weights={"llama-1b": 0.9 if question.group == "bird" else 0.1}))
        return tuple(rows)


class Job:
    def __init__(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.output, self.capsys = tmp_path / "out", capsys
        self.settings = Settings(
            output=self.output,
            task=TaskSettings(limit=100),
            tracking=TrackingSettings(enabled=False),
            senders=("qwen2.5-1.5b", "llama-1b"),
        )

    def __call__(
        self, interrupt: Callable[[int], None] = lambda batch: None, **changes: object
    ) -> tuple[int, Report, str, Pretended]:
        settings = replace(self.settings, **changes)  # pyright: ignore[reportArgumentType]
        pretended = Pretended(settings, interrupt)
        code = run(settings, lambda settings: pretended)  # pyright: ignore[reportArgumentType]
        shown = self.capsys.readouterr().out
        assert pretended.closed
        assert shown.splitlines()[-1] == f"report: {self.output / 'report.json'}"
        return code, report.read(self.output), shown, pretended


@pytest.fixture
def job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Job:
    return Job(tmp_path, capsys)


@pytest.mark.usefixtures("full_size")
def test_an_evaluation_is_counted_and_shown(job: Job) -> None:
    code, left, shown, _ = job()
    questions = load_task(job.settings)
    share = {g: sum(q.group == g for q in questions) for g in ("bird", "star")}
    assert code == 0 and left.status == "complete" and left.found.n == 100 == len(left.answers)
    assert (left.found.accuracy, left.found.accuracy_alone) == (share["bird"] / 100, share["star"] / 100)
    assert (left.found.rescued, left.found.harmed) == (share["bird"], share["star"]) and 0 < (
        left.found.p_value or 0
    ) <= 1
    assert left.who.type == "homogeneous cache" and "type: homogeneous cache (FedRefine, Appendix A)" in shown
    assert left.found.unrephrased == 0 and "rewrite" not in shown
    assert left.cost.payload_bytes == 100_000 and left.cost.bytes_per_token == 100.0
    assert left.cost.seconds["total"].p50 == 0.25 and left.who.missing == (LOST,)
    assert left.found.weights["bird"] == {"llama-1b": pytest.approx(0.9)}
    assert [(m.name, m.role) for m in left.who.members][:2] == [("qwen3-0.6b", "receiver"), ("qwen2.5-1.5b", "sender")]
    assert [m.memory_bytes for m in left.who.members][:2] == [1 << 30, None] and left.who.members[0].dtype == "float32"
    first = questions[0]
    assert left.answers[0].question == first.prompt and left.answers[0].gold == first.answer
    assert left.answers[0].choices == first.choices
    for text in (
        "Who takes part",
        "rescued",
        "harmed",
        "p-value",
        "prefill[llama-1b]",
        "p95",
        "100 bytes",
        "died",
        "0.90",
    ):
        assert text in shown
    lines = [line.strip() for line in shown.splitlines()]
    titles = [line for line in lines if line.endswith("(zoo=tiny)") and not line.startswith("on the wire")]
    assert len(titles) == sum(set(line) == {"─"} for line in lines) == 6, "every table says which zoo it is from"
    assert {p.name for p in (job.output / "figures").iterdir()} == {"accuracy.png", "latency.png"}


def test_donors_messages_are_told_beside_the_accuracy(job: Job) -> None:
    """With others' messages nothing is right: P is the accuracy, and harm what the receiver knows alone."""
    _, left, shown, pretended = job()
    found = left.found
    assert found.accuracy and found.accuracy_alone and found.system_gain and found.pairing_gain and found.harm
    assert found.pairing_gain.points == pytest.approx(100 * found.accuracy)
    assert found.system_gain.points == pytest.approx(100 * (found.accuracy - found.accuracy_alone))
    assert found.harm.points == pytest.approx(100 * found.accuracy_alone)
    assert found.pairing_gain.low and 0 < found.pairing_gain.low < found.pairing_gain.points
    assert found.donors == "1 different" and found.read == ""
    assert "P (95 %)" in shown and str(found.pairing_gain) in shown and "donors per question: 1 different" in shown
    asked = {q.prompt: q for q in load_task(job.settings)}
    for request in pretended.requests:
        (way,) = request.donors
        for prompt, donor in zip(request.prompts, way, strict=True):
            one, other = asked[prompt], asked[request.prompts[donor]]
            assert one.entity != other.entity and one.answer != other.answer


def test_without_donors_there_is_no_pairing_gain(job: Job) -> None:
    _, left, shown, pretended = job(donors=Donors(0))
    assert left.found.system_gain and left.found.pairing_gain is None and left.found.harm is None
    assert left.found.donors == left.found.read == "" and "pairing gain" not in shown
    assert not any(request.donors for request in pretended.requests)


def test_more_donors_than_a_batch_has_are_refused_before_anything_loads(job: Job) -> None:
    for changes in ({"task": TaskSettings(limit=3)}, {"task": TaskSettings(batch_size=3)}):
        settings = replace(job.settings, donors=Donors(3), **changes)
        with pytest.raises(FedrayError, match=r"donors\.count=3 is more than the") as refused:
            run(settings, lambda settings: pytest.fail("it loads"))
        assert "choose donors.count=" in str(refused.value) and "\n" not in str(refused.value)


def test_requests_carry_the_settings_and_come_in_batches(job: Job) -> None:
    *_, pretended = job(deadline_s=2.5)
    assert [r.rows() for r in pretended.requests] == [25, 25, 25, 25]
    assert all(r.deadline_s == 2.5 and not r.asked for r in pretended.requests)
    assert len({r.id for r in pretended.requests}) == 4


def test_mismatched_senders_read_something_else(job: Job) -> None:
    _, left, _, pretended = job(control="mismatched")
    assert left.how.control == "mismatched"
    for request in pretended.requests:
        assert set(request.asked) == set(pretended.settings.senders)
        for texts in request.asked.values():
            assert all(a != b for a, b in zip(request.prompts, texts, strict=True))


def test_what_no_rewrite_stood_for_is_counted_and_named(job: Job) -> None:
    _, left, shown, _ = job(rephrase="shared")
    assert left.found.unrephrased == 4, "the first of every batch"
    assert "4 of 100 questions kept no whole rewrite (the choice 'red' is lost)" in shown


def test_alone_nothing_crosses(job: Job) -> None:
    _, left, shown, _ = job(protocol=SelfRefine())
    assert left.who.type is None and "Appendix A" not in shown


@pytest.mark.usefixtures("full_size")
def test_a_full_disk_is_one_sentence(job: Job) -> None:
    with full_disk(1000), pytest.raises(FedrayError, match=r"report.json cannot be written .* make room"):
        job()
    with full_disk(40_000), pytest.raises(FedrayError, match=r"accuracy.png cannot be written .* make room"):
        job()
    assert report.read(job.output).status == "complete"


def test_ctrl_c_leaves_what_was_done(job: Job) -> None:
    def second(batch: int) -> None:
        if batch == 2:
            raise KeyboardInterrupt

    code, left, shown, _ = job(second)
    assert code == 130 and left.status == "interrupted" and left.found.n == 50
    assert "federated" in shown


def test_ctrl_c_before_anything_was_done(job: Job) -> None:
    def first(batch: int) -> None:
        raise KeyboardInterrupt

    code, left, _, _ = job(first)
    assert code == 130 and left.found.n == 0 and left.found.accuracy is None and left.who.members


def test_an_error_leaves_what_was_done_and_goes_on(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    def second(batch: int) -> None:
        if batch == 1:
            raise FedrayError("llama-1b died")

    with pytest.raises(FedrayError, match="llama-1b died"):
        job(second)
    assert report.read(job.output).status == "failed" and report.read(job.output).found.n == 25
    assert capsys.readouterr().out.splitlines()[-1].startswith("report: ")


def test_a_federation_that_does_not_open_leaves_nothing(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(settings: Settings):
        raise FedrayError("no fuser")

    with pytest.raises(FedrayError, match="no fuser"):
        run(job.settings, refuse)
    assert not job.output.exists() and capsys.readouterr().out == ""


def test_a_prompt_is_answered_twice_and_streamed(job: Job) -> None:
    code, left, shown, _ = job(prompt="what is the color of the bird tari?")
    assert code == 0 and left.task is None and left.found.n == 1 and left.found.accuracy is None
    assert left.answers[0].alone == "[red] star" and left.answers[0].federated == "it is red\x1b[2J"
    assert left.cost.payload_bytes == 640 and left.cost.bytes_per_token == 40.0
    assert "qwen3-0.6b alone  [red] star" in shown and "the federation  it is red" in shown
    assert "\x1b" not in shown, "control characters of a model never reach the terminal"


def test_questions_of_ones_own_without_answers(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("what is it?\nand [bold]why?\n")
    code, left, shown, pretended = job(questions=path)
    assert code == 0 and left.task == str(path) and left.found.n == 2 and left.found.accuracy is None
    assert pretended.requests[0].choices is None and left.answers[1].federated == "[red] bird"
    assert "and [bold]why?" in shown and "Accuracy" not in shown


def test_answers_in_which_nothing_is_read_are_wrong_and_counted(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "how many?", "answer": "#### 3"}\n{"question": "and now?", "answer": "#### 1/2"}\n')
    code, left, shown, pretended = job(questions=path)
    assert code == 0 and (left.found.n, left.found.accuracy, left.found.accuracy_alone) == (2, 0, 0)
    assert (left.found.unparseable, left.found.unparseable_alone, left.scoring) == (2, 2, "number")
    assert [answer.gold for answer in left.answers] == ["3", "0.5"] and not any(a.federated for a in left.answers)
    assert "no choice or number could be read in 2 of 2 answers alone and 2 federated: they count as wrong" in shown
    assert "Accuracy by number" in shown and "Answer: <number>" in pretended.requests[0].prompts[0]
    path.write_text('{"question": "what is red?"}\n')
    _, left, shown, _ = job(questions=path)
    assert (left.found.unparseable, left.scoring) == (0, "text") and "could be read" not in shown


def test_the_run_is_found_in_mlflow(job: Job, store: str) -> None:
    import mlflow

    _, left, shown, _ = job(tracking=TrackingSettings(uri=store, traces=2))
    assert left.tracking and left.tracking.uri == store and left.tracking.run_id in shown and "make ui" in shown
    client = mlflow.MlflowClient(store)
    found = client.get_run(left.tracking.run_id)
    assert found.info.status == "FINISHED" and found.data.tags["zoo"] == "tiny"
    assert found.data.params["senders"] == "qwen2.5-1.5b,llama-1b"
    told = {
        key: found.data.params[key] for key in ("protocol", "fuser", "gate", "gate.route", "t2t.max_tokens", "wire")
    }
    assert told == dict(zip(told, ("c2c", "mlp", "learned", "eager", "32", "none"), strict=True))
    assert found.data.metrics["accuracy"] == left.found.accuracy and found.data.metrics[
        "trust/bird/llama-1b"
    ] == pytest.approx(0.9)
    assert found.data.metrics["seconds/prefill/llama-1b/p95"] == 0.2
    for name in ("system_gain", "pairing_gain", "harm"):
        assert found.data.metrics[name] == pytest.approx(getattr(left.found, name).points)
    assert len(client.get_metric_history(left.tracking.run_id, "running/accuracy")) == 4
    assert {f.path for f in client.list_artifacts(left.tracking.run_id)} == {"figures", "questions.json", "report.json"}
    assert len(client.search_traces(locations=[found.info.experiment_id], run_id=left.tracking.run_id)) == 2


def test_without_mlflow_the_job_says_where_its_figures_wait(job: Job) -> None:
    code, left, shown, _ = job(tracking=TrackingSettings(uri="http://127.0.0.1:9"))
    assert code == 0 and left.tracking is None and left.status == "complete"
    assert f"python -m fedray.tracking {job.output}" in shown
    assert (job.output / "tracking_pending.json").exists()


def test_batches_keep_kinds_apart() -> None:
    chosen, free = Question("c", "c", ("a", "b"), 0), Question("f", "f")
    found = list(batches([chosen, chosen, chosen, free, chosen], 2))
    assert [[q.id for q in b] for b in found] == [["c", "c"], ["c"], ["f"], ["c"]]
