"""Questions per second of zoo=tiny, in batches and one at a time, with the same answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedray.benchmark.bench import Bench
from fedray.evaluation.tasks import Question, load_task, request_fields
from fedray.federation import Federation
from fedray.settings import build
from fedray.types import FedrayError

ROW = "eval.batched_over_single"
QUESTIONS, BATCH = 96, 32


def rows(bench: Bench) -> None:
    """The default federation of zoo=tiny in this process; its questions are scored as an evaluation scores them."""
    if not bench.wants(ROW):
        return
    settings = build({"task": {"limit": QUESTIONS}, "ray": {"enabled": False}})
    questions = load_task(settings)
    with Federation(settings) as fed:

        def ask(batch: Sequence[Question]) -> list[int | None]:
            answer = fed.run(fed.request(*(q.prompt for q in batch), **request_fields(batch, fed.plan, None)))
            return [row.choice for row in answer.rows]

        def ask_all(size: int) -> list[int | None]:
            batches = [questions[i : i + size] for i in range(0, len(questions), size)]
            return [choice for batch in batches for choice in ask(batch)]

        batched, single = ask_all(BATCH), ask_all(1)
        if batched != single:
            different = sum(one != other for one, other in zip(batched, single, strict=True))
            raise FedrayError(f"{different} of {len(questions)} questions are answered differently in a batch")
        ways: dict[str, Callable[[], object]] = {"batched": lambda: ask_all(BATCH), "single": lambda: ask_all(1)}
        seconds = bench.seconds("batches", ways, warm=0)
    per_s = {name: len(questions) / value for name, value in seconds.items()}
    bench.row(ROW, per_s["batched"], "questions/s", baseline=per_s["single"], against="one at a time", at_least=5.0)
