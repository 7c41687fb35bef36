"""What a plan sends and what it leaves out: layers that no fuser reads change no bit, dropped tokens are not there, and
where a layer is dropped its gates might as well be closed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.methods import method, revised
from support.methods import plan as make_plan
from tiny import QUESTIONS, random_llm, random_member

from fedray.fusion.build import build_fuser
from fedray.fusion.c2c import C2CFuser
from fedray.fusion.fuser import Fuser, FuserConfig
from fedray.fusion.mlp import MLPFuser
from fedray.llm.loading import describe
from fedray.methods.method import Gate, Wire
from fedray.protocols import PROTOCOLS
from fedray.protocols.group import LocalGroup
from fedray.registry.layers_read import layers_read
from fedray.registry.store import Registry, load_fuser
from fedray.types import Answer, Artifact, Generation, KVSpec, Plan, Request
from fedray.wire.payload import Payload, unpack
from fedray.wire.selection import LAYER_SCORES, SCORES, keep_layers, keep_tokens

MEMBERS = ("qwen2.5-0.5b", "llama-1b", "qwen2.5-1.5b")
REQUEST = Request((*QUESTIONS, "hm?"), generation=Generation(max_tokens=6))


class Listening(LocalGroup):
    """Keeps what is sent."""

    def start(self, member, method, *args, **kwargs):
        done = super().start(member, method, *args, **kwargs)
        if isinstance(done.payload, Payload):
            self.sent.append(done.payload)
        return done


@pytest.fixture
def group() -> Listening:
    group = Listening({name: random_member(name) for name in MEMBERS})
    group.sent = []
    return group


def fuser_of(sender: str, receiver: str, kind: str, operator: str, alignment: str, root: Path) -> Artifact:
    """An untrained fuser in a registry; a c2c one has every third key gate and every second value gate closed."""
    one, two = random_llm(sender), random_llm(receiver)
    torch.manual_seed(1)
    config = FuserConfig(kind, operator, one.spec, two.spec, 32, 32, layer_alignment=alignment)
    fuser = build_fuser(config)
    for number, projector in enumerate(getattr(fuser, "projectors", ())):
        with torch.no_grad():
            projector.key_gate_logit.fill_(-1.0 if number % 3 == 0 else 1.0)
            projector.value_gate_logit.fill_(0.0 if number % 2 else 1.0)
    return Registry(root, embedded=None).add_fuser(fuser, describe(one), describe(two), {})


def plan_of(receiver: str, kind: str, operator: str, alignment: str, root: Path, **more: Any) -> Plan:
    senders = tuple(name for name in MEMBERS if name != receiver)
    fusers = {sender: fuser_of(sender, receiver, kind, operator, alignment, root) for sender in senders}
    return make_plan(receiver, senders, **{"gate": "open", "fusion": operator, "fusers": fusers, **more})


def sending_all(plan: Plan) -> Plan:
    fusers = {sender: replace(artifact, layers=None) for sender, artifact in plan.fusers.items()}
    return replace(plan, fusers=fusers, peers=tuple(map(sending_all, plan.peers)))


def ask(group: LocalGroup, plan: Plan) -> Answer:
    return asyncio.run(PROTOCOLS["c2c"].run(REQUEST, plan, group))


def told(answer: Answer) -> dict[str, object]:
    """All that an answer says, bit for bit; `rows` are the receiver's."""
    everybody = {"": answer.rows, **answer.by_member}
    return {name: [(row.tokens, row.scores) for row in rows] for name, rows in everybody.items()}


@pytest.mark.parametrize("alignment", ["bottom_up", "last_aligned"])
@pytest.mark.parametrize(("kind", "operator"), [("mlp", "concat"), ("mlp", "mix"), ("c2c", "mix")])
def test_layers_that_are_not_read_change_nothing(group, tmp_path, kind, operator, alignment):
    plan = plan_of("qwen2.5-0.5b", kind, operator, alignment, tmp_path)
    scored = Request(QUESTIONS, choices=(("red", "blue and tall"),) * len(QUESTIONS))
    for request in (REQUEST, scored):
        some, whole = (asyncio.run(PROTOCOLS["c2c"].run(request, p, group)) for p in (plan, sending_all(plan)))
        assert told(some) == told(whole)
        assert told(some) != told(asyncio.run(PROTOCOLS["standalone"].run(request, plan, group)))
        fewer = any(len(side) < random_llm(s).spec.layers for s, a in plan.fusers.items() for side in a.layers or ())
        assert (some.usage.payload_bytes < whole.usage.payload_bytes) == fewer


def test_one_sender_sends_each_of_several_receivers_what_it_reads(group, tmp_path):
    plans = [plan_of(name, "c2c", "mix", "last_aligned", tmp_path) for name in MEMBERS]
    both = replace(plans[0], peers=tuple(plans[1:]))
    some = ask(group, both)
    sent = {(unpack(payload).member, unpack(payload).layers) for payload in group.sent}
    assert sent == {(sender, artifact.layers) for p in plans for sender, artifact in p.fusers.items()}
    assert told(some) == told(ask(group, sending_all(both)))


