"""Messages that cannot be paired anew are asked for anew: those that are mixed, and documents apart from questions."""

from __future__ import annotations

from typing import Any

import pytest
from support.methods import method

from fedray.errors import MemberFailed
from fedray.evaluation.deranging import DOCUMENT, QUESTION, Deranging
from fedray.questions.tasks import Question, request_fields
from fedray.settings.settings import Donors, Settings
from fedray.types import Answer, Plan, Request, Row

R, SENDERS = "qwen3-0.6b", ("llama-1b", "qwen2.5-1.5b")
BATCH = [Question(f"q{i}", f"which color has e{i}?", ("red", "blue"), i % 2, "bird", f"e{i}") for i in range(4)]
HELD = [
    Question(q.id, q.prompt, q.choices, q.gold, q.group, q.entity, evidence={SENDERS[0]: f"{q.entity} is {q.answer}"})
    for q in BATCH
]


def deranging(questions: list[Question] = BATCH, count: int = 2, each: bool = False, **parts: Any) -> Deranging:
    return Deranging(Plan(R, SENDERS, method(**parts)), Settings(donors=Donors(count, each=each)), [questions])


def request(plan: Plan, questions: list[Question] = BATCH) -> Request:
    return Request(tuple(q.prompt for q in questions), **request_fields(questions, plan, None), id="batch-0")


def answer(text: str, **more: Any) -> Answer:
    return Answer((Row(text),) * len(BATCH), R, SENDERS, **more)


@pytest.mark.parametrize(("parts", "requests", "kinds"), [
    ({}, 1, (QUESTION,)),
    ({"protocol": "t2t"}, 1, (QUESTION,)),
    ({"rephrase": "shared"}, 1, (QUESTION,)),
    ({"fusion": "mix"}, 3, (QUESTION,)),
    ({"fuser": "c2c"}, 3, (QUESTION,)),
    ({"answer_all": True}, 1, ()),
    ({"fusion": "mix", "rephrase": "shared"}, 1, ()),
    ({"fusion": "mix", "control": "mismatched"}, 1, ()),
    ({"protocol": "ensemble"}, 1, ()),
    ({"protocol": "standalone"}, 1, ()),
    ({"protocol": "specfed"}, 1, ()),
    ({"protocol": "fedattn"}, 1, ()),
    ({"rephrase": "shared", "each": True}, 1, (QUESTION,)),
    ({"fusion": "mix", "each": True}, 7, (QUESTION, *SENDERS)),
    ({"each": True}, 7, (QUESTION, *SENDERS)),
], ids=str)  # fmt: skip
def test_how_often_a_batch_is_asked(parts: dict[str, Any], requests: int, kinds: tuple[str, ...]) -> None:
    found = deranging(**parts)
    made = found.requests(0, request(Plan(R, SENDERS)))
    assert (len(made), found.kinds) == (requests, kinds)
    assert found.donors == ("2 different" if kinds else "")
    assert len(made[0].donors) == (2 if kinds and requests == 1 else 0)


def test_senders_of_what_is_mixed_are_asked_the_donors_questions() -> None:
    found = deranging(fusion="mix")
    first, *others = found.requests(0, request(Plan(R, SENDERS)))
    assert not first.asked and all(other.prompts == first.prompts for other in others)
    for other in others:
        assert other.choices == first.choices and set(other.asked) == set(SENDERS)
        for question, prompt in zip(BATCH, other.asked[SENDERS[0]], strict=True):
            (donor,) = (q for q in BATCH if q.prompt == prompt)
            assert donor.answer != question.answer


def test_documents_and_questions_are_deranged_apart() -> None:
    found = deranging(HELD, count=1)
    assert found.kinds == (DOCUMENT, QUESTION)
    first, documents, questions = found.requests(0, request(Plan(R, SENDERS), HELD))
    assert documents.asked == first.asked == {} and questions.evidence == first.evidence
    assert set(documents.evidence) == {SENDERS[0]}
    assert all(a != b for a, b in zip(documents.evidence[SENDERS[0]], first.evidence[SENDERS[0]], strict=True))
    assert all(a != b for a, b in zip(questions.asked[SENDERS[0]], first.prompts, strict=True))


def test_the_messages_of_one_sender_after_the_other_are_anothers() -> None:
    both = [
        Question(
            q.id, q.prompt, q.choices, q.gold, q.group, q.entity, evidence={s: f"{s}: {q.answer}" for s in SENDERS}
        )
        for q in BATCH
    ]
    for questions, kinds, changes in ((both, (DOCUMENT, QUESTION), "evidence"), (BATCH, (QUESTION,), "asked")):
        found = deranging(questions, count=1, each=True)
        assert found.kinds == (*kinds, *SENDERS)
        first, *others = found.requests(0, request(Plan(R, SENDERS), questions))
        of = {"evidence": dict(first.evidence), "asked": dict.fromkeys(SENDERS, first.prompts)}[changes]
        for sender, one in zip(SENDERS, others[len(kinds) :], strict=True):
            said = {**of, **getattr(one, changes)}
            assert [name for name in SENDERS if said[name] != of[name]] == [sender]
            assert all(a != b for a, b in zip(said[sender], of[sender], strict=True)), "of every question"
    assert deranging(both, each=True).named != deranging(both).named, "another measurement"
    made = deranging(HELD, count=1, each=True).requests(0, request(Plan(R, SENDERS), HELD))
    assert made[-1].asked.keys() == {SENDERS[1]} and made[-2].evidence != made[0].evidence, "who holds nothing is asked"


def test_answers_are_told_apart_by_what_was_deranged() -> None:
    texts = ["matched", "document 0", "document 1", "question 0", "question 1"]
    ((own, rows),) = deranging(HELD).collect(iter(map(answer, texts)))
    assert isinstance(own, Answer) and own.text == "matched"
    assert {kind: [way[0].text for way in ways] for kind, ways in rows.items()} == {
        DOCUMENT: ["document 0", "document 1"],
        QUESTION: ["question 0", "question 1"],
    }
    paired = answer("matched", deranged=((Row("a"),) * 4, (Row("b"),) * 4))
    assert next(deranging().collect(iter([paired])))[1] == {QUESTION: paired.deranged}


def test_what_did_not_come_whole_is_no_control() -> None:
    """A batch that lost a sender, or failed, would change more than the content of messages."""
    fewer = Answer((Row("question 1"),) * 4, R, SENDERS[:1])
    for other in (fewer, MemberFailed("died")):
        assert next(deranging(fusion="mix").collect(iter([answer("m"), answer("q"), other])))[1] == {}
    assert next(deranging().collect(iter([answer("no row of a donor")])))[1] == {}
    assert next(deranging().collect(iter([MemberFailed("died")])))[1] == {}
