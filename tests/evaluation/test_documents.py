"""Documents in rows of a user's own file: who reads them, who may not, and what is refused before anything loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from samples import write

from fedray.evaluation.settings import build_evaluation
from fedray.federation.federation import Federation
from fedray.jobs import evaluate, federate
from fedray.questions.tasks import load_task, texts_read
from fedray.reporting import report as reports
from fedray.settings.check import check
from fedray.settings.settings import Settings, build
from fedray.types import FedrayError

RECEIVER, SENDER, OTHER = "qwen3-0.6b", "qwen2.5-0.5b", "llama-1b"
QUIET = {"ray": {"enabled": False}, "tracking": {"enabled": False}, "gate": "open"}
ASKED = "what is the color of the bird dika?"


def settings(path: Path, *rows: dict[str, Any], **more: Any) -> Settings:
    write(path, rows)
    return build({"senders": [SENDER], **QUIET, "questions": path, **more})


def refused(path: Path, evidence: Any, says: str, **more: Any) -> None:
    """Refused by the job before a member is loaded."""

    def load(_: Settings) -> Federation:
        raise AssertionError("nothing is loaded")

    own = settings(path, {"question": "why?"}, {"question": ASKED, "evidence": evidence}, **more)
    check(own)
    with pytest.raises(FedrayError, match=says) as error:
        federate.run(own, load)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("name", [SENDER, "qwen2_5-0_5b", "sender"])
def test_a_document_is_read_by_its_member_alone(tmp_path: Path, suffix: str, name: str) -> None:
    held: Any = {name: "dika is red.\nand tari is blue."}
    held = json.dumps(held) if suffix == ".csv" else held
    own = settings(tmp_path / f"q{suffix}", {"question": ASKED, "evidence": held}, {"question": "why?"})
    first, second = questions = load_task(own)
    assert first.evidence == {SENDER: "dika is red.\nand tari is blue."} and not second.evidence
    assert list(texts_read(questions, own, RECEIVER)) == [ASKED, "why?"]
    assert list(texts_read(questions, own, SENDER)) == [f"notes:\n- dika is red.\n- and tari is blue.\n{ASKED}", "why?"]


def test_a_copy_and_another_llm_hold_a_files_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = f"{RECEIVER}#2"
    rows = [
        {"question": f"what is the color of the bird dika{i}?", "answers": ["red"], "domain": (copy, SENDER)[i % 2]}
        | {"evidence": {copy: f"dika{i} is red.", SENDER: f"dika{i} is small."}}
        for i in range(4)
    ]
    write(tmp_path / "q.jsonl", rows)
    given = {"senders": [copy, SENDER], "fuser": "draft", "donors": {"count": 1, "answer": "any", "each": True}}
    blocks = {"all": {"senders": "all", "protocol": ["c2c", "t2t"]}}
    own = build_evaluation(
        {**QUIET, **given, "questions": tmp_path / "q.jsonl", "output": tmp_path, "blocks": blocks, "order": "given"}
    )
    assert evaluate.run(own) == 0
    for row in reports.read(tmp_path).evaluated:
        assert row.is_alone or row.found.sender_gains.keys() == {copy, SENDER}
    assert f"P of each alone: {copy} " in capsys.readouterr().out


def test_a_file_says_what_the_task_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The answers to split evidence are those of the task that the file was written of."""
    task = build({"senders": [SENDER, OTHER], **QUIET, "task": {"name": "tiny-evidence", "limit": 24}})
    rows = [
        {
            "question": q.prompt,
            "choices": list(q.choices or ()),
            "answer": q.gold,
            "domain": q.group,
            "evidence": {"receiver" if name == RECEIVER else name: text for name, text in q.evidence.items()},
        }
        for q in load_task(task)
    ]
    members = (RECEIVER, SENDER, OTHER)
    for row in rows:
        row["evidence"] = {n: t for n, t in row["evidence"].items() if n in ("receiver", *members)}
    write(tmp_path / "q.jsonl", rows)
    bare = [{key: value for key, value in row.items() if key != "evidence"} for row in rows]
    write(tmp_path / "bare.jsonl", bare)
    found = {}
    for name, own in {
        "task": task,
        "file": replace(task, questions=tmp_path / "q.jsonl"),
        "bare": replace(task, questions=tmp_path / "bare.jsonl"),
    }.items():
        assert federate.run(replace(own, output=tmp_path / name)) == 0
        left = reports.read(tmp_path / name)
        found[name] = [(row.question, row.alone, row.federated) for row in left.answers]
    assert found["task"] == found["file"] != found["bare"]
    mode = (tmp_path / "file" / "report.json").stat().st_mode
    assert mode & 0o077 == 0 < (tmp_path / "bare" / "report.json").stat().st_mode & 0o077, "documents are private"


