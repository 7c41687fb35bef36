"""Training data of the user's own: which rows are read, who reads their documents, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from samples import OPENBOOKQA, write
from short_training import RECEIVER, SENDER, settings, train
from tiny import random_llm

from fedray.llm.cache import spec_of
from fedray.protocols.exchange import Exchange
from fedray.training.conversations import LabelledPrompt
from fedray.training.dataset import fitting, of_data_set
from fedray.training.fuser_job import TrainFuser
from fedray.training.gate_job import TrainGate
from fedray.training.memory import BatchLoad, estimate
from fedray.training.pair import Pair
from fedray.training.settings import TrainingData, build_gate_job, check_gate_job
from fedray.types import FedrayError, Plan, Request

DOCUMENTS = {"sender": "the bird dika is red.\nthe bird tari is blue.", "receiver": "ask the other."}


def chat(asked: str, answer: str = "red", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}], **more}


def talks(count: int, **more: Any) -> list[dict[str, Any]]:
    return [chat(f"what is the color of the bird dika {number}?", **more) for number in range(count)]


def read(path: Path, limit: int | None = None, **more: Any) -> list[LabelledPrompt]:
    found = of_data_set(TrainingData("own", path, **{"against": (), **more}), limit, 0)
    return [*found.talks, *found.check]


@pytest.mark.parametrize("file", ["mine_test.jsonl", "mine.json", "mine.csv", "mine.parquet", "folder/a.jsonl"])
def test_rows_of_every_kind_of_file(tmp_path: Path, file: str) -> None:
    rows = talks(3, documents=DOCUMENTS, domain="birds")
    if file.endswith(".csv"):
        rows = [{key: v if isinstance(v, str) else json.dumps(v) for key, v in row.items()} for row in rows]
    write(tmp_path / file, rows)
    found = read(tmp_path / Path(file).parts[0])
    assert len(found) == 3 and {talk.group for talk in found} == {"birds"}
    for talk in found:
        assert dict(talk.documents) == DOCUMENTS and talk.answer == "red"


def test_a_folder_of_the_datasets_package(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [*talks(3, documents=DOCUMENTS), *talks(2, documents={"sender": None, "receiver": "b"})]
    whole = datasets.Dataset.from_list(rows)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": whole, "test": whole.select([0])}).save_to_disk(tmp_path / "several")
    for name in ("one", "several"):
        assert [len(talk.documents) for talk in read(tmp_path / name)].count(2) == 3 <= len(read(tmp_path / name)) - 2


def test_conversations_and_messages_are_the_same(tmp_path: Path) -> None:
    turns = ("what?", "red.", "sure?", "yes.")
    chats = [{"role": r, "content": t} for r, t in zip(("user", "assistant") * 2, turns, strict=True)]
    told = [{"from": r, "value": t} for r, t in zip(("human", "gpt") * 2, turns, strict=True)]
    write(tmp_path / "a.jsonl", [{"messages": chats}, {"conversations": told}, {"messages": [*chats, *chats[:1]]}])
    assert set(read(tmp_path / "a.jsonl")) == {LabelledPrompt("sure?", "yes.", "", ("what?", "red."))}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (chat("a?", documnts={"sender": "x"}), "column 'documnts' is not read .did you mean documents"),
        (chat("a?", context="x"), "column 'context' is not read"),
        (chat("a?", evidence={"sender": "x"}), "column 'evidence' is not read"),
        (chat("a?", documents={"sendr": "x"}), "documents has one for 'sendr' .did you mean sender"),
        (chat("a?", documents={"llama-1b": "x"}), "'llama-1b': they are read by sender or receiver"),
        (chat("a?", documents="x"), "documents is 'x': write who reads which text"),
        (chat("a?", conversations=[{"from": "human", "value": "a"}]), "messages and conversations are there"),
        ({"prompt": "a?", "completion": "b"}, "column 'prompt' is not read"),
        ({"id": "1"}, "neither messages nor conversations are there"),
        ({"messages": "a?"}, "messages is 'a.'"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "a message of messages is not from system, user or assist"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": ["x"]}]}, "'messages.tool_calls' is not read"),
    ],
)
def test_what_nobody_reads_is_refused(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    write(tmp_path / "a.jsonl", [*talks(3), row])
    with pytest.raises(FedrayError, match=says) as error:
        read(tmp_path / "a.jsonl")
    assert f"line 4 of {tmp_path / 'a.jsonl'}" in str(error.value) and "\n" not in str(error.value)


def test_members_read_as_they_do_in_a_federation(tmp_path: Path) -> None:
    """Each role's prompt, with its own document alone, is that of a request with the same evidence."""
    write(tmp_path / "a.jsonl", talks(2, documents=DOCUMENTS))
    talk = read(tmp_path / "a.jsonl")[0]
    evidence = {SENDER: (DOCUMENTS["sender"],), RECEIVER: (DOCUMENTS["receiver"],)}
    exchange = Exchange(Request((talk.prompt,), evidence=evidence), Plan(RECEIVER, (SENDER,)), None)  # pyright: ignore
    sender, receiver = random_llm(SENDER), random_llm(RECEIVER)
    (example,) = Pair(sender, receiver, [talk]).rows([0])
    for llm, encoded in ((sender, example.sent), (receiver, example.own)):
        (prompt,) = exchange.request_of(llm.name, [0]).prompts
        assert encoded == llm.encode(prompt)
        assert ("is red" in prompt, "ask the other" in prompt) == (llm is sender, llm is receiver)
    later = replace(talk, before=("what?", "red."))
    first, _, last = later.turns("sender")
    assert first.startswith("notes:\n- the bird dika is red.") and last == talk.prompt