def test_what_a_fuser_reads_is_known_from_its_folder(tmp_path):
    artifact = fuser_of("qwen2.5-1.5b", "qwen2.5-0.5b", "c2c", "mix", "last_aligned", tmp_path)
    assert artifact.layers is not None
    source, target = (random_llm(name).spec.layers for name in ("qwen2.5-1.5b", "qwen2.5-0.5b"))
    aligned = [max(source - target + t, 0) for t in range(target)]
    assert artifact.layers[0] == tuple(sorted({s for t, s in enumerate(aligned) if t % 3}))
    assert artifact.layers[1] == tuple(sorted({s for t, s in enumerate(aligned) if t % 2 == 0}))
    config = FuserConfig("mlp", "concat", KVSpec(5, 1, 2), KVSpec(3, 1, 2))
    assert layers_read(config) == ((0, 1, 2), (0, 1, 2))
    config = replace(config, layer_alignment="last_aligned")
    assert layers_read(config) == ((2, 3, 4), (2, 3, 4))


@pytest.mark.parametrize("operator", ["concat", "mix"])
@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_a_codec_sends_less_and_changes_little(group, tmp_path, operator, codec):
    plan = plan_of("qwen2.5-0.5b", "mlp", operator, "bottom_up", tmp_path)
    whole, coded = (ask(group, p) for p in (plan, revised(plan, wire=Wire(codec))))
    share = {"int8": 0.5, "int4": 0.4}[codec]  # of float32, with the scales of short rows
    assert coded.senders == whole.senders and not coded.missing
    assert coded.usage.payload_bytes < share * whole.usage.payload_bytes


