"""A participant's calls in FedAttn: repeated, out of step, failed, and what stays in memory afterwards."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from participants import BOTH, ask, plan_of
from tiny import random_llm

from fedray.errors import SessionLost
from fedray.llm.model import LLM
from fedray.member.fedattn.participant import Segment
from fedray.member.fedattn.paused_pass import Parked
from fedray.member.member import Member
from fedray.methods.fedattn import FedAttn
from fedray.protocols.group import LocalGroup
from fedray.types import Generation

HOW, TEXT = FedAttn(2, 2), ("notes:\n- a b c.\n",)


@contextmanager
def failing(llm: LLM, layer: int) -> Iterator[None]:
    """Out of memory in front of a layer, once."""

    def fail(*_: Any) -> None:
        hook.remove()
        raise RuntimeError("out of memory")

    hook = llm.model.model.layers[layer].register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert not set(threading.enumerate()) - before


def test_calls_may_be_repeated_and_are_refused_out_of_step() -> None:
    llm = random_llm("qwen3-0.6b")
    member = Member("p", llm=llm)
    member.hold("s", ("notes:\n- a b c.\n",), FedAttn(2, 2), 0)
    first = member.begin("s", (0,))
    assert member.begin("s", (0,)) is first
    second = member.advance("s", 0, ())
    assert member.advance("s", 0, ()) is second
    with pytest.raises(SessionLost, match="sync 2 came where 1 was next"):
        member.advance("s", 2, ())
    member.release("s")
    with pytest.raises(SessionLost):
        member.advance("s", 1, ())
    assert member.stats()["sessions"] == 0


def test_threads_end_with_their_sessions() -> None:
    before = set(threading.enumerate())
    llm = random_llm("qwen3-0.6b")
    names = [llm.name, f"{llm.name}#2", f"{llm.name}#3"]
    group = LocalGroup({name: Member(name, llm=replace(llm, name=name)) for name in names})
    ask(group, plan_of(group, FedAttn(3, 2)), BOTH)
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert not set(threading.enumerate()) - before


def test_a_request_leaves_nothing_for_the_garbage_collector() -> None:
    """A pass in a cycle of references would keep its tensors until Python happens to look for cycles."""
    before, llm = set(threading.enumerate()), random_llm("qwen3-0.6b")
    names = [llm.name, f"{llm.name}#2"]
    group = LocalGroup({name: Member(name, llm=replace(llm, name=name)) for name in names})
    gc.collect()
    held = {id(thing) for thing in gc.get_objects() if type(thing) in (Parked, Segment)}
    gc.disable()
    try:
        ask(group, plan_of(group, FedAttn(2, 2)))
        for thread in set(threading.enumerate()) - before:
            thread.join(5)
        left = [thing for thing in gc.get_objects() if type(thing) in (Parked, Segment) and id(thing) not in held]
        assert not left
    finally:
        gc.enable()


def test_a_call_of_long_ago_is_out_of_step() -> None:
    member = Member("p", llm=random_llm("qwen3-0.6b"))
    member.hold("s", TEXT, HOW, 0)
    member.begin("s", (0,))
    member.advance("s", 0, ())
    with pytest.raises(SessionLost, match="begun"):
        member.begin("s", (0,))
    second = member.advance("s", 1, ())
    with pytest.raises(SessionLost, match="sync 0 came where 2 was next"):
        member.advance("s", 0, ())
    assert member.advance("s", 1, ()) is second
    member.release("s")


def test_a_call_that_failed_gives_nothing_when_repeated() -> None:
    llm = random_llm("qwen3-0.6b")
    for layer, calls in ((0, ["begin"]), (1, ["begin", "advance"])):
        member = Member("p", llm=llm)
        member.hold("s", TEXT, HOW, 0)
        with no_thread_stays(), failing(llm, layer):
            *before, last = [getattr(member, call) for call in calls]
            for call in before:
                call("s", (0,))
            arguments = ("s", (0,)) if last == member.begin else ("s", 0, ())
            with pytest.raises(RuntimeError, match="out of memory"):
                last(*arguments)
        with pytest.raises(SessionLost):
            last(*arguments)


def test_a_repeated_hold_begins_anew() -> None:
    member = Member("p", llm=random_llm("qwen3-0.6b"))
    member.hold("s", TEXT, HOW, 0)
    with no_thread_stays():
        member.begin("s", (0,))
        member.hold("s", TEXT, HOW, 0)
    with pytest.raises(SessionLost, match="sync 0 came where none was next"):
        member.advance("s", 0, ())
    assert member.begin("s", (0,))[1] is not None
    member.release("s")


def test_a_reply_is_given_once() -> None:
    member = Member("p", llm=random_llm("qwen3-0.6b"))
    member.hold("s", ("what is a?",), FedAttn(1, layers=(0, 2)), 0)
    member.begin("s", (0,))
    with pytest.raises(SessionLost, match="not the last"):
        member.reply("s", 0, (), None, Generation(max_tokens=2))
    member.hold("s", ("what is a?",), FedAttn(1, layers=(0,)), 0)
    member.begin("s", (0,))
    assert member.reply("s", 0, (), None, Generation(max_tokens=2)).rows
    with pytest.raises(SessionLost):
        member.reply("s", 0, (), None, Generation(max_tokens=2))
    member.release("s")


def test_a_release_that_meets_begin_leaves_no_thread() -> None:
    class Released(Member):
        """Its session ends when its pass is made and nobody knows of it yet."""

        def _pass(self, *args: Any) -> Any:
            work = super()._pass(*args)
            self.release("s")
            return work

    member = Released("p", llm=random_llm("qwen3-0.6b"))
    member.hold("s", TEXT, HOW, 0)
    with no_thread_stays(), pytest.raises(SessionLost):
        member.begin("s", (0,))
    assert member.stats()["sessions"] == 0


def test_a_pass_that_fails_leaves_nothing_for_the_garbage_collector() -> None:
    llm = random_llm("qwen3-0.6b")
    member = Member("p", llm=llm)
    gc.collect()
    gc.disable()
    try:
        with no_thread_stays(), failing(llm, 1):
            member.hold("s", TEXT, HOW, 0)
            member.begin("s", (0,))
            running = weakref.ref(member._sessions.get("s", Segment).running)
            with pytest.raises(RuntimeError, match="out of memory"):
                member.advance("s", 0, ())
            member.release("s")
        assert running() is None
    finally:
        gc.enable()
