"""A sender's values are compared with what its fuser saw in training: what lies far outside is left out."""

from __future__ import annotations

import asyncio
import json
import math
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Hostile
from support.methods import method
from test_expected import make
from tiny import QUESTIONS, random_fuser, random_llm, world

from fedray.fusion.norms import ABOVE, BELOW, LARGEST, RECORD, Norms, check_norms, norms_of
from fedray.llm.cache import KVCache
from fedray.llm.catalogue import EMBEDDED
from fedray.llm.loading import describe, load
from fedray.llm.source import HASHES
from fedray.member.member import Member
from fedray.methods.method import Wire
from fedray.protocols import PROTOCOLS
from fedray.protocols.group import LocalGroup
from fedray.registry.planner import Planner
from fedray.registry.store import SHIPPED, Registry, load_fuser, read_manifest
from fedray.training.conversations import conversations
from fedray.training.pair import Pair
from fedray.types import FedrayError, KVSpec, Plan, Request
from fedray.wire.payload import pack, unpack
from fedray.world.world import World, options
from fedray.zoo.build import ZooTask, _build_fuser, is_done

SPEC, LAYERS = KVSpec(2, 2, 4), ((0, 1), (0, 1))


def cache_of(keys: list[list[float]], values: list[list[float]], lengths: list[int]) -> KVCache:
    """One row per list of `keys`; every number of a token's is the one that is given."""

    def layer(of: list[list[float]]) -> torch.Tensor:
        return torch.tensor(of, dtype=torch.float32)[:, None, :, None].expand(-1, SPEC.kv_heads, -1, SPEC.head_dim)

    positions = torch.arange(len(keys[0]))[None].expand(len(keys), -1)
    return KVCache(SPEC, (layer(keys),) * 2, (layer(values),) * 2, torch.tensor(lengths), positions)


ROOT = math.sqrt(8)  # of a token's numbers in one layer
TRAINED = norms_of([cache_of([[1, 2, 900], [3, 4, 2]], [[1, 1, 0], [1, 1, 1]], [2, 3])])


def test_the_range_is_of_valid_tokens_over_all_caches() -> None:
    assert torch.tensor(TRAINED.keys).tolist() == torch.tensor([[ROOT, 4 * ROOT]] * 2).tolist()
    assert torch.tensor(TRAINED.values).tolist() == torch.tensor([[ROOT, ROOT]] * 2).tolist()
    more = norms_of([cache_of([[1, 2]], [[1, 1]], [2]), cache_of([[0.5]], [[7]], [1])])
    assert more.keys[0] == pytest.approx((0.5 * ROOT, 2 * ROOT)) and more.values[1] == pytest.approx((ROOT, 7 * ROOT))


def test_a_record_comes_back() -> None:
    record = json.loads(json.dumps(TRAINED.to_dict()))
    assert Norms.from_dict(record, 2).to_dict() == record
    assert record["keys"] == [[2.828, 11.31]] * 2


def check(numbers: list[float], norms: Norms | None = TRAINED, **how: Any) -> None:
    cache = cache_of([numbers], [[1.0] * len(numbers)], [len(numbers)])
    shipment = unpack(pack("a", cache, [0], **how))
    check_norms(shipment.sent, shipment.layers, shipment.spec, norms)


@pytest.mark.parametrize("codec", ["none", "int8", "int4"])
@pytest.mark.parametrize("number", [1.01 * BELOW, 1.0, 3.0, 4.0, 3.95 * ABOVE])
def test_what_is_near_the_range_passes(number: float, codec: str) -> None:
    check([1.0, number, 1.0], codec=codec)


@pytest.mark.parametrize("number", [0.0, 0.9 * BELOW, 4.1 * ABOVE, 100.0, 3e4, 1e18, 1e38])
def test_one_token_outside_is_enough(number: float) -> None:
    with pytest.raises(FedrayError, match=r"its keys in layer 0 have norms of .* per token, where 0\.354 to 45\.3 are"):
        check([1.0, number, 1.0])


def test_only_the_layers_that_came_are_looked_at() -> None:
    check([100.0], layers=((), (0, 1)))
    with pytest.raises(FedrayError, match="its keys in layer 1"):
        check([100.0], layers=((1,), ()))


def test_without_a_record_a_wide_bound_stands() -> None:
    for number in (0.0, 1e-20, 500.0, 0.99 * LARGEST):
        check([number], None)
    for number in (1.01 * LARGEST, 3e4, 1e38):
        with pytest.raises(FedrayError, match=r"are allowed$"):
            check([number], None)


@pytest.mark.parametrize(
    "record",
    [
        7,
        "far",
        [],
        {},
        {"keys": [[1, 2]] * 7},
        {"keys": [[1, 2]] * 7, "values": [[1, 2]] * 6},
        {"keys": [[1, 2]] * 7, "values": [[1, 2, 3]] * 7},
        {"keys": [[1, 2]] * 7, "values": [1] * 7},
        {"keys": [[1, 2]] * 7, "values": [["far", "2"]] * 7},
        {"keys": [[1, 2]] * 7, "values": [[1, math.inf]] * 7},
        {"keys": [[1, 2]] * 7, "values": [[-1, 2]] * 7},
        {"keys": [[2, 1]] * 7, "values": [[1, 2]] * 7},
    ],
)
def test_a_record_that_is_none_is_refused(record: object, tmp_path: Path) -> None:
    """Before it is kept, and by whoever loads a version that has it."""
    sender, receiver = random_llm("llama-1b"), random_llm("qwen3-0.6b")
    store, fuser = Registry(tmp_path, embedded=None), random_fuser(sender, receiver, "concat")
    with pytest.raises(FedrayError, match=f"{RECORD} "):
        store.add_fuser(fuser, describe(sender), describe(receiver), {RECORD: record})
    artifact = store.add_fuser(fuser, describe(sender), describe(receiver), {})
    path = Path(artifact.path) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "training": {RECORD: record}}))
    with pytest.raises(FedrayError, match=f"{RECORD} "):
        load_fuser(artifact)


