"""What SpecFed can be told, and what is refused in one sentence before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import Call

from fedray.evaluation.cases import cases
from fedray.evaluation.settings import build_evaluation
from fedray.jobs import evaluate
from fedray.jobs.federate import run
from fedray.llm.source import Source
from fedray.llm.vocabulary import check_vocabularies
from fedray.methods.specfed import WORKERS, SpecFed
from fedray.questions.tasks import load_task
from fedray.settings.settings import Settings, build
from fedray.types import FedrayError

pytest.importorskip("hydra")
pytestmark = pytest.mark.usefixtures("without_a_store")
DRAFT = "qwen2.5-0.5b"


def test_defaults(call: Call) -> None:
    settings = call.settings("protocol=specfed")
    assert (settings.receiver, settings.senders) == (DRAFT, WORKERS)
    assert settings.task.name == "tiny-tell" and settings.task.scored_by == "told"
    assert settings.protocol == SpecFed()
    assert build({"protocol": "specfed", "task": "tiny-tell"}).senders == WORKERS


@pytest.mark.parametrize(
    ("arguments", "draft", "workers"),
    [
        ((), DRAFT, WORKERS),
        (("receiver=qwen2.5-1.5b",), "qwen2.5-1.5b", ("qwen2.5-coder-0.5b",)),
        (("protocol.draft=qwen2.5-1.5b",), "qwen2.5-1.5b", ("qwen2.5-coder-0.5b",)),
        (("receiver=qwen2.5-1.5b", "protocol.draft=qwen2.5-1.5b"), "qwen2.5-1.5b", ("qwen2.5-coder-0.5b",)),
        (("protocol.draft=none",), DRAFT, WORKERS),
        (("receiver=qwen3-0.6b", "protocol.draft=none"), "qwen3-0.6b", WORKERS),
    ],
)
def test_the_draft_is_the_receiver(
    call: Call, arguments: tuple[str, ...], draft: str, workers: tuple[str, ...]
) -> None:
    settings = call.settings("protocol=specfed", *arguments)
    assert (settings.receiver, settings.senders) == (draft, workers)
    assert settings.method.canonical().of(SpecFed).gamma == (0 if "protocol.draft=none" in arguments else 4)
    given = dict(argument.split("=") for argument in arguments)
    own = {"name": "specfed"} | {key.removeprefix("protocol."): value for key, value in given.items() if "." in key}
    values = {"protocol": own} | {key: value for key, value in given.items() if key == "receiver"}
    assert build(values).takes_part == (draft, *workers)
    evaluation = build_evaluation(values)
    assert {case.receiver for case in cases(evaluation, evaluation.senders)} == {draft}


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (("protocol.gamma=auto",), SpecFed(gamma="auto")),
        (("protocol.draft=none", "receiver=qwen2.5-0.5b", "protocol.top_k=1.0"), SpecFed("none", top_k=1.0)),
        (("protocol.top_k=320",), SpecFed(top_k=320)),
        (("protocol.top_k=1",), SpecFed(top_k=1)),
        (("protocol.weights=[2,1]", "protocol.reconstruct=renorm"), SpecFed(weights=(2.0, 1.0), reconstruct="renorm")),
        (("protocol.weigh=gate",), SpecFed(weigh="gate")),
    ],
)
def test_what_it_can_be_told(call: Call, arguments, found) -> None:
    assert call.settings("protocol=specfed", *arguments).protocol == found


@pytest.mark.parametrize(("name", "text"), [("q.txt", "what is red?\n"), ("q.jsonl", '{"question": "what is red?"}\n')])
def test_questions_of_ones_own(call: Call, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    settings = call.settings("protocol=specfed", f"questions={tmp_path / name}")
    assert [question.offered for question in load_task(settings)] == [None]


@pytest.mark.parametrize("task", ["tiny-tell", "gsm8k"])
def test_a_scoring_of_another_task_is_not_its_own_remedy(call: Call, tmp_path: Path, task: str) -> None:
    (tmp_path / "q.txt").write_text("what is red?\n")
    scoring = {"tiny-tell": "told", "gsm8k": "number"}[task]
    code, err = call(f"questions={tmp_path / 'q.txt'}", f"task={task}", f"task.scoring={scoring}")
    assert code == 2 and f"task.scoring={scoring} does not go with questions of your own: choose text," in err
    code, err = call(f"task={task}", "task.scoring=letters")
    assert code == 2 and f"task.scoring=letters does not go with task={task}: choose {scoring}\n" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("protocol.gamma=0",), "protocol.draft=none"),
        (("protocol.gamma=1000",), "protocol.gamma must be from 1 to 64"),
        (("protocol.gamma=some",), "protocol.gamma"),
        (("protocol.top_k=0",), "protocol.top_k must be at least 1"),
        (("protocol.top_k=0.0",), "protocol.top_k must be a count such as 320"),
        (("protocol.top_k=1.5",), "protocol.top_k must be a count such as 320"),
        (("protocol.weights=[0,0]",), "must sum to something above 0"),
        (("protocol.weights=[1,-1]",), "protocol.weights must be at least 0"),
        (("protocol.weights=[1]",), "one number for each sender"),
        (("protocol.weights=[1,1]", "protocol.weigh=gate"), "leave it out"),
        (("protocol.reconstruct=guess",), "protocol.reconstruct"),
        (("protocol.patience_s=0",), "protocol.patience_s"),
        (("protocol.draft=qwen2",), "protocol.draft"),
        (("+senders=[qwen2.5-0.5b,qwen2.5-1.5b]",), "qwen2.5-0.5b is the receiver and among the senders"),
        (("task=tiny",), "task=tiny-tell"),
        (("task.scoring=letters",), "task.scoring"),
        (("privacy=shared",), "leave rephrase out"),
        (("on_missing=text",), "on_missing=text is about fusers"),
        (("protocol.weigh=gate", "gate=none"), "protocol.weigh=gate needs a gate: choose gate=learned, gate=open"),
        (("protocol.weights=[inf,1]",), "protocol.weights must be at least 0 and finite, got inf"),
        (("protocol.weights=[nan,1]",), "protocol.weights must be at least 0 and finite, got nan"),
        (("receiver=qwen2.5-1.5b", "protocol.draft=qwen2.5-coder-0.5b"), "name one of them"),
    ],
)
def test_what_cannot_be_meant(call: Call, arguments, said) -> None:
    code, err = call("protocol=specfed", *arguments)
    assert code == 2 and said in err and err.count("\n") == 1
    assert not call.ran


def federate(settings: Settings) -> int:
    return run(settings, lambda settings: pytest.fail("it was opened"))


@pytest.mark.parametrize("more", [(), ("plan=true",)])
def test_choices_are_refused_before_anything_is_loaded(call: Call, tmp_path: Path, more: tuple[str, ...]) -> None:
    free, offered = {"question": "what is red?"}, {"choices": {"text": ["a", "b"], "label": ["A", "B"]}}
    rows = (free, {"id": "second", **free, **offered})
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    questions = ("protocol=specfed", f"questions={tmp_path / 'q.jsonl'}", *more)
    code, err = call(*questions, job=federate)
    assert code == 2 and "protocol=specfed writes its answers, and question second has choices" in err
    assert "task.scoring=letters-generated" in err and err.count("\n") == 1
    with pytest.raises(pytest.fail.Exception, match="it was opened"):
        call(*questions[:2], "task.scoring=letters-generated", job=federate)


def test_choices_are_refused_in_an_evaluation_too(tmp_path: Path) -> None:
    row = {"question": "what is red?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    given = {"protocol": "specfed", "task": "tiny-tell", "questions": tmp_path / "q.jsonl", "output": tmp_path}
    settings = build_evaluation({**given, "tracking": False})
    with pytest.raises(FedrayError, match=r"protocol=specfed writes its answers, and question q\.jsonl:1 has choices"):
        evaluate.run(settings, lambda settings: pytest.fail("it was opened"))


@pytest.mark.parametrize("more", [(), ("plan=true",)])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("protocol.draft=llama-1b",), "one worker at least must have the draft's"),
        (("+senders=[qwen2.5-1.5b,llama-1b]", "protocol.vocab=strict"), "protocol.vocab=strict wants one"),
    ],
)
def test_a_draft_with_another_vocabulary(
    call: Call, arguments: tuple[str, ...], said: str, more: tuple[str, ...]
) -> None:
    code, err = call("protocol=specfed", *arguments, *more, job=federate)
    assert code == 2 and said in err and "llama-1b" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("draft", "workers", "vocab", "said"),
    [
        ("llama-1b", WORKERS, "map", "one worker at least must have the draft's"),
        (DRAFT, ("qwen2.5-1.5b", "llama-1b"), "strict", "wants one"),
        (DRAFT, ("llama-1b",), "map", "different vocabularies"),
    ],
)
def test_vocabularies_that_do_not_fit(draft, workers, vocab, said) -> None:
    with pytest.raises(FedrayError, match=said):
        check_vocabularies(Source(draft), [Source(name) for name in workers], vocab)


def test_vocabularies_that_fit() -> None:
    check_vocabularies(Source(DRAFT), [Source(name) for name in WORKERS], "strict")
    check_vocabularies(Source(DRAFT), [Source("qwen2.5-1.5b"), Source("llama-1b")], "map")
    check_vocabularies(Source(DRAFT, "shapes"), [Source("qwen2.5-1.5b", "shapes")], "strict")


def test_workers_may_be_copies_of_one_llm() -> None:
    made = build({"protocol": "specfed", "senders": ["qwen2.5-1.5b", "llama-3.2-1b#2"]})
    assert made.senders == ("qwen2.5-1.5b", "llama-1b#2")
    assert build({"senders": ["llama-1b#2"]}).gate.kind == "open", "no gate knows a copy"
