"""Questions per second of zoo=tiny: in batches and one at a time, and batches that overlap; always the same answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from fedray.benchmark.bench import Bench
from fedray.federation.federation import Federation
from fedray.questions.tasks import Question, load_task, request_fields
from fedray.settings.settings import Settings, build
from fedray.types import Answer, FedrayError

BATCHED, PIPELINED = "eval.batched_over_single", "eval.pipelined_over_sequential"
QUESTIONS, MORE, BATCH = 96, 256, 32
Choices = list[int | None]


def rows(bench: Bench) -> None:
    """Measure the default federation of zoo=tiny; its questions are scored as an evaluation scores them."""
    if bench.wants(BATCHED):  # in this process
        settings = build({"task": {"limit": QUESTIONS}, "ray": {"enabled": False}})
        _row(bench, BATCHED, settings, [(BATCH, 1), (1, 1)], "in a batch", "one at a time", at_least=5.0)
    if bench.wants(PIPELINED) and bench.settings.ray.enabled:
        settings = build({"task": {"limit": MORE}, "ray": bench.settings.ray})
        against = "one batch at a time on Ray"
        _row(bench, PIPELINED, settings, [(BATCH, 2), (BATCH, 1)], "where batches overlap", against)


def _asking(fed: Federation, settings: Settings) -> Callable[[int, int], Choices]:
    """Make a function that asks all questions, so many in a batch and so many batches in flight."""
    questions = load_task(settings)

    def request(batch: Sequence[Question]):
        return fed.request(*(q.prompt for q in batch), **request_fields(batch, fed.plan, None))

    def ask(size: int, at_a_time: int) -> Choices:
        requests = (request(questions[i : i + size]) for i in range(0, len(questions), size))
        return list(_choices(fed.run_all(requests, at_a_time=at_a_time)))

    return ask


def _choices(answers: Iterable[Answer | FedrayError]) -> Iterable[int | None]:
    for answer in answers:
        if isinstance(answer, FedrayError):
            raise answer
        yield from (row.choice for row in answer.rows)


def _row(
    bench: Bench,
    name: str,
    settings: Settings,
    ways: Sequence[tuple[int, int]],
    where: str,
    against: str,
    at_least: float | None = None,
) -> None:
    """Measure the first way's throughput over the second's. Raises FedrayError where their answers differ.

    ways: how many questions in a batch, and batches in flight.
    """
    with Federation(settings) as fed:
        ask = _asking(fed, settings)
        asked = {str(way): partial(ask, *way) for way in ways}
        answers = [way() for way in asked.values()]
        questions = len(answers[0])
        if different := sum(one != other for one, other in zip(*answers, strict=True)):
            raise FedrayError(f"{different} of {questions} questions are answered differently {where}")
        value, baseline = (questions / s for s in bench.seconds(against, asked, warm=0).values())
    bench.row(name, value, "questions/s", baseline=baseline, against=against, at_least=at_least)