def test_training_measures_what_it_reads() -> None:
    """In memory or batch by batch; the receiver of the fuser does not matter."""
    sender, talks = random_llm("llama-1b"), conversations(world(), "train")[:40]
    kept = Pair(sender, random_llm("qwen3-0.6b"), talks)
    read = Pair(sender, random_llm("qwen2.5-0.5b"), talks, memory_bytes=0, at_once=7)
    assert kept.in_memory and not read.in_memory
    assert kept.norms().to_dict() == read.norms().to_dict()
    assert len(kept.norms().keys) == sender.spec.layers and all(0 < a < b for a, b in kept.norms().values)


def test_a_zoo_that_lacks_the_record_gets_it_and_keeps_its_hashes(tmp_path: Path) -> None:
    """As those of the package did."""
    task = ZooTask("fuser", ("llama-1b", "qwen3-0.6b"), "mix")
    shutil.copytree(EMBEDDED / "llms", tmp_path / "llms")
    registry = Registry(embedded=SHIPPED)
    shipped = registry.find_fuser(*(describe(load(name)) for name in task.names), "mlp", "mix")
    folder = tmp_path / "registry" / shipped.name / shipped.hash
    shutil.copytree(shipped.path, folder)
    assert is_done(task, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["training"][RECORD]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert not is_done(task, tmp_path)
    _build_fuser(task, World(0), tmp_path, shorten=0.01, on_step=lambda *_: None)
    assert is_done(task, tmp_path) and (tmp_path / "llms" / HASHES).is_file()
    now, before = read_manifest(folder), read_manifest(Path(shipped.path))
    assert replace(now, training={}) == replace(before, training={})
    few, all_ = (Norms.from_dict(m.training[RECORD], 7) for m in (now, before))
    for side in ("keys", "values"):  # of 81 conversations, and of all 8,148
        for (a, b), (low, high) in zip(getattr(few, side), getattr(all_, side), strict=True):
            assert low * 0.999 <= a < b <= high * 1.001


# -- the fusers of the package -----------------------------------------------------------------------------------------

RECEIVER, BAD, GOOD = "qwen3-0.6b", "llama-1b", "qwen2.5-0.5b"
FACTS = [fact for fact in World(0).split("test") if fact.domain == "tree"][:8]
CHOICES = tuple(tuple(options(fact, random.Random(0))) for fact in FACTS)
REQUEST = Request(tuple(fact.ask() for fact in FACTS), choices=CHOICES)


@pytest.fixture(scope="module")
def group() -> LocalGroup:
    return LocalGroup({RECEIVER: Member(RECEIVER), BAD: Hostile(BAD), GOOD: Member(GOOD)})


def plan(group: LocalGroup, fusion: str, **choices: Any) -> Plan:
    infos = [group.members[name] for name in (BAD, GOOD)]
    return Planner().plan(group.members[RECEIVER], infos, method(gate="open", fusion=fusion, **choices))


@pytest.fixture(autouse=True)
def honest(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "group" in request.fixturenames:
        request.getfixturevalue("group")._members[BAD].how = ""


@pytest.mark.parametrize("fusion", ["concat", "mix"])
@pytest.mark.parametrize("how", ["x 100", "all 3e4", "all 1e38"])
def test_what_no_cache_is_like_is_left_out_and_its_figure_named(group: LocalGroup, fusion: str, how: str) -> None:
    one = plan(group, fusion)
    wanted = asyncio.run(PROTOCOLS["c2c"].run(REQUEST, replace(one, senders=(GOOD,)), group))
    group._members[BAD].how = how  # pyright: ignore[reportAttributeAccessIssue]
    answer = asyncio.run(PROTOCOLS["c2c"].run(REQUEST, one, group))
    (missing,) = answer.missing
    assert missing.member == BAD and missing.reason.endswith("are allowed after training") and answer.senders == (GOOD,)
    assert [row.scores for row in answer.rows] == [row.scores for row in wanted.rows]


HONEST = {
    "as it is": {},
    "int8": {"wire": Wire("int8")},
    "int4, some tokens and layers": {"wire": Wire("int4", keep=0.3, score="norm", keep_layers=0.5)},
    "noise": {"control": "noise"},
    "constant": {"control": "constant"},
    "constant in int4": {"control": "constant", "wire": Wire("int4")},
}


@pytest.mark.parametrize("how", HONEST)
def test_honest_senders_are_never_left_out(group: LocalGroup, how: str) -> None:
    one = plan(group, "concat", **HONEST[how])
    for prompts in (REQUEST.prompts, ("?", "a " * 200, "鳥の色は何ですか。", "\x00\x01", "🐦" * 30, *QUESTIONS)):
        answer = asyncio.run(
            PROTOCOLS["c2c"].run(Request(prompts, choices=(("red", "blue"),) * len(prompts)), one, group)
        )
        assert not answer.missing and answer.senders == (BAD, GOOD)


def test_a_row_has_the_norms_that_it_has_alone() -> None:
    spec = random_llm("llama-1b").spec
    together = unpack(pack("llama-1b", make([5, 1, 3], spec), [0, 1, 2])).cache
    apart = [together.select([b]) for b in range(3)]
    assert norms_of([together]).to_dict() == norms_of(apart).to_dict()
