"""LLMs without a chat template go on with a text: what stands around it, where an answer begins, and where it ends."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from speculating import ask, plan
from tiny import QUESTIONS, random_llm
from tokenizers_made import KINDS, LOSSLESS, made

from fedray.federation.federation import Federation
from fedray.llm import decoding
from fedray.llm.chat import encode_turns
from fedray.llm.loading import check_prompts, wrap
from fedray.llm.model import HEAD, LLM, TAIL
from fedray.llm.source import Source
from fedray.llm.templates import template_of
from fedray.member.member import Member
from fedray.methods.specfed import SpecFed
from fedray.protocols import protocol_of
from fedray.protocols.group import LocalGroup
from fedray.questions.scoring import asked
from fedray.types import FedrayError, Generation, KVSpec, Request

OPEN = "The capital of France is"
ASKED = "What is the capital of France?"
LETTERS = asked("letters", ASKED, ("Rome", "Paris"))
NUMBER = asked("number", "How many are 3 and 4?", ())
QUIET: dict[str, Any] = {"ray": False, "tracking": {"enabled": False}}


def base(kind: str) -> Any:
    """A tokenizer without its chat template."""
    tokenizer = copy(made(kind))
    tokenizer.chat_template = None
    return tokenizer


def llm(tokenizer: Any, **more: Any) -> LLM:
    model = SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(num_embeddings=len(tokenizer)))
    return LLM("some-llm", "", model, tokenizer, KVSpec(1, 1, 1), "", "", 512, template_of(tokenizer, **more))


def text_of(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize(
    ("prompt", "leads"),
    [
        (OPEN, ""),
        ("Once upon a time there was a king.", ""),
        ("Q: which is it?\nA:", ""),
        ("def f(x):", ""),
        (ASKED, "\nAnswer:"),
        ('Who said "why?"', "\nAnswer:"),
        ("这个问题的答案是什么\uff1f", "\nAnswer:"),
        (f"notes:\n- it is Paris.\n{ASKED}", "\nAnswer:"),
        (LETTERS, "\nAnswer:"),
        (NUMBER, "\n"),
    ],
)
def test_a_text_stands_as_it_is_and_a_question_leads_to_its_answer(kind: str, prompt: str, leads: str) -> None:
    tokenizer = base(kind)
    encoded = encode_turns(llm(tokenizer), (f" {prompt}\n",))
    assert text_of(tokenizer, encoded.ids) == prompt + leads
    inside = [span for span in encoded.spans if span[0] >= 0]
    assert HEAD not in dict(encoded.spans) and (TAIL in dict(encoded.spans)) is bool(leads)
    assert inside[0][0] == 0 and inside[-1][1] == len(prompt)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_begins_behind_a_space(kind: str) -> None:
    """Scored is what the LLM would write itself: the tokens of the whole text, cut behind the prompt."""
    one = llm(base(kind))
    for prompt, leads in ((OPEN, ""), (ASKED, "\nAnswer:")):
        ids = encode_turns(one, (prompt,)).ids
        whole = one.tokenizer(f"{prompt}{leads} Paris is it", add_special_tokens=False)["input_ids"]
        own = [*ids, *one.encode_choice("Paris is it")]
        assert own == whole or (":\u2581" in one.tokenizer.get_vocab() and leads), "a piece across the two"
        assert text_of(one.tokenizer, own) == text_of(one.tokenizer, whole)
        assert not one.decode(own[len(ids) :]).startswith(" ")
    chat = llm(made(kind)) if made(kind).chat_template else None
    assert chat is None or chat.encode_choice("Paris is it") == chat.encode_answer("Paris is it")


def test_turns_are_lines() -> None:
    tokenizer = base("qwen3")
    ids = encode_turns(llm(tokenizer), (ASKED, "Paris", "and its river is", "the Seine", "And of Italy?")).ids
    wanted = f"{ASKED}\nAnswer: Paris\nand its river is the Seine\nAnd of Italy?\nAnswer:"
    assert text_of(tokenizer, ids) == wanted
    first = encode_turns(llm(tokenizer), (ASKED,)).ids
    assert ids[: len(first)] == first, "so that the next turn reads only what is new"


@pytest.mark.parametrize("prompt", [f"{OPEN} the", f"a.\nb.\n{ASKED}", LETTERS])
def test_the_parts_of_a_prompt_are_the_prompt(prompt: str) -> None:
    one = llm(base("qwen3"))
    first, line, rest = prompt.partition("\n") if "\n" in prompt else (prompt[:9], "", prompt[9:])
    parts = one.encode_part(first + line, first=True, last=False) + one.encode_part(rest, first=False, last=True)
    assert text_of(one.tokenizer, parts) == text_of(one.tokenizer, one.encode(prompt).ids)


def test_what_is_implied_can_be_said_otherwise() -> None:
    assert template_of(made("qwen3")).prompting == "chat" and template_of(base("qwen3")).prompting == "completion"
    tokenizer = made("qwen3")
    assert text_of(tokenizer, encode_turns(llm(tokenizer, prompting="completion"), (OPEN,)).ids) == OPEN
    assert template_of(tokenizer, "chat") == template_of(tokenizer)
    with pytest.raises(FedrayError, match="has no chat template and prompting=chat asks for one: leave") as error:
        template_of(base("qwen3"), "chat")
    assert "\n" not in str(error.value)


def test_only_the_answer_to_a_question_ends_with_its_line() -> None:
    one = random_llm("llama-1b")
    one = wrap("llama-1b", one.model, one.tokenizer, "", prompting="completion")
    breaks = {i for i in range(len(one.tokenizer)) if "\n" in one.tokenizer.decode([i])}
    assert breaks and not breaks & one.stop_ids
    for prompt, ends in ((OPEN, False), (NUMBER, False), (ASKED, True), (LETTERS, True), ("Why?\nAnswer:", True)):
        assert one.stops_behind(one.encode(prompt).ids) == (one.stop_ids | breaks if ends else one.stop_ids), prompt
    chat = random_llm("llama-1b")
    assert chat.stops_behind(chat.encode(ASKED).ids) == chat.stop_ids


def test_an_answer_is_not_over_before_it_begins() -> None:
    """A line break is the likeliest token behind both, and none that an answer on its line may begin with."""
    one = random_llm("llama-1b")
    one = wrap("llama-1b", one.model, one.tokenizer, "", prompting="completion")
    member = Member("llama-1b", llm=one)
    stops = [one.stops_behind(one.encode(prompt).ids) for prompt in (OPEN, ASKED)]
    line = min(stops[1] - one.stop_ids)
    logits_BV = torch.zeros(2, len(one.tokenizer))
    logits_BV[:, line], logits_BV[:, 7] = 9.0, 1.0
    assert member._on_this_line(logits_BV, stops).argmax(1).tolist() == [line, 7]
    assert logits_BV.argmax(1).tolist() == [line, line], "what was handed over is as it was"


def test_rows_of_a_batch_end_where_each_of_them_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """An open text and a question side by side: as each alone, and the question's answer ends before a line break."""
    from fedray.llm import model

    one = random_llm("qwen3-0.6b")
    one = wrap("qwen3-0.6b", one.model, one.tokenizer, "", prompting="completion")
    member = Member("qwen3-0.6b", llm=one)

    def answers(*prompts: str) -> list[tuple[int, ...]]:
        request = Request(prompts, generation=Generation(max_tokens=6))
        return [row.tokens for row in member.alone("s", request).rows]

    whole, other = answers(ASKED, OPEN)
    assert len(whole) == len(other) == 6
    breaks = frozenset({whole[0], *other})
    monkeypatch.setattr(model, "line_breaks", lambda tokenizer: breaks)
    (begun,) = answers(ASKED)
    assert begun and not breaks & {*begun}, "neither its beginning nor what is behind it"
    assert answers(ASKED, OPEN) == [begun, other] == [begun, *answers(OPEN)]
    full = Request((ASKED,), generation=Generation(max_tokens=6, full=True))
    assert member.alone("s", full).rows[0].tokens == whole


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_specfed_says_what_its_worker_would(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    """Neither the draft nor the average begins an answer with the line break that would end it."""
    from fedray.llm import model

    def member(name: str) -> Member:
        one = random_llm(name)
        return Member(name, llm=wrap(name, one.model, one.tokenizer, "", prompting="completion"))

    worker = member("qwen2.5-1.5b")
    group = LocalGroup({name: member(name) for name in ("qwen2.5-0.5b", "qwen2.5-1.5b")})
    how = SpecFed(gamma=3, top_k=1.0)
    request = Request((ASKED, OPEN), generation=Generation(max_tokens=6, temperature=temperature))
    breaks = frozenset(i for i in range(len(worker.llm.tokenizer)) if i % 7)
    monkeypatch.setattr(model, "line_breaks", lambda tokenizer: breaks)
    rows = ask(group, plan(("qwen2.5-1.5b",), how), request).rows
    assert rows[0].tokens and rows[0].tokens[0] not in breaks
    assert temperature or rows == tuple(replace(row, weights={}) for row in worker.alone("s", request).rows)


def test_an_open_text_of_one_token_is_gone_on_with() -> None:
    one = random_llm("qwen3-0.6b")
    one = wrap("qwen3-0.6b", one.model, one.tokenizer, "", prompting="completion")
    ids = one.encode("a").ids
    answer = Member("qwen3-0.6b", llm=one).alone("s", Request(("a",), generation=Generation(max_tokens=2)))
    with torch.no_grad():
        first = int(one.model(torch.tensor([ids])).logits[0, -1].argmax())
    assert len(ids) == 1 and answer.rows[0].tokens[:1] == (first,)


def test_scores_are_those_of_the_whole_text() -> None:
    one = random_llm("llama-1b")
    one = wrap("llama-1b", one.model, one.tokenizer, "", prompting="completion")
    choices = ("red", "a tree", "blue")
    (row,) = Member("llama-1b", llm=one).alone("s", Request((ASKED,), choices=(choices,))).rows
    prompt = one.tokenizer(f"{ASKED}\nAnswer:", add_special_tokens=False)["input_ids"]
    for choice, score in zip(choices, row.scores, strict=True):
        ids = one.tokenizer(f"{ASKED}\nAnswer: {choice}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            log_p = one.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        said = [float(log_p[i - 1, ids[i]]) for i in range(len(prompt), len(ids))]
        assert ids[: len(prompt)] == prompt and score == pytest.approx(sum(said), abs=1e-4)


# -- federations ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base LLM in a folder: no chat template."""
    path = tmp_path_factory.mktemp("base") / "base"
    one = random_llm("llama-1b")
    tokenizer = copy(one.tokenizer)
    tokenizer.chat_template = None
    one.model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "how",
    [
        {"protocol": "standalone", "senders": []},
        {"protocol": "c2c"},
        {"protocol": "c2c", "rephrase": "shared"},
        {"protocol": "c2c", "fusion": "mix", "senders": ["qwen2.5-0.5b"]},
        {"protocol": "c2c", "fuser": "draft", "senders": ["llama-1b"]},
        {"protocol": "t2t"},
        {"protocol": "t2t", "t2t": {"ask": "hint"}},
        {"protocol": "ensemble"},
        {"protocol": "route"},
        {"protocol": "self_refine"},
        {"protocol": "self_consistency"},
        {"protocol": "fedattn"},
        {"protocol": "specfed"},
    ],
    ids=str,
)
def test_every_protocol_goes_on_with_a_text(how: dict[str, Any]) -> None:
    given = {"senders": ["qwen2.5-0.5b", "llama-1b"], **QUIET, **how}
    if how["protocol"] in ("fedattn", "specfed"):
        del given["senders"]
        given["task"] = {"name": "tiny-tell"} if how["protocol"] == "specfed" else {}
    evidence = {} if how["protocol"] == "specfed" or "fusion" in how else {"qwen3-0.6b": "it is small."}
    with Federation(prompting="completion", evidence=evidence, **given) as fed:
        assert {member.prompting for member in fed.members.values()} == {"completion"}
        if how["protocol"] != "ensemble":
            answer = fed.run(fed.request(*QUESTIONS, generation=Generation(max_tokens=4)))
            assert len(answer.rows) == 3 and not answer.missing
        if how["protocol"] != "specfed":
            chosen = fed.run(fed.request(QUESTIONS[0], choices=[("red", "blue")]))
            assert chosen.rows[0].text in ("red", "blue") and not chosen.missing
        if fed.settings.protocol.talks and "rephrase" not in how and "fusion" not in how:
            with fed.conversation() as talk:
                assert not talk.say(QUESTIONS[0]).missing and not talk.say(QUESTIONS[2]).missing


@pytest.mark.parametrize("protocol", ["t2t", "ensemble", "c2c"])
def test_members_are_prompted_by_what_they_are(folder: Path, tmp_path: Path, protocol: str) -> None:
    chat = random_llm("qwen3-0.6b")
    chat.model.save_pretrained(tmp_path / "chat")
    chat.tokenizer.save_pretrained(tmp_path / "chat")
    more = {"fuser": "identity"} if protocol == "c2c" else {}
    receiver, sender = (tmp_path / "chat", folder) if protocol != "c2c" else (folder, folder)
    senders = [f"{sender}#2" if protocol == "c2c" else str(sender)]
    given = {"zoo": "hub", "receiver": str(receiver), "senders": senders, "protocol": protocol, **more}
    with Federation(**given, gate="open", **QUIET) as fed:
        prompted = [member.prompting for member in fed.members.values()]
        assert prompted == (["completion", "completion"] if protocol == "c2c" else ["chat", "completion"])
        answer = fed.run(fed.request(QUESTIONS[0], choices=[("red", "blue")]))
        assert answer.rows[0].text and not answer.missing


def test_a_chat_without_a_template_is_refused_before_it_loads(folder: Path) -> None:
    says = "has no chat template and prompting=chat asks for one: leave prompting out"
    with pytest.raises(FedrayError, match=says):
        Federation(zoo="hub", receiver=str(folder), senders=[], protocol="standalone", prompting="chat", **QUIET)
    with pytest.raises(FedrayError, match=says):
        check_prompts([Source(str(folder), "hub", prompting="chat")], ["why?"])
    with pytest.raises(FedrayError, match="prompting"):
        Federation(prompting="talk", **QUIET)


def test_a_base_llm_answers_as_it_does_outside(folder: Path) -> None:
    """The greedy continuation of the text itself."""
    given = {"zoo": "hub", "receiver": str(folder), "senders": [], "protocol": "standalone"}
    with Federation(**given, generation={"max_tokens": 5}, **QUIET) as fed:
        tokens = fed.ask(OPEN).rows[0].tokens
        assert protocol_of(fed.plan).settings.name == "standalone"
    one = random_llm("llama-1b")
    ids = one.tokenizer(OPEN, add_special_tokens=False)["input_ids"]
    context = decoding.empty_context(1, one.device)
    with torch.no_grad():
        logits = decoding.step(one.model, context, torch.tensor([ids]))
        wanted: list[int] = []
        for _ in range(5):
            wanted.append(int(logits.argmax()))
            logits = decoding.step(one.model, context, torch.tensor([wanted[-1:]]))
    stop = next((i for i, token in enumerate(wanted) if token in one.stop_ids), 5)
    assert list(tokens) == wanted[:stop]
