"""FedAttn in this process: its identities, one masked pass as its reference, what it uploads, who is missing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from masked import masked_pass
from participants import BOTH, ONE, PROMPTS, ask, federation, load, logits, plan_of
from support.methods import method
from tiny import random_llm

from fedray.errors import MemberFailed
from fedray.llm.model import LLM
from fedray.member.member import Member
from fedray.methods.fedattn import FedAttn, sync_layers
from fedray.methods.method import Wire
from fedray.protocols.fedattn import parts_of, publishers_own
from fedray.protocols.group import LocalGroup
from fedray.types import Answer, FedrayError, Plan, Receipt, Request
from fedray.wire.payload import Payload, ships

FAMILIES = ("qwen3-0.6b", "qwen2.5-0.5b", "llama-1b")
SPARSE = FedAttn(sync_every=2, exchange=0.4)


def centralized(llm: LLM, request: Request = ONE) -> tuple[Answer, torch.Tensor]:
    """The LLM over the whole prompt: its answer, and its logits after the prompt."""
    group, plan = federation(llm, 1), Plan(llm.name, (), method(protocol="standalone", gate="none"))
    answer = ask(group, plan, request, "standalone")
    group.start(llm.name, "open", "s", request, plan)
    return answer, torch.tensor(group.result(group.start(llm.name, "first_logits", "s", (), plan)))


def same(one: Answer, other: Answer) -> bool:
    return [row.tokens for row in one.rows] == [row.tokens for row in other.rows]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "how",
    [FedAttn(3, 1), FedAttn(4, 1, segments="even"), FedAttn(1, 2), FedAttn(1, 6), FedAttn(1, 3, offset=-1)],
    ids=str,
)
def test_joint_attention_is_the_centralized_model(name: str, how: FedAttn) -> None:
    for llm in (random_llm(name), load(name)):
        group = federation(llm, how.participants)
        answer, (whole, expected) = ask(group, plan_of(group, how), BOTH), centralized(llm, BOTH)
        assert same(answer, whole)
        assert (logits(group) - expected).abs().max() < 1e-5
        assert answer.usage.prompt_tokens == whole.usage.prompt_tokens


@pytest.mark.parametrize("change", [{"sync_every": 2}, {"exchange": 0.5}, {"tokens": 0.5}, {"publisher_tokens": 0.5}])
def test_less_than_joint_attention_is_something_else(change: dict[str, Any]) -> None:
    llm = random_llm("qwen3-0.6b")
    group = federation(llm, 3)
    ask(group, plan_of(group, replace(FedAttn(3, 1), **change)))
    assert (logits(group) - centralized(llm)[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "how",
    [
        FedAttn(3, 2),
        FedAttn(4, 3, offset=-1),
        FedAttn(2, 6, question_apart=False),
        FedAttn(3, 3, placement="regressive", segments="even"),
        FedAttn(3, layers=(1, 4)),
        SPARSE,
        replace(SPARSE, score="norm", offset=-1),  # in layer 0 the same token has the same norm wherever it stands
        replace(SPARSE, score="mass"),
        replace(SPARSE, score="rare"),
        FedAttn(3, 2, tokens=0.6),
        FedAttn(3, 2, publisher_tokens=0.6),
        replace(SPARSE, tokens=0.6, publisher_tokens=0.6),
    ],
    ids=str,
)
def test_the_distributed_run_is_one_masked_pass(name: str, how: FedAttn) -> None:
    tied = name == "qwen3-0.6b" and how.score == "norm"  # untrained, the keys of Qwen3 all have one norm
    for llm in (load(name),) if tied else (random_llm(name), load(name)):
        group = federation(llm, how.participants)
        plan = plan_of(group, how, seed=3)
        answer = ask(group, plan)
        parts = [part for (part,) in parts_of(ONE, plan)]
        ends = len(parts) - 1
        ids = [llm.encode_part(part, first=i == 0, last=i == ends) for i, part in enumerate(parts)]
        assert [token for part in ids for token in part] == llm.encode(PROMPTS[0]).ids
        expected, said = masked_pass(llm, ids, how, 6, seed=3)
        assert answer.rows[0].tokens == said
        assert (logits(group)[0] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("score", ["random", "rare", "norm", "similar", "mass", "last"])
@pytest.mark.parametrize("tokens", [1.0, 0.7])
def test_a_batch_is_its_rows_alone(score: Any, tokens: float) -> None:
    group = federation(random_llm("qwen2.5-0.5b"), 3)
    plan = plan_of(group, replace(SPARSE, score=score, tokens=tokens))
    together = ask(group, plan, BOTH)
    found = logits(group)
    for row, prompt in enumerate(PROMPTS):
        alone = ask(group, plan, replace(BOTH, prompts=(prompt,)))
        assert alone.rows[0].tokens == together.rows[row].tokens
        assert (logits(group)[0] - found[row]).abs().max() < 1e-5


def test_choices_are_scored_as_the_centralized_model_scores_them() -> None:
    llm = load("llama-1b")
    request = replace(BOTH, choices=(("red", "blue and tall", "calm"), ("sweet", "sour, very sour", "calm")))
    group = federation(llm, 3)
    answer, (whole, _) = ask(group, plan_of(group, FedAttn(3, 1)), request), centralized(llm, request)
    for row, expected in zip(answer.rows, whole.rows, strict=True):
        assert row.choice == expected.choice
        assert row.scores == pytest.approx(expected.scores, abs=1e-4)


class Counting(Member):
    """Keeps the size of what it sends: (header, rows), a pair per sync."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.sizes: list[tuple[int, int]] = []

    def _post(self, *args: Any) -> Any:
        receipt, payload = super()._post(*args)
        if payload is not None:
            self.sizes.append((len(payload.header), sum(buffer.nbytes for buffer in payload.buffers)))
        return receipt, payload


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("how", [FedAttn(3, 1), FedAttn(3, 2), FedAttn(3, 4), FedAttn(4, 3, exchange=0.3)], ids=str)
def test_uploads_are_what_the_paper_says(name: str, how: FedAttn) -> None:
    """ceil(L/H) * T_n * 2 * H_kv * d_h * bytes, and a header; the publisher uploads nothing."""
    llm = random_llm(name)
    group = federation(llm, how.participants, Counting)
    plan = plan_of(group, how)
    answer = ask(group, plan)
    spec, total = llm.spec, 0
    for number, (member, (part,)) in enumerate(zip(plan.senders, parts_of(ONE, plan), strict=False)):
        tokens = len(llm.encode_part(part, first=number == 0, last=False))
        sizes = group._members[member].sizes  # pyright: ignore[reportAttributeAccessIssue]
        syncs = math.ceil(spec.layers / how.sync_every)
        kept = math.ceil(how.exchange * tokens)
        assert sum(rows for _, rows in sizes) == syncs * kept * 2 * spec.kv_heads * spec.head_dim * 4
        assert len(sizes) == syncs and all(header < 250 for header, _ in sizes)
        total += sum(header + rows for header, rows in sizes)
    assert not group._members[plan.receiver].sizes  # pyright: ignore[reportAttributeAccessIssue]
    assert answer.usage.payload_bytes == total