def test_a_rows_document_stands_before_that_of_all_questions(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows = {"question": ASKED, "evidence": {"sender": "dika is red."}}, {"question": "why?"}
    own = settings(path, *rows, evidence={SENDER: "all is blue.", RECEIVER: "nothing is known."})
    first, second = load_task(own)
    assert first.evidence == {SENDER: "dika is red.", RECEIVER: "nothing is known."}
    assert second.evidence == {SENDER: "all is blue.", RECEIVER: "nothing is known."}
    texts = list(texts_read(load_task(own), own, SENDER))
    assert texts == [f"notes:\n- dika is red.\n{ASKED}", "notes:\n- all is blue.\nwhy?"]


@pytest.mark.parametrize(
    ("evidence", "says", "more"),
    [
        ({OTHER: "x"}, rf"line 2 has evidence for '{OTHER}', who takes no part: .*{RECEIVER} or {SENDER}", {}),
        ({"qwen2.5-0.6b": "x"}, rf"'qwen2.5-0.6b', who takes no part .did you mean {SENDER}", {}),
        ({"reciever": "x"}, "'reciever', who takes no part .did you mean receiver", {}),
        ({"sender": "x", SENDER: "y"}, f"line 2 has two documents for {SENDER}: put them into one", {}),
        ({"sender": "x"}, f"for the sender, and there are 2: name {SENDER} or {OTHER}", {"senders": [SENDER, OTHER]}),
        ({"sender": "x"}, f"'sender', who takes no part: .*read by {RECEIVER}$", {"protocol": "standalone"}),
        ({f"{RECEIVER}#2": "x"}, "who takes no part", {"protocol": "fedattn", "senders": None}),
        ({"receiver": "x"}, "evidence does not go with fusion=mix", {"fusion": "mix"}),
        ({"receiver": "x"}, "answer_all=true goes with protocol=c2c, and without.*evidence", {"answer_all": True}),
        ({"receiver": "red " * 4000}, rf"the prompt q.jsonl:2 has \d+ tokens for {RECEIVER}, whose context", {}),
        ({"sender": "red " * 4000}, rf"the prompt q.jsonl:2 has \d+ tokens for {SENDER}, whose context", {}),
    ],
)
def test_what_cannot_be_read_is_refused_first(tmp_path: Path, evidence: Any, says: str, more: dict[str, Any]) -> None:
    more = {key: value for key, value in more.items() if value is not None}
    if "protocol" in more and more["protocol"] == "fedattn":
        write(tmp_path / "q.jsonl", [{"question": "why?"}, {"question": ASKED, "evidence": evidence}])
        own = build({**QUIET, "gate": "none", "questions": tmp_path / "q.jsonl", **more})
        with pytest.raises(FedrayError, match=says):
            federate.run(own)
    else:
        refused(tmp_path / "q.jsonl", evidence, says, **more)


def test_an_evaluation_refuses_what_nobody_of_its_cases_reads(tmp_path: Path) -> None:
    row = {"question": ASKED, "choices": ["red", "blue"], "answer": 0}
    path = tmp_path / "q.jsonl"

    def asked(evidence: Any, **more: Any) -> None:
        write(path, [{**row, "evidence": evidence}])
        own = build_evaluation({"senders": [SENDER], **QUIET, "questions": path, "output": tmp_path, **more})

        def load(_: Settings) -> Federation:
            raise LookupError("all checks passed")

        evaluate.run(own, load)

    blocks = {"blocks": {"pair": {"senders": OTHER}}}
    with pytest.raises(LookupError, match="all checks passed"):
        asked({OTHER: "dika is red."}, **blocks)
    with pytest.raises(FedrayError, match="who takes no part"):
        asked({OTHER: "dika is red."})
    with pytest.raises(FedrayError, match="whose context"):
        asked({OTHER: "red " * 4000}, **blocks)
    with pytest.raises(FedrayError, match="evidence does not go with fusion=mix"):
        asked({"sender": "dika is red."}, fusion="mix")