def test_documents_count_for_those_who_read_them(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*talks(20), *talks(20, documents={"sender": "it is red. " * 40})])
    found = of_data_set(TrainingData("own", tmp_path / "a.jsonl", against=(), held_out=0.3), None, 0)
    llms = random_llm(RECEIVER), random_llm(SENDER)
    cut = fitting(found, llms[0], [llms[1]], 60)
    assert not any(talk.documents for talk in (*cut.talks, *cut.check)) and cut.source and cut.source.rows == 20
    assert len(fitting(found, llms[0], [llms[1]], 250).talks) == len(found.talks)


def test_an_evaluation_question_in_a_document_is_found(tmp_path: Path) -> None:
    given_away = OPENBOOKQA[0]["question_stem"] + "? " + " or ".join(OPENBOOKQA[0]["choices"]["text"])
    write(tmp_path / "own" / "train.jsonl", [*talks(3), chat("so?", documents={"receiver": given_away})])
    write(tmp_path / "openbookqa" / "test.jsonl", OPENBOOKQA)
    assert len(read(tmp_path, against=("openbookqa",))) == 3 and len(read(tmp_path)) == 4


def test_another_file_is_other_data(tmp_path: Path) -> None:
    """A checkpoint of one file is not gone on with on another."""
    decisive = []
    for name in ("a.jsonl", "b.jsonl"):
        path = write(tmp_path / name, talks(9))
        made = settings(tmp_path, data={"name": "own", "path": path, "against": []})
        (task,) = TrainFuser(made, "").tasks()
        decisive.append(task.params)
    assert decisive[0] != decisive[1]


@pytest.mark.parametrize("fuser", ["mlp", "draft"])
def test_a_fuser_is_trained_on_ones_own_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str], fuser: str) -> None:
    path = write(tmp_path / "mine.jsonl", talks(40, documents=DOCUMENTS, domain="birds"))
    data = {"name": "own", "path": path, "against": [], "longest": 128, "held_out": 0.1}
    left, part = train(settings(tmp_path, data=data, steps=3, limit=30, fuser=fuser), capsys)
    (source,) = left.data
    assert (part.status, source.name, source.rows, source.repo) == ("complete", "own", 30, None)