@pytest.mark.parametrize("operator", ["concat", "mix"])
def test_dropped_tokens_are_not_there(group, tmp_path, operator):
    plan = plan_of("qwen2.5-0.5b", "mlp", operator, "bottom_up", tmp_path, gate=Gate("open", "lazy"))
    whole = ask(group, plan)
    group.sent.clear()
    half = ask(group, revised(plan, wire=Wire(keep=0.5)))
    assert not half.missing and half.usage.payload_bytes < 0.7 * whole.usage.payload_bytes
    for payload in group.sent:
        shipment = unpack(payload)
        assert shipment.cache.lengths.tolist() == [-(-n // 2) for n in shipment.whole]
    assert told(half) != told(whole)
    assert told(ask(group, revised(plan, wire=Wire(keep=1.0, score="random")))) == told(whole)


def test_a_dropped_token_leaves_its_mixed_token_alone(group, tmp_path):
    """With none but the last token sent, mix changes only the tokens that read it."""
    from fedray.fusion import combine

    artifact = fuser_of("qwen2.5-1.5b", "qwen2.5-0.5b", "mlp", "mix", "bottom_up", tmp_path)
    plan = Plan("qwen2.5-0.5b", ("qwen2.5-1.5b",), method(gate="open", fusion="mix"), fusers={"qwen2.5-1.5b": artifact})
    receiver, sender = (group._members[name] for name in ("qwen2.5-0.5b", "qwen2.5-1.5b"))
    prompts = (QUESTIONS[0],)
    receiver.open("s", Request(prompts), plan)
    held = receiver._sessions.get("s")
    caches, aligned = [], []
    for wire in (Wire(), Wire(keep=0.01)):
        _, payload = sender.share("s", (0,), prompts=prompts, spans=True, wire=wire, layers=artifact.layers)
        part = receiver._part("qwen2.5-1.5b", unpack(payload), held, plan)
        aligned.append(combine.alignment(part, held.own(), held.spans)[1][0] > 0)
        caches.append(combine.mix(held.own(), held.spans, [part]))
    whole, one = aligned
    assert whole.sum() > one.sum() > 0 and not (one & ~whole).any()
    own = held.own().keys[0][0]
    assert torch.equal(caches[1].keys[0][0][:, ~one], own[:, ~one])
    assert torch.equal(caches[1].keys[0][0][:, one], caches[0].keys[0][0][:, one])
    assert not torch.equal(caches[1].keys[0][0][:, one], own[:, one])


@pytest.mark.parametrize("score", SCORES)
def test_a_row_keeps_the_same_tokens_whatever_stands_beside_it(score):
    llm = random_llm("llama-1b")
    from fedray.llm.decoding import prefill

    ids = [llm.encode(prompt).ids for prompt in (QUESTIONS[0], "hm?", " ".join(QUESTIONS))]
    cache, _ = prefill(llm.model, ids, llm.pad_id)
    kept = keep_tokens(cache, 0.4, score)
    assert kept.lengths.tolist() == [-(-2 * len(row) // 5) for row in ids]
    for b, row in enumerate(ids):
        length = int(kept.lengths[b])
        places = kept.positions[b, :length].tolist()
        assert places == sorted(set(places)) and places[-1] == len(row) - 1
        assert torch.equal(kept.values[1][b, :, :length], cache.values[1][b][:, places])
        if score != "random":
            alone = keep_tokens(cache.select([b]), 0.4, score)
            assert alone.positions[0].tolist() == places
    assert keep_tokens(cache, 1.0, score) is cache


@torch.no_grad()
def close(fuser: Fuser, t: int) -> None:
    """Let nothing into receiver layer t."""
    if isinstance(fuser, C2CFuser):
        fuser.projectors[t].key_gate_logit.fill_(-1.0)  # pyright: ignore
        fuser.projectors[t].value_gate_logit.fill_(-1.0)  # pyright: ignore
    elif isinstance(fuser, MLPFuser):
        fuser.weight.bias[t :: fuser.config.receiver.layers].fill_(-1e4)


def closed_where_dropped(plan: Plan, root: Path) -> Plan:
    """The plan that sends all, with fusers whose gates are closed where they would read what the plan leaves out."""
    receiver, fusers = random_llm(plan.receiver), {}
    for sender, artifact in plan.fusers.items():
        fuser, wire = load_fuser(artifact), plan.method.wire
        kept = keep_layers(artifact.layers, wire.keep_layers, wire.layer_score, plan.seed)
        for t, (key, value) in enumerate(zip(*fuser.reached(kept), strict=True)):
            if not (key or value):
                close(fuser, t)
        found = Registry(root, embedded=None).add_fuser(fuser, describe(random_llm(sender)), describe(receiver), {})
        assert found.hash != artifact.hash
        fusers[sender] = replace(found, layers=None)
    return revised(plan, wire=Wire(), fusers=fusers)


@pytest.mark.parametrize("score", ["spread", "deep", "shallow"])
@pytest.mark.parametrize(("kind", "operator"), [("mlp", "concat"), ("mlp", "mix"), ("c2c", "mix")])
def test_a_dropped_layer_is_as_if_its_gates_were_closed(group, tmp_path, kind, operator, score):
    plan = plan_of("qwen2.5-0.5b", kind, operator, "bottom_up", tmp_path, wire=Wire(keep_layers=0.5, layer_score=score))
    closed = closed_where_dropped(plan, tmp_path / "closed")
    scored = Request(QUESTIONS, choices=(("red", "blue and tall"),) * len(QUESTIONS))
    for request in (REQUEST, scored):
        half, as_closed, whole = (
            asyncio.run(PROTOCOLS["c2c"].run(request, p, group)) for p in (plan, closed, revised(plan, wire=Wire()))
        )
        assert half.senders == plan.senders and not half.missing
        assert told(half) == told(as_closed) != told(whole)


def test_only_the_layers_that_are_kept_cross_the_wire(group, tmp_path):
    plan = plan_of("qwen2.5-0.5b", "mlp", "concat", "bottom_up", tmp_path)
    whole = ask(group, plan)
    everything = {unpack(payload).member: payload for payload in group.sent}
    group.sent.clear()
    half = ask(group, revised(plan, wire=Wire(keep_layers=0.5, layer_score="deep")))
    for payload in group.sent:
        shipment = unpack(payload)
        keys, values = plan.fusers[shipment.member].layers
        assert shipment.layers == (keys[len(keys) // 2 :], values[len(values) // 2 :])
        before, after = (sum(b.nbytes for b in p.buffers) for p in (everything[shipment.member], payload))
        assert len(keys) == len(values) and after * len(keys) == before * len(keys[len(keys) // 2 :])
    assert half.usage.payload_bytes == sum(p.nbytes for p in group.sent) < 0.7 * whole.usage.payload_bytes
    both = ask(group, revised(plan, wire=Wire("int8", 0.5, keep_layers=0.5)))
    assert both.senders == plan.senders and both.usage.payload_bytes < 0.3 * half.usage.payload_bytes
    assert told(ask(group, revised(plan, wire=Wire(keep_layers=1.0, layer_score="random")))) == told(whole)


@pytest.mark.parametrize("score", LAYER_SCORES)
def test_kept_layers_are_among_those_that_are_read(score):
    read = ((0, 2, 3, 5, 8), (2, 4, 8))
    for share, count in ((0.01, 1), (0.2, 2), (0.5, 3), (0.9, 6)):
        keys, values = keep_layers(read, share, score)
        assert len({*keys, *values}) == count
        assert set(keys) <= set(read[0]) and set(values) <= set(read[1])
        assert (list(keys), list(values)) == (sorted(keys), sorted(values))
    assert keep_layers(read, 1.0, score) == read and keep_layers(((), ()), 0.5, score) == ((), ())


def test_where_kept_layers_lie():
    read = ((0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5))
    found = {score: keep_layers(read, 0.5, score)[0] for score in ("spread", "deep", "middle", "shallow")}
    assert found == {"spread": (0, 3, 5), "deep": (3, 4, 5), "middle": (1, 2, 3), "shallow": (0, 1, 2)}
    assert [keep_layers(read, share)[0] for share in (0.1, 0.3, 0.6, 0.8)] == [
        (5,),
        (0, 5),
        (0, 2, 3, 5),
        (0, 1, 3, 4, 5),
    ]