def test_rows_go_through_the_wire_codecs() -> None:
    llm = load("qwen3-0.6b")
    sizes = {}
    for codec in ("none", "int8"):
        group = federation(llm, 3)
        sizes[codec] = ask(group, plan_of(group, FedAttn(3, 2), wire=Wire(codec))).usage.payload_bytes
    assert sizes["int8"] < 0.5 * sizes["none"]


class Dying(Member):
    """Fails at one of its calls."""

    at = 0

    @ships
    def advance(self, session: str, position: int, senders: Any, *payloads: Payload) -> tuple[Receipt, Payload | None]:
        if "#2" in self.name and position == self.at:
            raise RuntimeError("died")
        return super().advance(session, position, senders, *payloads)

    @ships
    def begin(self, session: str, starts: tuple[int, ...]) -> tuple[Receipt, Payload | None]:
        if "#2" in self.name and self.at < 0:
            raise RuntimeError("died")
        return super().begin(session, starts)


def test_without_the_publisher_there_is_no_answer() -> None:
    class Lost(Member):
        def reply(self, *args: Any) -> Answer:
            raise RuntimeError("out of memory")

    group = federation(random_llm("qwen3-0.6b"), 2, Lost)
    with pytest.raises(MemberFailed, match=r"the receiver qwen3-0.6b failed: out of memory"):
        ask(group, plan_of(group, FedAttn(2, 2)))


def test_who_dies_is_left_out_from_then_on() -> None:
    llm = random_llm("qwen3-0.6b")
    found = []
    for at in (-1, 0, 1, 99):
        group = federation(llm, 3, Dying)
        group._members["qwen3-0.6b#2"].at = at  # pyright: ignore[reportAttributeAccessIssue]
        answer = ask(group, plan_of(group, FedAttn(3, 2)))
        assert [(m.member, m.reason) for m in answer.missing] == [("qwen3-0.6b#2", "died")] * (at < 99)
        assert answer.senders == ("qwen3-0.6b#2", "qwen3-0.6b#3")[at < 99 :]
        found.append(logits(group))
    assert all(not a.equal(b) for i, a in enumerate(found) for b in found[:i]), "what it had sent before stays"