def test_documents_do_not_go_with_mix(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", talks(9, documents=DOCUMENTS))
    made = settings(tmp_path, data={"name": "own", "path": path, "against": []}, fusion="mix")
    with pytest.raises(FedrayError, match=r"mine.jsonl has documents, and fusion=mix needs one text"):
        TrainFuser(made, "").run()


def test_a_path_is_needed() -> None:
    with pytest.raises(FedrayError, match=r"data=own is read from this disk: name a file or a folder with data.path="):
        settings(Path("nowhere"), data="own", limit=3)
    with pytest.raises(FedrayError, match=r"data=own is read from this disk"):
        check_gate_job(build_gate_job({"data": "own", "ray": False, "tracking": False}))


def test_kept_words_are_looked_for_before_anything_starts(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", talks(9))
    data = {"name": "own", "path": path, "against": [], "without": tmp_path / "none.txt"}
    with pytest.raises(FedrayError, match=r"data.without=.*none.txt cannot be read"):
        settings(tmp_path, data=data)
    with pytest.raises(FedrayError, match=r"data.without keeps words out of a data set"):
        settings(tmp_path, data={"name": "tiny", "without": path})


def longest_really(path: Path, most: int) -> int:
    found = read(path)
    sides: list[tuple[str, Any]] = [(SENDER, "sender"), (RECEIVER, "receiver")]
    lengths = (
        max(len(random_llm(n).encode(t.turns(r)[0]).ids) + len(random_llm(n).encode_reply(t.answer)) for n, r in sides)
        for t in found
    )
    return max(length for length in lengths if length < most)


@pytest.mark.parametrize("job", ["fuser", "gate"])
@pytest.mark.parametrize(
    "rows",
    [
        talks(30),
        [*talks(30), *talks(2, documents={"sender": "it is red. " * 9})],
        [*talks(30), chat("é" * 20), chat("why? " * 9, "no. " * 9)],
        [*talks(30), chat("what is the color of the bird dika? " * 40)],  # too long to train on
    ],
    ids=["alike", "documents", "letters", "one too long"],
)
def test_memory_is_that_of_the_longest_conversation(tmp_path: Path, job: str, rows: list[Any]) -> None:
    path = write(tmp_path / "mine.jsonl", rows)
    data = {"name": "own", "path": path, "against": [], "longest": 400}
    longest = longest_really(path, 400)
    if job == "fuser":
        made = settings(tmp_path, data=data, batch_size=8, limit=99)
        (task,) = TrainFuser(made, "").tasks()
        configs = (random_llm(name).model.config for name in (SENDER, RECEIVER))
        assert task.order.memory == estimate(*configs, task.order.recipe, BatchLoad(8, longest))
    else:
        given = {"senders": [SENDER], "data": data, "at_once": 8, "limit": 99, "ray": False, "tracking": False}
        made = build_gate_job({**given, "registry": {"path": tmp_path / "registry"}, "output": tmp_path})
        (task,) = TrainGate(made, "").tasks()
        receiver, sender = (random_llm(name).model.config for name in (RECEIVER, SENDER))
        caches = [spec_of(config).values_per_token() * 4 * longest for config in (receiver, sender)]
        kept = 99 * longest * receiver.hidden_size * 4
        assert task.order.memory.caches == 8 * (sum(caches) + max(caches)) + kept


def test_what_is_nearly_as_long_as_may_be_counts_as_that_long(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", talks(30))
    longest = longest_really(path, 400)
    made = settings(tmp_path, data={"name": "own", "path": path, "against": [], "longest": longest + 2}, batch_size=8)
    (task,) = TrainFuser(made, "").tasks()
    configs = (random_llm(name).model.config for name in (SENDER, RECEIVER))
    assert task.order.memory == estimate(*configs, task.order.recipe, BatchLoad(8, longest + 2))
