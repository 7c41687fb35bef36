"""FedAttn with each participant in a process of its own: the masked pass it equals, what reaches whom, who dies."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from masked import masked_pass
from probes import lent, runs, start_counting, stop_counting, take, taken, written
from support.methods import method, revised
from support.methods import plan as make_plan

from fedray import Federation
from fedray.errors import MemberFailed
from fedray.llm.catalogue import copies
from fedray.llm.loading import load
from fedray.methods.fedattn import FedAttn
from fedray.protocols import PROTOCOLS
from fedray.protocols.fedattn import parts_of
from fedray.protocols.group import Handle
from fedray.runtime.actors import RayGroup, load_members
from fedray.runtime.failures import GONE
from fedray.runtime.placement import Placement
from fedray.types import Answer, Generation, Plan, Request

NAME = "llama-1b"
PROMPT = (
    "notes:\n- the color of the bird tari is red.\n- the mood of the star dika is calm.\n- the home of the gem sosa is "
    "hill.\n- the size of the bird mino is tall.\nwhat is the home of the gem sosa?"
)
REQUEST = Request((PROMPT,), generation=Generation(max_tokens=6))
NAMES = copies(NAME, 3)


class Keeping:
    """A group whose sessions stay open, and in which a participant is killed when a method is about to start."""

    def __init__(self, group: RayGroup, victim: str = "", at: tuple[Any, ...] = ()) -> None:
        self._group, self._victim, self._at = group, victim, at
        self.session = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._group, name)

    def start(self, member: str, method: str, session: str, *args: Any, **kwargs: Any) -> Handle:
        self.session = session
        if (member, method, *args)[: 1 + len(self._at)] == (self._victim, *self._at):
            os.kill(self._group.members[member].pid, signal.SIGKILL)
        return self._group.start(member, method, session, *args, **kwargs)

    def release(self, session: str, members: Iterable[str]) -> None:
        pass


@pytest.fixture(scope="module")
def group(spread: Federation) -> Iterator[RayGroup]:
    with lent(spread._group, *NAMES) as group:
        yield group


@pytest.fixture
def mortal(group: RayGroup) -> Iterator[RayGroup]:
    """The same group, with another second participant, for a test that ends it."""
    victim = load_members([Placement(NAMES[1], num_cpus=0.5)])
    yield RayGroup({**group._actors, **victim._actors}, {**group.members, **victim.members})
    victim.close()


def plan_of(how: FedAttn, **more: Any) -> Plan:
    return make_plan(NAME, NAMES[1:], protocol=how, **more)


def ask(group: Any, plan: Plan, request: Request = REQUEST) -> Answer:
    return asyncio.run(PROTOCOLS["fedattn"].run(request, plan, group))


def logits(group: Keeping, publisher: str = NAME) -> torch.Tensor:
    handle = group.start(publisher, "prompt_logits", group.session)
    asyncio.run(group.wait([handle]))
    return torch.tensor(group.result(handle))


@pytest.mark.parametrize(
    "how",
    [
        FedAttn(3, 1),
        FedAttn(3, 2),
        FedAttn(3, 3, offset=-1, segments="even"),
        FedAttn(3, 2, exchange=0.4),
        FedAttn(3, 2, placement="deep", exchange=0.4, score="mass"),
    ],
    ids=str,
)
def test_three_processes_are_one_masked_pass(group: RayGroup, how: FedAttn) -> None:
    assert len({os.getpid(), *(info.pid for info in group.members.values())}) == 4
    llm, open_group, plan = load(NAME), Keeping(group), plan_of(how, seed=5)
    answer = ask(open_group, plan)
    parts = [part for (part,) in parts_of(REQUEST, plan)]
    ids = [llm.encode_part(part, first=i == 0, last=i == 2) for i, part in enumerate(parts)]
    expected, said = masked_pass(llm, ids, how, 6, seed=5)
    assert answer.rows[0].tokens == said
    assert (logits(open_group)[0] - expected).abs().max() < 1e-5
    if how == FedAttn(3, 1):
        (joint,) = asyncio.run(PROTOCOLS["standalone"].run(REQUEST, plan, group)).rows
        assert joint.tokens == said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen2.5-0.5b"])
def test_so_are_two_of_another_family_row_by_row(cluster: Any, name: str) -> None:
    """Rows of different lengths, padded; and all tokens are one prompt where every layer is in sync."""
    two = load_members([Placement(one, num_cpus=0) for one in copies(name, 2)])
    short = "notes:\n- the mood of the star dika is calm.\nwhat is the mood of the star dika?"
    request, llm = replace(REQUEST, prompts=(PROMPT, short)), load(name)
    try:
        for every in (1, 2):
            plan = Plan(name, (f"{name}#2",), method(protocol=FedAttn(2, every)))
            open_group = Keeping(two)
            rows = ask(open_group, plan, request).rows
            found = logits(open_group, name)
            for b, parts in enumerate(zip(*parts_of(request, plan), strict=True)):
                ids = [llm.encode_part(part, first=i == 0, last=i == 1) for i, part in enumerate(parts)]
                expected, said = masked_pass(llm, ids, plan.method.protocol, 6)
                assert rows[b].tokens == said and (found[b] - expected).abs().max() < 1e-5
            joint = asyncio.run(PROTOCOLS["standalone"].run(request, plan, two)).rows
            assert [row.tokens for row in joint] == [row.tokens for row in rows] or every > 1
    finally:
        two.close()


def test_tokens_never_leave_their_owner(group: RayGroup) -> None:
    """All that each process takes from Ray is looked through: its own segment is there, no word of another's is, and no
    four of its token ids in a row."""
    plan = plan_of(FedAttn(3, 2))
    actors = [group._actors[name] for name in NAMES]
    ray.get([actor.__ray_call__.remote(start_counting) for actor in actors])
    answer = ask(group, plan)
    took = dict(zip(NAMES, ray.get([actor.__ray_call__.remote(taken) for actor in actors]), strict=True))
    ray.get([actor.__ray_call__.remote(stop_counting) for actor in actors])
    assert answer.usage.payload_bytes > 0 and not answer.missing
    own = {name: part for name, (part,) in zip((*NAMES[1:], NAME), parts_of(REQUEST, plan), strict=True)}
    assert [part.count("\n") for part in own.values()] == [3, 2, 0]
    told = {
        name: runs(load(NAME).encode_part(part, first=name == NAMES[1], last=name == NAME))
        for name, part in own.items()
    }
    for name in NAMES:
        seen = b"".join(took[name])
        assert own[name].encode() in seen, "the probe is blind"
        for other in set(NAMES) - {name}:
            # Three letters stand in a megabyte of numbers by chance, once in some twenty runs.
            words = set(re.findall(r"\w{4,}", own[other])) - set(re.findall(r"\w+", own[name]))
            assert words and not [word for word in words if says(seen, word)]
            assert told[other] - told[name] and not ways_of(seen, told[other] - told[name])
        assert PROMPT.encode() not in seen


def test_the_probe_sees_words_and_token_ids(group: RayGroup) -> None:
    actor, ids = group._actors[NAME], load(NAME).encode_part(PROMPT, first=True, last=False)
    given = (
        np.array(ids, np.int32),
        np.array(ids, np.int64),
        tuple(ids),
        list(ids),
        json.dumps(ids, separators=(",", ":")),
    )
    for thing, way in zip(given, written(ids), strict=True):
        ray.get(actor.__ray_call__.remote(start_counting))
        ray.get(actor.__ray_call__.remote(take, thing))
        seen = b"".join(ray.get(actor.__ray_call__.remote(taken)))
        ray.get(actor.__ray_call__.remote(stop_counting))
        assert ways_of(seen, runs(ids)) == {way}
    assert all(says(PROMPT.encode(), word) for word in ("notes", "the", "what", "tall"))


def says(seen: bytes, word: str) -> bool:
    """Whether a word stands there by itself, wherever its line or segment begins."""
    return re.search(rb"(?<![A-Za-z_])" + word.encode() + rb"(?![A-Za-z_])", seen) is not None


def ways_of(seen: bytes, told: set[tuple[int, ...]]) -> set[str]:
    """How token ids in a row lie there; what is so short that it may be there by chance is not looked for."""
    return {way for run in told for way, data in written(run).items() if len(data) >= 8 and data in seen}


@pytest.mark.slow
@pytest.mark.parametrize("at", [("hold",), ("advance", 1)], ids=str)
def test_who_dies_is_left_out_and_named(group: RayGroup, mortal: RayGroup, at: tuple[Any, ...]) -> None:
    plan = plan_of(FedAttn(3, 2))
    whole, dying = Keeping(group), Keeping(mortal, NAMES[1], at)
    complete, answer = ask(whole, plan), ask(dying, plan)
    assert [(m.member, m.reason) for m in answer.missing] == [(NAMES[1], GONE)]
    assert answer.senders == NAMES[2:] and answer.rows[0].text
    assert complete.senders == NAMES[1:] and not complete.missing
    assert not logits(whole).equal(logits(dying))


@pytest.mark.slow
def test_who_dies_may_end_the_request(mortal: RayGroup) -> None:
    plan = revised(plan_of(FedAttn(3, 2)), on_missing="error")
    with pytest.raises(MemberFailed, match=f"{NAMES[1]}: died"):
        ask(Keeping(mortal, NAMES[1], ("advance", 0)), plan)