def test_who_dies_may_end_the_request() -> None:
    group = federation(random_llm("qwen3-0.6b"), 3, Dying)
    with pytest.raises(MemberFailed, match=r"qwen3-0.6b#2: died"):
        ask(group, plan_of(group, FedAttn(3, 2), on_missing="error"))


def test_without_the_others_it_is_the_publisher_at_its_place() -> None:
    """All others missing from the first call: the same as a pass that sees nothing of them."""
    llm = random_llm("llama-1b")
    group = federation(llm, 2, Dying)
    group._members["llama-1b#2"].at = -1  # pyright: ignore[reportAttributeAccessIssue]
    plan = plan_of(group, FedAttn(2, 2))
    answer = ask(group, plan)
    (first,), (last,) = parts_of(ONE, plan)
    parts = [llm.encode_part(first, first=True, last=False), llm.encode_part(last, first=False, last=True)]
    nothing = replace(FedAttn(2), layers=(0,), exchange=0.0)
    assert answer.rows[0].tokens == masked_pass(llm, parts, nothing, 6)[1]


def test_the_publishers_own_part_is_the_question() -> None:
    plan = Plan("a", ("a#2", "a#3"), method(protocol=FedAttn()))
    assert publishers_own(BOTH, plan).prompts == tuple(prompt.rpartition("\n")[2] for prompt in PROMPTS)
    document, question = PROMPTS[0].removeprefix("notes:\n").replace("- ", "").rsplit("\n", 1)
    noted = Request((question,), evidence={"a": (document,)})
    assert parts_of(noted, plan) == parts_of(ONE, plan), "notes that are the receiver's evidence are the context"


def test_token_ids_are_cut_evenly() -> None:
    llm = random_llm("qwen3-0.6b")
    request = Request((), token_ids=(tuple(llm.encode(PROMPTS[0]).ids),), generation=ONE.generation)
    group = federation(llm, 3)
    assert same(ask(group, plan_of(group, FedAttn(3, 1)), request), centralized(llm)[0])


def test_other_llms_are_refused() -> None:
    members = {"a": Member("a", llm=random_llm("qwen3-0.6b")), "b": Member("b", llm=random_llm("llama-1b"))}
    with pytest.raises(FedrayError, match="one LLM in all participants"):
        ask(LocalGroup(members), Plan("a", ("b",), method(protocol=FedAttn(2))))


@pytest.mark.parametrize(
    ("how", "layers"),
    [
        (FedAttn(sync_every=1), (0, 1, 2, 3, 4, 5, 6, 7)),
        (FedAttn(sync_every=3), (0, 3, 6)),
        (FedAttn(sync_every=3, offset=-1), (2, 5)),
        (FedAttn(sync_every=4, placement="shallow"), (0, 2)),
        (FedAttn(sync_every=4, placement="deep"), (4, 6)),
        (FedAttn(sync_every=2, placement="progressive"), (0, 4, 6, 7)),
        (FedAttn(sync_every=2, placement="regressive"), (0, 1, 2, 4)),
        (FedAttn(sync_every=8), (0,)),
        (FedAttn(layers=(5, 1)), (1, 5)),
    ],
    ids=str,
)
def test_where_the_syncs_are(how: FedAttn, layers: tuple[int, ...]) -> None:
    assert sync_layers(how, 8) == layers


@pytest.mark.parametrize("placement", ["uniform", "shallow", "deep", "progressive", "regressive"])
def test_every_placement_has_as_many_syncs(placement: Any) -> None:
    for depth in range(1, 30):
        for every in range(1, depth + 1):
            how = FedAttn(sync_every=every, placement=placement)
            if every == 1 and placement != "uniform":
                with pytest.raises(FedrayError, match="says which layers sync where not all do"):
                    sync_layers(how, depth)
                continue
            layers = sync_layers(how, depth)
            assert len(layers) == math.ceil(depth / every)
            assert sorted(set(layers)) == list(layers) and layers[0] >= 0 and layers[-1] < depth


@pytest.mark.parametrize("how", [FedAttn(sync_every=9), FedAttn(layers=(3, 8))], ids=str)
def test_beyond_the_depth_is_refused(how: FedAttn) -> None:
    with pytest.raises(FedrayError, match=r"8|7"):
        sync_layers(how, 8)
