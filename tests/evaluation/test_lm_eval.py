"""A federation as a model of lm-evaluation-harness, beside fedray's own evaluation of the same questions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedray import Federation
from fedray.evaluation.measure import Asking
from fedray.questions.tasks import Question, load_task
from fedray.settings.settings import Settings, TaskSettings, build
from fedray.types import FedrayError, Generation

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.tasks import TaskManager  # noqa: E402

from fedray.evaluation.lm_eval import FederationLM  # noqa: E402

N = 48
NO_OTHER_TASKS = TaskManager(include_defaults=False)


@pytest.fixture(scope="module")
def fed() -> Iterator[Federation]:
    settings = build({"senders": ["llama-1b"], "ray": False, "task": {"batch_size": 16}})
    with Federation(settings) as federation:
        yield federation


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return load_task(Settings(task=TaskSettings(limit=N)))


@pytest.fixture
def task(tmp_path: Path, questions: list[Question]) -> dict[str, Any]:
    """The same questions as a task of the harness."""
    rows = [
        {"question": q.prompt, "choices": list(q.choices or ()), "gold": q.gold, "answer": q.answer} for q in questions
    ]
    file = tmp_path / "tiny.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return {
        "task": "fedray-tiny",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "question",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }


def evaluate(model: FederationLM, task: dict[str, Any], **how: Any) -> dict[str, Any]:
    """By the harness, which is not to list its own thousands of tasks first."""
    return lm_eval.simple_evaluate(model, tasks=[task], bootstrap_iters=0, task_manager=NO_OTHER_TASKS, **how)


def own(fed: Federation, questions: list[Question], scoring: str) -> tuple[bool, ...]:
    """What is right by fedray's own evaluation."""
    asked = [replace(question, scoring=scoring) for question in questions]
    return Asking(fed, fed.plan, fed.settings, asked).run(0).right


def test_simple_evaluate_finds_the_same_accuracy(
    fed: Federation, questions: list[Question], task: dict[str, Any]
) -> None:
    found = evaluate(FederationLM(fed), task)
    samples = sorted(found["samples"]["fedray-tiny"], key=lambda sample: sample["doc_id"])
    for metric, scoring in (("acc", "text"), ("acc_norm", "text-normalized")):
        right = own(fed, questions, scoring)
        assert [bool(sample[metric]) for sample in samples] == list(right)
        assert found["results"]["fedray-tiny"][f"{metric},none"] == pytest.approx(sum(right) / N)
    alone = fed.plan_for(senders=[], protocol="standalone")
    without = evaluate(FederationLM(fed, alone), task)
    assert without["results"]["fedray-tiny"]["acc,none"] < found["results"]["fedray-tiny"]["acc,none"]


def test_free_answers_are_the_federations(fed: Federation, questions: list[Question], task: dict[str, Any]) -> None:
    free = {key: value for key, value in task.items() if key != "doc_to_choice"} | {
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
        "metric_list": [{"metric": "bypass"}],
    }
    found = evaluate(FederationLM(fed), free, limit=20)
    samples = sorted(found["samples"]["fedray-tiny"], key=lambda sample: sample["doc_id"])
    asked = fed.request(*(q.prompt for q in questions[:20]), generation=Generation(6))
    assert [sample["resps"][0][0] for sample in samples] == [row.text for row in fed.run(asked).rows]


def instance(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def test_greedy_is_what_greedy_decoding_says(fed: Federation, questions: list[Question]) -> None:
    """What the federation answers freely is greedy, and nothing that begins otherwise is."""
    model = FederationLM(fed)
    prompts = [q.prompt for q in questions[:12]]
    said = model.generate_until([instance(prompt, {"max_gen_toks": 6}) for prompt in prompts], disable_tqdm=True)
    asked = [instance(prompt, f" {text}") for prompt, text in zip(prompts, said, strict=True)]
    for (score, greedy), text in zip(model.loglikelihood(asked, disable_tqdm=True), said, strict=True):
        assert greedy and score <= 0, text
    others = [instance(prompt, f"not {text}") for prompt, text in zip(prompts, said, strict=True)]
    assert not any(greedy for _, greedy in model.loglikelihood(others, disable_tqdm=True))


def test_answers_end_where_the_task_says(fed: Federation, questions: list[Question]) -> None:
    prompt = questions[0].prompt
    (whole,) = FederationLM(fed).generate_until([instance(prompt, {"max_gen_toks": 6})], disable_tqdm=True)
    cut = {"until": [whole[2:], "never"], "max_gen_toks": 6}
    assert FederationLM(fed).generate_until([instance(prompt, cut)], disable_tqdm=True) == [whole[:2]]
    once = {"until": "\n", "max_gen_toks": 6, "do_sample": False, "temperature": 0.0, "top_p": 0.9}
    assert FederationLM(fed).generate_until([instance(prompt, once)], disable_tqdm=True) == [whole]


def test_what_cannot_be_meant_is_one_sentence(fed: Federation) -> None:
    model = FederationLM(fed)
    with pytest.raises(FedrayError, match="loglikelihood_rolling scores a text without one"):
        model.loglikelihood_rolling([instance("a text")])
    with pytest.raises(FedrayError, match="a context is empty"):
        model.loglikelihood([instance("", " a text")], disable_tqdm=True)
    with pytest.raises(FedrayError, match="a continuation is empty"):
        model.loglikelihood([instance("why?", " ")], disable_tqdm=True)
    with pytest.raises(FedrayError, match="samples by temperature alone: leave top_p out"):
        model.generate_until([instance("why?", {"do_sample": True, "top_p": 0.9})], disable_tqdm=True)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    with pytest.raises(FedrayError, match="fewshot_as_multiturn=False"):
        model.apply_chat_template(turns)
    assert model.apply_chat_template(turns[:1]) == "a"
